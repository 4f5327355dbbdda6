"""Durable cursors: what is saved when, and again when a connection took the answer with it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

from aiopubsub.cursor import Cursor
from aiopubsub.dialogue import Command
from aiopubsub.message import KeptMessage, Origin
from aiopubsub.outbox import Outbox
from aiopubsub.topic import History, Topic

ORIGIN = Origin("c", Topic("c", history=History()))


class Push(list[Any]):
    """A push of the server."""


class Link:
    """What a cursor needs of one, without a connection."""

    def __init__(self) -> None:
        self.dialogue = Outbox(Push)
        self.sent: list[Command] = []
        self.dialogue.begin()

    def is_live(self, key: bytes) -> bool:
        return True

    def kick(self, deadline: float = 0) -> None:
        self.sent += self.dialogue.commands()


async def at_work(cursor: Cursor, number: int, may_end: asyncio.Event) -> None:
    """A task that is handed a message, works on it, and asks for the next one."""
    cursor.hand_over(KeptMessage(b"", b"", ORIGIN, {}, b"\xff\xaeps1 7-%d u%d u" % (number, number)))
    await may_end.wait()
    await cursor.finish()


def saved(link: Link) -> list[bytes]:
    """The offsets of the positions that were sent since the last look."""
    link.kick()
    sent, link.sent = link.sent, []
    return [command[2].split(b"-")[1] for command in sent]


def test_a_lost_save_never_comes_after_a_newer_one() -> None:
    """When the connection takes several answers with it, the last position alone is sent again."""

    async def main() -> None:
        link = Link()
        cursor = Cursor("name", link, lambda _: None)  # type: ignore[arg-type]
        ends = [asyncio.Event() for _ in range(3)]
        works: list[Coroutine[Any, Any, None]] = [at_work(cursor, n, end) for n, end in enumerate(ends, 1)]
        tasks = [asyncio.create_task(work) for work in works]
        for end in ends:
            await asyncio.sleep(0)  # its turn
            end.set()
        for _ in range(3):
            await asyncio.sleep(0)
        assert saved(link) == [b"1", b"2", b"3"]
        link.dialogue.end()
        link.dialogue.begin()
        await asyncio.gather(*tasks)
        assert saved(link) == [b"3"]
        link.dialogue.receive(deque([b"OK"]))
        assert saved(link) == []

    asyncio.run(main())
