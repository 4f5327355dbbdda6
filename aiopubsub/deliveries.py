"""The path of a message: from what the server said into mailboxes.

Messages are staged at their mailboxes and settled together. What takes long is done a turn's worth at
a time, so that the event loop goes on.

Lives here: one loop over pushes, fan-out, turns. Must not live here: what the server was asked for,
replies. A router owns one, and is given what is not a message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .dialogue import OutOfStep
from .frame import MAGIC, NO_HEADERS, NONE_TOLD, VERSION, Place, unframe
from .mailbox import Mailbox
from .message import KeptMessage, Message
from .routes import Kind, Route
from .trail import Trail

__all__ = ["NOTHING", "TURN", "Deliveries"]

NOTHING = object()
"""What `Deliveries.take` returns when all that it saw was messages; a reply may be `None`."""

TURN = 25_000
"""Deliveries after which `receive` lets the event loop go on: at 0.2 µs each, about 5 ms."""

STAGE = 100_000
"""Deliveries that are staged at a time, which takes 0.03 µs each, before mailboxes take theirs."""

WAKE_COST = 75
"""Deliveries that take as long as to wake the task of one subscriber and to let it run: 15 µs."""

_SHARD_LEFT = b"sunsubscribe"
"""The push that says that a channel is not subscribed any more: as we asked, or because its slot has
left the node."""


class _Run(NamedTuple):
    """Messages that are to be staged for some mailboxes."""

    messages: list[Message[object]]
    uids: list[bytes]
    """Of the first of them that follow on each other in their history, perhaps of all."""
    mailboxes: Iterator[tuple[Mailbox, Trail | None]]


class Deliveries:
    """Messages on their way to the mailboxes of one connection.

    Args:
        push: The type of a RESP3 push, to tell it from a reply; a list of the push's parts.
        wishes: Who wants what. Looked at for each message.
        let_ask: Called with a trail that a message was given to: it may have to ask for others.

    Attributes:
        is_stalled: Whether a mailbox has asked since this was last reset that its reader stop.
    """

    def __init__(
        self,
        push: type[list[Any]],
        wishes: Mapping[Kind, dict[bytes, Route]],
        let_ask: Callable[[Trail], None],
    ) -> None:
        self.is_stalled: bool = False
        self._push = push
        self._channels = wishes[Kind.CHANNEL]
        self._patterns = wishes[Kind.PATTERN]
        self._shards = wishes[Kind.SHARD]
        self._let_ask = let_ask
        self._runs: deque[_Run] = deque()  # to be staged
        self._touched: deque[Mailbox] = deque()  # have staged messages

    def __bool__(self) -> bool:
        """Whether there are messages that no mailbox has taken yet."""
        return bool(self._runs or self._touched)

    def touch(self, mailbox: Mailbox) -> None:
        """Something was staged at a mailbox."""
        self._touched.append(mailbox)

    def hand_out(self, left: float) -> float:
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

    def take(self, backlog: deque[Any]) -> Any:  # noqa: C901, PLR0912, PLR0915  # one loop, see below
        """Take messages, up to what is none: a reply, or the push that a channel of a shard has left.

        Returns that if it is first, else `NOTHING`.

        One loop, without a call for each message that could be spared: it is what receiving costs.
        Each push is let go of before the next one, so few objects are alive and Python's garbage
        collector sleeps: 0.03 µs less. Messages of one route that follow each other make a run if it
        has many mailboxes, to be staged for each of them at once: 0.1 µs less for each.
        """
        push = self._push
        channels, patterns, shards = self._channels, self._patterns, self._shards
        usual, routes = (b"smessage", shards) if shards else (b"message", channels)  # looked for first
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
                    return self._in_turn(item, backlog, is_first=running is None)
                kind = item[0]
                try:
                    if kind == usual:
                        route, channel, payload = routes[item[1]], None, item[2]
                    elif kind == b"pmessage":
                        route, channel, payload = patterns[item[1]], item[2], item[3]
                    elif kind == b"message":
                        route, channel, payload = channels[item[1]], None, item[2]
                    elif kind == b"smessage":
                        route, channel, payload = shards[item[1]], None, item[2]
                    elif kind == _SHARD_LEFT:
                        return self._in_turn(item, backlog, is_first=running is None)
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
        return NOTHING

    def _in_turn(self, item: Any, backlog: deque[Any], *, is_first: bool) -> Any:
        """What is no message comes after all messages before it."""
        if is_first and not self._runs and not self._touched:
            return item
        backlog.appendleft(item)
        return NOTHING

    def _add_run(self, route: Route, run: list[Message[object]], uids: list[bytes]) -> None:
        """A run of messages is to be staged for all mailboxes that a route has now."""
        for group in route.groups.values():
            messages = run if group is route.first else [group.own(message) for message in run]
            # not `list(….items())`: 10 000 tuples would wake the garbage collector in the midst of it
            mailboxes = zip(list(group.mailboxes), list(group.mailboxes.values()), strict=True)
            self._runs.append(_Run(messages, uids, mailboxes))

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
                    self._let_ask(trail)
                if is_new and mailbox.staged:
                    touched.append(mailbox)
                left -= len(messages)
                if left <= 0:
                    return
            runs.popleft()
