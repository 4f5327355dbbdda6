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

from aiopubsub.cli.demo_books import Books, Row
from aiopubsub.testing import Server
from tests.cli.process import Cli, run

ROW = re.compile(r"^(exact|pattern|slow) +(\S+) +(\d+) +(\d+) +(\d+)  (\w+)$", re.MULTILINE)


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
    assert set(rows) == {"exact", "pattern", "slow"}
    for published, delivered, missing in rows.values():
        assert published == delivered + missing > 0
    assert rows["exact"][2] == rows["pattern"][2] == 0
    assert rows["exact"][0] == rows["slow"][0]


def test_the_books_balance() -> None:
    """With nobody's help it ends with status 0; the slow one missed some, and all are accounted for."""
    ended = run("demo", "--seconds", "2")
    output = ended.stdout.decode()
    assert ended.returncode == 0, output + ended.stderr.decode()
    check(output)
    assert int(next(row[4] for row in ROW.findall(output) if row[0] == "slow")) > 0
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
    assert any(re.match(r" +slow +orders( +[\d,]+){4} +balanced *$", line) for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_nothing_is_left_behind() -> None:
    """Ctrl-C ends the demo, its server and its processes."""
    with Cli("demo", "--seconds", "60") as demo:
        demo.out.until(b"1 s: ")
        children = children_of(demo.process.pid)
        assert len(children) == 5  # the server, the publisher and three subscribers
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


def test_a_lost_connection_cannot_balance(valkey: Server) -> None:
    """A gap whose number cannot be known is said, and the status is 1."""
    with Cli("demo", "--seconds", "1.5", "--url", valkey.url) as demo:
        demo.out.until(b"1 s: ")
        with redis.Redis(port=valkey.port) as admin:
            admin.client_kill_filter(_type="pubsub")
        output = demo.out.rest().decode()
        assert demo.status() == 1
    assert "a connection was lost" in output


@pytest.mark.parametrize(
    ("delivered", "missing", "has_unknown", "is_done", "verdict"),
    [
        (7, 3, False, True, "balanced"),
        (7, 2, False, True, "off by 1"),
        (8, 3, False, True, "off by -1"),
        (7, 3, True, True, "unknown"),
        (7, 3, False, False, "open"),
    ],
)
def test_verdicts(delivered: int, missing: int, has_unknown: bool, is_done: bool, verdict: str) -> None:
    """The books balance when what was published is what was delivered and what was reported."""
    row = Row("a", "b", ("x", "y"), delivered, missing, has_unknown, is_done)
    books = Books([row], {"x": 4, "y": 6, "z": 1})
    assert books.verdict(row) == verdict
    assert books.is_balanced == (verdict == "balanced")
