"""What a run must show, on any machine: ratios within the run, and two sizes.

Lives here: the list. Must not live here: figures (`results`). The command line shows it, the tests and
the docs hold us to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .cases import OURS, UVLOOP
from .results import Results

__all__ = ["PROMISES", "Promise"]


@dataclass(frozen=True)
class Promise:
    """One line.

    Attributes:
        text: What is compared with what.
        limit: What is wanted.
        is_at_least: Whether more is better; else less is.
        got: What a run shows; `None` if it was not measured.
    """

    text: str
    limit: float
    is_at_least: bool
    got: Callable[[Results], float | None]

    @property
    def wanted(self) -> str:
        """The limit in words."""
        return f"at {'least' if self.is_at_least else 'most'} {self.limit:g}"

    def holds(self, results: Results) -> bool | None:
        """Whether it does; `None` if it was not measured."""
        got = self.got(results)
        if got is None:
            return None
        return got >= self.limit if self.is_at_least else got <= self.limit


def _at_least(limit: float, text: str, got: Callable[[Results], float | None]) -> Promise:
    return Promise(text, limit, is_at_least=True, got=got)


def _at_most(limit: float, text: str, got: Callable[[Results], float | None]) -> Promise:
    return Promise(text, limit, is_at_least=False, got=got)


def _cost(case: str, contestant: str, figure: str, to: str = OURS) -> Callable[[Results], float | None]:
    """What a contestant costs in relation to another."""
    return lambda results: results.ratio(case, contestant, figure, to)


def _grown(case: str, than: str, figure: str) -> Callable[[Results], float | None]:
    """What a case costs us in relation to another."""
    return lambda results: results.growth_between(than, case, OURS, figure)


def _median(case: str, figure: str) -> Callable[[Results], float | None]:
    return lambda results: results.median(case, OURS, figure)


def _read_in_a_second(results: Results) -> float | None:
    """Of a million messages; of fewer in a quick run."""
    rates = (results.median(f"catch-up-{size}", OURS, _RATE) for size in (1_000_000, 100_000))
    return next((rate for rate in rates if rate is not None), None)


def _dearest_delivery(results: Results) -> float | None:
    return max(results.extra_deliveries(OURS).values(), default=None)


_CPU, _RATE = "cpu_us_per_message", "messages_per_s"

PROMISES = (
    _at_least(6, "receive, 128 B: CPU of redis-py / ours", _cost("receive-128", "redis-py", _CPU)),
    _at_most(1.5, "receive, 128 B: our CPU / the bare loop's", _cost("receive-128", OURS, _CPU, "floor")),
    _at_most(1, "receive, 128 B: our CPU on uvloop / on asyncio", _cost("receive-128", UVLOOP, _CPU)),
    _at_most(
        0.25, "fan-out: CPU of a further subscriber / of a single one, the dearest", _dearest_delivery
    ),
    _at_most(
        20,
        "fan-out to 10000: longest turn of the event loop, ms",
        _median("fan-out-10000", "longest_turn_ms"),
    ),
    _at_least(
        20, "100 publishes in flight: our rate / redis-py's", _cost("publish-100", "redis-py", _RATE)
    ),
    _at_least(10, "100 publishes in flight: our rate / glide's", _cost("publish-100", "glide", _RATE)),
    _at_most(
        1, "publishes in flight: time for one, 10000 / 1000", _grown("publish-10000", "publish-1000", _RATE)
    ),
    _at_most(
        2,
        "publishes in flight: peak memory, 10000 / 1000",
        _grown("publish-10000", "publish-1000", "peak_bytes"),
    ),
    _at_least(
        1, "one publish at a time: median time, redis-py's / ours", _cost("publish-1", "redis-py", "p50_us")
    ),
    _at_least(5, "publish_many: our rate / that of redis-py's pipeline", _cost("many", "redis-py", _RATE)),
    _at_most(
        1.5,
        "receive on a topic with history: our CPU / that of a plain one",
        _grown("receive-history", "receive-128", _CPU),
    ),
    _at_least(
        0.6,
        "100 publishes to a history in flight: our rate / that of the bare script",
        _cost("history-100", "floor", _RATE),
    ),
    _at_least(150_000, "read stored messages: in a second", _read_in_a_second),
    _at_least(1, "publish to receipt: median, redis-py's / ours", _cost("latency", "redis-py", "p50_us")),
    _at_least(1, "publish to receipt: 99 %, redis-py's / ours", _cost("latency", "redis-py", "p99_us")),
    _at_most(
        1.3, "receive: CPU with 100000 channels / with one", _grown("channels-100000", "channels-1", _CPU)
    ),
    _at_most(
        2,
        "resubscribe 100000 channels: our time / a bare socket's",
        _cost("reconnect", OURS, "resubscribed_s", "floor"),
    ),
    _at_most(2048, "memory of an idle subscriber, bytes", _median("memory", "bytes_per_subscriber")),
    _at_most(1.3, "import: our CPU / redis.asyncio's", _cost("import", OURS, "import_cpu_ms", "redis-py")),
)
"""In the order in which people ask."""
