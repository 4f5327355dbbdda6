"""What is checked, and how: `nox` runs all of it, `nox -s tests` the tests alone.

An interpreter that is not on this machine is skipped; with `CI=true` it fails.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "tests", "lowest"]

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
_VERSION = "Programming Language :: Python :: 3."
PYTHONS = [
    "3." + classifier.removeprefix(_VERSION)
    for classifier in PROJECT["project"]["classifiers"]
    if classifier.startswith(_VERSION)
]
GROUPS: dict[str, list[str]] = PROJECT["dependency-groups"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The whole test suite, on every Python that is claimed."""
    session.install("-e", ".[cli,server]", *GROUPS["test"])
    session.run("pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The tests of behaviour with the lowest versions of what the core depends on."""
    lowest = [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
    session.install("-e", ".[cli,server]", *lowest, *GROUPS["test"])
    session.run("pytest", "tests/unit", "tests/contract", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """A random schedule of faults: `nox -s chaos -- --faults 10000 --seed 7`."""
    parser = argparse.ArgumentParser(prog="nox -s chaos --")
    parser.add_argument("--faults", type=int, default=300, help="how many (default: 300)")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule (default: 1)")
    options = parser.parse_args(session.posargs)
    session.install("-e", ".[cli,server]", *GROUPS["test"])
    schedule = {
        "AIOPUBSUB_CHAOS_FAULTS": str(options.faults),
        "AIOPUBSUB_CHAOS_SEED": str(options.seed),
    }
    session.run("pytest", "tests/chaos", env=schedule)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and mistakes that a reader would see."""
    session.install(*GROUPS["lint"])
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """The types, strictly and twice."""
    session.install("-e", ".[cli]", "nox", "pytest", *GROUPS["types"])
    session.run("mypy")
    session.run("pyright", "--pythonpath", os.path.join(session.bin, "python"))  # noqa: PTH118
