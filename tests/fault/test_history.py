"""Topics with history through everything that goes wrong: nothing lost, doubled or reordered."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex

import pytest

import aiopubsub as ps
from aiopubsub import reads
from aiopubsub.keys import history_key
from aiopubsub.testing import Proxy, Server
from tests.chaos.faults import Faults
from tests.conftest import FINDERS, LONG, start
from tests.fault.books import lost
from tests.fault.conftest import admin

pytestmark = pytest.mark.anyio

QUICK = ps.Backoff(first_s=0.01, cap_s=0.1)
HEARTBEAT_S = 0.2
MB = 1_000_000
KEY = history_key(b"c").decode()


@pytest.fixture
def durable() -> Iterator[Server]:
    """A Valkey that keeps what it has confirmed through a crash."""
    server = start("valkey9", "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.stop()


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    """Two Valkeys of the test's own."""
    servers = start("valkey9"), start("valkey9", "--repl-diskless-sync-delay", "0")
    yield servers
    for server in servers:
        server.stop()


def topic(size: int = 1_000_000) -> ps.Topic[bytes]:
    return ps.Topic("c", history=ps.History(size=size))


def numbers(begin: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(begin, end)]


class Taker:
    """Takes all events of a subscriber; numbers and gaps in the order they came."""

    def __init__(self, sub: ps.Subscriber[bytes], *, pause_s: float = 0) -> None:
        self.sub = sub
        self.events: list[int | ps.Gap] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self._pause_s = pause_s
        self._came = asyncio.Event()

    @property
    def numbers(self) -> list[int]:
        return [event for event in self.events if isinstance(event, int)]

    @property
    def gaps(self) -> list[ps.Gap]:
        return [event for event in self.events if isinstance(event, ps.Gap)]

    async def run(self) -> None:
        async for event in self.sub.events():
            assert not isinstance(event, ps.Undecodable)
            self.events.append(event if isinstance(event, ps.Gap) else int(event.data))
            self._came.set()
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
            await self.may_go_on.wait()

    async def until(self, number: int, timeout_s: float = 30) -> None:
        """Until this number has come, after the last look."""
        async with asyncio.timeout(timeout_s):
            while number not in self.events[-1:]:
                self._came.clear()
                await self._came.wait()

    async def until_gap(self, count: int = 1) -> None:
        async with asyncio.timeout(10):
            while len(self.gaps) < count:
                self._came.clear()
                await self._came.wait()


@asynccontextmanager
async def taking(*subs: ps.Subscriber[bytes]) -> AsyncIterator[list[Taker]]:
    """Open subscribers and take their events until the block is left."""
    async with asyncio.TaskGroup() as group:
        takers = [Taker(sub) for sub in subs]
        for taker in takers:
            await taker.sub.__aenter__()
        tasks = [group.create_task(taker.run()) for taker in takers]
        yield takers
        for taker in takers:
            await taker.sub.aclose()
        await asyncio.gather(*tasks)


async def test_every_message_through_every_fault(durable: Server) -> None:
    """Whatever happens to connections, server and consumers: each list equals the published one."""
    faults_count, count = (50, 100_000) if LONG else (16, 16_000)
    seed = int(os.environ.get("AIOPUBSUB_CHAOS_SEED", "1"))
    share = count // faults_count
    kept = topic()
    async with (
        Proxy(durable.port) as proxy,
        ps.Client(proxy.url, heartbeat=HEARTBEAT_S, backoff=QUICK) as far,
        ps.Client(durable.url, heartbeat=HEARTBEAT_S, backoff=QUICK) as near,
        ps.Publisher(far, timeout=60) as pub,
        taking(
            ps.Subscriber(far, kept),
            ps.Subscriber(far, kept, since="beginning", buffer=100),
            ps.Subscriber(far, kept, overflow="block", buffer=100),
            ps.Subscriber(near, kept, overflow="fail", buffer=1000),
        ) as takers,
    ):
        faults = Faults(random.Random(seed), durable, proxy, far, takers, HEARTBEAT_S)
        receipts: list[ps.Receipt] = []
        for nth in range(faults_count):
            begin = nth * share
            fault = asyncio.create_task(faults.run(1))
            receipts += await pub.publish_many(kept, numbers(begin, begin + share))
            await fault
        for taker in takers:
            await taker.until(count - 1)
    print(f"{faults_count} faults of seed {seed}: {dict(faults.counts)}")
    print(f"{sum(receipt.duplicate for receipt in receipts)} of {count} were confirmed by a retry")
    for taker in takers:
        assert taker.gaps == []
        assert taker.numbers == list(range(count)), f"replay: AIOPUBSUB_CHAOS_SEED={seed}"
    offsets = [receipt.position.offset for receipt in receipts if receipt.position]
    assert offsets == list(range(1, count + 1))


async def test_a_consumer_that_is_killed_goes_on(durable: Server) -> None:
    """SIGKILLed again and again, a named consumer repeats the message in hand at most, and misses none."""
    kills = 10 if LONG else 4
    rnd = random.Random(1)
    taken: list[int] = []
    published = 0
    async with ps.Publisher(durable.url) as pub:
        for nth in range(kills + 1):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.fault.keeper", durable.url, "c"), stdout=PIPE
            )
            assert process.stdout is not None
            until = len(taken) + rnd.randrange(100, 1500)
            await pub.publish_many(topic(), numbers(published, published + 1500))
            published += 1500
            is_last = nth == kills
            async with asyncio.timeout(60):
                while (taken[-1] < published - 1) if is_last else (len(taken) < until):
                    number = int(await process.stdout.readline())
                    is_first = nth > 0 and number in taken[-1:]
                    assert is_first or number == (taken[-1] + 1 if taken else 0), (
                        f"{number} after {taken[-1:]}"
                    )
                    if not is_first:
                        taken.append(number)
            process.kill()
            rest = await process.stdout.read()  # what it was done with and nobody has read yet
            taken += [int(line) for line in rest.split()]
            await process.wait()
    assert taken == list(range(published))


async def test_a_slow_consumer_gets_everything(own_valkey: Server) -> None:
    """Behind a fast publisher, with a small buffer: everything, in order, no drop, and memory flat."""
    count = 100_000 if LONG else 20_000
    kept = topic()
    async with (
        ps.Publisher(own_valkey.url) as pub,
        taking(ps.Subscriber(own_valkey.url, kept, buffer=100)) as (taker,),
    ):
        await pub.publish_many(kept, (b"%d" % number + b" " * 1000 for number in range(100)))
        await taker.until(99)
        gc.collect()
        before = rss_bytes()
        taker.may_go_on.clear()
        for begin in range(100, count, 1000):
            payloads = (b"%d" % number + b" " * 1000 for number in range(begin, min(count, begin + 1000)))
            await pub.publish_many(kept, payloads)
            assert taker.sub.stats.buffered <= 200  # and as many in hand
        grown = rss_bytes() - before
        taker.may_go_on.set()
        await taker.until(count - 1, timeout_s=120)
        stats = taker.sub.stats
    print(f"{count * 1000 / MB:.0f} MB published, memory has grown by {grown / MB:.1f} MB")
    assert taker.events == list(range(count))
    assert (stats.dropped, stats.gaps) == (0, 0)
    assert grown < 10 * MB


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("left", [0, 1, 7, 50])
async def test_trimmed(both_kinds: Server, left: int) -> None:
    """Beyond what is kept there is one gap, with the exact number, and then what is kept."""
    kept = topic()
    async with ps.Client(both_kinds.url) as client:
        pub = ps.Publisher(client)
        receipts = await pub.publish_many(kept, numbers(0, 100))
        with admin(both_kinds) as server:
            server.xtrim(KEY, maxlen=left or 1, approximate=False)
        saved = receipts[9].position
        async with taking(ps.Subscriber(client, kept, since=saved)) as (taker,):
            await taker.until(99)
    (gap,) = taker.gaps
    assert taker.events == [gap, *range(100 - (left or 1), 100)]
    assert (gap.reason, gap.missed, gap.withdrawn) == (ps.GapReason.TRIMMED, 90 - (left or 1), 0)
    assert gap.before == saved
    assert gap.after == receipts[100 - (left or 1)].position


@pytest.mark.parametrize("how", ["deleted", "flushed", "restarted empty"])
async def test_a_history_that_is_gone(own_valkey: Server, how: str) -> None:
    """What is not there any more is a gap, and then the next history is followed from its beginning."""
    kept = topic()
    async with (
        ps.Client(own_valkey.url, backoff=QUICK) as client,
        taking(ps.Subscriber(client, kept)) as (taker,),
    ):
        pub = ps.Publisher(client)
        await pub.publish_many(kept, numbers(0, 10))
        await taker.until(9)
        if how == "restarted empty":
            await asyncio.to_thread(own_valkey.kill)
            await asyncio.to_thread(own_valkey.start)
            await taker.until_gap()
        else:
            with admin(own_valkey) as server:
                if how == "deleted":
                    server.delete(KEY)
                else:
                    server.flushall()
        receipts = await pub.publish_many(kept, numbers(10, 20))
        await taker.until(19)
    (gap,) = taker.gaps
    assert taker.events == [*range(10), gap, *range(10, 20)]
    assert gap.reason is ps.GapReason.RESET
    # on a connection that was there all the while nothing can be missing
    assert gap.missed is None  # the last push of the old history may be lost, too
    assert receipts[0].position is not None
    assert receipts[0].position.offset == 1


async def follow(replica: Server, primary: Server) -> None:
    """Let a server follow another one, until it has all of its data."""
    with admin(replica) as server:
        server.replicaof("127.0.0.1", primary.port)
        async with asyncio.timeout(20):
            while server.info("replication")["master_link_status"] != "up":
                await asyncio.sleep(0.01)  # no event tells
            while server.info("replication")["slave_repl_offset"] < await offset_of(primary):
                await asyncio.sleep(0.01)


async def offset_of(primary: Server) -> int:
    with admin(primary) as server:
        return int(server.info("replication")["master_repl_offset"])


def promote(server: Server) -> None:
    with admin(server) as connection:
        connection.replicaof("no", "one")


async def fork(a: Server, b: Server, kept: ps.Topic[bytes], common: int, lost: int) -> None:
    """Numbers that both have, then some that only `a` has, because `b` lagged when it was promoted."""
    await follow(b, a)
    async with ps.Publisher(a.url) as pub:
        await pub.publish_many(kept, numbers(0, common))
        await follow(b, a)
        promote(b)
        await pub.publish_many(kept, numbers(common, common + lost))


@pytest.mark.parametrize(
    ("common", "lost", "new"), [(10, 5, 3), (10, 5, 8), (10, 5, 5), (500, 300, 0), (0, 4, 4)]
)
async def test_a_lagging_replica_is_promoted(
    pair: tuple[Server, Server], common: int, lost: int, new: int
) -> None:
    """With a break of the connection: one gap with what was withdrawn, then the new history."""
    a, b = pair
    kept = topic()
    async with (
        Proxy(a.port) as proxy,
        ps.Client(proxy.url, backoff=QUICK) as client,
        ps.Publisher(b.url) as to_b,
        taking(ps.Subscriber(client, kept)) as (taker,),
    ):
        await fork(a, b, kept, common, lost)
        await taker.until(common + lost - 1)
        await to_b.publish_many(kept, numbers(1000, 1000 + new))
        proxy._target = b.port
        proxy.cut()
        await taker.until_gap()
        await to_b.publish_many(kept, numbers(2000, 2003))
        await taker.until(2002)
    (gap,) = taker.gaps
    assert taker.events == [*range(common + lost), gap, *range(1000, 1000 + new), *range(2000, 2003)]
    if common:
        assert (gap.reason, gap.missed, gap.withdrawn) == (ps.GapReason.ROLLED_BACK, 0, lost)
        assert gap.before is not None
        assert gap.before.offset == common
    else:  # the other history began by itself
        assert gap.reason is ps.GapReason.RESET


@pytest.mark.parametrize("who_tells", ["a push", "the audit"])
async def test_a_promotion_without_a_break(
    pair: tuple[Server, Server], who_tells: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server that is listened to becomes the replica of one that forked: found all the same."""
    if who_tells == "the audit":
        monkeypatch.setattr(reads, "AUDIT_S", 0.2)
    a, b = pair
    kept = topic()
    async with (
        ps.Client(a.url, backoff=QUICK) as client,
        ps.Publisher(b.url) as to_b,
        taking(ps.Subscriber(client, kept)) as (taker,),
    ):
        await fork(a, b, kept, 10, 5)
        await taker.until(14)
        await to_b.publish_many(kept, numbers(1000, 1003))
        with admin(a) as server:
            server.config_set("repl-diskless-load", "swapdb")
        await follow(a, b)
        if who_tells == "a push":
            await to_b.publish(kept, b"1003")
            await taker.until(1003)
        else:
            await taker.until(1002)
    (gap,) = taker.gaps
    assert taker.events == [*range(15), gap, *range(1000, 1003 + (who_tells == "a push"))]
    assert (gap.reason, gap.missed, gap.withdrawn) == (ps.GapReason.ROLLED_BACK, 0, 5)


async def test_a_chain_of_failovers(pair: tuple[Server, Server]) -> None:
    """To the one that lagged and back to the one that was left: each withdrawal exact."""
    a, b = pair
    kept = topic()
    async with (
        Proxy(a.port) as proxy,
        ps.Client(proxy.url, backoff=QUICK) as client,
        ps.Publisher(a.url) as to_a,
        ps.Publisher(b.url) as to_b,
        taking(ps.Subscriber(client, kept)) as (taker,),
    ):
        await fork(a, b, kept, 10, 5)
        await taker.until(14)
        await to_b.publish_many(kept, numbers(1000, 1003))
        proxy._target = b.port
        proxy.cut()
        await taker.until(1002)
        await to_a.publish_many(kept, numbers(15, 20))
        proxy._target = a.port
        proxy.cut()
        await taker.until(19)
        await to_b.publish_many(kept, numbers(1003, 1004))
        proxy._target = b.port
        proxy.cut()
        await taker.until(1003)
    first, second, third = taker.gaps
    assert taker.events == [
        *(*range(15), first, *range(1000, 1003), second),
        *(*range(10, 20), third, *range(1000, 1004)),
    ]
    assert [gap.withdrawn for gap in taker.gaps] == [5, 3, 10]
    assert {gap.reason for gap in taker.gaps} == {ps.GapReason.ROLLED_BACK}


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("how", ["the reply was lost", "the command was lost"])
async def test_a_publish_whose_reply_is_lost_is_stored_once(valkey: Server, how: str, count: int) -> None:
    """It is sent again; the history tells whether the first try had arrived."""
    kept = ps.Topic(f"once {token_hex(4)}", history=ps.History(size=10_000))
    async with (
        Proxy(valkey.port) as proxy,
        ps.Publisher(proxy.url, timeout=10) as pub,
        ps.Publisher(valkey.url) as other,
        ps.Subscriber(valkey.url, kept) as sub,
    ):
        assert not (await pub.publish(kept, b"0")).duplicate
        if how == "the reply was lost":
            proxy.stall(up=False)
        else:
            proxy.stall(down=False)
        publishes = [asyncio.create_task(pub.publish(kept, b"%d" % n)) for n in range(1, count + 1)]
        got = [int((await anext(sub)).data)]
        if how == "the reply was lost":
            got += [int((await anext(sub)).data) for _ in range(count)]
            await other.publish(kept, b"-1")  # of somebody else, before the retry
        else:
            await asyncio.sleep(0)
        proxy.cut()
        proxy.resume()
        receipts = await asyncio.gather(*publishes)
        await other.publish(kept, b"-2")
        while got[-1] != -2:
            got.append(int((await anext(sub)).data))
    assert [receipt.duplicate for receipt in receipts] == [how == "the reply was lost"] * count
    assert [number for number in got if number >= 0] == list(range(count + 1))
    with admin(valkey) as server:
        assert server.xlen(history_key(kept.key)) == len(got)


@pytest.mark.parametrize("kind", list(FINDERS))
@pytest.mark.parametrize("is_back", [True, False], ids=["for a moment", "for good"])
async def test_a_server_that_becomes_a_replica(
    kind: str, is_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is given up, and what it did not take is sent again, once, with the cursor."""
    monkeypatch.setattr(random, "random", lambda: 1.0)
    server = start(kind)
    try:
        async with (
            ps.Client(server.url, backoff=ps.Backoff(0.3, 0.3)) as client,
            ps.Publisher(client) as pub,
            ps.Subscriber(client, topic(), name="worker") as sub,
        ):
            await pub.publish(topic(), b"0")
            assert (await anext(sub)).data == b"0"
            with admin(server) as operator:
                operator.replicaof("127.0.0.1", "1")
            publishing = asyncio.create_task(pub.publish_many(topic(), [b"1", b"2"]))
            saving = asyncio.create_task(sub.done())
            await lost(client, "commands")
            assert "has become a replica" in str(client.stats.links["commands"].error)
            if is_back:
                promote(server)
                assert [receipt.duplicate for receipt in await publishing] == [False, False]
                await saving
                assert [(await anext(sub)).data for _ in range(2)] == [b"1", b"2"]
            else:
                with pytest.raises(ps.PublishRefused, match="READONLY"):
                    await publishing
                await saving
                with pytest.raises(ps.CursorFailed, match="READONLY"):
                    await anext(sub)
            assert client.stats.links["commands"].reconnects == 1
    finally:
        server.stop()
