"""What roles need of whatever they are connected to, and the simplest of it: one server.

Lives here: which link does what. Must not live here: what is said over a link. A client makes one;
roles ask it for links and never ask what it is.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar, cast

from .errors import PubSubError
from .link import Backoff, Link
from .mailbox import Mailbox
from .outbox import Outbox
from .router import Router
from .routes import Ticket
from .topic import History, Subscribable
from .trail import Trail
from .wire import Push, WireOpener

__all__ = [
    "AnyLine",
    "AnyLink",
    "Commanding",
    "Deployment",
    "Lines",
    "Listening",
    "Registry",
    "SingleServer",
    "Standing",
]

D = TypeVar("D", Outbox, Router)

AnyLink = Link[Outbox] | Link[Router]


class AnyLine(Protocol):
    """Where a publisher puts its requests. A `Line` is one."""

    @property
    def waiting(self) -> Any:
        """Whether requests wait to be sent."""
        ...

    @property
    def in_flight(self) -> int:
        """Commands that were sent and have no answer yet."""
        ...

    def add(self, request: Any) -> bool:
        """Put a request at the end; whether the link must be told."""
        ...

    def is_waiting(self, key: bytes) -> bool:
        """Whether what is added now, about this key, has to wait."""
        ...


class Lines(Protocol):
    """What publishers say over what commands. An `Outbox` is one.

    Attributes:
        histories: Of topics that publishers have given.
        in_cluster: Whether sharded topics are published within their shard.
    """

    histories: dict[str, History]
    in_cluster: bool

    @property
    def in_flight(self) -> int:
        """Commands that were sent and have no answer yet."""
        ...

    @property
    def waiting(self) -> int:
        """Commands that were not sent yet."""
        ...

    def open_line(self, max_in_flight: int) -> Any:
        """A line of its own for a publisher, until `close_line`."""
        ...

    def close_line(self, line: Any, error: PubSubError) -> None:
        """Tell what still waits in a line, and let go of it."""
        ...


class Registry(Protocol):
    """What subscribers say over what listens. A `Router` is one."""

    def add(
        self,
        mailbox: Mailbox,
        topics: Iterable[Subscribable[object]],
        ticket: Ticket,
        trails: Mapping[Subscribable[object], Trail] = ...,
    ) -> None:
        """Let a mailbox have these topics; the ticket is done when each is confirmed or refused."""
        ...

    def remove(self, mailbox: Mailbox, topics: Iterable[Subscribable[object]], ticket: Ticket) -> None:
        """Let a mailbox have these topics no more; the ticket is done when the server knows."""
        ...

    def wants(self, mailbox: Mailbox, topic: Subscribable[object]) -> bool:
        """Whether a mailbox is to have this topic."""
        ...

    def fence(self, ticket: Ticket, topics: Iterable[Subscribable[object]] | None = None) -> None:
        """Let a ticket be done when all that was sent to us until now is here: of these topics at least."""
        ...

    def catch_up(self, mailbox: Mailbox, ticket: Ticket) -> None:
        """Let a ticket be done when all that its histories hold is in a mailbox."""
        ...

    def make_use_of_room(self, mailbox: Mailbox) -> None:
        """A mailbox has room again: read on for it."""
        ...

    def forget(self, mailbox: Mailbox) -> None:
        """Let go of a mailbox whose topics were all removed."""
        ...


class Standing(Protocol):
    """What connects, and stays connected. A `Link` is one."""

    @property
    def error(self) -> PubSubError | None:
        """Why there is no connection."""
        ...

    async def ready(self, timeout: float | None) -> None:
        """Connect, and wait until that is done; raises `ConnectFailed` after the timeout, in seconds."""
        ...

    def kick(self, deadline: float = math.inf) -> None:
        """There may be something to say, which is overdue after the deadline."""
        ...


class Commanding(Standing, Protocol):
    """What publishes. A `Link[Outbox]` is one."""

    @property
    def dialogue(self) -> Lines:
        """What is said over it."""
        ...

    def open(self) -> None:
        """Begin to connect, if it has not begun yet."""
        ...

    def is_live(self, key: bytes) -> bool:
        """Whether what is said about this key would leave at once."""
        ...


class Listening(Standing, Protocol):
    """What listens. A `Link[Router]` is one."""

    @property
    def dialogue(self) -> Registry:
        """What is said over it."""
        ...

    @property
    def reconnects(self) -> int:
        """Sessions after the first."""
        ...

    @property
    def heard_s_ago(self) -> float | None:
        """Seconds since the server was last heard; `None` before the first time."""
        ...

    def resume(self) -> None:
        """The consumer that stalled it has room again."""
        ...


class Deployment(Protocol):
    """One Redis deployment, through standing connections that are opened when first needed."""

    def commanding(self) -> Commanding:
        """What publishes."""
        ...

    def listening(self, *, is_shared: bool) -> Listening:
        """What all subscribers share, or a new one for a single subscriber."""
        ...

    async def release(self, link: Listening) -> None:
        """A subscriber is done: what it had of its own is closed."""
        ...

    def links(self) -> dict[str, AnyLink]:
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

    async def release(self, link: Listening) -> None:
        own = cast("Link[Router]", link)
        if own in self._own:
            self._own.remove(own)
            await own.aclose()

    def links(self) -> dict[str, AnyLink]:
        own = {f"listens alone {n}": link for n, link in enumerate(self._own, 1)}
        return {"commands": self._commanding, "listens": self._listening, **own}

    async def aclose(self) -> None:
        links: list[AnyLink] = [self._commanding, self._listening, *self._own]
        self._own.clear()
        for link in links:  # before the first await, where this can be cancelled
            link.close()
        await asyncio.gather(*(link.aclose() for link in links))

    def _link(self, dialogue: D, role: str) -> Link[D]:
        return Link(self._opener, dialogue, role=role, heartbeat=self._heartbeat, backoff=self._backoff)
