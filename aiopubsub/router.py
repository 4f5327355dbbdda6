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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from enum import Enum
from types import MappingProxyType
from typing import Any

from .dialogue import Command, OutOfStep
from .errors import Closed, ErrorReply, PubSubError, SubscribeRefused
from .frame import MAGIC, NO_HEADERS, NONE_TOLD, VERSION, Place, unframe
from .mailbox import Mailbox
from .message import KeptMessage, Message
from .routes import Kind, Route, Target, Ticket
from .topic import Subscribable
from .trail import Stage, Trail, Unreadable

__all__ = ["Router"]

BATCH = 512
"""Channels in one command: 196 commands for 100 000 channels; a refused one costs 512 retries at most."""

TURN = 25_000
"""Deliveries after which `receive` lets the event loop go on: at 0.2 µs each, about 5 ms."""

STAGE = 100_000
"""Deliveries that are staged at a time, which takes 0.03 µs each, before mailboxes take theirs."""

READS = 8
"""Trails that may wait for a page at a time, so that 8 MB of them are on their way at most."""

AUDIT_S = 60.0
"""How often a trail that is quiet looks whether the history is still the one it follows."""

WAKE_COST = 25
"""Deliveries that take as long as to wake the task of one subscriber: 5 µs."""


class Wire(Enum):
    """What the server was told of a target, and whether it has confirmed."""

    ASKED = "asked"
    ON = "on"
    LEAVING = "leaving"


class _Burst:
    """One command and its fence."""

    __slots__ = ("error", "targets", "ticket", "token", "wire")

    def __init__(
        self,
        token: bytes,
        wire: Wire | None = None,
        targets: Sequence[Target] = (),
        ticket: Ticket | None = None,
    ) -> None:
        self.token = token
        self.wire = wire  # what its targets become when it is sent
        self.targets = targets
        self.ticket = ticket
        self.error: str | None = None


class _Reading:
    """What a trail has asked for."""

    __slots__ = ("missing", "replies", "trail")

    def __init__(self, trail: Trail, missing: int) -> None:
        self.trail = trail
        self.missing = missing  # replies
        self.replies: list[Any] = []


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
        self._mailboxes: dict[Mailbox, dict[Target, Trail]] = {}  # with the trails that fill them
        self._wishes: dict[Kind, dict[bytes, Route]] = {kind: {} for kind in Kind}
        self._wire: dict[Target, tuple[Wire, _Burst]] = {}
        self._dirty: dict[Target, None] = {}  # wish and wire may differ; in order of change
        self._alone: set[Target] = set()  # of a burst that failed: to be asked one by one
        self._tickets: dict[Target, list[Ticket]] = {}
        self._missing: dict[Mailbox, set[Target]] = {}  # lost with the connection, not yet back
        self._due: deque[_Burst | _Reading] = deque()  # sent, and not all of it answered
        self._wanting: dict[Trail, None] = {}  # trails that want to ask, in order
        self._reading: set[Trail] = set()  # trails whose answers are due
        self._joining: dict[Trail, list[Ticket]] = {}  # to be released when it is joined
        self._catching_up: dict[Trail, list[Ticket]] = {}  # to be released when it is live
        self._audits: dict[Trail, float] = {}  # when the next one is due, by the clock of `expire`
        self._fences: list[_Burst] = []  # to be sent, without a command
        self._touched: deque[Mailbox] = deque()  # have staged messages
        self._tokens = itertools.count(1)
        self._is_live = False
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
        its_trails = self._mailboxes.setdefault(mailbox, {})
        for topic in topics:
            target = Target.of(topic)
            wishes = self._wishes[target.kind]
            route = wishes.get(target.key)
            if route is None:
                route = wishes[target.key] = Route(target, topic.name)
                self._dirty[target] = None
            trail = its_trails.get(target)
            if trail is None and topic in trails:
                trail = its_trails[target] = trails[topic]
            route.add(topic, mailbox, trail)
            if self._wire_state(target) is not Wire.ON:
                self._wait_for(target, ticket)
            elif trail is not None and trail.state is Stage.OFF:
                self._set_out(trail)
            if trail is not None and not trail.is_joined:
                ticket.hold()
                self._joining.setdefault(trail, []).append(ticket)
        ticket.check()

    def remove(self, mailbox: Mailbox, topics: Iterable[Subscribable[object]], ticket: Ticket) -> None:
        """Let a mailbox have these topics no more, at once.

        The ticket is done when the server has forgotten those that nobody wants any more.
        """
        for topic in topics:
            target = Target.of(topic)
            self._found(mailbox, target)
            self._leave(mailbox, target)
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
        for trail in self._mailboxes.get(mailbox, {}).values():
            if trail.state is not Stage.LIVE:
                ticket.hold()
                self._catching_up.setdefault(trail, []).append(ticket)
        ticket.check()

    def make_use_of_room(self, mailbox: Mailbox) -> None:
        """A mailbox has room again: read on for it."""
        for trail in self._mailboxes.get(mailbox, {}).values():
            trail.has_room()
            self._let_ask(trail)

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
        for waiting in (self._joining, self._catching_up):
            for ticket in [ticket for tickets in waiting.values() for ticket in tickets]:
                ticket.error = error
                ticket.release()
            waiting.clear()
        for mailbox in self._mailboxes:
            if not isinstance(error, Closed):
                mailbox.put(error)
            mailbox.end()
        self._mailboxes.clear()

    # -- what the session tells and asks -----------------------------------------------------------

    def begin(self) -> None:
        """A session begins: the server knows of nothing, all wishes are to be sent."""
        self._is_live = True
        for kind, routes in self._wishes.items():
            self._dirty.update(dict.fromkeys(Target(kind, key) for key in routes))

    def commands(self) -> list[Command]:
        """What to send now, in order. Asked again, it is empty until something has changed."""
        if not self._is_live or not (self._dirty or self._fences or self._wanting):
            return []
        bursts: dict[tuple[Kind, Wire], list[Target]] = {}
        for target in self._dirty:
            wanted = target.key in self._wishes[target.kind]
            state = self._wire_state(target)
            if wanted != (state in (Wire.ASKED, Wire.ON)):
                becomes = Wire.ASKED if wanted else Wire.LEAVING
                bursts.setdefault((target.kind, becomes), []).append(target)
            elif state in (None, Wire.ON):
                self._settle(target)  # wished away and back before anything was sent
        self._dirty.clear()
        commands: list[Command] = []
        for (kind, becomes), targets in bursts.items():
            verb = kind.value[becomes is Wire.LEAVING]
            for batch in self._batches(targets):
                burst = _Burst(self._new_token(), becomes, batch)
                for target in batch:
                    self._wire[target] = (becomes, burst)
                commands.append((verb, *(target.key for target in batch)))
                commands.append(self._send_fence(burst))
        commands.extend(map(self._send_fence, self._fences))
        self._fences.clear()
        while self._wanting and len(self._reading) < READS:
            trail = next(iter(self._wanting))
            del self._wanting[trail]
            if questions := trail.ask():
                self._reading.add(trail)
                self._due.append(_Reading(trail, len(questions)))
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
            while (left := self._settle_mailboxes(left)) > 0 and backlog:
                self._receive(backlog)
        except BaseException:
            self._settle_mailboxes(math.inf)  # what came before the failure counts
            raise
        return bool(backlog or self._touched)

    def expire(self, now: float) -> float:
        """Let quiet trails look after their histories, each at its time; when the next one is due."""
        trails = [trail for trails in self._mailboxes.values() for trail in trails.values()]
        audits = self._audits
        for count, trail in enumerate(trails):
            if trail not in audits:  # spread out, so that not all look at once
                audits[trail] = now + AUDIT_S * (1 - count * 0.618 % 1)
            elif audits[trail] <= now:
                audits[trail] = now + AUDIT_S
                if trail.state is Stage.LIVE and trail not in self._reading:
                    self._wanting[trail] = None
        self._audits = {trail: audits[trail] for trail in trails}
        return min(self._audits.values(), default=math.inf)

    def end(self, reason: str = "closed") -> None:
        """The session has ended: nothing is on the wire, and messages may be missing from here on."""
        self._is_live = False
        self._settle_mailboxes(math.inf)
        lost: dict[Mailbox, list[str]] = {}
        for target, (state, _) in self._wire.items():
            route = self._wishes[target.kind].get(target.key)
            if route is None:
                continue
            for mailbox in route.live_mailboxes():
                if state is Wire.ON:
                    self._missing.setdefault(mailbox, set()).add(target)
                # lost before and asked for again: messages may have come before it was confirmed
                if target in self._missing.get(mailbox, ()):
                    lost.setdefault(mailbox, []).append(route.name)
        for mailbox, names in lost.items():
            mailbox.open_hole(names, reason)
        for trails in self._mailboxes.values():
            for trail in trails.values():
                trail.off()
        bursts = [*(due for due in self._due if isinstance(due, _Burst)), *self._fences]
        forgotten = [target for target in self._wire if target.key not in self._wishes[target.kind]]
        self._wire.clear()
        self._due.clear()
        self._wanting.clear()
        self._reading.clear()
        self._fences.clear()
        for target in forgotten:
            self._settle(target)
        for burst in bursts:
            if burst.ticket is not None:
                burst.ticket.release()

    # -- the path of a message -------------------------------------------------------------------

    def _receive(self, backlog: deque[Any]) -> None:  # noqa: C901, PLR0912, PLR0915  # one loop, see below
        """Stage messages, up to the next reply; or deal with that, if it is first.

        One loop, without a call for each message that could be spared: it is what receiving costs.
        Each push is let go of before the next one, so few objects are alive and Python's garbage
        collector sleeps: 0.03 µs less. Messages of one route that follow each other are staged
        together if it has many mailboxes: 0.1 µs less for each of them.
        """
        push = self._push
        channels = self._wishes[Kind.CHANNEL]
        patterns = self._wishes[Kind.PATTERN]
        magic = MAGIC[0]
        touched = self._touched
        running: Route | None = None  # whose messages are in the run
        run: list[Message[object]] = []
        uids: list[bytes] = []  # of its messages that follow on each other
        told: list[bytes] = []  # of a message's place
        most = 0  # messages of a run
        try:
            while backlog:
                item = backlog.popleft()
                if item.__class__ is not push:
                    if running is not None or touched:  # what came before the reply is before it
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
                    if end and len(told) == 4 and told[0] == VERSION and told[1].replace(b"-", b"", 1).isdigit():
                        payload, place = rest, head
                    elif (framed := unframe(payload)) is not None:
                        payload, headers, place = framed
                        told = [] if place is None else place.split(b" ")
                    elif payload.startswith(MAGIC):
                        route.count_malformed()
                if running is not None and route is not running:
                    self._stage(running, run, uids)
                    running, run, uids = None, [], []
                origin = route.origin if channel is None else route.first.origin_in(channel)
                if place is None:
                    message = Message(payload, payload, origin, headers)
                else:
                    message = KeptMessage(payload, payload, origin, headers, place)
                if (mailbox := route.only) is None:
                    if running is None:
                        running, most = route, STAGE // len(route.first.mailboxes)
                    if place is not None and (not uids or told[3] == uids[-1]) and len(uids) == len(run):
                        uids.append(told[2])
                    run.append(message)
                    if len(run) >= most:
                        return
                else:
                    if not (staged := mailbox.staged):
                        touched.append(mailbox)
                    staged.append(message)
        finally:  # also after a failure
            if running is not None:
                self._stage(running, run, uids)

    def _stage(self, route: Route, run: list[Message[object]], uids: list[bytes]) -> None:
        """Give a run of messages to every mailbox of a route, to take when it is settled.

        The uids are those of the first messages of the run that follow on each other, perhaps of all.
        """
        for group in route.groups.values():
            messages = run if group is route.first else [group.own(message) for message in run]
            for mailbox, trail in group.mailboxes.items():
                is_new = not mailbox.staged
                if trail is None:
                    mailbox.staged += messages
                else:
                    trail.push(messages, uids)
                    self._let_ask(trail)
                if is_new and mailbox.staged:
                    self._touched.append(mailbox)

    # -- inside ------------------------------------------------------------------------------------

    def _settle_mailboxes(self, left: float) -> float:
        """Let mailboxes take what was staged, as long as a turn's deliveries are left; how many are."""
        touched = self._touched
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
        if isinstance(due, _Reading):
            due.replies.append(reply)
            if len(due.replies) == due.missing:
                self._due.popleft()
                self._on_read(due)
        elif isinstance(reply, ErrorReply):
            due.error = str(reply)
        elif reply == due.token:
            self._due.popleft()
            self._on_fence(due)
        else:
            raise OutOfStep(f"a fence was due, not {type(reply).__name__}")

    def _on_read(self, reading: _Reading) -> None:
        """All that a trail has asked for is here."""
        trail, mailbox = reading.trail, reading.trail.mailbox
        self._reading.discard(trail)
        if trail.state is Stage.OFF:
            return  # it was left meanwhile
        is_new = not mailbox.staged
        try:
            for reply in reading.replies:
                if isinstance(reply, ErrorReply):
                    raise Unreadable(str(reply))
            trail.answer(reading.replies)
        except Unreadable as error:
            self._give_up(trail, str(error))
            return
        if is_new and mailbox.staged:
            self._touched.append(mailbox)
        self._let_ask(trail)
        self._release(self._joining, trail)
        if trail.state is Stage.LIVE:
            self._release(self._catching_up, trail)

    def _on_fence(self, burst: _Burst) -> None:
        if burst.ticket is not None:
            burst.ticket.release()
        # a target that a later burst has touched is that burst's matter
        targets = [target for target in burst.targets if self._wire[target][1] is burst]
        if burst.error is None and burst.wire is Wire.ASKED:
            for target in targets:
                self._wire[target] = (Wire.ON, burst)
                self._settle(target)
            return
        for target in targets:
            del self._wire[target]
            if burst.error is None or burst.wire is Wire.LEAVING:
                self._settle(target)
            elif len(burst.targets) == 1:
                self._refuse(target, burst.error)
            else:
                self._alone.add(target)
                self._dirty[target] = None

    def _settle(self, target: Target) -> None:
        """The server knows of a target what its subscribers want, unless they have changed their minds."""
        route = self._wishes[target.kind].get(target.key)
        if (route is not None) != (self._wire_state(target) is Wire.ON):
            return  # it is dirty: the next `commands` sees to it
        if self._missing and route is not None:
            for mailbox in route.mailboxes():
                self._found(mailbox, target)
        if route is not None:
            for trail in route.trails():
                self._set_out(trail)
        for ticket in self._tickets.pop(target, ()):
            ticket.release()

    def _refuse(self, target: Target, reason: str) -> None:
        """Nobody can have this target: whoever asks for it just now is told, all others in band."""
        route = self._wishes[target.kind].pop(target.key, None)
        tickets = self._tickets.pop(target, [])
        if route is None:
            route = Route(target, target.key.decode())
        for ticket in tickets:
            ticket.refused[route.name] = reason
        for mailbox in route.mailboxes():
            trail = self._mailboxes[mailbox].get(target)
            if target in self._missing.get(mailbox, ()) or (trail is not None and trail.is_joined):
                mailbox.put(SubscribeRefused({route.name: reason}))
            self._found(mailbox, target)
            self._leave(mailbox, target)
        for ticket in tickets:
            ticket.release()

    def _found(self, mailbox: Mailbox, target: Target) -> None:
        """A target that was lost with the connection is back, or not wanted any more."""
        missing = self._missing.get(mailbox)
        if missing is not None:
            missing.discard(target)
            if not missing:
                del self._missing[mailbox]
                mailbox.close_hole()

    def _set_out(self, trail: Trail) -> None:
        """The channel of a trail is subscribed."""
        if trail.state is Stage.OFF:
            trail.on()
            self._let_ask(trail)

    def _let_ask(self, trail: Trail) -> None:
        if trail.state is Stage.READING and trail not in self._reading:
            self._wanting[trail] = None

    def _leave(self, mailbox: Mailbox, target: Target) -> None:
        """A mailbox goes along a trail no more."""
        trail = self._mailboxes.get(mailbox, {}).pop(target, None)
        if trail is not None:
            trail.off()
            self._wanting.pop(trail, None)
            self._release(self._joining, trail)
            self._release(self._catching_up, trail)

    def _give_up(self, trail: Trail, reason: str) -> None:
        """The history cannot be read: to its subscriber that is a topic which was refused."""
        mailbox, topic, is_joined = trail.mailbox, trail.topic, trail.is_joined
        for ticket in self._joining.get(trail, ()):
            ticket.refused[topic.name] = reason
        nobody = Ticket(lambda: None)
        self.remove(mailbox, (topic,), nobody)
        if is_joined:
            mailbox.put(SubscribeRefused({topic.name: reason}))

    @staticmethod
    def _release(waiting: dict[Trail, list[Ticket]], trail: Trail) -> None:
        for ticket in waiting.pop(trail, ()):
            ticket.release()

    def _wait_for(self, target: Target, ticket: Ticket) -> None:
        ticket.hold()
        self._tickets.setdefault(target, []).append(ticket)

    def _wire_state(self, target: Target) -> Wire | None:
        entry = self._wire.get(target)
        return None if entry is None else entry[0]

    def _batches(self, targets: list[Target]) -> Iterator[list[Target]]:
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
