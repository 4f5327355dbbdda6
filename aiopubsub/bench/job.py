"""What a process of the bench is to do, and what all of them need.

Lives here: the job as it travels, the names of channels, clocks and memory of a process. Must not
live here: what is measured. Everything in this package may call; it loads nothing of the library.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from .raw import Address

__all__ = ["Figures", "Job", "Meter", "latencies", "peak_bytes", "resident_bytes"]

Figures: TypeAlias = dict[str, float]
"""Names, with their units, and values."""


@dataclass(frozen=True)
class Job:
    """One measurement of one contestant.

    Attributes:
        measure: Which module of `measures`.
        url: Where the server is.
        address: The same, taken apart.
        prefix: What the names of all channels begin with; nobody else uses it.
        seconds: How long to measure, after warming up.
        payload_bytes: Of a message.
        channels: To subscribe to.
        is_pattern: Whether to subscribe to a pattern that matches all of them instead.
        subscribers: Of each channel.
        in_flight: Publishes at a time.
        batch: Messages published in one go; 0 for one by one.
        messages: That are stored before, to be read.
        has_history: Whether topics have a history.
    """

    measure: str
    url: str = field(repr=False)
    address: Address
    prefix: str
    seconds: float
    payload_bytes: int = 128
    channels: int = 1
    is_pattern: bool = False
    subscribers: int = 1
    in_flight: int = 1
    batch: int = 0
    messages: int = 0
    has_history: bool = False

    def to_line(self) -> bytes:
        """As a process reads it."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Job:
        """As it was written."""
        fields: dict[str, Any] = json.loads(line)
        fields["address"] = Address(**fields["address"])
        return cls(**fields)

    @property
    def warm_up_s(self) -> float:
        """How long to run before measuring."""
        return self.seconds / 4

    def channel_names(self) -> list[str]:
        """All channels of this job."""
        return [f"{self.prefix}{number}" for number in range(self.channels)]


class Meter:
    """Time and CPU of this process, all its threads included, from `start` to `stop`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin, or begin anew."""
        self.wall_s: float = time.perf_counter()
        self.cpu_s: float = time.process_time()

    def stop(self) -> None:
        """End: from now on the attributes are what has passed."""
        self.cpu_s = time.process_time() - self.cpu_s
        self.wall_s = time.perf_counter() - self.wall_s

    def per_message(self, messages: int) -> Figures:
        """What so many messages took."""
        return {
            "messages": messages,
            "messages_per_s": messages / self.wall_s,
            "cpu_us_per_message": self.cpu_s / messages * 1e6,
        }


def latencies(taken_s: list[float]) -> Figures:
    """Median and 99th percentile of at least two."""
    percentiles = statistics.quantiles(taken_s, n=100)
    return {"p50_us": percentiles[49] * 1e6, "p99_us": percentiles[98] * 1e6}


def peak_bytes() -> int:
    """The most memory that this process has had.

    Linux counts for `ru_maxrss` what a process had before it became this program, which is the size
    of its parent; so there `VmHWM` is read (proc(5)).
    """
    return _status_bytes("VmHWM") or _usage_bytes()


def resident_bytes() -> int:
    """The memory that this process has now; where the system does not tell, the most that it has had."""
    return _status_bytes("VmRSS") or _usage_bytes()


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(f"{field}:")]
    return int(found[0][1]) * 1024 if found else None


def _usage_bytes() -> int:
    import resource  # noqa: PLC0415  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
