"""The router against a model of a server: who gets what, whatever is cut, refused or changed meanwhile."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiopubsub.append import SHA
from aiopubsub.deliveries import STAGE, TURN, WAKE_COST
from aiopubsub.dialogue import Command, OutOfStep
from aiopubsub.errors import Closed, ConnectFailed, ErrorReply, SubscribeRefused
from aiopubsub.frame import frame
from aiopubsub.keys import history_key, slot_of
from aiopubsub.mailbox import Mailbox, Overflow
from aiopubsub.memory_streams import MemoryStreams
from aiopubsub.message import Gap, GapReason, KeptMessage, Message
from aiopubsub.reads import AUDIT_S, READS
from aiopubsub.router import BATCH, Router
from aiopubsub.routes import Kind, Target, Ticket
from aiopubsub.since import Since
from aiopubsub.slots import Redirect
from aiopubsub.topic import History, Pattern, Subscribable, Topic
from aiopubsub.trail import Trail


class Push(list[Any]):
    """A push of the server."""


def mailbox(buffer: int = 1_000_000, overflow: Overflow = Overflow.DROP_OLDEST) -> Mailbox:
    seconds = itertools.count(1)
    return Mailbox(
        buffer=buffer, buffer_bytes=1 << 40, overflow=overflow, clock=lambda: float(next(seconds))
    )


Key = tuple[str, str]
"""What a server knows of a subscription: `"channel"` or `"pattern"`, and its name."""

VERBS = {
    b"SUBSCRIBE": ("channel", b"subscribe"),
    b"PSUBSCRIBE": ("pattern", b"psubscribe"),
    b"UNSUBSCRIBE": ("channel", b"unsubscribe"),
    b"PUNSUBSCRIBE": ("pattern", b"punsubscribe"),
}


def keys_of(command: Command) -> list[Key]:
    kind, _ = VERBS[command[0]]
    return [(kind, key.decode()) for key in command[1:]]


class ModelServer:
    """One connection to a server that works off its commands when it is told to."""

    def __init__(self, forbidden: set[Key]) -> None:
        self.forbidden = forbidden
        self.inbox: deque[Command] = deque()
        self.out: list[Any] = []  # said, and not delivered yet
        self.said = 0
        self.subscribed: dict[Key, None] = {}
        self.ran: list[Command] = []

    def say(self, item: Any) -> None:
        self.out.append(item)
        self.said += 1

    def run(self, commands: int | None = None) -> None:
        """Work off so many commands, or all of them."""
        while self.inbox and commands != 0:
            commands = None if commands is None else commands - 1
            command = self.inbox.popleft()
            self.ran.append(command)
            if command[0] == b"PING":
                self.say(command[1])
                continue
            keys = keys_of(command)
            leaves = b"UNSUB" in command[0]
            if not leaves and any(key in self.forbidden for key in keys):
                self.say(ErrorReply("NOPERM no access to one of the channels"))
                continue
            for key in keys:
                if leaves:
                    self.subscribed.pop(key, None)
                else:
                    self.subscribed[key] = None
                self.say(Push([VERBS[command[0]][1], key[1].encode(), len(self.subscribed)]))

    def publish(self, channel: str, payload: bytes) -> None:
        if ("channel", channel) in self.subscribed:
            self.say(Push([b"message", channel.encode(), payload]))
        for kind, name in self.subscribed:
            if kind == "pattern" and fnmatchcase(channel, name):
                self.say(Push([b"pmessage", name.encode(), channel.encode(), payload]))

    def take(self, items: int | None = None) -> list[Any]:
        taken = self.out[:items]
        del self.out[: len(taken)]
        return taken


# -- the state machine -----------------------------------------------------------------------------

KEYS: list[Key] = [
    ("channel", "a"),
    ("channel", "ab"),
    ("channel", "b"),
    ("channel", "c"),
    ("pattern", "a*"),
    ("pattern", "*"),
    ("pattern", "a"),
]
SOME_KEYS = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4)


@dataclass(eq=False)
class Lost:
    """What a mailbox is to know of a lost connection."""

    channels: dict[str, None] = field(default_factory=dict)
    is_open: bool = True


@dataclass(eq=False)
class Box:
    """A mailbox, what it wants, and what it is to have."""

    mailbox: Mailbox
    decode: Any
    wishes: set[Key] = field(default_factory=set)
    missing: set[Key] = field(default_factory=set)
    expected: deque[Any] = field(default_factory=deque)
    holes: list[Lost] = field(default_factory=list)  # that are still open

    def topics(self, keys: Iterable[Key]) -> list[Subscribable[Any]]:
        """Its own topics: mailboxes with other codecs have unequal topics for one channel."""
        made: list[Subscribable[Any]] = []
        for kind, name in keys:
            if kind == "pattern":
                made.append(Pattern(name, decode=self.decode))
            elif self.decode is bytes:
                made.append(Topic(name))
            else:
                made.append(Topic(name, encode=self.decode, decode=self.decode))
        return made

    def found(self, key: Key) -> None:
        self.missing.discard(key)
        if not self.missing:
            for hole in self.holes:
                hole.is_open = False
            self.holes.clear()


@dataclass(eq=False)
class Waiting:
    """A ticket, and what it must not be done without."""

    box: Box | None
    kind: str
    keys: set[Key]
    refused: dict[str, str] = field(default_factory=dict)
    times_done: int = 0
    said_before: int = 0
    ticket: Ticket = field(init=False)

    def __post_init__(self) -> None:
        self.asked = set(self.keys)
        self.ticket = Ticket(self.on_done)

    def on_done(self) -> None:
        self.times_done += 1


class RouterModel(RuleBasedStateMachine):
    """Several mailboxes, a connection that comes and goes, and a server that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(Push)
        self.boxes = [Box(mailbox(), bytes), Box(mailbox(), bytes), Box(mailbox(), len)]
        self.forbidden: set[Key] = set()
        self.server: ModelServer | None = None
        self.waiting: list[Waiting] = []
        self.numbers = itertools.count()
        # what the router was told on this connection: asked, on or leaving, and by which command
        self.state: dict[Key, tuple[str, bytes]] = {}
        self.sent: dict[bytes, Command | None] = {}
        self.delivered = 0
        self.has_error = False

    @initialize(is_live=st.booleans(), keys=SOME_KEYS)
    def some_wishes(self, is_live: bool, keys: list[Key]) -> None:
        """Begin where things happen: with wishes, connected or not."""
        self.add(0, keys)
        if is_live:
            self.begin()

    def is_on(self, key: Key) -> bool:
        return self.state.get(key, ("",))[0] == "on"

    def wished(self) -> set[Key]:
        return set().union(*(box.wishes for box in self.boxes))

    # what subscribers do

    @rule(which=st.integers(0, 2), keys=SOME_KEYS)
    def add(self, which: int, keys: list[Key]) -> None:
        box = self.boxes[which]
        waiting = Waiting(box, "add", {key for key in keys if not self.is_on(key)})
        self.waiting.append(waiting)
        box.wishes.update(keys)
        for other in self.waiting:
            if other.kind == "remove":
                other.keys.difference_update(keys)
        self.router.add(box.mailbox, box.topics(keys), waiting.ticket)

    @rule(which=st.integers(0, 2), keys=SOME_KEYS)
    def remove(self, which: int, keys: list[Key]) -> None:
        box = self.boxes[which]
        had = box.wishes.intersection(keys)
        box.wishes.difference_update(keys)
        for key in keys:
            box.found(key)
        for other in self.waiting:
            if other.kind == "add" and other.box is box:
                other.keys.difference_update(keys)
        nobody = had - self.wished()
        waiting = Waiting(box, "remove", {key for key in nobody if key in self.state})
        self.waiting.append(waiting)
        self.router.remove(box.mailbox, box.topics(keys), waiting.ticket)

    @rule()
    def fence(self) -> None:
        waiting = Waiting(None, "fence", set())
        if self.server is not None:
            waiting.keys = {("fence", "")}
            waiting.said_before = self.server.said
        self.waiting.append(waiting)
        self.router.fence(waiting.ticket)

    # what the session does

    @precondition(lambda self: self.server is None)
    @rule()
    def begin(self) -> None:
        self.server = ModelServer(self.forbidden)
        self.router.begin()

    @precondition(lambda self: self.server is not None)
    @rule()
    def send(self) -> None:
        self.send_all()

    def send_all(self) -> bool:
        """Send what the router has to say; each command has its fence."""
        assert self.server is not None
        commands = self.router.commands()
        previous: Command | None = None
        for command in commands:
            if command[0] == b"PING":
                self.sent[command[1]] = previous
                for key in keys_of(previous) if previous else ():
                    self.state[key] = ("leaving" if b"UNSUB" in previous[0] else "asked", command[1])
                previous = None
            else:
                assert previous is None, "a command without a fence"
                previous = command
        assert previous is None, "a command without a fence"
        self.server.inbox.extend(commands)
        return bool(commands)

    @rule()
    def ping(self) -> None:
        self.router.ping()

    @precondition(lambda self: self.server is not None)
    @rule(items=st.integers(1, 8))
    def deliver(self, items: int | None) -> None:
        assert self.server is not None
        batch = self.server.take(items)
        for item in batch:
            self.delivered += 1
            self.expect(item)
        backlog = deque(batch)
        self.router.receive(backlog)
        assert not backlog
        assert not self.router.is_stalled

    @precondition(lambda self: self.server is not None)
    @rule()
    def cut(self) -> None:
        """The connection is lost, and whatever was on its way."""
        for box in self.boxes:
            on = {key for key in self.state if key in box.wishes and self.is_on(key)}
            lost = [key for key in self.state if key in on or key in box.missing]
            if lost:
                hole = box.expected[-1] if box.expected else None
                if not isinstance(hole, Lost):  # else nothing came between the two, so they are one
                    hole = Lost()
                    box.expected.append(hole)
                hole.is_open = True
                if hole not in box.holes:
                    box.holes.append(hole)
                hole.channels |= dict.fromkeys(name for _, name in lost)
                box.missing |= on
        self.state.clear()
        self.sent.clear()
        self.delivered = 0
        self.has_error = False
        self.server = None
        for waiting in self.waiting:
            if waiting.kind != "add":
                waiting.keys.clear()
        self.router.end()

    # what the server does

    @precondition(lambda self: self.server is not None)
    @rule(commands=st.integers(1, 4))
    def run_commands(self, commands: int) -> None:
        assert self.server is not None
        self.server.run(commands)

    @precondition(lambda self: self.server is not None)
    @rule(channel=st.sampled_from(["a", "ab", "b", "c", "zz"]), is_framed=st.booleans())
    def publish(self, channel: str, is_framed: bool) -> None:
        assert self.server is not None
        payload = b"%d" % next(self.numbers)
        self.server.publish(channel, frame(payload, {"h": channel}) if is_framed else payload)

    @rule(key=st.sampled_from(KEYS))
    def forbid_or_allow(self, key: Key) -> None:
        self.forbidden ^= {key}

    # what is to come of it

    def expect(self, item: Any) -> None:
        if isinstance(item, ErrorReply):
            self.has_error = True
        elif isinstance(item, bytes):
            self.expect_fence(item)
        elif item[0] in (b"message", b"pmessage"):
            key = ("channel" if item[0] == b"message" else "pattern", item[1].decode())
            for box in self.boxes:
                if key in box.wishes:
                    box.expected.append((box.topics([key])[0], item[-2].decode(), item[-1]))

    def expect_fence(self, token: bytes) -> None:
        assert next(iter(self.sent)) == token
        command = self.sent.pop(token)
        has_error, self.has_error = self.has_error, False
        keys = keys_of(command) if command else []
        for key in keys:
            state, by = self.state[key]
            if by != token:
                continue
            if state == "asked" and not has_error:
                self.state[key] = ("on", token)
                self.settle(key, "add")
                for box in self.boxes:
                    if key in box.wishes:
                        box.found(key)
                continue
            del self.state[key]
            self.settle(key, "remove")
            if state == "asked" and len(keys) == 1:
                self.expect_refusal(key)
        for waiting in self.waiting:
            if waiting.kind == "fence" and self.delivered >= waiting.said_before:
                waiting.keys.clear()

    def expect_refusal(self, key: Key) -> None:
        reason = "NOPERM no access to one of the channels"
        for box in self.boxes:
            if key not in box.wishes:
                continue
            box.wishes.discard(key)
            is_told = key in box.missing
            if is_told:
                box.expected.append(SubscribeRefused({key[1]: reason}))
            for waiting in self.waiting:
                if waiting.kind == "add" and waiting.box is box and key in waiting.keys:
                    waiting.refused[key[1]] = reason
                    is_told = True
            assert is_told, "a subscriber would lose a channel and not know"
            box.found(key)
        self.settle(key, "add")

    def settle(self, key: Key, kind: str) -> None:
        for waiting in self.waiting:
            if waiting.kind == kind:
                waiting.keys.discard(key)

    # what is checked

    @rule(which=st.integers(0, 2), items=st.integers(1, 5))
    def pop(self, which: int, items: int | None) -> None:
        """A mailbox has exactly what it is to have, in order."""
        box = self.boxes[which]
        while items != 0:
            items = None if items is None else items - 1
            item = box.mailbox.pop()
            if item is None:
                head = box.expected[0] if box.expected else None
                assert head is None or (isinstance(head, Lost) and head.is_open), f"not there: {head}"
                return
            assert box.expected, f"not expected: {item}"
            expected = box.expected.popleft()
            if isinstance(item, Message):
                topic, channel, payload = expected
                assert item.topic == topic
                assert item.channel == channel
                assert frame(item.payload, item.headers) == payload
            elif isinstance(item, Gap):
                assert isinstance(expected, Lost)
                assert not expected.is_open, "handed over before all of it was subscribed again"
                assert item.reason is GapReason.RECONNECTED
                assert set(item.channels) == set(expected.channels)
            else:
                assert vars(item) == vars(expected)

    @invariant()
    def tickets_are_not_done_too_soon(self) -> None:
        for waiting in self.waiting:
            assert waiting.times_done == waiting.ticket.is_done
            names = {name for _, name in waiting.asked}
            if waiting.ticket.is_done:
                assert not waiting.keys, f"{waiting.kind} done without {waiting.keys}"
                assert waiting.refused.items() <= waiting.ticket.refused.items()
            assert waiting.ticket.refused.keys() <= names
        self.waiting = [waiting for waiting in self.waiting if not waiting.ticket.is_done]

    @rule()
    def come_to_rest(self) -> None:
        """Connected and with all delivered, the server has what is wished, and nobody waits."""
        if self.server is None:
            self.begin()
        assert self.server is not None
        for _ in range(100):
            if not self.send_all() and not self.server.inbox and not self.server.out:
                break
            self.server.run()
            self.deliver(None)
            self.tickets_are_not_done_too_soon()
        else:
            raise AssertionError("it does not come to rest")
        self.tickets_are_not_done_too_soon()
        assert set(self.server.subscribed) == self.wished()
        assert [(w.kind, w.keys) for w in self.waiting] == []
        for which, box in enumerate(self.boxes):
            assert not box.missing
            self.pop(which, None)
            assert not box.expected

    def teardown(self) -> None:
        self.come_to_rest()


TestRouterModel = RouterModel.TestCase
TestRouterModel.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)


# -- examples --------------------------------------------------------------------------------------


class Talk:
    """A router and a server that answers at once, for examples."""

    def __init__(self, *forbidden: str) -> None:
        self.router = Router(Push)
        self.forbidden: set[Key] = {("channel", name) for name in forbidden}
        self.begin()

    def begin(self) -> None:
        self.server = ModelServer(self.forbidden)
        self.router.begin()

    def settle(self) -> list[Command]:
        """Until nothing more is to be said; the commands that were sent, without their fences."""
        sent: list[Command] = []
        while commands := self.router.commands():
            sent += [command for command in commands if command[0] != b"PING"]
            self.server.inbox.extend(commands)
            self.server.run()
            self.deliver()
        return sent

    def deliver(self) -> None:
        backlog = deque(self.server.take())
        while backlog:
            self.router.receive(backlog)

    def cut(self) -> None:
        self.router.end()
        self.begin()


def topics(count: int) -> list[Topic[bytes]]:
    return [Topic(f"c{n}") for n in range(count)]


def test_channels_are_asked_for_in_batches() -> None:
    """1025 channels are three commands, after a reconnect too."""
    talk, box, done = Talk(), mailbox(), Ticket()
    talk.router.add(box, topics(2 * BATCH + 1), done)
    assert [len(command) - 1 for command in talk.settle()] == [BATCH, BATCH, 1]
    assert done.is_done
    talk.cut()
    sent = talk.settle()
    assert [len(command) - 1 for command in sent] == [BATCH, BATCH, 1]
    assert [key for command in sent for key in command[1:]] == [b"c%d" % n for n in range(2 * BATCH + 1)]
    assert [isinstance(item, Gap) for item in iter(box.pop, None)] == [True]


def test_the_bytes_of_a_burst() -> None:
    """Each command has its fence, channels and patterns have their own commands."""
    router, box = Router(Push), mailbox()
    router.begin()
    router.add(box, [Topic("a"), Pattern("a*"), Topic("ä")], Ticket())
    assert router.commands() == [
        (b"SUBSCRIBE", b"a", "ä".encode()),
        (b"PING", b"1"),
        (b"PSUBSCRIBE", b"a*"),
        (b"PING", b"2"),
    ]
    assert router.commands() == []


def test_one_forbidden_channel_is_found_in_one_round() -> None:
    """A batch that fails is asked again channel by channel, once; the others are not affected."""
    talk, box, done = Talk("c7"), mailbox(), Ticket()
    talk.router.add(box, topics(BATCH + 10), done)
    sent = talk.settle()
    assert [len(command) - 1 for command in sent] == [BATCH, 10] + [1] * BATCH
    assert done.is_done
    assert done.refused == {"c7": "NOPERM no access to one of the channels"}
    assert len(talk.server.subscribed) == BATCH + 9
    assert box.pop() is None


def test_a_refused_channel_is_not_asked_for_again() -> None:
    """Neither later nor on the next connection: only a new wish asks again."""
    talk, box, again = Talk("c0"), mailbox(), Ticket()
    talk.router.add(box, topics(2), Ticket())
    talk.settle()
    talk.cut()
    assert talk.settle() == [(b"SUBSCRIBE", b"c1")]
    talk.forbidden.clear()
    talk.router.add(box, topics(1), again)
    assert talk.settle() == [(b"SUBSCRIBE", b"c0")]
    assert again.is_done
    assert again.refused == {}


def test_an_established_channel_that_is_refused_is_told_in_band() -> None:
    """After a reconnect nobody waits for a ticket: the refusal follows the gap."""
    talk, box, other = Talk(), mailbox(), mailbox()
    talk.router.add(box, topics(2), Ticket())
    talk.router.add(other, topics(2)[1:], Ticket())
    talk.settle()
    talk.forbidden.add(("channel", "c0"))
    talk.cut()
    assert box.pop() is None
    talk.settle()
    gap, error = iter(box.pop, None)
    assert isinstance(gap, Gap)
    assert gap.channels == ("c0", "c1")
    assert isinstance(error, SubscribeRefused)
    assert error.refused == {"c0": "NOPERM no access to one of the channels"}
    assert [isinstance(item, Gap) for item in iter(other.pop, None)] == [True]


def test_what_was_taken_back_before_it_was_sent_is_not_sent() -> None:
    """A wish that comes and goes within a turn costs nothing, and its tickets are done."""
    talk, box = Talk(), mailbox()
    added, removed, back = Ticket(), Ticket(), Ticket()
    talk.router.add(box, topics(1), added)
    talk.router.remove(box, topics(1), removed)
    assert talk.settle() == []
    assert (added.is_done, removed.is_done) == (True, True)
    talk.router.add(box, topics(1), Ticket())
    talk.settle()
    talk.router.remove(box, topics(1), removed := Ticket())
    talk.router.add(box, topics(1), back)
    assert back.is_done
    assert talk.settle() == []
    assert removed.is_done


def test_a_wish_that_comes_back_waits_for_its_own_confirmation() -> None:
    """The answer to an UNSUBSCRIBE does not confirm a wish that was made after it."""
    talk, box, back = Talk(), mailbox(), Ticket()
    talk.router.add(box, topics(1), Ticket())
    talk.settle()
    talk.router.remove(box, topics(1), left := Ticket())
    talk.server.inbox.extend(talk.router.commands())
    talk.router.add(box, topics(1), back)
    talk.server.run()
    talk.deliver()
    assert not back.is_done
    assert talk.settle() == [(b"SUBSCRIBE", b"c0")]
    assert (left.is_done, back.is_done) == (True, True)


def test_a_wish_that_goes_waits_until_it_is_forgotten() -> None:
    """The answer to a SUBSCRIBE does not tell that the server has forgotten."""
    talk, box, left = Talk(), mailbox(), Ticket()
    talk.router.add(box, topics(1), Ticket())
    talk.server.inbox.extend(talk.router.commands())
    talk.router.remove(box, topics(1), left)
    talk.server.run()
    talk.deliver()
    assert not left.is_done
    assert talk.settle() == [(b"UNSUBSCRIBE", b"c0")]
    assert left.is_done


def test_a_fence_is_done_after_what_was_sent_before_it() -> None:
    """A fence ticket waits for all that the server has said so far; without a connection for nothing."""
    talk, box = Talk(), mailbox()
    there: list[int] = []
    fence = Ticket(lambda: there.append(box.buffered))
    talk.router.add(box, topics(1), Ticket())
    talk.settle()
    talk.server.publish("c0", b"x")
    talk.router.fence(fence)
    assert not fence.is_done
    talk.settle()
    assert fence.is_done
    assert there == [1]
    talk.router.fence(cut := Ticket())
    talk.router.end()
    assert cut.is_done
    talk.router.fence(offline := Ticket())
    assert offline.is_done


def test_a_ping_tells_when_all_before_its_answer_is_here() -> None:
    """Whoever asked is called back after what the server had sent before; also if no answer will come."""
    talk, box = Talk(), mailbox()
    there: list[int] = []
    talk.router.add(box, topics(1), Ticket())
    talk.settle()
    talk.server.publish("c0", b"x")
    talk.router.ping(lambda: there.append(box.buffered))
    assert there == []
    talk.settle()
    assert there == [1]
    talk.router.ping(lambda: there.append(-1))
    talk.router.end("cut")
    assert there == [1, -1]


def test_the_subject_names_a_few() -> None:
    """What is subscribed, for people: three names at most, with a sign that there are more."""
    talk, box = Talk(), mailbox()
    assert talk.router.subject == ""
    talk.router.add(box, [Topic("a"), Pattern("b*"), Topic("c")], Ticket())
    assert talk.router.subject == "'a', 'c', 'b*'"
    talk.router.add(box, [Topic("d")], Ticket())
    assert talk.router.subject == "'a', 'c', 'd', …"


@pytest.mark.parametrize("confirmed", [0, 1])
def test_a_loss_in_the_midst_of_subscribing_again_is_a_gap_at_its_own_place(confirmed: int) -> None:
    """What came before all was confirmed again lies between two gaps, not after the only one."""
    talk, box = Talk(), mailbox()
    talk.router.add(box, topics(BATCH + 1), Ticket())
    talk.settle()
    talk.cut()
    talk.server.inbox.extend(talk.router.commands())
    talk.server.run(1 + confirmed)  # a batch is asked for, or confirmed, too; the last channel is neither
    talk.server.publish("c0", b"between")
    talk.deliver()
    talk.cut()
    talk.settle()
    talk.server.publish("c0", b"after")
    talk.deliver()
    first, between, second, after = iter(box.pop, None)
    assert isinstance(first, Gap)
    assert isinstance(second, Gap)
    assert isinstance(between, Message)
    assert isinstance(after, Message)
    assert (between.data, after.data) == (b"between", b"after")
    assert len(first.channels) == BATCH + 1


def test_a_gap_knows_how_the_connection_was_lost() -> None:
    """The reason of the session's end is the cause of the gap."""
    talk, box = Talk(), mailbox()
    talk.router.add(box, topics(1), Ticket())
    talk.settle()
    talk.router.end("reset by peer")
    talk.begin()
    talk.settle()
    gap = box.pop()
    assert isinstance(gap, Gap)
    assert gap.cause == "reset by peer"


def test_mailboxes_with_equal_topics_share_a_message() -> None:
    """One object for all whose topics are equal, another for another codec; headers are unpacked once."""
    talk, boxes = Talk(), [mailbox() for _ in range(3)]
    talk.router.add(boxes[0], [Topic("c")], Ticket())
    talk.router.add(boxes[1], [Topic("c")], Ticket())
    talk.router.add(boxes[2], [Topic.text("c")], Ticket())
    talk.settle()
    talk.server.publish("c", frame(b"x", {"a": "b"}))
    talk.deliver()
    one, other, text = (box.pop() for box in boxes)
    assert isinstance(one, Message)
    assert isinstance(text, Message)
    assert one is other
    assert one is not text
    assert (one.payload, one.data, one.headers) == (b"x", b"x", {"a": "b"})
    assert text.topic == Topic.text("c")


def test_a_channel_and_a_pattern_that_match_are_two_deliveries() -> None:
    """Each match is delivered once, with what matched; a channel's name need not be UTF-8."""
    talk, box = Talk(), mailbox()
    talk.router.add(box, [Topic("ab"), Pattern("a*"), Pattern("*b")], Ticket())
    talk.settle()
    talk.server.publish("ab", b"x")
    talk.deliver()
    items = [item for item in iter(box.pop, None) if isinstance(item, Message)]
    assert [(item.channel, item.topic) for item in items] == [
        ("ab", Topic("ab")),
        ("ab", Pattern("a*")),
        ("ab", Pattern("*b")),
    ]
    talk.router.receive(deque([Push([b"pmessage", b"a*", b"a\xff", b"x"])]))
    item = box.pop()
    assert isinstance(item, Message)
    assert item.channel == "a\udcff"


@pytest.mark.parametrize("reply", [b"2", b"OK", 1, None, Push([b"message", b"a", b"x"])[:]])
def test_a_reply_that_was_not_due(reply: object) -> None:
    """Anything but the fence that is due ends the session; what was said is not repeated."""
    router = Router(Push)
    router.begin()
    router.add(mailbox(), topics(1), Ticket())
    with pytest.raises(OutOfStep, match="nobody asked for"):
        router.receive(deque([reply]))
    router.commands()
    with pytest.raises(OutOfStep, match=rf"^a fence was due, not {type(reply).__name__}$"):
        router.receive(deque([reply]))


def test_an_error_that_nobody_asked_for() -> None:
    """The server's last words before it hangs up are not an answer."""
    router = Router(Push)
    router.begin()
    with pytest.raises(OutOfStep):
        router.receive(deque([ErrorReply("ERR closing")]))


def test_pushes_of_other_kinds_and_of_others_are_passed_over() -> None:
    """What is not a message, and messages that nobody wants any more, are nothing to anybody."""
    talk, box = Talk(), mailbox()
    talk.router.add(box, topics(1), Ticket())
    talk.settle()
    strange = [
        Push([b"invalidate", None]),
        Push([b"message", b"x", b"y"]),
        Push([b"pmessage", b"x", b"y", b"z"]),
    ]
    backlog = deque(strange)
    talk.router.receive(backlog)
    assert not backlog
    assert box.pop() is None


def test_a_turn_ends_after_so_many_deliveries() -> None:
    """A long fan-out lets others run: mailboxes take what is theirs a turn at a time, in their order."""
    talk = Talk()
    boxes = [mailbox() for _ in range(600)]
    for box in boxes:
        talk.router.add(box, topics(1), Ticket())
    talk.settle()
    each = 75
    backlog = deque([Push([b"message", b"c0", b"%d" % n]) for n in range(each)])
    backlog.append(Push([b"pong"])[:])  # a reply, which comes after what was before it
    in_a_turn = -(-TURN // (each + WAKE_COST))
    assert in_a_turn * 3 < len(boxes) <= in_a_turn * 4
    for turn in range(1, 4):
        assert talk.router.receive(backlog)
        assert len(backlog) == 1
        assert [box.buffered for box in boxes] == (
            [each] * in_a_turn * turn + [0] * (len(boxes) - in_a_turn * turn)
        )
    with pytest.raises(OutOfStep):
        talk.router.receive(backlog)
    assert all(box.buffered == each for box in boxes)


def test_a_long_run_wakes_each_subscriber_once() -> None:
    """However many others there are: to wake one for a part of the run at a time costs much more."""
    talk = Talk()
    woken: list[int] = []
    boxes = [mailbox() for _ in range(300)]
    for box in boxes:
        box.wake = woken.append
        talk.router.add(box, topics(1), Ticket())
    talk.settle()
    count = 2 * STAGE // len(boxes)
    backlog = deque([Push([b"message", b"c0", b"%d" % n]) for n in range(count)])
    while talk.router.receive(backlog):
        pass
    assert woken == [count] * len(boxes)


def test_what_was_staged_is_there_before_the_gap() -> None:
    """A connection that is lost in the middle of a long fan-out takes nothing away that had come."""
    talk = Talk()
    boxes = [mailbox() for _ in range(TURN // WAKE_COST + 10)]
    for box in boxes:
        talk.router.add(box, topics(1), Ticket())
    talk.settle()
    assert talk.router.receive(deque([Push([b"message", b"c0", b"x"])]))
    assert not boxes[-1].buffered
    talk.cut()
    talk.settle()
    for box in boxes:
        message, gap = box.pop(), box.pop()
        assert isinstance(message, Message)
        assert isinstance(gap, Gap)


def test_mailboxes_with_several_routes_keep_the_order_of_the_server() -> None:
    """Whether a message goes to one mailbox or to many, each mailbox gets its messages in their order."""
    talk, wide, other = Talk(), mailbox(), mailbox()
    talk.router.add(wide, [*topics(3), Pattern("c*")], Ticket())
    talk.router.add(other, [topics(2)[1], Pattern("c*", decode=bytes.decode)], Ticket())
    talk.settle()
    pushes: list[Push] = []
    for n in range(30):
        channel = b"c%d" % (n % 7 % 3)
        pushes.append(Push([b"message", channel, b"%d" % n]))
        pushes.append(Push([b"pmessage", b"c*", channel, b"%d" % n]))
    assert not talk.router.receive(deque(pushes))
    for box, expected in (
        (wide, range(60)),
        (other, [n for n in range(60) if n % 2 or n // 2 % 7 % 3 == 1]),
    ):
        got = [item for item in iter(box.pop, None) if isinstance(item, Message)]
        assert [int(message.payload) for message in got] == [n // 2 for n in expected]
        assert [type(message.topic) for message in got] == [Pattern if n % 2 else Topic for n in expected]
        assert {message.channel for message in got} <= {"c0", "c1", "c2"}


def test_a_mailbox_that_blocks_asks_to_stop() -> None:
    """What was read is taken; `is_stalled` says that no more should be, until it is called again."""
    talk, box = Talk(), mailbox(2, Overflow.BLOCK)
    talk.router.add(box, topics(1), Ticket())
    talk.settle()
    push = Push([b"message", b"c0", b"x"])
    talk.router.receive(deque([push, push]))
    assert not talk.router.is_stalled
    talk.router.receive(deque([push]))
    assert talk.router.is_stalled
    assert box.buffered == 3
    while box.pop() is not None:
        pass
    talk.router.receive(deque([push, push]))
    assert not talk.router.is_stalled


def test_a_failure_in_the_middle_of_a_batch_loses_nothing_of_it() -> None:
    """What came before the failure is there before the gap, and the next session is heard."""
    talk, box = Talk(), mailbox()
    talk.router.add(box, topics(1), Ticket())
    talk.settle()
    with pytest.raises(IndexError):
        talk.router.receive(deque([Push([b"message", b"c0", b"1"]), Push([b"message", b"c0"])]))
    talk.cut()
    talk.settle()
    talk.server.publish("c0", b"2")
    talk.deliver()
    first, gap, second = iter(box.pop, None)
    assert isinstance(first, Message)
    assert isinstance(gap, Gap)
    assert isinstance(second, Message)
    assert (first.payload, second.payload) == (b"1", b"2")


def test_closing_tells_whoever_waits() -> None:
    """Tickets are done with the error, mailboxes raise it and end; what comes later is told at once."""
    router, box, waiting = Router(Push), mailbox(), Ticket()
    router.add(box, topics(1), waiting)
    error = ConnectFailed("h:1", "WRONGPASS", permanent=True)
    router.close(error)
    assert waiting.is_done
    assert waiting.error is error
    assert list(iter(box.pop, None)) == [error]
    assert box.is_drained
    router.add(mailbox(), topics(1), late := Ticket())
    assert late.is_done
    assert isinstance(late.error, ConnectFailed)


def test_closing_on_purpose_is_no_error_to_mailboxes() -> None:
    """When the client is closed, mailboxes just end, without a gap."""
    talk, box = Talk(), mailbox()
    talk.router.add(box, topics(1), Ticket())
    talk.settle()
    talk.router.close(Closed("Client"))
    talk.router.end()
    assert box.pop() is None
    assert box.is_drained


def test_a_mailbox_that_was_forgotten_is_left_alone() -> None:
    """Closing does not end a mailbox that was let go."""
    talk, box = Talk(), mailbox()
    talk.router.add(box, topics(1), Ticket())
    talk.router.remove(box, topics(1), Ticket())
    talk.router.forget(box)
    talk.router.close(Closed("Client"))
    assert not box.is_ended


def test_without_a_connection_nothing_is_said() -> None:
    """`commands` is empty before a session begins and after it has ended."""
    router = Router(Push)
    router.add(mailbox(), topics(1), Ticket())
    assert router.commands() == []
    router.begin()
    assert len(router.commands()) == 2
    router.end()
    router.add(mailbox(), topics(2), Ticket())
    assert router.commands() == []


def test_nothing_has_a_deadline() -> None:
    """Subscribers bound their own waits."""
    assert Router(Push).expire(1e9) == float("inf")


# -- topics with history ---------------------------------------------------------------------------


class KeptTalk:
    """A router, and a server that keeps histories and works off its commands when it is told to."""

    def __init__(self) -> None:
        self.router = Router(Push)
        self.streams = MemoryStreams(lambda: 5.0)
        self.numbers = itertools.count(1)
        self.inbox: deque[Command] = deque()
        self.out: deque[Any] = deque()
        self.subscribed: dict[bytes, None] = {}
        self.refusal: ErrorReply | None = None  # what it says to whoever reads
        self.ran: list[Command] = []
        self.router.begin()

    def send(self) -> list[Command]:
        commands = self.router.commands()
        self.inbox.extend(commands)
        return commands

    def run(self) -> None:
        while self.inbox:
            command = self.inbox.popleft()
            self.ran.append(command)
            verb, *args = command
            if verb == b"PING":
                self.out.append(args[0])
            elif verb == b"SUBSCRIBE":
                self.subscribed.update(dict.fromkeys(args))
            elif verb == b"UNSUBSCRIBE":
                for key in args:
                    self.subscribed.pop(key, None)
            elif self.refusal is not None:
                self.out.append(self.refusal)
            else:
                read = self.streams.range if verb == b"XRANGE" else self.streams.reverse_range
                self.out.append(read(*args))

    def deliver(self) -> None:
        backlog = deque(self.out)
        self.out.clear()
        while self.router.receive(backlog):
            pass

    def settle(self) -> None:
        for _ in range(100):
            if not self.send() and not self.out:
                return
            self.run()
            self.deliver()
        raise AssertionError("it does not come to rest")

    def publish(self, channel: str, count: int = 1, *, is_lost: bool = False) -> None:
        def push(key: bytes, payload: bytes) -> int:
            if key in self.subscribed and not is_lost:
                self.out.append(Push([b"message", key, payload]))
            return 1

        for _ in range(count):
            uid = b"u%d" % next(self.numbers)
            key = channel.encode()
            self.streams.append(
                *(push, SHA, b"1", history_key(key), key, b"1000", b"", b""), uid, b"{}", uid
            )

    def cut(self) -> None:
        self.router.end()
        self.inbox.clear()
        self.out.clear()
        self.subscribed.clear()
        self.router.begin()

    def add(
        self, box: Mailbox, *names: str, since: Since = None, done: Ticket | None = None
    ) -> dict[str, Trail]:
        topics = [Topic(name, history=History()) for name in names]
        trails = {topic: Trail(box, topic, since, lambda: 5.0) for topic in topics}
        box.on_room = lambda: self.router.make_use_of_room(box)
        self.router.add(box, topics, done or Ticket(), trails)
        return {topic.name: trail for topic, trail in trails.items()}


def kept(name: str) -> Topic[bytes]:
    return Topic(name, history=History())


def got(box: Mailbox) -> list[bytes | type]:
    """Payloads, and the types of what is no message."""
    return [item.payload if isinstance(item, Message) else type(item) for item in iter(box.pop, None)]


def u(first: int, last: int) -> list[bytes]:
    return [b"u%d" % n for n in range(first, last + 1)]


def test_a_ticket_waits_until_the_trail_is_joined() -> None:
    """Confirmed is not enough: from the ticket on nothing is missed, so the history was asked."""
    talk, box, done = KeptTalk(), mailbox(), Ticket()
    talk.publish("c", 3)
    talk.add(box, "c", done=done)
    assert [command[0] for command in talk.send()] == [b"SUBSCRIBE", b"PING"]
    talk.run()
    talk.deliver()
    assert not done.is_done
    assert [command[0] for command in talk.send()] == [b"XREVRANGE"]
    talk.run()
    assert not done.is_done
    talk.deliver()
    assert done.is_done
    talk.publish("c", 2)
    talk.deliver()
    assert got(box) == u(4, 5)


def test_a_channel_that_is_subscribed_already_is_read_at_once() -> None:
    """For a second mailbox nothing is subscribed again, and it joins exactly where it reads."""
    talk, first, second, done = KeptTalk(), mailbox(), mailbox(), Ticket()
    talk.add(first, "c")
    talk.settle()
    talk.publish("c", 2)
    talk.add(second, "c", since="beginning", done=done)
    commands = talk.send()
    assert [command[0] for command in commands] == [b"XRANGE", b"XREVRANGE"]
    talk.publish("c")
    talk.run()
    talk.publish("c")
    talk.deliver()
    assert done.is_done
    assert (got(first), got(second)) == (u(1, 4), u(1, 4))


def test_no_more_than_so_many_read_at_a_time() -> None:
    """Their pages would fill the connection; the others wait, and each has its turn."""
    talk, done = KeptTalk(), Ticket()
    boxes = [mailbox() for _ in range(3 * READS)]
    talk.publish("c", 40)
    for box in boxes:
        talk.add(box, "c", since="beginning", done=done)
    most = 0
    while commands := talk.send():
        most = max(most, sum(command[0] == b"XRANGE" for command in commands))
        assert len(talk.router._reads._reading) <= READS
        talk.run()
        talk.deliver()
    assert most == READS
    assert done.is_done
    assert [got(box) for box in boxes] == [u(1, 40)] * len(boxes)


def test_unsubscribing_with_an_answer_outstanding() -> None:
    """The answer comes to nobody; what is behind it is not out of step, and the ticket is done."""
    talk, box, other, added = KeptTalk(), mailbox(), mailbox(), Ticket()
    talk.publish("c", 2)
    talk.add(box, "c", since="beginning", done=added)
    talk.add(other, "d")
    talk.send()
    talk.run()
    talk.deliver()
    talk.send()  # asks
    left = Ticket()
    talk.router.remove(box, [kept("c")], left)
    assert added.is_done
    talk.settle()
    assert left.is_done
    assert got(box) == []
    assert list(talk.subscribed) == [b"d"]
    talk.publish("d")
    talk.deliver()
    assert got(other) == u(3, 3)


def test_subscribing_again_with_an_old_answer_outstanding() -> None:
    """The answer to the trail that was left is not taken for one to the new trail."""
    talk, box, done = KeptTalk(), mailbox(), Ticket()
    talk.publish("c", 2)
    talk.add(box, "c", since="beginning")
    talk.send()
    talk.run()
    talk.deliver()
    talk.send()
    talk.router.remove(box, [kept("c")], Ticket())
    talk.add(box, "c", done=done)
    talk.settle()
    assert done.is_done
    talk.publish("c")
    talk.deliver()
    assert got(box) == u(3, 3)


def test_a_connection_that_is_lost_with_an_answer_outstanding() -> None:
    """It reads again on the next one; there is no gap."""
    talk, box, done = KeptTalk(), mailbox(), Ticket()
    talk.publish("c", 30)
    talk.add(box, "c", since="beginning", done=done)
    talk.send()
    talk.run()
    talk.deliver()
    talk.send()
    talk.run()
    talk.cut()
    assert not done.is_done
    talk.settle()
    assert done.is_done
    talk.cut()
    talk.publish("c", 2)
    talk.settle()
    assert got(box) == u(1, 32)


def test_mixed_topics_and_a_lost_connection() -> None:
    """The gap is for those that live from pushes alone."""
    talk, box = KeptTalk(), mailbox()
    talk.add(box, "kept")
    talk.router.add(box, [Topic("plain")], Ticket())
    talk.settle()
    talk.cut()
    talk.publish("kept")
    talk.settle()
    [gap, message] = sorted(iter(box.pop, None), key=lambda item: isinstance(item, Message))
    assert isinstance(gap, Gap)
    assert (gap.reason, gap.channels) == (GapReason.RECONNECTED, ("plain",))
    assert isinstance(message, KeptMessage)


def test_with_and_without_history_on_one_channel() -> None:
    """Each group gets its own objects: with a place where there is a history, the same payload for all."""
    talk, one, plain, other = KeptTalk(), mailbox(), mailbox(), mailbox()
    talk.add(one, "c")
    talk.router.add(plain, [Topic("c")], Ticket())
    talk.add(other, "c")
    talk.settle()
    talk.publish("c", 3)
    talk.deliver()
    assert got(plain) == u(1, 3)
    items = [
        [item for item in iter(box.pop, None) if isinstance(item, KeptMessage)] for box in (one, other)
    ]
    assert [[item.payload for item in each] for each in items] == [u(1, 3)] * 2
    assert all(a is b for a, b in zip(*items, strict=True))


@pytest.mark.parametrize("is_joined", [False, True])
def test_a_history_that_may_not_be_read(is_joined: bool) -> None:
    """That is a topic which was refused: told to whoever waits, or in band, and it is left."""
    talk, box, done = KeptTalk(), mailbox(), Ticket()
    if is_joined:
        talk.add(box, "c")
        talk.settle()
        talk.cut()
    talk.refusal = ErrorReply("NOPERM no permission for xrange")
    talk.add(box, "c", done=done)
    talk.settle()
    if is_joined:
        error = box.pop()
        assert isinstance(error, SubscribeRefused)
        assert error.refused == {"c": "NOPERM no permission for xrange"}
    else:
        assert done.refused == {"c": "NOPERM no permission for xrange"}
    assert done.is_done
    assert box.pop() is None
    assert not talk.router.wants(box, kept("c"))
    assert talk.subscribed == {}


def test_a_server_that_is_loading_while_a_trail_reads() -> None:
    """It has just started: the session ends, and the topic is not refused."""
    talk, box, done = KeptTalk(), mailbox(), Ticket()
    talk.add(box, "c", done=done)
    talk.send()
    talk.run()
    talk.deliver()
    talk.refusal = ErrorReply("LOADING Redis is loading the dataset in memory")
    talk.send()
    talk.run()
    with pytest.raises(OutOfStep, match="still loading"):
        talk.deliver()
    talk.refusal = None
    talk.cut()
    talk.settle()
    assert done.is_done
    assert done.refused == {}


def test_a_full_mailbox_reads_on_when_there_is_room() -> None:
    """It asks for nothing while it is full, others are not held up, and nothing is lost."""
    talk, slow, fast = KeptTalk(), mailbox(4), mailbox()
    for box in (slow, fast):
        talk.add(box, "c")
    talk.settle()
    talk.publish("c", 10)
    talk.deliver()
    talk.settle()
    assert slow.buffered == 4
    assert got(fast) == u(1, 10)
    assert [slow.pop().payload for _ in range(2)] == u(1, 2)  # type: ignore[union-attr]
    talk.settle()
    rest: list[Any] = []
    while more := got(slow):
        rest += more
        talk.settle()
    assert rest == u(3, 10)
    assert slow.dropped == 0


def test_a_drain_waits_until_all_is_read() -> None:
    """The ticket of `catch_up` is done when the trail is live; at once if it is."""
    talk, box = KeptTalk(), mailbox(4)
    talk.publish("c", 10)
    talk.add(box, "c", since="beginning")
    talk.settle()
    talk.router.catch_up(box, reached := Ticket())
    assert not reached.is_done
    taken: list[Any] = []
    while not reached.is_done:
        taken += got(box)
        talk.settle()
    assert taken + got(box) == u(1, 10)
    talk.router.catch_up(box, again := Ticket())
    assert again.is_done


@pytest.mark.parametrize("how", ["remove", "close", "refuse"])
def test_nobody_waits_for_a_trail_that_is_no_more(how: str) -> None:
    """Tickets of joining and of catching up are done with it."""
    talk, box, done, reached = KeptTalk(), mailbox(2), Ticket(), Ticket()
    talk.publish("c", 10)
    talk.add(box, "c", since="beginning", done=done)
    talk.router.catch_up(box, reached)
    talk.send()
    talk.run()
    talk.deliver()
    if how == "remove":
        talk.router.remove(box, [kept("c")], Ticket())
    elif how == "close":
        talk.router.close(Closed("Client"))
        assert isinstance(done.error, Closed)
    else:
        talk.refusal = ErrorReply("NOPERM no")
        talk.settle()
    assert done.is_done
    assert reached.is_done


def test_quiet_trails_have_their_slow_looks_spread_out() -> None:
    """Each once in `AUDIT_S`, not all at a time; a history that was changed unseen is found."""
    talk = KeptTalk()
    boxes = [mailbox() for _ in range(10)]
    assert talk.router.expire(0.0) == float("inf")
    for n, box in enumerate(boxes):
        talk.add(box, f"c{n}")
    talk.settle()
    due: dict[float, int] = {}
    now = 1000.0
    talk.ran.clear()
    while (now := talk.router.expire(now)) <= 1000.0 + AUDIT_S:
        talk.router.expire(now)
        due[now] = sum(command[0] == b"XREVRANGE" for command in talk.send())
        talk.run()
        talk.deliver()
    assert sum(due.values()) == len(boxes)
    assert max(due.values()) == 1
    talk.publish("c3", 2, is_lost=True)
    talk.router.expire(now + AUDIT_S)
    talk.settle()
    assert [len(got(box)) for box in boxes] == [2 if n == 3 else 0 for n in range(10)]


def test_a_trail_that_is_left_has_no_more_looks() -> None:
    """Nothing is due when nobody follows a history."""
    talk, box = KeptTalk(), mailbox()
    talk.add(box, "c")
    talk.settle()
    assert talk.router.expire(0.0) < float("inf")
    talk.router.remove(box, [kept("c")], Ticket())
    assert talk.router.expire(0.0) == float("inf")
    assert not talk.router._reads._audits


def test_nothing_is_left_over() -> None:
    """Trails that come and go leave nothing in the tables."""
    talk = KeptTalk()
    for n in range(5):
        box = mailbox(2)
        talk.publish("c", 5)
        talk.add(box, "c", since="beginning")
        if n % 2:
            talk.settle()
        else:
            talk.send()
        talk.router.remove(box, [kept("c")], Ticket())
        talk.router.forget(box)
    talk.settle()
    router = talk.router
    tables = (
        router._mailboxes,
        router._reads._reading,
        router._reads._wanting,
        router._reads._joining,
        router._reads._catching_up,
    )
    assert not any(tables)
    assert not router._wire
    assert not router._due
    assert not router._deliveries


# -- a node of a cluster ---------------------------------------------------------------------------


class Shard:
    """The router of one node, and what it was told that the node does not serve."""

    def __init__(self) -> None:
        self.redirects: list[tuple[list[str], str]] = []
        self.router = Router(Push, self.on_redirect)
        self.router.begin()

    def on_redirect(self, targets: list[Target], redirect: Redirect) -> None:
        self.redirects.append(([target.key.decode() for target in targets], redirect.kind))

    def sent(self) -> list[Command]:
        """The next commands, without their fences."""
        self.tokens: list[bytes] = []
        commands = self.router.commands()
        self.tokens = [command[1] for command in commands if command[0] == b"PING"]
        return [command for command in commands if command[0] != b"PING"]

    def say(self, *items: Any) -> None:
        backlog = deque(items)
        while self.router.receive(backlog):
            pass

    def answer(self, *errors: str | None) -> None:
        """Confirm what was sent last, or refuse it: one word for each command."""
        for token, error in itertools.zip_longest(self.tokens, errors):
            self.say(*([] if error is None else [ErrorReply(error)]), token)

    def subscribed(self, box: Mailbox, *names: str) -> Ticket:
        self.router.add(box, list(map(Topic, names)), done := Ticket())
        self.sent()
        self.answer()
        assert done.is_done
        return done


def target(name: str) -> Target:
    return Target(Kind.SHARD, name.encode())


def left(name: str) -> Push:
    return Push([b"sunsubscribe", name.encode(), 0])


def message(name: str, payload: bytes) -> Push:
    return Push([b"smessage", name.encode(), payload])


def gaps(box: Mailbox) -> list[Any]:
    """Payloads of messages, and reason and channels of gaps."""
    return [
        (item.reason, *item.channels) if isinstance(item, Gap) else getattr(item, "payload", item)
        for item in iter(box.pop, None)
    ]


def test_channels_of_several_slots_have_commands_and_fences_of_their_own() -> None:
    """A server would refuse them together; what it says to one tells nothing of the others."""
    shard, box = Shard(), mailbox()
    shard.router.add(box, [Topic("{a}1"), Topic("b"), Topic("{a}2"), Topic("c", sharded=False)], Ticket())
    assert shard.router.commands() == [
        (b"SUBSCRIBE", b"c"),
        (b"PING", b"1"),
        (b"SSUBSCRIBE", b"{a}1", b"{a}2"),
        (b"PING", b"2"),
        (b"SSUBSCRIBE", b"b"),
        (b"PING", b"3"),
    ]


def test_a_burst_of_every_kind_of_answer() -> None:
    """What moved, what nobody serves, and what is forbidden is told; what was confirmed is subscribed."""
    shard, box, done = Shard(), mailbox(), Ticket()
    names = ["{a}1", "{a}2", "b", "{c}1", "{c}2", "d"]
    shard.router.add(box, list(map(Topic, names)), done)
    assert len(shard.sent()) == 4
    shard.answer(f"MOVED {slot_of(b'a')} h:1", "CLUSTERDOWN Hash slot not served", "NOPERM no")
    assert shard.redirects == [(["{a}1", "{a}2"], "MOVED"), (["b"], "CLUSTERDOWN")]
    assert shard.sent() == [(b"SSUBSCRIBE", b"{c}1"), (b"SSUBSCRIBE", b"{c}2")]
    shard.answer("NOPERM no")
    assert not done.is_done
    assert done.refused == {"{c}1": "NOPERM no"}
    assert shard.sent() == []
    shard.router.remove(box, [Topic("d"), Topic("{c}2"), Topic("b")], gone := Ticket())
    assert shard.sent() == [(b"SUNSUBSCRIBE", b"d"), (b"SUNSUBSCRIBE", b"{c}2")]
    shard.answer()
    assert gone.is_done
    shard.router.ask_again([target("{a}1"), target("{a}2"), target("b")])
    assert shard.sent() == [(b"SSUBSCRIBE", b"{a}1", b"{a}2")]
    shard.answer("TRYAGAIN not now")
    assert shard.redirects[2:] == [(["{a}1", "{a}2"], "TRYAGAIN")]
    shard.router.ask_again([target("{a}1"), target("{a}2")])
    shard.sent()
    shard.answer()
    assert done.is_done
    assert gaps(box) == []


def test_a_server_that_says_that_a_slot_has_left() -> None:
    """Messages may be missing from there on, until the channel is confirmed again."""
    shard, box = Shard(), mailbox()
    shard.subscribed(box, "a", "b")
    shard.say(message("a", b"1"), left("a"), left("a"), left("zz"), message("b", b"2"))
    assert shard.redirects == [(["a"], "LEFT")]
    assert shard.sent() == []  # who was told finds out where it is
    assert gaps(box) == [b"1", b"2"]
    shard.router.ask_again([target("a")])
    assert shard.sent() == [(b"SSUBSCRIBE", b"a")]
    shard.answer()
    shard.say(message("a", b"3"))
    assert gaps(box) == [(GapReason.MOVED, "a"), b"3"]


def test_a_server_that_says_that_we_have_left() -> None:
    """As we asked: that is neither a gap, nor the end of it; the fence is."""
    shard, box = Shard(), mailbox()
    shard.subscribed(box, "a", "b")
    shard.router.remove(box, [Topic("a")], gone := Ticket())
    assert shard.sent() == [(b"SUNSUBSCRIBE", b"a")]
    [token] = shard.tokens
    shard.say(left("a"))
    assert shard.sent() == []
    assert not gone.is_done
    shard.say(token)
    assert gone.is_done
    assert gaps(box) == []


def test_a_server_that_says_that_we_had_left_when_we_have_come_back() -> None:
    """What was asked later counts: the channel is not asked for a third time."""
    shard, box = Shard(), mailbox()
    shard.subscribed(box, "a")
    shard.router.remove(box, [Topic("a")], gone := Ticket())
    shard.sent()
    [first] = shard.tokens
    shard.router.add(box, [Topic("a")], back := Ticket())
    assert shard.sent() == [(b"SSUBSCRIBE", b"a")]
    [second] = shard.tokens
    shard.say(left("a"))
    assert shard.sent() == []
    shard.say(first)
    assert not back.is_done
    shard.say(Push([b"ssubscribe", b"a", 1]), second)
    assert back.is_done
    assert gone.is_done
    assert gaps(box) == []
    assert shard.redirects == []
    shard.say(left("a"))  # and this time it is the slot
    assert shard.redirects == [(["a"], "LEFT")]


def test_a_slot_that_leaves_while_its_channel_is_asked_for() -> None:
    """It is asked for again; nothing was missed, because nothing had been confirmed."""
    shard, box, done = Shard(), mailbox(), Ticket()
    shard.router.add(box, [Topic("a")], done)
    shard.sent()
    [first] = shard.tokens
    shard.say(Push([b"ssubscribe", b"a", 1]), left("a"))
    assert shard.redirects == [(["a"], "LEFT")]
    shard.router.ask_again([target("a")])
    assert shard.sent() == [(b"SSUBSCRIBE", b"a")]
    [second] = shard.tokens
    shard.say(first)
    assert not done.is_done
    shard.say(second)
    assert done.is_done
    assert gaps(box) == []


@pytest.mark.parametrize("is_told", [False, True])
def test_a_move_is_one_gap(is_told: bool) -> None:
    """Whether the server has said it before or not; the old connection has to forget, if it knows."""
    old, new, box, other = Shard(), Shard(), mailbox(), mailbox()
    names = ["{a}1", "{a}2", "{a}3"]
    old.subscribed(box, *names, "b")
    old.router.add(other, [Topic("{a}1"), Topic("{a}4")], waiting := Ticket())
    asked = old.sent()
    if is_told:
        [token] = old.tokens
        old.say(*map(left, names), ErrorReply(f"MOVED {slot_of(b'a')} h:1"), token)
        assert old.redirects == [*(([name], "LEFT") for name in names), (["{a}4"], "MOVED")]
        old.router.move([target(name) for name in [*names, "{a}4"]], new.router, "it went")
        assert old.sent() == []
    else:
        old.router.move([target(name) for name in [*names, "{a}4"]], new.router, "it went")
        assert asked == [(b"SSUBSCRIBE", b"{a}4")]
        assert old.sent() == [(b"SUNSUBSCRIBE", b"{a}1", b"{a}2", b"{a}3", b"{a}4")]
    old.say(message("{a}1", b"late"), message("b", b"x"))
    assert gaps(box) == [b"x"]
    assert not waiting.is_done
    assert new.sent() == [(b"SSUBSCRIBE", b"{a}1", b"{a}2", b"{a}3", b"{a}4")]
    new.answer()
    assert waiting.is_done
    new.say(message("{a}3", b"y"))
    assert gaps(box) == [(GapReason.MOVED, *names), b"y"]
    assert gaps(other) == [(GapReason.MOVED, "{a}1")]


def test_a_gap_goes_along() -> None:
    """What was lost with a node is found at the one that takes over: it is no second gap."""
    old, new, box = Shard(), Shard(), mailbox()
    old.subscribed(box, "{a}1", "b")
    old.router.end("died")
    old.router.move([target("{a}1")], new.router, "it went")
    new.sent()
    new.answer()
    assert gaps(box) == []  # the gap is of both channels, and one is still lost
    old.router.begin()
    assert old.sent() == [(b"SSUBSCRIBE", b"b")]
    old.answer()
    assert gaps(box) == [(GapReason.RECONNECTED, "{a}1", "b")]


def test_a_channel_that_goes_to_and_fro() -> None:
    """Who is told to forget it and to have it again does so, in that order; tickets are done once."""
    old, new, box, done = Shard(), Shard(), mailbox(), []
    old.subscribed(box, "a")
    waiting = Ticket(lambda: done.append(1))
    old.router.move([target("a")], new.router, "there")
    new.router.add(mailbox(), [Topic("a")], waiting)
    assert old.sent() == [(b"SUNSUBSCRIBE", b"a")]
    new.router.move([target("a")], old.router, "and back")
    assert new.sent() == []
    first = old.tokens
    assert old.sent() == [(b"SSUBSCRIBE", b"a")]
    old.say(left("a"), *first)
    assert done == []
    old.answer()
    assert done == [1]
    assert gaps(box) == [(GapReason.MOVED, "a")]


def test_what_nobody_wants_does_not_move() -> None:
    """It may have been taken back since somebody thought so."""
    old, new, box = Shard(), Shard(), mailbox()
    old.subscribed(box, "a")
    old.router.remove(box, [Topic("a")], gone := Ticket())
    old.router.move([target("a"), target("b")], new.router, "it went")
    assert new.sent() == []
    assert old.sent() == [(b"SUNSUBSCRIBE", b"a")]
    old.answer()
    assert gone.is_done


@pytest.mark.parametrize("words", ["TRYAGAIN not now", "CLUSTERDOWN down", "ASK 1 h:1", "MOVED 1 h:1"])
def test_a_history_that_cannot_be_read_just_now(words: str) -> None:
    """Nobody is refused; it is asked for again when somebody says so."""
    shard, box, done = Shard(), mailbox(), Ticket()
    trail = Trail(box, kept("a"), "beginning", lambda: 5.0)
    shard.router.add(box, [kept("a")], done, {kept("a"): trail})
    shard.sent()
    shard.answer()
    assert [command[0] for command in shard.sent()] == [b"XRANGE", b"XREVRANGE"]
    shard.say(ErrorReply(words), ErrorReply(words))
    assert shard.redirects == [(["a"], words.split(maxsplit=1)[0])]
    assert shard.sent() == []
    shard.router.ask_again([target("a")])
    assert [command[0] for command in shard.sent()] == [b"XRANGE", b"XREVRANGE"]
    shard.say([], [])
    assert done.is_done
    assert not done.refused


def test_a_server_alone_refuses_for_good() -> None:
    """Without a cluster these are errors like any other."""
    router, done = Router(Push), Ticket()
    router.begin()
    router.add(mailbox(), [Topic("a")], done)
    router.commands()
    router.receive(deque([ErrorReply("MOVED 1 h:1"), b"1"]))
    assert done.refused == {"a": "MOVED 1 h:1"}


def test_to_a_node_that_refuses_us() -> None:
    """Whoever has come is told, mailboxes and tickets alike."""
    old, new, box, done = Shard(), Shard(), mailbox(), Ticket()
    old.subscribed(box, "a")
    old.router.add(mailbox(), [Topic("b")], done)
    error = ConnectFailed("h:1", "WRONGPASS", permanent=True)
    new.router.close(error)
    old.router.move([target("a"), target("b")], new.router, "it went")
    assert done.error is error
    assert gaps(box) == [(GapReason.MOVED, "a"), error]
    assert box.is_drained
