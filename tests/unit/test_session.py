"""A session on a connection that is a list: when it reads, when it writes, when it pauses, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from aiopubsub.dialogue import OutOfStep
from aiopubsub.session import Session
from tests.unit.fakes import FakeDialogue, FakeWire
from tests.virtual_time import run

A, B, C = (b"A",), (b"B",), (b"C",)

Test = Callable[[Session, FakeWire, FakeDialogue], Awaitable[None]]


def in_session(test: Test, *, first: list[list[tuple[bytes, ...]]] | None = None) -> None:
    """Run a test with a session that has just begun."""

    async def main() -> None:
        wire, dialogue = FakeWire(), FakeDialogue()
        dialogue.to_say.extend(first or [])
        await test(Session(wire, dialogue), wire, dialogue)

    run(main())


async def turn() -> None:
    """One turn of the event loop."""
    await asyncio.sleep(0)


def test_it_begins_by_saying_what_there_is_to_say() -> None:
    """The dialogue begins, and what it has to say is written at once."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        assert dialogue.told == ["begin"]
        assert wire.writes == [[A, B], [C]]
        assert wire.user is session
        assert session.heard_at == 0.0

    in_session(test, first=[[A, B], [C]])


def test_a_lone_command_is_written_at_once() -> None:
    """The first command of a turn does not wait, those that follow go out together at its end."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        await turn()
        dialogue.to_say.append([A])
        session.kick()
        assert wire.writes == [[A]]
        dialogue.to_say.append([B])
        session.kick()
        session.kick()
        dialogue.to_say[-1].append(C)
        assert wire.writes == [[A]]
        await turn()
        assert wire.writes == [[A], [B, C]]
        dialogue.to_say.append([A])
        session.kick()
        assert wire.writes == [[A], [B, C], [A]]

    in_session(test)


def test_nothing_is_written_while_the_wire_is_full() -> None:
    """Commands wait in the dialogue until the wire is writable again."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        await turn()
        wire.is_writable = False
        dialogue.to_say.append([A])
        session.kick()
        await turn()
        assert wire.writes == []
        wire.is_writable = True
        session.on_writable()
        assert wire.writes == [[A]]

    in_session(test)


def test_what_comes_is_dealt_with_at_once() -> None:
    """A batch goes to the dialogue in the same call, and what that brings about is written."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        await asyncio.sleep(3)
        dialogue.to_say.append([A])
        wire.say(1, 2)
        assert dialogue.told == ["begin", 1, 2]
        assert wire.writes == [[A]]
        assert session.heard_at == 3.0
        assert not session.is_held_up

    in_session(test)


def test_a_long_batch_goes_on_in_later_turns() -> None:
    """A slice per turn; meanwhile the server is not read, and the order is kept."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        await turn()
        dialogue.slice = 2
        wire.say(1, 2, 3, 4, 5)
        assert dialogue.told == ["begin", 1, 2]
        assert wire.is_paused
        assert session.is_held_up
        wire.say(6)  # was read already
        assert dialogue.told == ["begin", 1, 2]
        await turn()
        assert dialogue.told == ["begin", 1, 2, 3, 4]
        assert wire.is_paused
        await turn()
        assert dialogue.told == ["begin", 1, 2, 3, 4, 5, 6]
        await turn()
        assert not wire.is_paused

    in_session(test)


def test_a_second_batch_in_one_turn_is_the_last() -> None:
    """A loop that reads again and again in one turn leaves no time to others, so it is paused."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        await turn()
        wire.say(1)
        assert not wire.is_paused
        wire.say(2)
        assert dialogue.told == ["begin", 1, 2]
        assert wire.is_paused
        await turn()
        assert not wire.is_paused
        wire.say(3)
        assert not wire.is_paused

    in_session(test)


def test_a_stalled_dialogue_is_not_fed_until_it_has_room() -> None:
    """The wire is paused and the rest is kept; `resume` goes on where it stopped."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        await turn()
        dialogue.stall_after = 2
        wire.say(1, 2, 3)
        assert dialogue.told == ["begin", 1, 2]
        for _ in range(5):
            await turn()
        assert dialogue.told == ["begin", 1, 2]
        assert wire.is_paused
        session.resume()
        assert dialogue.told == ["begin", 1, 2]  # not inside the consumer's step
        await turn()
        assert dialogue.told == ["begin", 1, 2, 3]
        await turn()
        assert not wire.is_paused

    in_session(test)


def test_a_stall_at_the_end_of_a_batch() -> None:
    """With nothing left to deal with, `resume` just reads again."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        await turn()
        dialogue.stall_after = 2
        wire.say(1, 2)
        assert wire.is_paused
        session.resume()
        await turn()
        assert not wire.is_paused

    in_session(test)


def test_a_failure_in_the_dialogue_ends_the_session(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever `receive` raises: the connection cannot be trusted any more, and the reason is told."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        wire.say(1, LookupError("mine"), 2)
        assert dialogue.told == ["begin", 1, "end"]
        assert wire.is_aborted
        assert session.ended.result() == "LookupError: mine"

    in_session(test)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_server_out_of_step_is_no_defect_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """The session ends with what was wrong; there is no traceback, for the link logs the reason."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        wire.say(1, OutOfStep("a fence was due, not int"), 2)
        assert dialogue.told == ["begin", 1, "end"]
        assert session.ended.result() == "the server is out of step: a fence was due, not int"

    in_session(test)
    assert not caplog.records


def test_a_failure_in_a_later_slice_ends_the_session() -> None:
    """Also when it happens in a turn of its own, and nothing goes on after it."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        dialogue.slice = 1
        wire.say(1, LookupError("mine"), 2)
        assert not session.ended.done()
        for _ in range(3):
            await turn()
        assert dialogue.told == ["begin", 1, "end"]
        assert session.ended.result() == "LookupError: mine"

    in_session(test)


def test_what_cannot_be_read_ends_the_session() -> None:
    """What came before it is dealt with first."""

    def batch() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("not RESP")

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        assert wire.user is not None
        assert wire.user.on_batch(batch())
        assert dialogue.told == ["begin", 1, 2, "end"]
        assert wire.is_aborted
        assert session.ended.result() == "the server sent what cannot be read: not RESP"

    in_session(test)


def test_a_read_without_anything_whole() -> None:
    """It is told, brings nothing about, and is no sign of life."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        await asyncio.sleep(3)
        assert wire.user is not None
        assert not wire.user.on_batch(iter(()))
        assert session.heard_at == 0.0
        wire.user.on_part()
        assert session.heard_at == 3.0
        assert dialogue.told == ["begin"]

    in_session(test)


def test_ending_it() -> None:
    """`end` closes the wire and tells the dialogue; a second time it does nothing."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        session.end("enough")
        session.end("again")
        assert wire.is_aborted
        assert dialogue.told == ["begin", "end"]
        assert session.ended.result() == "enough"
        dialogue.to_say.append([A])
        session.kick()
        session.resume()
        await turn()
        assert wire.writes == []

    in_session(test)


@pytest.mark.parametrize("is_stalled", [False, True])
def test_what_was_read_before_the_loss_counts(is_stalled: bool) -> None:
    """The dialogue gets all that had come, then the end, whatever was held back."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        dialogue.slice = 1
        dialogue.stall_after = 1 if is_stalled else None
        wire.say(1, 2, 3)
        wire.say(4)
        wire.lose("reset by peer")
        assert dialogue.told == ["begin", 1, 2, 3, 4, "end"]
        assert session.ended.result() == "reset by peer"
        await turn()
        await turn()

    in_session(test)


def test_a_failure_while_the_rest_is_dealt_with() -> None:
    """The session ends once, with the failure as its reason."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        dialogue.slice = 1
        wire.say(1, LookupError("mine"), 3)
        wire.lose()
        assert dialogue.told == ["begin", 1, "end"]
        assert session.ended.result() == "LookupError: mine"

    in_session(test)


def test_a_ping_is_written_at_once() -> None:
    """A sign of life is asked for through the dialogue, which knows its place among the replies."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        await asyncio.sleep(3)
        assert session.asked_at is None
        session.ping()
        assert wire.writes == [[(b"PING",)]]
        assert session.asked_at == 3.0
        wire.say(b"PONG")  # at the same time: clocks are coarse
        assert session.asked_at is None

    in_session(test)


def listening(test: Test) -> None:
    """Run a test with a session that can fall behind the server."""

    async def test_with_subject(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        dialogue.subject = "'c'"
        await test(session, wire, dialogue)

    in_session(test_with_subject)


def test_how_far_it_is_behind() -> None:
    """Measured by one PING at a time: while its answer is not here we are behind; then we know how far."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        await turn()
        assert (session.behind_s, session.lag_s) == (0.0, 0.0)
        session.measure(0.0)
        assert wire.writes == [[(b"PING",)]]
        await asyncio.sleep(3)
        session.measure(0.0)
        assert len(dialogue.marks) == 1
        assert (session.behind_s, session.lag_s) == (3.0, 0.0)
        dialogue.marks[0]()
        assert (session.behind_s, session.lag_s) == (0.0, 3.0)
        session.measure(20.0)  # the event loop was blocked
        assert (session.behind_s, session.lag_s) == (20.0, 3.0)
        session.ping()  # quiet for a heartbeat: we have read all there is
        assert (session.behind_s, session.lag_s) == (0.0, 0.0)

    listening(test)


def test_one_that_cannot_be_behind_is_not_asked() -> None:
    """A side that is sent nothing but answers has nothing to measure."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        session.measure(20.0)
        assert (wire.writes, session.behind_s) == ([], 0.0)

    in_session(test)


@pytest.mark.parametrize(
    ("behind_s", "hears", "is_told"), [(1.0, True, True), (0.5, True, False), (9.0, False, False)]
)
def test_a_server_that_hangs_up_far_ahead_of_us(behind_s: float, hears: bool, is_told: bool) -> None:
    """The reason names the limit if we were far behind, and something came since; else it was none."""

    async def test(session: Session, wire: FakeWire, dialogue: FakeDialogue) -> None:
        session.measure(0.0)
        await asyncio.sleep(behind_s)
        if hears:
            wire.say("x")
        wire.lose("the server closed the connection")
        more = "; the server was 1 s ahead of us, and hangs up at its client-output-buffer-limit pubsub"
        reason = "the server closed the connection" + more * is_told
        assert (session.ended.result(), dialogue.reasons) == (reason, [reason])

    listening(test)


def test_an_ended_session_takes_nothing_from_the_next_one() -> None:
    """The dialogue outlives sessions: what it says in the next one is not written by the last."""

    async def main() -> None:
        old, new, dialogue = FakeWire(), FakeWire(), FakeDialogue()
        old.abort = lambda: None  # type: ignore[method-assign]  # like memory://, always writable
        session = Session(old, dialogue)
        session.end("cut")
        new.is_writable = False
        Session(new, dialogue)
        dialogue.to_say.append([A])
        await turn()
        assert old.writes == []

    run(main())
