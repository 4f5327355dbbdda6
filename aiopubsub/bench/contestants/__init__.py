"""Who takes part: each library in a file of its own, used in its best documented way.

All have one little interface, `Contestant`; none has more than it needs of it. Settings are the
libraries' own defaults. A file is loaded in the process of its contestant only.

Lives here: the interface. Must not live here: measuring. `worker` makes one, `measures` call it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

__all__ = ["Contestant", "Publish", "PublishMany", "Take"]

Take: TypeAlias = Callable[[int], Awaitable[bytes]]
"""Takes so many messages as its library hands them over; returns the last one's payload."""

Publish: TypeAlias = Callable[[str, bytes], Awaitable[object]]
"""Publishes a payload to a channel, and waits for the server's answer."""

PublishMany: TypeAlias = Callable[[str, Sequence[bytes]], Awaitable[object]]
"""Publishes payloads in one go, and waits for all answers."""


class Contestant(Protocol):
    """One library."""

    module: str
    """What its users import."""

    is_blocking: bool
    """Whether it has no event loop: what others do at a time, it does in one go."""

    async def open(self) -> None:
        """Make the client, if all that follows shares one."""
        ...

    async def subscribe(self, channels: Sequence[str], *, is_pattern: bool) -> Take:
        """Open a subscriber; what is published from the return on arrives."""
        ...

    async def resubscribed(self, channels: int) -> None:
        """Its connection was lost: return when all channels are confirmed again."""
        ...

    async def publisher(self) -> Publish:
        """Open a publisher."""
        ...

    async def publisher_of_many(self) -> PublishMany:
        """Open a publisher of many messages at a time."""
        ...

    async def catch_up(self, channel: str, count: int) -> bytes:
        """Read so many messages from the beginning of a history; the last one's payload."""
        ...

    def check(self) -> None:
        """Whether the library itself knows that something went wrong.

        Raises:
            RuntimeError: It does.
        """
        ...
