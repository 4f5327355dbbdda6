"""Opening, closing, draining, cancelling, and using what is closed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

import aiopubsub as ps
from tests.conftest import Place

pytestmark = pytest.mark.anyio


async def collect(sub: ps.Subscriber) -> list[bytes]:
    return [message.data async for message in sub]


async def test_closing_ends_the_iterators(client: ps.Client) -> None:
    """An iterator that waits ends when its subscriber is closed by another task."""
    sub = ps.Subscriber(client, "c")
    await sub.__aenter__()
    tasks = [asyncio.create_task(collect(sub)) for _ in range(3)]
    await ps.Publisher(client).publish("c", b"1")
    await asyncio.wait_for(sub.aclose(), 10)
    collected = await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert sorted(collected) in ([[], [], []], [[], [], [b"1"]])


async def test_closing_the_client_ends_everything(place: Place) -> None:
    """Iterators end, publishes raise, and a second close does nothing."""
    client = ps.Client(place.url)
    await client.__aenter__()
    sub = ps.Subscriber(client, "c")
    await sub.__aenter__()
    pub = ps.Publisher(client)
    await pub.publish("c", b"1")
    task = asyncio.create_task(collect(sub))
    await client.aclose()
    await client.aclose()
    assert await asyncio.wait_for(task, 10) in ([b"1"], [])
    with pytest.raises(ps.Closed):
        await pub.publish("c", b"2")
    await asyncio.wait_for(sub.aclose(), 10)


async def test_draining_hands_over_what_was_published_before(client: ps.Client) -> None:
    """After `drain` returned the consumer has had everything, and its loop has ended."""
    async with ps.Subscriber(client, "d") as sub:
        await ps.Publisher(client).publish_many("d", [b"%d" % n for n in range(1000)])
        task = asyncio.create_task(collect(sub))
        assert await sub.drain(10) == 0
        assert await ps.Publisher(client).publish("d", b"late") == ps.Receipt(0)
        assert await asyncio.wait_for(task, 10) == [b"%d" % n for n in range(1000)]


async def test_draining_without_a_consumer_tells_what_is_left(client: ps.Client) -> None:
    """When the time is over, `drain` returns how many messages nobody took."""
    async with ps.Subscriber(client, "d") as sub:
        await ps.Publisher(client).publish_many("d", [b"x"] * 7)
        assert await sub.drain(0.05) == 7


async def test_a_cancelled_consumer_loses_nothing(client: ps.Client) -> None:
    """A consumer that is cancelled again and again leaves every message for the next one."""
    pub = ps.Publisher(client)
    got: list[int] = []
    async with ps.Subscriber(client, "c") as sub:

        async def consume() -> None:
            async for message in sub:
                got.append(int(message.data))  # noqa: PERF401  # each at once: it may be cancelled

        for n in range(500):
            task = asyncio.create_task(consume())
            publish = asyncio.create_task(pub.publish("c", b"%d" % n))
            for _ in range(n % 7):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await publish
        task = asyncio.create_task(consume())
        assert await sub.drain(10) == 0
        await task
    assert got == list(range(500))


async def test_a_cancelled_subscribe_leaves_nothing(client: ps.Client) -> None:
    """A subscription whose caller gave up is taken back."""
    pub = ps.Publisher(client)
    async with ps.Subscriber(client) as sub:
        for turns in range(5):
            task = asyncio.create_task(sub.subscribe("c"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await sub.unsubscribe("c")
            await sub.subscribe("{c}fence")
            assert await pub.publish("c", b"x") == ps.Receipt(0)


async def test_a_publisher_sends_what_it_holds_before_it_closes(place: Place) -> None:
    """Publishes that were begun before `aclose` are answered."""
    async with ps.Subscriber(place.url, "c") as sub:
        pub = ps.Publisher(place.url, max_in_flight=10)
        await pub.__aenter__()
        tasks = [asyncio.create_task(pub.publish("c", b"%d" % n)) for n in range(1000)]
        await asyncio.sleep(0)
        await pub.aclose()
        assert await asyncio.gather(*tasks) == [ps.Receipt(1)] * 1000
        with pytest.raises(ps.Closed, match="this Publisher is closed"):
            await pub.publish("c", b"late")
        assert await sub.drain(0.05) == 1000


async def test_what_is_closed_or_not_open_says_so(place: Place) -> None:
    """Every use of it raises `Closed`, with what to do."""
    client = ps.Client(place.url)
    with pytest.raises(ps.Closed, match="Client is not open; enter it with `async with`"):
        await ps.Publisher(client).publish("c", b"x")
    sub = ps.Subscriber(place.url, "c")
    with pytest.raises(ps.Closed, match="Subscriber is not open"):
        aiter(sub)
    with pytest.raises(ps.Closed, match="Client is not open"):
        await ps.Publisher(place.url).publish("c", b"x")
    async with client, sub:
        pass
    for use in (client.__aenter__, sub.__aenter__, lambda: sub.subscribe("d"), lambda: sub.drain(1)):
        with pytest.raises(ps.Closed, match="is closed; make a new one"):
            await use()
    for iterate in (lambda: aiter(sub), sub.events):
        with pytest.raises(ps.Closed, match="this Subscriber is closed"):
            iterate()


async def test_entered_here_and_closed_there(place: Place) -> None:
    """Public objects may be entered in one task and closed in another."""
    client = ps.Client(place.url)
    sub = ps.Subscriber(client, "c")

    async def enter() -> None:
        await client.__aenter__()
        await sub.__aenter__()

    async def leave() -> None:
        await sub.__aexit__(None, None, None)
        await client.__aexit__(None, None, None)

    await asyncio.create_task(enter())
    assert await ps.Publisher(client).publish("c", b"x") == ps.Receipt(1)
    await asyncio.create_task(leave())


async def test_closing_leaves_no_task(place: Place) -> None:
    """After everything is closed only the test's own task is left."""
    before = asyncio.all_tasks()
    async with ps.Client(place.url) as client:
        async with ps.Subscriber(client, "c"), ps.Subscriber(client, "d", overflow="block"):
            await ps.Publisher(client).publish("c", b"x")
        async with ps.Publisher(place.url):
            pass
    assert asyncio.all_tasks() == before


async def test_stats_tell_how_things_stand(client: ps.Client) -> None:
    """Counts balance, and links tell their state."""
    sub = ps.Subscriber(client, "c", buffer=2)
    assert sub.stats.heard_s_ago is None
    async with sub:
        await ps.Publisher(client).publish_many("c", [b"x"] * 5)
        await sub.subscribe("{c}fence")
        await anext(sub)
        stats = sub.stats
        assert (stats.received, stats.delivered, stats.dropped, stats.buffered) == (5, 1, 3, 1)
        assert stats.heard_s_ago is not None
        assert 0 <= stats.heard_s_ago < 5
        links = client.stats.links
        assert {role.split(" ")[0] for role in links} >= {"commands", "listens"}
        assert {link.state for link in links.values()} == {"live"}
        assert all(link.error is None and link.reconnects == 0 for link in links.values())
