"""Who gets what: channels to mailboxes, and what to say to the server so that it is so.

Two tables. *Wishes* is what subscribers want: for each channel and pattern the mailboxes that are to
get its messages. *Wire* is what the server knows: whether it was asked for a channel, confirmed it, or
was asked to forget it. `commands()` turns the second into the first, and is asked again after every
change, so that reconnects and races leave no ghost and forget nobody.

In RESP3 a SUBSCRIBE that succeeds has no reply, only pushes; one that fails has an error reply in line
with all others (https://redis.io/docs/latest/develop/reference/protocol-spec/#pushes). So each command
is followed by `PING <token>`, the fence. Errors before a token belong to its burst; the token itself
says that the server has done the rest. A burst that fails is asked again channel by channel, so that
one forbidden channel does not take the others down.

    wire state      subscribe sent   fence, no error   fence, error   unsubscribe sent   session ended
    (absent)        ASKED            -                 -              -                  (absent)
    ASKED           -                ON                (absent)       LEAVING            (absent)
    ON              -                -                 -              LEAVING            (absent)
    LEAVING         ASKED            (absent)          (absent)       -                  (absent)

In a cluster a server may say that a channel's slot has left it, or is not there. Who owns this router
is told, finds out where it is, and moves the channel to the router of that node, with all who want it.

Lives here: decisions, from values to values. Must not live here: sockets, waiting, clocks, the path
of a message. The session calls `begin`, `receive`, `commands`, `ping` and `end`; a subscriber calls
`add`, `remove` and `fence`; a cluster `move` and `ask_again`.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from enum import Enum
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from .deliveries import NOTHING, TURN, Deliveries
from .dialogue import Command, OutOfStep
from .errors import Closed, ErrorReply, PubSubError, SubscribeRefused
from .keys import slot_of
from .mailbox import Mailbox
from .message import GapReason
from .reads import Read, Reads
from .routes import Kind, Route, Target, Ticket
from .slots import Redirect, redirect_of
from .topic import Subscribable
from .trail import Trail

__all__ = ["Router"]

BATCH = 512
"""Channels in one command: 196 commands for 100 000 channels; a refused one costs 512 retries at most."""

_key_of = attrgetter("key")


class Wire(Enum):
    """What the server was told of a target, and whether it has confirmed."""

    ASKED = "asked"
    ON = "on"
    LEAVING = "leaving"


class _Burst:
    """What is asked at a time, and its fence.

    Attributes:
        wire: What the server knows of its targets, all of them at once: an object of each target's own
            would be 100 000 for the garbage collector to look through again and again.
        targets: What it is about, until the fence is back.
    """

    __slots__ = ("errors", "targets", "ticket", "token", "wire")

    def __init__(
        self,
        token: bytes,
        wire: Wire | None = None,
        targets: Sequence[Target] = (),
        ticket: Ticket | None = None,
    ) -> None:
        self.token = token
        self.wire = wire
        self.targets = targets
        self.ticket = ticket
        self.errors: list[str] = []


class Router:
    """The decisions of one listening connection.

    Args:
        push: The type of a RESP3 push, to tell it from a reply; a list of the push's parts.
        redirected: In a cluster: told of channels that the server does not serve, or not now. They
            are asked for when somebody says so.
    """

    def __init__(
        self,
        push: type[list[Any]],
        redirected: Callable[[list[Target], Redirect], None] | None = None,
    ) -> None:
        self._push = push
        self._redirected = redirected
        self._mailboxes: dict[Mailbox, None] = {}
        self._reads = Reads()
        self._wishes: dict[Kind, dict[bytes, Route]] = {kind: {} for kind in Kind}
        self._deliveries = Deliveries(push, self._wishes, self._reads.let_ask)
        self._wire: dict[Target, _Burst] = {}  # by the last burst that a target was in
        self._dirty: dict[Target, None] = {}  # wish and wire may differ; in order of change
        self._alone: set[Target] = set()  # of a burst that failed: to be asked one by one
        self._tickets: dict[Target, list[Ticket]] = {}
        self._torn: dict[Mailbox, None] = {}  # have lost something that is not back yet
        self._due: deque[_Burst | Read] = deque()  # sent, and not all of it answered
        self._fences: list[_Burst] = []  # to be sent, without a command
        self._tokens = itertools.count(1)
        self._is_live = False
        self._asks_all = False  # the session has just begun, and the server knows of nothing
        self._closed_by: PubSubError | None = None

    # -- what subscribers want ---------------------------------------------------------------------

    def add(
        self,
        mailbox: Mailbox,
        topics: Iterable[Subscribable[object]],
        ticket: Ticket,
        trails: Mapping[Subscribable[object], Trail] = MappingProxyType({}),
    ) -> None:
        """Let a mailbox have these topics, along these trails if they have a history.

        The ticket is done when each is confirmed or refused, and each trail is joined.
        """
        if self._closed_by is not None:
            ticket.error = copy(self._closed_by)
            ticket.check()
            return
        self._mailboxes[mailbox] = None
        for topic in topics:
            target = self.target_of(topic)
            wishes = self._wishes[target.kind]
            route = wishes.get(target.key)
            if route is None:
                route = wishes[target.key] = Route(target, topic.name)
                self._dirty[target] = None
            trail = self._reads.of(mailbox, target)
            if trail is None and topic in trails:
                trail = trails[topic]
                self._reads.add(target, trail)
            route.add(topic, mailbox, trail)
            if self._wire_state(target) is not Wire.ON:
                self._wait_for(target, ticket)
            elif trail is not None:
                self._reads.set_out(trail)
            if trail is not None:
                self._reads.wait_for_join(trail, ticket)
        ticket.check()

    def remove(self, mailbox: Mailbox, topics: Iterable[Subscribable[object]], ticket: Ticket) -> None:
        """Let a mailbox have these topics no more, at once.

        The ticket is done when the server has forgotten those that nobody wants any more.
        """
        targets = [self.target_of(topic) for topic in topics]
        self._found(mailbox, targets)
        for target in targets:
            self._reads.leave(mailbox, target)
            route = self._wishes[target.kind].get(target.key)
            if route is None:
                continue
            route.discard(mailbox)
            if not route.groups:
                del self._wishes[target.kind][target.key]
                self._dirty[target] = None
                if target in self._wire:
                    self._wait_for(target, ticket)
        ticket.check()

    def wants(self, mailbox: Mailbox, topic: Subscribable[object]) -> bool:
        """Whether a mailbox is to have this topic: it was added, and neither removed nor refused."""
        target = self.target_of(topic)
        route = self._wishes[target.kind].get(target.key)
        return route is not None and route.holds(topic, mailbox)

    def is_wanted(self, target: Target) -> bool:
        """Whether anybody wants it."""
        return target.key in self._wishes[target.kind]

    @property
    def wished(self) -> int:
        """Channels and patterns that somebody wants."""
        return sum(map(len, self._wishes.values()))

    def target_of(self, topic: Subscribable[object]) -> Target:
        """What the server knows a topic as."""
        return Target.of(topic, in_cluster=self._redirected is not None)

    def fence(self, ticket: Ticket, topics: Iterable[Subscribable[object]] | None = None) -> None:
        """Let a ticket be done when all that the server has sent until now has been received.

        Of all topics, because a connection has one order; with several connections it matters which.
        """
        if self._is_live:
            ticket.hold()
            self._fences.append(_Burst(self._new_token(), ticket=ticket))
        ticket.check()

    def catch_up(self, mailbox: Mailbox, ticket: Ticket) -> None:
        """Let a ticket be done when all that its histories hold has been put into a mailbox."""
        self._reads.catch_up(mailbox, ticket)
        ticket.check()

    def make_use_of_room(self, mailbox: Mailbox) -> None:
        """A mailbox has room again: read on for it."""
        self._reads.make_use_of_room(mailbox)

    def forget(self, mailbox: Mailbox) -> None:
        """Let go of a mailbox whose topics were all removed."""
        self._mailboxes.pop(mailbox, None)
        self._torn.pop(mailbox, None)

    def move(self, targets: Iterable[Target], to: Router, cause: str) -> None:
        """Let another connection carry these from here on, with all who want them.

        What is missed until they are subscribed there is a gap, on topics without history.
        """
        self._deliveries.hand_out(math.inf)
        wishes = self._wishes
        routes = [wishes[target.kind].pop(target.key) for target in targets if self.is_wanted(target)]
        known = [route for route in routes if route.target in self._wire]
        self._tear(known, cause, GapReason.MOVED)
        for route in known:  # if there is still a connection, it has to forget them
            self._dirty[route.target] = None
        for route in routes:
            target = route.target
            for mailbox in route.mailboxes():
                to._mailboxes[mailbox] = None
                if mailbox.has_lost(target):
                    to._torn[mailbox] = None
            for trail in list(route.trails()):
                self._reads.move(trail, target, to._reads)
            to._wishes[target.kind][target.key] = route
            to._dirty[target] = None
            if tickets := self._tickets.pop(target, None):
                to._tickets.setdefault(target, []).extend(tickets)
        if to._closed_by is not None:  # its node refuses us for good: whoever has come is told
            to.close(to._closed_by)

    def ask_again(self, targets: Iterable[Target]) -> None:
        """Ask the server once more for these, if they are wanted and it has not confirmed them; and for
        their histories."""
        for target in targets:
            self._dirty[target] = None
            if (route := self._wishes[target.kind].get(target.key)) is not None:
                for trail in route.trails():
                    self._reads.let_ask(trail)

    def let_go(self) -> None:
        """It will be closed, and nothing is wanted of it: what its server was to forget is forgotten so."""
        self._settle(list(self._wire), is_on=False)

    def close(self, error: PubSubError) -> None:
        """Nothing more will come: whoever waits is told why, and every mailbox ends."""
        self._closed_by = error
        for ticket in [ticket for tickets in self._tickets.values() for ticket in tickets]:
            ticket.error = error
            ticket.release()
        self._tickets.clear()
        self._reads.close(error)
        for mailbox in self._mailboxes if self._redirected is None else self._served():
            if not isinstance(error, Closed):
                mailbox.put(error)
            mailbox.end()
        self._mailboxes.clear()

    # -- what the session tells and asks -----------------------------------------------------------

    def begin(self) -> None:
        """A session begins: the server knows of nothing, all wishes are to be sent."""
        self._is_live = self._asks_all = True

    def commands(self) -> list[Command]:
        """What to send now, in order. Asked again, it is empty until something has changed."""
        is_idle = not (self._dirty or self._fences or self._asks_all or self._reads.can_ask)
        if not self._is_live or is_idle:
            return []
        commands: list[Command] = []
        for (kind, becomes), targets in self._differences().items():
            verb = kind.value[becomes is Wire.LEAVING]
            for batch in self._batches(kind, targets):
                burst = _Burst(self._new_token(), becomes, batch)
                self._wire.update(zip(batch, itertools.repeat(burst)))  # hashes each once
                commands.append((verb, *map(_key_of, batch)))
                commands.append(self._send_fence(burst))
        commands.extend(map(self._send_fence, self._fences))
        self._fences.clear()
        for read, questions in self._reads.questions():
            self._due.append(read)
            commands += questions
        return commands

    def ping(self, on_answer: Callable[[], None] = lambda: None) -> None:
        """Let the next `commands()` hold a PING; whatever the server answers proves that it lives."""
        self.fence(Ticket(on_answer))

    @property
    def subject(self) -> str:
        """What is subscribed, for people: three names at most."""
        routes = itertools.chain.from_iterable(routes.values() for routes in self._wishes.values())
        names = [repr(route.name) for route in itertools.islice(routes, 4)]  # of perhaps 100 000
        return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")

    @property
    def is_stalled(self) -> bool:
        """Whether a mailbox asked in the last `receive` that its reader stop."""
        return self._deliveries.is_stalled

    def receive(self, backlog: deque[Any]) -> bool:
        """Deal with what the server said, a turn's worth of it; whether there is more to do.

        `is_stalled` tells whether a mailbox asks its reader to stop; what was read until then is taken.

        Raises:
            OutOfStep: A reply was not the one that was due.
        """
        deliveries = self._deliveries
        deliveries.is_stalled = False
        try:
            left: float = TURN
            while (left := deliveries.hand_out(left)) > 0 and backlog:
                if (item := deliveries.take(backlog)) is not NOTHING:
                    self._on_other(item)
        except BaseException:
            deliveries.hand_out(math.inf)  # what came before the failure counts
            raise
        return bool(backlog or deliveries)

    def expire(self, now: float) -> float:
        """Let quiet trails look after their histories; when the next one is due."""
        return self._reads.expire(now)

    def end(self, reason: str = "closed") -> None:
        """The session has ended: nothing is on the wire, and messages may be missing from here on."""
        self._is_live = False
        self._deliveries.hand_out(math.inf)
        routes = itertools.chain.from_iterable(routes.values() for routes in self._wishes.values())
        self._tear(routes, reason)
        self._reads.end()
        bursts = [*(due for due in self._due if isinstance(due, _Burst)), *self._fences]
        forgotten = list(self._wire)
        self._wire.clear()
        self._due.clear()
        self._fences.clear()
        self._settle(forgotten, is_on=False)
        for burst in bursts:
            if burst.ticket is not None:
                burst.ticket.release()

    # -- inside ------------------------------------------------------------------------------------

    def _served(self) -> set[Mailbox]:
        """Who wants something of this node of a cluster; it does not speak for the others."""
        routes = itertools.chain.from_iterable(routes.values() for routes in self._wishes.values())
        return {mailbox for route in routes for mailbox in route.mailboxes()}

    def _on_other(self, item: Any) -> None:
        """What the server said that is no message. All messages before it were handed out."""
        if item.__class__ is self._push:
            self._on_shard_left(Target(Kind.SHARD, item[1]))
            return
        if isinstance(item, ErrorReply) and str(item).startswith("LOADING"):
            raise OutOfStep("the server is still loading its data")
        if not self._due:
            raise OutOfStep(f"a reply that nobody asked for: {type(item).__name__}")
        due = self._due[0]
        if isinstance(due, Read):
            if due.is_complete_with(item):
                self._due.popleft()
                self._on_read(due)
        elif isinstance(item, ErrorReply):
            due.errors.append(str(item))
        elif item == due.token:
            self._due.popleft()
            self._on_fence(due)
        else:
            raise OutOfStep(f"a fence was due, not {type(item).__name__}")

    def _on_shard_left(self, target: Target) -> None:
        """A channel is not subscribed any more: because we said so, or its slot has left the server."""
        if target not in self._wire:
            return
        for due in self._due:  # we said so, and have perhaps asked for it again since
            if isinstance(due, _Burst) and due.wire is Wire.LEAVING and target in due.targets:
                return
        route = self._wishes[target.kind].get(target.key)
        if route is not None:
            self._tear([route], "the slot of the channel has left the node", GapReason.MOVED)
        del self._wire[target]
        if self._redirected is not None:
            self._redirected([target], Redirect("LEFT", slot_of(target.key)))

    def _on_read(self, read: Read) -> None:
        """All that a trail has asked for is here. Nothing is staged before it, see `_receive`."""
        trail = read.trail
        mailbox, is_joined = trail.mailbox, trail.is_joined
        reason = self._reads.finish(read)
        redirect = None if reason is None or self._redirected is None else redirect_of(reason)
        if redirect is not None and self._redirected is not None:
            self._redirected([self.target_of(trail.topic)], redirect)
        elif reason is not None:  # to its subscriber that is a topic which was refused
            self._reads.refuse(trail, reason)
            self.remove(mailbox, (trail.topic,), Ticket())
            if is_joined:
                mailbox.put(SubscribeRefused({trail.topic.name: reason}))
        if mailbox.staged:
            self._deliveries.touch(mailbox)

    def _on_fence(self, burst: _Burst) -> None:
        if burst.ticket is not None:
            burst.ticket.release()
        # a target that a later burst has touched is that burst's matter
        known = self._wire.get
        targets = [target for target in burst.targets if known(target) is burst]
        is_alone = len(burst.targets) == 1
        burst.targets = ()
        errors = burst.errors
        if self._redirected is not None and errors and burst.wire is Wire.ASKED:
            redirect = redirect_of(errors[-1])
            if redirect is not None:
                for target in targets:
                    del self._wire[target]
                self._redirected(targets, redirect)
                return
        if not errors and burst.wire is Wire.ASKED:
            burst.wire = Wire.ON
            self._settle(targets, is_on=True)
            return
        for target in targets:
            del self._wire[target]
        if not errors or burst.wire is Wire.LEAVING:
            self._settle(targets, is_on=False)
        elif is_alone:
            for target in targets:
                self._refuse(target, errors[-1])
        else:
            self._alone.update(targets)
            self._dirty.update(dict.fromkeys(targets))

    def _tear(self, routes: Iterable[Route], cause: str, reason: GapReason = GapReason.RECONNECTED) -> None:
        """Messages of these may be missing from here on, until they are confirmed again; not of those
        that the server was not told of."""
        lost: defaultdict[Mailbox, dict[Hashable, str]] = defaultdict(dict)
        wire = self._wire
        for route in routes:
            target = route.target
            if (burst := wire.get(target)) is None:
                continue
            is_on = burst.wire is Wire.ON
            for mailbox in route.live_mailboxes():
                # lost before and asked for again: messages may have come before it was confirmed
                if is_on or mailbox.has_lost(target):
                    lost[mailbox][target] = route.name
        for mailbox, gone in lost.items():
            mailbox.open_hole(gone, cause, reason, by=self)
            self._torn[mailbox] = None

    def _differences(self) -> dict[tuple[Kind, Wire], list[Target]]:
        """What the server is to be told, by command."""
        dirty, self._dirty = self._dirty, {}
        bursts: dict[tuple[Kind, Wire], list[Target]] = {}
        if self._asks_all:  # there is nothing to compare with, which would take 1 µs for each
            self._asks_all = False
            for kind, routes in self._wishes.items():
                if routes:
                    bursts[kind, Wire.ASKED] = [route.target for route in routes.values()]
            self._settle([target for target in dirty if not self.is_wanted(target)], is_on=False)
            return bursts
        for target in dirty:
            wanted = self.is_wanted(target)
            state = self._wire_state(target)
            if wanted != (state in (Wire.ASKED, Wire.ON)):
                becomes = Wire.ASKED if wanted else Wire.LEAVING
                bursts.setdefault((target.kind, becomes), []).append(target)
            elif state in (None, Wire.ON):  # wished away and back before anything was sent
                self._settle((target,), is_on=wanted)
        return bursts

    def _settle(self, targets: Sequence[Target], *, is_on: bool) -> None:
        """The server knows of targets, or does not any more, as their subscribers want it.

        Unless those have changed their minds; then it is dirty, and the next `commands` sees to it.
        """
        has_reads = bool(self._reads)
        if not self._tickets and not (is_on and (self._torn or has_reads)):
            return
        found: defaultdict[Mailbox, list[Target]] = defaultdict(list)
        wishes, torn, tickets = self._wishes, self._torn, self._tickets
        for target in targets:
            route = wishes[target.kind].get(target.key)
            if (route is not None) is not is_on:
                continue
            if route is not None and torn:
                if (only := route.only) is not None:  # without a call: 0.1 µs less for each
                    found[only].append(target)
                else:
                    for mailbox in route.mailboxes():
                        found[mailbox].append(target)
            if route is not None and has_reads:
                for trail in route.trails():
                    self._reads.set_out(trail)
            if tickets:
                for ticket in tickets.pop(target, ()):
                    ticket.release()
        for mailbox, back in found.items():
            self._found(mailbox, back)

    def _refuse(self, target: Target, reason: str) -> None:
        """Nobody can have this target: whoever asks for it just now is told, all others in band."""
        route = self._wishes[target.kind].pop(target.key, None)
        tickets = self._tickets.pop(target, [])
        if route is None:
            route = Route(target, target.key.decode())
        for ticket in tickets:
            ticket.refused[route.name] = reason
        for mailbox in route.mailboxes():
            trail = self._reads.of(mailbox, target)
            if mailbox.has_lost(target) or (trail is not None and trail.is_joined):
                mailbox.put(SubscribeRefused({route.name: reason}))
            self._found(mailbox, (target,))
            self._reads.leave(mailbox, target)
        for ticket in tickets:
            ticket.release()

    def _found(self, mailbox: Mailbox, targets: Iterable[Target]) -> None:
        """Targets that may have been lost with the connection are back, or not wanted any more."""
        if mailbox in self._torn and mailbox.found(targets):
            del self._torn[mailbox]

    def _wait_for(self, target: Target, ticket: Ticket) -> None:
        ticket.hold()
        self._tickets.setdefault(target, []).append(ticket)

    def _wire_state(self, target: Target) -> Wire | None:
        burst = self._wire.get(target)
        return None if burst is None else burst.wire

    def _batches(self, kind: Kind, targets: list[Target]) -> Iterator[list[Target]]:
        """What one command may name: all of it is done, or nothing."""
        together = targets
        if self._alone:
            together = [target for target in targets if target not in self._alone]
        # channels of several slots in one command are refused: CROSSSLOT
        groups = _by_slot(together) if kind is Kind.SHARD else [together]
        for group in groups:
            for start in range(0, len(group), BATCH):
                yield group[start : start + BATCH]
        for target in targets:
            if target in self._alone:
                self._alone.discard(target)
                yield [target]

    def _new_token(self) -> bytes:
        return b"%d" % next(self._tokens)

    def _send_fence(self, burst: _Burst) -> Command:
        self._due.append(burst)
        return (b"PING", burst.token)


def _by_slot(targets: Iterable[Target]) -> Iterable[list[Target]]:
    """Channels of a cluster, those of each slot together."""
    groups: defaultdict[int, list[Target]] = defaultdict(list)
    for target in targets:
        groups[slot_of(target.key)].append(target)
    return groups.values()
