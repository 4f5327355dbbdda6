"""Cancelled after each number of turns of the event loop, nothing is lost and nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import aiopubsub as ps
from aiopubsub.client import deployment_of
from aiopubsub.testing import Server
from tests.conftest import LONG
from tests.fault.conftest import admin

pytestmark = pytest.mark.anyio

CANCELS = 12_000 if LONG else 300  # in each test
END = 10**9

Make = Callable[[int], Coroutine[Any, Any, object]]


async def cancel_everywhere(
    make: Make, each: Callable[[bool], Coroutine[Any, Any, None]], count: int = CANCELS
) -> None:
    """Make a coroutine again and again, and cancel it after 0, 1, 2, … turns until it ends by itself.

    Every other one is cancelled a second time, in the midst of what it does about the first.

    Args:
        make: Makes it, of a running number.
        each: What is checked after each; it is told whether the coroutine was cancelled.
        count: How often it is cancelled.
    """
    turns = cancels = n = 0
    while cancels < count:
        task = asyncio.create_task(make(n))
        for _ in range(turns):
            await asyncio.sleep(0)
        is_over = not task.cancel()
        if n % 2:
            await asyncio.sleep(0)
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await each(task.cancelled())
        turns = 0 if is_over else turns + 1
        cancels += not is_over
        n += 1
    print(f"{cancels} of {n} were cancelled")


def sockets() -> int:
    return sum("socket:" in os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir())


def others() -> set[asyncio.Task[Any]]:
    """All tasks but those of the test runner."""
    return {task for task in asyncio.all_tasks() if "TestRunner" not in repr(task.get_coro())}


@pytest.fixture
async def client(valkey: Server) -> AsyncIterator[ps.Client]:
    """A client of which nothing may be left."""
    tasks = others()
    async with asyncio.timeout(900 if LONG else 60):
        async with ps.Client(valkey.url) as client:
            async with ps.Subscriber(client, "of the fixture"):
                pass
            both = sockets()
            yield client
            async with ps.Subscriber(client, "fence"):
                pass  # what was on its way when the last one was cancelled is settled
            gc.collect()
            assert sockets() == both
            router = deployment_of(client).listening(is_shared=True).dialogue
            assert not router._mailboxes
            assert not any(router._wishes.values())
            assert not router._wire
            assert not router._tickets
            assert not router._torn
            assert (client.stats.in_flight, client.stats.waiting) == (0, 0)
            with admin(valkey) as server:
                assert server.pubsub_channels() == []
                assert server.pubsub_numpat() == 0
        assert others() == tasks


async def nothing(_: bool) -> None:
    """For a coroutine after which nothing is to be checked."""


async def test_subscribe(client: ps.Client, valkey: Server) -> None:
    """A subscribe that is cancelled has taken back what it added; one that is not holds."""
    async with ps.Subscriber(client, "kept") as sub:
        wanted = {"kept"}

        async def subscribe(n: int) -> None:
            await sub.subscribe(f"c{n}", ps.Pattern(f"p{n}*"))
            wanted.update((f"c{n}", f"p{n}*"))

        async def check(_: bool) -> None:
            assert {topic.name for topic in sub.topics} == wanted

        await cancel_everywhere(subscribe, check)
        await sub.unsubscribe("fence")
        await sub.subscribe("kept too")
        with admin(valkey) as server:
            on_server = {*server.pubsub_channels()} - {"kept too"}
            assert on_server == {name for name in wanted if "*" not in name}
            assert server.pubsub_numpat() == sum("*" in name for name in wanted)


async def test_unsubscribe(client: ps.Client, valkey: Server) -> None:
    """An unsubscribe that is cancelled has unsubscribed all the same."""
    async with ps.Subscriber(client, "kept") as sub:

        async def unsubscribe(_: int) -> None:
            await sub.unsubscribe("c", ps.Pattern("p*"))

        async def check(_: bool) -> None:
            assert [topic.name for topic in sub.topics] in (["kept"], ["kept", "c", "p*"])
            await sub.subscribe("c", ps.Pattern("p*"))
            with admin(valkey) as server:
                assert (sorted(server.pubsub_channels()), server.pubsub_numpat()) == (["c", "kept"], 1)

        await sub.subscribe("c", ps.Pattern("p*"))
        await cancel_everywhere(unsubscribe, check)


async def test_next(client: ps.Client) -> None:
    """A message that a cancelled consumer did not get is there for the next one."""
    pub = ps.Publisher(client)
    got: list[int] = []
    published: list[int] = []
    async with ps.Subscriber(client, "c") as sub:

        async def publish(n: int) -> None:
            await pub.publish("c", b"%d" % n)
            published.append(n)

        async def take(n: int) -> None:
            publishes.append(asyncio.create_task(publish(n)))
            got.append(int((await anext(sub)).data))

        async def check(_: bool) -> None:
            await asyncio.gather(*publishes)
            publishes.clear()

        publishes: list[asyncio.Task[None]] = []
        await cancel_everywhere(take, check)
        await pub.publish("c", b"%d" % END)
        while not got or got[-1] != END:
            got.append(int((await anext(sub)).data))
    assert got == sorted(set(got))
    assert set(published) <= set(got)


async def test_next_beside_another(client: ps.Client) -> None:
    """A consumer that is cancelled when it was its turn leaves the message to the one that waits."""
    pub = ps.Publisher(client)
    got: list[int] = []
    published: list[int] = []
    tasks: list[asyncio.Task[None]] = []
    async with ps.Subscriber(client, "c") as sub:

        async def take() -> None:
            got.append(int((await anext(sub)).data))

        async def publish(n: int) -> None:
            await pub.publish("c", b"%d" % n)
            published.append(n)

        async def take_as_one_of_two(n: int) -> None:
            tasks.extend(map(asyncio.create_task, (publish(n), take())))
            await take()

        async def check(_: bool) -> None:
            if tasks:
                await tasks[0]
            while got != published:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            tasks.clear()

        await cancel_everywhere(take_as_one_of_two, check)


async def test_publish(client: ps.Client) -> None:
    """A publish that is cancelled happens once or not at all, in its place, and stops no other."""
    pub = ps.Publisher(client)
    confirmed: list[int] = []
    async with ps.Subscriber(client, "c") as sub:

        async def publish(n: int) -> None:
            assert (await pub.publish("c", b"%d" % n)).receivers == 1
            confirmed.append(n)

        await cancel_everywhere(publish, nothing)
        await pub.publish("c", b"%d" % END)
        got = [int((await anext(sub)).data)]
        while got[-1] != END:
            got.append(int((await anext(sub)).data))
    assert got == sorted(set(got))
    assert set(confirmed) <= set(got)
    assert len(got) > CANCELS / 2


async def test_publish_many(client: ps.Client) -> None:
    """A batch that is cancelled leaves nothing waiting; what it has sent arrives once."""
    pub = ps.Publisher(client, max_in_flight=4)
    async with ps.Subscriber(client, "c") as sub:

        async def publish(n: int) -> None:
            await pub.publish_many("c", [b"%d" % (10 * n + m) for m in range(10)])

        await cancel_everywhere(publish, nothing)
        await pub.publish("c", b"-1")
        got = []
        while (number := int((await anext(sub)).data)) != -1:
            got.append(number)
    assert got == sorted(set(got))


async def test_drain(client: ps.Client) -> None:
    """A drain that is cancelled loses nothing: what came is still handed over, by the next drain."""
    pub = ps.Publisher(client)
    sub = ps.Subscriber(client, "c")
    got: list[bytes] = []

    async def collect() -> None:
        async for message in sub:
            got.append(message.data)  # noqa: PERF401  # each at once: what came counts

    async def drain(_: int) -> None:
        nonlocal sub
        got.clear()
        sub = ps.Subscriber(client, "c")
        await sub.__aenter__()
        await pub.publish_many("c", [b"1", b"2", b"3"])
        collecting.append(asyncio.create_task(collect()))
        await sub.drain()

    async def check(_: bool) -> None:
        if not collecting:
            await sub.aclose()  # was cancelled before it came to the drain
            return
        assert await sub.drain(5) == 0
        await collecting.pop()
        assert got == [b"1", b"2", b"3"]
        await sub.aclose()

    collecting: list[asyncio.Task[None]] = []
    await cancel_everywhere(drain, check)


async def test_closing_a_subscriber(client: ps.Client, valkey: Server) -> None:
    """However its close is cancelled, the server is told, and the iterator ends."""
    sub = ps.Subscriber(client, "c", "d", ps.Pattern("p*"))
    await sub.__aenter__()
    iterating = asyncio.create_task(anext(sub, None))

    async def close(_: int) -> None:
        await sub.aclose()

    async def check(_: bool) -> None:
        nonlocal sub, iterating
        await sub.aclose()  # the task may have been cancelled before it began
        assert await iterating is None
        sub = ps.Subscriber(client, "c", "d", ps.Pattern("p*"))
        await sub.__aenter__()
        with admin(valkey) as server:
            assert server.pubsub_numsub("c", "d") == [("c", 1), ("d", 1)]
        iterating = asyncio.create_task(anext(sub, None))

    await cancel_everywhere(close, check)
    await sub.aclose()
    await iterating


@pytest.mark.parametrize("overflow", ["drop_oldest", "block"])
async def test_opening_a_subscriber(client: ps.Client, overflow: Any) -> None:
    """However `async with` is cancelled, nothing stays subscribed or connected."""

    async def use(_: int) -> None:
        async with ps.Subscriber(client, "c", ps.Pattern("p*"), overflow=overflow):
            await asyncio.sleep(0)

    await cancel_everywhere(use, nothing)


async def test_opening_and_closing_a_client(client: ps.Client, valkey: Server) -> None:
    """However a client's life is cancelled, its connections and tasks are gone."""
    tasks = others()

    async def use(_: int) -> None:
        async with (
            ps.Client(valkey.url) as other,
            ps.Subscriber(other, "c"),
            ps.Publisher(other) as pub,
        ):
            await pub.publish("c", b"x")

    async def check(_: bool) -> None:
        while others() != tasks:  # a close that was cancelled is over after some turns
            await asyncio.sleep(0)

    await cancel_everywhere(use, check)
    for _ in range(3):
        await asyncio.sleep(0)  # transports close their sockets in the next turn
