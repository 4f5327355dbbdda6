"""Links in virtual time: states, waits, and bounds that come out exact."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopubsub.errors import Closed, ConnectFailed
from aiopubsub.link import _MOVES, Backoff, Link, State, Verdict, judge
from tests.unit.fakes import FakeDialogue, FakeOpener, FakeWire
from tests.virtual_time import run

HEARTBEAT = 4.0
REFUSED = ConnectFailed("fake:1", "refused")
WRONGPASS = ConnectFailed("fake:1", "WRONGPASS", permanent=True)


def make(opener: FakeOpener, **options: Any) -> Link[FakeDialogue]:
    options = {"heartbeat": HEARTBEAT, "backoff": Backoff(1.0, 8.0, 100.0)} | options
    return Link(opener, FakeDialogue(), role="test", **options)


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait is as long as it may be."""
    monkeypatch.setattr(random, "random", lambda: 1.0)


# -- pure decisions --------------------------------------------------------------------------------


def test_judge() -> None:
    """Quiet for a heartbeat: ask. Quiet for another: dead. Not a moment before."""
    assert judge(13.9, 10.0, None, 4.0) == (Verdict.FINE, 14.0)
    assert judge(14.0, 10.0, None, 4.0) == (Verdict.PING, 18.0)
    assert judge(17.9, 10.0, 14.0, 4.0) == (Verdict.FINE, 18.0)
    assert judge(18.0, 10.0, 14.0, 4.0) == (Verdict.DEAD, math.inf)


def test_any_byte_counts() -> None:
    """Something heard since the question is an answer, whatever it was."""
    assert judge(18.0, 17.0, 14.0, 4.0) == (Verdict.FINE, 21.0)
    assert judge(21.0, 17.0, 14.0, 4.0) == (Verdict.PING, 25.0)


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(2, 10))
def test_death_is_noticed_within_two_heartbeats(pauses: list[int], heartbeat: int) -> None:
    """Whatever was heard before, and when: silence ends after two heartbeats, and life goes on."""
    heard = [0.0]
    for pause in pauses:
        if pause >= heartbeat:
            break  # here the server falls silent
        heard.append(heard[-1] + pause)
    asked_at: float | None = None
    look_at = float(heartbeat)
    while True:
        time = look_at
        heard_at = max(at for at in heard if at <= time)
        if asked_at is not None and heard_at > asked_at:
            asked_at = None
        verdict, look_at = judge(time, heard_at, asked_at, heartbeat)
        if verdict is Verdict.DEAD:
            break
        assert look_at > time
        if verdict is Verdict.PING:
            asked_at = time
    assert time == heard[-1] + 2 * heartbeat


def test_backoff() -> None:
    """The bound of the wait doubles up to the cap, and chance takes a part of it."""
    backoff = Backoff(first_s=0.05, cap_s=1.0)
    assert [backoff.delay_s(n, 1.0) for n in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.delay_s(2, 0.5) == 0.1
    assert backoff.delay_s(3, 0.0) == 0.0
    assert backoff.delay_s(10**9, 1.0) == 1.0
    assert Backoff(1.0, 1.0).delay_s(0, 0.25) == 0.25


def test_backoff_by_default() -> None:
    """What is documented."""
    assert Backoff() == Backoff(first_s=0.05, cap_s=1.0, reset_after_s=5.0)


@pytest.mark.parametrize(
    "numbers",
    [
        (0.0, 1.0),
        (-1.0, 1.0),
        (2.0, 1.0),
        (1.0, math.inf),
        (math.nan, 1.0),
        (1.0, math.nan),
        (1.0, 1.0, -1.0),
        (1.0, 1.0, math.nan),
    ],
)
def test_backoff_out_of_range(numbers: tuple[float, ...]) -> None:
    """Waits are positive and finite, and the first is the shortest."""
    with pytest.raises(ValueError, match=r"^backoff must have 0 < first_s <= cap_s"):
        Backoff(*numbers)


def test_the_table_of_states() -> None:
    """Every move that the table does not have is refused; from CLOSED there is none."""

    async def main() -> None:
        for before in State:
            for after in State:
                link = make(FakeOpener())
                link.state = before
                if after in _MOVES[before]:
                    link._move(after)
                    assert link.state is after
                else:
                    with pytest.raises(RuntimeError, match=f"cannot go from {before.name} to {after.name}"):
                        link._move(after)
        assert _MOVES[State.CLOSED] == set()
        assert all(State.CLOSED in moves for state, moves in _MOVES.items() if state is not State.CLOSED)

    run(main())


# -- a life ----------------------------------------------------------------------------------------


def test_it_connects_when_it_is_first_needed() -> None:
    """Nothing happens before `ready`, which returns when the session is live; a second returns at once."""

    async def main() -> None:
        opener = FakeOpener()
        link = make(opener)
        await asyncio.sleep(1)
        assert (link.state, link.heard_s_ago, opener.opened_at) == (State.IDLE, None, [])
        await link.ready(1.0)
        await link.ready(1.0)
        assert (link.state, link.error, link.reconnects) == (State.LIVE, None, 0)
        assert link.dialogue.told == ["begin"]
        assert opener.opened_at == [1.0]
        assert link.heard_s_ago == 0.0
        await asyncio.sleep(2)
        assert link.heard_s_ago == 2.0
        await link.aclose()

    run(main())


def test_it_connects_again_after_a_loss(caplog: pytest.LogCaptureFixture) -> None:
    """A lost session is followed by the next one; the loss is logged once, and so is the return."""
    caplog.set_level(logging.INFO, "aiopubsub")

    async def main() -> None:
        opener = FakeOpener()
        link = make(opener)
        await link.ready(None)
        await asyncio.sleep(2)
        opener.wires[0].lose("reset by peer")
        assert link.dialogue.told == ["begin", "end"]
        await link_is(link, State.WAITING)
        assert isinstance(link.error, ConnectFailed)
        assert vars(link.error) == {"target": "fake:1", "reason": "reset by peer", "permanent": False}
        assert link.heard_s_ago == 2.0
        await link.ready(None)
        assert (link.state, link.error, link.reconnects) == (State.LIVE, None, 1)
        assert link.dialogue.told == ["begin", "end", "begin"]
        assert len(opener.wires) == 2
        await link.aclose()

    run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "test: lost fake:1: reset by peer",
        "test: connected to fake:1 again",
    ]


@pytest.mark.usefixtures("no_jitter")
def test_waits_grow_and_stop_growing(caplog: pytest.LogCaptureFixture) -> None:
    """Tries that fail wait 1, 2, 4, 8, 8 … s with this backoff; the same reason is logged once."""
    caplog.set_level(logging.INFO, "aiopubsub")

    async def main() -> None:
        opener = FakeOpener(*[ConnectFailed("fake:1", "refused") for _ in range(6)])
        link = make(opener)
        await link.ready(None)
        assert opener.opened_at == [0, 1, 3, 7, 15, 23, 31]
        assert link.reconnects == 0
        await link.aclose()

    run(main())
    assert [record.getMessage() for record in caplog.records] == [f"test: {REFUSED}"]


@pytest.mark.usefixtures("no_jitter")
@pytest.mark.parametrize(("lived", "wait"), [(99.0, 4.0), (100.0, 1.0)])
def test_a_session_that_lived_starts_the_waits_anew(lived: float, wait: float) -> None:
    """After `reset_after_s` of life the row begins at its first wait, before that it goes on."""

    async def main() -> None:
        opener = FakeOpener(REFUSED, REFUSED)
        link = make(opener)
        await link.ready(None)
        assert now() == 3.0
        await asyncio.sleep(lived)
        opener.wires[0].lose()
        await link_is(link, State.WAITING)
        began = now()
        await link.ready(None)
        assert now() - began == wait
        await link.aclose()

    run(main())


@pytest.mark.usefixtures("no_jitter")
def test_hurrying_begins_the_row_of_waits_anew() -> None:
    """While it waits, and while it tries; once it is live that is over."""

    async def main() -> None:
        async def hurry_and_refuse() -> None:
            link.hurry()
            raise REFUSED

        opener = FakeOpener(REFUSED, REFUSED, REFUSED, REFUSED, hurry_and_refuse)
        link = make(opener)
        link.open()
        await asyncio.sleep(10)  # of a wait that began at 7 and would end at 15
        link.hurry()
        await link.ready(None)
        assert opener.opened_at == [0, 1, 3, 7, 11, 12]
        link.hurry()
        opener.outcomes.append(REFUSED)
        opener.wires[0].lose()
        await link_is(link, State.WAITING)
        link.hurry()
        await link.ready(None)
        assert opener.opened_at == [0, 1, 3, 7, 11, 12, 13, 15]
        await link.aclose()

    run(main())


@pytest.mark.usefixtures("no_jitter")
def test_hurrying_is_over_when_it_is_live() -> None:
    """A connection that came of it and is lost at once waits as long as it would have."""

    async def main() -> None:
        async def hurry() -> None:
            link.hurry()

        opener = FakeOpener(REFUSED, REFUSED, REFUSED, hurry)
        link = make(opener)
        await link.ready(None)
        opener.wires[0].lose()
        await link_is(link, State.WAITING)
        await link.ready(None)
        assert opener.opened_at == [0, 1, 3, 7, 15]
        await link.aclose()

    run(main())


async def link_is(link: Link[FakeDialogue], state: State) -> None:
    while link.state is not state:
        await link._change()


def test_a_try_has_a_deadline() -> None:
    """An opener that hangs is given up after 5 s, and tried again."""

    async def main() -> None:
        opener = FakeOpener(asyncio.Event().wait)
        link = make(opener, backoff=Backoff(1e-9, 1e-9))
        await link.ready(None)
        assert now() == pytest.approx(5.0)
        assert len(opener.opened_at) == 2
        await link.aclose()

    run(main())


# -- trouble ---------------------------------------------------------------------------------------


def test_a_silent_server_is_dead_after_two_heartbeats() -> None:
    """Asked after one heartbeat, given up after exactly two, told to the dialogue in the same moment."""

    async def main() -> None:
        opener = FakeOpener(FakeWire())
        link = make(opener)
        await link.ready(None)
        await asyncio.sleep(1)
        opener.wires[0].say("x")
        await link_is(link, State.WAITING)
        assert now() == 1 + 2 * HEARTBEAT
        assert opener.wires[0].writes == [[(b"PING",)]]
        assert opener.wires[0].is_aborted
        assert link.dialogue.told == ["begin", "x", "end"]
        assert str(link.error).startswith("cannot connect to fake:1: nothing heard for 8 s, PING included")
        await link.aclose()

    run(main())


def test_what_has_come_is_read_before_the_verdict() -> None:
    """An answer that came while the event loop was blocked counts, also where timers run before reading."""

    async def main() -> None:
        opener = FakeOpener(FakeWire())
        link = make(opener)
        await link.ready(None)
        await asyncio.sleep(HEARTBEAT + 1)
        loop = asyncio.get_running_loop()
        loop.call_at(2 * HEARTBEAT, loop.call_soon, opener.wires[0].say, b"PONG")
        await asyncio.sleep(HEARTBEAT)
        assert (link.state, link.reconnects) == (State.LIVE, 0)
        await link.aclose()

    run(main())


def test_a_quiet_server_that_answers_lives() -> None:
    """A PING per heartbeat, each answered: the session lives on, also when the clock stands still."""

    async def main() -> None:
        opener = FakeOpener()
        link = make(opener)
        await link.ready(None)
        await asyncio.sleep(10 * HEARTBEAT + 1)
        assert (link.state, link.reconnects) == (State.LIVE, 0)
        assert opener.wires[0].writes == [[(b"PING",)]] * 10
        assert link.heard_s_ago == 1.0
        await link.aclose()

    run(main())


def test_a_server_that_speaks_is_not_asked() -> None:
    """While something comes within each heartbeat there is no PING."""

    async def main() -> None:
        opener = FakeOpener(FakeWire())
        link = make(opener)
        await link.ready(None)
        for _ in range(20):
            await asyncio.sleep(HEARTBEAT - 0.5)
            opener.wires[0].say("x")
        assert (link.state, opener.wires[0].writes) == (State.LIVE, [])
        await link.aclose()

    run(main())


def test_any_message_answers_a_ping() -> None:
    """A backlog in front of the PONG does not kill a connection that moves."""

    async def main() -> None:
        opener = FakeOpener(FakeWire())
        link = make(opener)
        await link.ready(None)
        await asyncio.sleep(1.5 * HEARTBEAT)
        opener.wires[0].say("x")
        await asyncio.sleep(1.25 * HEARTBEAT)
        assert link.state is State.LIVE
        assert len(opener.wires[0].writes) == 2
        await link_is(link, State.WAITING)
        assert now() == 3.5 * HEARTBEAT
        await link.aclose()

    run(main())


def test_a_session_that_we_hold_up_is_not_dead() -> None:
    """While the consumer stalls us silence says nothing; afterwards it counts again."""

    async def main() -> None:
        opener = FakeOpener(FakeWire())
        link = make(opener)
        link.dialogue.stall_after = "x"
        await link.ready(None)
        opener.wires[0].say("x", "y")
        await asyncio.sleep(20 * HEARTBEAT)
        assert link.state is State.LIVE
        assert opener.wires[0].is_paused
        link.resume()
        await asyncio.sleep(0)
        assert link.dialogue.told == ["begin", "x", "y"]
        await link_is(link, State.WAITING)
        assert 20 * HEARTBEAT < now() <= 22 * HEARTBEAT
        await link.aclose()

    run(main())


def test_a_server_that_gets_ahead_of_us_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A warning after a heartbeat, with what is at stake; and a word when it is over."""
    caplog.set_level(logging.INFO, "aiopubsub")

    def answer(link: Link[FakeDialogue]) -> None:
        for mark in link.dialogue.marks:
            mark()
        link.dialogue.marks.clear()

    async def main() -> None:
        opener = FakeOpener(FakeWire())
        link = make(opener)
        link.dialogue.subject = "'c'"
        link.dialogue.stall_after = "x"
        await link.ready(None)
        opener.wires[0].say("x")
        await asyncio.sleep(1.5 * HEARTBEAT)
        assert not caplog.records
        await asyncio.sleep(HEARTBEAT)
        assert len(caplog.records) == 1
        await asyncio.sleep(10 * HEARTBEAT)
        answer(link)  # what it was asked long ago; so it was behind until now
        await asyncio.sleep(HEARTBEAT)
        assert len(caplog.records) == 1
        answer(link)
        await asyncio.sleep(HEARTBEAT)
        await link.aclose()

    run(main())
    limit = "client-output-buffer-limit pubsub"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            f"test: consumers are too slow on 'c': fake:1 is 4 s ahead of us, and hangs up at its {limit}",
        ),
        ("INFO", "test: has caught up with fake:1"),
    ]


def test_a_quiet_time_ends_being_behind(caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing comes for a heartbeat although we read, there is nothing to be behind of."""
    caplog.set_level(logging.INFO, "aiopubsub")

    async def main() -> None:
        opener = FakeOpener(FakeWire())
        link = make(opener)
        link.dialogue.subject = "'c'"
        link.dialogue.stall_after = "x"
        await link.ready(None)
        opener.wires[0].say("x")
        await asyncio.sleep(2.5 * HEARTBEAT)
        link.resume()
        await asyncio.sleep(HEARTBEAT)
        await link.aclose()

    run(main())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_failure_in_receive_ends_the_session_not_the_link() -> None:
    """The next session comes, and the reason is told until it is there."""

    async def main() -> None:
        opener = FakeOpener()
        link = make(opener)
        await link.ready(None)
        opener.wires[0].say(LookupError("mine"))
        await link_is(link, State.WAITING)
        assert isinstance(link.error, ConnectFailed)
        assert link.error.reason == "LookupError: mine"
        await link.ready(None)
        assert link.dialogue.told == ["begin", "end", "begin"]
        await link.aclose()

    run(main())


def test_a_permanent_error_closes() -> None:
    """It is raised to all who wait, told to the dialogue, and nothing is tried again."""

    async def main() -> None:
        opener = FakeOpener(REFUSED, WRONGPASS)
        link = make(opener)
        waiters = [asyncio.create_task(link.ready(timeout)) for timeout in (None, 50.0)]
        await asyncio.wait(waiters)
        for waiter in waiters:
            error = waiter.exception()
            assert isinstance(error, ConnectFailed)
            assert vars(error) == vars(WRONGPASS)
        assert link.state is State.CLOSED
        assert link.dialogue.told == [WRONGPASS]
        with pytest.raises(ConnectFailed, match="WRONGPASS"):
            await link.ready(1.0)
        await asyncio.sleep(1000)
        assert len(opener.opened_at) == 2
        await link.aclose()
        assert link.error is WRONGPASS

    run(main())


def test_a_permanent_error_after_a_session() -> None:
    """A password that was changed meanwhile closes the link when it reconnects."""

    async def main() -> None:
        link = make(FakeOpener(FakeWire(), WRONGPASS))
        await link.ready(None)
        await link_is(link, State.CLOSED)
        assert link.dialogue.told == ["begin", "end", WRONGPASS]
        await link.aclose()

    run(main())


def test_a_defect_reaches_whoever_waits(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that nobody foresaw closes the link with its words, and is logged with its traceback."""

    async def main() -> None:
        link = make(FakeOpener(LookupError("defect")))
        with pytest.raises(ConnectFailed, match="LookupError: defect"):
            await link.ready(None)
        assert link.state is State.CLOSED
        await link.aclose()

    run(main())
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_timeout_tells_the_last_reason() -> None:
    """`ready` raises after its timeout; the link goes on trying."""

    async def main() -> None:
        opener = FakeOpener(*[ConnectFailed("fake:1", "refused") for _ in range(1000)])
        link = make(opener)
        with pytest.raises(ConnectFailed, match="refused"):
            await link.ready(2.5)
        assert now() == 2.5
        assert link.state is not State.CLOSED
        await link.aclose()

    run(main())


def test_a_timeout_without_a_reason() -> None:
    """When nothing was heard at all, the timeout is what is told."""

    async def main() -> None:
        link = make(FakeOpener(asyncio.Event().wait))
        with pytest.raises(ConnectFailed, match="no answer within 2 s"):
            await link.ready(2)
        await link.aclose()

    run(main())


@pytest.mark.parametrize("timeout", [None, 1.0])
def test_a_link_that_was_closed_says_so(timeout: float | None) -> None:
    """`ready` on a closed link, and one that is waited for when it is closed, raises `Closed`."""

    async def main() -> None:
        link = make(FakeOpener(asyncio.Event().wait))
        waiter = asyncio.create_task(link.ready(timeout))
        await asyncio.sleep(0)
        await link.aclose()
        with pytest.raises(Closed):
            await waiter
        with pytest.raises(Closed):
            await link.ready(timeout)

    run(main())


# -- closing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_closing_from_every_state(state: State) -> None:
    """`aclose` leaves no task, no open wire and a dialogue that was told; a second one does nothing."""

    async def main() -> None:
        outcomes: dict[State, Any] = {State.CONNECTING: asyncio.Event().wait, State.WAITING: REFUSED}
        outcomes[State.CLOSED] = WRONGPASS
        opener = FakeOpener(*[outcomes[state]] if state in outcomes else [])
        link = make(opener)
        if state is not State.IDLE:
            link.open()
            link.open()
            await asyncio.sleep(0)
            await link_is(link, state)
        if state is not State.CLOSED:
            link.kick(1000.0)
        began = now()
        await link.aclose()
        await link.aclose()
        assert now() == began
        assert link.state is State.CLOSED
        assert [w.is_aborted for w in opener.wires] == [True] * len(opener.wires)
        closed = [item for item in link.dialogue.told if not isinstance(item, str)]
        assert [type(error) for error in closed] == [ConnectFailed if state is State.CLOSED else Closed]
        if state is State.LIVE:
            assert link.dialogue.told == ["begin", closed[0], "end"]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await asyncio.sleep(2000)
        assert link.dialogue.expired_at == []

    run(main())


def test_cancelling_aclose_leaves_nothing() -> None:
    """The link is closed at once; only the wait for its task is cancelled."""

    async def main() -> None:
        opener = FakeOpener()
        link = make(opener)
        await link.ready(None)
        closing = asyncio.create_task(link.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        assert link.state is State.CLOSED
        assert opener.wires[0].is_aborted
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(main())


def test_an_opener_that_does_not_let_go() -> None:
    """`aclose` waits one second for a task that ignores its cancellation, not longer."""

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3)
        await asyncio.sleep(10)

    async def main() -> None:
        link = make(FakeOpener(stubborn))
        link.open()
        await asyncio.sleep(1)
        await link.aclose()
        assert now() == 2.0
        await asyncio.sleep(20)
        assert link.dialogue.is_live is False

    run(main())


# -- deadlines of the dialogue ---------------------------------------------------------------------


def test_the_alarm_rings_at_the_earliest_deadline() -> None:
    """The dialogue is asked at each deadline, connected or not, and not when nothing is due."""

    async def main() -> None:
        link = make(FakeOpener(asyncio.Event().wait))
        link.dialogue.deadlines = [3.0, 7.0, 8.0]
        link.kick(7.0)
        link.kick(3.0)
        link.kick(8.0)
        link.kick()
        await asyncio.sleep(20)
        assert link.dialogue.expired_at == [3.0, 7.0, 8.0]
        link.dialogue.deadlines = [25.0]
        link.kick(25.0)
        await asyncio.sleep(20)
        assert link.dialogue.expired_at == [3.0, 7.0, 8.0, 25.0]
        await link.aclose()

    run(main())


def test_what_the_alarm_makes_room_for_is_sent() -> None:
    """After the alarm the session asks the dialogue again."""

    async def main() -> None:
        opener = FakeOpener()
        link = make(opener)
        await link.ready(None)
        await asyncio.sleep(1)
        link.kick(3.0)
        await asyncio.sleep(1)
        link.dialogue.to_say.append([(b"A",)])
        assert opener.wires[0].writes == []
        await asyncio.sleep(1.5)
        assert opener.wires[0].writes == [[(b"A",)]]
        await link.aclose()

    run(main())
