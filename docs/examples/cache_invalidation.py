"""A local cache in each process, told by messages what has changed.

    async with LocalCache(client, load) as cache:   # in every process
        user = await cache.get("user:7")            # from memory, after the first time

    await save(user)                                # in whichever process changes it: first the database,
    await changed(publisher, "user:7")              # then the message

Entries are dropped when a message names them. What was missed while the connection was lost is read from
the topic's history, so a reconnect costs only the entries that did change; when it cannot be known what
has changed, a `Gap`, all of them are dropped.

How old may an entry be? As old as a message is late: a millisecond or so; while the connection is lost,
until that is noticed and mended (two heartbeats, 10 s by default, and the server's absence). If that is too
long for something, don't cache it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

import aiopubsub as ps

logger = logging.getLogger("cache")

V = TypeVar("V")

CHANGED = ps.Topic.text("cache.changed", history=ps.History(size=10_000, ttl=3600))


async def changed(publisher: ps.Publisher, *keys: str) -> None:
    """Tell every process that these are no longer what they were. Call it after the change was saved."""
    await publisher.publish_many(CHANGED, keys)


class LocalCache(Generic[V]):
    """Remembers what `load` has returned, until it is told that it has changed. A context manager."""

    def __init__(self, client: ps.Client, load: Callable[[str], Awaitable[V]]) -> None:
        self._load = load
        self._entries: dict[str, asyncio.Future[V]] = {}
        self._changes = ps.Subscriber(client, CHANGED)
        self._following: asyncio.Task[None] | None = None

    async def get(self, key: str) -> V:
        """The value, from memory or from `load`, which is called once for all that ask at a time."""
        if self._following is None or self._following.done():
            return await self._load(key)  # nobody would drop it
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = asyncio.ensure_future(self._load(key))
        try:
            return await asyncio.shield(entry)
        except BaseException:
            if entry.done() and self._entries.get(key) is entry:
                del self._entries[key]  # a failure is not remembered
            raise

    async def _follow(self) -> None:
        """Drop what has changed; a load that is under way too, which may have read the old value."""
        try:
            async for event in self._changes.events():
                match event:
                    case ps.Message(data=key):
                        self._entries.pop(key, None)
                    case _:  # a gap, or a message that cannot be read: anything may have changed
                        self._entries.clear()
        except ps.PubSubError:
            logger.exception("nothing is remembered any more")

    async def __aenter__(self) -> Self:
        """Returns when changes are heard, so nothing is remembered that nobody would drop."""
        await self._changes.__aenter__()
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._changes.aclose()  # ends the task
        if self._following is not None:
            await self._following
