"""What roles need of whatever they are connected to, and the simplest of it: one server.

Lives here: which link does what. Must not live here: what is said over a link. A client makes one;
roles ask it for links and never ask what it is.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, TypeVar

from .link import Backoff, Link
from .outbox import Outbox
from .router import Router
from .wire import Push, WireOpener

__all__ = ["Deployment", "SingleServer"]

D = TypeVar("D", Outbox, Router)


class Deployment(Protocol):
    """One Redis deployment, through standing connections that are opened when first needed."""

    def commanding(self) -> Link[Outbox]:
        """The link that publishes."""
        ...

    def listening(self, *, is_shared: bool) -> Link[Router]:
        """The link that all subscribers share, or a new one for a single subscriber."""
        ...

    async def release(self, link: Link[Router]) -> None:
        """A subscriber is done with a link: one of its own is closed."""
        ...

    def links(self) -> dict[str, Link[Outbox] | Link[Router]]:
        """Every link there is, by role."""
        ...

    async def aclose(self) -> None:
        """Close all links."""
        ...


class SingleServer:
    """One server: a link that commands, a link that listens, and one for each blocking subscriber."""

    def __init__(self, opener: WireOpener, *, heartbeat: float, backoff: Backoff) -> None:
        self._opener = opener
        self._heartbeat = heartbeat
        self._backoff = backoff
        self._commanding = self._link(Outbox(Push), "commands")
        self._listening = self._link(Router(Push), "listens")
        self._own: list[Link[Router]] = []

    def commanding(self) -> Link[Outbox]:
        return self._commanding

    def listening(self, *, is_shared: bool) -> Link[Router]:
        if is_shared:
            return self._listening
        link = self._link(Router(Push), "listens alone")
        self._own.append(link)
        return link

    async def release(self, link: Link[Router]) -> None:
        if link in self._own:
            self._own.remove(link)
            await link.aclose()

    def links(self) -> dict[str, Link[Outbox] | Link[Router]]:
        own = {f"listens alone {n}": link for n, link in enumerate(self._own, 1)}
        return {"commands": self._commanding, "listens": self._listening, **own}

    async def aclose(self) -> None:
        links: list[Link[Outbox] | Link[Router]] = [self._commanding, self._listening, *self._own]
        self._own.clear()
        for link in links:  # before the first await, where this can be cancelled
            link.close()
        await asyncio.gather(*(link.aclose() for link in links))

    def _link(self, dialogue: D, role: str) -> Link[D]:
        return Link(self._opener, dialogue, role=role, heartbeat=self._heartbeat, backoff=self._backoff)
