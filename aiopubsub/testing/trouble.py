"""Trouble without a server: what can go wrong with `memory://`, and gaps of any kind.

Lives here: what a test says is to go wrong. Must not live here: real connections (`proxy`), what a
server does (`aiopubsub.memory`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from aiopubsub.client import Client
from aiopubsub.errors import Closed
from aiopubsub.memory import MemoryOpener
from aiopubsub.message import Gap, GapReason
from aiopubsub.subscriber import Subscriber

__all__ = ["Trouble", "inject_gap"]


class Trouble:
    """What goes wrong with a `memory://` server, when a test says so.

    Made in the event loop of the test. While it is there, so is the server, with its histories. Each
    kind of trouble may begin and end at any time; the words are those of `Proxy`, which does the same to
    real connections.

    Args:
        source: A `Client` of `memory://`, open or not, or its URL.

    Raises:
        TypeError: That is something else.
        ValueError: The URL is another one.
    """

    def __init__(self, source: Client | str) -> None:
        client = Client(source) if isinstance(source, str) else source
        if not isinstance(client, Client):
            raise TypeError(f"`source` must be a Client or a URL, not {type(source).__name__}")
        opener = client._opener
        if not isinstance(opener, MemoryOpener):
            raise ValueError(  # noqa: TRY004  # its value, not its type
                "`source` must be of memory://; `Proxy` makes trouble for real servers"
            )
        self._server = opener.server()

    @property
    def delay_s(self) -> float:
        """Seconds that pass before what the server says is read; 0 at first. May be changed at any time."""
        return self._server.delay_s

    @delay_s.setter
    def delay_s(self, seconds: float) -> None:
        if not seconds >= 0:
            raise ValueError(f"`delay_s` must be 0 seconds or more, not {seconds}")
        self._server.delay_s = float(seconds)

    def cut(self) -> None:
        """Close every connection, with what was not read yet; new ones are served.

        Publishes without an answer are `Unconfirmed`, subscribers get a `Gap(RECONNECTED)` on topics
        without history.
        """
        self._server.cut()

    def refuse(self) -> None:
        """Refuse new connections, until `accept`. With `cut` the server is gone."""
        self._server.refuses = True

    def accept(self) -> None:
        """Accept connections again."""
        self._server.refuses = False

    def forbid(self, *names: str) -> None:
        """Take the permission for some channels and patterns from everybody, until `allow`.

        `PublishRefused` and `SubscribeRefused` are what follows. As a real server does, it closes the
        connections that are subscribed to one of them.
        """
        keys = {name.encode() for name in names}
        self._server.forbidden |= keys
        self._server.cut(keys)

    def allow(self, *names: str) -> None:
        """Give the permission back."""
        self._server.forbidden -= {name.encode() for name in names}


def inject_gap(
    subscriber: Subscriber[Any],
    reason: GapReason,
    *,
    missed: int | None = None,
    withdrawn: int | None = 0,
    cause: str = "",
) -> None:
    """Put a gap among the messages that wait for a subscriber's consumer, after those that came.

    To test what a service does about one without making it happen. Works on any server.

    Args:
        subscriber: An open one.
        reason: As the gap's fields; so the others.
        missed: How many messages; `None` is unknown.
        withdrawn: How many of those handed over earlier the server has forgotten.
        cause: How the connection was lost.

    Raises:
        Closed: The subscriber is not open.
    """
    if subscriber._link is None or subscriber._is_closed:
        raise Closed("Subscriber", opened=subscriber._is_closed)
    now = datetime.now(UTC)
    channels = tuple(topic.name for topic in subscriber.topics)
    subscriber._mailbox.put(Gap(reason, channels, missed, now, now, withdrawn, cause=cause))
