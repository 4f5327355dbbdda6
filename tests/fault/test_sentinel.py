"""A service behind Sentinel: failovers of every kind, with load, and sentinels that are down themselves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Iterator

import pytest

import aiopubsub as ps
from aiopubsub.keys import history_key
from aiopubsub.testing import Proxy, Sentinels, Server
from tests.conftest import LONG, executable
from tests.fault.books import Feed, Watcher, feeding, jumps, watching
from tests.fault.test_cancellation import cancel_everywhere, others, sockets
from tests.fault.timing import again_if_late, in_time

pytestmark = pytest.mark.anyio

HEARTBEAT_S = 0.5
SLOW_HEARTBEAT_S = 30.0  # so that only what is pushed can have been noticed
TIMELY_S = 0.3  # what two shared cores may add to a bound
HISTORY = ps.History(size=100_000)


@pytest.fixture(params=["asyncio", "uvloop"] if LONG else ["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """One event loop, because failovers take their time; both with `AIOPUBSUB_LONG=1`."""
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


each_kind = pytest.mark.parametrize("trio", ["redis7", "valkey9"], indirect=True)
any_kind = pytest.mark.parametrize("trio", ["redis7", "valkey9"] if LONG else ["redis7"], indirect=True)


@pytest.fixture(scope="module")
def trio(request: pytest.FixtureRequest) -> Iterator[Sentinels]:
    """Three servers and three sentinels of this file's own, of one kind."""
    with Sentinels(executable(request.param)) as trio:
        yield trio


async def in_order(trio: Sentinels) -> None:
    """Until all of them run, and agree: a test may have left some that don't."""
    for server in [*trio.servers, *trio.sentinels]:
        if not server.is_running:
            await asyncio.to_thread(server.start)
    await trio.settled()


async def switched(trio: Sentinels, old: Server) -> float:
    """Until a sentinel that runs names another primary; when that was. No event tells, so it looks."""
    async with asyncio.timeout(30):
        while True:
            for sentinel in trio.sentinels:
                if sentinel.is_running and await asyncio.to_thread(trio._told_by, sentinel) != old.port:
                    return time.time()
            await asyncio.sleep(0.01)


class Books:
    """Load on a plain topic and on one with history, each watched from a process that only subscribes."""

    def __init__(self, feeds: list[Feed], watchers: list[Watcher]) -> None:
        self.plain_feed, self.kept_feed = self.feeds = feeds
        self.plain, self.kept = self.watchers = watchers

    async def go_on(self, *, gaps: int) -> None:
        """Until what is published from now on arrives, after so many gaps on the plain topic."""
        await self.plain.until(lambda: len(self.plain.gaps) >= gaps, timeout=30)
        for watcher, feed in zip(self.watchers, self.feeds, strict=True):
            await watcher.until(lambda w=watcher, after=feed.begun: w.last > after + 20, timeout=30)

    async def end(self) -> None:
        """Until all that was published has come."""
        for watcher, feed in zip(self.watchers, self.feeds, strict=True):
            await watcher.until(lambda w=watcher, f=feed: w.last >= max(f.confirmed))

    def check(self, trio: Sentinels, causes: list[str]) -> int:
        """The plain one has a gap for each cause, and no hole elsewhere; the other is the history itself.

        Returns how many messages the servers have confirmed and lost: Sentinel lets a primary go on while
        its replica is promoted.
        """
        assert [gap.reason for gap in self.plain.gaps] == [ps.GapReason.RECONNECTED] * len(causes)
        for gap, cause in zip(self.plain.gaps, causes, strict=True):
            assert cause in str(gap.cause)
        assert set(jumps(self.plain)) <= set(map(self.plain.events.index, self.plain.gaps))
        assert set(self.plain.numbers) <= self.plain_feed.confirmed | self.plain_feed.unconfirmed
        left: list[int] = []
        for event in self.kept.events:
            if isinstance(event, ps.Message):
                left.append(int(event.data))
            else:  # what the promoted replica did not have is taken back, with its number
                assert isinstance(event, ps.Gap)
                assert event.reason is ps.GapReason.ROLLED_BACK
                del left[len(left) - event.withdrawn :]
        with trio.admin(trio.primary) as admin:
            entries = admin.xrange(history_key(self.kept_feed.channel.name.encode()).decode())
        assert left == [int(fields["data"]) for _, fields in entries]
        assert left == sorted(set(left))
        lost = len(self.kept_feed.confirmed.difference(left))
        print(f"{lost} messages were confirmed, and lost by the servers")
        return lost


@contextlib.asynccontextmanager
async def load(
    trio: Sentinels, *, heartbeat: float = HEARTBEAT_S, url: str | None = None
) -> AsyncIterator[Books]:
    """Publish and watch, until the block is left and all has come."""
    await in_order(trio)
    url = url or trio.url
    plain, kept = ps.Topic(f"plain {time.time()}"), ps.Topic(f"kept {time.time()}", history=HISTORY)
    async with (
        ps.Client(url, heartbeat=heartbeat) as publishing,
        ps.Client(url, heartbeat=heartbeat) as subscribing,
        ps.Publisher(publishing, timeout=20) as pub,
        ps.Subscriber(subscribing, plain) as first,
        ps.Subscriber(subscribing, kept) as second,
        watching(first) as plain_watcher,
        watching(second) as kept_watcher,
    ):
        async with feeding(pub, plain, per_s=300) as plain_feed, feeding(pub, kept, per_s=300) as kept_feed:
            books = Books([plain_feed, kept_feed], [plain_watcher, kept_watcher])
            await books.go_on(gaps=0)
            yield books
            await books.go_on(gaps=0)
        await books.end()


# -- failovers -------------------------------------------------------------------------------------


@any_kind
@again_if_late
async def test_a_primary_that_is_killed(trio: Sentinels) -> None:
    """Its replica is found as soon as it is promoted; the gap says so; the books balance."""
    async with load(trio) as books:
        old = trio.primary
        killing = asyncio.create_task(trio.kill_primary())
        at = await switched(trio, old)
        await books.go_on(gaps=1)
        await killing
    books.check(trio, ["the server closed the connection"])
    in_time("subscribed again", books.plain.gaps[0].ended.timestamp() - at, 0.2 + TIMELY_S)


@each_kind
@again_if_late
async def test_a_planned_failover(trio: Sentinels) -> None:
    """The demoted primary is left at once, though it answers: for a while as though nothing had happened.

    Valkey waits until the replica has everything, and closes the connections itself; who comes back too
    early is told by the old one that it is a replica. No message with history is lost at all.
    """
    is_coordinated = "valkey" in trio.servers[0]._executable
    async with load(trio, heartbeat=SLOW_HEARTBEAT_S) as books:
        old = trio.primary
        failing_over = asyncio.create_task(trio.fail_over(coordinated=is_coordinated))
        at = await switched(trio, old)
        with trio.admin(old) as admin:
            assert admin.role()[0] == ("slave" if is_coordinated else "master")
        await books.go_on(gaps=1)
        new = await failing_over
    cause = f"the primary is 127.0.0.1:{new.port} now, and no longer 127.0.0.1:{old.port}"
    lost = books.check(trio, ["" if is_coordinated else cause])
    assert not (lost and is_coordinated)
    in_time("left", books.plain.gaps[0].started.timestamp() - at, TIMELY_S)
    in_time("subscribed again", books.plain.gaps[0].ended.timestamp() - at, TIMELY_S + TIMELY_S)


@any_kind
@again_if_late
async def test_a_primary_that_is_cut_off_and_still_answers(trio: Sentinels) -> None:
    """Clients reach it, sentinels and replicas don't: it is left when they have named another one."""
    async with load(trio, heartbeat=SLOW_HEARTBEAT_S) as books:
        old = await trio.isolate_primary()
        at = await switched(trio, old)
        await books.go_on(gaps=1)
        with trio.admin(old) as admin:
            assert admin.role()[0] == "master"
            assert admin.publish("somewhere", "x") == 0
        await trio.rejoin(old)
    books.check(trio, ["and no longer"])
    in_time("left", books.plain.gaps[0].started.timestamp() - at, TIMELY_S)


@contextlib.asynccontextmanager
async def far_sentinels(trio: Sentinels) -> AsyncIterator[tuple[list[Proxy], str]]:
    """The sentinels through proxies, and the URL."""
    async with contextlib.AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(each.port)) for each in trio.sentinels]
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
        yield proxies, f"redis+sentinel://{hosts}/{trio.service}"


@any_kind
@again_if_late
async def test_a_failover_that_nobody_tells_of(trio: Sentinels) -> None:
    """What the sentinels say is lost: it is noticed when they are asked again, within two heartbeats."""
    heartbeat_s = 1.0

    async def lose_every_word(proxies: list[Proxy]) -> None:
        while True:
            for proxy in proxies:
                proxy.stall(new=False)  # connections that come meanwhile are answered, and then no more
            await asyncio.sleep(0.02)

    async with (
        far_sentinels(trio) as (proxies, url),
        load(trio, heartbeat=heartbeat_s, url=url) as books,
    ):
        old = await trio.isolate_primary()
        losing = asyncio.create_task(lose_every_word(proxies))
        at = await switched(trio, old)
        losing.cancel()
        await books.go_on(gaps=1)
        await trio.rejoin(old)
    books.check(trio, ["and no longer"])
    in_time("left", books.plain.gaps[0].started.timestamp() - at, 2 * heartbeat_s + TIMELY_S)


# -- sentinels that are down -------------------------------------------------------------------------


@any_kind
@again_if_late
async def test_a_failover_with_a_sentinel_less(trio: Sentinels) -> None:
    """Two of three are enough to fail over, and one that can be heard to be told of it at once."""
    async with (
        far_sentinels(trio) as (proxies, url),
        load(trio, heartbeat=SLOW_HEARTBEAT_S, url=url) as books,
    ):
        trio.sentinels[0].kill()
        proxies[1].stall()
        old = trio.primary
        killing = asyncio.create_task(trio.kill_primary())
        at = await switched(trio, old)
        async with asyncio.timeout(5), ps.Client(url) as another:
            assert (await ps.Publisher(another).publish("c", b"x")).receivers == 0
        await books.go_on(gaps=1)
        await killing
    books.check(trio, ["the server closed the connection"])
    in_time("subscribed again", books.plain.gaps[0].ended.timestamp() - at, TIMELY_S + TIMELY_S)


@any_kind
async def test_no_sentinel_at_all(trio: Sentinels) -> None:
    """What is connected goes on; what is not waits until one of them is back."""
    async with load(trio) as books:
        primary = trio.primary
        for sentinel in trio.sentinels:
            sentinel.kill()
        await books.go_on(gaps=0)
        with pytest.raises(ps.ConnectFailed, match=r"no sentinel says where it is: 127\.0\.0\.1") as caught:
            await ps.Client(trio.url, connect_timeout=0.3).__aenter__()
        assert not caught.value.permanent
        with trio.admin(primary) as admin:
            assert admin.client_kill_filter(_type="pubsub", skipme=True)
        await books.kept_feed.reach(books.kept_feed.begun + 100)
        assert not books.plain.gaps
        trio.sentinels[2].start()
        await books.go_on(gaps=1)
    assert books.check(trio, ["the server closed the connection"]) == 0


# -- closing -----------------------------------------------------------------------------------------


@any_kind
async def test_opening_and_closing(trio: Sentinels) -> None:
    """However a client's life is cancelled, its tasks are gone, and its connections, to sentinels too."""
    await in_order(trio)
    gc.collect()
    tasks, before = others(), sockets()

    async def use(_: int) -> None:
        async with (
            ps.Client(trio.url) as client,
            ps.Subscriber(client, "c"),
            ps.Publisher(client) as pub,
        ):
            await pub.publish("c", b"x")

    async def check(_: bool) -> None:
        while others() != tasks:  # a close that was cancelled is over after some turns
            await asyncio.sleep(0)

    async with asyncio.timeout(60):
        await cancel_everywhere(use, check, 300)
        gc.collect()
        while sockets() > before:  # transports close their sockets in the next turn
            await asyncio.sleep(0)
