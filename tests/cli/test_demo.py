"""`aiopubsub demo`: the books, its processes, and what is shown."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import redis

from aiopubsub.cli.demo_books import Books, Ledger, Row
from aiopubsub.testing import Server
from tests.cli.process import Cli, run

ROW = re.compile(r"^(exact|pattern|slow|history) +(\S+)" + r" +(\d+)" * 4 + r"  (\w+)$", re.MULTILINE)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started, whichever of its threads did."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


def check(output: str) -> None:
    """The figures of the table that was printed add up."""
    rows = {name: [int(n) for n in figures] for name, _, *figures, _ in ROW.findall(output)}
    assert set(rows) == {"exact", "pattern", "slow", "history"}
    for published, delivered, missing, gaps in rows.values():
        assert published == delivered + missing > 0
        assert gaps or not missing
    assert rows["exact"][0] == rows["slow"][0] == rows["history"][0]
    assert rows["history"][2:] == [0, 0]


def test_the_books_balance() -> None:
    """With nobody's help it ends with status 0; all are accounted for, whatever was killed meanwhile."""
    ended = run("demo", "--seconds", "2")
    output = ended.stdout.decode()
    assert ended.returncode == 0, output + ended.stderr.decode()
    check(output)
    gaps = {row[0]: int(row[5]) for row in ROW.findall(output)}
    assert min(gaps["slow"], gaps["exact"], gaps["pattern"]) >= 1
    assert "The subscribers' connections were killed.\n" in output
    assert "The server was killed, and started again" in output
    assert "The books balance" in output
    assert "\x1b" not in output
    assert re.search(r"^1 s: \d+ published", output, re.MULTILINE)


def test_at_a_terminal(valkey: Server) -> None:
    """At a terminal a table is drawn again and again, and no line is cut or wrapped."""
    with Cli("demo", "--seconds", "0.5", "--url", valkey.url, at_terminal=True) as demo:
        shown = demo.out.rest().decode()
        assert demo.status() == 0
    assert shown.count("subscriber") > 1
    drawn = re.sub(r"\x1b\[\d*[AK]", "\n", shown)  # up, and erase: another table begins
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn).replace("\r", "").split("\n")
    assert max(map(len, lines)) <= 80
    assert "…" not in shown
    assert any(re.match(r" +slow +orders( +[\d,]+){5} +balanced *$", line) for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_nothing_is_left_behind() -> None:
    """Ctrl-C ends the demo, its server and its processes."""
    with Cli("demo", "--seconds", "60") as demo:
        demo.out.until(b"1 s: ")
        children = children_of(demo.process.pid)
        assert len(children) == 6  # the server, the publisher and four subscribers
        demo.signal(signal.SIGINT)
        assert demo.status() == 130
        assert demo.err.rest().count(b"\n") == 1
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_a_process_that_dies_is_a_failure(valkey: Server) -> None:
    """If one of its processes is killed, the demo says so and ends with status 1."""
    with Cli("demo", "--seconds", "60", "--url", valkey.url) as demo:
        demo.out.until(b"1 s: ")
        workers = children_of(demo.process.pid)
        os.kill(workers[0], signal.SIGKILL)
        assert demo.status() == 1
        assert b"ended early, with status -9" in demo.err.rest()


def test_a_lost_connection_balances_too(valkey: Server) -> None:
    """What a lost connection took is counted at the next message; and nothing stays on the server."""
    with Cli("demo", "--seconds", "1.5", "--url", valkey.url) as demo:
        demo.out.until(b"1 s: ")
        with redis.Redis(port=valkey.port) as admin:
            admin.client_kill_filter(_type="pubsub")
            output = demo.out.rest().decode()
            assert demo.status() == 0
            assert not list(admin.scan_iter("*aiopubsub-demo*"))
    check(output)
    assert {row[0]: int(row[5]) for row in ROW.findall(output)}["exact"] == 1


@pytest.mark.parametrize(
    ("delivered", "missing", "wrong", "is_done", "verdict"),
    [
        (7, 3, 0, True, "balanced"),
        (7, 2, 0, True, "off by 1"),
        (8, 3, 0, True, "off by -1"),
        (7, 3, 2, True, "2 wrong"),
        (7, 3, 0, False, "open"),
    ],
)
def test_verdicts(delivered: int, missing: int, wrong: int, is_done: bool, verdict: str) -> None:
    """The books balance when what was published is what was delivered and what was reported."""
    row = Row("a", "b", ("x", "y"), delivered, missing, 0, wrong, is_done)
    books = Books([row], {"x": 4, "y": 6, "z": 1})
    assert books.verdict(row) == verdict
    assert books.is_balanced == (verdict == "balanced")


@pytest.mark.parametrize(
    ("events", "figures"),
    [
        ([1, 2, 3], (3, 0, 0, 0)),
        ([1, "3", 4, 5], (3, 2, 1, 1)),  # a gap of three where two are missing
        ([1, "3", 5], (2, 3, 1, 0)),
        ([1, "?", 5, 6], (3, 3, 1, 0)),
        ([1, "?", 2, 5], (3, 0, 1, 2)),  # the hole is not where the gap was
        ([1, "?", "1", 5], (2, 3, 2, 0)),
        ([1, 3], (2, 0, 0, 1)),
        ([1, 2, 2], (3, 0, 0, 1)),
        ([1, 3, 2, 3], (4, 0, 0, 2)),
    ],
)
def test_a_ledger(events: list[int | str], figures: tuple[int, ...]) -> None:
    """A hole is missing where a gap stands for it, and wrong anywhere else."""
    ledger = Ledger.of(("x",))
    for event in events:
        if isinstance(event, int):
            ledger.message("x", event)
        else:
            ledger.gap(None if event == "?" else int(event))
    last = max(event for event in events if isinstance(event, int))
    ledger.end("x", last)
    ledger.close()
    assert tuple(ledger.figures().values()) == figures
