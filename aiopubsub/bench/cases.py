"""What is measured: the cases, the figures, and who takes part in what.

Lives here: the tables, and choosing from them by name. Must not live here: measuring, words beyond a
title. `run` and the command line call.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

__all__ = [
    "CASES",
    "FIGURES",
    "NOT_IN_QUICK",
    "OURS",
    "PEERS",
    "UVLOOP",
    "Case",
    "Figure",
    "check_payload",
    "choose_cases",
    "choose_contestants",
]

OURS = "ours"
UVLOOP = "ours-uvloop"
PEERS = ("redis-py", "coredis", "glide", "floor", "floor-asyncio")

_OPTIONAL = {UVLOOP: "uvloop", "coredis": "coredis", "glide": "glide"}
"""What they need that need not be installed."""

_ALL = (OURS, UVLOOP, *PEERS)
_SUBSCRIBE = (OURS, "redis-py", "floor", "floor-asyncio")
_ASYNC = (OURS, UVLOOP, "redis-py", "coredis", "glide")
_LIBRARIES = (OURS, "redis-py", "coredis", "glide")

_LARGEST_PAYLOAD = 1024 * 1024  # 8 of them are on their way, see `source`


@dataclass(frozen=True)
class Figure:
    """How a figure is shown, and which way is better.

    Attributes:
        heading: Of its column, with its unit.
        per_unit: What a value is divided by for showing.
        is_more_better: Whether a larger one is better.
    """

    heading: str
    per_unit: float = 1.0
    is_more_better: bool = False

    def cost(self, value: float) -> float:
        """The value, or its inverse: less is better."""
        return 1 / value if self.is_more_better else value


FIGURES = {
    "messages_per_s": Figure("messages/s", is_more_better=True),
    "cpu_us_per_message": Figure("CPU µs/message"),
    "cpu_us_per_delivery": Figure("CPU µs/delivery"),
    "longest_turn_ms": Figure("longest turn ms"),
    "full_collection_ms": Figure("full GC ms"),
    "p50_us": Figure("p50 µs"),
    "p99_us": Figure("p99 µs"),
    "resubscribed_s": Figure("resubscribed s"),
    "bytes_per_subscriber": Figure("bytes each"),
    "bytes_per_waiting_subscriber": Figure("bytes each, waiting"),
    "import_ms": Figure("import ms"),
    "import_cpu_ms": Figure("import CPU ms"),
    "peak_bytes": Figure("peak MiB", 1024 * 1024),
}
"""What is shown, in this order; others are in the JSON only."""


@dataclass(frozen=True)
class Case:
    """One thing that is measured.

    Attributes:
        family: Cases that differ in `size` alone.
        name: The family's, and the size where there are several.
        title: For people.
        contestants: For whom it makes sense.
        headline: The figure by which contestants are compared.
        job: What it sets of a `Job`.
        size: What grows within the family.
        least_payload: Bytes that the case needs for itself.
    """

    family: str
    name: str
    title: str
    contestants: tuple[str, ...]
    headline: str
    job: dict[str, Any] = field(default_factory=dict[str, Any])
    size: int = 0
    least_payload: int = 0


def _cases() -> Iterable[Case]:
    cpu, rate = "cpu_us_per_message", "messages_per_s"
    number = 8  # bytes: the number of a message, see `source`
    for size, text in ((16, "16 B"), (128, "128 B"), (1024, "1 KiB"), (65_536, "64 KiB")):
        job = {"measure": "receive", "payload_bytes": size}
        yield Case("receive", f"receive-{size}", f"receive, {text}", _ALL, cpu, job, size, number)
    yield Case(
        *("receive", "receive-history", "receive, 128 B, on a topic with history", (OURS, UVLOOP), cpu),
        {"measure": "receive", "payload_bytes": 128, "has_history": True},
        least_payload=number,
    )
    yield Case(
        *("pattern", "pattern", "receive by pattern", _ALL, cpu),
        {"measure": "receive", "is_pattern": True},
        least_payload=number,
    )
    for size in (1, 10, 100, 1000, 10_000):
        job = {"measure": "receive", "subscribers": size}
        title = f"fan-out to {size} subscribers of one client"
        yield Case("fan-out", f"fan-out-{size}", title, (OURS, UVLOOP), cpu, job, size, number)
    for size in (1, 100, 10_000, 100_000):
        job = {"measure": "receive", "channels": size}
        title = f"receive from {size} channels"
        yield Case("channels", f"channels-{size}", title, _SUBSCRIBE, cpu, job, size, number)
    for size in (1, 10, 100, 1000, 10_000):
        job = {"measure": "publish", "in_flight": size}
        title = f"awaited publishes, {size} in flight"
        yield Case("publish", f"publish-{size}", title, _ALL, "p50_us" if size == 1 else rate, job, size)
    yield Case(
        *("many", "many", "publish_many or a pipeline, 1000 at a time", _ALL, rate),
        {"measure": "publish", "batch": 1000},
    )
    for size in (100, 1000):
        job = {"measure": "publish", "in_flight": size, "has_history": True}
        title = f"awaited publishes to a history, {size} in flight"
        yield Case("history", f"history-{size}", title, (OURS, UVLOOP, "floor"), rate, job, size)
    for size in (100_000, 1_000_000):
        job = {"measure": "catch_up", "messages": size}
        title = f"read {size} stored messages"
        who = (OURS, UVLOOP, "redis-py", "floor")
        yield Case("catch-up", f"catch-up-{size}", title, who, rate, job, size, number)
    yield Case(
        *("latency", "latency", "from publish to receipt at 1000 messages/s", _ASYNC, "p50_us"),
        {"measure": "latency"},
        least_payload=8,
    )
    yield Case(
        *("reconnect", "reconnect", "reconnect with 100000 channels"),
        (OURS, "redis-py", "coredis", "floor"),
        "resubscribed_s",
        {"measure": "reconnect", "channels": 100_000},
    )
    yield Case(
        *("memory", "memory", "10000 idle subscribers of one client", (OURS,), "bytes_per_subscriber"),
        {"measure": "memory", "subscribers": 10_000},
    )
    yield Case(
        *("import", "import", "import, in a fresh interpreter", _LIBRARIES, "import_cpu_ms"),
        {"measure": "imports"},
    )


CASES = tuple(_cases())


NOT_IN_QUICK = frozenset(
    ("receive-16", "receive-1024", "channels-100", "channels-10000", "publish-10", "catch-up-1000000")
)
"""Sizes between others, which no promise is about: without them a quick run takes a minute and a half."""


def choose_cases(names: Iterable[str] | None, *, is_quick: bool = False) -> list[Case]:
    """The cases of these names or families, in their own order; for `None` all of them, or all of a quick
    run.

    Raises:
        ValueError: A name is unknown.
    """
    if names is None:
        return [case for case in CASES if not (is_quick and case.name in NOT_IN_QUICK)]
    wanted = set(names)
    known = {name for case in CASES for name in (case.family, case.name)}
    if unknown := sorted(wanted - known):
        families = ", ".join(dict.fromkeys(case.family for case in CASES))
        raise ValueError(
            f"no case is called {unknown[0]!r}; there are {families}, and one size of a family, "
            f"such as {CASES[1].name}"
        )
    return [case for case in CASES if wanted & {case.family, case.name}]


def choose_contestants(peers: Iterable[str] | None) -> tuple[list[str], list[str]]:
    """Who takes part, and who would if it were installed. All peers for `None`; we always do.

    Raises:
        ValueError: A peer is unknown.
    """
    wanted = PEERS if peers is None else tuple(peers)
    if unknown := sorted(set(wanted) - set(PEERS)):
        raise ValueError(f"no peer is called {unknown[0]!r}; there are {', '.join(PEERS)}")
    asked = [OURS, UVLOOP, *(peer for peer in PEERS if peer in wanted)]
    missing = [name for name in asked if name in _OPTIONAL and find_spec(_OPTIONAL[name]) is None]
    return [name for name in asked if name not in missing], missing


def check_payload(payload_bytes: int, cases: Iterable[Case]) -> None:
    """Whether a payload of this size will do for all cases.

    Raises:
        ValueError: It will not.
    """
    for case in cases:
        if payload_bytes < case.least_payload:
            raise ValueError(f"{case.name} needs a payload of at least {case.least_payload} bytes")
    if payload_bytes > _LARGEST_PAYLOAD:
        raise ValueError(f"a payload may have at most {_LARGEST_PAYLOAD} bytes")
