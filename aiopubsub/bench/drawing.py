"""Drawings of a run: bars against peers, and curves of what grows.

Lives here: what is drawn from which figures, and how it looks. Must not live here: figures
(`results`). The command line calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from aiopubsub.errors import MissingExtra

from .cases import CASES, FIGURES, OURS, PEERS, UVLOOP
from .results import Results

__all__ = ["check_matplotlib", "draw"]

# colours of Okabe and Ito, which colour-blind people can tell apart
_COLOURS = {
    OURS: "#0072b2",
    UVLOOP: "#56b4e9",
    "redis-py": "#d55e00",
    "coredis": "#e69f00",
    "glide": "#009e73",
    "floor": "#999999",
    "floor-asyncio": "#555555",
}
_ORDER = (OURS, UVLOOP, *PEERS)
_NAMES = {
    OURS: "aiopubsub",
    UVLOOP: "aiopubsub, uvloop",
    "glide": "valkey-glide",
    "floor": "bare socket",
    "floor-asyncio": "bare asyncio",
}
_STYLE = {
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.fonttype": "none",  # text stays text: small files, and a reader can search them
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "aiopubsub",  # the same figures make the same file
}


def check_matplotlib() -> None:
    """Whether there is anything to draw with.

    Raises:
        MissingExtra: There is not.
    """
    _matplotlib()


def draw(results: Results, folder: Path) -> None:
    """Draw what there is, each drawing a file in this folder, which is made.

    Raises:
        MissingExtra: matplotlib is not installed.
        OSError: A file cannot be written.
    """
    pyplot = _matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context(_STYLE):
        for name, panels in _DRAWINGS.items():
            there = [panel for panel in panels if panel.is_there(results)]
            if not there:
                continue
            columns = min(2, len(there))
            rows = -(-len(there) // columns)
            figure, axes = pyplot.subplots(
                rows, columns, figsize=(5.2 * columns, 2.9 * rows), squeeze=False, layout="constrained"
            )
            for panel, axis in zip(there, axes.flat, strict=False):
                panel.draw(results, axis)
            for axis in axes.flat[len(there) :]:
                axis.set_axis_off()
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            pyplot.close(figure)


@dataclass(frozen=True)
class _Bars:
    """A bar for each contestant; the figure and what it costs in relation to us beside it."""

    case: str
    figure: str
    title: str

    def is_there(self, results: Results) -> bool:
        return bool(self._values(results))

    def draw(self, results: Results, axis: Any) -> None:
        values = self._values(results)
        at = range(len(values), 0, -1)
        axis.barh(at, values.values(), color=[_COLOURS[name] for name in values], height=0.7)
        for y, (name, value) in zip(at, values.items(), strict=True):
            ratio = results.ratio(self.case, name, self.figure)
            beside = f" {_short(value)}" + (
                "" if ratio is None or name == OURS else f"  ({ratio:.2g}\u00d7)"
            )
            axis.text(value, y, beside, va="center", fontsize=9)
        axis.set_yticks(at, [_NAMES.get(name, name) for name in values])
        axis.tick_params(left=False)
        axis.spines["left"].set_visible(False)
        axis.set_xlim(0, 1.35 * max(values.values()))
        axis.xaxis.set_major_formatter(_tick)
        axis.set_title(self.title)
        axis.set_xlabel(_better(self.figure))

    def _values(self, results: Results) -> dict[str, float]:
        medians = {name: results.median(self.case, name, self.figure) for name in _ORDER}
        unit = FIGURES[self.figure].per_unit
        return {name: value / unit for name, value in medians.items() if value is not None}


@dataclass(frozen=True)
class _Curves:
    """A curve for each contestant, over what grows."""

    family: str
    figure: str
    title: str
    grows: str
    each: str = ""
    """What there are as many of as the size says; the figure is shown for each."""

    def is_there(self, results: Results) -> bool:
        return any(len(points) > 1 for points in self._points(results).values())

    def draw(self, results: Results, axis: Any) -> None:
        for name, points in self._points(results).items():
            style = {"linewidth": 2.5, "zorder": 3} if name == OURS else {"linewidth": 1.5}
            label = _NAMES.get(name, name)
            axis.plot(*zip(*points, strict=True), "o-", color=_COLOURS[name], label=label, **style)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.grid(visible=True, color="#dddddd", linewidth=0.6)
        axis.xaxis.set_major_formatter(_tick)
        axis.yaxis.set_major_formatter(_tick)
        axis.set_title(self.title)
        axis.set_xlabel(self.grows)
        axis.set_ylabel(_better(self.figure, self.each), fontsize=9)
        axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    def _points(self, results: Results) -> dict[str, list[tuple[int, float]]]:
        points: dict[str, list[tuple[int, float]]] = {}
        for case in results.cases:
            for name in _ORDER:
                value = results.median(case.name, name, self.figure)
                if case.family == self.family and value is not None:
                    each = value / case.size if self.each else value
                    points.setdefault(name, []).append((case.size, each))
        return points


_DRAWINGS: dict[str, tuple[_Bars | _Curves, ...]] = {
    "receive": tuple(
        _Bars(case.name, "cpu_us_per_message", case.title[0].upper() + case.title[1:])
        for case in CASES
        if case.family in ("receive", "pattern")
    ),
    "growth": (
        _Curves("fan-out", "cpu_us_per_message", "Fan-out within a client", "subscribers", "delivery"),
        _Curves("channels", "cpu_us_per_message", "Receive from many channels", "channels"),
    ),
    "publish": (
        _Curves("publish", "messages_per_s", "Awaited publishes", "in flight"),
        _Bars("many", "messages_per_s", "publish_many or a pipeline of 1000"),
    ),
    "latency": (
        _Bars("latency", "p50_us", "From publish to receipt: median"),
        _Bars("latency", "p99_us", "From publish to receipt: 99 %"),
        _Bars("publish-1", "p50_us", "One awaited publish: median"),
        _Bars("publish-1", "p99_us", "One awaited publish: 99 %"),
    ),
    "start": (
        _Bars("reconnect", "resubscribed_s", "Reconnect with 100 000 channels"),
        _Bars("import", "import_cpu_ms", "Import"),
    ),
}
"""What is on each drawing, by the name of its file."""


def _better(figure: str, each: str = "") -> str:
    shown = FIGURES[figure]
    heading = shown.heading.replace("message", each) if each else shown.heading
    return f"{heading}, {'more' if shown.is_more_better else 'less'} is better"


def _short(value: float) -> str:
    """A number with about three digits that say something."""
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    if value >= 1e4:
        return f"{value / 1e3:.3g} k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _tick(value: float, _: int) -> str:
    return _short(value)


def _matplotlib() -> Any:
    try:
        import_module("matplotlib").use("Agg")  # no screen
        return import_module("matplotlib.pyplot")
    except ImportError as error:
        raise MissingExtra("drawing", "bench") from error
