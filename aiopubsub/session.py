"""One connection's life: from the handshake's end to the socket's.

A session carries a dialogue over a wire. What comes is given to the dialogue in batches; what the
dialogue wants to say is gathered over one turn of the event loop and written at once. A lone command
does not wait for the turn's end: the first one is written immediately, and only those that follow it
in the same turn are gathered.

Lives here: when to read, when to write, when to pause. Must not live here: what is said, whether to
connect again. A link makes a session, and throws it away when it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

from .dialogue import Dialogue, OutOfStep
from .wire import Wire

__all__ = ["OUTPUT_LIMIT", "Session"]

logger: logging.Logger = logging.getLogger("aiopubsub.session")

OUTPUT_LIMIT = "client-output-buffer-limit pubsub"
"""The server's setting: so much of what we have not read yet it keeps, then it hangs up. By default 32 MB,
or 8 MB for 60 s (https://redis.io/docs/latest/develop/reference/clients/#output-buffer-limits)."""

_FAR_BEHIND_S = 1.0  # a server that closes a connection so far behind has probably hung up at its limit


class Session:
    """One connection's life.

    Args:
        wire: An open wire; the session owns it from here on.
        dialogue: Who speaks.

    Attributes:
        ended: Done when the session is over, with the reason.
        heard_at: When something last came from the server, by the loop's clock.
        asked_at: When a sign of life was asked for, if nothing has come since; else `None`. A state of
            its own, because clocks are coarse: uvloop's stands still for a millisecond.
        lag_s: How far we were behind the server when that was last known, in seconds; 0 at first.
    """

    def __init__(self, wire: Wire, dialogue: Dialogue) -> None:
        self._loop = asyncio.get_running_loop()
        self._wire = wire
        self._dialogue = dialogue
        self._backlog: deque[Any] = deque()  # what was read and not yet dealt with
        self._has_more = False  # the dialogue is to be called again
        self._is_paused = False
        self._is_gathering = False  # a flush is due at the end of this turn
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.heard_at: float = self._loop.time()
        self.asked_at: float | None = None
        self.lag_s: float = 0.0
        self._marked_at: float | None = None  # when we were abreast of the server at the latest
        dialogue.begin()
        wire.start(self)
        self.kick()

    @property
    def is_held_up(self) -> bool:
        """Whether the server is not read because we have not dealt with what it said before."""
        return self._is_paused

    @property
    def behind_s(self) -> float:
        """Seconds that the server is known to be ahead of what we have read; 0 if it is not known to be."""
        return 0.0 if self._marked_at is None else self._loop.time() - self._marked_at

    def measure(self, late_s: float) -> None:
        """Once in each heartbeat: find out how far we are behind, on a side that can be.

        A PING is answered in line with all else that the server sends, so while its answer is not here
        we are behind.

        Args:
            late_s: For so long the event loop was busy with something else, and nothing was read.
        """
        if self._dialogue.subject and self._marked_at is None:
            self._marked_at = self._loop.time() - late_s
            self._dialogue.ping(self._on_mark)
            self.kick()

    def kick(self) -> None:
        """The dialogue may have something to say: now, or with all else that this turn brings."""
        if self._is_gathering:
            return
        self._is_gathering = True
        self._flush()
        self._loop.call_soon(self._gathered)

    def ping(self) -> None:
        """It is quiet though we read: ask the server for a sign of life."""
        self.asked_at = self._loop.time()
        self._marked_at, self.lag_s = None, 0.0  # there is nothing that we have not read
        self._dialogue.ping()
        self.kick()

    def resume(self) -> None:
        """The consumer that stalled this session has room again."""
        self._loop.call_soon(self._go_on)

    def end(self, reason: str) -> None:
        """End it: close the connection and tell the dialogue. Does nothing the second time."""
        if self.ended.done():
            return
        self._wire.abort()
        self._backlog.clear()
        self.ended.set_result(reason)
        self._dialogue.end(reason)

    # -- the wire calls these ----------------------------------------------------------------------

    def on_part(self) -> None:
        self.heard_at = self._loop.time()
        self.asked_at = None

    def on_batch(self, batch: Iterable[Any]) -> bool:
        backlog = self._backlog
        before = len(backlog)
        try:
            backlog.extend(batch)
        except Exception as error:  # not RESP, or such as Python has no value for: a list as a key
            self.on_lost(f"the server sent what cannot be read: {error}")
            return True
        if len(backlog) == before:
            return False
        self.on_part()
        if self._is_gathering:
            # uvloop reads up to 32 times in one turn, faster than consumers can take: one is enough
            self._pause(True)
        if not self._has_more:
            self._work_off()
        return True

    def on_writable(self) -> None:
        self.kick()

    def on_lost(self, reason: str) -> None:
        # what was read before the end counts: it came before the gap
        while (self._backlog or self._has_more) and self._deal():
            pass
        has_moved = self._marked_at is not None and self.heard_at > self._marked_at
        if has_moved and self.behind_s >= _FAR_BEHIND_S:
            ahead = f"the server was {self.behind_s:.3g} s ahead of us"
            reason = f"{reason}; {ahead}, and hangs up at its {OUTPUT_LIMIT}"
        self.end(reason)

    # -- inside ------------------------------------------------------------------------------------

    def _on_mark(self) -> None:
        """What the server had sent before its answer is dealt with."""
        self.lag_s = self.behind_s
        self._marked_at = None

    def _work_off(self) -> None:
        """Deal with what was read; what takes too long goes on in the next turn."""
        if self.ended.done() or not self._deal():
            return
        is_stalled = self._dialogue.is_stalled
        if self._has_more or is_stalled:
            self._pause(True)
        if self._has_more and not is_stalled:
            self._loop.call_soon(self._work_off)
        self.kick()

    def _go_on(self) -> None:
        if self._has_more:
            self._work_off()
        else:
            self._pause(False)

    def _pause(self, wanted: bool) -> None:
        if wanted != self._is_paused and not self.ended.done():
            self._is_paused = wanted
            (self._wire.pause if wanted else self._wire.resume)()

    def _deal(self) -> bool:
        """Give the dialogue what was read, as much of it as it takes. False: it is over."""
        try:
            self._has_more = self._dialogue.receive(self._backlog)
        except OutOfStep as error:  # the server's fault; the link logs why it was lost
            self.end(f"the server is out of step: {error}")
            return False
        except Exception as error:  # whatever it is, the connection cannot be trusted any more
            logger.exception("what the server sent could not be dealt with")
            self.end(f"{type(error).__name__}: {error}")
            return False
        return True

    def _gathered(self) -> None:
        self._is_gathering = False
        self._flush()
        if not self._has_more and not self._dialogue.is_stalled:
            self._pause(False)

    def _flush(self) -> None:
        if self.ended.done():
            return  # the dialogue may be in the next session already
        while self._wire.is_writable and (commands := self._dialogue.commands()):
            self._wire.write(commands)
