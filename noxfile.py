"""What is checked, and how: `nox` runs all of it, `nox -s tests faults` the tests alone.

An interpreter that is not on this machine is skipped; with `CI=true` it fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "docs", "tests", "faults", "browser", "lowest"]

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
_VERSION = "Programming Language :: Python :: 3."
PYTHONS = [
    "3." + classifier.removeprefix(_VERSION)
    for classifier in PROJECT["project"]["classifiers"]
    if classifier.startswith(_VERSION) and classifier[-1].isdigit()
]
GROUPS: dict[str, list[str]] = PROJECT["dependency-groups"]

PARALLEL = ("-n2", "--dist=worksteal")
"""Two at a time on any machine: tests of what takes how long share their cores with one other."""

BUSY = ("-n3", "--dist=worksteal")
"""For tests of what happens, whenever that is: on two cores a sixth faster than two at a time."""


@nox.session
@nox.parametrize(
    ["python", "chosen", "folders"],
    [
        nox.param(PYTHONS[0], "not uvloop", ["tests"], id=f"{PYTHONS[0]}-asyncio"),
        *(
            nox.param(
                python, "memory or not contract", ["tests/unit", "tests/contract"], id=f"{python}-memory"
            )
            for python in PYTHONS[1:-1]
        ),
        nox.param(PYTHONS[-1], "not asyncio", ["tests"], id=f"{PYTHONS[-1]}-uvloop"),
    ],
)
def tests(session: nox.Session, chosen: str, folders: list[str]) -> None:
    """Everything on the oldest and the newest Python, with a loop each; in between what needs no server."""
    install_tests(session)
    apart = (
        f"--ignore=tests/{path}"
        for path in ("fault", "chaos", "browser", "test_tutorial.py", "test_plugin.py")
    )
    session.run("pytest", *BUSY, *apart, "-k", chosen, *folders, *session.posargs)


@nox.session
@nox.parametrize(
    ["python", "loop"],
    [
        nox.param(PYTHONS[0], "asyncio", id=f"{PYTHONS[0]}-asyncio"),
        nox.param(PYTHONS[-1], "uvloop", id=f"{PYTHONS[-1]}-uvloop"),
    ],
)
def faults(session: nox.Session, loop: str) -> None:
    """What goes wrong: the fault tests beside 300 faults of chaos, once on each event loop."""
    install_tests(session)
    chosen = "uvloop and not sentinel" if loop == "uvloop" else "not uvloop"  # failovers take minutes
    few = {"AIOPUBSUB_CHAOS_FAULTS": "300"}
    session.run("pytest", *PARALLEL, "-k", chosen, "tests/chaos", "tests/fault", *session.posargs, env=few)


@nox.session
def browser(session: nox.Session) -> None:
    """The web chat in Chromium, which the system has to have."""
    session.install("-e", ".[server,starlette]", *GROUPS["browser"], "pytest-xdist>=3.6")
    session.run("pytest", *PARALLEL, "tests/browser", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The tests of behaviour with the lowest versions of what the core depends on."""
    pins = [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
    session.install("-e", ".[cli,server]", *pins, *GROUPS["test"], "pytest-xdist>=3.6")
    chosen = "not uvloop and not redis62 and not redis7 and not cluster7"  # one kind of server is enough
    session.run("pytest", *BUSY, "-k", chosen, "tests/unit", "tests/contract", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """A random schedule of faults: `nox -s chaos -- --faults 10000 --seed 7 -k asyncio`."""
    parser = argparse.ArgumentParser(prog="nox -s chaos --", epilog="What else is given goes to pytest.")
    parser.add_argument("--faults", type=int, default=300, help="how many (default: 300)")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule (default: 1)")
    options, rest = parser.parse_known_args(session.posargs)
    install_tests(session)
    schedule = {
        "AIOPUBSUB_CHAOS_FAULTS": str(options.faults),
        "AIOPUBSUB_CHAOS_SEED": str(options.seed),
    }
    session.run("pytest", "tests/chaos", "-rP", *rest, env=schedule)


@nox.session
def bench(session: nox.Session) -> None:
    """The library beside others, see docs/performance.md: `nox -s bench -- --quick --json figures.json`."""
    session.install("-e", ".[cli,server]", *GROUPS["bench"])
    session.run("aiopubsub", "bench", *session.posargs)


@nox.session(python=PYTHONS)
def package(session: nox.Session) -> None:
    """Wheel and sdist: built, installed, and tested as installed, with the package's source removed.

    `nox -s package-3.13 -- tests/test_tutorial.py` takes what a new user does, from the wheel.
    """
    session.install("build>=1.2", "hatchling>=1.25", "twine>=6")
    folder = Path(session.create_tmp())
    shutil.rmtree(folder / "dist", ignore_errors=True)
    shutil.rmtree(folder / "away", ignore_errors=True)
    # the wheel is built from the sdist, so what is missing in one is missing in both
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"))
    (sdist,), (wheel,) = (list((folder / "dist").glob(kind)) for kind in ("*.tar.gz", "*.whl"))
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    needed = (*GROUPS["test"], *GROUPS["web"], "pytest-xdist>=3.6")
    session.install(f"{wheel.resolve()}[cli,server,otel,starlette]", *needed)
    shutil.unpack_archive(sdist, folder / "away", filter="data")
    (away,) = (folder / "away").iterdir()
    shutil.rmtree(away / "aiopubsub")
    (away / "pytest_aiopubsub.py").unlink()
    folders = ["tests/unit", "tests/contract", "tests/test_plugin.py", "tests/test_tutorial.py"]
    quick = "not uvloop and (memory or not contract)"
    with session.chdir(away):
        session.run("python", "-c", "import aiopubsub; assert 'site-packages' in aiopubsub.__file__")
        session.run("pytest", *PARALLEL, "-k", quick, *(session.posargs or folders))


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, into `site/`, strictly; `nox -s docs -- serve` shows it while you write."""
    session.install(*GROUPS["docs"])  # not the package: its source is read, not imported
    args = session.posargs or ["build"]
    session.run("mkdocs", *args, env={"NO_MKDOCS_2_WARNING": "1"})


def install_tests(session: nox.Session, *more: str) -> None:
    """The package as users install it, and what its tests need."""
    needed = (*GROUPS["test"], *GROUPS["web"], "pytest-xdist>=3.6")
    session.install("-e", ".[cli,server,otel,starlette]", *more, *needed)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and mistakes that a reader would see."""
    session.install(*GROUPS["lint"])
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """The types, strictly and twice; and that a user's type checker knows each type of ours."""
    needed = (*GROUPS["types"], *GROUPS["web"])
    session.install("-e", ".[cli,otel,starlette]", "nox", "pytest", *needed)
    session.run("mypy")
    with session.chdir(session.create_tmp()):  # from outside, as users see it
        session.run("pyright", "--verifytypes", "aiopubsub", "--ignoreexternal")
    session.run("pyright", "--pythonpath", os.path.join(session.bin, "python"))  # noqa: PTH118
