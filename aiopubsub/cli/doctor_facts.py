"""What the servers of a deployment say of themselves.

Lives here: asking each of them, and reading the answers. Must not live here: what is good or bad about
it (`doctor_findings`). `doctor` calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from aiopubsub.errors import ConnectFailed, ErrorReply
from aiopubsub.slots import SLOTS, Address
from aiopubsub.wire import ClusterOpener, WireOpener

from .doctor_line import Line
from .runner import Failed

__all__ = ["Deployment", "Facts", "Place", "survey", "survey_cluster"]

_SETTINGS = (
    *("client-output-buffer-limit", "maxmemory", "maxmemory-policy", "maxclients"),
    *("appendonly", "appendfsync", "save", "min-replicas-to-write"),
)
_OF_CLUSTERS = (
    "cluster-node-timeout",
    "cluster-require-full-coverage",
    "cluster-allow-pubsubshard-when-down",
)
_NODE_TIMEOUT_S = 3.0  # to reach a node: one that cannot be reached is not waited for long
_NAMES = {"redis": "Redis", "valkey": "Valkey"}


@dataclass(frozen=True)
class Facts:
    """What one server says.

    Attributes:
        name: Where it is: host and port, or a socket's path.
        product: `Redis` or `Valkey`.
        version: As it says, for example `7.0.15`.
        is_replica: Whether it copies another one.
        user: As whom we are logged in; `None` where that may not be asked.
        settings: By name; without those that it does not know or that may not be asked.
        info: What `INFO` says, by name; empty where that may not be asked.
        pings_ms: Round trips in ascending order.
    """

    name: str
    product: str
    version: str
    is_replica: bool
    user: str | None
    settings: Mapping[str, str]
    info: Mapping[str, str]
    pings_ms: list[float]

    @property
    def server(self) -> str:
        """For people: `Redis 7.0.15`."""
        return f"{self.product} {self.version}"

    @property
    def p50_ms(self) -> float:
        """The median of the round trips."""
        return self.pings_ms[len(self.pings_ms) // 2]

    @property
    def p99_ms(self) -> float:
        """The round trip that one in a hundred is longer than."""
        return self.pings_ms[len(self.pings_ms) * 99 // 100]


@dataclass
class Place:
    """A node, as a cluster announces it.

    Attributes:
        announced: Its address.
        address: Where we look for it: the same, unless a client maps addresses.
        primary: The address of whom it copies; `None` for a primary.
        slots: Those that it serves.
        facts: What it says; `None` if it could not be reached.
        error: Why it could not.
    """

    announced: Address
    address: Address
    primary: Address | None = None
    slots: set[int] = field(default_factory=set[int])
    facts: Facts | None = None
    error: str = ""


@dataclass
class Deployment:
    """What was found.

    Attributes:
        kind: For people: `a single server`, `a cluster`.
        servers: Those that answered.
        places: Of a cluster: its nodes, primaries first.
        asked: Of a cluster: where the topology was asked for.
        state: What `CLUSTER INFO` says, by name.
        uncovered: Slots that nobody serves.
        refusal: Why the topology may not be asked for; empty if it may.
    """

    kind: str
    servers: list[Facts]
    places: list[Place] = field(default_factory=list[Place])
    asked: Address | None = None
    state: Mapping[str, str] = field(default_factory=dict[str, str])
    uncovered: list[int] = field(default_factory=list[int])
    refusal: str = ""

    @property
    def is_cluster(self) -> bool:
        """Whether topics are sharded."""
        return self.asked is not None


async def survey(opener: WireOpener, kind: str, timeout: float) -> Deployment:
    """A deployment with one server to talk to.

    Raises:
        ConnectFailed: It cannot be reached within so many seconds, or refuses us.
        Failed: It does not answer.
    """
    async with await Line.open(opener, timeout) as line:
        return Deployment(kind, [await _ask(line, opener.target, is_in_cluster=False)])


async def survey_cluster(opener: ClusterOpener, timeout: float) -> Deployment:
    """A cluster.

    Raises:
        ConnectFailed: No node that we know can be reached within so many seconds, or one refuses us.
        Failed: A node does not answer.
    """
    asked, line = await _open_any(opener, timeout)
    async with line:
        slots, info = await line.ask((b"CLUSTER", b"SLOTS"), (b"CLUSTER", b"INFO"))
        refusal = next((answer for answer in (slots, info) if isinstance(answer, ErrorReply)), None)
        if refusal is not None:
            facts = await _ask(line, str(asked), is_in_cluster=True)
            return Deployment("a cluster", [facts], asked=asked, refusal=str(refusal))
    places, uncovered = _places(slots, asked, opener)
    timeout = min(timeout, _NODE_TIMEOUT_S)
    await asyncio.gather(*(_visit(opener, place, timeout) for place in places))
    servers = [place.facts for place in places if place.facts is not None]
    return Deployment("a cluster", servers, places, asked, _fields(info), uncovered)


async def _open_any(opener: ClusterOpener, timeout: float) -> tuple[Address, Line]:
    error = ConnectFailed(opener.target, "no node answers")
    for address in opener.startup:
        try:
            return address, await Line.open(opener.at(address), timeout)
        except ConnectFailed as failed:
            if failed.permanent:
                raise
            error = failed
    raise error


async def _visit(opener: ClusterOpener, place: Place, timeout: float) -> None:
    try:
        async with await Line.open(opener.at(place.address), timeout) as line:
            place.facts = await _ask(line, str(place.address), is_in_cluster=True)
    except ConnectFailed as error:
        place.error = error.reason
    except Failed as error:
        place.error = str(error)


async def _ask(line: Line, name: str, *, is_in_cluster: bool) -> Facts:
    names = _SETTINGS + (_OF_CLUSTERS if is_in_cluster else ())
    hello, user, info, *settings = await line.ask(
        (b"HELLO", b"3"),
        (b"ACL", b"WHOAMI"),
        (b"INFO",),
        *((b"CONFIG", b"GET", setting.encode()) for setting in names),
    )
    told = cast("Mapping[bytes, Any]", hello)
    known: dict[str, str] = {}
    for setting, answer in zip(names, settings, strict=True):
        if isinstance(answer, dict) and setting.encode() in answer:
            known[setting] = cast("dict[bytes, bytes]", answer)[setting.encode()].decode()
    product = str(told[b"server"].decode())
    return Facts(
        name=name,
        product=_NAMES.get(product, product),
        version=told[b"version"].decode(),
        is_replica=told[b"role"] != b"master",
        user=user.decode() if isinstance(user, bytes) else None,
        settings=known,
        info={} if isinstance(info, ErrorReply) else _fields(info),
        pings_ms=await line.ping(),
    )


def _places(slots: Any, asked: Address, opener: ClusterOpener) -> tuple[list[Place], list[int]]:
    """The nodes that `CLUSTER SLOTS` names, primaries first, and the slots that it does not."""
    places: dict[Address, Place] = {}
    uncovered = set(range(SLOTS))

    def place_of(told: list[Any]) -> Place:
        # no host: the node that was asked does not know its own
        announced = Address(told[0].decode() if told[0] else asked.host, told[1])
        return places.setdefault(announced, Place(announced, opener.reach(announced)))

    for first, last, primary, *replicas in slots:
        owner = place_of(primary)
        owner.slots.update(range(first, last + 1))
        uncovered.difference_update(range(first, last + 1))
        for replica in replicas:
            place_of(replica).primary = owner.announced
    return sorted(places.values(), key=lambda place: place.primary is not None), sorted(uncovered)


def _fields(text: Any) -> dict[str, str]:
    """Lines of `name:value`; INFO of RESP3 is text as well."""
    lines = cast("bytes", text).decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
