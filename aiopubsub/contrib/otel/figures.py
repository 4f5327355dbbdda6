"""What `stats` say, as instruments: one table.

Lives here: names, units and where each value comes from. Must not live here: when it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiopubsub.client import Client
from aiopubsub.stats import LinkStats, SubscriberStats
from aiopubsub.subscriber import Subscriber

__all__ = ["COUNTERS", "GAUGES", "Figure", "Values", "Watched"]

Watched = Client | Subscriber[Any]
"""What has `stats`."""

Values = Mapping[str, float]
"""A value for each link, by its role; `""` for what has no links."""

_TRIES = 10


@dataclass(frozen=True, slots=True)
class Figure:
    """One instrument.

    Attributes:
        name: Of the instrument.
        unit: As UCUM has it.
        text: What it tells.
        owner: What has it: `client` or `subscriber`, the attribute that its name goes to.
        read: Its values.
    """

    name: str
    unit: str
    text: str
    owner: str
    read: Callable[[Any], Values]

    def of(self, watched: Watched) -> Values:
        """The values, from whichever thread: a look that falls into a change is taken again."""
        if (self.owner == "client") is not isinstance(watched, Client):
            return {}
        for _ in range(_TRIES):
            try:
                return self.read(watched)
            except RuntimeError:  # "changed size during iteration"
                continue
        return {}


def _of_subscriber(
    field: str, unit: str, text: str, read: Callable[[SubscriberStats], float | None]
) -> Figure:
    def values(subscriber: Subscriber[Any]) -> Values:
        value = read(subscriber.stats)
        return {} if value is None else {"": value}

    return Figure(f"aiopubsub.subscriber.{field}", unit, text, "subscriber", values)


def _of_client(field: str, unit: str, text: str, read: Callable[[Client], Values]) -> Figure:
    return Figure(f"aiopubsub.client.{field}", unit, text, "client", read)


def _by_link(read: Callable[[LinkStats], float | None]) -> Callable[[Client], Values]:
    def values(client: Client) -> Values:
        found = {role: read(link) for role, link in client.stats.links.items() if link.state != "idle"}
        return {role: value for role, value in found.items() if value is not None}

    return values


COUNTERS = (
    _of_subscriber("received", "{message}", "Messages that came.", lambda stats: stats.received),
    _of_subscriber(
        "delivered", "{message}", "Messages that consumers took.", lambda stats: stats.delivered
    ),
    _of_subscriber("dropped", "{message}", "Messages that did not fit.", lambda stats: stats.dropped),
    _of_subscriber(
        "undecodable", "{message}", "Messages that `decode` did not take.", lambda stats: stats.undecodable
    ),
    _of_subscriber("gaps", "{gap}", "Gaps that a consumer was told of.", lambda stats: stats.gaps),
    _of_client(
        "reconnects",
        "{connection}",
        "Connections that were opened again.",
        _by_link(lambda link: link.reconnects),
    ),
)

GAUGES = (
    _of_subscriber(
        "buffered", "{message}", "Messages that wait for a consumer.", lambda stats: stats.buffered
    ),
    _of_subscriber("buffered.size", "By", "Bytes that they take.", lambda stats: stats.buffered_bytes),
    _of_client(
        "in_flight",
        "{message}",
        "Publishes that were sent and have no answer yet.",
        lambda client: {"": client.stats.in_flight},
    ),
    _of_client(
        "waiting",
        "{message}",
        "Publishes that were not sent.",
        lambda client: {"": client.stats.waiting},
    ),
    _of_client(
        "live", "{connection}", "Connections that are live.", _by_link(lambda link: link.state == "live")
    ),
    _of_client(
        "down",
        "{connection}",
        "Connections that are wanted, and are not live.",
        _by_link(lambda link: link.state != "live"),
    ),
)
