"""The outboxes of a cluster as one, in virtual time: each slot's requests go to it, in their order."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopubsub.append import Append, Entry
from aiopubsub.cluster_outbox import _RETRY_S, ClusterLine, ClusterOutbox
from aiopubsub.dialogue import SPUBLISH
from aiopubsub.errors import (
    Closed,
    ConnectFailed,
    ErrorReply,
    NotSent,
    PublishRefused,
    Unconfirmed,
)
from aiopubsub.keys import history_key, slot_of
from aiopubsub.line import Batch
from aiopubsub.topic import History
from tests.unit.fake_cluster import HEARTBEAT, FakeCluster, FakeServer, channel_in
from tests.virtual_time import run

TIMEOUT = 5.0
HISTORY = History(size=1000, ttl=None)


class Bench:
    """A cluster, an outbox to it, and one line; who publishes keeps the books."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.nodes = cluster.nodes()
        self.outbox = ClusterOutbox(self.nodes)
        self.nodes.on_change = self.outbox.settle
        self.nodes.on_refusal = self.outbox.close
        self.loop = asyncio.get_running_loop()
        self.line = self.outbox.open_line(100)
        self.numbers = itertools.count()

    def server(self, which: int) -> FakeServer:
        return self.cluster.servers[self.cluster.addresses[which]]

    def publish(
        self,
        channel: str,
        payload: bytes = b"",
        *,
        line: ClusterLine | None = None,
        timeout: float = TIMEOUT,
    ) -> asyncio.Future[Any]:
        payload = payload or b"%d" % next(self.numbers)
        promise: asyncio.Future[Any] = self.loop.create_future()
        deadline = self.loop.time() + timeout
        self.add(line, (promise, deadline, (SPUBLISH, channel.encode(), payload), None), deadline)
        return promise

    def append(self, channel: str, *, line: ClusterLine | None = None) -> Append:
        deadline = self.loop.time() + TIMEOUT
        entry = Entry(b"%d" % next(self.numbers), b"{}", b"data")
        append = Append(
            self.loop.create_future(), deadline, channel.encode(), HISTORY, [entry], verb=SPUBLISH
        )
        self.add(line, append, deadline)
        return append

    def batch(self, *channels: str, line: ClusterLine | None = None) -> Batch:
        deadline = self.loop.time() + TIMEOUT
        commands = [(SPUBLISH, channel.encode(), b"%d" % next(self.numbers)) for channel in channels]
        batch = Batch(self.loop.create_future(), deadline, commands)
        self.add(line, batch, deadline)
        return batch

    def add(self, line: ClusterLine | None, request: Any, deadline: float) -> None:
        """As publishers do."""
        if (line or self.line).add(request):
            self.outbox.kick(deadline)

    def published(self, channel: str) -> list[bytes]:
        return [payload for _, payload in self.cluster.published[channel.encode()]]

    def stored(self, channel: str) -> list[bytes]:
        entries: Any = self.cluster.streams.range(history_key(channel.encode()), b"-", b"+")
        return [fields[fields.index(b"uid") + 1] for _, fields in entries]

    def commands(self, which: int, verb: bytes = SPUBLISH) -> list[bytes]:
        """The last argument of each command of this kind that a server has worked off."""
        return [command[-1] for command in self.server(which).ran if command[0] == verb]

    async def close(self) -> None:
        for link in (closing := [*self.outbox.close(None), *self.nodes.close()]):
            await link.aclose()
        await self.nodes.wait_closed()
        assert closing

    def assert_nothing_is_left(self) -> None:
        outbox = self.outbox
        assert (outbox.waiting, outbox.in_flight) == (0, 0)
        assert not outbox._leaving
        assert not outbox._to_kick
        assert set(outbox._homes.values()) <= set(outbox._links.values())
        assert {id(part) for line in outbox._lines for part in line.parts.values()} == set(
            map(id, outbox._wholes)
        )
        assert not any(line.held for line in outbox._lines)


def bench(test: Callable[[Bench], Any], *, count: int = 3, is_ready: bool = True) -> None:
    """Run a test with an outbox, which is closed in the end."""

    async def main() -> None:
        it = Bench(FakeCluster(count))
        try:
            it.outbox.open()
            if is_ready:
                await it.outbox.ready(1.0)
            await test(it)
        finally:
            await it.close()

    run(main())


def slot(channel: str) -> int:
    return slot_of(channel.encode())


async def a_while(seconds: float = 0.05) -> None:
    await asyncio.sleep(seconds)


# -- where requests go -----------------------------------------------------------------------------


def test_each_request_goes_to_the_node_of_its_slot() -> None:
    """Links are opened for those that have something to do, and for no others."""

    async def test(it: Bench) -> None:
        a, b = channel_in(it.cluster, 0), channel_in(it.cluster, 1)
        done = await asyncio.gather(it.publish(a), it.publish(b), it.publish(a))
        assert done == [0, 0, 0]
        assert it.commands(0) == [b"0", b"2"]
        assert it.commands(1) == [b"1"]
        assert it.commands(2) == []
        addresses = it.cluster.addresses
        assert set(it.outbox.links()) == {f"commands {addresses[0]}", f"commands {addresses[1]}"}
        assert it.outbox.is_live(a.encode())
        assert not it.outbox.is_live(channel_in(it.cluster, 2).encode())
        it.assert_nothing_is_left()

    bench(test)


def test_what_is_published_before_the_topology_is_known_waits() -> None:
    """In order, and is counted."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 1)
        promises = [it.publish(channel) for _ in range(5)]
        assert (it.outbox.waiting, it.line.waiting, it.line.in_flight) == (5, 5, 0)
        assert it.line.is_waiting(channel.encode())
        await asyncio.gather(*promises)
        assert it.published(channel) == [b"0", b"1", b"2", b"3", b"4"]
        assert not it.line.is_waiting(channel.encode())
        it.assert_nothing_is_left()

    bench(test, is_ready=False)


def test_a_batch_goes_to_several_nodes() -> None:
    """Each of its commands to its own; what was refused is known by its place."""

    async def test(it: Bench) -> None:
        channels = [channel_in(it.cluster, n % 3, n) for n in range(9)]
        it.server(1).says[SPUBLISH] = [ErrorReply("NOPERM no")]
        batch = it.batch(*channels)
        await batch.promise  # type: ignore[misc]
        assert [type(answer) for answer in batch.answers] == [
            PublishRefused if n == 1 else int for n in range(9)
        ]
        assert [it.published(channel) for channel in channels] == [
            [] if n == 1 else [b"%d" % n] for n in range(9)
        ]

    bench(test)


def test_other_errors_are_told_to_the_caller() -> None:
    """They are no redirections."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 0)
        it.server(0).says[SPUBLISH] = [ErrorReply("NOPERM no")]
        with pytest.raises(PublishRefused):
            await it.publish(channel)
        assert await it.publish(channel) == 0

    bench(test)


# -- slots that go elsewhere -----------------------------------------------------------------------


@pytest.mark.parametrize("is_kept", [False, True])
def test_the_order_of_a_slot_is_kept_when_it_moves(is_kept: bool) -> None:
    """Requests that had been sent come back; those that were added meanwhile stay behind them."""

    async def test(it: Bench) -> None:
        channel, other = channel_in(it.cluster, 0), channel_in(it.cluster, 0, 1)
        old = it.server(0)
        await it.publish(channel)
        old.is_slow = True

        def add() -> Any:
            return it.append(channel).promise if is_kept else it.publish(channel)

        promises = [add() for _ in range(3)]
        stays = it.publish(other)
        await a_while(0.001)
        it.cluster.move(slot(channel), it.cluster.addresses[1])
        promises += [add() for _ in range(3)]
        [wire] = [wire for wire in old.open_wires() if wire.inbox]
        wire.run(2)  # MOVED, and more of it to come
        promises += [add() for _ in range(3)]
        await a_while()
        assert not any(promise.done() for promise in promises)
        old.is_slow = False
        old.run()
        promises += [add() for _ in range(3)]
        await asyncio.gather(*promises, stays)
        expected = [b"%d" % n for n in range(1, 14) if n != 4]
        assert (it.stored(channel) if is_kept else it.published(channel)[1:]) == expected
        assert it.published(other) == [b"4"]
        assert it.loop.time() < 0.5
        it.assert_nothing_is_left()

    bench(test)


def test_a_look_at_the_topology_moves_what_waits() -> None:
    """The node that a slot has left is asked no more, and need not answer first if it was asked nothing."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 0)
        it.server(0).die()
        promises = [it.publish(channel) for _ in range(3)]
        await a_while(0.3)
        it.cluster.move(slot(channel), it.cluster.addresses[2])
        await a_while(1.0)
        assert all(promise.done() for promise in promises)
        assert it.commands(2) == [b"0", b"1", b"2"]
        it.assert_nothing_is_left()

    bench(test)


def test_what_comes_back_from_a_lost_connection_is_not_overtaken() -> None:
    """Appends that a node had not answered are sent again before those that waited for them."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 0)
        await it.append(channel).promise  # type: ignore[misc]
        old = it.server(0)
        old.is_slow = True
        first = [it.append(channel) for _ in range(3)]
        await a_while(0.001)
        it.cluster.move(slot(channel), it.cluster.addresses[1])
        it.nodes.look()
        await a_while()
        later = [it.append(channel) for _ in range(3)]
        await a_while()
        old.lose()
        old.is_slow = False
        await asyncio.gather(*(append.promise for append in first + later))  # type: ignore[arg-type]
        assert it.stored(channel) == [b"%d" % n for n in range(7)]
        it.assert_nothing_is_left()

    bench(test)


def test_a_slot_on_its_way() -> None:
    """ASK: what the old node has not any more is asked for at the new one, in order, and not twice."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 0)
        await it.append(channel).promise  # type: ignore[misc]
        target = it.cluster.addresses[1]
        it.cluster.begin_to_move(slot(channel), target)
        old, new = it.server(0), it.server(1)
        old.ran.clear()
        appends = [it.append(channel) for _ in range(2)]
        await a_while(0.001)
        appends += [it.append(channel) for _ in range(2)]
        await asyncio.gather(*(append.promise for append in appends))  # type: ignore[arg-type]
        assert [command[0] for command in new.ran if command[0] != b"CLUSTER"][:3] == [
            b"SCRIPT",
            b"ASKING",
            b"EVALSHA",
        ]
        assert await it.publish(channel) == 0  # is not asked for elsewhere
        assert it.commands(1) == []
        it.cluster.move(slot(channel), target)
        appends.append(it.append(channel))
        await appends[-1].promise  # type: ignore[misc]
        assert it.stored(channel) == [b"0", b"1", b"2", b"3", b"4", b"6"]
        it.assert_nothing_is_left()

    bench(test)


def test_what_was_asked_for_elsewhere_is_not_overtaken() -> None:
    """The slot arrives while it waits at the new node, which takes one at a time."""

    async def test(it: Bench) -> None:
        it.line = it.outbox.open_line(1)
        channel, other = channel_in(it.cluster, 0), channel_in(it.cluster, 1)
        target = it.cluster.addresses[1]
        await it.append(channel).promise  # type: ignore[misc]
        await it.publish(other)
        it.cluster.begin_to_move(slot(channel), target)
        it.server(1).is_slow = True
        first = [it.append(channel) for _ in range(4)]
        await a_while(0.001)
        it.cluster.move(slot(channel), target)
        later = [it.append(channel) for _ in range(4)]
        await a_while()
        it.server(1).is_slow = False
        it.server(1).run()
        await asyncio.gather(*(append.promise for append in first + later))  # type: ignore[arg-type]
        assert it.stored(channel) == [b"0", *(b"%d" % n for n in range(2, 10))]
        it.assert_nothing_is_left()

    bench(test)


@pytest.mark.parametrize("words", ["TRYAGAIN Multiple keys", "CLUSTERDOWN Hash slot not served"])
def test_a_node_that_does_not_serve_a_slot_just_now(words: str) -> None:
    """It is asked again after a while, in order; other slots are not held up."""

    async def test(it: Bench) -> None:
        channel, other = channel_in(it.cluster, 0), channel_in(it.cluster, 0, 1)
        await it.publish(other)
        began = it.loop.time()
        it.server(0).says[SPUBLISH] = [ErrorReply(words)]
        promises = [it.publish(channel) for _ in range(2)]
        await a_while(0.001)
        promises += [it.publish(channel) for _ in range(2)]
        assert await it.publish(other) == 0
        assert it.loop.time() - began < 0.01
        await asyncio.gather(*promises)
        assert it.loop.time() - began == pytest.approx(_RETRY_S, abs=0.01)
        assert it.published(channel) == [b"1", b"2", b"3", b"4"]
        it.assert_nothing_is_left()

    bench(test)


def test_nobody_serves_a_slot() -> None:
    """At its deadline a request is `NotSent`, and says why; what is served is not held up."""

    async def test(it: Bench) -> None:
        channel, other = channel_in(it.cluster, 0), channel_in(it.cluster, 0, 1)
        it.cluster.move(slot(channel), None)
        it.nodes.look()
        await a_while(0.1)
        began = it.loop.time()
        plain, kept, short = it.publish(channel), it.append(channel), it.publish(channel, timeout=1.0)
        assert await it.publish(other) == 0
        with pytest.raises(NotSent, match=f"no node of the cluster served slot {slot(channel)} "):
            await short
        assert it.loop.time() == began + 1.0
        with pytest.raises(NotSent, match=f"no node of the cluster served slot {slot(channel)} "):
            await plain
        assert it.loop.time() == began + TIMEOUT
        await kept.promise  # type: ignore[misc]
        assert isinstance(kept.error, NotSent)
        late = it.publish(channel)
        it.cluster.move(slot(channel), it.cluster.addresses[2])
        assert await late == 0
        assert it.commands(2) == list(it.published(channel))
        assert len(it.published(channel)) == 1
        it.assert_nothing_is_left()

    bench(test)


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_deadline_goes_with_the_request(is_dead: bool) -> None:
    """The slot's new node does not answer, or cannot be reached: the caller is told in time."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 0)
        await it.publish(channel)
        new = it.server(1)
        new.is_slow = True
        if is_dead:
            new.die()
        it.cluster.move(slot(channel), it.cluster.addresses[1])
        began = it.loop.time()
        with pytest.raises(NotSent if is_dead else Unconfirmed):
            await asyncio.wait_for(it.publish(channel), 2 * TIMEOUT)
        assert it.loop.time() == pytest.approx(began + TIMEOUT, abs=0.01)

    bench(test)


def test_an_append_that_had_been_sent_is_not_called_unsent() -> None:
    """It may be stored: `Unconfirmed`, though it waited for a node in the end."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 0)
        await it.append(channel).promise  # type: ignore[misc]
        it.server(0).is_slow = True
        append = it.append(channel)
        await a_while(0.001)
        it.server(0).die()
        it.cluster.move(slot(channel), None)
        await append.promise  # type: ignore[misc]
        assert isinstance(append.error, Unconfirmed)

    bench(test)


def test_a_slot_that_goes_to_and_fro() -> None:
    """Two nodes that name each other are asked slowly, until the deadline; then all is well again."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 0)
        here, there = it.cluster.addresses[:2]
        for server, other in ((it.server(0), there), (it.server(1), here)):
            server.says[SPUBLISH] = [ErrorReply(f"MOVED {slot(channel)} {other}")] * 1000
        with pytest.raises(NotSent, match=f"slot {slot(channel)} was on its way"):
            await it.publish(channel, timeout=2.0)
        assert len(it.commands(0)) + len(it.commands(1)) <= 2 + 2.0 / _RETRY_S
        for server in (it.server(0), it.server(1)):
            server.says.clear()
        assert await it.publish(channel) == 0
        it.assert_nothing_is_left()

    bench(test)


def test_nodes_that_serve_nothing_any_more_are_left() -> None:
    """When they have answered all; links to them are closed."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 2)
        await it.publish(channel)
        gone = it.cluster.addresses.pop()
        await a_while(HEARTBEAT + 1)
        assert f"commands {gone}" not in it.outbox.links()
        assert not it.cluster.servers[gone].open_wires() or it.nodes._any.asked == gone
        assert await it.publish(channel) == 0
        it.assert_nothing_is_left()

    bench(test)


def test_a_node_that_has_not_answered_all_is_not_left_yet() -> None:
    """Though it serves nothing any more: what it was sent may have been done."""

    async def test(it: Bench) -> None:
        which = next(n for n in range(3) if it.cluster.addresses[n] != it.nodes._any.asked)
        gone, channel = it.cluster.addresses[which], channel_in(it.cluster, which)
        old = it.server(which)
        await it.publish(channel)
        old.is_slow = True
        it.cluster.servers[gone].ran.clear()
        promise = it.publish(channel)
        await a_while(0.001)
        it.cluster.addresses[which] = it.cluster.addresses[which - 1]
        it.cluster.epoch += 1
        it.nodes.look()
        await a_while(0.5)
        assert gone not in it.nodes.slots.primaries
        assert f"commands {gone}" in it.outbox.links()
        old.is_slow = False
        old.run()
        assert await promise == 0
        await a_while(HEARTBEAT + 1)
        assert f"commands {gone}" not in it.outbox.links()
        it.assert_nothing_is_left()

    bench(test)


def test_what_is_held_is_not_overtaken_when_somebody_else_finds_the_slot_first() -> None:
    """It is known where a slot is before all who wait for it have been told."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 0)
        it.cluster.move(slot(channel), None)
        it.nodes.look()
        await a_while(0.1)
        first, other = it.publish(channel), it.outbox.open_line(1)
        there = it.cluster.addresses[1]
        it.cluster.move(slot(channel), there)
        it.nodes.slots.move(slot(channel), there, it.loop.time())
        second = it.publish(channel, line=other)
        third = it.publish(channel)
        await a_while(0.001)
        assert second.done()
        it.nodes.look()
        await asyncio.gather(first, third)
        assert it.published(channel) == [b"1", b"0", b"2"]
        it.assert_nothing_is_left()

    bench(test)


# -- lines -----------------------------------------------------------------------------------------


def ping(it: Bench, timeout: float = TIMEOUT) -> asyncio.Future[Any]:
    promise: asyncio.Future[Any] = it.loop.create_future()
    deadline = it.loop.time() + timeout
    it.add(None, (promise, deadline, (b"PING",), None), deadline)
    return promise


def test_a_ping_follows_what_was_sent() -> None:
    """A publisher that closes sends one until nothing waits: each is answered after something else."""

    async def test(it: Bench) -> None:
        promises = [it.publish(channel_in(it.cluster, n)) for n in range(3)]
        while it.line.waiting or it.line.in_flight:
            await ping(it)
        assert all(promise.done() for promise in promises)
        await ping(it)  # nothing to follow: at once
        assert it.loop.time() < 0.1

    bench(test)


def test_a_ping_behind_what_has_no_node() -> None:
    """It waits with it, and no longer than it."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 0)
        it.cluster.move(slot(channel), None)
        it.nodes.look()
        await a_while(0.1)
        promise = it.publish(channel, timeout=1.0)
        behind = ping(it)
        await a_while(0.5)
        assert not behind.done()
        it.cluster.move(slot(channel), it.cluster.addresses[1])
        it.nodes.look()
        await a_while(0.1)
        assert promise.done()
        assert behind.done()
        it.cluster.move(slot(channel), None)
        it.nodes.look()
        await a_while(0.1)
        promise, behind = it.publish(channel, timeout=1.0), ping(it)
        await a_while(1.5)
        assert isinstance(promise.exception(), NotSent)
        it.nodes.look()
        await a_while(0.1)
        assert behind.done()

    bench(test)


def test_a_window_is_for_each_node() -> None:
    """A node that is slow does not hold up the others."""

    async def test(it: Bench) -> None:
        it.line = it.outbox.open_line(2)
        it.server(0).is_slow = True
        slow = [it.publish(channel_in(it.cluster, 0)) for _ in range(5)]
        fast = [it.publish(channel_in(it.cluster, 1)) for _ in range(5)]
        await asyncio.gather(*fast)
        assert (it.line.in_flight, it.line.waiting) == (2, 3)
        it.server(0).is_slow = False
        it.server(0).run()
        await asyncio.gather(*slow)

    bench(test)


def test_a_line_that_is_closed() -> None:
    """What waits is told, what is in flight has its answer still, and there is nothing left of it."""

    async def test(it: Bench) -> None:
        channel, nobodys = channel_in(it.cluster, 0), channel_in(it.cluster, 1)
        it.cluster.move(slot(nobodys), None)
        it.nodes.look()
        await it.publish(channel)
        await a_while(0.1)
        it.server(0).is_slow = True
        line = it.outbox.open_line(1)
        sent, waits, held = (it.publish(name, line=line) for name in (channel, channel, nobodys))
        await a_while(0.001)
        it.outbox.close_line(line, Closed("Publisher"))
        for promise in (waits, held):
            with pytest.raises(Closed):
                await promise
        with pytest.raises(Closed):
            it.publish(channel, line=line)
        it.server(0).is_slow = False
        it.server(0).run()
        assert await sent == 0
        it.assert_nothing_is_left()

    bench(test)


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_slot_that_moves_after_the_line_was_closed(is_kept: bool) -> None:
    """What was in flight was not done and will not be: the caller is told so."""

    async def test(it: Bench) -> None:
        channel = channel_in(it.cluster, 0)
        await it.append(channel).promise  # type: ignore[misc]
        it.server(0).is_slow = True
        line = it.outbox.open_line(1)
        append = it.append(channel, line=line) if is_kept else None
        promise = it.publish(channel, line=line) if append is None else append.promise
        await a_while(0.001)
        it.cluster.move(slot(channel), it.cluster.addresses[1])
        it.outbox.close_line(line, Closed("Publisher"))
        it.server(0).is_slow = False
        it.server(0).run()
        await a_while(0.1)
        assert promise.done()
        error = append.error if append is not None else promise.exception()  # type: ignore[attr-defined]
        assert isinstance(error, NotSent)

    bench(test)


# -- the end ---------------------------------------------------------------------------------------


def test_closing_tells_whoever_waits() -> None:
    """Wherever their requests are; and opens nothing any more."""

    async def test(it: Bench) -> None:
        sent, nobodys = channel_in(it.cluster, 0), channel_in(it.cluster, 1)
        it.cluster.move(slot(nobodys), None)
        it.nodes.look()
        await a_while(0.1)
        it.server(0).is_slow = True
        promises = [it.publish(sent), it.publish(nobodys)]
        await a_while(0.001)
        links = it.outbox.close(None)
        assert len(links) == 1
        assert it.outbox.close(None) == []
        await a_while(0.001)
        assert isinstance(promises[0].exception(), Unconfirmed)
        assert isinstance(promises[1].exception(), Closed)
        other = channel_in(it.cluster, 2).encode()
        assert not it.outbox.is_live(other)
        assert it.line.is_waiting(other)
        assert len(it.outbox.links()) == 1
        with pytest.raises(Closed):
            it.publish(sent)
        late = it.outbox.open_line(1)
        with pytest.raises(Closed):
            it.publish(sent, line=late)
        for link in links:
            await link.aclose()

    bench(test)


def test_a_cluster_that_refuses_us() -> None:
    """Whoever publishes is told why."""

    async def test(it: Bench) -> None:
        for server in it.cluster.servers.values():
            server.says[b"CLUSTER"] = [ErrorReply("NOPERM no")] * 10
        promise = it.publish(channel_in(it.cluster, 0))
        with pytest.raises(ConnectFailed, match="NOPERM"):
            await promise
        with pytest.raises(ConnectFailed, match="NOPERM"):
            it.publish(channel_in(it.cluster, 0))

    bench(test, is_ready=False)


def test_a_node_that_refuses_us() -> None:
    """Those of its slots are told, all others go on."""

    async def test(it: Bench) -> None:
        server = it.server(0)
        server.refusal = ConnectFailed(server.target, "NOPERM", permanent=True)
        first = it.publish(channel_in(it.cluster, 0))
        with pytest.raises(ConnectFailed):
            await first
        second = it.publish(channel_in(it.cluster, 0))
        with pytest.raises(ConnectFailed):
            await second
        assert await it.publish(channel_in(it.cluster, 1)) == 0

    bench(test)


# -- whatever happens ------------------------------------------------------------------------------

WHICH = st.integers(0, 2)
STEPS = st.one_of(
    st.tuples(st.just("publish"), WHICH, WHICH),
    st.tuples(st.just("append"), WHICH, WHICH),
    st.tuples(st.just("batch"), WHICH, st.lists(WHICH, min_size=1, max_size=4)),
    st.tuples(st.just("move"), WHICH, st.none() | WHICH),
    st.tuples(st.just("begin_to_move"), WHICH, WHICH),
    st.tuples(st.just("slow"), WHICH, st.booleans()),
    st.tuples(st.just("run"), WHICH, st.integers(1, 4)),
    st.tuples(st.just("lose"), WHICH, st.none()),
    st.tuples(st.just("alive"), WHICH, st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 0.02, 0.15, 2.0]), st.none()),
)


class Books(Bench):
    """What was published, by line and channel, and what became of it."""

    def __init__(self, cluster: FakeCluster, width: int) -> None:
        super().__init__(cluster)
        self.lines = [self.outbox.open_line(width), self.outbox.open_line(100)]
        self.channels = [channel_in(cluster, n) for n in range(3)]
        self.plain: defaultdict[tuple[int, int], list[tuple[bytes, Any]]] = defaultdict(list)
        self.kept: defaultdict[tuple[int, int], list[Append]] = defaultdict(list)
        self.batches: list[tuple[int, list[int], Batch]] = []

    def step(self, kind: str, what: Any, how: Any) -> None:
        """All but waiting."""
        server = self.server(what)
        channel = self.channels[what]
        if kind == "publish":
            payload = b"%d" % next(self.numbers)
            promise = self.publish(channel, payload, line=self.lines[how % 2])
            self.plain[how % 2, what].append((payload, promise))
        elif kind == "append":
            self.kept[how % 2, what].append(self.append(channel, line=self.lines[how % 2]))
        elif kind == "batch":
            batch = self.batch(*(self.channels[n] for n in how), line=self.lines[what % 2])
            self.batches.append((what % 2, how, batch))
            for n, command in zip(how, batch.commands, strict=True):
                self.plain[what % 2, n].append((command[-1], None))
        elif kind == "move":
            self.cluster.move(slot(channel), None if how is None else self.cluster.addresses[how])
        elif kind == "begin_to_move" and self.cluster.owner(slot(channel)) not in (
            None,
            self.cluster.addresses[how],
        ):
            self.cluster.begin_to_move(slot(channel), self.cluster.addresses[how])
        elif kind == "slow":
            server.is_slow = how
        elif kind == "run":
            for wire in server.open_wires():
                wire.run(how)
        elif kind == "lose":
            server.lose()
        elif kind == "alive":
            (server.revive if how else server.die)()

    async def come_to_rest(self) -> None:
        for which, server in enumerate(self.cluster.servers.values()):
            server.revive()
            server.is_slow = False
            server.run()
            self.cluster.move(slot(self.channels[which]), self.cluster.addresses[which])
        await asyncio.sleep(3 * TIMEOUT)

    def check(self) -> None:
        outcomes = {
            payload: promise.result() if promise.exception() is None else promise.exception()
            for each in self.plain.values()
            for payload, promise in each
            if promise is not None
        }
        for _, _, batch in self.batches:
            assert batch.promise.done()
            outcomes |= {
                command[-1]: answer for command, answer in zip(batch.commands, batch.answers, strict=True)
            }
        for (_, which), each in self.plain.items():
            ours = {payload for payload, _ in each}
            did = [int(payload) for payload in self.published(self.channels[which]) if payload in ours]
            assert did == sorted(set(did)), f"doubled or out of order: {did}"
            for payload in ours:
                outcome = outcomes[payload]
                if not isinstance(outcome, Unconfirmed):
                    assert (int(payload) in did) == isinstance(outcome, int), f"{payload!r}: {outcome!r}"
                assert isinstance(outcome, (int, Unconfirmed, NotSent)), f"{payload!r}: {outcome!r}"
        for (_, which), appends in self.kept.items():
            ours = {append.entries[0].uid for append in appends}
            did = [int(uid) for uid in self.stored(self.channels[which]) if uid in ours]
            assert did == sorted(set(did)), f"doubled or out of order: {did}"
            for append in appends:
                assert append.promise.done()
                is_stored = int(append.entries[0].uid) in did
                if not isinstance(append.error, Unconfirmed):
                    assert is_stored == (append.error is None), append.error


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=40), st.sampled_from([1, 2, 100]))
def test_whatever_happens(steps: list[tuple[str, Any, Any]], width: int) -> None:
    """Each slot's requests are done in order, at most once, and who waits is told what became of it."""

    async def main() -> None:
        books = Books(FakeCluster(), width)
        books.outbox.open()
        try:
            for kind, what, how in steps:
                if kind == "wait":
                    await asyncio.sleep(what)
                else:
                    books.step(kind, what, how)
            await books.come_to_rest()
            books.check()
            books.assert_nothing_is_left()
        finally:
            await books.close()

    run(main())
