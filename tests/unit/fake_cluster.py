"""A cluster of dictionaries, for the tests of what speaks to one: servers that redirect as Redis' do.

A server answers in the turn after it was asked, or, while it `is_slow`, when the test says `run`. What a
slot holds goes with it; channels that were subscribed in it are told so.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

from aiopubsub.append import LOADS, SHA, SHAS
from aiopubsub.dialogue import PUBLISH, SPUBLISH, Command
from aiopubsub.errors import ConnectFailed, ErrorReply
from aiopubsub.keys import slot_of
from aiopubsub.link import Backoff
from aiopubsub.memory_streams import MemoryStreams
from aiopubsub.nodes import Nodes
from aiopubsub.slots import SLOTS, Address
from aiopubsub.wire import Push, Wire
from tests.unit.fakes import FakeWire

HEARTBEAT = 5.0


class ServerWire(FakeWire):
    """A connection to one of the servers."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__()
        self.server = server
        self.inbox: deque[Command] = deque()
        self.subscribed: dict[tuple[bytes, bytes], None] = {}  # kind of message, and channel
        self.is_asking = False

    def write(self, commands: Iterable[Command]) -> None:
        commands = list(commands)
        super().write(commands)
        self.inbox += commands
        if not self.server.is_slow:
            asyncio.get_running_loop().call_soon(self.run)

    def run(self, count: int = 1_000_000) -> None:
        """Work off what was asked."""
        while self.inbox and count and not self.is_aborted:
            count -= 1
            self.say(*self.server.answer(self, self.inbox.popleft()))

    def is_open(self) -> bool:
        return self.user is not None


class FakeServer:
    """One node."""

    def __init__(self, cluster: FakeCluster, address: Address) -> None:
        self.cluster = cluster
        self.address = address
        self.target = str(address)
        self.refusal: ConnectFailed | None = None  # to whoever connects
        self.is_slow = False
        self.is_cut_off = False  # it says that the cluster is down
        self.wires: list[ServerWire] = []
        self.ran: list[Command] = []
        self.says: dict[bytes, list[Any]] = {}  # to this verb, instead of an answer
        self.view: tuple[list[Any], int] | None = None  # what it still believes, if it is behind

    async def open(self) -> Wire:
        if self.refusal is not None:
            raise self.refusal
        wire = ServerWire(self)
        self.wires.append(wire)
        return wire

    def open_wires(self) -> list[ServerWire]:
        return [wire for wire in self.wires if wire.is_open()]

    def lose(self, reason: str = "cut") -> None:
        """All its connections."""
        for wire in self.open_wires():
            wire.lose(reason)

    def die(self) -> None:
        self.refusal = ConnectFailed(self.target, "refused")
        self.lose("died")

    def revive(self) -> None:
        self.refusal = None

    def run(self) -> None:
        """Answer all that was asked; while it is slow."""
        for wire in self.open_wires():
            wire.run()

    # -- what it answers ---------------------------------------------------------------------------

    def answer(self, wire: ServerWire, command: Command) -> list[Any]:  # one for each
        verb, *args = command
        self.ran.append(command)
        is_asking, wire.is_asking = wire.is_asking, verb == b"ASKING"
        if self.says.get(verb):
            return [self.says[verb].pop(0)]
        match verb:
            case b"PING":
                said: Any = args[0] if args else b"PONG"
            case b"ASKING":
                said = b"OK"
            case b"SCRIPT":
                said = next(SHAS[kind] for kind, load in LOADS.items() if load == command)
            case b"CLUSTER":
                said = self.slots() if args[0] == b"SLOTS" else self.info()
            case _ if verb.endswith(b"SUBSCRIBE"):
                return self.subscribe(wire, verb, args)
            case _:
                key = args[2] if verb == b"EVALSHA" else args[0]
                said = None if verb == PUBLISH else self.redirect(verb, key, is_asking)
                said = said or self.execute(verb, args)
        return [said]

    def redirect(self, verb: bytes, key: bytes, is_asking: bool) -> ErrorReply | None:
        """As `getNodeByQuery` of Redis has it: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/"""
        slot = slot_of(key)
        owner, target = self.cluster.owner(slot), self.cluster.importing.get(slot)
        if owner is None:
            return ErrorReply("CLUSTERDOWN Hash slot not served")
        if owner == self.address:
            has_left = key not in self.cluster.here.get(slot, ())
            if target is not None and verb not in (SPUBLISH, b"SSUBSCRIBE", b"SUNSUBSCRIBE") and has_left:
                return ErrorReply(f"ASK {slot} {target}")
            return None
        return None if is_asking and target == self.address else ErrorReply(f"MOVED {slot} {owner}")

    def subscribe(self, wire: ServerWire, verb: bytes, channels: list[bytes]) -> list[Any]:
        kind = {b"S": b"smessage", b"P": b"pmessage"}.get(verb[:1], b"message")
        if verb in (b"SUBSCRIBE", b"SUNSUBSCRIBE"):
            kind = b"message" if verb == b"SUBSCRIBE" else b"smessage"
        if kind == b"smessage":
            assert len(set(map(slot_of, channels))) == 1, "CROSSSLOT"
            if (redirect := self.redirect(verb, channels[0], False)) is not None:
                return [redirect]
        answers: list[Any] = []
        for channel in channels:
            if b"UNSUB" in verb:
                wire.subscribed.pop((kind, channel), None)
            elif channel in self.cluster.forbidden:
                return [ErrorReply("NOPERM no")]
            else:
                wire.subscribed[kind, channel] = None
            answers.append(Push([verb.lower(), channel, len(wire.subscribed)]))
        return answers

    def execute(self, verb: bytes, args: list[bytes]) -> Any:
        streams = self.cluster.streams
        if verb in (PUBLISH, SPUBLISH):
            return self.publish(args[0], args[1], is_sharded=verb == SPUBLISH)
        if verb == b"EVALSHA":
            is_sharded = args[0] == SHAS[SPUBLISH]
            return streams.append(
                lambda key, data: self.publish(key, data, is_sharded=is_sharded), SHA, *args[1:]
            )
        return {b"XRANGE": streams.range, b"XREVRANGE": streams.reverse_range}[verb](*args)

    def publish(self, channel: bytes, payload: bytes, *, is_sharded: bool) -> int:
        self.cluster.published[channel].append((self.address, payload))
        servers = [self] if is_sharded else list(self.cluster.servers.values())
        kind = b"smessage" if is_sharded else b"message"
        there = [
            wire for server in servers for wire in server.open_wires() if (kind, channel) in wire.subscribed
        ]
        for wire in there:
            asyncio.get_running_loop().call_soon(wire.say, Push([kind, channel, payload]))
        return len(there)

    def slots(self) -> list[Any]:
        if self.view is not None:
            return self.view[0]
        return self.cluster.slots()

    def info(self) -> bytes:
        is_down = self.is_cut_off or (self.cluster.needs_all and None in self.cluster.owners.values())
        epoch = self.cluster.epoch if self.view is None else self.view[1]
        return b"cluster_state:%b\r\ncluster_current_epoch:%d\r\n" % (b"fail" if is_down else b"ok", epoch)


class FakeCluster:
    """All of it. Plays the opener, too.

    Attributes:
        owners: Of slots that have gone from the one that had them first.
        importing: Where slots are on their way to, step by step.
        here: The keys of those that have not gone yet.
        published: All that was published, by channel, with the node that did it.
    """

    def __init__(self, count: int = 3) -> None:
        self.addresses = [Address("10.0.0.1", 7001 + n) for n in range(count)]
        self.servers = {address: FakeServer(self, address) for address in self.addresses}
        self.startup: tuple[Address, ...] = tuple(self.addresses)
        self.target = "cluster fake"
        self.remap: dict[Address, Address] = {}
        self.owners: dict[int, Address | None] = {}
        self.importing: dict[int, Address] = {}
        self.here: dict[int, set[bytes]] = {}
        self.epoch = count
        self.needs_all = False
        self.forbidden: set[bytes] = set()
        self.streams = MemoryStreams(lambda: 5.0)
        self.published: defaultdict[bytes, list[tuple[Address, bytes]]] = defaultdict(list)

    # as the opener

    def at(self, address: Address) -> FakeServer:
        return self.servers[address]

    def reach(self, announced: Address) -> Address:
        return self.remap.get(announced, announced)

    # as the cluster

    def nodes(self) -> Nodes:
        opener: Any = self
        return Nodes(opener, heartbeat=HEARTBEAT, backoff=Backoff())

    def owner(self, slot: int) -> Address | None:
        return self.owners.get(slot, self.addresses[slot * len(self.addresses) // SLOTS])

    def slots(self) -> list[Any]:
        ranges: list[Any] = []
        cuts = sorted({0, *self.owners, *(slot + 1 for slot in self.owners), *self._thirds()} - {SLOTS})
        for first, last in zip(cuts, [*(cut - 1 for cut in cuts[1:]), SLOTS - 1], strict=True):
            if (owner := self.owner(first)) is not None:
                ranges.append([first, last, [owner.host.encode(), owner.port, b"id"]])
        return ranges

    def _thirds(self) -> set[int]:
        return {-(-n * SLOTS // len(self.addresses)) for n in range(len(self.addresses))}

    def move(self, slot: int, to: Address | None, *, is_told: bool = True) -> None:
        """Give a slot to another node, or to none; the one that had it tells who had subscribed there."""
        before = self.owner(slot)
        self.owners[slot] = to
        self.epoch += 1
        self.importing.pop(slot, None)
        self.here.pop(slot, None)
        if before is None or before == to:
            return
        for wire in self.servers[before].open_wires():
            for kind, channel in [*wire.subscribed]:
                if kind == b"smessage" and slot_of(channel) == slot:
                    del wire.subscribed[kind, channel]
                    if is_told:
                        wire.say(Push([b"sunsubscribe", channel, len(wire.subscribed)]))

    def begin_to_move(self, slot: int, to: Address, *keys: bytes) -> None:
        """Step by step: these keys have not gone yet, all others are at the target."""
        self.importing[slot] = to
        self.here[slot] = set(keys)

    def subscribed(self) -> dict[Address, set[tuple[bytes, bytes]]]:
        """What each server has subscribers of, if it has any."""
        there = {
            address: {item for wire in server.open_wires() for item in wire.subscribed}
            for address, server in self.servers.items()
        }
        return {address: items for address, items in there.items() if items}


def channel_in(cluster: FakeCluster, which: int, number: int = 0) -> str:
    """The name of a channel that the server of this number has at first; another slot for each number."""
    names = (f"c{n}" for n in range(100_000))
    there = (name for name in names if cluster.owner(slot_of(name.encode())) == cluster.addresses[which])
    for _ in range(number):
        next(there)
    return next(there)
