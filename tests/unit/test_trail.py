"""Following a history, against a model of the server: what is handed over and told is what there was."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from aiopubsub import History, Position, Topic
from aiopubsub.append import SHA
from aiopubsub.dialogue import Command
from aiopubsub.errors import PubSubError
from aiopubsub.frame import unframe
from aiopubsub.keys import history_key, mark_of
from aiopubsub.mailbox import Mailbox, Overflow
from aiopubsub.memory_streams import MemoryStreams
from aiopubsub.message import Gap, GapReason, KeptMessage, Message, Origin
from aiopubsub.since import BEGINNING, Since
from aiopubsub.trail import Stage, Trail, Unreadable

TTL = 100.0
TOPIC = Topic("c", history=History(ttl=TTL))
ORIGIN = Origin("c", TOPIC)
KEY = history_key(b"c")
MARK = mark_of(b"c")
START = b"-"  # what the first message of a history names in front of it


# -- the server ------------------------------------------------------------------------------------


@dataclass
class Server:
    """A stream, and all that it ever held since its history began."""

    streams: MemoryStreams
    log: list[tuple[bytes, bytes]] = field(default_factory=list)  # id and uid
    last_append_at: float = 0.0

    def copy(self) -> Server:
        """A replica that is as far as this, and stops here."""
        streams = MemoryStreams(self.streams._clock)
        streams._streams = copy.deepcopy(self.streams._streams)
        return Server(streams, list(self.log), self.last_append_at)

    def append(self, *uids: bytes, data: bytes = b"", headers: bytes = b"{}") -> list[KeptMessage[object]]:
        """Append messages as the script does; what is pushed."""
        frames: list[bytes] = []

        def publish(_: bytes, frame: bytes) -> int:
            frames.append(frame)
            return 1

        entries = [part for uid in uids for part in (uid, headers, data)]
        names: Any = self.streams.append(publish, SHA, b"1", KEY, b"c", b"100000", b"", b"", *entries)
        self.log += zip(names[::2], uids, strict=True)
        self.last_append_at = self.streams._clock()
        return [pushed(frame) for frame in frames]

    def trim(self, size: int) -> None:
        self.streams.trim(KEY, size)

    def delete(self) -> None:
        self.streams.delete(KEY)
        self.log = []

    def run(self, command: Command) -> Any:
        verb, *args = command
        return {b"XRANGE": self.streams.range, b"XREVRANGE": self.streams.reverse_range}[verb](*args)

    @property
    def kept(self) -> list[bytes]:
        """The ids in the stream."""
        entries: Any = self.streams.range(KEY, b"-", b"+")
        return [name for name, _ in entries]

    def look(self) -> Look:
        return Look(dict(self.log), self.kept)


@dataclass
class Look:
    """What there was when the server said something."""

    log: dict[bytes, bytes]
    kept: list[bytes]


def chain(messages: Sequence[Message[object]]) -> list[bytes]:
    """The uids of the first ones that follow on each other, as the router tells them."""
    uids: list[bytes] = []
    for message in messages:
        if not isinstance(message, KeptMessage) or (uids and message.after != uids[-1]):
            break
        uids.append(message.uid)
    return uids


def pushed(frame: bytes) -> KeptMessage[object]:
    unframed = unframe(frame)
    assert unframed is not None
    payload, headers, place = unframed
    assert place is not None
    return KeptMessage(payload, payload, ORIGIN, headers, place)


class Box(Mailbox):
    """A mailbox that shows at once what is put into it."""

    def __init__(self, buffer: int, buffer_bytes: int, overflow: Overflow, clock: Any, told: Any) -> None:
        super().__init__(buffer=buffer, buffer_bytes=buffer_bytes, overflow=overflow, clock=clock)
        self.told = told

    def stage(self, messages: Sequence[Message[object]]) -> int:
        count = super().stage(messages)
        for message in messages[:count]:
            self.told(message)
        return count

    def put(self, item: Gap | PubSubError) -> None:
        super().put(item)
        self.told(item)


# -- the state machine -----------------------------------------------------------------------------


class TrailModel(RuleBasedStateMachine):
    """A subscriber that keeps a list of what it was told must hold what the history holds.

    The list: each message is added, `missed` adds so many unknown ones, `withdrawn` takes so many off its
    end, and what is not known begins a new list.
    """

    @initialize(
        since=st.sampled_from(["now", "beginning", "position"]),
        stored=st.integers(0, 6),
        at=st.integers(1, 6),
        buffer=st.sampled_from([1, 2, 3, 10, 1000]),
        buffer_bytes=st.sampled_from([1, 500, 1 << 20]),
        page=st.sampled_from([2, 3, 16]),
        remembered=st.sampled_from([1, 3, 10_000]),
        overflow=st.sampled_from([Overflow.DROP_OLDEST, Overflow.BLOCK]),
    )
    def begin(
        self,
        since: str,
        stored: int,
        at: int,
        buffer: int,
        buffer_bytes: int,
        page: int,
        remembered: int,
        overflow: Overflow,
    ) -> None:
        self.patch = patch.multiple(
            "aiopubsub.trail", SMALLEST_PAGE=page, LARGEST_PAGE=2 * page, REMEMBERED=remembered
        )
        self.patch.start()
        self.now = 1000.0
        self.uids = (b"u%d" % n for n in itertools.count(1))
        self.server = Server(MemoryStreams(lambda: self.now))
        self.replica = self.server.copy()
        self.is_connected = False
        self.wire: deque[tuple[Any, Look]] = deque()
        self.asked: deque[Command] = deque()  # the server has not seen these yet
        self.due = 0
        self.replies: list[Any] = []
        self.looks: list[Look] = []  # at what it is told just now
        self.pushed_looks: dict[int, Look] = {}

        self.told: deque[Any] = deque()  # and not taken out of the mailbox yet
        self.list: list[bytes | None] = []
        self.base: bytes | None = None  # the uid that the list stands behind; None: unknown
        self.have: set[bytes] = set()  # handed over, and not withdrawn
        self.since = since
        self.is_expiry_due = False
        self.may_have_expired = False
        self.was_broken_at = 0.0
        self.taken_at = self.now
        for _ in range(stored):
            self.server.append(next(self.uids))
        start: Since = BEGINNING if since == "beginning" else None
        if since == "position" and stored:
            name, uid = self.server.log[min(at, stored) - 1]
            epoch, _, offset = name.partition(b"-")
            start = Position(int(epoch), int(offset), MARK, uid.decode())
            self.base = uid
            self.have = {uid for _, uid in self.server.log[: min(at, stored)]}
        self.is_from_now = start is None
        self.box = Box(buffer, buffer_bytes, overflow, lambda: self.now, self.note)
        self.trail = Trail(self.box, TOPIC, start, lambda: self.now)
        self.box.on_room = self.trail.has_room

    # what is told

    def note(self, item: Message[object] | Gap | PubSubError) -> None:
        """At once when it is put into the mailbox."""
        self.told.append(item)
        look = self.looks[-1]
        if isinstance(item, KeptMessage):
            self.note_message(item)
            return
        assert isinstance(item, Gap), item
        if item.reason is GapReason.TRIMMED:
            self.note_trimmed(item)
        elif item.reason is GapReason.RESET:
            assert item.withdrawn == 0
            epochs = {name.partition(b"-")[0] for name, uid in look.log.items()}
            assert item.before is None or str(item.before.epoch).encode() not in epochs or not look.kept
            assert item.missed is None, "nobody can know"
            self.list, self.base, self.have = [], None, set()
        else:
            self.note_rolled_back(item, look)

    def note_message(self, message: KeptMessage[object]) -> None:
        assert message.uid not in self.have, f"{message.uid} handed over twice"
        if message.after == START and [*self.list, self.base] != [START]:
            is_idle = self.now - self.taken_at >= 0.9 * TTL  # deleted or expired: nobody can tell
            if self.is_expiry_due or self.may_have_expired or is_idle:
                self.list, self.base, self.have = [], START, set()
            self.is_expiry_due = self.may_have_expired = False
        self.taken_at = self.now
        self.have.add(message.uid)
        if self.base is None and not self.list:
            self.base = message.after
        else:
            last = self.list[-1] if self.list else self.base
            assert last in (message.after, None), f"{message.uid} does not follow on {last}"
        self.list.append(message.uid)

    def note_trimmed(self, gap: Gap) -> None:
        assert gap.missed
        assert gap.withdrawn == 0
        look = self.looks[0]  # at the page
        assert gap.after is not None
        assert look.log[gap.after.id.encode()] == gap.after.uid.encode()
        offsets = range(gap.after.offset - gap.missed, gap.after.offset)
        assert offsets.start >= 1
        names = [b"%d-%d" % (gap.after.epoch, offset) for offset in offsets]
        assert not set(names) & set(look.kept), "reported, though it is there"
        assert set(names) <= set(look.log), "reported, though it never was"
        if gap.before is not None:
            assert gap.before.offset + gap.missed + 1 == gap.after.offset
            if look.log.get(gap.before.id.encode()) != gap.before.uid.encode():
                # the history forked further back, and nothing that would tell is left: see docs/history.md
                self.list, self.base = [], None
                self.have &= set(look.log.values())
                return
        elif self.base is None:
            self.base = START
        self.list += [None] * gap.missed

    def note_rolled_back(self, gap: Gap, look: Look) -> None:
        ours = [uid for uid in self.list if uid is not None]
        gone = [uid for uid in ours if uid not in look.log.values()]
        if gap.missed == 0 and gap.withdrawn is not None:
            assert gap.withdrawn == len(gone) > 0
            assert ours[len(ours) - gap.withdrawn :] == gone
            assert gone == self.list[len(self.list) - gap.withdrawn :], "across a hole"
            del self.list[len(self.list) - gap.withdrawn :]
        else:
            last = self.list[-1] if self.list else self.base
            assert last not in look.log.values(), "nothing was rolled back"
            if gap.withdrawn is not None:
                assert gap.withdrawn == len(gone)
            self.list, self.base = [], None
        self.have &= set(look.log.values())

    # what the session does

    def call(self, looks: list[Look], what: Any, *args: Any) -> None:
        self.looks = looks
        what(*args)
        if self.box.staged:
            self.box.settle()

    @precondition(lambda self: not self.is_connected)
    @rule()
    def connect(self) -> None:
        self.is_connected = True
        self.call([], self.trail.on)

    @precondition(lambda self: self.is_connected)
    @rule()
    def cut(self) -> None:
        self.is_connected = False
        self.wire.clear()
        self.asked.clear()
        self.replies.clear()
        self.due = 0
        self.may_have_expired = self.may_have_expired or self.is_expiry_due
        self.is_expiry_due = False
        self.was_broken_at = self.now
        self.trail.off()

    @precondition(lambda self: self.is_connected and not self.due)
    @rule()
    def ask(self) -> None:
        """The trail reads, or has its slow look."""
        if self.trail.state in (Stage.READING, Stage.LIVE):
            commands = self.trail.ask()
            self.asked.extend(commands)
            self.due = len(commands)
            assert bool(commands) == (self.trail.state is not Stage.FULL)

    @precondition(lambda self: self.wire)
    @rule(count=st.integers(1, 4))
    def deliver(self, count: int) -> None:
        run: list[KeptMessage[object]] = []
        while self.wire and count:
            count -= 1
            item, look = self.wire.popleft()
            if isinstance(item, KeptMessage):
                run.append(item)
                run_look = look
            if run and (not isinstance(item, KeptMessage) or not count or not self.wire):
                self.call([run_look], self.trail.push, run, chain(run))
                run = []
            if not isinstance(item, KeptMessage):
                self.replies.append((item, look))
                if len(self.replies) == self.due:
                    replies, self.replies, self.due = self.replies, [], 0
                    self.call([look for _, look in replies], self.trail.answer, [r for r, _ in replies])
                    self.note_start(replies[-1])

    def note_start(self, reply: tuple[Any, Look]) -> None:
        if self.is_from_now:
            self.is_from_now = False
            self.taken_at = self.now
            entries, look = reply
            self.base = entries[0][1][1] if entries else START
            self.have = set(look.log.values())

    # what the server does

    @precondition(lambda self: self.asked)
    @rule(count=st.integers(1, 2))
    def run_commands(self, count: int) -> None:
        while self.asked and count:
            count -= 1
            self.wire.append((self.server.run(self.asked.popleft()), self.server.look()))

    @rule(count=st.integers(1, 5), is_lost=st.booleans(), size=st.sampled_from([1, 1, 300]))
    def append(self, count: int, is_lost: bool, size: int) -> None:
        uids = list(itertools.islice(self.uids, count))
        for message in self.server.append(*uids, data=b"." * size):
            if self.is_connected and not (is_lost and self.is_lossy):
                self.wire.append((message, self.server.look()))

    is_lossy = True

    @precondition(lambda self: self.server.log)
    @rule(size=st.integers(0, 4))
    def trim(self, size: int) -> None:
        self.server.trim(max(1, size))

    @precondition(lambda self: self.server.log)
    @rule()
    def delete(self) -> None:
        self.server.delete()
        self.now += 1

    @precondition(lambda self: self.server.log)
    @rule()
    def expire(self) -> None:
        """Nothing was published for so long that it is gone."""
        self.now = max(self.now, self.server.last_append_at + TTL)
        log = self.server.log
        has_all = self.trail.state is Stage.LIVE and not self.wire and not self.asked
        has_all = has_all and self.list[-1:] == [log[-1][1]] and self.box.buffered < self.box.buffer
        self.may_have_expired = True
        self.is_expiry_due = has_all and self.was_broken_at < self.server.last_append_at
        self.server.delete()

    @precondition(lambda self: any(isinstance(item, KeptMessage) for item, _ in self.wire))
    @rule(data=st.data())
    def lose_or_double_a_push(self, data: st.DataObject) -> None:
        at = [n for n, (item, _) in enumerate(self.wire) if isinstance(item, KeptMessage)]
        which = data.draw(st.sampled_from(at))
        if data.draw(st.booleans()):
            self.wire.insert(data.draw(st.integers(which, len(self.wire))), self.wire[which])
        else:
            del self.wire[which]

    @rule()
    def replicate(self) -> None:
        """The replica has caught up, and lags from here on."""
        self.replica = self.server.copy()

    @rule(is_cut=st.booleans())
    def fail_over(self, is_cut: bool) -> None:
        """The replica is promoted; what was the primary may come back later."""
        self.server, self.replica = self.replica, self.server
        self.is_expiry_due = False
        self.may_have_expired = True
        self.now += 1
        if is_cut and self.is_connected:
            self.cut()

    @rule(seconds=st.integers(1, 50))
    def time_goes_on(self, seconds: int) -> None:
        self.now += seconds

    # what the consumer does

    @rule(count=st.integers(1, 5))
    def take(self, count: int) -> None:
        while count:
            count -= 1
            item = self.box.pop()
            if item is None:
                assert not self.told
                return
            assert item is self.told.popleft()

    # what is checked

    @rule()
    def come_to_rest(self) -> None:
        """Connected, and with a consumer that takes all, it is live and has all there is."""
        if not self.is_connected:
            self.connect()
        looks = 0
        for _ in range(300):
            self.run_commands(10)
            self.deliver(1000)
            self.take(1000)
            if self.due or self.asked or self.wire:
                continue
            if self.trail.state is Stage.LIVE:
                looks += 1
                if looks == 2:  # the last look has changed nothing
                    break
            else:
                looks = 0
            self.ask()
        else:
            raise AssertionError("it does not come to rest")
        assert self.box.buffered == 0
        self.check_list()

    def check_list(self) -> None:
        log = [uid for _, uid in self.server.log]
        newest = self.server.kept[-1:]
        if not newest:
            return  # reported when another history begins
        position = self.trail.position
        assert position is not None
        assert (position.id.encode(), position.uid.encode()) == self.server.log[-1]
        if self.base is not None:
            begin = 0 if self.base == START else log.index(self.base) + 1
            expected = log[begin:]
        else:
            expected = log[len(log) - len(self.list) :]
        assert len(expected) == len(self.list)
        assert [have or uid for have, uid in zip(self.list, expected, strict=True)] == expected

    def teardown(self) -> None:
        try:
            if hasattr(self, "trail"):
                self.come_to_rest()
        finally:
            if hasattr(self, "patch"):
                self.patch.stop()


TestTrailModel = TrailModel.TestCase
TestTrailModel.settings = settings(max_examples=500, stateful_step_count=40, deadline=None)


# -- examples --------------------------------------------------------------------------------------


class Talk:
    """A trail, its mailbox, and a server that answers at once."""

    def __init__(self, since: Since = None, *, buffer: int = 1000, buffer_bytes: int = 1 << 30) -> None:
        self.now = 1000.0
        self.server = Server(MemoryStreams(lambda: self.now))
        self.box = Mailbox(
            buffer=buffer,
            buffer_bytes=buffer_bytes,
            overflow=Overflow.DROP_NEWEST,
            clock=lambda: self.now,
        )
        self.since = since
        self.asked: list[Command] = []

    def start(self) -> Trail:
        self.trail = Trail(self.box, TOPIC, self.since, lambda: self.now)
        self.box.on_room = self.trail.has_room
        self.trail.on()
        return self.trail

    def read(self) -> None:
        """Until the trail reads no more."""
        for _ in range(100):
            if self.trail.state is not Stage.READING:
                return
            self.ask()
        raise AssertionError("it reads for ever")

    def ask(self) -> None:
        if commands := self.trail.ask():
            self.asked += commands
            self.trail.answer([self.server.run(command) for command in commands])
            self.box.settle()

    def push(self, *messages: Message[object]) -> None:
        self.trail.push(messages, chain(messages))
        self.box.settle()

    def take(self, count: int = 1000) -> list[bytes | Gap]:
        """Uids and gaps out of the mailbox."""
        items = [self.box.pop() for _ in range(count)]
        return [item.uid if isinstance(item, KeptMessage) else item for item in items if item]  # type: ignore[misc]

    def append(self, first: int, last: int) -> list[KeptMessage[object]]:
        return self.server.append(*uids(first, last))

    def position(self, at: int) -> Position:
        name, uid = self.server.log[at - 1]
        epoch, _, offset = name.partition(b"-")
        return Position(int(epoch), int(offset), MARK, uid.decode())


def uids(first: int, last: int) -> list[bytes]:
    return [b"u%d" % n for n in range(first, last + 1)]


def live(stored: int = 0) -> Talk:
    """A trail that was there when so many messages were stored."""
    talk = Talk()
    talk.append(1, stored)
    talk.start()
    talk.read()
    assert talk.trail.state is Stage.LIVE
    return talk


def told(item: bytes | Gap) -> tuple[GapReason, int | None, int | None]:
    assert isinstance(item, Gap)
    assert item.channels == ("c",)
    return item.reason, item.missed, item.withdrawn


def test_from_now_on() -> None:
    """It stands at the newest entry, without a page; from there on pushes are handed over."""
    talk = live(5)
    assert talk.asked == [(b"XREVRANGE", KEY, b"+", b"-", b"COUNT", b"1")]
    assert talk.trail.is_joined
    assert talk.trail.position == talk.trail.start == talk.position(5)
    talk.push(*talk.append(6, 8))
    assert talk.take() == uids(6, 8)
    assert talk.trail.position == talk.position(8)
    assert talk.trail.start == talk.position(5)


def test_from_now_on_in_a_topic_that_is_empty() -> None:
    """There is no position yet; the first message is handed over, also if its push is lost."""
    talk = live()
    assert talk.trail.position is None
    assert talk.trail.start == Position(0, 0, MARK, "-")
    talk.append(1, 1)
    talk.push(*talk.append(2, 2))
    assert talk.trail.state is Stage.READING
    talk.read()
    assert talk.take() == uids(1, 2)


def test_from_the_beginning() -> None:
    """All that is kept, in pages; what was trimmed is no gap."""
    talk = Talk(BEGINNING)
    talk.append(1, 100)
    talk.server.trim(80)
    talk.start()
    assert not talk.trail.is_joined
    talk.ask()
    assert talk.trail.is_joined
    assert talk.trail.state is Stage.READING
    talk.read()
    assert talk.take() == uids(21, 100)
    assert talk.trail.state is Stage.LIVE


def test_from_a_position() -> None:
    """After that message, without a gap."""
    talk = Talk()
    talk.append(1, 50)
    talk.since = talk.position(10)
    assert talk.start().position == talk.trail.start == talk.position(10)
    talk.read()
    assert talk.take() == uids(11, 50)


def test_from_a_position_before_the_first_message() -> None:
    """Nothing was there when it was saved: all that came since is for it, or reported."""
    talk = Talk(Position(0, 0, MARK, "-"))
    talk.start()
    talk.read()
    assert (talk.trail.state, talk.trail.position, talk.take()) == (Stage.LIVE, None, [])
    talk.trail.off()
    talk.append(1, 9)
    talk.server.trim(2)
    talk.trail.on()
    talk.read()
    gap, *rest = talk.take()
    assert told(gap) == (GapReason.TRIMMED, 7, 0)
    assert rest == uids(8, 9)


def test_a_push_that_was_taken_is_dropped() -> None:
    """Whether it comes again at once or late."""
    talk = live()
    one, two, three = talk.append(1, 3)
    talk.push(one, one)
    talk.push(two, three, one, two)
    assert talk.take() == uids(1, 3)
    assert talk.trail.state is Stage.LIVE


def test_a_push_that_does_not_follow_is_read() -> None:
    """One push was lost: nothing more is taken of pushes until a page has come back short."""
    talk = live()
    _, two, three = talk.append(1, 3)
    talk.push(two, three)
    assert talk.trail.state is Stage.READING
    questions = talk.trail.ask()
    answers = [talk.server.run(question) for question in questions]
    talk.push(*talk.append(4, 4))  # published after the page was read
    talk.trail.answer(answers)
    talk.box.settle()
    assert talk.trail.state is Stage.LIVE
    assert talk.take() == uids(1, 3)
    talk.push(*talk.append(5, 5))  # so this does not follow
    talk.read()
    assert talk.take() == uids(4, 5)


def test_what_is_behind_the_push_that_does_not_follow_is_left_to_the_page() -> None:
    """In one run of pushes, those in front of it are taken, once."""
    talk = live()
    one, two, _, four = talk.append(1, 4)
    talk.push(one, two, four)
    assert talk.take() == uids(1, 2)
    talk.read()
    assert talk.take() == uids(3, 4)


def test_after_a_break_it_reads() -> None:
    """What was published meanwhile is handed over, without a gap."""
    talk = live(3)
    talk.trail.off()
    talk.push(*talk.append(4, 9))
    assert talk.take() == []
    talk.trail.on()
    talk.read()
    assert talk.take() == uids(4, 9)


def test_a_break_before_the_first_answer() -> None:
    """Nothing was promised yet: `None` begins at the newest entry of the new connection."""
    talk = Talk()
    talk.append(1, 2)
    talk.start().ask()
    talk.trail.off()
    talk.append(3, 3)
    talk.trail.on()
    talk.read()
    assert talk.take() == []
    assert talk.trail.position == talk.position(3)


def test_a_full_mailbox_is_filled_again_from_the_history() -> None:
    """Nothing is dropped: what does not fit is read when there is room."""
    talk = live()
    talk.box.buffer = talk.box._limit = 4
    talk.push(*talk.append(1, 10))
    assert talk.trail.state is Stage.FULL
    assert (talk.box.buffered, talk.box.dropped) == (4, 0)
    talk.push(*talk.append(11, 12))
    assert talk.take(1) == uids(1, 1)
    assert talk.trail.state is Stage.FULL  # not before it is half empty
    assert talk.take(1) == uids(2, 2)
    assert talk.trail.state is Stage.READING
    got: list[Any] = []
    while talk.trail.state is not Stage.LIVE:
        talk.read()
        got += talk.take()
    assert got == uids(3, 12)
    assert talk.box.dropped == 0


def test_a_mailbox_that_is_full_when_a_page_is_wanted() -> None:
    """No page is asked for that could not be taken."""
    talk = live()
    talk.box.buffer = talk.box._limit = 2
    one, two, _, four = talk.append(1, 4)
    talk.push(one, two)
    talk.push(four)
    assert talk.trail.state is Stage.READING
    assert talk.trail.ask() == []
    assert talk.trail.state is Stage.FULL
    assert talk.take(1) == uids(1, 1)
    talk.read()
    assert talk.take() == uids(2, 3)
    talk.read()
    assert talk.take() == uids(4, 4)


def test_a_page_is_no_larger_than_the_room() -> None:
    """One entry more is asked for: the position itself."""
    talk = Talk(buffer=5)
    talk.append(1, 3)
    talk.since = talk.position(1)
    talk.start()
    page, newest = talk.trail.ask()
    assert page == (b"XRANGE", KEY, talk.server.log[0][0], b"+", b"COUNT", b"6")
    assert newest == (b"XREVRANGE", KEY, b"+", b"-", b"COUNT", b"1")


def test_bytes_bound_what_is_taken() -> None:
    """A mailbox that is full by bytes takes what fits, and the rest is read later."""
    talk = Talk(BEGINNING, buffer_bytes=1000)
    talk.server.append(*uids(1, 10), data=b"." * 300)
    talk.start()
    got: list[Any] = []
    for _ in range(10):
        talk.read()
        assert talk.box.buffered_bytes <= 1000
        assert talk.box.buffered <= 2
        got += talk.take()
    assert got == uids(1, 10)


@pytest.mark.parametrize(
    ("size", "count"), [(0, 1024), (128, 1024), (1_000, 929), (100_000, 10), (1_000_000, 2)]
)
def test_pages_are_sized_by_bytes(size: int, count: int) -> None:
    """About 1 MiB, by what the last page has shown: 2 entries at least, 1024 at most."""
    talk = Talk(BEGINNING, buffer=10_000)
    talk.server.append(*uids(1, 30), data=b"." * size)
    talk.start()
    assert talk.trail.ask()[0][-1] == b"16"
    talk.ask()
    assert talk.trail.ask()[0][-1] == b"%d" % count


def test_trimmed() -> None:
    """The offsets tell how many are missing, exactly; the gap stands between its neighbours."""
    talk = live(5)
    talk.trail.off()
    talk.append(6, 20)
    talk.server.trim(4)
    talk.trail.on()
    talk.now += 50
    talk.read()
    gap, *rest = talk.take()
    assert told(gap) == (GapReason.TRIMMED, 11, 0)
    assert isinstance(gap, Gap)
    assert (gap.before, gap.after) == (talk.position(5), talk.position(17))
    assert (gap.ended - gap.started).total_seconds() == 50
    assert rest == uids(17, 20)


def test_trimmed_up_to_the_next_one() -> None:
    """That the position itself is gone is no gap."""
    talk = live(5)
    talk.trail.off()
    talk.append(6, 9)
    talk.server.trim(4)
    talk.trail.on()
    talk.read()
    assert talk.take() == uids(6, 9)


def test_trimmed_before_the_first_message() -> None:
    """It was there when the topic was empty, so all that came since was for it."""
    talk = live()
    talk.trail.off()
    talk.append(1, 9)
    talk.server.trim(2)
    talk.trail.on()
    talk.read()
    gap, *rest = talk.take()
    assert told(gap) == (GapReason.TRIMMED, 7, 0)
    assert rest == uids(8, 9)


@pytest.mark.parametrize("is_seen_empty", [False, True])
def test_reset_while_away(is_seen_empty: bool) -> None:
    """Another history, or none: one gap, and then all that the new one holds."""
    talk = live(5)
    talk.trail.off()
    talk.server.delete()
    talk.now += 1
    if is_seen_empty:
        talk.trail.on()
        talk.read()
        assert talk.trail.state is Stage.LIVE
        assert talk.trail.position is None
        talk.trail.off()
    talk.append(11, 14)
    talk.server.trim(3)
    talk.trail.on()
    talk.read()
    gap, *rest = talk.take()
    assert told(gap) == (GapReason.RESET, None, 0)
    assert rest == uids(12, 14)


def test_reset_with_a_clock_that_goes_back() -> None:
    """The new history's ids are smaller: nothing stands after the position, and it is seen all the same."""
    talk = live(5)
    talk.server.delete()
    talk.now -= 500
    talk.push(*talk.append(11, 12))
    assert talk.trail.state is Stage.READING
    talk.read()
    gap, *rest = talk.take()
    assert told(gap) == (GapReason.RESET, None, 0)
    assert rest == uids(11, 12)


def test_reset_while_live() -> None:
    """The first message of another history says so: one gap, and it is handed over."""
    talk = live(5)
    talk.server.delete()
    talk.now += 1
    talk.push(*talk.append(11, 12))
    gap, *rest = talk.take()
    assert told(gap) == (GapReason.RESET, None, 0)
    assert isinstance(gap, Gap)
    assert gap.after == talk.position(1)
    assert rest == uids(11, 12)


def test_a_reset_that_is_pushed_to_a_full_mailbox_is_told_once() -> None:
    """The gap has room always; the message behind it is read later."""
    talk = live()
    talk.box.buffer = talk.box._limit = 2
    talk.push(*talk.append(1, 2))
    talk.server.delete()
    talk.now += 1
    talk.push(*talk.append(11, 12))
    assert talk.trail.state is Stage.FULL
    first, second, gap = talk.take()
    talk.read()
    assert [first, second] == uids(1, 2)
    assert told(gap) == (GapReason.RESET, None, 0)
    assert talk.take() == uids(11, 12)


def test_nothing_of_the_old_history_is_withdrawn_from_the_new_one() -> None:
    """After a reset that was pushed, a rollback counts the messages of the new history alone."""
    talk = live()
    talk.push(*talk.append(1, 5))
    talk.server.delete()
    talk.now += 1
    talk.push(*talk.append(11, 12))
    talk.server.delete()
    talk.append(21, 22)  # at the same time: a fork of the history in front of its first message
    assert talk.trail.position is not None
    talk.ask()
    talk.read()
    _, rolled_back = (item for item in talk.take() if isinstance(item, Gap))
    assert told(rolled_back) == (GapReason.ROLLED_BACK, 0, 2)


@pytest.mark.parametrize("is_looked_at", [False, True])
def test_an_idle_history_may_expire(is_looked_at: bool) -> None:
    """Whoever had everything gets no gap when the next one begins, looked at meanwhile or not."""
    talk = live()
    talk.push(*talk.append(1, 3))
    for _ in range(2):
        talk.now += TTL / 2
        if is_looked_at:
            talk.ask()
    talk.server.delete()
    if is_looked_at:
        talk.ask()
    talk.push(*talk.append(11, 12))
    assert talk.take() == uids(1, 3) + uids(11, 12)


def test_an_expired_history_is_a_reset_to_whoever_comes_back() -> None:
    """Something may have been published meanwhile."""
    talk = live(3)
    talk.trail.off()
    talk.now += 2 * TTL
    talk.server.delete()
    talk.trail.on()
    talk.read()
    assert [told(gap) for gap in talk.take()] == [(GapReason.RESET, None, 0)]


@pytest.mark.parametrize("appended", [0, 1, 2, 3, 7])
def test_rolled_back(appended: int) -> None:
    """A replica that lagged by three is promoted, and has had some new ones: three are withdrawn."""
    talk = live()
    talk.push(*talk.append(1, 4))
    replica = talk.server.copy()
    talk.push(*talk.append(5, 7))
    talk.server = replica
    talk.trail.off()
    talk.append(11, 10 + appended)
    talk.trail.on()
    talk.read()
    *first, gap = talk.take(8)
    assert first == uids(1, 7)
    assert told(gap) == (GapReason.ROLLED_BACK, 0, 3)
    assert isinstance(gap, Gap)
    assert gap.before == talk.position(4)
    assert talk.take() == uids(11, 10 + appended)
    assert talk.trail.state is Stage.LIVE


def test_rolled_back_without_a_break() -> None:
    """The next push does not follow, or the slow look sees another newest entry."""
    for is_pushed in (True, False):
        talk = live()
        talk.push(*talk.append(1, 4))
        replica = talk.server.copy()
        talk.push(*talk.append(5, 6))
        talk.server = replica
        messages = talk.append(11, 12)
        if is_pushed:
            talk.push(*messages)
        else:
            talk.ask()
        talk.read()
        *first, gap = talk.take(7)
        assert first == uids(1, 6)
        assert told(gap) == (GapReason.ROLLED_BACK, 0, 2)
        assert talk.take() == uids(11, 12)


def test_promoted_there_and_back() -> None:
    """A-B-A: what was withdrawn and is there again is handed over again, the number exact each time."""
    talk = live()
    talk.push(*talk.append(1, 3))
    a, b = talk.server, talk.server.copy()
    talk.push(*talk.append(4, 5))
    expected: list[Any] = uids(1, 5)
    for server, withdrawn, new in ((b, 2, uids(11, 13)), (a, 3, uids(4, 6)), (b, 3, uids(11, 14))):
        talk.trail.off()
        talk.server = server
        if new[-1] not in dict(server.log).values():
            server.append(*[uid for uid in new if uid not in dict(server.log).values()])
        talk.trail.on()
        talk.read()
        expected += [(GapReason.ROLLED_BACK, 0, withdrawn), *new]
    assert [told(item) if isinstance(item, Gap) else item for item in talk.take()] == expected


def test_rolled_back_in_front_of_where_it_began() -> None:
    """All that was handed over is withdrawn; what was there before it began is not handed over."""
    talk = Talk()
    talk.append(1, 3)
    replica = talk.server.copy()
    talk.append(4, 5)
    talk.start()
    talk.read()
    talk.push(*talk.append(6, 7))
    talk.server = replica
    talk.append(11, 15)
    talk.ask()
    talk.read()
    six, seven, gap, *rest = talk.take()
    assert [six, seven] == uids(6, 7)
    assert told(gap) == (GapReason.ROLLED_BACK, None, 2)
    assert rest == uids(12, 15)  # behind where it began all is new; 11 is missing, or an old one


def test_rolled_back_twice_and_then_in_front_of_where_it_began() -> None:
    """What is left after the first time still counts."""
    talk = Talk()
    talk.append(1, 3)
    oldest = talk.server.copy()
    talk.append(4, 5)
    talk.start()
    talk.read()
    talk.push(*talk.append(6, 7))
    older = talk.server.copy()
    talk.push(*talk.append(8, 9))
    for server, first in ((older, 11), (oldest, 21)):
        talk.server = server
        talk.append(first, first + 8)
        talk.ask()
        talk.read()
    gaps = [told(item) for item in talk.take() if isinstance(item, Gap)]
    assert gaps == [(GapReason.ROLLED_BACK, 0, 2), (GapReason.ROLLED_BACK, None, 2 + 9)]


def test_rolled_back_in_front_of_a_saved_position() -> None:
    """How much was withdrawn cannot be known, and nothing is repeated."""
    talk = Talk()
    talk.append(1, 3)
    replica = talk.server.copy()
    talk.append(4, 9)
    talk.since = talk.position(9)
    talk.server = replica
    talk.append(11, 12)
    talk.start()
    talk.read()
    assert [told(gap) for gap in talk.take()] == [(GapReason.ROLLED_BACK, None, None)]
    assert talk.trail.position == talk.position(5)
    talk.push(*talk.append(13, 13))
    assert talk.take() == uids(13, 13)


def test_a_rollback_that_was_trimmed_is_not_counted() -> None:
    """Where the fork is gone from the history, too, nobody knows how many were withdrawn."""
    talk = live()
    talk.push(*talk.append(1, 9))
    talk.take()
    replica = talk.server.copy()
    replica.log = replica.log[:4]
    replica.streams.trim(KEY, 0)
    replica.streams._streams[KEY] = {
        name: fields for name, fields in talk.server.streams._streams[KEY].items() if name[1] <= 4
    }
    talk.server = replica
    talk.append(11, 18)
    talk.server.trim(5)
    talk.ask()
    talk.read()
    gap, *rest = talk.take()
    assert told(gap) == (GapReason.ROLLED_BACK, None, None)
    assert rest == uids(14, 18)


def test_what_is_remembered_is_bounded() -> None:
    """A rollback beyond it is reported without a number."""
    with patch("aiopubsub.trail.REMEMBERED", 3):
        talk = live()
        replica = talk.server.copy()
        talk.push(*talk.append(1, 2))
        replica = talk.server.copy()
        for n in range(3, 30):
            talk.push(*talk.append(n, n))
        assert len(talk.trail._recent) <= 7
        talk.take()
        talk.server = replica
        talk.append(31, 70)
        talk.ask()
        talk.read()
        gap, *rest = talk.take()
    assert told(gap) == (GapReason.ROLLED_BACK, None, None)
    assert set(rest) <= set(uids(31, 70))
    assert rest[-1] == b"u70"


def test_a_long_search_goes_on_in_pages() -> None:
    """A fork that is further back than one page is found, and counted."""
    talk = live()
    talk.push(*talk.append(1, 50))
    replica = talk.server.copy()
    talk.push(*talk.append(51, 200))
    talk.take()
    talk.server = replica
    talk.append(301, 460)
    with patch("aiopubsub.trail.LARGEST_PAGE", 20):
        talk.ask()
        talk.read()
    gap, *rest = talk.take()
    assert told(gap) == (GapReason.ROLLED_BACK, 0, 150)
    assert rest == uids(301, 460)


def test_a_message_without_a_place() -> None:
    """It is handed over where it came, also while the history is read: nobody would read it again."""
    talk = live()
    plain = Message[object](b"x", b"x", ORIGIN, {})
    one, two, three = talk.append(1, 3)
    talk.push(one, plain, two)
    talk.push(plain)
    talk.trail.push([plain], [])
    assert len(talk.box.staged) == 1
    talk.box.settle()
    items = [talk.box.pop() for _ in range(5)]
    assert [isinstance(item, KeptMessage) for item in items] == [True, False, True, False, False]
    talk.push(*talk.append(5, 5))
    assert talk.trail.state is Stage.READING
    talk.push(plain, three)
    assert talk.box.pop() is plain
    assert talk.box.pop() is None


def test_the_slow_look() -> None:
    """It changes nothing while the newest entry is the position, and finds a push that was lost."""
    talk = live(2)
    talk.ask()
    assert talk.trail.state is Stage.LIVE
    talk.append(3, 4)
    talk.ask()
    assert talk.trail.state is Stage.READING
    talk.read()
    assert talk.take() == uids(3, 4)


def test_a_look_that_comes_back_while_it_reads() -> None:
    """It does not end the reading."""
    talk = live(2)
    questions = talk.trail.ask()
    answers = [talk.server.run(question) for question in questions]
    _, four = talk.append(3, 4)
    talk.push(four)
    talk.trail.answer(answers)
    assert talk.trail.state is Stage.READING
    talk.read()
    assert talk.take() == uids(3, 4)


@pytest.mark.parametrize(
    "reply",
    [
        None,
        7,
        [b"1-1"],
        [[b"1-1", None]],
        [[b"1-1", [b"a"]]],
        [[b"1-1", [b"uid", b"u", b"after"]]],
        [[b"1-1", [b"uid", b"u", b"data", b"x"]]],
        [[b"1-1", [b"uid", b"a b", b"after", b"-", b"data", b"x"]]],
        [[b"1-1", [b"uid", b"u", b"after", b"", b"data", b"x"]]],
    ],
)
def test_a_stream_of_somebody_else(reply: Any) -> None:
    """What was not written by this library is an error, not a message."""
    talk = Talk()
    talk.start().ask()
    with pytest.raises(Unreadable):
        talk.trail.answer([reply])


def test_fields_in_another_order_and_headers() -> None:
    """An entry has its fields by name; later versions may add some. Headers that are broken are none."""
    talk = Talk(BEGINNING)
    talk.start().ask()
    entries: list[Any] = [
        [b"1-1", [b"data", b"x", b"new", b"y", b"after", b"-", b"uid", b"a"]],
        [b"1-2", [b"uid", b"b", b"after", b"a", b"headers", b'{"h":"v"}', b"data", b"y"]],
        [b"1-3", [b"uid", b"c", b"after", b"b", b"headers", b"{", b"data", b"z"]],
    ]
    talk.trail.answer([entries, entries[-1:]])
    talk.box.settle()
    items = [talk.box.pop() for _ in range(3)]
    assert [(item.payload, dict(item.headers)) for item in items if isinstance(item, KeptMessage)] == [
        (b"x", {}),
        (b"y", {"h": "v"}),
        (b"z", {}),
    ]
