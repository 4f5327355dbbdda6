"""A standing connection: one session after another, until it is closed.

    IDLE -open-> CONNECTING -ready-> LIVE -ended-> WAITING -due-> CONNECTING
    CONNECTING -permanent error-> CLOSED       any -close-> CLOSED

Lives here: when to connect, how long to wait, when to give a connection up. Must not live here: what
is said over it, how a socket is opened. A client owns links; roles kick them and wait for them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

import anyio

from .dialogue import Dialogue
from .errors import Closed, ConnectFailed, PubSubError
from .session import OUTPUT_LIMIT, Session
from .wire import Wire, WireOpener

__all__ = ["Backoff", "Link", "State", "Verdict", "judge"]

logger: logging.Logger = logging.getLogger("aiopubsub.link")

D = TypeVar("D", bound=Dialogue)

_ATTEMPT_TIMEOUT_S = 5.0  # for connecting and the handshake; redis-py's own default for each
_CLOSE_TIMEOUT_S = 1.0  # for a task that was cancelled and only has to notice


class State(Enum):
    """Where a link stands."""

    IDLE = "idle"
    CONNECTING = "connecting"
    LIVE = "live"
    WAITING = "waiting"
    CLOSED = "closed"


_MOVES = {
    State.IDLE: {State.CONNECTING, State.CLOSED},
    State.CONNECTING: {State.LIVE, State.WAITING, State.CLOSED},
    State.LIVE: {State.WAITING, State.CLOSED},
    State.WAITING: {State.CONNECTING, State.CLOSED},
    State.CLOSED: set[State](),
}


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next try to connect: full jitter, doubling.

    The n-th wait in a row is a random time between 0 and `first_s * 2**n`, at most `cap_s`, so that
    the clients of a server that comes back don't all come at once
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

    Args:
        first_s: Upper bound of the first wait, in seconds, > 0.
        cap_s: Upper bound of every wait. What it is, a server that is back waits at most for us.
        reset_after_s: A connection that lived this long starts the row anew.

    Raises:
        ValueError: A number is out of range.
    """

    first_s: float = 0.05
    cap_s: float = 1.0
    reset_after_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.cap_s < math.inf or not self.reset_after_s >= 0:
            raise ValueError(f"backoff must have 0 < first_s <= cap_s and reset_after_s >= 0: {self}")

    def delay_s(self, failures: int, chance: float) -> float:
        """The wait after so many failures in a row, from 0; `chance` is a random number in [0, 1)."""
        return chance * min(self.cap_s, self.first_s * 2.0 ** min(failures, 64))


class Verdict(Enum):
    """What the health of a connection asks for."""

    FINE = "fine"
    PING = "ping"
    DEAD = "dead"


def judge(now: float, heard_at: float, asked_at: float | None, heartbeat: float) -> tuple[Verdict, float]:
    """Whether a connection lives, and when to look again.

    Nothing heard for one heartbeat: ask. Nothing heard for one heartbeat since: dead. Whatever comes
    counts, so a large backlog in front of the answer does not kill a connection that moves.

    Args:
        now: The time, in seconds of any clock.
        heard_at: When something last came.
        asked_at: When a PING was sent that nothing was heard after, or `None`.
        heartbeat: In seconds.
    """
    if asked_at is None or heard_at > asked_at:
        due = heard_at + heartbeat
        return (Verdict.FINE, due) if now < due else (Verdict.PING, now + heartbeat)
    due = asked_at + heartbeat
    return (Verdict.FINE, due) if now < due else (Verdict.DEAD, math.inf)


class Link(Generic[D]):
    """A standing connection.

    Args:
        opener: Where wires come from.
        dialogue: Who speaks; it lives as long as the link.
        role: What it is for, in logs and task names.
        heartbeat: Seconds, see `judge`.
        backoff: Waits between tries.
        on_trouble: Called when a connection was lost or could not be opened.

    Attributes:
        state: Where it stands.
        error: Why the last try or session failed; after a permanent error also why it is closed.
        reconnects: Sessions after the first.
    """

    def __init__(
        self,
        opener: WireOpener,
        dialogue: D,
        *,
        role: str,
        heartbeat: float,
        backoff: Backoff,
        on_trouble: Callable[[], None] = lambda: None,
    ) -> None:
        self.dialogue = dialogue
        self.state: State = State.IDLE
        self.error: PubSubError | None = None
        self._opener = opener
        self._role = role
        self._heartbeat = heartbeat
        self._backoff = backoff
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._session: Session | None = None
        self._sessions = 0
        self._heard_at: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None  # the same, after it was cancelled
        self._changed: list[asyncio.Future[None]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._hurried = asyncio.Event()

    @property
    def reconnects(self) -> int:
        return max(0, self._sessions - 1)

    @property
    def heard_s_ago(self) -> float | None:
        """Seconds since the server was last heard; `None` before the first time."""
        heard_at = self._heard_at if self._session is None else self._session.heard_at
        return None if heard_at is None else self._loop.time() - heard_at

    async def ready(self, timeout: float | None) -> None:
        """Open the link if it is idle, and wait until it is live.

        Args:
            timeout: Seconds; `None` waits for ever.

        Raises:
            ConnectFailed: It is not live after the timeout, or never will be.
            Closed: It was closed.
        """
        self.open()
        if not self._is_decided():  # else without a timer, which asyncio keeps until it is due
            with anyio.move_on_after(timeout):
                while not self._is_decided():
                    await self._change()
        if self.state is State.LIVE:
            return
        if self.state is State.CLOSED:
            raise Closed("Client") if self.error is None else copy(self.error)
        if isinstance(self.error, ConnectFailed):
            raise ConnectFailed(self.error.target, self.error.reason) from self.error
        raise ConnectFailed(self._opener.target, f"no answer within {timeout:g} s")

    def open(self) -> None:
        """Begin to connect, if it has not begun yet."""
        if self.state is State.IDLE:
            self._move(State.CONNECTING)
            name = f"aiopubsub {self._role} {self._opener.target}"
            self._task = self._loop.create_task(self._run(), name=name)

    def kick(self, deadline: float = math.inf) -> None:
        """The dialogue may have something to say, which is overdue after the deadline."""
        if deadline < self._alarm_at:
            self._set_alarm(deadline)
        if self._session is not None:
            self._session.kick()

    def is_live(self, key: bytes) -> bool:
        """Whether what is said about this key would leave at once."""
        return self.state is State.LIVE

    def resume(self) -> None:
        """The consumer that stalled the dialogue has room again."""
        if self._session is not None:
            self._session.resume()

    def leave(self, reason: str) -> None:
        """Give the connection up, if there is one, and open another."""
        if self._session is not None:
            self._session.end(reason)

    def hurry(self) -> None:
        """What kept it from connecting may be over: the row of waits begins anew, unless it is live."""
        self._hurried.set()

    def close(self) -> None:
        """Close the connection and end the dialogue, now; its task ends within the next turns."""
        self._close(self.error if self.state is State.CLOSED else None)
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            self._ending = task

    async def aclose(self) -> None:
        """Close it and wait until it has. Never hangs; cancelling it leaves nothing over."""
        self.close()
        if self._ending is not None:
            await asyncio.wait([self._ending], timeout=_CLOSE_TIMEOUT_S)

    # -- inside ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """The life of the link. It ends with `aclose` or with a permanent error."""
        try:
            failures = 0
            while True:
                lived = await self._connect_and_live()
                if self.state is State.CLOSED:
                    return
                self._on_trouble()
                failures = 0 if lived >= self._backoff.reset_after_s else failures
                self._move(State.WAITING)
                failures = await self._rest(failures) + 1
                self._move(State.CONNECTING)
        except Exception as error:  # a defect of ours: it must reach whoever waits
            logger.exception("%s: the link failed", self._role)
            self._close(ConnectFailed(self._opener.target, f"{type(error).__name__}: {error}", True))

    async def _rest(self, failures: int) -> int:
        """Wait before the next try, after so many failures in a row; how many are left to count."""
        while True:
            if self._hurried.is_set():
                self._hurried.clear()
                failures = 0
            # jitter, not a secret
            delay_s = self._backoff.delay_s(failures, random.random())  # noqa: S311
            with anyio.move_on_after(delay_s):
                await self._hurried.wait()
            if not self._hurried.is_set():
                return failures

    async def _connect_and_live(self) -> float:
        """One try, and the session if it works; seconds that it lived."""
        try:
            wire = await self._open_wire()
        except ConnectFailed as error:
            if self.error is None or str(self.error) != str(error):
                # before the first connection somebody waits, and is told by an exception
                level = logging.WARNING if self._sessions else logging.INFO
                logger.log(level, "%s: %s", self._role, error)
            if error.permanent:
                self._close(error)
            self.error = error
            return 0.0
        if self.state is State.CLOSED:  # closed meanwhile; redis-py may have swallowed the cancellation
            wire.abort()
            return 0.0
        self.error = None
        self._hurried.clear()
        began_at = self._loop.time()
        self._session = session = Session(wire, self.dialogue)
        self._sessions += 1
        self._move(State.LIVE)
        if self._sessions > 1:
            logger.info("%s: connected to %s again", self._role, self._opener.target)
        try:
            await self._watch(session)
            reason = session.ended.result()
        finally:
            session.end("closed")
            self._heard_at = session.heard_at
            self._session = None
        self.error = ConnectFailed(self._opener.target, reason)
        logger.warning("%s: lost %s: %s", self._role, self._opener.target, reason)
        return self._loop.time() - began_at

    async def _open_wire(self) -> Wire:
        try:
            with anyio.fail_after(_ATTEMPT_TIMEOUT_S):
                return await self._opener.open()
        except TimeoutError:
            reason = f"no answer within {_ATTEMPT_TIMEOUT_S:g} s"
            raise ConnectFailed(self._opener.target, reason) from None

    async def _watch(self, session: Session) -> None:
        """Until the session has ended: see that the server lives, and that we keep up with it."""
        look_at = self._loop.time() + self._heartbeat
        is_behind = False
        while True:
            await asyncio.wait([session.ended], timeout=max(0.0, look_at - self._loop.time()))
            late_s = max(0.0, self._loop.time() - look_at)
            await asyncio.sleep(0)  # if the event loop was blocked: what came meanwhile is read first
            if session.ended.done():
                return
            now = self._loop.time()
            if session.is_held_up:  # we don't listen, so silence says nothing
                verdict, look_at = Verdict.FINE, now + self._heartbeat
            else:
                verdict, look_at = judge(now, session.heard_at, session.asked_at, self._heartbeat)
            match verdict:
                case Verdict.DEAD:
                    session.end(f"nothing heard for {now - session.heard_at:.3g} s, PING included")
                    return
                case Verdict.PING:
                    session.ping()
                case Verdict.FINE:
                    session.measure(late_s)
            is_behind = self._see_pace(session, is_behind)

    def _see_pace(self, session: Session, was_behind: bool) -> bool:
        """Whether the server is ahead of us by a heartbeat; logged once, and once when it is over."""
        behind_s = max(session.behind_s, session.lag_s)
        is_behind = behind_s >= self._heartbeat
        if is_behind and not was_behind:
            logger.warning(
                "%s: consumers are too slow on %s: %s is %.3g s ahead of us, and hangs up at its %s",
                self._role,
                self.dialogue.subject,
                self._opener.target,
                behind_s,
                OUTPUT_LIMIT,
            )
        elif was_behind and not is_behind:
            logger.info("%s: has caught up with %s", self._role, self._opener.target)
        return is_behind

    def _close(self, error: PubSubError | None) -> None:
        """To CLOSED, from wherever it stands; does nothing the second time."""
        if self.state is State.CLOSED:
            return
        self.error = error
        # the dialogue first: what it closes of its own accord is not a gap
        self.dialogue.close(Closed("Client") if error is None else error)
        if self._session is not None:
            self._session.end("closed")
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = -math.inf  # nothing is due any more
        self._move(State.CLOSED)

    def _move(self, state: State) -> None:
        if state not in _MOVES[self.state]:
            raise RuntimeError(f"a link cannot go from {self.state.name} to {state.name}")
        self.state = state
        for waiter in self._changed:
            if not waiter.done():
                waiter.set_result(None)
        self._changed.clear()

    def _is_decided(self) -> bool:
        """Whether it is live or never will be."""
        return self.state in (State.LIVE, State.CLOSED)

    async def _change(self) -> None:
        waiter = self._loop.create_future()
        self._changed.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._changed:
                self._changed.remove(waiter)

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(deadline, self._on_alarm)
        self._alarm_at = deadline

    def _on_alarm(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        earliest = self.dialogue.expire(self._loop.time())
        if earliest < math.inf and self.state is not State.CLOSED:
            self._set_alarm(earliest)
        self.kick()
