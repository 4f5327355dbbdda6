"""What clients and subscribers tell about themselves, for readiness probes and metrics.

Lives here: the shape of it. Must not live here: counting. Anybody may import this file.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ClientStats", "LinkStats", "SubscriberStats"]


@dataclass(frozen=True, slots=True)
class LinkStats:
    """One connection of a client.

    Attributes:
        state: `"idle"` (not needed yet), `"connecting"`, `"live"`, `"waiting"` (to try again) or
            `"closed"`.
        reconnects: How often it was opened again after it had been lost.
        heard_s_ago: Seconds since the server last said anything; `None` before the first time.
        error: Why the last connection was lost or could not be opened; `None` while all is well.
    """

    state: str
    reconnects: int
    heard_s_ago: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class ClientStats:
    """A look at a client, for readiness probes and metrics.

    Attributes:
        links: Its connections by role: `"commands"`, `"listens"`, and one for each subscriber
            with `overflow="block"`.
        in_flight: Publishes that were sent and not answered yet.
        waiting: Publishes that were not sent yet.
    """

    links: dict[str, LinkStats]
    in_flight: int
    waiting: int


@dataclass(frozen=True, slots=True)
class SubscriberStats:
    """A look at a subscriber, for readiness probes and metrics. All counts since it was made.

    Always: `received == delivered + dropped + buffered`.

    Attributes:
        received: Messages that came for it.
        delivered: Messages that a consumer took, undecodable ones included.
        dropped: Messages that did not fit, each reported in a `Gap(OVERFLOW)`.
        undecodable: Messages whose `decode` raised.
        malformed: Messages that looked like a frame and were none; they were delivered as they came.
        gaps: Gaps that a consumer took.
        buffered: Messages that wait for a consumer.
        buffered_bytes: Bytes that they take, overhead included.
        reconnects: How often its connection was opened again.
        heard_s_ago: Seconds since the server last said anything on its connection, answers to our own
            questions included; `None` before the first time.
    """

    received: int
    delivered: int
    dropped: int
    undecodable: int
    malformed: int
    gaps: int
    buffered: int
    buffered_bytes: int
    reconnects: int
    heard_s_ago: float | None
