"""`aiopubsub bench`: what a person sees, what is written, and what is refused."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
from pathlib import Path

import pytest

from aiopubsub.testing import Server, free_port
from tests.cli.process import DEADLINE_S, Cli, run, wait_for_patterns
from tests.cli.test_demo import children_of

SHORT = ("bench", "--quick", "--cases", "receive-16,many", "--peers", "floor,redis-py")


def test_tables_and_json(tmp_path: Path) -> None:
    """Anywhere but at a terminal there is a plain table for each case, and what the run must show."""
    path = tmp_path / "figures.json"
    ended = run(*SHORT, "--json", str(path))
    said = ended.stdout.decode()
    assert ended.returncode == 0, said + ended.stderr.decode()
    for name in ("receive-16", "many"):
        table = said.split(f"[{name}]\n")[1].split("\n\n")[0].splitlines()
        assert table[0].split()[-3:] == ["cost", "/", "ours"]
        assert [row.split()[0] for row in table[1:]] == ["ours", "ours-uvloop", "redis-py", "floor"]
        assert table[1].split()[-1] == "1.00"
    assert re.search(r"^publish_many: .* at least 5 +[\d.]+ +(kept|broken)$", said, re.MULTILINE)
    assert "\x1b" not in said
    told = json.loads(path.read_text())
    assert [case["name"] for case in told["cases"]] == ["receive-16", "many"]
    assert told["rounds"] == 1


def test_at_a_terminal(valkey: Server) -> None:
    """At a terminal it shows what is measured just now, and tables without a cut line."""
    with Cli(*SHORT, "--url", valkey.url, at_terminal=True) as bench:
        shown = bench.out.rest().decode()
        assert bench.status() == 0
    assert "receive, 16 B: round 1, redis-py" in shown
    assert "receive, 16 B [receive-16]" in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= 80
    assert "…" not in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_over(valkey: Server, number: signal.Signals) -> None:
    """Ctrl-C ends what is being measured just now; and however it ends, its processes do too."""
    with Cli("bench", "--cases", "pattern", "--url", valkey.url) as bench:
        wait_for_patterns(valkey)
        processes = children_of(bench.process.pid)
        processes += [pid for child in processes for pid in children_of(child)]
        assert len(processes) == 2  # a contestant, and its source of messages
        ends = [os.pidfd_open(pid) for pid in processes]
        bench.signal(number)
        assert bench.status() == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[number]
    for end in ends:
        assert select.select([end], [], [], DEADLINE_S)[0], "a process still runs"
        os.close(end)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--peers", "aredis"), "no peer is called 'aredis'; there are redis-py, coredis, glide, floor"),
        (("--peers", ","), "a list of names is empty"),
        (("--cases", "speed"), "no case is called 'speed'; there are receive, pattern, fan-out"),
        (("--cases", "latency", "--payload", "7"), "latency needs a payload of at least 8 bytes"),
        (("--payload", "1048577"), "a payload may have at most 1048576 bytes"),
        (("--json", "no/such/folder/f.json"), "--json: there is no folder no/such/folder"),
        (("--peers", "floor", "--url", "memory://"), "memory:// ends at this process"),
        (("--peers", "floor", "--url", "http://u:s3cret@h"), "unknown scheme 'http'"),
    ],
)
def test_bad_arguments(args: tuple[str, ...], words: str) -> None:
    """One line that says what would do, and status 2, before anything is started."""
    ended = run("bench", *args)
    said = ended.stderr.decode()
    assert ended.returncode == 2
    assert said.startswith("aiopubsub: ")
    assert words in said
    assert said.count("\n") == 1
    assert "s3cret" not in said
    assert ended.stdout == b""


def test_no_server() -> None:
    """A URL that nobody answers at is one line, and status 1."""
    port = free_port()
    url = f"redis://:s3cret@127.0.0.1:{port}"
    ended = run("bench", "--peers", "floor", "--url", url, "--connect-timeout", "0.2")
    said = ended.stderr.decode()
    assert ended.returncode == 1
    assert said.startswith(f"aiopubsub: cannot connect to 127.0.0.1:{port}")
    assert said.count("\n") == 1
    assert "s3cret" not in said


def test_a_peer_that_is_not_installed(valkey: Server) -> None:
    """It is said, and the others are measured."""
    code = "import sys; sys.modules['coredis'] = None; from aiopubsub.__main__ import main; main()"
    options = ("bench", "--quick", "--cases", "receive-16", "--peers", "coredis", "--url", valkey.url)
    ended = run(*options, command=(sys.executable, "-c", code))
    assert ended.returncode == 0
    assert "aiopubsub: coredis is not installed; going on without it\n" in ended.stderr.decode()
    assert "ours" in ended.stdout.decode()


def test_drawing_needs_an_extra() -> None:
    """Without matplotlib `--draw` says what to install, before anything is measured."""
    code = "import sys; sys.modules['matplotlib'] = None; from aiopubsub.__main__ import main; main()"
    ended = run("bench", "--draw", "drawings", command=(sys.executable, "-c", code))
    assert ended.returncode == 1
    assert ended.stderr.decode() == (
        "aiopubsub: drawing needs an extra: pip install 'aiopubsub-redis[bench]'\n"
    )
    assert not Path("drawings").exists()


def test_help() -> None:
    """Its help says with which status it ends."""
    ended = run("bench", "--help")
    assert ended.returncode == 0
    assert b"Exit status: 0" in ended.stdout
