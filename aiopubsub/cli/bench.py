"""`aiopubsub bench`: this library beside others, measured in one run.

Lives here: what the options mean, and what is written where. Must not live here: measuring and drawing
(`aiopubsub.bench`), words and columns (`bench_view`). `app` calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from aiopubsub.bench.cases import OURS, check_payload, choose_cases, choose_contestants
from aiopubsub.bench.run import Plan
from aiopubsub.bench.run import run as run_plan
from aiopubsub.client import Client

from .bench_view import view_of
from .runner import BadInput, Failed, Place, bad_input, tell

__all__ = ["Options", "bench"]

_FULL = (5, 1.0)  # rounds, and seconds of each measurement
_QUICK = (1, 0.1)
_OVERHEAD_S = 0.9  # of a measurement: to start a process and connect


@dataclass(frozen=True)
class Options:
    """As they were typed.

    Attributes:
        peers: Names, separated by commas; `None` for all.
        cases: Likewise.
        is_quick: Whether to measure once and shortly.
        rounds: How often to measure; `None` for what suits.
        payload: Bytes of a message, where the case does not say.
        json: Where to write the figures, or `None`.
        draw: Folder for drawings, or `None`.
    """

    peers: str | None
    cases: str | None
    is_quick: bool
    rounds: int | None
    payload: int
    json: Path | None
    draw: Path | None


async def bench(place: Place, options: Options) -> int:
    """Run the benchmark; 0 if we did not fail in any case, 1 if we did.

    Raises:
        BadInput: The options cannot be used.
        Failed: The figures cannot be written.
        PubSubError: There is no connection, or something that is needed is not installed.
    """
    with bad_input():
        cases = choose_cases(_names(options.cases), is_quick=options.is_quick)
        contestants, missing = choose_contestants(_names(options.peers))
        check_payload(options.payload, cases)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise BadInput(f"--json: there is no folder {options.json.parent}")
    if options.draw is not None:
        from aiopubsub.bench.drawing import check_matplotlib  # noqa: PLC0415  # an extra

        check_matplotlib()
    for name in missing:
        tell(f"{name} is not installed; going on without it")
    rounds, seconds = _QUICK if options.is_quick else _FULL
    async with place.server() as (url, _):
        with bad_input():
            client = Client(url, connect_timeout=place.connect_timeout)
        async with client:
            pass  # a server that is not there is told before anything is started
        plan = Plan(url, cases, contestants, missing, options.rounds or rounds, seconds, options.payload)
        view = view_of(_minutes(plan))
        with view.shown():
            results = await run_plan(plan, view.begin, view.end)
    view.finish(results)
    with _writing():
        if options.json is not None:
            options.json.write_text(results.to_json(), encoding="utf-8")
        if options.draw is not None:
            from aiopubsub.bench.drawing import draw  # noqa: PLC0415  # an extra

            draw(results, options.draw)
    return int(any(results.outcome(case.name, OURS).failure for case in cases))


def _names(text: str | None) -> list[str] | None:
    """What was given, separated by commas.

    Raises:
        ValueError: Nothing was.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("a list of names is empty; leave the option out for all of them")
    return names


def _minutes(plan: Plan) -> float:
    """About how long it will take."""
    measurements = plan.rounds * sum(len(plan.contestants_of(case)) for case in plan.cases)
    return measurements * (1.25 * plan.seconds + _OVERHEAD_S) / 60


@contextlib.contextmanager
def _writing() -> Generator[None]:
    """Around what writes files.

    Raises:
        Failed: It could not.
    """
    try:
        yield
    except OSError as error:
        raise Failed(f"cannot write {error.filename}: {error.strerror}") from error
