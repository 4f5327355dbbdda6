"""The mailbox against a plain model: order, bounds, policies, gaps at their place, exact counts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiopubsub.errors import Closed, PubSubError, SlowConsumer
from aiopubsub.mailbox import MESSAGE_OVERHEAD_BYTES, Mailbox, Overflow
from aiopubsub.message import Gap, GapReason, Message, Origin
from aiopubsub.topic import Topic

TOPICS = {name: Topic(name) for name in "abc"}
ORIGINS = {name: Origin(name, topic) for name, topic in TOPICS.items()}


def put_one(mailbox: Mailbox, message: Message[object]) -> bool:
    """What the router does, with one message."""
    mailbox.staged.append(message)
    return mailbox.settle()


def make(n: int, size: int = 0, channel: str = "a") -> Message[object]:
    payload = b"%d" % n
    return Message(n, payload + b"." * (size - len(payload)), ORIGINS[channel], {})


def when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class Clock:
    """Seconds that go on by one whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def box(overflow: Overflow = Overflow.DROP_OLDEST, buffer: int = 3, buffer_bytes: int = 10_000) -> Mailbox:
    return Mailbox(buffer=buffer, buffer_bytes=buffer_bytes, overflow=overflow, clock=Clock())


def pop_all(mailbox: Mailbox) -> list[Any]:
    """All that can be popped: a message as its data, a gap as its reason and number."""
    popped: list[Any] = []
    while (item := mailbox.pop()) is not None:
        match item:
            case Message():
                popped.append(item.data)
            case Gap():
                popped.append((item.reason.value, item.missed))
            case _:
                popped.append(item)
    return popped


# -- the state machine -----------------------------------------------------------------------------


@dataclass(eq=False)
class Put:
    """A message that was put and not popped: it waits, or it was dropped and is to be reported."""

    message: Message[object]
    dropped_at: float | None = None

    @property
    def size(self) -> int:
        return len(self.message.payload) + MESSAGE_OVERHEAD_BYTES


@dataclass(eq=False)
class Hole:
    """A connection that was lost."""

    started: float
    channels: dict[str, None] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    ended: float | None = None  # None: it is still open
    is_first: bool = False  # a message after it was dropped: its order is lost


@dataclass(eq=False)
class Failure:
    error: PubSubError
    is_first: bool = False


class MailboxModel(RuleBasedStateMachine):
    """`line` is all that was put and not popped yet, in order, dropped messages included."""

    @initialize(
        overflow=st.sampled_from(Overflow),
        buffer=st.integers(1, 4),
        buffer_bytes=st.sampled_from([1, 200, 400, 700, 10_000]),
    )
    def begin(self, overflow: Overflow, buffer: int, buffer_bytes: int) -> None:
        self.clock = Clock()
        self.mailbox = Mailbox(
            buffer=buffer, buffer_bytes=buffer_bytes, overflow=overflow, clock=self.clock
        )
        self.mailbox.wake = self.on_wake
        self.mailbox.on_room = self.on_room
        self.overflow, self.buffer, self.buffer_bytes = overflow, buffer, buffer_bytes
        self.line: list[Put | Hole | Failure] = []
        self.made: list[Put] = []
        self.delivered = self.dropped = self.gaps = 0
        self.last = -1
        self.is_stalled = self.has_failed = self.is_ended = False
        self.is_awake = True
        self.rooms = 0

    def on_wake(self, count: int) -> None:
        self.is_awake = True

    def on_room(self) -> None:
        self.rooms += 1

    # what the model knows

    @property
    def waiting(self) -> list[Put]:
        return [entry for entry in self.line if isinstance(entry, Put) and entry.dropped_at is None]

    @property
    def unreported(self) -> list[Put]:
        """Dropped messages that the next overflow gap is to report."""
        found: list[Put] = []
        for entry in self.line:
            if isinstance(entry, Put) and entry.dropped_at is not None:
                found.append(entry)
            elif isinstance(entry, Hole) and entry.ended is None and not found:
                continue  # it holds back its own channels alone
            elif self.overflow is Overflow.DROP_NEWEST:
                break  # here each gap is exactly where it happened
        return found

    @property
    def open_holes(self) -> list[Hole]:
        return [entry for entry in self.line if isinstance(entry, Hole) and entry.ended is None]

    def close_holes(self) -> None:
        for hole in self.open_holes:
            hole.lost.clear()
            hole.ended = self.clock.now

    @property
    def next_up(self) -> tuple[Put | Hole | Failure, set[str]]:
        """The first entry that is no open hole, and what the open ones before it have lost."""
        lost: set[str] = set()
        for entry in self.line:
            if not (isinstance(entry, Hole) and entry.ended is None):
                return entry, lost
            lost |= entry.channels.keys()
        return Failure(PubSubError("nothing is next")), lost

    def fits(self, put: Put) -> bool:
        size = sum(entry.size for entry in self.waiting) + put.size
        return len(self.waiting) < self.buffer and size <= self.buffer_bytes

    # what happens

    @rule(
        sizes=st.lists(st.sampled_from([0, 10, 60, 300]), min_size=1),
        channel=st.sampled_from("ab"),
        together=st.booleans(),
    )
    def put(self, sizes: list[int], channel: str, together: bool) -> None:
        """Messages of one batch, settled together or one by one: it makes no difference."""
        if not together:
            for size in sizes:
                answer = put_one(self.mailbox, self.make(size, channel).message)
                self.expect(self.made[-1])
                assert answer is self.is_stalled
            return
        puts = [self.make(size, channel) for size in sizes]
        self.mailbox.staged.extend(put.message for put in puts)
        answer = self.mailbox.settle()
        for put in puts:
            self.expect(put)
        assert answer is self.is_stalled
        assert self.mailbox.staged == []

    def make(self, size: int, channel: str) -> Put:
        self.made.append(Put(make(len(self.made), size, channel)))
        return self.made[-1]

    def expect(self, put: Put) -> None:
        if self.is_ended:
            return
        if self.has_failed:
            self.dropped += 1
        elif self.fits(put):
            self.line.append(put)
        elif self.overflow is Overflow.BLOCK:
            self.is_stalled = True
            self.line.append(put)
        elif not self.waiting:
            self.line.append(put)  # larger than the bound alone
        elif self.overflow is Overflow.DROP_OLDEST:
            while self.waiting and not self.fits(put):
                self.drop_oldest()
            self.line.append(put)
        else:
            self.dropped += 1
            put.dropped_at = self.clock.now
            if self.overflow is Overflow.FAIL:
                self.has_failed = True
            else:
                self.line.append(put)

    def drop_oldest(self) -> None:
        oldest = self.waiting[0]
        oldest.dropped_at = self.clock.now
        self.dropped += 1
        for entry in self.line[: self.line.index(oldest)]:
            if not isinstance(entry, Put):
                entry.is_first = True

    @rule(channels=st.sets(st.sampled_from("abc"), min_size=1))
    def lose_connection(self, channels: set[str]) -> None:
        self.mailbox.open_hole({channel: channel for channel in sorted(channels)})
        if self.is_ended or self.has_failed:
            return
        hole = self.line[-1] if self.line else None
        if isinstance(hole, Hole) and not hole.is_first:
            hole.ended = None  # nothing came since the connection was lost before
        else:
            hole = Hole(self.clock.now)
            self.line.append(hole)
        hole.channels |= dict.fromkeys(sorted(channels))
        hole.lost |= channels

    @rule(channels=st.sets(st.sampled_from("abc"), min_size=1))
    def regain(self, channels: set[str]) -> None:
        is_whole = self.mailbox.found(channels)
        for hole in self.open_holes:
            hole.lost -= channels
            if not hole.lost:
                hole.ended = self.clock.now
        assert is_whole is (not self.open_holes)

    def regain_connection(self) -> None:
        self.regain({"a", "b", "c"})

    @rule()
    def blink(self) -> None:
        """The connection is lost and back before anything comes."""
        self.lose_connection({"a"})
        self.regain_connection()

    @rule()
    def put_an_error(self) -> None:
        error = PubSubError(len(self.made))
        self.mailbox.put(error)
        if not self.is_ended:
            self.line.append(Failure(error))

    @precondition(lambda self: len(self.made) > 6)
    @rule()
    def end(self) -> None:
        self.mailbox.end()
        self.close_holes()
        self.is_ended = True

    @rule(times=st.integers(1, 4))
    def pop(self, times: int) -> None:
        for _ in range(times):
            was_awake, before = self.is_awake, self.rooms
            item = self.mailbox.pop()
            if item is None:
                self.check_nothing()
                self.is_awake = False
                return
            assert was_awake, "there was something, and the consumer was not woken"
            match item:
                case Message():
                    self.check_message(item, before)
                case Gap():
                    self.gaps += 1
                    self.check_gap(item)
                case _:
                    self.check_error(item)

    @rule(count=st.integers(1, 4))
    def take(self, count: int) -> None:
        """A stretch of messages, if nothing else comes before any of them."""
        was_awake, before = self.is_awake, self.rooms
        taken = self.mailbox.take(count)
        if any(not isinstance(entry, Put) or entry.dropped_at is not None for entry in self.line):
            assert taken == []
            return
        assert taken == [put.message for put in self.line[:count]][::-1]
        assert was_awake or not taken
        stretch, self.line = self.line[:count], self.line[count:]
        if stretch:
            self.check_order(stretch)
            self.check_room(before)

    def check_order(self, stretch: list[Any]) -> None:
        for put in stretch:
            assert put.message.data > self.last
            self.last = put.message.data
        self.delivered += len(stretch)

    def check_room(self, rooms_before: int) -> None:
        is_half_empty = (
            len(self.waiting) * 2 <= self.buffer
            and sum(put.size for put in self.waiting) * 2 <= self.buffer_bytes
        )
        has_room = self.is_stalled and is_half_empty
        assert self.rooms - rooms_before == has_room
        self.is_stalled = self.is_stalled and not has_room

    def check_nothing(self) -> None:
        if not self.line:
            assert not self.has_failed, "a failure is never forgotten"
            return
        first = [e for e in self.line if isinstance(e, (Hole, Failure)) and e.is_first]
        head = first or self.line[:1]
        assert any(isinstance(e, Hole) and e.ended is None for e in head), "something could be popped"
        put, lost = self.next_up
        assert first or not isinstance(put, Put) or put.message.topic.name in lost, (
            "a message could be popped"
        )

    def check_message(self, message: Message[object], rooms_before: int) -> None:
        put, lost = self.next_up
        assert isinstance(put, Put), "a gap or an error comes before this message"
        assert message is put.message
        assert message.topic.name not in lost, "its gap comes first"
        assert put.dropped_at is None, "lost, and not reported before what came after"
        self.line.remove(put)
        self.check_order([put])
        self.check_room(rooms_before)

    def check_gap(self, gap: Gap) -> None:
        if gap.reason is GapReason.OVERFLOW:
            lost = self.unreported
            assert gap.missed == len(lost) > 0
            if self.overflow is Overflow.DROP_NEWEST:
                assert not self.next_up[1] & set(gap.channels), "an open gap of its channels comes first"
            assert gap.channels == tuple(dict.fromkeys(put.message.topic.name for put in lost))
            times = [put.dropped_at for put in lost if put.dropped_at is not None]
            assert when(0) < gap.started <= when(min(times))
            assert gap.started <= gap.ended <= when(max(times))
            self.line = [entry for entry in self.line if entry not in lost]
            return
        assert gap.missed is None
        holes = [e for e in self.line if isinstance(e, Hole) and e.is_first]
        if not holes:
            hole, lost = self.next_up
            assert isinstance(hole, Hole), "the gap is not at its place"
            assert not hole.channels.keys() & lost, "another gap of its channels comes first"
            holes = [hole]
        for hole in holes:
            assert hole.ended is not None, "handed over while it was open"
            self.line.remove(hole)
        channels = {name: None for hole in holes for name in hole.channels}
        assert gap.channels == tuple(channels)
        assert gap.started == when(min(hole.started for hole in holes))
        assert gap.ended == when(max(hole.ended for hole in holes if hole.ended is not None))

    def check_error(self, error: PubSubError) -> None:
        if isinstance(error, SlowConsumer):
            assert self.has_failed
            assert not self.line, "what was buffered comes first"
            assert vars(error) == {
                "missed": self.dropped,
                "buffer": self.buffer,
                "buffer_bytes": self.buffer_bytes,
            }
            self.has_failed, self.is_ended = False, True
            return
        failures = [e for e in self.line if isinstance(e, Failure) and e.is_first] or self.line[:1]
        failure = failures[0]
        assert isinstance(failure, Failure), "the error is not at its place"
        assert failure.error is error
        self.line.remove(failure)

    # what is always so

    @invariant()
    def counts(self) -> None:
        mailbox = self.mailbox
        assert (mailbox.delivered, mailbox.dropped, mailbox.gaps) == (
            self.delivered,
            self.dropped,
            self.gaps,
        )
        assert mailbox.buffered == len(self.waiting)
        assert mailbox.buffered_bytes == sum(put.size for put in self.waiting)
        assert mailbox.received == self.delivered + self.dropped + len(self.waiting)
        assert mailbox.is_ended is self.is_ended
        assert mailbox.is_drained is (self.is_ended and not self.line and not self.has_failed)

    @invariant()
    def bounds(self) -> None:
        if self.overflow is not Overflow.BLOCK:
            assert self.mailbox.buffered <= self.buffer
            assert self.mailbox.buffered_bytes <= self.buffer_bytes or self.mailbox.buffered == 1

    def teardown(self) -> None:
        """At the end nothing is left over, and every message was delivered or reported."""
        if hasattr(self, "mailbox"):
            self.end()
            self.is_awake = True
            self.pop(10_000)
            assert self.line == []
            assert self.mailbox.is_drained


TestMailboxModel = MailboxModel.TestCase
TestMailboxModel.settings = settings(max_examples=500, stateful_step_count=30, deadline=None)


# -- examples --------------------------------------------------------------------------------------


def test_drop_oldest_reports_before_what_is_left() -> None:
    """The oldest give way; the gap is where they were, with its number, channels and times."""
    mailbox = box()
    for n in range(5):
        put_one(mailbox, make(n, channel="ab"[n % 2]))
    gap = mailbox.pop()
    assert gap == Gap(GapReason.OVERFLOW, ("a", "b"), 2, when(1), when(3))
    assert pop_all(mailbox) == [2, 3, 4]


def test_drop_newest_reports_after_what_was_there() -> None:
    """The newest are dropped; the gap comes between what was before and after them."""
    mailbox = box(Overflow.DROP_NEWEST)
    for n in range(5):
        put_one(mailbox, make(n))
    popped = pop_all(mailbox)
    put_one(mailbox, make(5))
    assert popped + pop_all(mailbox) == [0, 1, 2, ("overflow", 2), 5]


def test_drop_newest_keeps_each_stretch_apart() -> None:
    """Two stretches of drops are two gaps, each at its place."""
    mailbox = box(Overflow.DROP_NEWEST, buffer=2)
    for n in range(3):
        put_one(mailbox, make(n))
    assert mailbox.pop() is not None
    for n in range(3, 6):
        put_one(mailbox, make(n))
    assert pop_all(mailbox) == [1, ("overflow", 1), 3, ("overflow", 2)]


def test_drop_newest_tells_drops_from_a_lost_connection() -> None:
    """What is dropped before and after a lost connection is in gaps before and after it."""
    mailbox = box(Overflow.DROP_NEWEST, buffer=1)
    put_one(mailbox, make(0))
    put_one(mailbox, make(1))
    mailbox.open_hole({"a": "a"})
    mailbox.found("ab")
    put_one(mailbox, make(2))
    put_one(mailbox, make(3))
    assert pop_all(mailbox) == [0, ("overflow", 1), ("reconnected", None), ("overflow", 2)]


def test_fail_raises_after_what_was_buffered() -> None:
    """`SlowConsumer` comes after the buffered messages, once, and knows how many are missed."""
    mailbox = box(Overflow.FAIL)
    for n in range(7):
        put_one(mailbox, make(n))
    *messages, error = pop_all(mailbox)
    assert messages == [0, 1, 2]
    assert isinstance(error, SlowConsumer)
    assert error.missed == 4
    assert mailbox.is_drained
    put_one(mailbox, make(8))
    assert (pop_all(mailbox), mailbox.dropped) == ([], 4)


def test_fail_counts_what_comes_until_it_is_raised() -> None:
    """Nothing is taken after the failure, though there is room again."""
    mailbox = box(Overflow.FAIL, buffer=1)
    put_one(mailbox, make(0))
    put_one(mailbox, make(1))
    assert mailbox.pop() is not None
    put_one(mailbox, make(2))
    [error] = pop_all(mailbox)
    assert isinstance(error, SlowConsumer)
    assert error.missed == 2


def test_fail_is_told_to_a_subscriber_that_drains() -> None:
    """A failure that was not raised yet is raised also after the mailbox has ended."""
    mailbox = box(Overflow.FAIL, buffer=1)
    put_one(mailbox, make(0))
    put_one(mailbox, make(1))
    mailbox.end()
    assert not mailbox.is_drained
    popped = pop_all(mailbox)
    assert popped[0] == 0
    assert isinstance(popped[1], SlowConsumer)
    assert mailbox.is_drained


def test_fail_does_not_wait_for_a_connection() -> None:
    """A connection that is lost after the failure does not hold it back."""
    mailbox = box(Overflow.FAIL, buffer=1)
    put_one(mailbox, make(0))
    put_one(mailbox, make(1))
    mailbox.open_hole({"a": "a"})
    popped = pop_all(mailbox)
    assert popped[0] == 0
    assert isinstance(popped[1], SlowConsumer)


def test_block_takes_what_comes_and_calls_when_half_empty() -> None:
    """A full mailbox takes what was read already, asks to stop, and tells when half of it is free."""
    mailbox = box(Overflow.BLOCK, buffer=4)
    rooms: list[int] = []
    mailbox.on_room = lambda: rooms.append(mailbox.buffered)
    assert [put_one(mailbox, make(n)) for n in range(6)] == [False] * 4 + [True] * 2
    assert [message.data for message in mailbox.take(3)] == [2, 1, 0]
    assert rooms == []
    assert pop_all(mailbox) == [3, 4, 5]
    assert rooms == [2]
    assert put_one(mailbox, make(6)) is False


def test_a_message_larger_than_the_bound_is_taken_alone() -> None:
    """When nothing else waits, a message may be larger than the bound; it gives way to the next."""
    for overflow in (Overflow.DROP_OLDEST, Overflow.DROP_NEWEST, Overflow.FAIL):
        mailbox = box(overflow, buffer_bytes=200)
        put_one(mailbox, make(0, 1000))
        assert (mailbox.buffered, mailbox.dropped) == (1, 0)
    mailbox = box(Overflow.DROP_OLDEST, buffer_bytes=200)
    put_one(mailbox, make(0, 1000))
    put_one(mailbox, make(1))
    assert pop_all(mailbox) == [("overflow", 1), 1]


def test_a_gap_waits_until_it_is_closed() -> None:
    """A gap holds back what came after it until its channels are back, then comes before it."""
    mailbox = box()
    put_one(mailbox, make(0))
    mailbox.open_hole({"a": "a"}, "first")
    mailbox.open_hole({"b": "b"}, "second")
    put_one(mailbox, make(1))
    assert pop_all(mailbox) == [0]
    mailbox.found("ab")
    assert mailbox.pop() == Gap(GapReason.RECONNECTED, ("a", "b"), None, when(1), when(3), cause="first")
    assert pop_all(mailbox) == [1]


def test_a_second_loss_before_the_end_of_the_first_is_a_gap_at_its_own_place() -> None:
    """What came between the two stands between the two gaps; both wait until all is subscribed again."""
    mailbox = box()
    mailbox.open_hole({"a": "a", "b": "b"}, "first")
    put_one(mailbox, make(0))
    mailbox.open_hole({"a": "a"}, "second")
    put_one(mailbox, make(1))
    assert pop_all(mailbox) == []
    mailbox.found("ab")
    assert mailbox.pop() == Gap(GapReason.RECONNECTED, ("a", "b"), None, when(1), when(3), cause="first")
    assert pop_all(mailbox) == [0, ("reconnected", None), 1]


def test_what_two_connections_have_lost_is_two_gaps() -> None:
    """Though nothing came between them: one may be back long before the other."""
    mailbox = box()
    mailbox.open_hole({"a": "a"}, "one", by=1)
    mailbox.open_hole({"b": "b"}, "two", by=2)
    mailbox.open_hole({"d": "d"}, "two", by=2)
    put_one(mailbox, make(0, channel="b"))
    mailbox.found("bd")
    gap = mailbox.pop()
    assert isinstance(gap, Gap)
    assert (gap.channels, gap.cause) == (("b", "d"), "two")
    assert pop_all(mailbox) == [0]
    mailbox.open_hole({"a": "a"}, "three", by=3)  # lost again by another: still the same gap
    mailbox.found("a")
    gap = mailbox.pop()
    assert isinstance(gap, Gap)
    assert (gap.channels, gap.cause) == (("a",), "one")
    assert pop_all(mailbox) == []


def test_what_other_connections_bring_does_not_wait() -> None:
    """A gap that is open holds back its own channels, and those alone; each gap has its reason."""
    mailbox = box(buffer=9)
    mailbox.open_hole({"a": "a"}, "one")
    mailbox.open_hole({"b": "b"}, "two", GapReason.MOVED)
    put_one(mailbox, make(0, channel="c"))
    put_one(mailbox, make(1, channel="b"))
    put_one(mailbox, make(2, channel="c"))
    assert pop_all(mailbox) == [0]
    assert mailbox.has_lost("a")
    assert not mailbox.found("b")
    assert pop_all(mailbox) == [("moved", None), 1, 2]
    assert mailbox.found("a")
    assert pop_all(mailbox) == [("reconnected", None)]
    assert not mailbox.has_lost("a")


def test_an_end_takes_what_was_staged() -> None:
    """What one connection brought counts, though another said that all is here."""
    mailbox = box()
    mailbox.staged.append(make(0))
    mailbox.end()
    assert pop_all(mailbox) == [0]


def test_an_open_gap_holds_back_drops_too() -> None:
    """What is dropped after an open gap that has come to the front is reported after it."""
    mailbox = box(buffer=1)
    mailbox.open_hole({"a": "a"})
    for n in range(3):
        put_one(mailbox, make(n))
    assert pop_all(mailbox) == []
    mailbox.found("ab")
    assert pop_all(mailbox) == [("reconnected", None), ("overflow", 2), 2]


def test_gaps_that_lost_all_between_them_become_one() -> None:
    """Two lost connections with no message left between them are one gap, from first to last."""
    mailbox = box(buffer=1)
    put_one(mailbox, make(0))
    for n, channel in enumerate("ab", 1):
        mailbox.open_hole({channel: channel}, f"lost {n}")
        mailbox.found("ab")
        put_one(mailbox, make(n))
    put_one(mailbox, make(3))
    overflow, reconnected, message = iter(mailbox.pop, None)
    assert overflow == Gap(GapReason.OVERFLOW, ("a",), 3, when(3), when(8))
    assert reconnected == Gap(GapReason.RECONNECTED, ("a", "b"), None, when(1), when(6), cause="lost 1")
    assert isinstance(message, Message)


def test_an_error_is_raised_at_its_place() -> None:
    """An error comes between the messages around it, and takes no room."""
    mailbox = box(buffer=2)
    error = PubSubError("x")
    put_one(mailbox, make(0))
    mailbox.put(error)
    put_one(mailbox, make(1))
    assert pop_all(mailbox) == [0, error, 1]


def test_after_the_end_nothing_is_taken() -> None:
    """What was buffered can be popped, an open gap included; nothing more comes."""
    mailbox = box()
    put_one(mailbox, make(0))
    mailbox.open_hole({"a": "a"})
    mailbox.end()
    put_one(mailbox, make(1))
    mailbox.put(Closed("Client"))
    mailbox.open_hole({"a": "a"})
    assert not mailbox.is_drained
    assert pop_all(mailbox) == [0, ("reconnected", None)]
    assert mailbox.is_drained
    assert mailbox.received == 1


@pytest.mark.parametrize("overflow", Overflow)
def test_clear_forgets_everything(overflow: Overflow) -> None:
    """After `clear` nothing is left of messages, gaps, errors and failures."""
    mailbox = box(overflow, buffer=1)
    put_one(mailbox, make(0))
    mailbox.open_hole({"a": "a"})
    put_one(mailbox, make(1))
    mailbox.put(PubSubError("x"))
    mailbox.end()
    mailbox.clear()
    assert (mailbox.buffered, mailbox.buffered_bytes) == (0, 0)
    assert pop_all(mailbox) == []
    assert mailbox.is_drained


def test_the_clock_is_not_asked_for_what_fits() -> None:
    """A message that fits costs no look at the clock."""

    def clock() -> float:
        raise AssertionError

    mailbox = Mailbox(buffer=2, buffer_bytes=1000, overflow=Overflow.DROP_OLDEST, clock=clock)
    put_one(mailbox, make(0))
    put_one(mailbox, make(1))
    assert pop_all(mailbox) == [0, 1]


def test_the_overhead_is_what_python_takes() -> None:
    """The bound in bytes counts at least what a message of an empty payload takes."""
    message = make(0)
    taken = sys.getsizeof(message) + sys.getsizeof(b"") + 8
    assert taken <= MESSAGE_OVERHEAD_BYTES <= taken + 48
