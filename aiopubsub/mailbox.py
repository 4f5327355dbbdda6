"""The bounded buffer between the connection and one subscriber.

Lives here: order, bounds, overflow policies, gaps at their place, exact counts. Must not live here:
waiting, decoding, the wire. The router puts; the subscriber pops, in the same step that returns the
item, so that no item is ever held by something that can be cancelled.

Messages lie in one queue in the order they came. What is not a message (a hole, an error) lies at its
place among them and takes no room. Holes that lost all messages before them stand at the front, at
most one for each reason, because nothing tells their order any more.

Messages that a history keeps are never dropped: their trail takes as many as there is room for, and
reads the others again later.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from operator import attrgetter
from typing import Any, TypeAlias, cast

from .errors import PubSubError, SlowConsumer
from .message import Gap, GapReason, KeptMessage, Message

__all__ = ["MESSAGE_OVERHEAD_BYTES", "Mailbox", "Overflow"]

MESSAGE_OVERHEAD_BYTES = 128
"""What a message takes beside its payload: `sys.getsizeof` of the `Message` with its GC head (72), of
the payload's `bytes` object (33), a slot in the queue (8), rounded up as the allocator does (16)."""

TAKE_BYTES = 256 * 1024
"""Bytes that a consumer may hold beside the buffer: many small messages, or a single large one."""

_payload = attrgetter("payload")

_NO_ITEMS: deque[Any] = deque(maxlen=0)
"""What all mailboxes with nothing in them share, because a `deque` of their own takes 760 bytes even
when it is empty. It can hold nothing; who puts something in makes a deque first."""

Item: TypeAlias = Message[object] | Gap | PubSubError


class Overflow(Enum):
    """What a full buffer does with the next message."""

    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    FAIL = "fail"
    BLOCK = "block"


@dataclass(slots=True, eq=False)
class _Hole:
    """A gap in the making: it grows until it is handed over as a `Gap`.

    Attributes:
        lost: What it waits for: channels and patterns that are not subscribed again yet.
        by: The connection that has lost them.
    """

    reason: GapReason
    started_s: float
    ended_s: float
    missed: int | None
    channels: dict[str, None] = field(default_factory=dict[str, None])
    lost: set[Hashable] = field(default_factory=set[Hashable])
    cause: str = ""
    by: object = None

    @property
    def is_open(self) -> bool:
        """Whether messages may be missing still."""
        return bool(self.lost)

    def swallow(self, other: _Hole) -> None:
        """Become one with another hole of the same reason."""
        self.started_s = min(self.started_s, other.started_s)
        self.ended_s = max(self.ended_s, other.ended_s)
        self.channels |= other.channels
        self.lost |= other.lost
        self.cause = self.cause or other.cause
        if self.missed is not None and other.missed is not None:
            self.missed += other.missed
        else:
            self.missed = None

    def to_gap(self) -> Gap:
        return Gap(
            self.reason,
            tuple(self.channels),
            self.missed,
            datetime.fromtimestamp(self.started_s, UTC),
            datetime.fromtimestamp(self.ended_s, UTC),
            cause=self.cause,
        )


_Other: TypeAlias = _Hole | Gap | PubSubError
"""What lies among the messages and is none."""


class Mailbox:
    """One subscriber's buffer.

    Args:
        buffer: Messages at most, at least 1.
        buffer_bytes: Bytes at most, payloads and `MESSAGE_OVERHEAD_BYTES` each. A message that is
            larger than this alone is still taken when no other is buffered.
        overflow: What happens to a message that does not fit.
        clock: Seconds since the epoch; asked when something is lost, never for a message that fits.

    Attributes:
        staged: Messages that the router has for it out of the batch in hand, until `settle`.
        wake: Called with the number of things that have become ready to pop. The subscriber sets it
            while it waits.
        on_room: Called when a mailbox is half empty again that made its reader stop (`BLOCK`), or that
            `wants_room`.
        wants_room: Whether there is more for it in a history than it had room for.
        delivered: Messages popped or taken.
        dropped: Messages that did not fit.
        gaps: Gaps popped.
        malformed: Messages that looked like a frame and were none; delivered as they came.
    """

    __slots__ = (
        "_bytes",
        "_clock",
        "_ended",
        "_front",
        "_is_stalled",
        "_items",
        "_limit",
        "_open_holes",
        "_others",
        "_overflowed",
        "buffer",
        "buffer_bytes",
        "delivered",
        "dropped",
        "gaps",
        "malformed",
        "on_room",
        "overflow",
        "staged",
        "wake",
        "wants_room",
    )

    def __init__(
        self, *, buffer: int, buffer_bytes: int, overflow: Overflow, clock: Callable[[], float]
    ) -> None:
        self.buffer: int = buffer
        self.buffer_bytes: int = buffer_bytes
        self.overflow: Overflow = overflow
        self.staged: list[Message[object]] = []
        self.wake: Callable[[int], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.delivered: int = 0
        self.dropped: int = 0
        self.gaps: int = 0
        self.malformed: int = 0
        self.wants_room: bool = False
        self._clock = clock
        self._items: deque[Message[object] | _Other] = _NO_ITEMS
        self._front: list[_Other] = []  # a few at most
        self._others = 0  # of `_items`: what is not a message
        self._limit = buffer  # length of `_items` at which nothing more fits; -1: takes nothing more
        self._bytes = 0
        self._open_holes: list[_Hole] = []
        self._is_stalled = False
        self._overflowed = False  # FAIL: full once, so nothing more is taken; until that is told
        self._ended = False

    @property
    def buffered(self) -> int:
        """Messages that wait to be popped."""
        return len(self._items) - self._others

    @property
    def buffered_bytes(self) -> int:
        """Bytes that they take, overhead included."""
        return self._bytes

    @property
    def received(self) -> int:
        """Messages that came."""
        return self.delivered + self.dropped + self.buffered

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will come. What is buffered can still be popped."""
        return self._ended

    @property
    def is_drained(self) -> bool:
        """Whether nothing more will come and nothing is left."""
        return self._ended and not self._items and not self._front and not self._overflowed

    def settle(self) -> bool:
        """Take the staged messages, or do with what does not fit as the policy says.

        All at once, because the accounts cost more than the messages: 0.05 µs for each of a batch,
        0.3 µs for one alone.

        Returns whether the reader should stop until `on_room` (only with `BLOCK`).
        """
        staged = self.staged
        count = len(staged)
        size = sum(map(len, map(_payload, staged))) + count * MESSAGE_OVERHEAD_BYTES
        if len(self._items) + count <= self._limit and self._bytes + size <= self.buffer_bytes:
            if self._items is _NO_ITEMS:
                self._items = deque(staged)
            else:
                self._items.extend(staged)
            self._bytes += size
        else:
            for message in staged:
                self._put(message)
        staged.clear()
        if self.wake is not None:
            self.wake(count)
        return self._is_stalled

    @property
    def room(self) -> int:
        """Messages that can still be staged, if they are not too large."""
        return max(0, self._limit - len(self._items) - len(self.staged))

    def stage(self, messages: Sequence[Message[object]]) -> int:
        """Stage as many of these messages, from the first, as there is room for; how many that were."""
        count = min(len(messages), self.room)
        size = (
            self._bytes + sum(map(len, map(_payload, self.staged))) + sum(map(len, map(_payload, messages)))
        )
        size += (len(self.staged) + len(messages)) * MESSAGE_OVERHEAD_BYTES
        if count < len(messages) or size > self.buffer_bytes:
            count = self._fitting(messages[:count])
        self.staged += messages if count == len(messages) else messages[:count]
        return count

    def put(self, item: Gap | PubSubError) -> None:
        """Let a gap be handed over, or an error be raised, at this place among the messages."""
        if self.staged:
            self.settle()
        if not self._ended:
            self._append(item)
            self._notify()

    def open_hole(
        self,
        lost: Mapping[Hashable, str],
        cause: str = "",
        reason: GapReason = GapReason.RECONNECTED,
        by: object = None,
    ) -> None:
        """From here on messages may be missing, until all that was lost is `found`.

        What came of other channels meanwhile is handed over: with several connections not all are lost.
        Again before it is found: a second hole if something came since, else the same one, widened, whose
        cause, in words, is that of the first time.

        Args:
            lost: Channels and patterns, by what they will be found as.
            cause: Why.
            reason: What kind of gap it will be.
            by: The connection that has lost them. What another one has lost is a hole of its own, which
                may be found sooner.
        """
        if self.staged:
            self.settle()
        if self._ended or self._overflowed:  # nothing more is taken, so nothing more can be missing
            return
        now = self._clock()
        last = self._items[-1] if self._items else None
        if isinstance(last, _Hole) and last.reason is reason and (last.by is by or _is_in(last.lost, lost)):
            hole = last
        else:
            hole = _Hole(reason, now, now, None, cause=cause, by=by)
            self._append(hole)
        if hole not in self._open_holes:
            self._open_holes.append(hole)
        hole.lost.update(lost)
        hole.channels.update(zip(lost.values(), itertools.repeat(None)))

    def has_lost(self, key: Hashable) -> bool:
        """Whether an open hole waits for this channel or pattern."""
        return any(key in hole.lost for hole in self._open_holes)

    def found(self, keys: Iterable[Hashable]) -> bool:
        """These are subscribed again, or not wanted any more; whether no hole is open any more.

        Gaps that wait for nothing else can be handed over.
        """
        if self._open_holes:
            keys = list(keys)
            for hole in self._open_holes:
                hole.lost.difference_update(keys)
            self._close_holes()
        return not self._open_holes

    def end(self) -> None:
        """Take nothing more. What is buffered can still be popped."""
        if self.staged:
            self.settle()
        for hole in self._open_holes:
            hole.lost.clear()
        self._close_holes()
        self._ended = True
        self._limit = -1
        self._notify()

    def clear(self) -> None:
        """Forget what is buffered."""
        self._items = _NO_ITEMS
        self._front.clear()
        self._open_holes.clear()
        self._bytes = 0
        self._overflowed = False
        self._count_others(-self._others)

    def first_of(self, channel: str) -> KeptMessage[object] | Gap | None:
        """The first message of a history, or gap in it, that waits; `None` if there is none. Cost O(n)."""
        for item in itertools.chain(self._front, self._items, self.staged):
            if isinstance(item, KeptMessage) and _is_kept(item) and item.channel == channel:
                return item
            if isinstance(item, Gap) and channel in item.channels:
                return item
        return None

    def take(self, count: int) -> list[Message[object]]:
        """Up to so many messages, the next one last; empty if something else has to be popped first.

        They are delivered as far as the mailbox is concerned, and no longer bounded by it. No more are
        taken once they hold `TAKE_BYTES`.
        """
        if self._others or self._front:
            return []
        items = cast("deque[Message[object]]", self._items)
        if len(items) <= count and self._bytes <= TAKE_BYTES:
            taken, size = list(items), self._bytes  # all at once: 0.06 µs less for each
            self._items = _NO_ITEMS
        else:
            taken, size = list[Message[object]](), 0
            while items and len(taken) < count and size < TAKE_BYTES:
                message = items.popleft()
                size += len(message.payload) + MESSAGE_OVERHEAD_BYTES
                taken.append(message)
        taken.reverse()
        self._account(len(taken), size)
        return taken

    def pop(self) -> Item | None:
        """The next message, gap or error; `None` when there is none yet, or none any more."""
        item = self._next_past_holes() if self._front or self._open_holes else self._next()
        if item is None:
            return self._pop_failure() if self._overflowed and not (self._front or self._items) else None
        if isinstance(item, Message):
            self._account(1, len(item.payload) + MESSAGE_OVERHEAD_BYTES)
            return item
        if isinstance(item, PubSubError):
            return item
        self.gaps += 1
        return item.to_gap() if isinstance(item, _Hole) else item

    # -- what happens when it is full --------------------------------------------------------------

    def _put(self, message: Message[object]) -> None:
        size = len(message.payload) + MESSAGE_OVERHEAD_BYTES
        fits = len(self._items) < self._limit and self._bytes + size <= self.buffer_bytes
        if fits or self._make_room(message, size):
            self._own_items().append(message)
            self._bytes += size

    def _make_room(self, message: Message[object], size: int) -> bool:
        """Whether the message is to be taken, after the policy has done what it does."""
        if self._ended:
            return False
        if self._overflowed:
            self.dropped += 1
            return False
        if not self.buffered and self.overflow is not Overflow.BLOCK:
            return True  # larger than the bound alone
        if self.overflow is Overflow.BLOCK:
            self._is_stalled = True  # what was read already is taken; the reader stops
            return True
        if self.overflow is Overflow.DROP_OLDEST and self._drop_oldest(size):
            return True
        self.dropped += 1
        if self.overflow is Overflow.FAIL:
            self._overflowed = True
            self._limit = -1
        else:
            last = self._items[-1]
            if not (isinstance(last, _Hole) and last.reason is GapReason.OVERFLOW):
                last = self._new_overflow_hole()
                self._append(last)
            self._widen(last, message)
        return False

    def _fitting(self, messages: Sequence[Message[object]]) -> int:
        """How many of these messages, from the first, the bound in bytes leaves room for."""
        free = self.buffer_bytes - self._bytes
        free -= sum(len(message.payload) + MESSAGE_OVERHEAD_BYTES for message in self.staged)
        for count, message in enumerate(messages):
            free -= len(message.payload) + MESSAGE_OVERHEAD_BYTES
            if free < 0:
                # one that is larger than the bound alone is taken when it is alone
                return count or int(not self.buffered and not self.staged)
        return len(messages)

    def _drop_oldest(self, size: int) -> bool:
        """Drop the oldest messages until one of this size fits; false if one of them must not be."""
        while self.buffered and (self.buffered >= self.buffer or self._bytes + size > self.buffer_bytes):
            if any(map(_is_kept, self._up_to_first_message())):
                return False
            self._drop_first_message()
        return True

    def _up_to_first_message(self) -> Iterator[Message[object] | _Other]:
        for item in self._items:
            yield item
            if isinstance(item, Message):
                return

    def _drop_first_message(self) -> None:
        item = self._items.popleft()
        while not isinstance(item, Message):
            self._count_others(-1)
            self._to_front(item)
            item = self._items.popleft()
        self._bytes -= len(item.payload) + MESSAGE_OVERHEAD_BYTES
        self.dropped += 1
        hole = self._front_hole(GapReason.OVERFLOW)
        if hole is None:
            hole = self._new_overflow_hole()
            self._front.append(hole)
        self._widen(hole, item)

    def _to_front(self, item: _Other) -> None:
        other = self._front_hole(item.reason) if isinstance(item, _Hole) else None
        if other is None or not isinstance(item, _Hole):
            self._front.append(item)
            return
        other.swallow(item)
        if item in self._open_holes:
            self._open_holes.remove(item)
            if other not in self._open_holes:
                self._open_holes.append(other)

    def _front_hole(self, reason: GapReason) -> _Hole | None:
        for item in self._front:
            if isinstance(item, _Hole) and item.reason is reason:
                return item
        return None

    def _new_overflow_hole(self) -> _Hole:
        now = self._clock()
        return _Hole(GapReason.OVERFLOW, now, now, 0)

    def _widen(self, hole: _Hole, message: Message[object]) -> None:
        hole.missed = (hole.missed or 0) + 1
        hole.ended_s = self._clock()
        hole.channels[message.topic.name] = None

    def _account(self, count: int, size: int) -> None:
        """Messages have left, of so many bytes in all: there may be room again."""
        self._bytes -= size
        self.delivered += count
        if (self._is_stalled or self.wants_room) and self._is_half_empty():
            self._is_stalled = self.wants_room = False
            if self.on_room is not None:
                self.on_room()

    # -- the rest ----------------------------------------------------------------------------------

    def _close_holes(self) -> None:
        """Those that wait for nothing any more can be handed over."""
        closed = [hole for hole in self._open_holes if not hole.is_open]
        if closed:
            now = self._clock()
            for hole in closed:
                hole.ended_s = now
                self._open_holes.remove(hole)
            self._notify()

    def _next(self) -> Message[object] | _Other | None:
        """The next item, which is out of the queue then."""
        if not self._items:
            return None
        item = self._items.popleft()
        if not isinstance(item, Message):
            self._count_others(-1)
        return item

    def _next_past_holes(self) -> Message[object] | _Other | None:
        """The first item that is no open hole, unless it is of a channel that one before it has lost.

        So what one connection has lost does not hold up what comes on another.
        """
        lost = dict[str, None]()
        queues: tuple[list[_Other] | deque[Message[object] | _Other], ...] = (self._front, self._items)
        for queue in queues:
            for at, item in enumerate(queue):
                if isinstance(item, _Hole) and item.is_open:
                    lost |= item.channels
                elif lost and any(channel in lost for channel in _channels_of(item, lost)):
                    return None
                else:
                    del queue[at]
                    if queue is self._items and not isinstance(item, Message):
                        self._count_others(-1)
                    return item
        return None

    def _pop_failure(self) -> PubSubError:
        self._overflowed = False
        self._ended = True
        return SlowConsumer(self.dropped, self.buffer, self.buffer_bytes)

    def _is_half_empty(self) -> bool:
        return self.buffered * 2 <= self.buffer and self._bytes * 2 <= self.buffer_bytes

    def _append(self, item: _Other) -> None:
        self._own_items().append(item)
        self._count_others(1)

    def _own_items(self) -> deque[Message[object] | _Other]:
        """The items, to put something in."""
        if self._items is _NO_ITEMS:
            self._items = deque()
        return self._items

    def _count_others(self, change: int) -> None:
        self._others += change
        if self._limit >= 0:
            self._limit += change

    def _notify(self) -> None:
        if self.wake is not None:
            self.wake(1)


def _is_in(some: set[Hashable], others: Mapping[Hashable, str]) -> bool:
    """Whether there are some, all of them among the others."""
    return bool(some) and some <= others.keys()


def _channels_of(item: Message[object] | _Other, others: Iterable[str]) -> Iterable[str]:
    """What an item is about; an error may be about any of the others."""
    if isinstance(item, Message):
        return (item.topic.name,)
    return others if isinstance(item, PubSubError) else item.channels


def _is_kept(item: Message[object] | _Other) -> bool:
    """Whether it came along a trail; a message that has a place may also be wanted without its history."""
    return isinstance(item, KeptMessage) and item.topic.history is not None
