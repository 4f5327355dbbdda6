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

Lives here: decisions, from values to values. Must not live here: sockets, waiting, clocks. The session
calls `begin`, `receive`, `commands`, `ping` and `end`; a subscriber calls `add`, `remove` and `fence`.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from enum import Enum
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple

from .dialogue import Command, OutOfStep
from .errors import Closed, ErrorReply, PubSubError, SubscribeRefused
from .frame import MAGIC, NO_HEADERS, NONE_TOLD, VERSION, Place, unframe
from .mailbox import Mailbox
from .message import KeptMessage, Message
from .reads import Read, Reads
from .routes import Kind, Route, Target, Ticket
from .topic import Subscribable
from .trail import Trail

__all__ = ["Router"]

BATCH = 512
"""Channels in one command: 196 commands for 100 000 channels; a refused one costs 512 retries at most."""

TURN = 25_000
"""Deliveries after which `receive` lets the event loop go on: at 0.2 µs each, about 5 ms."""

STAGE = 100_000
"""Deliveries that are staged at a time, which takes 0.03 µs each, before mailboxes take theirs."""

WAKE_COST = 75
"""Deliveries that take as long as to wake the task of one subscriber and to let it run: 15 µs."""


_key_of = attrgetter("key")
_name_of = attrgetter("name")
_target_of = attrgetter("target")


class Wire(Enum):
    """What the server was told of a target, and whether it has confirmed."""

    ASKED = "asked"
    ON = "on"
    LEAVING = "leaving"


class _Burst:
    """One command and its fence.

    Attributes:
        wire: What the server knows of its targets, all of them at once: an object of each target's own
            would be 100 000 for the garbage collector to look through again and again.
        targets: What it is about, until the fence is back.
    """

    __slots__ = ("error", "targets", "ticket", "token", "wire")

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
        self.error: str | None = None


class _Run(NamedTuple):
    """Messages that are to be staged for some mailboxes."""

    messages: list[Message[object]]
    uids: list[bytes]
    """Of the first of them that follow on each other in their history, perhaps of all."""
    mailboxes: Iterator[tuple[Mailbox, Trail | None]]


class Router:
    """The decisions of one listening connection.

    Args:
        push: The type of a RESP3 push, to tell it from a reply; a list of the push's parts.

    Attributes:
        is_stalled: Whether a mailbox asked in the last `receive` that its reader stop.
    """

    def __init__(self, push: type[list[Any]]) -> None:
        self.is_stalled = False
        self._push = push
        self._mailboxes: dict[Mailbox, None] = {}
        self._reads = Reads()
        self._wishes: dict[Kind, dict[bytes, Route]] = {kind: {} for kind in Kind}
        self._wire: dict[Target, _Burst] = {}  # by the last burst that a target was in
        self._dirty: dict[Target, None] = {}  # wish and wire may differ; in order of change
        self._alone: set[Target] = set()  # of a burst that failed: to be asked one by one
        self._tickets: dict[Target, list[Ticket]] = {}
        self._missing: dict[Mailbox, set[Target]] = {}  # lost with the connection, not yet back
        self._due: deque[_Burst | Read] = deque()  # sent, and not all of it answered
        self._fences: list[_Burst] = []  # to be sent, without a command
        self._runs: deque[_Run] = deque()  # to be staged
        self._touched: deque[Mailbox] = deque()  # have staged messages
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
            target = Target.of(topic)
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
        targets = [Target.of(topic) for topic in topics]
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
        target = Target.of(topic)
        route = self._wishes[target.kind].get(target.key)
        return route is not None and route.holds(topic, mailbox)

    def fence(self, ticket: Ticket) -> None:
        """Let a ticket be done when all that the server has sent until now has been received."""
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

    def close(self, error: PubSubError) -> None:
        """Nothing more will come: whoever waits is told why, and every mailbox ends."""
        self._closed_by = error
        for ticket in [ticket for tickets in self._tickets.values() for ticket in tickets]:
            ticket.error = error
            ticket.release()
        self._tickets.clear()
        self._reads.close(error)
        for mailbox in self._mailboxes:
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
            for batch in self._batches(targets):
                burst = _Burst(self._new_token(), becomes, batch)
                self._wire.update(dict.fromkeys(batch, burst))
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

    def receive(self, backlog: deque[Any]) -> bool:
        """Deal with what the server said, a turn's worth of it; whether there is more to do.

        `is_stalled` tells whether a mailbox asks its reader to stop; what was read until then is taken.

        Raises:
            OutOfStep: A reply was not the one that was due.
        """
        self.is_stalled = False
        try:
            left: float = TURN
            while (left := self._hand_out(left)) > 0 and backlog:
                self._receive(backlog)
        except BaseException:
            self._hand_out(math.inf)  # what came before the failure counts
            raise
        return bool(backlog or self._runs or self._touched)

    def expire(self, now: float) -> float:
        """Let quiet trails look after their histories; when the next one is due."""
        return self._reads.expire(now)

    def end(self, reason: str = "closed") -> None:
        """The session has ended: nothing is on the wire, and messages may be missing from here on."""
        self._is_live = False
        self._hand_out(math.inf)
        lost: defaultdict[Mailbox, list[Route]] = defaultdict(list)
        wire, on = self._wire, Wire.ON
        for routes in self._wishes.values():
            for route in routes.values():
                burst = wire.get(route.target)
                if burst is None:
                    continue
                for mailbox in route.live_mailboxes():
                    # lost before and asked for again: messages may have come before it was confirmed
                    if burst.wire is on or route.target in self._missing.get(mailbox, ()):
                        lost[mailbox].append(route)
        for mailbox, gone in lost.items():
            mailbox.open_hole(map(_name_of, gone), reason)
            self._missing.setdefault(mailbox, set()).update(map(_target_of, gone))
        self._reads.end()
        bursts = [*(due for due in self._due if isinstance(due, _Burst)), *self._fences]
        forgotten = list(wire)
        wire.clear()
        self._due.clear()
        self._fences.clear()
        self._settle(forgotten, is_on=False)
        for burst in bursts:
            if burst.ticket is not None:
                burst.ticket.release()

    # -- the path of a message -------------------------------------------------------------------

    def _receive(self, backlog: deque[Any]) -> None:  # noqa: C901, PLR0912, PLR0915  # one loop, see below
        """Take messages, up to the next reply; or deal with that, if it is first.

        One loop, without a call for each message that could be spared: it is what receiving costs.
        Each push is let go of before the next one, so few objects are alive and Python's garbage
        collector sleeps: 0.03 µs less. Messages of one route that follow each other make a run if it
        has many mailboxes, to be staged for each of them at once: 0.1 µs less for each.
        """
        push = self._push
        channels = self._wishes[Kind.CHANNEL]
        patterns = self._wishes[Kind.PATTERN]
        magic = MAGIC[0]
        runs, touched = self._runs, self._touched
        running: Route | None = None  # whose messages are in the run
        run: list[Message[object]] = []
        uids: list[bytes] = []  # of its messages that follow on each other
        told: list[bytes] = []  # of a message's place
        try:
            while backlog:
                item = backlog.popleft()
                if item.__class__ is not push:
                    if running is not None or runs or touched:  # what came before the reply is before it
                        backlog.appendleft(item)
                    else:
                        self._on_reply(item)
                    return
                kind = item[0]
                try:
                    if kind == b"message":
                        route, channel, payload = channels[item[1]], None, item[2]
                    elif kind == b"pmessage":
                        route, channel, payload = patterns[item[1]], item[2], item[3]
                    else:
                        continue  # confirmations: the fence says the same, once for all of a burst
                except KeyError:
                    continue  # nobody wants it any more
                if payload.__class__ is not bytes:
                    raise OutOfStep(f"a message of {type(payload).__name__}, not bytes")
                headers = NO_HEADERS
                place: Place | None = None
                if payload and payload[0] == magic:  # takes a third of what `startswith` does
                    # `unframe` for what is usual with a history, without a call: 0.2 µs less
                    head, end, rest = payload.partition(NONE_TOLD)
                    told = head.split(b" ", 4)
                    if (
                        end
                        and len(told) == 4
                        and told[0] == VERSION
                        and told[1].replace(b"-", b"", 1).isdigit()
                    ):
                        payload, place = rest, head
                    elif (framed := unframe(payload)) is not None:
                        payload, headers, place = framed
                        told = [] if place is None else place.split(b" ")
                    elif payload.startswith(MAGIC):
                        route.count_malformed()
                if running is not None and route is not running:
                    self._add_run(running, run, uids)
                    running, run, uids = None, [], []
                origin = route.origin if channel is None else route.first.origin_in(channel)
                if place is None:
                    message = Message(payload, payload, origin, headers)
                else:
                    message = KeptMessage(payload, payload, origin, headers, place)
                if (mailbox := route.only) is None or runs:
                    running = route
                    if place is not None and len(uids) == len(run) and (not uids or told[3] == uids[-1]):
                        uids.append(told[2])
                    run.append(message)
                else:
                    if not (staged := mailbox.staged):
                        touched.append(mailbox)
                    staged.append(message)
        finally:  # also after a failure
            if running is not None:
                self._add_run(running, run, uids)

    def _add_run(self, route: Route, run: list[Message[object]], uids: list[bytes]) -> None:
        """A run of messages is to be staged for all mailboxes that a route has now."""
        for group in route.groups.values():
            messages = run if group is route.first else [group.own(message) for message in run]
            self._runs.append(_Run(messages, uids, iter(list(group.mailboxes.items()))))

    def _stage(self) -> None:
        """Give the first runs to their mailboxes, to take when they are settled; `STAGE` deliveries.

        It may stop in the middle of a run, so that each mailbox gets all of a long one: its subscriber
        is woken once for 200 messages, and not once for ten, because there are 10 000 others.
        """
        runs, touched = self._runs, self._touched
        left = STAGE
        while runs and left > 0:
            messages, uids, mailboxes = runs[0]
            for mailbox, trail in mailboxes:
                is_new = not mailbox.staged
                if trail is None:
                    mailbox.staged += messages
                else:
                    trail.push(messages, uids)
                    self._reads.let_ask(trail)
                if is_new and mailbox.staged:
                    touched.append(mailbox)
                left -= len(messages)
                if left <= 0:
                    return
            runs.popleft()

    # -- inside ------------------------------------------------------------------------------------

    def _hand_out(self, left: float) -> float:
        """Let mailboxes take what came, as long as a turn's deliveries are left; how many are."""
        touched = self._touched
        while left > 0 and (touched or self._runs):
            if not touched:
                self._stage()
            while touched and left > 0:
                mailbox = touched.popleft()
                left -= len(mailbox.staged) + WAKE_COST
                if mailbox.settle():
                    self.is_stalled = True
        return left

    def _on_reply(self, reply: object) -> None:
        if isinstance(reply, ErrorReply) and str(reply).startswith("LOADING"):
            raise OutOfStep("the server is still loading its data")
        if not self._due:
            raise OutOfStep(f"a reply that nobody asked for: {type(reply).__name__}")
        due = self._due[0]
        if isinstance(due, Read):
            if due.is_complete_with(reply):
                self._due.popleft()
                self._on_read(due)
        elif isinstance(reply, ErrorReply):
            due.error = str(reply)
        elif reply == due.token:
            self._due.popleft()
            self._on_fence(due)
        else:
            raise OutOfStep(f"a fence was due, not {type(reply).__name__}")

    def _on_read(self, read: Read) -> None:
        """All that a trail has asked for is here. Nothing is staged before it, see `_receive`."""
        trail = read.trail
        mailbox, is_joined = trail.mailbox, trail.is_joined
        reason = self._reads.finish(read)
        if reason is not None:  # to its subscriber that is a topic which was refused
            self._reads.refuse(trail, reason)
            self.remove(mailbox, (trail.topic,), Ticket(lambda: None))
            if is_joined:
                mailbox.put(SubscribeRefused({trail.topic.name: reason}))
        if mailbox.staged:
            self._touched.append(mailbox)

    def _on_fence(self, burst: _Burst) -> None:
        if burst.ticket is not None:
            burst.ticket.release()
        # a target that a later burst has touched is that burst's matter
        targets = [target for target in burst.targets if self._wire[target] is burst]
        is_alone = len(burst.targets) == 1
        burst.targets = ()
        if burst.error is None and burst.wire is Wire.ASKED:
            burst.wire = Wire.ON
            self._settle(targets, is_on=True)
            return
        for target in targets:
            del self._wire[target]
        if burst.error is None or burst.wire is Wire.LEAVING:
            self._settle(targets, is_on=False)
        elif is_alone:
            for target in targets:
                self._refuse(target, burst.error)
        else:
            self._alone.update(targets)
            self._dirty.update(dict.fromkeys(targets))

    def _differences(self) -> dict[tuple[Kind, Wire], list[Target]]:
        """What the server is to be told, by command."""
        dirty, self._dirty = self._dirty, {}
        bursts: dict[tuple[Kind, Wire], list[Target]] = {}
        if self._asks_all:  # there is nothing to compare with, which would take 1 µs for each
            self._asks_all = False
            for kind, routes in self._wishes.items():
                if routes:
                    bursts[kind, Wire.ASKED] = [route.target for route in routes.values()]
            self._settle([target for target in dirty if not self._is_wanted(target)], is_on=False)
            return bursts
        for target in dirty:
            wanted = self._is_wanted(target)
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
        if not self._missing and not self._tickets and not self._reads:
            return
        found: defaultdict[Mailbox, list[Target]] = defaultdict(list)
        wishes, missing, tickets = self._wishes, self._missing, self._tickets
        for target in targets:
            route = wishes[target.kind].get(target.key)
            if (route is not None) is not is_on:
                continue
            if route is not None and missing:
                for mailbox in route.mailboxes():
                    found[mailbox].append(target)
            if route is not None and self._reads:
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
            if target in self._missing.get(mailbox, ()) or (trail is not None and trail.is_joined):
                mailbox.put(SubscribeRefused({route.name: reason}))
            self._found(mailbox, (target,))
            self._reads.leave(mailbox, target)
        for ticket in tickets:
            ticket.release()

    def _found(self, mailbox: Mailbox, targets: Iterable[Target]) -> None:
        """Targets that may have been lost with the connection are back, or not wanted any more."""
        missing = self._missing.get(mailbox)
        if missing is not None:
            missing.difference_update(targets)
            if not missing:
                del self._missing[mailbox]
                mailbox.close_hole()

    def _wait_for(self, target: Target, ticket: Ticket) -> None:
        ticket.hold()
        self._tickets.setdefault(target, []).append(ticket)

    def _is_wanted(self, target: Target) -> bool:
        return target.key in self._wishes[target.kind]

    def _wire_state(self, target: Target) -> Wire | None:
        burst = self._wire.get(target)
        return None if burst is None else burst.wire

    def _batches(self, targets: list[Target]) -> Iterator[list[Target]]:
        together = targets
        if self._alone:
            together = [target for target in targets if target not in self._alone]
        for start in range(0, len(together), BATCH):
            yield together[start : start + BATCH]
        for target in targets:
            if target in self._alone:
                self._alone.discard(target)
                yield [target]

    def _new_token(self) -> bytes:
        return b"%d" % next(self._tokens)

    def _send_fence(self, burst: _Burst) -> Command:
        self._due.append(burst)
        return (b"PING", burst.token)
