"""What was measured: every round, medians, and how we stand beside others.

Lives here: figures by case and contestant, ratios, growth, JSON. Must not live here: words, drawing,
measuring. `run` fills them in; the faces and the tests read them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .cases import CASES, FIGURES, OURS, Case
from .job import Figures

__all__ = ["FORMAT", "Outcome", "Results", "Setting"]

FORMAT = 1
"""Of the JSON; another one cannot be read."""


@dataclass(frozen=True)
class Setting:
    """Under which circumstances.

    Attributes:
        date: When the run began, as YYYY-MM-DD.
        machine: See `machine.describe_machine`.
        server: Name and version.
        libraries: Versions by name.
        rounds: How often each was measured.
        seconds: How long each time.
        payload_bytes: Of a message, in cases that do not say otherwise.
        missing: Peers that were asked for and are not installed.
    """

    date: str
    machine: dict[str, Any]
    server: str
    libraries: dict[str, str]
    rounds: int
    seconds: float
    payload_bytes: int
    missing: list[str]


@dataclass
class Outcome:
    """One contestant in one case.

    Attributes:
        rounds: The figures of each round.
        failure: Why there are none, or `None`.
    """

    rounds: list[Figures] = field(default_factory=list[Figures])
    failure: str | None = None

    @property
    def medians(self) -> Figures:
        """By figure; nothing after a failure."""
        if self.failure is not None or not self.rounds:
            return {}
        return {name: median(figures[name] for figures in self.rounds) for name in self.rounds[0]}


@dataclass
class Results:
    """A run.

    Attributes:
        setting: Its circumstances.
        outcomes: By name of the case, then by contestant.
    """

    setting: Setting
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict[str, dict[str, Outcome]])

    @property
    def cases(self) -> list[Case]:
        """Those that there are outcomes of."""
        return [case for case in CASES if case.name in self.outcomes]

    def outcome(self, case: str, contestant: str) -> Outcome:
        """Of a contestant, empty if there is none yet."""
        return self.outcomes.setdefault(case, {}).setdefault(contestant, Outcome())

    def median(self, case: str, contestant: str, figure: str) -> float | None:
        """Over the rounds; `None` if it was not measured, or failed."""
        outcome = self.outcomes.get(case, {}).get(contestant)
        return None if outcome is None else outcome.medians.get(figure)

    def ratio(self, case: str, contestant: str, figure: str | None = None, to: str = OURS) -> float | None:
        """What a contestant costs in relation to another: 5 is five times as much time, CPU or memory.

        Compared round by round, because both then had the same weather; the median of these.

        Args:
            case: The name of the case.
            contestant: Whose cost.
            figure: By which; `None` for the case's headline.
            to: The other one.
        """
        outcomes = self.outcomes.get(case, {})
        by = figure or next(known.headline for known in CASES if known.name == case)
        return _ratio(outcomes.get(contestant), outcomes.get(to), by)

    def growth(self, family: str, contestant: str) -> dict[int, float]:
        """By size, what a case costs in relation to the family's smallest, by the headline."""
        first, *others = [case for case in CASES if case.family == family]
        grown = {
            case.size: self.growth_between(first.name, case.name, contestant, case.headline)
            for case in (first, *others)
        }
        return {size: ratio for size, ratio in grown.items() if ratio is not None}

    def growth_between(self, first: str, case: str, contestant: str, figure: str) -> float | None:
        """What a case costs a contestant in relation to another case."""
        one, other = (self.outcomes.get(name, {}).get(contestant) for name in (case, first))
        return _ratio(one, other, figure)

    def extra_deliveries(self, contestant: str) -> dict[int, float]:
        """By number of subscribers, what each one beyond the first costs in relation to a single one."""
        growth = self.growth("fan-out", contestant)
        return {size: (cost - 1) / (size - 1) for size, cost in growth.items() if size > 1}

    def to_json(self) -> str:
        """Everything; what a contestant did in one round is a line."""
        cases = [
            {
                "name": case.name,
                "title": case.title,
                "headline": case.headline,
                "contestants": {
                    name: {
                        "failure": outcome.failure,
                        "medians": outcome.medians,
                        "cost_to_ours": self.ratio(case.name, name),
                        "rounds": outcome.rounds,
                    }
                    for name, outcome in self.outcomes[case.name].items()
                },
            }
            for case in self.cases
        ]
        text = json.dumps({"format": FORMAT, **vars(self.setting), "cases": cases}, indent=1)
        return re.sub(r"\{[^{}\[\]]*\}", lambda inner: " ".join(inner[0].split()), text) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Results:
        """A run that was written.

        Raises:
            ValueError: The file is not one that `to_json` wrote.
            OSError: It cannot be read.
        """
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told.pop("format") != FORMAT:
                raise ValueError("another format")
            cases = told.pop("cases")
            results = cls(Setting(**told))
            for case in cases:
                for name, one in case["contestants"].items():
                    results.outcomes.setdefault(case["name"], {})[name] = Outcome(
                        one["rounds"], one["failure"]
                    )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no results of a benchmark: {error}") from error
        return results


def _ratio(one: Outcome | None, other: Outcome | None, figure: str) -> float | None:
    if one is None or other is None or not one.medians or not other.medians:
        return None
    if figure not in one.medians or figure not in other.medians:
        return None
    cost = FIGURES[figure].cost
    pairs = [(mine[figure], its[figure]) for mine, its in zip(one.rounds, other.rounds, strict=True)]
    if not all(mine > 0 and its > 0 for mine, its in pairs):
        return None  # too little to compare
    return median(cost(mine) / cost(its) for mine, its in pairs)
