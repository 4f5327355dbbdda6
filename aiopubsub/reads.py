"""Which trails read when, and who waits for them.

Trails ask on the listening connection, a few at a time. Who subscribes waits until a trail is joined,
who drains until it is live.

Lives here: the trails of one router, by mailbox and target; turns, looks at quiet histories, tickets.
Must not live here: what a trail does with an answer, subscriptions. The router owns one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .dialogue import Command
from .errors import ErrorReply, PubSubError
from .mailbox import Mailbox
from .routes import Target, Ticket
from .trail import Stage, Trail, Unreadable

__all__ = ["Read", "Reads"]

READS = 8
"""Trails that may wait for a page at a time, so that 8 MB of them are on their way at most."""

AUDIT_S = 60.0
"""How often a trail that is quiet looks whether the history is still the one it follows."""


class Read:
    """What a trail has asked for, until all of it is here."""

    __slots__ = ("missing", "replies", "trail")

    def __init__(self, trail: Trail, missing: int) -> None:
        self.trail: Trail = trail
        self.missing: int = missing  # replies
        self.replies: list[Any] = []

    def is_complete_with(self, reply: object) -> bool:
        """Take a reply; whether it was the last."""
        self.replies.append(reply)
        return len(self.replies) == self.missing


class Reads:
    """The trails of one listening connection."""

    def __init__(self) -> None:
        self._trails: dict[Mailbox, dict[Target, Trail]] = {}
        self._wanting: dict[Trail, None] = {}  # that want to ask, in order
        self._reading: dict[Trail, Read] = {}  # whose answers are due
        self._joining: dict[Trail, list[Ticket]] = {}  # to be released when it is joined
        self._catching_up: dict[Trail, list[Ticket]] = {}  # to be released when it is live
        self._audits: dict[Trail, float] = {}  # when the next look is due, by the clock of `expire`

    def __bool__(self) -> bool:
        """Whether there are any trails."""
        return bool(self._trails)

    @property
    def can_ask(self) -> bool:
        """Whether `questions` would give some."""
        return bool(self._wanting) and len(self._reading) < READS

    def of(self, mailbox: Mailbox, target: Target) -> Trail | None:
        """The trail of a mailbox to a target, if it has one."""
        return self._trails.get(mailbox, {}).get(target)

    def add(self, target: Target, trail: Trail) -> None:
        """Let a mailbox go along a trail."""
        self._trails.setdefault(trail.mailbox, {})[target] = trail

    def leave(self, mailbox: Mailbox, target: Target) -> None:
        """A mailbox goes along its trail to a target no more, if it did."""
        trails = self._trails.get(mailbox, {})
        trail = trails.pop(target, None)
        if trail is None:
            return
        if not trails:
            del self._trails[mailbox]
        trail.off()
        self._wanting.pop(trail, None)
        self._release(self._joining, trail)
        self._release(self._catching_up, trail)

    def move(self, trail: Trail, target: Target, to: Reads) -> None:
        """Let a trail go on over another connection, once its channel is subscribed there."""
        trails = self._trails[trail.mailbox]
        del trails[target]
        if not trails:
            del self._trails[trail.mailbox]
        trail.off()
        self._wanting.pop(trail, None)
        self._reading.pop(trail, None)
        to.add(target, trail)
        for waiting, there in ((self._joining, to._joining), (self._catching_up, to._catching_up)):
            if tickets := waiting.pop(trail, None):
                there[trail] = tickets

    def wait_for_join(self, trail: Trail, ticket: Ticket) -> None:
        """Let a ticket wait until a trail has begun."""
        if not trail.is_joined:
            ticket.hold()
            self._joining.setdefault(trail, []).append(ticket)

    def catch_up(self, mailbox: Mailbox, ticket: Ticket) -> None:
        """Let a ticket wait until all that its histories hold has been put into a mailbox."""
        for trail in self._trails.get(mailbox, {}).values():
            if trail.state is not Stage.LIVE:
                ticket.hold()
                self._catching_up.setdefault(trail, []).append(ticket)

    def make_use_of_room(self, mailbox: Mailbox) -> None:
        """A mailbox has room again: read on for it."""
        for trail in self._trails.get(mailbox, {}).values():
            trail.has_room()
            self.let_ask(trail)

    def set_out(self, trail: Trail) -> None:
        """The channel of a trail is subscribed."""
        if trail.state is Stage.OFF:
            trail.on()
            self.let_ask(trail)

    def let_ask(self, trail: Trail) -> None:
        """A trail may have something to ask for."""
        if trail.wants_answer and trail not in self._reading:
            self._wanting[trail] = None

    def questions(self) -> Iterator[tuple[Read, list[Command]]]:
        """What the next trails ask for, each with the read that takes the replies."""
        while self.can_ask:
            trail = next(iter(self._wanting))
            del self._wanting[trail]
            if commands := trail.ask():
                read = self._reading[trail] = Read(trail, len(commands))
                yield read, commands

    def finish(self, read: Read) -> str | None:
        """All replies are here: let the trail have them. Says why, if the history cannot be read.

        In a cluster that may be for now: `let_ask` lets the trail ask again.
        """
        trail = read.trail
        if self._reading.get(trail) is read:
            del self._reading[trail]
        else:
            return None  # it is read somewhere else meanwhile
        if trail.state is Stage.OFF:
            return None  # it was left meanwhile
        try:
            for reply in read.replies:
                if isinstance(reply, ErrorReply):
                    raise Unreadable(str(reply))
            trail.answer(read.replies)
        except Unreadable as error:
            return str(error)
        self.let_ask(trail)
        self._release(self._joining, trail)
        if trail.state is Stage.LIVE:
            self._release(self._catching_up, trail)
        return None

    def refuse(self, trail: Trail, reason: str) -> None:
        """Tell those who wait for a trail to begin why it never will."""
        for ticket in self._joining.get(trail, ()):
            ticket.refused[trail.topic.name] = reason

    def expire(self, now: float) -> float:
        """Let quiet trails look after their histories, each at its time; when the next one is due."""
        trails = [trail for trails in self._trails.values() for trail in trails.values()]
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

    def end(self) -> None:
        """The connection is gone."""
        for trails in self._trails.values():
            for trail in trails.values():
                trail.off()
        self._wanting.clear()
        self._reading.clear()

    def close(self, error: PubSubError) -> None:
        """Nothing more will come: whoever waits is told why."""
        for waiting in (self._joining, self._catching_up):
            for ticket in [ticket for tickets in waiting.values() for ticket in tickets]:
                ticket.error = error
                ticket.release()
            waiting.clear()

    @staticmethod
    def _release(waiting: dict[Trail, list[Ticket]], trail: Trail) -> None:
        for ticket in waiting.pop(trail, ()):
            ticket.release()
