"""Following a history against a model of the server: what was handed over and reported is what there was."""

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


def pushed(frame: bytes) -> KeptMessage[object]:
    unframed = unframe(frame)
    assert unframed is not None
    payload, headers, place = unframed
    assert place is not None
    return KeptMessage(payload, payload, ORIGIN, headers, *place)


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
        if message.after == START and self.list + [self.base] != [START]:
            if self.is_expiry_due or self.may_have_expired:
                self.list, self.base, self.have = [], START, set()
            self.is_expiry_due = self.may_have_expired = False
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
                self.call([run_look], self.trail.push, run)
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
