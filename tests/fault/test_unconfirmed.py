"""A publish whose reply is lost: delivered once, `Unconfirmed` in time, never sent a second time."""

from __future__ import annotations

import asyncio

import pytest

import aiopubsub as ps
from aiopubsub.testing import Proxy, Server
from tests.fault.books import reconnected, watching
from tests.fault.timing import again_if_late, in_time

pytestmark = pytest.mark.anyio

TIMEOUT_S = 0.3


@pytest.mark.parametrize("how", ["cut", "stalled"])
@pytest.mark.parametrize("count", [1, 100])
@again_if_late
async def test_a_lost_reply_is_unconfirmed_and_delivered_once(valkey: Server, how: str, count: int) -> None:
    """The command reaches the server, its reply does not come back."""
    loop = asyncio.get_running_loop()
    async with (
        Proxy(valkey.port) as proxy,
        ps.Client(proxy.url) as client,
        ps.Publisher(client, timeout=TIMEOUT_S) as pub,
        ps.Subscriber(valkey.url, "c") as sub,
        watching(sub) as watcher,
    ):
        proxy.stall(up=False)
        began_at = loop.time()
        publishes = [asyncio.create_task(pub.publish("c", b"%d" % n)) for n in range(count)]
        await watcher.until(lambda: len(watcher.events) == count)
        if how == "cut":
            proxy.cut()
            proxy.resume()
        outcomes = await asyncio.gather(*publishes, return_exceptions=True)
        took_s = loop.time() - began_at
        assert [type(outcome) for outcome in outcomes] == [ps.Unconfirmed] * count
        proxy.resume()
        assert (await ps.Publisher(client).publish("c", b"1000")).receivers == 1
        await watcher.until(lambda: watcher.last == 1000)
    assert watcher.numbers == [*range(count), 1000]
    in_time("told", took_s, TIMEOUT_S + 0.1)


async def test_a_command_that_never_arrived_is_unconfirmed_too(valkey: Server) -> None:
    """What left this process and got lost on the way is not sent again behind the caller's back."""
    async with (
        Proxy(valkey.port) as proxy,
        ps.Client(proxy.url) as client,
        ps.Publisher(client, timeout=TIMEOUT_S) as pub,
        ps.Subscriber(valkey.url, "c") as sub,
        watching(sub) as watcher,
    ):
        proxy.stall(down=False)
        with pytest.raises(ps.Unconfirmed, match="did not answer in time"):
            await pub.publish("c", b"0")
        proxy.cut()
        proxy.resume()
        await reconnected(client, "commands", 1)
        assert (await ps.Publisher(client).publish("c", b"1")).receivers == 1
        await watcher.until(lambda: watcher.last == 1)
    assert watcher.numbers == [1]


async def test_a_late_reply_finds_nobody_else(valkey: Server) -> None:
    """A reply that comes after its caller has given up is not taken for the next one's."""
    async with (
        Proxy(valkey.port) as proxy,
        ps.Client(proxy.url) as client,
        ps.Publisher(client, timeout=TIMEOUT_S) as pub,
        ps.Subscriber(valkey.url, "heard"),
    ):
        proxy.stall(up=False)
        with pytest.raises(ps.Unconfirmed):
            await pub.publish("unheard", b"x")
        proxy.resume()
        patient = ps.Publisher(client)
        receipts = await asyncio.gather(*(patient.publish("heard", b"x") for _ in range(10)))
        assert receipts == [ps.Receipt(1)] * 10


async def test_a_cut_inside_a_reply_is_unconfirmed(valkey: Server) -> None:
    """Half a reply is none: `:1` without its line end does not confirm."""
    async with (
        Proxy(valkey.port) as proxy,
        ps.Client(proxy.url, backoff=ps.Backoff(first_s=0.001, cap_s=0.01)) as client,
        ps.Publisher(client) as pub,
        ps.Subscriber(valkey.url, "c") as sub,
        watching(sub) as watcher,
    ):
        for cut in range(4):  # of the four bytes of ":1\r\n"
            proxy.cut_after(cut)
            with pytest.raises(ps.Unconfirmed, match="connection was lost"):
                await pub.publish("c", b"%d" % cut)
            await reconnected(client, "commands", cut + 1)
        proxy.cut_after(4)
        assert (await pub.publish("c", b"4")).receivers == 1
        await reconnected(client, "commands", 5)
        await pub.publish("c", b"5")
        await watcher.until(lambda: watcher.last == 5)
    assert watcher.numbers == [0, 1, 2, 3, 4, 5]


async def test_a_batch_says_which_are_unconfirmed(valkey: Server) -> None:
    """`publish_many` through a lost connection raises `Unconfirmed`; what arrived, arrived once."""
    async with (
        Proxy(valkey.port) as proxy,
        ps.Publisher(proxy.url) as pub,
        ps.Subscriber(valkey.url, "c") as sub,
        watching(sub) as watcher,
    ):
        proxy.cut_after(4 * 10)
        with pytest.raises(ps.Unconfirmed) as caught:
            await pub.publish_many("c", [b"%d" % n for n in range(100)])
        assert "message 10 (counted from 0) was the first of 90 that failed" in caught.value.__notes__[0]
        await pub.publish("c", b"1000")
        await watcher.until(lambda: watcher.last == 1000)
    assert len(set(watcher.numbers)) == len(watcher.numbers) <= 101
    assert watcher.numbers[:10] == list(range(10))
