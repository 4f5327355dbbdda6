"""The outbox: order, windows, fairness, deadlines, and who is told what."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiopubsub import History
from aiopubsub.append import CALL_BYTES, CALL_ENTRIES, LOAD, SHA, Append, Entry
from aiopubsub.dialogue import OutOfStep
from aiopubsub.errors import Closed, ErrorReply, NotSent, PublishRefused, PubSubError, Unconfirmed
from aiopubsub.keys import history_key
from aiopubsub.line import Batch, Line
from aiopubsub.memory_streams import MemoryStreams
from aiopubsub.outbox import WRITE_BYTES, Outbox


class Push(list[Any]):
    """A push of the server."""


class Promise:
    """A future without a loop: it can be settled once."""

    def __init__(self) -> None:
        self.outcome: Any = None
        self.is_done = False

    def done(self) -> bool:
        return self.is_done

    def cancel(self) -> None:
        self.is_done = True
        self.outcome = "cancelled"

    def set_result(self, result: Any, /) -> None:
        assert not self.is_done, "settled twice"
        self.is_done, self.outcome = True, result

    def set_exception(self, exception: PubSubError, /) -> None:
        self.set_result(exception)


def live() -> Outbox:
    outbox = Outbox(Push)
    outbox.begin()
    return outbox


def publish(
    outbox: Outbox, line: Line, payload: bytes = b"x", deadline: float = math.inf, channel: str = "c"
) -> Promise:
    promise = Promise()
    line.add((promise, deadline, (b"PUBLISH", channel.encode(), payload), line))
    return promise


def payloads(commands: list[tuple[bytes, ...]]) -> list[bytes]:
    return [command[-1] for command in commands]


def test_a_line_keeps_its_order() -> None:
    """Requests are sent in the order they were added, and answered in that order."""
    outbox = live()
    line = outbox.open_line(100)
    promises = [publish(outbox, line, b"%d" % n) for n in range(5)]
    assert (outbox.waiting, outbox.in_flight) == (5, 0)
    assert outbox.commands() == [(b"PUBLISH", b"c", b"%d" % n) for n in range(5)]
    assert outbox.commands() == []
    assert (outbox.waiting, outbox.in_flight) == (0, 5)
    outbox.receive(deque([10, 11]))
    outbox.receive(deque([12, 13, 14]))
    assert [promise.outcome for promise in promises] == [10, 11, 12, 13, 14]
    assert (outbox.waiting, outbox.in_flight) == (0, 0)


def test_a_window_bounds_what_is_in_flight() -> None:
    """Each line has so many requests without an answer, whatever other lines have."""
    outbox = live()
    narrow, wide = outbox.open_line(1), outbox.open_line(2)
    for n in range(3):
        publish(outbox, narrow, b"n%d" % n)
        publish(outbox, wide, b"w%d" % n)
    assert payloads(outbox.commands()) == [b"n0", b"w0", b"w1"]
    assert outbox.commands() == []
    outbox.receive(deque([1]))
    assert payloads(outbox.commands()) == [b"n1"]
    outbox.receive(deque([1, 1]))
    assert payloads(outbox.commands()) == [b"w2"]


def test_a_write_is_bounded_in_bytes() -> None:
    """One call of `commands` ends after the request that fills the write; the next goes on."""
    outbox = live()
    line = outbox.open_line(100)
    for _ in range(5):
        publish(outbox, line, b"." * (WRITE_BYTES // 2))
    assert [len(outbox.commands()) for _ in range(4)] == [2, 2, 1, 0]
    publish(outbox, line, b"." * (3 * WRITE_BYTES))
    publish(outbox, line)
    assert [len(outbox.commands()) for _ in range(3)] == [1, 1, 0]


def test_no_line_starves() -> None:
    """A line with much to send leaves the next write to the others."""
    outbox = live()
    greedy = outbox.open_line(1000)
    modest, other = outbox.open_line(1), outbox.open_line(1)
    for _ in range(10):
        publish(outbox, greedy, b"." * WRITE_BYTES)
    publish(outbox, modest, b"m")
    publish(outbox, other, b"o")
    assert len(outbox.commands()) == 1
    assert payloads(outbox.commands())[:2] == [b"m", b"o"]
    assert len(outbox.commands()) == 1


def test_lines_take_turns() -> None:
    """Lines that could each fill a write share the writes equally."""
    outbox = live()
    lines = [outbox.open_line(1000) for _ in range(3)]
    for n, line in enumerate(lines):
        for _ in range(4):
            publish(outbox, line, b"%d" % n + b"." * WRITE_BYTES)
    order = [payload[:1] for _ in range(12) for payload in payloads(outbox.commands())]
    assert order == [b"0", b"1", b"2"] * 4


def test_a_refused_publish() -> None:
    """An error reply goes to the one that it answers, with its channel and the server's words."""
    outbox = live()
    line = outbox.open_line(10)
    first, second = publish(outbox, line, channel="a"), publish(outbox, line)
    outbox.commands()
    outbox.receive(deque([ErrorReply("NOPERM no"), 3]))
    assert type(first.outcome) is PublishRefused
    assert vars(first.outcome) == {"channel": "a", "reason": "NOPERM no"}
    assert second.outcome == 3


def test_a_caller_who_gave_up_in_line_is_passed_over() -> None:
    """What was cancelled before it was sent is not sent, and takes no place in the window."""
    outbox = live()
    line = outbox.open_line(1)
    cancelled, kept = publish(outbox, line, b"0"), publish(outbox, line, b"1")
    cancelled.cancel()
    assert payloads(outbox.commands()) == [b"1"]
    outbox.receive(deque([5]))
    assert kept.outcome == 5


def test_a_caller_who_gave_up_after_sending_keeps_its_place() -> None:
    """The answer to what was cancelled after it was sent goes to nobody else."""
    outbox = live()
    line = outbox.open_line(2)
    cancelled, kept = publish(outbox, line), publish(outbox, line)
    outbox.commands()
    cancelled.cancel()
    publish(outbox, line, b"next")
    assert outbox.commands() == []
    outbox.receive(deque([ErrorReply("NOPERM")]))
    assert cancelled.outcome == "cancelled"
    assert payloads(outbox.commands()) == [b"next"]
    outbox.receive(deque([2]))
    assert kept.outcome == 2


@pytest.mark.parametrize("answer", [b"OK", None, [], True, 1.5])
def test_what_cannot_answer_a_publish(answer: object) -> None:
    """An answer that is neither a number nor an error shows that the stream of answers is broken."""
    outbox = live()
    line = outbox.open_line(10)
    promise = publish(outbox, line)
    outbox.commands()
    with pytest.raises(OutOfStep):
        outbox.receive(deque([answer]))
    outbox.end()
    assert type(promise.outcome) is Unconfirmed


def test_an_answer_that_is_missing_is_found_out() -> None:
    """A publish that is given up is followed by a PING, whose answer then stands in a wrong place."""
    outbox = live()
    line = outbox.open_line(10)
    promise = publish(outbox, line, deadline=1)
    outbox.commands()
    outbox.expire(1)
    assert type(promise.outcome) is Unconfirmed
    assert outbox.commands() == [(b"PING",)]
    with pytest.raises(OutOfStep):  # in the place of the answer to the publish
        outbox.receive(deque([b"PONG"]))


def test_an_answer_that_is_late_is_no_fault() -> None:
    """It goes to nobody, and all later ones go where they belong."""
    outbox = live()
    line = outbox.open_line(10)
    publish(outbox, line, deadline=1)
    outbox.commands()
    outbox.expire(1)
    outbox.commands()
    second = publish(outbox, line, deadline=9)
    outbox.commands()
    outbox.receive(deque([1, b"PONG", 7]))
    assert second.outcome == 7


@pytest.mark.parametrize(("answer", "is_fault"), [(ErrorReply("NOPERM ping"), False), (1, True)])
def test_the_answer_to_a_ping(answer: object, is_fault: bool) -> None:
    """A server that forbids PING lives all the same; a number there belongs to somebody else."""
    outbox = live()
    outbox.ping()
    outbox.commands()
    with pytest.raises(OutOfStep) if is_fault else contextlib.nullcontext():
        outbox.receive(deque([answer]))


def test_pings_have_their_place_among_the_replies() -> None:
    """A PING of our own comes after what is sent with it, and its answer goes to nobody."""
    outbox = live()
    line = outbox.open_line(10)
    before = publish(outbox, line)
    outbox.ping()
    assert outbox.commands() == [(b"PUBLISH", b"c", b"x"), (b"PING",)]
    after = publish(outbox, line)
    assert outbox.commands() == [(b"PUBLISH", b"c", b"x")]
    outbox.receive(deque([1, b"PONG", 2]))
    assert (before.outcome, after.outcome) == (1, 2)
    assert outbox.in_flight == 0


def test_pushes_are_no_replies() -> None:
    """A push between replies answers nothing."""
    outbox = live()
    promise = publish(outbox, outbox.open_line(10))
    outbox.commands()
    backlog = deque([Push([b"invalidate"]), 1, Push([])])
    outbox.receive(backlog)
    assert not backlog
    assert promise.outcome == 1


def test_a_reply_that_nobody_asked_for() -> None:
    """One reply too many ends the session."""
    with pytest.raises(OutOfStep, match=r"^a reply that nobody asked for: int$"):
        live().receive(deque([1]))


def test_what_is_overdue_in_line_was_not_sent() -> None:
    """At its deadline, not before, a request that waits is `NotSent`; the earliest deadline is told."""
    outbox = Outbox(Push)
    line, other = outbox.open_line(10), outbox.open_line(10)
    first = publish(outbox, line, deadline=5.0, channel="a")
    second = publish(outbox, line, deadline=7.0)
    third = publish(outbox, other, deadline=6.0)
    assert outbox.expire(4.999) == 5.0
    assert not first.is_done
    assert outbox.expire(5.0) == 6.0
    assert type(first.outcome) is NotSent
    assert first.outcome.channel == "a"
    assert first.outcome.reason == "there was no connection for the whole timeout"
    assert outbox.expire(6.5) == 7.0
    assert (type(third.outcome), second.is_done) == (NotSent, False)
    assert outbox.expire(9.0) == math.inf
    assert outbox.waiting == 0


def test_what_is_overdue_behind_a_full_window_was_not_sent() -> None:
    """The reason tells a full window from a missing connection."""
    outbox = live()
    line = outbox.open_line(1)
    publish(outbox, line)
    late = publish(outbox, line, deadline=1.0)
    outbox.commands()
    outbox.expire(1.0)
    assert type(late.outcome) is NotSent
    assert late.outcome.reason == "too many publishes were in flight for the whole timeout"


def test_what_is_overdue_after_sending_is_unconfirmed() -> None:
    """A request that left is `Unconfirmed`, and its answer, if it comes, goes to nobody else."""
    outbox = live()
    line = outbox.open_line(10)
    sent, later = publish(outbox, line, deadline=5.0), publish(outbox, line, deadline=8.0)
    outbox.ping()
    outbox.commands()
    assert outbox.expire(4.9) == 5.0
    assert outbox.expire(5.0) == 8.0
    assert type(sent.outcome) is Unconfirmed
    assert vars(sent.outcome) == {"channel": "c", "reason": "the server did not answer in time"}
    outbox.receive(deque([1, 2, b"PONG"]))
    assert later.outcome == 2
    assert outbox.expire(100.0) == math.inf


def test_cancelled_requests_have_no_deadline() -> None:
    """Whoever gave up is not waited for."""
    outbox = live()
    line = outbox.open_line(1)
    sent, waiting = publish(outbox, line, deadline=1.0), publish(outbox, line, deadline=2.0)
    outbox.commands()
    sent.cancel()
    waiting.cancel()
    assert outbox.expire(0.0) == math.inf
    assert outbox.expire(3.0) == math.inf
    assert sent.outcome == waiting.outcome == "cancelled"


def test_the_end_of_a_session() -> None:
    """What was sent is unconfirmed, what waits goes with the next session, with a fresh window."""
    outbox = live()
    line = outbox.open_line(2)
    sent = [publish(outbox, line) for _ in range(2)]
    waiting = publish(outbox, line, b"later")
    outbox.ping()
    outbox.commands()
    sent[0].cancel()
    outbox.end("cut")
    assert sent[0].outcome == "cancelled"
    assert type(sent[1].outcome) is Unconfirmed
    assert sent[1].outcome.reason == "the connection was lost before the server answered: cut"
    assert not waiting.is_done
    assert outbox.commands() == []
    assert outbox.in_flight == 0
    outbox.begin()
    assert payloads(outbox.commands()) == [b"later"]
    outbox.receive(deque([4]))
    assert waiting.outcome == 4


def test_a_ping_does_not_outlive_its_session() -> None:
    """The next session is not asked for what the last one did not answer."""
    outbox = live()
    outbox.ping()
    outbox.end()
    outbox.begin()
    assert outbox.commands() == []


def test_closing_tells_what_waits() -> None:
    """What waits gets an error of its own, what was sent stays until the end, nothing more is taken."""
    outbox = live()
    line = outbox.open_line(1)
    sent, first, second = (publish(outbox, line) for _ in range(3))
    gone = publish(outbox, line)
    gone.cancel()
    outbox.commands()
    error = Closed("Client")
    outbox.close(error)
    assert not sent.is_done
    assert type(first.outcome) is type(second.outcome) is Closed
    assert first.outcome is not second.outcome
    with pytest.raises(Closed) as caught:
        publish(outbox, line)
    assert caught.value is not error
    outbox.end()
    assert type(sent.outcome) is Unconfirmed


def test_closing_a_line_leaves_the_others() -> None:
    """A publisher that closes takes its own requests out of the line; a second time does nothing."""
    outbox = live()
    line, other = outbox.open_line(1), outbox.open_line(1)
    sent, waiting = publish(outbox, line), publish(outbox, line)
    outbox.commands()
    kept = publish(outbox, other)
    outbox.close_line(line, Closed("Publisher"))
    outbox.close_line(line, Closed("Publisher"))
    assert type(waiting.outcome) is Closed
    assert len(outbox.commands()) == 1
    outbox.receive(deque([1, 2]))
    assert (sent.outcome, kept.outcome) == (1, 2)


def many(outbox: Outbox, line: Line, count: int, deadline: float = math.inf, size: int = 1) -> Batch:
    commands: list[tuple[bytes, ...]] = [(b"PUBLISH", b"%d" % n, b"." * size) for n in range(count)]
    batch = Batch(Promise(), deadline, commands)
    line.add(batch)
    return batch


def test_a_batch_is_answered_as_a_whole() -> None:
    """Its promise is kept with the last answer; until then each one frees a place in the window."""
    outbox = live()
    line = outbox.open_line(5)
    before, batch, after = publish(outbox, line), many(outbox, line, 3), publish(outbox, line, b"after")
    assert outbox.waiting == 5
    assert len(outbox.commands()) == 5
    assert (outbox.waiting, outbox.in_flight, line.in_flight) == (0, 5, 5)
    outbox.receive(deque([1, 2, ErrorReply("NOPERM no")]))
    assert before.outcome == 1
    assert (outbox.in_flight, line.in_flight) == (2, 2)
    assert not batch.promise.done()
    outbox.receive(deque([4, 5]))
    assert batch.promise.done()
    assert after.outcome == 5
    assert batch.answers[::2] == [2, 4]
    [(at, error)] = batch.failures().items()
    assert (at, type(error)) == (1, PublishRefused)
    assert vars(error) == {"channel": "1", "reason": "NOPERM no"}
    assert line.in_flight == 0


def test_a_batch_waits_for_its_place_in_the_window() -> None:
    """It is sent as a whole when it fits; one larger than the window goes alone."""
    outbox = live()
    line = outbox.open_line(4)
    publish(outbox, line)
    small, large, last = many(outbox, line, 3), many(outbox, line, 6), publish(outbox, line, b"last")
    assert len(outbox.commands()) == 4
    outbox.receive(deque([0, 0, 0]))
    assert outbox.commands() == []
    outbox.receive(deque([0]))
    assert small.promise.done()
    assert len(outbox.commands()) == 6
    outbox.receive(deque(range(3)))
    assert payloads(outbox.commands()) == [b"last"]
    outbox.receive(deque(range(4)))
    assert large.answers == [0, 1, 2, 0, 1, 2]
    assert last.outcome == 3


def test_a_batch_takes_its_bytes_of_a_write() -> None:
    """What follows a batch that fills the write goes with the next one."""
    outbox = live()
    line = outbox.open_line(1000)
    many(outbox, line, 4, size=WRITE_BYTES // 2)
    publish(outbox, line, b"next")
    assert len(outbox.commands()) == 4
    assert payloads(outbox.commands()) == [b"next"]


def test_a_batch_that_lost_its_connection() -> None:
    """Answers that had come count, the rest is unconfirmed, each with its channel's batch."""
    outbox = live()
    line = outbox.open_line(10)
    batch, waiting = many(outbox, line, 3), publish(outbox, line, b"later")
    outbox.commands()
    outbox.receive(deque([7]))
    publish(outbox, line)
    outbox.end()
    assert batch.answers[0] == 7
    assert {at: type(error) for at, error in batch.failures().items()} == {1: Unconfirmed, 2: Unconfirmed}
    assert vars(batch.failures()[1])["channel"] == "1"
    assert type(waiting.outcome) is Unconfirmed


def test_a_batch_that_is_overdue() -> None:
    """In line it was not sent; sent, it is unconfirmed, and its late answers go to nobody else."""
    outbox = live()
    line = outbox.open_line(3)
    sent, waiting = many(outbox, line, 2, deadline=5.0), many(outbox, line, 2, deadline=6.0)
    outbox.commands()
    assert outbox.expire(4.0) == 5.0
    assert outbox.expire(6.0) == math.inf
    assert {type(error) for error in sent.failures().values()} == {Unconfirmed}
    assert {type(error) for error in waiting.failures().values()} == {NotSent}
    later = publish(outbox, line)
    outbox.commands()
    outbox.receive(deque([1, 2, 3]))
    assert later.outcome == 3


def test_a_batch_that_was_given_up_or_closed() -> None:
    """Given up in line it is not sent; the end of the line tells the others."""
    outbox = live()
    line = outbox.open_line(10)
    given_up, told = many(outbox, line, 2), many(outbox, line, 2)
    given_up.promise.cancel()  # type: ignore[attr-defined]
    assert len(outbox.commands()) == 2
    told_later = many(outbox, line, 2)
    outbox.close(Closed("Client"))
    assert {type(error) for error in told_later.failures().values()} == {Closed}
    outbox.receive(deque([1, 2]))
    assert told.answers == [1, 2]
    assert told.failures() == {}


# -- topics with history ---------------------------------------------------------------------------

HISTORY = History(size=1000, ttl=None)
KEPT = b"k"


def append(
    line: Line,
    *uids: bytes,
    deadline: float = math.inf,
    channel: bytes = KEPT,
    history: History = HISTORY,
    data: bytes = b"x",
) -> Append:
    request = Append(Promise(), deadline, channel, history, [Entry(uid, b"{}", data) for uid in uids])
    line.add(request)
    return request


def uids_of(command: tuple[bytes, ...]) -> list[bytes]:
    assert command[:2] == (b"EVALSHA", SHA)
    return list(command[8::3])


def since_of(command: tuple[bytes, ...]) -> bytes:
    return command[7]


def answer(command: tuple[bytes, ...], first: int = 1) -> list[Any]:
    """As the script answers when nothing was stored before."""
    return [part for n, _ in enumerate(uids_of(command), first) for part in (b"5-%d" % n, n)]


def test_messages_of_one_topic_leave_in_one_call() -> None:
    """The script is told once in a session, in front of the first call; each caller gets its results."""
    outbox = live()
    line = outbox.open_line(100)
    one, two = append(line, b"a"), append(line, b"b", b"c")
    assert outbox.waiting == 3
    load, call = outbox.commands()
    assert load == LOAD
    assert call[3:5] == (history_key(KEPT), KEPT)
    assert (uids_of(call), since_of(call)) == ([b"a", b"b", b"c"], b"")
    assert (outbox.waiting, line.in_flight) == (0, 3)
    outbox.receive(deque([SHA, answer(call)]))
    assert one.results == [(b"5-1", 1)]
    assert two.results == [(b"5-2", 2), (b"5-3", 3)]
    assert one.promise.done()
    assert two.promise.done()
    assert (outbox.in_flight, line.in_flight) == (0, 0)
    append(line, b"d")
    [call] = outbox.commands()
    assert uids_of(call) == [b"d"]


def test_order_is_kept_across_kinds_and_topics() -> None:
    """What stands in line between two appends is sent between them."""
    outbox = live()
    line = outbox.open_line(100)
    append(line, b"a")
    publish(outbox, line, b"plain")
    append(line, b"b")
    append(line, b"c", channel=b"other")
    append(line, b"d")
    append(line, b"e", history=History(size=5))
    many(outbox, line, 2)
    append(line, b"f", b"g")
    append(line, b"h")
    sent = [c[-1] if c[0] == b"PUBLISH" else uids_of(c) for c in outbox.commands() if c != LOAD]
    assert sent == [[b"a"], b"plain", [b"b"], [b"c"], [b"d"], [b"e"], b".", b".", [b"f", b"g", b"h"]]


def test_calls_are_bounded() -> None:
    """By messages, by bytes, and by the window; what is larger alone goes alone."""
    outbox = live()
    line = outbox.open_line(10_000)
    for n in range(600):
        append(line, b"%d" % n)
    _, *calls = outbox.commands()
    assert [len(uids_of(call)) for call in calls] == [CALL_ENTRIES, CALL_ENTRIES, 600 - 2 * CALL_ENTRIES]
    append(line, *[b"m%d" % n for n in range(1000)])
    append(line, b"after")
    assert [len(uids_of(call)) for call in outbox.commands()] == [1000, 1]
    for n in range(5):
        append(line, b"big%d" % n, data=b"." * (CALL_BYTES // 2 - 1000))
    counts = []
    while calls := outbox.commands():
        counts += [len(uids_of(call)) for call in calls]
    assert counts == [2, 2, 1]


def test_the_window_bounds_appends() -> None:
    """Messages without an answer; a request larger than the window goes when nothing else is in flight."""
    outbox = live()
    line = outbox.open_line(3)
    for uid in (b"a", b"b", b"c", b"d"):
        append(line, uid)
    append(line, b"e", b"f", b"g", b"h")
    _, call = outbox.commands()
    assert uids_of(call) == [b"a", b"b", b"c"]
    assert outbox.commands() == []
    outbox.receive(deque([SHA, answer(call)]))
    [call] = outbox.commands()
    assert uids_of(call) == [b"d"]
    outbox.receive(deque([answer(call)]))
    [call] = outbox.commands()
    assert uids_of(call) == [b"e", b"f", b"g", b"h"]
    outbox.receive(deque([answer(call)]))
    assert line.in_flight == 0


def test_a_lost_connection_is_tried_again() -> None:
    """In order, in front of what came later, looked for behind what is known to be stored."""
    outbox = live()
    line = outbox.open_line(100)
    first = append(line, b"a")
    _, call = outbox.commands()
    outbox.receive(deque([SHA, answer(call)]))
    lost = [append(line, b"b"), append(line, b"c")]
    [call] = outbox.commands()
    other = append(line, b"o", channel=b"other")
    outbox.commands()
    plain = publish(outbox, line)
    outbox.commands()
    outbox.end()
    assert type(plain.outcome) is Unconfirmed
    assert not any(request.promise.done() for request in (*lost, other))
    later = append(line, b"d")
    outbox.begin()
    load, call, other_call, last_call = outbox.commands()
    assert load == LOAD
    assert (uids_of(call), since_of(call)) == ([b"b", b"c"], b"(5-1")
    assert (uids_of(other_call), since_of(other_call)) == ([b"o"], b"-")
    assert (uids_of(last_call), since_of(last_call)) == ([b"d"], b"")
    outbox.receive(deque([SHA, [b"5-2", -1, b"5-3", 1], [b"9-1", 0], [b"5-4", 2]]))
    assert first.results == [(b"5-1", 1)]
    assert [request.results for request in lost] == [[(b"5-2", -1)], [(b"5-3", 1)]]
    assert (other.results, later.results) == ([(b"9-1", 0)], [(b"5-4", 2)])


def test_a_retry_that_is_lost_too() -> None:
    """It is tried as often as there are connections, until its time is over."""
    outbox = live()
    line = outbox.open_line(100)
    request = append(line, b"a", deadline=10.0)
    for _ in range(3):
        _, call = outbox.commands()
        assert uids_of(call) == [b"a"]
        outbox.end()
        outbox.begin()
    outbox.end()
    assert outbox.expire(9.0) == 10.0
    assert not request.promise.done()
    assert outbox.expire(10.0) == math.inf
    assert type(request.error) is Unconfirmed
    assert vars(request.error)["channel"] == "k"


def test_who_gave_up_is_not_sent_again() -> None:
    """Nor is it sent if it gave up in line; what was gathered with it is."""
    outbox = live()
    line = outbox.open_line(100)
    gone, kept = append(line, b"a"), append(line, b"b")
    outbox.commands()
    gone.promise.cancel()  # type: ignore[attr-defined]
    outbox.end()
    in_line = append(line, b"c")
    in_line.promise.cancel()  # type: ignore[attr-defined]
    outbox.begin()
    _, call = outbox.commands()
    assert uids_of(call) == [b"b"]
    outbox.receive(deque([SHA, answer(call)]))
    assert kept.results == [(b"5-1", 1)]
    narrow = outbox.open_line(2)
    for uid in (b"w", b"x"):
        append(narrow, uid).promise.cancel()  # type: ignore[attr-defined]
    append(narrow, b"y")
    append(narrow, b"z")
    [call] = outbox.commands()
    assert uids_of(call) == [b"y", b"z"]
    outbox.receive(deque([answer(call)]))
    only = append(line, b"d")
    only.promise.cancel()  # type: ignore[attr-defined]
    assert outbox.commands() == []
    assert (outbox.waiting, line.in_flight) == (0, 0)


def test_who_gave_up_while_it_was_under_way_keeps_its_place() -> None:
    """The answer to its call goes to the others."""
    outbox = live()
    line = outbox.open_line(100)
    gone, kept = append(line, b"a"), append(line, b"b")
    _, call = outbox.commands()
    gone.promise.cancel()  # type: ignore[attr-defined]
    outbox.receive(deque([SHA, answer(call)]))
    assert kept.results == [(b"5-2", 2)]


def test_deadlines_of_appends() -> None:
    """In line it was never sent: safe to publish again. Sent once, nobody knows."""
    outbox = live()
    line = outbox.open_line(1)
    sent, waiting = append(line, b"a", deadline=5.0), append(line, b"b", deadline=5.0)
    outbox.commands()
    assert outbox.expire(4.0) == 5.0
    outbox.expire(5.0)
    assert type(sent.error) is Unconfirmed
    assert type(waiting.error) is NotSent


@pytest.mark.parametrize("is_line", [True, False])
def test_closing_with_appends_that_were_lost(is_line: bool) -> None:
    """What was sent once is unconfirmed; what never was is told why."""
    outbox = live()
    line = outbox.open_line(1)
    sent, waiting = append(line, b"a"), append(line, b"b")
    outbox.commands()
    outbox.end()
    if is_line:
        outbox.close_line(line, Closed("Publisher"))
    else:
        outbox.close(Closed("Client"))
    assert type(sent.error) is Unconfirmed
    assert type(waiting.error) is Closed


def test_closing_with_appends_under_way_then_a_lost_connection() -> None:
    """Nobody is left waiting in a line that nothing is sent from."""
    outbox = live()
    line = outbox.open_line(1)
    sent = append(line, b"a")
    outbox.commands()
    outbox.close_line(line, Closed("Publisher"))
    assert not sent.promise.done()
    outbox.end()
    assert type(sent.error) is Unconfirmed


def test_a_script_that_was_flushed() -> None:
    """The session is begun again, so that order is kept; then all is sent again."""
    outbox = live()
    line = outbox.open_line(100)
    append(line, b"a")
    _, call = outbox.commands()
    outbox.receive(deque([SHA, answer(call)]))
    lost = append(line, b"b")
    outbox.commands()
    with pytest.raises(OutOfStep, match="has lost the script"):
        outbox.receive(deque([ErrorReply("NOSCRIPT No matching script. Please use EVAL.")]))
    outbox.end()
    outbox.begin()
    load, call = outbox.commands()
    assert load == LOAD
    outbox.receive(deque([SHA, answer(call)]))
    assert lost.results == [(b"5-1", 1)]


READONLY = [
    "READONLY You can't write against a read only replica. script: 1f, on @user_script:46.",
    "ERR Error running script (call to f_1f): @user_script:46: @user_script: 46: -READONLY You can't write",
]


@pytest.mark.parametrize("words", READONLY, ids=["Redis 7", "Redis 6.2"])
def test_a_server_that_has_become_a_replica(words: str) -> None:
    """It is left, and all is sent again in order; another one that takes no writes is believed."""
    outbox = live()
    line = outbox.open_line(100)
    first = append(line, b"a")
    outbox.commands()
    second = append(line, b"b")
    outbox.commands()
    with pytest.raises(OutOfStep, match="has become a replica"):
        outbox.receive(deque([SHA, ErrorReply(words), ErrorReply(words)]))
    outbox.end()
    outbox.begin()
    _, call = outbox.commands()
    assert (uids_of(call), since_of(call)) == ([b"a", b"b"], b"-")
    outbox.receive(deque([SHA, ErrorReply(words)]))
    assert {str(request.error) for request in (first, second)} == {
        f"the server refused to publish to 'k': {words}"
    }
    assert line.in_flight == 0


def test_a_server_that_becomes_a_replica_again() -> None:
    """After it has taken something, it is left again."""
    outbox = live()
    line = outbox.open_line(100)
    for _ in range(3):
        request = append(line, b"a")
        outbox.commands()
        with pytest.raises(OutOfStep):
            outbox.receive(deque([SHA, ErrorReply(READONLY[0])]))
        outbox.end()
        outbox.begin()
        _, call = outbox.commands()
        outbox.receive(deque([SHA, answer(call)]))
        assert request.results == [(b"5-1", 1)]
        outbox.end()
        outbox.begin()


@pytest.mark.parametrize("answer", [b"OK", b"PONG"])
def test_a_command_of_other_kind_that_finds_a_replica(answer: bytes) -> None:
    """A cursor is saved in vain: its session is left, once until something was written."""
    outbox = live()
    line = outbox.open_line(100)

    def save() -> Promise:
        promise = Promise()
        line.add((promise, math.inf, (b"SET", b"key", b"1-1"), line))
        outbox.commands()
        return promise

    lost = save()
    with pytest.raises(OutOfStep):
        outbox.receive(deque([ErrorReply(READONLY[0])]))
    outbox.end()
    assert type(lost.outcome) is Unconfirmed
    outbox.begin()
    save()
    outbox.receive(deque([answer]))
    again = save()
    replies = deque([ErrorReply(READONLY[0])])
    if answer == b"OK":
        with pytest.raises(OutOfStep):
            outbox.receive(replies)
    else:
        outbox.receive(replies)
        assert type(again.outcome) is ErrorReply


def test_other_refusals_that_name_a_replica() -> None:
    """They are the server's last word."""
    outbox = live()
    line = outbox.open_line(100)
    request = append(line, b"a")
    outbox.commands()
    outbox.receive(deque([SHA, ErrorReply("ERR READONLY:history holds an entry that is no message")]))
    assert type(request.error) is PublishRefused


def test_a_script_that_may_not_be_loaded() -> None:
    """The refusal of SCRIPT LOAD is told to whoever needs it; one that is there already does."""
    outbox = live()
    line = outbox.open_line(100)
    refused = append(line, b"a")
    outbox.commands()
    no = ErrorReply("NOPERM no permission for script")
    outbox.receive(deque([no, ErrorReply("NOSCRIPT No matching script.")]))
    assert type(refused.error) is PublishRefused
    assert vars(refused.error) == {"channel": "k", "reason": "NOPERM no permission for script"}
    assert line.in_flight == 0
    outbox.end()
    outbox.begin()
    fine = append(line, b"b")
    _, call = outbox.commands()
    outbox.receive(deque([no, answer(call)]))
    assert fine.results == [(b"5-1", 1)]


def test_an_append_that_is_refused() -> None:
    """All of the call are told the server's words."""
    outbox = live()
    line = outbox.open_line(100)
    one, two = append(line, b"a"), append(line, b"b", b"c")
    outbox.commands()
    outbox.receive(deque([SHA, ErrorReply("OOM command not allowed")]))
    assert {type(request.error) for request in (one, two)} == {PublishRefused}
    words = "the server refused to publish to 'k': OOM command not allowed"
    assert [(at, str(error)) for at, error in two.failures().items()] == [(0, words), (1, words)]
    assert line.in_flight == 0


@pytest.mark.parametrize("is_load", [True, False])
def test_a_server_that_is_loading(is_load: bool) -> None:
    """It has just started: the session ends, and the next one tries again."""
    outbox = live()
    line = outbox.open_line(100)
    request = append(line, b"a")
    outbox.commands()
    loading = ErrorReply("LOADING Redis is loading the dataset in memory")
    with pytest.raises(OutOfStep, match="still loading"):
        outbox.receive(deque([loading if is_load else SHA, loading]))
    outbox.end()
    assert not request.promise.done()
    outbox.begin()
    assert uids_of(outbox.commands()[1]) == [b"a"]


@pytest.mark.parametrize(
    "replies", [[5], [b"x"], [SHA, 5], [SHA, [b"5-1"]], [SHA, [b"5-1", 1, b"5-2", 1]], [SHA, b"PONG"]]
)
def test_answers_that_were_not_due(replies: list[Any]) -> None:
    """They end the session, and what was sent is tried again: nobody is told another's answer."""
    outbox = live()
    line = outbox.open_line(100)
    request = append(line, b"a")
    outbox.commands()
    with pytest.raises(OutOfStep):
        outbox.receive(deque(replies))
    outbox.end()
    assert not request.promise.done()
    assert outbox.waiting == 1


def test_what_a_publisher_knows_is_bounded() -> None:
    """Beyond a thousand histories it starts anew, and looks everywhere for a retry."""
    outbox = live()
    line = outbox.open_line(10_000)
    for n in range(3000):
        line.know(b"%d" % n, b"1-1")
    assert len(line.known) <= 1024
    assert line.known[b"2999"] == b"1-1"


class OutboxModel(RuleBasedStateMachine):
    """Each request gets the answer to itself, or the error that tells what became of it."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(Push)
        self.lines = [self.outbox.open_line(window) for window in (1, 3, 100)]
        self.is_live = False
        self.now = 0.0
        self.numbers = 0
        self.promises: dict[int, Promise] = {}
        self.last_sent = [-1, -1, -1]
        self.sent: list[int | None] = []  # what the server has, and has not answered

    @rule(which=st.integers(0, 2), size=st.sampled_from([1, WRITE_BYTES // 2]))
    def add(self, which: int, size: int) -> None:
        payload = b"%d %d " % (which, self.numbers) + b"." * size
        self.promises[self.numbers] = publish(self.outbox, self.lines[which], payload, self.now + 3 + which)
        self.numbers += 1

    @precondition(lambda self: not self.is_live)
    @rule()
    def begin(self) -> None:
        self.outbox.begin()
        self.is_live = True

    @rule()
    def ping(self) -> None:
        self.outbox.ping()

    @rule()
    def write(self) -> None:
        commands = self.outbox.commands()
        assert self.is_live or not commands
        assert (
            sum(len(c[-1]) for c in commands[:-1] if c[0] == b"PUBLISH")
            <= WRITE_BYTES + WRITE_BYTES // 2 + 99
        )
        for command in commands:
            if command[0] == b"PING":
                self.sent.append(None)
                continue
            which, number = map(int, command[-1].split()[:2])
            assert not self.promises[number].is_done, "sent, though its caller was told or had given up"
            assert number > self.last_sent[which]
            self.last_sent[which] = number
            self.sent.append(number)
        assert self.outbox.in_flight == len(self.sent)
        assert all(line.in_flight <= line.max_in_flight for line in self.lines)

    @precondition(lambda self: self.sent)
    @rule(count=st.integers(1, 5))
    def answer(self, count: int) -> None:
        numbers = self.sent[:count]
        del self.sent[:count]
        before = {n: self.promises[n].is_done for n in numbers if n is not None}
        self.outbox.receive(deque([b"PONG" if n is None else n for n in numbers]))
        for number, was_done in before.items():
            assert was_done or self.promises[number].outcome == number

    @precondition(lambda self: self.promises)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        promise = self.promises[data.draw(st.sampled_from(sorted(self.promises)))]
        if not promise.is_done:
            promise.cancel()

    @rule(seconds=st.integers(1, 4))
    def time_goes_on(self, seconds: int) -> None:
        self.now += seconds
        before = {n for n, promise in self.promises.items() if promise.is_done}
        sent = set(self.sent)
        earliest = self.outbox.expire(self.now)
        assert earliest > self.now
        for number, promise in self.promises.items():
            if promise.is_done and number not in before:
                assert type(promise.outcome) is (Unconfirmed if number in sent else NotSent)

    @precondition(lambda self: self.is_live)
    @rule()
    def end(self) -> None:
        pending = [n for n in self.sent if n is not None and not self.promises[n].is_done]
        self.outbox.end()
        self.is_live = False
        self.sent.clear()
        assert all(type(self.promises[n].outcome) is Unconfirmed for n in pending)

    def teardown(self) -> None:
        """In the end everybody has been told."""
        self.outbox.close(Closed("Client"))
        self.outbox.end()
        assert all(promise.is_done for promise in self.promises.values())


TestOutboxModel = OutboxModel.TestCase
TestOutboxModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class AppendModel(RuleBasedStateMachine):
    """Each message of a history is stored at most once and in order, and its caller is told the truth.

    The server runs the commands of its connection one by one, and answers; connections break at any time,
    with commands that it has not seen and answers that do not arrive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(Push)
        self.lines = [self.outbox.open_line(window) for window in (1, 4, 100)]
        self.streams = MemoryStreams(lambda: 5.0)
        self.has_script = True
        self.is_live = False
        self.now = 0.0
        self.numbers = 0
        self.appends: list[tuple[int, Append]] = []  # with the line
        self.unseen: deque[tuple[bytes, ...]] = deque()
        self.answers: deque[Any] = deque()
        self.published: list[bytes] = []
        self.left: set[bytes] = set()  # uids that were written at least once
        self.plain: list[Promise] = []

    @rule(which=st.integers(0, 2), count=st.integers(1, 5), channel=st.sampled_from([b"a", b"b"]))
    def append(self, which: int, count: int, channel: bytes) -> None:
        uids = [b"%d.%d" % (which, n) for n in range(self.numbers, self.numbers + count)]
        self.numbers += count
        line = self.lines[which]
        if line.closed_by is None:
            self.appends.append(
                (which, append(line, *uids, deadline=self.now + 3 + which, channel=channel))
            )

    @rule(which=st.integers(0, 2))
    def publish(self, which: int) -> None:
        if self.lines[which].closed_by is None:
            self.plain.append(publish(self.outbox, self.lines[which]))

    @precondition(lambda self: not self.is_live)
    @rule()
    def begin(self) -> None:
        self.outbox.begin()
        self.is_live = True

    @rule()
    def write(self) -> None:
        commands = self.outbox.commands()
        assert self.is_live or not commands
        self.unseen.extend(commands)
        for command in commands:
            if command[0] == b"EVALSHA":
                self.left.update(uids_of(command))
        assert all(line.in_flight <= max(5, line.max_in_flight) for line in self.lines)

    @precondition(lambda self: self.unseen)
    @rule(count=st.integers(1, 4))
    def run_commands(self, count: int) -> None:
        while self.unseen and count:
            count -= 1
            self.answers.append(self.run_one(self.unseen.popleft()))

    def run_one(self, command: tuple[bytes, ...]) -> Any:
        verb, *args = command
        if verb == b"SCRIPT":
            self.has_script = True
            return SHA
        if verb == b"PUBLISH":
            return 1
        if verb == b"PING":
            return b"PONG"
        if not self.has_script:
            return ErrorReply("NOSCRIPT No matching script.")
        return self.streams.append(lambda *_: 3, *args)

    @precondition(lambda self: self.answers)
    @rule(count=st.integers(1, 4))
    def receive(self, count: int) -> None:
        came = [self.answers.popleft() for _ in range(min(count, len(self.answers)))]
        try:
            self.outbox.receive(deque(came))
        except OutOfStep:
            assert any(isinstance(answer, ErrorReply) for answer in came)
            self.cut()

    @precondition(lambda self: self.is_live)
    @rule()
    def cut(self) -> None:
        self.outbox.end()
        self.is_live = False
        self.unseen.clear()
        self.answers.clear()

    @rule()
    def flush_scripts(self) -> None:
        self.has_script = False

    @precondition(lambda self: self.appends)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        _, request = data.draw(st.sampled_from(self.appends))
        if not request.promise.done():
            request.promise.cancel()  # type: ignore[attr-defined]

    @rule(seconds=st.integers(1, 3))
    def time_goes_on(self, seconds: int) -> None:
        self.now += seconds
        assert self.outbox.expire(self.now) > self.now

    @rule(which=st.integers(0, 2))
    def close_a_line(self, which: int) -> None:
        if self.numbers > 25:
            self.outbox.close_line(self.lines[which], Closed("Publisher"))

    @invariant()
    def everybody_was_told_the_truth(self) -> None:
        stored = self.stored()
        for _, request in self.appends:
            if not request.promise.done() or request.promise.outcome == "cancelled":  # type: ignore[attr-defined]
                continue
            uids = [entry.uid for entry in request.entries]
            if request.error is None:
                assert [stored[uid] for uid in uids] == [name for name, _ in request.results]
                assert {receivers for _, receivers in request.results} <= {3, -1}
            elif type(request.error) is Unconfirmed:
                assert self.left.issuperset(uids)
            else:
                assert type(request.error) in (NotSent, Closed)
                assert not self.left.intersection(uids), "safe to publish again, and it is not"

    def stored(self) -> dict[bytes, bytes]:
        """Ids by uid; each once, and those of one line in the order of the calls."""
        found: dict[bytes, bytes] = {}
        for channel in (b"a", b"b"):
            entries: Any = self.streams.range(history_key(channel), b"-", b"+")
            uids = [fields[1] for _, fields in entries]
            assert len(set(uids)) == len(uids), "stored twice"
            for which in range(3):
                ours = [int(uid[2:]) for uid in uids if uid.startswith(b"%d." % which)]
                assert ours == sorted(ours), "out of order"
            found |= {uid: name for uid, (name, _) in zip(uids, entries, strict=True)}
        return found

    def teardown(self) -> None:
        """With a connection that lasts everybody gets an answer; then nothing is left over."""
        if not self.is_live:
            self.begin()
        for _ in range(200):
            self.write()
            self.run_commands(1000)
            if not self.answers:
                break
            self.receive(1000)
            if not self.is_live:
                self.begin()
        assert all(request.promise.done() for _, request in self.appends)
        assert all(promise.is_done for promise in self.plain)
        assert (self.outbox.in_flight, self.outbox.waiting) == (0, 0)
        assert all(line.in_flight == 0 for line in self.lines if line.closed_by is None)
        self.everybody_was_told_the_truth()


TestAppendModel = AppendModel.TestCase
TestAppendModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# -- a node of a cluster ---------------------------------------------------------------------------


class Node:
    """The outbox of one node, and what it was told that the node has not done."""

    def __init__(self) -> None:
        self.redirected: list[tuple[Any, Line, str]] = []
        self.outbox = Outbox(
            Push, lambda request, line, why: self.redirected.append((request, line, why.kind))
        )
        self.outbox.begin()


@pytest.mark.parametrize("words", ["MOVED 1 h:1", "ASK 1 h:1", "TRYAGAIN not now", "CLUSTERDOWN down"])
def test_what_a_node_has_not_done_is_somebody_elses_matter(words: str) -> None:
    """It is out of the window and of the replies, and nobody is told; other errors are told as ever."""
    node = Node()
    line = node.outbox.open_line(2)
    first, second, third = (publish(node.outbox, line, b"%d" % n) for n in range(3))
    assert payloads(node.outbox.commands()) == [b"0", b"1"]
    node.outbox.receive(deque([ErrorReply(words), ErrorReply("NOPERM no")]))
    [(request, from_line, kind)] = node.redirected
    assert (request[0], from_line, kind) == (first, line, words.split(maxsplit=1)[0])
    assert not first.done()
    assert isinstance(second.outcome, PublishRefused)
    assert (line.in_flight, node.outbox.in_flight, node.outbox.waiting) == (0, 0, 1)
    assert payloads(node.outbox.commands()) == [b"2"]
    node.outbox.receive(deque([5]))
    assert third.outcome == 5
    assert node.outbox.expire(1e9) == math.inf
    node.outbox.end()
    assert not first.done()


def test_without_a_cluster_a_redirection_is_an_error() -> None:
    """As any other that the server may answer with."""
    outbox = live()
    promise = publish(outbox, outbox.open_line(1))
    outbox.commands()
    outbox.receive(deque([ErrorReply("MOVED 1 h:1")]))
    assert isinstance(promise.outcome, PublishRefused)


def append_to(line: Line, *uids: bytes) -> Append:
    append = Append(Promise(), math.inf, b"c", History(), [Entry(uid, b"{}", uid) for uid in uids])
    line.add(append)
    return append


def test_appends_that_were_not_done_come_back_in_order() -> None:
    """All that shared the call, each by itself, and not as sent: nothing can be stored."""
    node = Node()
    line = node.outbox.open_line(10)
    appends = [append_to(line, b"a"), append_to(line, b"b", b"c")]
    assert [command[0] for command in node.outbox.commands()] == [b"SCRIPT", b"EVALSHA"]
    node.outbox.receive(deque([SHA, ErrorReply("ASK 1 h:1")]))
    assert [request for request, _, _ in node.redirected] == appends
    assert not any(append.promise.done() or append.was_sent for append in appends)
    assert (line.in_flight, node.outbox.in_flight) == (0, 0)


def test_a_line_that_asks_says_so_before_each_command() -> None:
    """ASKING holds for one command; its answers are nobody's, and take no room in the window."""
    node = Node()
    line = node.outbox.open_line(3)
    line.is_asking = True
    first, append = publish(node.outbox, line, b"0"), append_to(line, b"a")
    second = publish(node.outbox, line, b"1")
    commands = node.outbox.commands()
    assert [command[0] for command in commands] == [
        *(b"ASKING", b"PUBLISH"),
        *(b"SCRIPT", b"ASKING", b"EVALSHA"),
        *(b"ASKING", b"PUBLISH"),
    ]
    assert line.in_flight == 3
    node.outbox.receive(deque([b"OK", 1, SHA, b"OK", [b"1-1", 2], b"OK", 3]))
    assert (first.outcome, append.results, second.outcome) == (1, [(b"1-1", 2)], 3)
    assert (line.in_flight, node.outbox.in_flight) == (0, 0)


def test_asking_that_is_refused() -> None:
    """Then what follows was asked for in vain: the session ends."""
    node = Node()
    line = node.outbox.open_line(3)
    line.is_asking = True
    promise = publish(node.outbox, line)
    node.outbox.commands()
    with pytest.raises(OutOfStep, match=r"^ASKING was refused: NOPERM no$"):
        node.outbox.receive(deque([ErrorReply("NOPERM no"), 1]))
    node.outbox.end()
    assert isinstance(promise.outcome, Unconfirmed)


def test_a_fence_passes_when_all_before_it_is_answered() -> None:
    """Not when what waits is; at once when there is nothing to wait for."""
    node, passed = Node(), list[str]()
    outbox = node.outbox
    line = outbox.open_line(1)
    outbox.fence(lambda: passed.append("idle"))
    assert passed == ["idle"]
    publish(outbox, line, b"0")
    publish(outbox, line, b"1")
    outbox.fence(lambda: passed.append("only waiting"))
    assert passed.pop() == "only waiting"
    outbox.commands()
    outbox.fence(lambda: passed.append("first"))
    outbox.fence(lambda: passed.append("second"))
    assert outbox.commands() == [(b"PING",), (b"PING",)]
    assert outbox.commands() == []
    outbox.receive(deque([1]))
    assert passed == ["idle"]
    assert payloads(outbox.commands()) == [b"1"]
    outbox.receive(deque([b"PONG"]))
    assert passed == ["idle", "first"]
    outbox.receive(deque([b"PONG", 1]))
    assert passed == ["idle", "first", "second"]
    assert outbox.in_flight == 0


@pytest.mark.parametrize("is_sent", [False, True])
def test_a_fence_passes_when_the_connection_is_lost(is_sent: bool) -> None:
    """After all that will be sent again is in its line again; and once."""
    node, passed = Node(), list[int]()
    line = node.outbox.open_line(10)
    append_to(line, b"a")
    append_to(line, b"b")
    node.outbox.commands()
    node.outbox.fence(lambda: passed.append(len(line.waiting)))
    if is_sent:
        node.outbox.commands()
    node.outbox.end()
    assert passed == [2]
    node.outbox.begin()
    assert [command[0] for command in node.outbox.commands()] == [b"SCRIPT", b"EVALSHA"]
    node.outbox.end()
    assert passed == [2]


def test_a_fence_in_the_midst_of_answers() -> None:
    """Who is told of a redirection may ask for one there and then."""
    passed: list[int] = []

    def on_redirect(request: Any, line: Line, why: Any) -> None:
        outbox.fence(lambda: passed.append(line.in_flight))

    outbox = Outbox(Push, on_redirect)
    outbox.begin()
    line = outbox.open_line(10)
    for n in range(3):
        publish(outbox, line, b"%d" % n)
    outbox.commands()
    outbox.receive(deque([ErrorReply("MOVED 1 h:1"), 1]))
    assert passed == []
    assert outbox.commands() == [(b"PING",)]
    outbox.receive(deque([1, b"PONG"]))
    assert passed == [0]


def in_parts(*lines: Line) -> Batch:
    """A batch, each command of it in one of these lines."""
    batch = Batch(Promise(), math.inf, [(b"PUBLISH", b"c%d" % n, b"%d" % n) for n in range(len(lines))])
    for line, (command, promise) in zip(lines, batch.parts(), strict=True):
        line.add((promise, batch.deadline, command, line))
    return batch


def test_a_batch_in_parts_is_done_with_the_last_of_them() -> None:
    """Answers come in any order, each to its own place; errors among them."""
    one, two = live(), live()
    first, second = one.open_line(10), two.open_line(10)
    batch = in_parts(first, second, first, second)
    for outbox in (one, two):
        outbox.commands()
    two.receive(deque([11, ErrorReply("NOPERM no")]))
    one.receive(deque([10]))
    assert not batch.promise.done()
    one.receive(deque([12]))
    assert batch.promise.done()
    assert [str(a) if isinstance(a, PubSubError) else a for a in batch.answers[:3]] == [10, 11, 12]
    assert list(batch.failures()) == [3]
    assert isinstance(batch.failures()[3], PublishRefused)


def test_parts_of_a_batch_fail_by_themselves() -> None:
    """One node is lost, one takes nothing: the others' answers count."""
    one, two, three = live(), live(), live()
    batch = in_parts(one.open_line(1), two.open_line(1), three.open_line(1))
    one.commands()
    two.commands()
    one.receive(deque([5]))
    two.end()
    three.close(Closed("Client"))
    assert batch.promise.done()
    assert batch.answers[0] == 5
    assert {at: type(error) for at, error in batch.failures().items()} == {1: Unconfirmed, 2: Closed}


def test_parts_of_a_batch_that_was_given_up() -> None:
    """What has not left is not sent, and answers to what has are nobody's."""
    one, two = live(), live()
    batch = in_parts(one.open_line(1), two.open_line(1))
    one.commands()
    batch.promise.cancel()  # type: ignore[attr-defined]
    assert two.commands() == []
    one.receive(deque([5]))
    assert (one.in_flight, two.waiting) == (0, 0)
