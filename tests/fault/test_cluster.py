"""Clusters whose slots move and whose nodes fail, under load; the books have to balance.

`AIOPUBSUB_LONG=1` runs the long variants: a hundred slots that move for a minute.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from secrets import token_hex
from typing import Self

import pytest
import redis.asyncio

import aiopubsub as ps
from aiopubsub.keys import slot_of
from aiopubsub.testing import Cluster, Server, free_port
from aiopubsub.testing.nodes import Node
from tests.conftest import LONG, cluster_of
from tests.fault.books import Feed, Watcher, feeding, jumps, watching
from tests.fault.timing import again_if_late, in_time

pytestmark = pytest.mark.anyio

HEARTBEAT_S = 1.0
PER_S = 1000


@pytest.fixture
def anyio_backend() -> str:
    """The contract suite shows clusters on both event loops; these take minutes."""
    return "asyncio"


@pytest.fixture(params=["valkey9", "redis7"])
def cluster(request: pytest.FixtureRequest, clusters: Callable[[str], Cluster]) -> Cluster:
    return clusters(request.param)


def each_way(test: Callable[..., object]) -> object:
    """On each kind of cluster, in each way in which its slots move."""
    ways = [("valkey9", "atomic"), ("valkey9", "step by step"), ("redis7", "step by step")]
    return pytest.mark.parametrize(("cluster", "how"), ways, indirect=["cluster"])(test)


@pytest.fixture
async def listener(cluster: Cluster) -> AsyncIterator[ps.Client]:
    """A process that only subscribes."""
    async with ps.Client(cluster.url, heartbeat=HEARTBEAT_S) as client:
        yield client


@pytest.fixture
async def pub(cluster: Cluster) -> AsyncIterator[ps.Publisher]:
    """Another that only publishes."""
    async with ps.Client(cluster.url, heartbeat=HEARTBEAT_S) as client, ps.Publisher(client) as pub:
        yield pub


def kept_topic() -> ps.Topic[bytes]:
    return ps.Topic(f"kept-{token_hex(4)}", history=ps.History(size=100_000))


async def seen_all(feed: Feed, *watchers: Watcher) -> None:
    """Until each watcher has had what is published after all else."""
    end = feed.begun
    await feed.pub.publish(feed.channel, b"%d" % end)
    for watcher in watchers:
        await watcher.until(lambda watcher=watcher: watcher.last == end)  # type: ignore[misc]


async def goes_on(watcher: Watcher, *, count: int = 200, timeout: float = 20) -> None:
    """Until so many more have come."""
    end = len(watcher.numbers) + count
    await watcher.until(lambda: len(watcher.numbers) >= end, timeout=timeout)


def check_books(feed: Feed, watcher: Watcher) -> None:
    """Each number was delivered, or a gap stands where it is missing; once, in order."""
    jumps(watcher)
    came = set(watcher.numbers)
    assert not came & feed.not_sent, "delivered, and said not to be sent"
    if not watcher.gaps:
        assert feed.confirmed <= came


async def move(cluster: Cluster, how: str, slots: list[int], rng: random.Random) -> None:
    """Give slots to another primary, in one of the ways that there are."""
    here = await cluster.node_of(slots[0])
    there = rng.choice([node for node in await cluster.primaries() if node is not here])
    await (cluster.migrate_slots if how == "atomic" else cluster.move_slots)(slots, there)


# -- slots that move -------------------------------------------------------------------------------


@each_way
@again_if_late
async def test_a_slot_moves(cluster: Cluster, listener: ps.Client, pub: ps.Publisher, how: str) -> None:
    """A plain topic is back within a second, with one gap; a topic with history misses nothing."""
    rng = random.Random(how)
    plain, kept = f"plain-{token_hex(4)}", kept_topic()
    async with (
        ps.Subscriber(listener, plain, f"other-{plain}") as plain_sub,
        ps.Subscriber(listener, kept) as kept_sub,
        watching(plain_sub) as plain_seen,
        watching(kept_sub) as kept_seen,
    ):
        async with (
            feeding(pub, plain, per_s=PER_S) as plain_feed,
            feeding(pub, kept, per_s=PER_S) as kept_feed,
        ):
            await goes_on(plain_seen)
            await goes_on(kept_seen)
            await move(cluster, how, [slot_of(plain.encode())], rng)
            await move(cluster, how, [slot_of(kept.key)], rng)
            await plain_seen.until(lambda: bool(plain_seen.gaps))
            await goes_on(plain_seen)
            await goes_on(kept_seen)
        await seen_all(plain_feed, plain_seen)
        await seen_all(kept_feed, kept_seen)
        [gap] = plain_seen.gaps
        back_s = (gap.ended - gap.started).total_seconds()
        missing = plain_feed.begun + 1 - len(plain_seen.numbers)
        print(f"{how}: {missing} missing of {plain_feed.begun}")
        assert (gap.reason, gap.channels) == (ps.GapReason.MOVED, (plain,))
        check_books(plain_feed, plain_seen)
        assert kept_seen.gaps == []
        assert kept_seen.numbers == list(range(kept_feed.begun + 1))
        for feed in (plain_feed, kept_feed):
            assert len(feed.confirmed) == feed.begun
        in_time("back", back_s, 1.0)


@each_way
async def test_slots_move_at_random(
    cluster: Cluster, listener: ps.Client, pub: ps.Publisher, how: str
) -> None:
    """A hundred slots, some of them several times, for a minute: the books balance all the while."""
    rng = random.Random(7)
    slots_count, seconds = (100, 60.0) if LONG else (12, 4.0)
    plains = [f"plain-{token_hex(4)}" for _ in range(4)]
    kepts = [kept_topic() for _ in range(4)]
    channels = [*plains, *(kept.name for kept in kepts)]
    slots = [slot_of(channel.encode()) for channel in channels]
    slots += rng.sample(range(16_384), slots_count - len(slots))
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        seen = []
        for topic in (*plains, *kepts):
            sub = await stack.enter_async_context(ps.Subscriber(listener, topic))
            seen.append(await stack.enter_async_context(watching(sub)))
        moves = 0
        async with AsyncExitStack() as feeds_stack:
            feeds = [
                await feeds_stack.enter_async_context(feeding(pub, topic, per_s=PER_S / 8))
                for topic in (*plains, *kepts)
            ]
            end_at = loop.time() + seconds
            while loop.time() < end_at:
                await move(cluster, how, [rng.choice(slots)], rng)
                moves += 1
        for feed, watcher in zip(feeds, seen, strict=True):
            await seen_all(feed, watcher)
            check_books(feed, watcher)
            assert {gap.reason for gap in watcher.gaps} <= {ps.GapReason.MOVED}
        for feed, watcher in list(zip(feeds, seen, strict=True))[len(plains) :]:
            assert watcher.gaps == []
            assert watcher.numbers == list(range(feed.begun + 1))
        gaps = sum(len(watcher.gaps) for watcher in seen)
        print(f"{how}: {moves} moves, {sum(feed.begun for feed in feeds)} published, {gaps} gaps")


# -- nodes that fail -------------------------------------------------------------------------------


async def channel_elsewhere(cluster: Cluster, node: Node) -> str:
    """A channel that is not at this node."""
    while True:
        channel = f"other-{token_hex(4)}"
        if await cluster.node_of(channel) is not node:
            return channel


class Pulse:
    """Publishes the time on a channel again and again, and sees how late it comes.

    Attributes:
        slowest_s: The longest that a message took, from before it was published to the consumer.
        count: Messages that came.
    """

    def __init__(self, pub: ps.Publisher, sub: ps.Subscriber, channel: str) -> None:
        self.slowest_s = 0.0
        self.count = 0
        self._pub, self._sub, self._channel = pub, sub, channel
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._feel())]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert not any(task.done() for task in self._tasks), "a publish or the iterator has failed"
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _beat(self) -> None:
        while True:
            await self._pub.publish(self._channel, b"%.6f" % self._loop.time())
            await asyncio.sleep(0.005)

    async def _feel(self) -> None:
        async for event in self._sub.events():
            if isinstance(event, ps.Message) and event.channel == self._channel:
                self.slowest_s = max(self.slowest_s, self._loop.time() - float(event.data))
                self.count += 1


@pytest.mark.parametrize("how", ["planned", "killed"])
@again_if_late
async def test_a_primary_fails_over(
    cluster: Cluster, listener: ps.Client, pub: ps.Publisher, how: str
) -> None:
    """Its replica takes over: channels and histories go on there; those of other nodes don't notice."""
    kept = kept_topic()
    plain = f"{{{kept.name}}}plain"  # of the same slot
    home = await cluster.node_of(kept.name)
    other = await channel_elsewhere(cluster, home)
    async with (
        ps.Subscriber(listener, plain) as plain_sub,
        ps.Subscriber(listener, plain, other) as both_sub,
        ps.Subscriber(listener, kept) as kept_sub,
        watching(plain_sub) as plain_seen,
        watching(kept_sub) as kept_seen,
        Pulse(pub, both_sub, other) as pulse,
    ):
        async with (
            feeding(pub, plain, per_s=200) as plain_feed,
            feeding(pub, kept, per_s=200) as kept_feed,
        ):
            await goes_on(plain_seen)
            await goes_on(kept_seen)
            if how == "planned":
                [replica] = await cluster.replicas(of=home)
                await cluster.fail_over(replica)
            else:
                home.kill()
                await cluster.wait_for_promotion(of=home)
            await plain_seen.until(lambda: bool(plain_seen.gaps), timeout=20)
            await goes_on(plain_seen)
            await goes_on(kept_seen)
        await seen_all(plain_feed, plain_seen)
        await seen_all(kept_feed, kept_seen)
    await cluster.heal()
    gaps = [f"{gap.cause} ({gap.reason.value})" for gap in plain_seen.gaps]
    print(f"{how}: {gaps}, kept {kept_seen.gaps}")
    check_books(plain_feed, plain_seen)
    assert {gap.reason for gap in plain_seen.gaps} <= {ps.GapReason.MOVED, ps.GapReason.RECONNECTED}
    assert len(plain_seen.gaps) <= 2
    assert pulse.count > 100
    check_history(kept_feed, kept_seen)
    # a node that was killed is away for two seconds and more
    in_time(f"{pulse.count} messages of other nodes came, the slowest", pulse.slowest_s, 0.5)


def check_history(feed: Feed, watcher: Watcher) -> None:
    """Every message that was stored came, once and in order, but for what the server itself has forgotten.

    A primary confirms before its replica has a message; what it had not passed on when it died is gone,
    and the subscriber is told that it was withdrawn.
    """
    assert {gap.reason for gap in watcher.gaps} <= {ps.GapReason.ROLLED_BACK}
    assert len(set(watcher.numbers)) == len(watcher.numbers)
    if not watcher.gaps:
        assert watcher.numbers == sorted(watcher.numbers)
        forgotten = feed.confirmed - set(watcher.numbers)
        assert not forgotten or max(forgotten) - min(forgotten) < 100


@again_if_late
async def test_a_primary_that_is_cut_off_is_left() -> None:
    """It still answers its clients, but the others have replaced it: left within two heartbeats."""
    async with cluster_of("valkey9", partitions=True) as cluster:
        kept = kept_topic()
        plain = f"{{{kept.name}}}plain"
        home = await cluster.node_of(kept.name)
        async with (
            ps.Client(cluster.url, heartbeat=HEARTBEAT_S) as listener,
            ps.Client(cluster.url, heartbeat=HEARTBEAT_S) as publisher,
            ps.Publisher(publisher) as pub,
            ps.Subscriber(listener, plain) as plain_sub,
            ps.Subscriber(listener, kept) as kept_sub,
            watching(plain_sub) as plain_seen,
            watching(kept_sub) as kept_seen,
        ):
            async with (
                feeding(pub, plain, per_s=200) as plain_feed,
                feeding(pub, kept, per_s=200) as kept_feed,
            ):
                await goes_on(plain_seen)
                await cluster.isolate(home)
                await cluster.wait_for_promotion(of=home)
                promoted_at = asyncio.get_running_loop().time()
                await plain_seen.until(lambda: bool(plain_seen.gaps), timeout=20)
                left_s = asyncio.get_running_loop().time() - promoted_at
                await goes_on(plain_seen)
                await goes_on(kept_seen)
            await seen_all(plain_feed, plain_seen)
            await seen_all(kept_feed, kept_seen)
            check_books(plain_feed, plain_seen)
            check_history(kept_feed, kept_seen)
            in_time("the others had promoted another: left", left_s, 2 * HEARTBEAT_S)


async def test_nodes_come_and_go(cluster: Cluster, listener: ps.Client, pub: ps.Publisher) -> None:
    """A node that joins gets slots and their channels, and gives them back when it leaves."""
    channels = [f"c-{token_hex(4)}" for _ in range(30)]
    async with ps.Subscriber(listener, *channels) as sub:
        new = await cluster.add_node()
        await cluster.move_slots(channels[:10], new)
        events = sub.events()
        for told in (channels[:10], channels[:10]):
            missing = set(told)
            async with asyncio.timeout(10):
                while missing:
                    event = await anext(events)
                    assert isinstance(event, ps.Gap)
                    missing -= set(event.channels)
            for channel in channels:
                assert (await pub.publish(channel, b"x")).receivers == 1
            async with asyncio.timeout(10):
                assert {(await anext(events)).channel for _ in channels} == set(channels)  # type: ignore[union-attr]
            if new in cluster.nodes:
                roles = [role for role in listener.stats.links if role.endswith(f":{new.port}")]
                assert roles == [f"listens 127.0.0.1:{new.port}"]
                await cluster.remove_node(new)
        async with asyncio.timeout(10):
            while any(str(new.port) in role for role in listener.stats.links):  # no event tells
                await asyncio.sleep(0.05)


# -- what cannot be used ----------------------------------------------------------------------------


async def refused(url: str, timeout: float = 5.0) -> ps.ConnectFailed:
    """Why no client can be opened there."""
    with pytest.raises(ps.ConnectFailed) as caught:
        await ps.Client(url, connect_timeout=timeout, heartbeat=0.5).__aenter__()
    return caught.value


async def test_the_url_of_another_kind_of_deployment(cluster: Cluster, valkey: Server) -> None:
    """A single server is no cluster, and a node of one no single server: said at once, with what to do."""
    error = await refused(f"redis+cluster://127.0.0.1:{valkey.port}")
    assert error.permanent
    assert "it is a single server: use redis://" in str(error)
    error = await refused(f"redis://127.0.0.1:{cluster.nodes[0].port}")
    assert error.permanent
    assert "it is a node of a cluster: use redis+cluster://" in str(error)


async def test_no_node_answers() -> None:
    """It says so, in the system's words."""
    error = await refused(f"redis+cluster://:hunter2@127.0.0.1:{free_port()},127.0.0.1:{free_port()}", 0.5)
    assert "Connect call failed" in str(error)
    assert "hunter2" not in str(error)


async def test_some_nodes_of_the_url_are_gone(cluster: Cluster) -> None:
    """One that answers is enough; a given client's settings will do as well."""
    node = cluster.nodes[-1]  # a replica knows, too
    url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{node.port}"
    theirs = redis.asyncio.RedisCluster(host="127.0.0.1", port=node.port)
    for source in (url, theirs):
        async with ps.Client(source) as client, ps.Subscriber(client, "a", "b", "c") as sub:
            for channel in "abc":
                assert await ps.Publisher(client).publish(channel, b"x") == ps.Receipt(1)
            assert {(await anext(sub)).channel for _ in range(3)} == set("abc")
    await theirs.aclose()


async def test_slots_that_nobody_serves() -> None:
    """The client cannot be opened, and says which; where the others are served all the same, the channel is
    refused alone."""
    for coverage in ("yes", "no"):
        options = ("--cluster-require-full-coverage", coverage)
        async with cluster_of("valkey9", *options, replicas=0) as cluster:
            home = await cluster.node_of(0)
            orphan = next(c for c in map(str, range(1000)) if slot_of(c.encode()) < 100)
            other = await channel_elsewhere(cluster, home)
            for node in cluster.nodes:
                await node.ask("CLUSTER", "DELSLOTSRANGE", 0, 100)
            if coverage == "yes":
                error = await refused(cluster.url, 2)
                assert "nobody serves slots 0-100" in str(error)
                continue
            async with ps.Client(cluster.url, connect_timeout=1, heartbeat=0.5) as client:
                async with ps.Subscriber(client, other):
                    assert await ps.Publisher(client).publish(other, b"x") == ps.Receipt(1)
                with pytest.raises(ps.NotSent, match="no node of the cluster served slot"):
                    await ps.Publisher(client, timeout=0.5).publish(orphan, b"x")
                with pytest.raises(ps.ConnectFailed, match="no node of the cluster serves slot"):
                    await ps.Subscriber(client, orphan).__aenter__()


async def test_announced_addresses_that_cannot_be_reached() -> None:
    """It says that the cluster has named them, and what to set."""
    port = free_port()
    async with cluster_of("valkey9", replicas=0) as cluster:
        for node in cluster.nodes:
            await node.ask("CONFIG", "SET", "cluster-announce-port", port)
        [node, *_] = cluster.nodes
        async with asyncio.timeout(10):
            while {entry[2][1] for entry in await node.ask("CLUSTER", "SLOTS")} != {port}:
                await asyncio.sleep(0.05)  # they tell each other; no event tells us
        async with ps.Client(cluster.url, connect_timeout=1) as client:
            with pytest.raises(ps.ConnectFailed, match="the cluster announces this address") as caught:
                await ps.Subscriber(client, "c").__aenter__()
            assert f"127.0.0.1:{port}" in str(caught.value)
            with pytest.raises(ps.NotSent):
                await ps.Publisher(client, timeout=0.5).publish("c", b"x")
