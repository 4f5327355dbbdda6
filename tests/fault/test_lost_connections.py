"""Connections that are lost and servers that crash or stop: noticed, reported, survived."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
import redis.asyncio

import aiopubsub as ps
from aiopubsub.router import Router
from aiopubsub.session import Session
from aiopubsub.testing import Proxy, Server
from aiopubsub.wire import Push, RedisOpener, RedisWire
from tests.conftest import LONG
from tests.fault.books import feeding, jumps, lost, watching
from tests.fault.conftest import admin
from tests.fault.timing import Late, Queueing, again_if_late, in_time

pytestmark = pytest.mark.anyio

HEARTBEAT_S = 0.25
TIMELY_S = 0.1  # what two shared cores may add to a bound


@again_if_late
async def test_client_kill_at_speed_is_one_gap_where_the_hole_is(both_kinds: Server) -> None:
    """Within 200 ms the subscribers are back, each with one gap, exactly where numbers are missing."""
    async with (
        Proxy(both_kinds.port, delay_s=0.005) as proxy,
        ps.Client(proxy.url) as client,
        ps.Subscriber(client, "c") as exact,
        ps.Subscriber(client, ps.Pattern("c*")) as glob,
        ps.Subscriber(client, "c", "other") as two,
        ps.Publisher(both_kinds.url) as pub,
        watching(exact) as first,
        watching(glob) as second,
        watching(two) as third,
        feeding(pub, "c", per_s=2_000) as feed,
    ):
        watchers = [first, second, third]
        await first.until(lambda: first.last > 400)
        with admin(both_kinds) as server:
            assert server.client_kill_filter(_type="pubsub") == 1
        killed_at, queueing = time.time(), Queueing()
        await first.until(lambda: len(first.gaps) > 0)
        queued_s = queueing.s()
        for watcher in watchers:
            await watcher.until(lambda watcher=watcher: len(watcher.gaps) > 0)
            gap_at = len(watcher.events)
            await watcher.until(lambda watcher=watcher, at=gap_at: len(watcher.events) > at + 400)
    assert len(feed.confirmed) == feed.begun
    for watcher, channels in zip(watchers, ({"c"}, {"c*"}, {"c", "other"}), strict=True):
        (gap,) = watcher.gaps
        assert (gap.reason, gap.missed) == (ps.GapReason.RECONNECTED, None)
        assert set(gap.channels) == channels
        assert jumps(watcher) == [watcher.events.index(gap)]
        in_time("back", gap.ended.timestamp() - killed_at, 0.2, queued_s=queued_s)


@pytest.mark.parametrize("outage_s", [3.0, 15.0] if LONG else [3.0])
@again_if_late
async def test_a_server_that_crashes_and_comes_back(own_valkey: Server, outage_s: float) -> None:
    """Subscribed again within 1.2 s of its return; the gap is reported, the iterator goes on."""
    async with (
        ps.Client(own_valkey.url) as client,
        ps.Subscriber(client, "c", ps.Pattern("p*")) as sub,
        ps.Publisher(own_valkey.url, timeout=0.5) as pub,
        watching(sub) as watcher,
        feeding(pub, "c", per_s=200) as feed,
    ):
        await watcher.until(lambda: watcher.last > 20)
        await asyncio.to_thread(own_valkey.kill)
        await asyncio.sleep(outage_s)  # the fault itself
        await asyncio.to_thread(own_valkey.start)
        returned_at, queueing = time.time(), Queueing()
        await watcher.until(lambda: bool(watcher.gaps))
        queued_s = queueing.s()
        after = feed.begun
        await watcher.until(lambda: watcher.last > after + 20)
        with admin(own_valkey) as server:
            assert server.pubsub_numsub("c") == [("c", 1)]
            assert server.pubsub_numpat() == 1
    (gap,) = watcher.gaps
    assert gap.reason is ps.GapReason.RECONNECTED
    assert (gap.ended - gap.started).total_seconds() > outage_s - TIMELY_S
    assert jumps(watcher) == [watcher.events.index(gap)]
    assert set(watcher.numbers) <= feed.confirmed | feed.unconfirmed
    assert len(feed.not_sent) > (outage_s - 1) * 150
    in_time("subscribed again", gap.ended.timestamp() - returned_at, 1.2, queued_s=queued_s)


@pytest.mark.parametrize("role", ["listens", "commands"])
@pytest.mark.parametrize(
    "hole",
    [
        pytest.param({"new": False}, id="new connections pass"),
        pytest.param({"new": True}, id="nothing passes"),
        pytest.param({"new": False, "down": False}, id="only up"),
        pytest.param({"new": False, "up": False}, id="only down"),
    ],
)
@again_if_late
async def test_a_black_hole_is_noticed_within_two_heartbeats(
    valkey: Server, role: str, hole: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is closed, and nothing passes one way or both: given up in time, and opened again."""
    heartbeat_s = 5.0 if LONG else HEARTBEAT_S
    loop = asyncio.get_running_loop()
    caplog.clear()
    async with (
        Proxy(valkey.port) as proxy,
        ps.Client(proxy.url, heartbeat=heartbeat_s) as client,
        ps.Subscriber(client, "c") as sub,
        ps.Publisher(valkey.url) as direct,
        watching(sub) as watcher,
    ):
        pub = ps.Publisher(client)
        assert (await pub.publish("c", b"1")).receivers == 1
        await watcher.until(lambda: watcher.last == 1)
        stalled_at = loop.time()
        proxy.stall(**hole)
        await direct.publish("c", b"2")
        await lost(client, role)
        noticed_s = loop.time() - stalled_at
        assert noticed_s > heartbeat_s - TIMELY_S
        assert f"{role}: lost" in caplog.text
        assert "nothing heard for" in caplog.text
        if hole["new"]:
            await lost(client, "listens")  # each has a heart of its own; the gap below is this one's
            proxy.resume()
        await watcher.until(lambda: bool(watcher.gaps))
        assert (await pub.publish("c", b"3")).receivers >= 1
        await watcher.until(lambda: watcher.last == 3)
    if len(watcher.gaps) > 1:
        raise Late("a PING was not answered within a heartbeat, though it could be")
    assert watcher.numbers == ([1, 3] if hole.get("down", True) else [1, 2, 3])
    (gap,) = watcher.gaps
    assert gap.reason is ps.GapReason.RECONNECTED
    assert "nothing heard for" in gap.cause
    print(f"{noticed_s / heartbeat_s:.2f} heartbeats")
    in_time("noticed", noticed_s, 2 * heartbeat_s + TIMELY_S)


@again_if_late
async def test_a_quiet_connection_that_lives_is_kept(valkey: Server) -> None:
    """Silence alone kills nothing: the server answers when it is asked."""
    async with (
        Proxy(valkey.port) as proxy,
        ps.Client(proxy.url, heartbeat=0.03) as client,
        ps.Subscriber(client, "c") as sub,
        watching(sub) as watcher,
    ):
        await asyncio.sleep(0.6)  # twenty heartbeats of silence are what is tested
        if any(link.reconnects for link in client.stats.links.values()):
            raise Late("a PING was not answered within 0.03 s")
        assert proxy.accepted == 2
        assert not watcher.events


@again_if_late
async def test_a_server_that_stops_and_goes_on(own_valkey: Server) -> None:
    """A stopped server is noticed; when it goes on all is well and nothing is doubled."""
    outage_s, heartbeat_s = (30.0, 5.0) if LONG else (1.5, HEARTBEAT_S)
    async with (
        ps.Client(own_valkey.url, heartbeat=heartbeat_s) as client,
        ps.Subscriber(client, "c") as sub,
        ps.Publisher(client, timeout=outage_s / 2) as pub,
        watching(sub) as watcher,
        feeding(pub, "c", per_s=200) as feed,
    ):
        await watcher.until(lambda: watcher.last > 20)
        os.kill(own_valkey.pid, signal.SIGSTOP)
        stopped_at, queueing = time.time(), Queueing()
        try:
            await lost(client, "listens")
            await lost(client, "commands")
            noticed_s, queued_s = time.time() - stopped_at, queueing.s()
            await asyncio.sleep(stopped_at + outage_s - time.time())  # the fault itself
        finally:
            os.kill(own_valkey.pid, signal.SIGCONT)
        await watcher.until(lambda: bool(watcher.gaps))
        after = feed.begun
        await watcher.until(lambda: watcher.last > after + 20)
        with admin(own_valkey) as server:
            assert server.pubsub_numsub("c") == [("c", 1)]
    jumps(watcher)  # nothing doubled, nothing out of order, nothing lost in silence
    assert set(watcher.numbers) <= feed.confirmed | feed.unconfirmed
    assert feed.unconfirmed
    assert feed.not_sent
    print(f"{noticed_s / heartbeat_s:.2f} heartbeats")
    in_time("noticed", noticed_s, 2 * heartbeat_s + TIMELY_S, queued_s=queued_s)


async def test_refused_and_accepted_again(valkey: Server) -> None:
    """While connections are refused the iterator waits; when they are accepted it goes on."""
    async with (
        Proxy(valkey.port) as proxy,
        ps.Client(proxy.url) as client,
        ps.Subscriber(client, "c") as sub,
        ps.Publisher(valkey.url) as pub,
        watching(sub) as watcher,
    ):
        await pub.publish("c", b"1")
        await watcher.until(lambda: watcher.last == 1)
        proxy.refuse()
        proxy.cut()
        async with asyncio.timeout(5):
            while "cannot connect" not in str(client.stats.links["listens"].error) or proxy.connections:
                await asyncio.sleep(0.002)  # no event tells
        await pub.publish("c", b"2")
        await proxy.accept()
        await watcher.until(lambda: bool(watcher.gaps))
        await pub.publish("c", b"3")
        await watcher.until(lambda: watcher.last == 3)
    assert jumps(watcher) == [1]


async def test_a_connection_lost_right_after_the_handshake(valkey: Server) -> None:
    """A session whose socket is closed before it begins ends; it raises nothing."""
    wire = await RedisOpener.from_url(valkey.url, None).open()
    assert isinstance(wire, RedisWire)
    wire._transport.abort()
    for _ in range(5):
        await asyncio.sleep(0)  # the loop closes it
    session = Session(wire, Router(Push))
    session.ping()
    session.resume()
    wire.pause()
    wire.resume()
    async with asyncio.timeout(5):
        assert "closed the connection" in await session.ended


async def test_a_connection_lost_in_the_midst_of_the_handshake(valkey: Server) -> None:
    """What uvloop raises for a write to a closed transport does not end the link; it tries again."""

    class Closing(redis.asyncio.Connection):
        is_first = True

        async def connect(self) -> None:
            if Closing.is_first:
                Closing.is_first = False
                raise RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed")
            await super().connect()

    pool = redis.asyncio.ConnectionPool.from_url(valkey.url, connection_class=Closing)
    async with ps.Client(redis.asyncio.Redis(connection_pool=pool)) as client:
        assert (await ps.Publisher(client).publish("c", b"x")).receivers == 0
    assert not Closing.is_first
