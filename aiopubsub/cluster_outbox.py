"""The outboxes of a cluster's nodes, as one.

A request goes to the node that serves the slot of its channel. When the slot goes elsewhere, what was
not done goes after it, and nothing overtakes: new requests of that slot wait until the node that it has
left has answered all that it was sent.

Lives here: which request goes to which node, and in which order. Must not live here: the topology (the
cluster), windows and replies (a node's outbox). Publishers take it for a link and its outbox.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Self, TypeAlias

from .append import Append
from .dialogue import Command
from .errors import Closed, NotSent, PubSubError, Unconfirmed
from .keys import slot_of
from .line import Batch, Line, Request, fail, look_at
from .link import Link
from .nodes import Nodes
from .outbox import Outbox
from .slots import Address, Redirect
from .topic import History
from .wire import Push

__all__ = ["ClusterLine", "ClusterOutbox"]

_RETRY_S = 0.05  # while a slot is on its way, or nobody serves it
_SLOTS_KNOWN = 10_000  # of keys; to hash one takes half as long as to publish

_KEY_AT = {b"MEMORY": 2, b"SCAN": 3}  # MEMORY USAGE key; SCAN 0 MATCH pattern, of one slot's keys
_NO_LINE = Line(0)  # of a request that has no node yet

_One: TypeAlias = "Request | Append"
_NodeLink: TypeAlias = Link[Outbox]


@dataclass(slots=True)
class _Held:
    """What waits for a slot to be somewhere: first what came back, then what came since."""

    returned: deque[_One] = field(default_factory=deque[_One])
    later: deque[_One] = field(default_factory=deque[_One])

    def __iter__(self) -> Iterator[_One]:
        yield from self.returned
        yield from self.later

    def forget_done(self) -> None:
        """Let go of those that nobody waits for."""
        for queue in (self.returned, self.later):
            left = [request for request in queue if not look_at(request)[0].done()]
            queue.clear()
            queue.extend(left)


class ClusterLine:
    """The requests of one publisher, in the order of each slot.

    Attributes:
        max_in_flight: For each node.
        known: As of a `Line`.
        closed_by: As of a `Line`.
        parts: Those that have a node to go to: by its link, and whether it is asked for a slot that it
            is about to get (ASK).
        held: Those that have none, by slot.
    """

    __slots__ = ("_outbox", "closed_by", "held", "known", "max_in_flight", "parts")

    def __init__(self, outbox: ClusterOutbox, max_in_flight: int) -> None:
        self._outbox = outbox
        self.max_in_flight: int = max_in_flight
        self.parts: dict[tuple[_NodeLink, bool], Line] = {}
        self.held: dict[int, _Held] = {}
        self.known: dict[bytes, bytes] = {}
        self.closed_by: PubSubError | None = None

    @property
    def waiting(self) -> int:
        held = sum(len(held.returned) + len(held.later) for held in self.held.values())
        return held + sum(len(part.waiting) for part in self.parts.values())

    @property
    def in_flight(self) -> int:
        return sum(part.in_flight for part in self.parts.values())

    def add(self, request: Request | Batch | Append) -> bool:
        if self.closed_by is not None:
            raise copy(self.closed_by)
        if isinstance(request, Batch):
            for command, promise in request.parts():
                self._outbox.send(self, (promise, request.deadline, command, _NO_LINE))
        else:
            self._outbox.send(self, request)
        return True

    def is_waiting(self, key: bytes) -> bool:
        link = self._outbox.home_of(key)
        if link is None or self._outbox.slot_of(key) in self.held:
            return True
        return any(part.waiting for (there, _), part in self.parts.items() if there is link)

    def part(self, link: _NodeLink, *, is_asking: bool) -> Line:
        """What goes to this node."""
        part = self.parts.get((link, is_asking))
        if part is None:
            part = self.parts[link, is_asking] = link.dialogue.open_line(self.max_in_flight)
            part.is_asking = is_asking
            part.known = self.known
        return part

    def hold(self, slot: int, request: _One, *, came_back: bool = False) -> None:
        """Let a request wait until its slot is somewhere."""
        held = self.held.setdefault(slot, _Held())
        (held.returned if came_back else held.later).append(request)

    def take_back(self, link: _NodeLink, slots: set[int], *, came_back: bool = False) -> None:
        """What waits for a node that does not serve these slots any more waits for another."""
        part = self.parts.get((link, False))
        if part is None:
            return
        waiting = list(part.waiting)
        part.waiting.clear()
        for request in waiting:
            slot = self._outbox.slot(request)
            if slot in slots and not isinstance(request, Batch):
                self.hold(slot, request, came_back=came_back)
            else:
                part.waiting.append(request)


class ClusterOutbox:
    """Plays `Link[Outbox]`, and its dialogue, to publishers.

    Args:
        nodes: Of the cluster.
    """

    in_cluster = True

    def __init__(self, nodes: Nodes) -> None:
        self.histories: dict[str, History] = {}
        self._nodes = nodes
        self._loop = asyncio.get_running_loop()
        self._links: dict[Address, _NodeLink] = {}
        self._homes: dict[int, _NodeLink] = {}  # of the slots that are published to
        self._leaving: set[int] = set()  # whose last node has not answered all yet
        self._lines: dict[ClusterLine, None] = {}
        self._wholes: dict[Line, ClusterLine] = {}  # by part
        self._slots: dict[bytes, int] = {}
        self._to_kick: dict[_NodeLink, None] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._closed_by: PubSubError | None = None

    # -- as an outbox ------------------------------------------------------------------------------

    @property
    def dialogue(self) -> Self:
        return self

    @property
    def in_flight(self) -> int:
        return sum(link.dialogue.in_flight for link in self._links.values())

    @property
    def waiting(self) -> int:
        return sum(line.waiting for line in self._lines)

    def open_line(self, max_in_flight: int) -> ClusterLine:
        line = ClusterLine(self, max_in_flight)
        line.closed_by = self._closed_by
        self._lines[line] = None
        return line

    def close_line(self, line: ClusterLine, error: PubSubError) -> None:
        line.closed_by = error
        for (link, _), part in line.parts.items():
            link.dialogue.close_line(part, error)
            self._wholes.pop(part, None)
        self._fail_held(line, error)
        self._lines.pop(line, None)

    # -- as a link ---------------------------------------------------------------------------------

    @property
    def error(self) -> PubSubError | None:
        """Why it cannot do all that is wanted of it."""
        return self._nodes.error

    async def ready(self, timeout: float | None) -> None:
        await self._nodes.ready(timeout)

    def open(self) -> None:
        self._nodes.open()

    def kick(self, deadline: float = math.inf) -> None:
        while self._to_kick:
            link, _ = self._to_kick.popitem()
            link.kick(deadline)
        if deadline < self._alarm_at and any(line.held for line in self._lines):
            self._set_alarm(deadline)

    def is_live(self, key: bytes) -> bool:
        link = self.home_of(key)
        return link is not None and link.is_live(key)

    # -- what lines ask ----------------------------------------------------------------------------

    def slot(self, request: Request | Append | Batch) -> int:
        """Of what a request is about; -1 if it is about nothing."""
        if isinstance(request, Append):
            return self.slot_of(request.channel)
        command: Command = request[2] if isinstance(request, tuple) else request.commands[0]
        key = _key_in(command)
        return self.slot_of(key) if key else -1

    def slot_of(self, key: bytes) -> int:
        """As in `keys`, remembered."""
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= _SLOTS_KNOWN:
                self._slots.clear()
            slot = self._slots[key] = slot_of(key)
        return slot

    def home_of(self, key: bytes) -> _NodeLink | None:
        """Where requests about a key go now; `None`: they have to wait."""
        slot = self.slot_of(key)
        home = self._homes.get(slot)
        if home is None and slot not in self._leaving and self._closed_by is None:
            address = self._nodes.slots.owner(slot)
            if address is not None:
                home = self._homes[slot] = self._link(address)
        return home

    def send(self, line: ClusterLine, request: _One) -> None:
        """Let a request go to its node, or wait until it has one."""
        slot = self.slot(request)
        if slot < 0:
            self._send_ping(line, request)
            return
        link = self._homes.get(slot) or self.home_of(_key_of(request))
        if link is None or slot in line.held:
            line.hold(slot, request)
        else:
            self._send_to(link, line, request)

    def _send_ping(self, line: ClusterLine, request: _One) -> None:
        """Let a PING follow what was sent last or waits; with nothing to follow it is answered at once."""
        busy = (link for (link, _), part in line.parts.items() if part.waiting or part.in_flight)
        if (link := next(busy, None)) is not None:
            self._send_to(link, line, request)
        elif (slot := next(iter(line.held), -1)) >= 0:
            line.hold(slot, request)
        elif not (promise := look_at(request)[0]).done():
            promise.set_result(None)

    # -- what the cluster tells --------------------------------------------------------------------

    def links(self) -> dict[str, _NodeLink]:
        """Those there are, by role."""
        return {f"commands {address}": link for address, link in self._links.items()}

    def settle(self) -> None:
        """The topology may have changed: let each slot's requests go where it is."""
        if self._closed_by is not None:
            return
        moves: defaultdict[_NodeLink, set[int]] = defaultdict(set)
        for slot, link in self._homes.items():
            owner = self._nodes.slots.owner(slot)
            if owner is not None and self._links.get(owner) is not link:
                moves[link].add(slot)
        for link, slots in moves.items():
            self._leave(link, slots)
        self._flush()
        for address, link in list(self._links.items()):
            is_idle = not link.dialogue.in_flight and not link.dialogue.waiting
            if is_idle and address not in self._nodes.slots.primaries:
                self._retire(address)

    def close(self, error: PubSubError | None) -> list[_NodeLink]:
        """Nothing more will be sent; `None`: because it was closed. Returns links that are closing."""
        if self._closed_by is not None:
            return []
        self._closed_by = why = Closed("Client") if error is None else error
        for link in self._links.values():
            link.dialogue.close(why)
            link.close()
        for line in self._lines:
            line.closed_by = why
            self._fail_held(line, why)
        if self._alarm is not None:
            self._alarm.cancel()
        return list(self._links.values())

    # -- inside ------------------------------------------------------------------------------------

    def _link(self, address: Address) -> _NodeLink:
        link = self._links.get(address)
        if link is None:
            outbox = Outbox(Push, partial(self._on_redirect, address))
            link = self._links[address] = self._nodes.link(address, outbox, "commands")
            link.open()
        return link

    def _send_to(
        self, link: _NodeLink, line: ClusterLine, request: _One, *, is_asking: bool = False
    ) -> None:
        asking = line.parts.get((link, True))
        if asking is not None and asking.waiting:
            is_asking = True  # it may be about the same slot, and must not be overtaken
        part = line.part(link, is_asking=is_asking)
        self._wholes[part] = line
        if isinstance(request, tuple):
            request = (*request[:3], part)
        try:
            if part.add(request):
                self._to_kick[link] = None
        except PubSubError as error:  # the node refuses us for good
            fail(request, error)

    def _on_redirect(self, here: Address, request: _One, part: Line, redirect: Redirect) -> None:
        """A node does not serve the slot of a request, or not now, and has done nothing."""
        promise, deadline, channel = look_at(request)
        line = self._wholes.get(part)
        if promise.done():
            return
        if line is None:
            fail(
                request, NotSent(channel, f"the node answered {redirect.kind}, and it was closed meanwhile")
            )
            return
        if redirect.kind == "ASK" and redirect.address is not None:
            there = self._link(self._nodes.reach(here, redirect.address))
            self._send_to(there, line, request, is_asking=True)
            self.kick(deadline)
            return
        slot = self.slot(request)
        line.hold(slot, request, came_back=True)
        self._set_alarm(min(self._alarm_at, deadline))
        delay = self._nodes.redirected(here, redirect, _RETRY_S)
        if slot in self._homes:
            self._leave(self._homes[slot], {slot}, delay)
        elif slot not in self._leaving:
            self._loop.call_later(delay, self._flush)

    def _leave(self, link: _NodeLink, slots: set[int], delay: float = 0.0) -> None:
        """Send nothing more about these slots to a node, and let them go when it has answered all."""
        for slot in slots:
            del self._homes[slot]
        self._leaving |= slots
        for line in self._lines:
            line.take_back(link, slots)
        link.dialogue.fence(partial(self._on_answered, link, slots, delay))
        link.kick()

    def _on_answered(self, link: _NodeLink, slots: set[int], delay: float) -> None:
        for line in self._lines:  # what a lost connection has put back is older than all that waits
            line.take_back(link, slots, came_back=True)
        self._loop.call_later(delay, self._left, slots)

    def _left(self, slots: set[int]) -> None:
        self._leaving -= slots
        self._flush()

    def _flush(self) -> None:
        """Let go what was held, if there is somewhere to go."""
        earliest = math.inf
        for line in list(self._lines):
            for slot in list(line.held):
                held = line.held[slot]
                first = next(iter(held), None)
                if slot not in self._leaving and (first is None or self._can_go(first)):
                    del line.held[slot]
                    for request in held:
                        promise, deadline, _ = look_at(request)
                        if not promise.done():
                            earliest = min(earliest, deadline)
                            self.send(line, request)
        self.kick(earliest)

    def _can_go(self, request: _One) -> bool:
        key = _key_of(request)
        return not key or self.home_of(key) is not None

    def _retire(self, address: Address) -> None:
        link = self._links.pop(address)
        for slot in [slot for slot, home in self._homes.items() if home is link]:
            del self._homes[slot]
        for line in self._lines:
            for is_asking in (False, True):
                part = line.parts.pop((link, is_asking), None)
                if part is not None:
                    self._wholes.pop(part, None)
        link.close()

    def _fail_held(self, line: ClusterLine, error: PubSubError) -> None:
        for held in line.held.values():
            for request in held:
                fail(request, copy(error))
        line.held.clear()

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = None if deadline == math.inf else self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        """Give up what is held and overdue."""
        now, earliest = self._loop.time(), math.inf
        for line in self._lines:
            for slot, held in line.held.items():
                for request in held:
                    promise, deadline, channel = look_at(request)
                    if promise.done():
                        continue
                    if deadline > now:
                        earliest = min(earliest, deadline)
                    else:
                        may_be_stored = isinstance(request, Append) and request.was_sent
                        kind = Unconfirmed if may_be_stored else NotSent
                        fail(request, kind(channel, self._why_held(slot)))
                held.forget_done()
        self._set_alarm(earliest)

    def _why_held(self, slot: int) -> str:
        owner = self._nodes.slots.owner(slot)
        if owner is None:
            return f"no node of the cluster served slot {slot} for the whole timeout"
        return f"slot {slot} was on its way to {owner} for the whole timeout"


def _key_of(request: Request | Append) -> bytes:
    """What is hashed of a request; empty if it is about nothing."""
    return request.channel if isinstance(request, Append) else _key_in(request[2])


def _key_in(command: Command) -> bytes:
    """What a command is about: its first argument, but for a few; empty if it has none."""
    at = _KEY_AT.get(command[0], 1)
    return command[at] if len(command) > at else b""
