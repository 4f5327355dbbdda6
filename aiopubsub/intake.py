"""How the tasks that iterate one subscriber wait at its mailbox, and take from it.

Wake, then take: a task that waits is woken by a future that carries nothing, and takes its item in the
same step in which its `await` returns it. So cancelling a task never loses an item.

Lives here: waiting, waking, fairness between tasks. Must not live here: what an item is, decoding,
bounds. A subscriber owns one.
"""

from __future__ import annotations

import asyncio
import time

from .mailbox import Item, Mailbox
from .message import Message

__all__ = ["Intake"]

_TURN_S = 0.005  # a task that finds one item after the other lets other tasks run after this
_HANDFUL = 256  # messages out of the mailbox at a time: all that one read brings, saves 0.25 µs for each


class Intake:
    """The taking side of a mailbox.

    Attributes:
        hand: Messages that were taken out of the mailbox and given to nobody yet, the next one last.
            They belong to all tasks. Pop from it at will, `next_item` fills it again.
    """

    __slots__ = ("_ended", "_handful", "_has_ended", "_mailbox", "_turn_began", "_waiters", "hand")

    def __init__(self, mailbox: Mailbox) -> None:
        self.hand: list[Message[object]] = []
        self._mailbox = mailbox
        self._handful = min(_HANDFUL, mailbox.buffer)
        self._waiters: list[asyncio.Future[None]] = []
        self._turn_began = 0.0
        self._has_ended = False  # a task has come for more and was told that there is none
        self._ended: asyncio.Event | None = None  # set then; made when asked for, it takes 900 bytes

    async def next_item(self) -> Item | None:
        """The next item, as soon as there is one; `None` when there will be none any more.

        Cancelling it loses nothing: the item is still there for the next call. It waits here and in no
        coroutine below: each would take 0.4 µs and an object for every wait of every consumer.
        """
        hand, mailbox = self.hand, self._mailbox
        if not hand and self._is_turn_over():
            await asyncio.sleep(0)
        while True:
            if not hand:
                hand += mailbox.take(self._handful)
            item = hand.pop() if hand else mailbox.pop()
            if item is not None:
                return item
            if mailbox.is_ended:
                self._has_ended = True
                if self._ended is not None:
                    self._ended.set()
                self.wake_all()
                return None
            waiter = self._stand_in_line()
            try:
                await waiter
            except BaseException:
                self._step_out(waiter)
                raise
            self._turn_began = time.monotonic()

    async def until_ended(self) -> None:
        """Wait until a task has come for more and was told that there is none."""
        if not self._has_ended:
            self._ended = self._ended or asyncio.Event()
            await self._ended.wait()

    def wake_all(self) -> None:
        """Let every task that waits look again."""
        self._wake(len(self._waiters))

    def _stand_in_line(self) -> asyncio.Future[None]:
        """Done when it is this one's turn."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._mailbox.wake = self._wake
        return waiter

    def _step_out(self, waiter: asyncio.Future[None]) -> None:
        """It waits no more: it was cancelled, or its coroutine thrown away."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if not self._waiters:
            self._mailbox.wake = None
        if waiter.done() and not waiter.cancelled():
            self._wake(1)  # it was this one's turn: let another have it

    def _wake(self, count: int) -> None:
        """As many of the tasks that wait as there is something for."""
        waiters = self._waiters
        while waiters and count > 0:
            waiter = waiters.pop(0)
            if not waiter.done():
                waiter.set_result(None)
                count -= 1
        if not waiters:
            self._mailbox.wake = None

    def _is_turn_over(self) -> bool:
        now = time.monotonic()
        if now - self._turn_began < _TURN_S:
            return False
        self._turn_began = now
        return True
