"""The routers of a cluster as one, in virtual time: each channel is at its slot, nobody is forgotten."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopubsub.append import SHAS
from aiopubsub.cluster_router import _RETRY_S, ClusterRouter
from aiopubsub.dialogue import PUBLISH, SPUBLISH
from aiopubsub.errors import Closed, ConnectFailed, ErrorReply, SubscribeRefused
from aiopubsub.keys import history_key, slot_of
from aiopubsub.mailbox import Mailbox, Overflow
from aiopubsub.message import Gap, GapReason, Message
from aiopubsub.routes import Ticket
from aiopubsub.since import Since
from aiopubsub.slots import Address
from aiopubsub.topic import History, Pattern, Topic
from aiopubsub.trail import Trail
from tests.unit.fake_cluster import HEARTBEAT, FakeCluster, FakeServer, channel_in
from tests.virtual_time import run


def slot(channel: str) -> int:
    return slot_of(channel.encode())


def kept(channel: str) -> Topic[bytes]:
    return Topic(channel, history=History())


async def a_while(seconds: float = 0.3) -> None:
    await asyncio.sleep(seconds)


class Bench:
    """A cluster and a router to it."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.nodes = cluster.nodes()
        self.router = ClusterRouter(self.nodes, "listens")
        self.nodes.on_change = self.router.settle
        self.nodes.on_refusal = self.router.close
        self.loop = asyncio.get_running_loop()
        self.numbers = itertools.count()

    def server(self, which: int) -> FakeServer:
        return self.cluster.servers[self.cluster.addresses[which]]

    def mailbox(self) -> Mailbox:
        box = Mailbox(
            buffer=1_000_000, buffer_bytes=1 << 40, overflow=Overflow.DROP_OLDEST, clock=self.loop.time
        )
        box.on_room = lambda: self.router.make_use_of_room(box)
        return box

    def add(self, box: Mailbox, *topics: Any, since: Since = None) -> Ticket:
        ticket = Ticket()
        trails = {
            topic: Trail(box, topic, since, self.loop.time) for topic in topics if topic.history is not None
        }
        self.router.add(box, topics, ticket, trails)
        self.router.kick()
        return ticket

    def remove(self, box: Mailbox, *topics: Any) -> Ticket:
        ticket = Ticket()
        self.router.remove(box, topics, ticket)
        self.router.kick()
        return ticket

    async def subscribed(self, *topics: Any) -> Mailbox:
        box = self.mailbox()
        ticket = self.add(box, *topics)
        await a_while(0.1)
        assert ticket.is_done
        assert not ticket.refused
        return box

    def owner(self, channel: str) -> FakeServer | None:
        address = self.cluster.owner(slot(channel))
        server = None if address is None else self.cluster.servers[address]
        return None if server is None or server.refusal is not None else server

    def publish(self, channel: str, verb: bytes = SPUBLISH) -> int | None:
        """At the node that has it; `None` if nobody has."""
        server = self.owner(channel)
        number = next(self.numbers)
        if server is None:
            return None
        server.execute(verb, [channel.encode(), b"%d" % number])
        return number

    def append(self, channel: str) -> int | None:
        server = self.owner(channel)
        number = next(self.numbers)
        if server is None:
            return None
        name = b"%d" % number
        key = channel.encode()
        server.execute(
            b"EVALSHA",
            [SHAS[SPUBLISH], b"1", history_key(key), key, b"1000", b"", b"", name, b"{}", name],
        )
        return number

    def names(self) -> dict[Address, set[str]]:
        """What each server has subscribers of."""
        return {
            address: {channel.decode() for _, channel in items}
            for address, items in self.cluster.subscribed().items()
        }

    async def close(self) -> None:
        for link in [*self.router.close(None), *self.nodes.close()]:
            await link.aclose()
        await self.nodes.wait_closed()


def bench(test: Callable[[Bench], Any], *, is_ready: bool = True) -> None:
    async def main() -> None:
        it = Bench(FakeCluster())
        try:
            it.nodes.open()
            if is_ready:
                await it.router.ready(1.0)
            await test(it)
        finally:
            await it.close()

    run(main())


def got(box: Mailbox) -> list[Any]:
    """Numbers of messages; reason and channels of gaps."""
    return [
        int(item.payload)
        if isinstance(item, Message)
        else (item.reason.name, *item.channels)
        if isinstance(item, Gap)
        else item
        for item in iter(box.pop, None)
    ]


def three(it: Bench) -> list[str]:
    return [channel_in(it.cluster, n) for n in range(3)]


# -- where channels are ----------------------------------------------------------------------------


def test_each_channel_is_at_the_node_of_its_slot() -> None:
    """One link for each node that has something to do, and the ticket waits for all of them."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        box = await it.subscribed(Topic(a), Topic(b))
        addresses = it.cluster.addresses
        assert it.names() == {addresses[0]: {a}, addresses[1]: {b}}
        assert set(it.router.links()) == {f"listens {address}" for address in addresses[:2]}
        for channel in (a, b):
            it.publish(channel)
        await a_while()
        assert sorted(got(box)) == [0, 1]
        assert it.router.wants(box, Topic(a))
        removed = it.remove(box, Topic(a), Topic("never added"))
        assert not removed.is_done
        await a_while()
        assert removed.is_done
        assert it.names() == {addresses[1]: {b}}
        assert not it.router.wants(box, Topic(a))
        assert len(it.router._homes) == 1

    bench(test)


def test_what_is_subscribed_before_the_topology_is_known_waits() -> None:
    """For nothing else."""

    async def test(it: Bench) -> None:
        box, (a, _, c) = it.mailbox(), three(it)
        ticket = it.add(box, Topic(a), Topic(c))
        await a_while()
        assert ticket.is_done
        it.publish(a)
        it.publish(c)
        await a_while()
        assert sorted(got(box)) == [0, 1]

    bench(test, is_ready=False)


def test_patterns_and_topics_that_are_not_sharded_are_anywhere() -> None:
    """Every node has what is published cluster-wide; they stay while their node serves anything."""

    async def test(it: Bench) -> None:
        a = channel_in(it.cluster, 0)
        topics = [Topic(a, sharded=False), Pattern("x*")]
        box = await it.subscribed(*topics)
        there = it.names()
        it.server(2).execute(PUBLISH, [a.encode(), b"7"])
        it.cluster.move(slot(a), it.cluster.addresses[1])
        it.nodes.look()
        await a_while()
        assert it.names() == there
        assert got(box) == [7]
        gone = it.cluster.addresses[0]
        it.cluster.addresses[0] = it.cluster.addresses[1]
        it.cluster.epoch += 1
        it.nodes.look()
        await a_while()
        assert gone not in it.names()
        it.server(2).execute(PUBLISH, [a.encode(), b"8"])
        await a_while()
        assert got(box)[-1] == 8

    bench(test)


def test_many_channels_of_a_slot_are_asked_for_together() -> None:
    """Those of different slots are not, because a server would refuse it; each command has its fence."""

    async def test(it: Bench) -> None:
        names = [f"{{a}}{n}" for n in range(600)] + [f"c{n}" for n in range(50)]
        await it.subscribed(*map(Topic, names))
        sizes = [
            len(command) - 1
            for server in it.cluster.servers.values()
            for command in server.ran
            if command[0] == b"SSUBSCRIBE"
        ]
        assert sorted(sizes)[-2:] == [88, 512]
        assert sum(sizes) == 650
        assert len(sizes) <= 2 + 50

    bench(test)


# -- slots that go elsewhere -----------------------------------------------------------------------


@pytest.mark.parametrize("is_told", [True, False])
def test_a_channel_goes_after_its_slot(is_told: bool) -> None:
    """The node says so, or the next look does: one gap, of the right kind, at the right place."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        box = await it.subscribed(Topic(a), Topic(b))
        it.publish(a)
        await a_while(0.01)
        it.cluster.move(slot(a), it.cluster.addresses[1], is_told=is_told)
        missed = it.publish(a)
        it.publish(b)
        await a_while(0.2 if is_told else HEARTBEAT + 1)
        after = it.publish(a)
        await a_while(0.01)
        first, *between, last = got(box)
        assert (first, missed, last) == (0, 1, after)
        assert sorted(between, key=str) == [("MOVED", a), 2]
        assert it.names() == {it.cluster.addresses[1]: {a, b}}

    bench(test)


def test_all_channels_of_a_slot_are_one_gap() -> None:
    """However many they are; and they are asked for together where they are now."""

    async def test(it: Bench) -> None:
        names = [f"{{{channel_in(it.cluster, 0)}}}{n}" for n in range(20)]
        box = await it.subscribed(*map(Topic, names))
        it.server(1).ran.clear()
        it.cluster.move(slot(names[0]), it.cluster.addresses[1])
        await a_while()
        assert got(box) == [("MOVED", *names)]
        assert [len(c) - 1 for c in it.server(1).ran if c[0] == b"SSUBSCRIBE"] == [20]

    bench(test)


def test_nobody_serves_the_slot_for_a_while() -> None:
    """The channel waits; when somebody serves it, it is subscribed there, with one gap for all of it."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        box = await it.subscribed(Topic(a), Topic(b))
        it.cluster.move(slot(a), None)
        await a_while(2 * HEARTBEAT)
        it.publish(b)
        await a_while(0.01)
        assert got(box) == [0]  # what was lost of one channel does not hold up the others
        late = it.add(it.mailbox(), Topic(a))
        await a_while()
        assert not late.is_done
        it.cluster.move(slot(a), it.cluster.addresses[2])
        await a_while(0.5)
        assert late.is_done
        it.publish(a)
        await a_while()
        assert got(box) == [("MOVED", a), 1]

    bench(test)


def test_a_node_dies_and_another_takes_over() -> None:
    """One gap, that of the connection: the slot did not leave, the node did."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        box = await it.subscribed(Topic(a), Topic(b))
        old = it.server(0)
        old.die()
        it.publish(b)
        await a_while(1.0)
        assert got(box) == [0]
        it.cluster.addresses[0] = it.cluster.addresses[1]
        it.cluster.epoch += 1
        await a_while(HEARTBEAT + 1)
        it.publish(a)
        await a_while()
        assert got(box) == [("RECONNECTED", a), 1]
        assert old.target not in " ".join(it.router.links())

    bench(test)


def test_a_node_that_stays_away_holds_up_nothing_of_another() -> None:
    """Both have lost their channels, with nothing between; each gap is told when its own are back."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        box = await it.subscribed(Topic(a), Topic(b))
        it.server(1).die()
        await a_while(1.0)
        it.server(0).lose()
        await a_while(1.0)
        it.publish(a)
        await a_while()
        assert got(box) == [("RECONNECTED", a), 0]
        it.server(1).revive()
        await a_while(2.0)
        it.publish(b)
        await a_while()
        assert got(box) == [("RECONNECTED", b), 1]

    bench(test)


def test_a_channel_that_is_lost_again_by_another_node_is_one_gap() -> None:
    """The node that took over is lost before it has confirmed: nothing came between."""

    async def test(it: Bench) -> None:
        a = channel_in(it.cluster, 0)
        box = await it.subscribed(Topic(a))
        there = it.cluster.addresses[1]
        it.server(0).die()
        it.server(1).is_slow = True
        it.cluster.move(slot(a), there)
        it.nodes.slots.move(slot(a), there, it.loop.time())
        it.router.settle()
        await a_while(0.1)
        assert any((b"SSUBSCRIBE", a.encode()) in wire.inbox for wire in it.server(1).open_wires())
        it.server(1).is_slow = False
        it.server(1).lose()
        await a_while(2.0)
        it.publish(a)
        await a_while()
        assert got(box) == [("RECONNECTED", a), 0]

    bench(test)


def test_a_topic_with_history_has_no_gap() -> None:
    """What was published while it was on its way is read from its history."""

    async def test(it: Bench) -> None:
        a = channel_in(it.cluster, 0)
        box = await it.subscribed(kept(a))
        for which in (1, 2, 0, 1):
            it.append(a)
            it.cluster.move(slot(a), it.cluster.addresses[which])
            it.append(a)
            await a_while(1.2)
            it.append(a)
        await a_while()
        assert got(box) == list(range(12))

    bench(test)


def test_a_trail_that_reads_while_the_slot_goes() -> None:
    """It reads on at the new node; who waits for it to be joined, or to catch up, waits on."""

    async def test(it: Bench) -> None:
        a = channel_in(it.cluster, 0)
        for _ in range(5):
            it.append(a)
        box = it.mailbox()
        server = it.server(0)
        server.is_slow = True
        joined = it.add(box, kept(a), since="beginning")
        caught_up = Ticket()
        it.router.catch_up(box, caught_up)
        await a_while(0.01)
        [wire] = [wire for wire in server.open_wires() if wire.inbox]
        wire.run()
        await a_while(0.01)
        assert [command[0] for command in wire.inbox] == [b"XRANGE", b"XREVRANGE"]
        it.cluster.move(slot(a), it.cluster.addresses[1])
        server.is_slow = False
        assert not joined.is_done
        server.run()
        await a_while(0.5)
        assert joined.is_done
        assert caught_up.is_done
        assert got(box) == list(range(5))

    bench(test)


def test_a_history_that_is_at_the_new_node_already() -> None:
    """ASK: the slot is about to go, so it is asked again until it has; nobody is refused."""

    async def test(it: Bench) -> None:
        a = channel_in(it.cluster, 0)
        it.append(a)
        it.cluster.begin_to_move(slot(a), it.cluster.addresses[1])
        box = it.mailbox()
        ticket = it.add(box, kept(a), since="beginning")
        await a_while(1.0)
        assert not ticket.is_done
        asked = sum(command[0] == b"XRANGE" for command in it.server(0).ran)
        assert asked <= 1.0 / _RETRY_S + 1
        it.cluster.move(slot(a), it.cluster.addresses[1])
        await a_while(0.5)
        assert ticket.is_done
        assert not ticket.refused
        assert got(box) == [0]

    bench(test)


def test_nodes_that_serve_nothing_any_more_are_left() -> None:
    """Their links are closed; who waits for them to forget something is not told that it was closed."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        box = await it.subscribed(Topic(a), Topic(b))
        old, gone = it.server(0), it.cluster.addresses[0]
        old.is_slow = True
        removed = it.remove(box, Topic(a))
        await a_while(0.01)
        it.cluster.addresses[0] = it.cluster.addresses[1]
        it.cluster.epoch += 1
        it.nodes.look()
        await a_while(12.0 if it.nodes._any.asked == gone else 1.0)
        assert removed.is_done
        assert removed.error is None
        assert list(it.router.links()) == [f"listens {it.cluster.addresses[1]}"]
        assert not box.is_ended
        it.publish(b)
        await a_while()
        assert got(box) == [0]

    bench(test)


def test_thousands_of_redirections_cost_a_look_at_all_channels_each_batch() -> None:
    """Not each: a demoted primary redirects every slot that it had."""

    async def test(it: Bench) -> None:
        names = [f"c{n}" for n in range(3000)]
        await it.subscribed(*map(Topic, names))
        settled: list[float] = []
        settle = it.router.settle

        def counted() -> None:
            settled.append(it.loop.time())
            settle()

        it.nodes.on_change = it.router.settle = counted  # type: ignore[method-assign]
        it.cluster.addresses[0] = it.cluster.addresses[1]
        it.server(2).view = it.cluster.slots(), 0
        old = next(iter(it.cluster.servers.values()))
        old.lose()  # it asks for all of them again there
        await a_while(0.5)
        assert len(settled) < 20
        assert sum(map(len, it.names().values())) == 3000
        assert old.address not in it.names()

    bench(test)


# -- refusals and the end --------------------------------------------------------------------------


def test_a_forbidden_channel_does_not_take_others_down() -> None:
    """It is told to who asked; nothing is left of it, and the others of its slot are subscribed."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        other = f"{{{a}}}x"
        it.cluster.forbidden.add(a.encode())
        box = it.mailbox()
        ticket = it.add(box, Topic(a), Topic(b), Topic(other))
        await a_while()
        assert ticket.is_done
        assert ticket.refused == {a: "NOPERM no"}
        assert not it.router.wants(box, Topic(a))
        assert it.names() == {it.cluster.addresses[0]: {other}, it.cluster.addresses[1]: {b}}
        it.nodes.look()
        await a_while()
        assert len(it.router._homes) == 2

    bench(test)


def test_a_channel_that_the_new_node_forbids() -> None:
    """It is told in band, behind the gap."""

    async def test(it: Bench) -> None:
        a = channel_in(it.cluster, 0)
        box = await it.subscribed(Topic(a))
        it.cluster.forbidden.add(a.encode())
        it.cluster.move(slot(a), it.cluster.addresses[1])
        await a_while(0.5)
        gap, error = got(box)
        assert gap == ("MOVED", a)
        assert isinstance(error, SubscribeRefused)

    bench(test)


def test_taken_back_while_it_is_nowhere() -> None:
    """A wish that goes while its node says no leaves nothing at any server."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        near = f"{{{a}}}x"
        it.server(0).says[b"SSUBSCRIBE"] = [ErrorReply("CLUSTERDOWN Hash slot not served")]
        box = it.mailbox()
        other = channel_in(it.cluster, 0, 1)
        it.add(box, Topic(a), Topic(other), Topic(near), Topic(b))
        await a_while(0.05)
        removed = it.remove(box, Topic(a), Topic(other), Topic(near))
        await a_while(0.5)
        assert removed.is_done
        assert it.names() == {it.cluster.addresses[1]: {b}}
        assert len(it.router._homes) == 1

    bench(test)


def test_a_node_that_refuses_us() -> None:
    """Who wants something of it is told; others are not, though they were there once."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        stays, left, waits = await it.subscribed(Topic(a)), await it.subscribed(Topic(b)), it.mailbox()
        it.cluster.move(slot(b), it.cluster.addresses[0])
        await a_while()
        it.cluster.move(slot(b), it.cluster.addresses[1])
        await a_while(1.5)
        got(left)
        server = it.server(0)
        server.refusal = ConnectFailed(server.target, "NOPERM", permanent=True)
        server.lose()
        await a_while(1.0)
        assert isinstance(got(stays)[-1], ConnectFailed)
        assert stays.is_ended
        assert not left.is_ended
        it.publish(b)
        await a_while()
        assert got(left) == [0]
        ticket = it.add(waits, Topic(a))
        assert isinstance(ticket.error, ConnectFailed)

    bench(test)


def test_a_channel_that_moves_to_a_node_that_refuses_us() -> None:
    """Whoever has it, and whoever waits for it, is told."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        server = it.server(1)
        server.refusal = ConnectFailed(server.target, "NOPERM", permanent=True)
        first = it.add(it.mailbox(), Topic(b))
        await a_while()
        assert isinstance(first.error, ConnectFailed)
        box, waiting = await it.subscribed(Topic(a)), it.mailbox()
        it.server(0).is_slow = True
        ticket = it.add(waiting, Topic(channel_in(it.cluster, 0, 1)))
        for channel in (a, channel_in(it.cluster, 0, 1)):
            it.cluster.move(slot(channel), it.cluster.addresses[1])
        it.server(0).is_slow = False
        it.server(0).run()
        await a_while(2.0)
        assert isinstance(ticket.error, ConnectFailed)
        assert isinstance(got(box)[-1], ConnectFailed)
        assert box.is_ended
        assert waiting.is_ended

    bench(test)


@pytest.mark.parametrize("error", [None, ConnectFailed("cluster", "NOPERM", permanent=True)])
def test_closing_tells_whoever_waits(error: ConnectFailed | None) -> None:
    """Why, once; and opens nothing any more."""

    async def test(it: Bench) -> None:
        a, b, c = three(it)
        box = await it.subscribed(Topic(a), Topic(b))
        it.server(0).is_slow = True
        waiting = it.add(it.mailbox(), Topic(channel_in(it.cluster, 0, 1)))
        links = it.router.close(error)
        assert it.router.close(error) == []
        assert len(links) == 2
        kind = Closed if error is None else ConnectFailed
        assert isinstance(waiting.error, kind)
        assert got(box) == ([] if error is None else [error])
        assert box.is_drained
        late = it.add(it.mailbox(), Topic(c))
        assert isinstance(late.error, kind)
        assert it.remove(box, Topic(a)).is_done
        assert len(it.router.links()) == 2
        it.nodes.look()
        for link in links:
            await link.aclose()

    bench(test)


def test_a_mailbox_without_topics_ends_too() -> None:
    """It belongs to the cluster, and to no node."""

    async def test(it: Bench) -> None:
        box = it.mailbox()
        it.add(box)
        forgotten = await it.subscribed(Topic(channel_in(it.cluster, 0)))
        it.remove(forgotten, Topic(channel_in(it.cluster, 0)))
        it.router.forget(forgotten)
        it.router.close(None)
        assert box.is_ended
        assert not forgotten.is_ended

    bench(test)


def test_a_fence_waits_for_every_node() -> None:
    """What each of them has sent until then is here."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        box = await it.subscribed(Topic(a), Topic(b))
        it.server(1).is_slow = True
        fence = Ticket()
        it.router.fence(fence)
        it.router.kick()
        it.publish(b)
        await a_while(0.1)
        assert not fence.is_done
        it.server(1).is_slow = False
        it.server(1).run()
        assert fence.is_done
        assert got(box) == [0]

    bench(test)


def test_a_fence_of_some_topics_waits_for_their_nodes_alone() -> None:
    """A node that is slow, or dead and not known to be, does not hold up who leaves another's channel."""

    async def test(it: Bench) -> None:
        a, b, _ = three(it)
        await it.subscribed(Topic(a), Topic(b))
        it.server(1).is_slow = True
        fences = [Ticket() for _ in range(3)]
        for fence, topics in zip(fences, ([Topic(a)], [Topic(b)], [Topic("unknown")]), strict=True):
            it.router.fence(fence, topics)
        it.router.kick()
        await a_while(0.1)
        assert [fence.is_done for fence in fences] == [True, False, True]
        assert len(it.router._homes) == 2

    bench(test)


# -- whatever happens ------------------------------------------------------------------------------


@dataclass(eq=False)
class Reader:
    """A mailbox, what it wants, and what it must have got."""

    box: Mailbox
    is_kept: bool
    tickets: dict[str, Ticket] = field(default_factory=dict)
    owed: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    items: list[Any] = field(default_factory=list)

    def topic(self, channel: str) -> Topic[bytes]:
        return kept(channel) if self.is_kept else Topic(channel)

    def drain(self) -> None:
        self.items += iter(self.box.pop, None)

    def forgive(self, channel: str) -> None:
        """It wants it no more, so what is on its way is not owed."""
        self.drain()
        messages = (item for item in self.items if isinstance(item, Message))
        last = max((int(m.payload) for m in messages if m.channel == channel), default=-1)
        self.owed[channel] = [number for number in self.owed[channel] if number <= last]


class Books(Bench):
    """What was published while who was subscribed."""

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__(cluster)
        self.readers = [Reader(self.mailbox(), is_kept) for is_kept in (False, False, True)]
        a, b, c = (channel_in(cluster, n) for n in range(3))
        self.channels = [a, f"{{{a}}}x", b, c]
        self.removed: list[Ticket] = []

    def step(self, kind: str, what: int, how: Any) -> None:
        channel = self.channels[what]
        server = self.server(what % 3)
        if kind in ("add", "remove"):
            reader = self.readers[how]
            topic = reader.topic(channel)
            if kind == "add" and channel not in reader.tickets:
                reader.tickets[channel] = self.add(reader.box, topic)
            elif kind == "remove" and reader.tickets.pop(channel, None) is not None:
                self.removed.append(self.remove(reader.box, topic))
                reader.forgive(channel)
        elif kind == "publish":
            self.publish_to_all(channel, is_kept=how)
        elif kind == "move":
            to = None if how is None else self.cluster.addresses[how]
            self.cluster.move(slot(channel), to)
        elif kind == "slow":
            server.is_slow = how
        elif kind == "run":
            for wire in server.open_wires():
                wire.run(how)
        elif kind == "lose":
            server.lose()
        elif kind == "alive":
            (server.revive if how else server.die)()

    def publish_to_all(self, channel: str, *, is_kept: bool) -> None:
        number = self.append(channel) if is_kept else self.publish(channel)
        for reader in self.readers:
            ticket = reader.tickets.get(channel)
            if number is not None and ticket is not None and ticket.is_done and reader.is_kept <= is_kept:
                reader.owed[channel].append(number)

    async def come_to_rest(self) -> None:
        for which, server in enumerate([*self.cluster.servers.values()]):
            server.revive()
            server.is_slow = False
            server.run()
            self.cluster.move(slot(self.channels[which + 1]), self.cluster.addresses[which])
        await asyncio.sleep(4 * HEARTBEAT)
        for channel in self.channels:
            self.publish_to_all(channel, is_kept=True)
        await asyncio.sleep(1.0)

    def check(self) -> None:
        for reader in self.readers:
            assert all(ticket.is_done and not ticket.refused for ticket in reader.tickets.values())
            reader.drain()
            assert not reader.box._open_holes
            for channel in self.channels:
                self.check_channel(reader, channel)
        assert all(ticket.is_done and ticket.error is None for ticket in self.removed)
        wanted: defaultdict[Address, set[str]] = defaultdict(set)
        for channel in {name for reader in self.readers for name in reader.tickets}:
            wanted[self.cluster.owner(slot(channel))].add(channel)  # type: ignore[index]
        assert self.names() == wanted
        assert {target.key.decode() for target in self.router._homes} == set().union(*wanted.values(), ())

    def check_channel(self, reader: Reader, channel: str) -> None:
        """All that is owed is there, or a gap is where it is missing; in order, and once."""
        last, has_gap, owed = -1, False, reader.owed[channel]
        for item in reader.items:
            if isinstance(item, Gap):
                if channel in item.channels:
                    assert not reader.is_kept, "a gap in a history that is whole"
                    assert item.reason in (GapReason.MOVED, GapReason.RECONNECTED)
                    has_gap = True
            elif item.channel == channel:
                number = int(item.payload)
                assert number > last, f"{channel}: {number} after {last}"
                missing = [n for n in owed if last < n < number]
                assert has_gap or not missing, f"{channel}: {missing} lost in silence before {number}"
                last, has_gap = number, False
        missing = [n for n in owed if n > last]
        assert has_gap or not missing, f"{channel}: {missing} lost in silence at the end"
        if channel in reader.tickets:
            assert owed[-1] == last, "not subscribed in the end"


CHANNEL = st.integers(0, 3)
NODE = st.integers(0, 2)
STEPS = st.one_of(
    st.tuples(st.just("add"), CHANNEL, NODE),
    st.tuples(st.just("add"), CHANNEL, NODE),
    st.tuples(st.just("remove"), CHANNEL, NODE),
    st.tuples(st.just("publish"), CHANNEL, st.booleans()),
    st.tuples(st.just("publish"), CHANNEL, st.booleans()),
    st.tuples(st.just("move"), CHANNEL, st.none() | NODE),
    st.tuples(st.just("slow"), NODE, st.booleans()),
    st.tuples(st.just("run"), NODE, st.integers(1, 4)),
    st.tuples(st.just("lose"), NODE, st.none()),
    st.tuples(st.just("alive"), NODE, st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 0.02, 0.15, 2.0]), st.none()),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 0.02, 0.15, 2.0]), st.none()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=50))
def test_whatever_happens(steps: list[tuple[str, Any, Any]]) -> None:
    """Servers have what is wished; what was published is there, or a gap says that it is not."""

    async def main() -> None:
        books = Books(FakeCluster())
        books.nodes.open()
        try:
            for kind, what, how in steps:
                if kind == "wait":
                    await asyncio.sleep(what)
                else:
                    books.step(kind, what, how)
            await books.come_to_rest()
            books.check()
        finally:
            await books.close()

    run(main())
