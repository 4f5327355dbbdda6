"""The benchmark itself: whole runs of small cases, what they leave behind, and what they refuse to tell."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import redis

from aiopubsub.bench import cases as bench_cases
from aiopubsub.bench import run as bench_run
from aiopubsub.bench.cases import (
    CASES,
    FIGURES,
    OURS,
    PEERS,
    UVLOOP,
    Case,
    check_payload,
    choose_cases,
    choose_contestants,
)
from aiopubsub.bench.contestants import Take
from aiopubsub.bench.contestants.floor import Contestant as Floor
from aiopubsub.bench.job import Job
from aiopubsub.bench.measures import receive
from aiopubsub.bench.promises import PROMISES
from aiopubsub.bench.raw import Address
from aiopubsub.bench.results import Outcome, Results, Setting
from aiopubsub.bench.run import Plan, address_of, run
from aiopubsub.testing import Server
from tests.cli.process import DEADLINE_S
from tests.cli.test_demo import children_of
from tests.conftest import start

SMALL = {"channels": 50, "subscribers": 5, "in_flight": 10, "batch": 20, "messages": 50}
"""Sizes that show the same code at work."""

SECONDS = 0.02
EVERYWHERE = [OURS, "redis-py", "floor"]  # what can be installed on every machine

PASSWORD = "s3cret"
RUN = "0123abcd"  # in the names of all channels of a run
CHANNELS = f"aiopubsub-bench-{RUN}:*"
USER = (
    *("bench", "on", f">{PASSWORD}", "+@all", "resetkeys", "resetchannels", f"&{CHANNELS}"),
    f"~aiopubsub:{{{CHANNELS}}}:history",
)
"""May do anything, but only with channels that the run has named, and with keys of their histories."""


def smaller(case: Case) -> Case:
    """The same case with fewer channels, subscribers and so on."""
    job = {name: min(value, SMALL[name]) if name in SMALL else value for name, value in case.job.items()}
    if case.family == "memory":
        job["subscribers"] = 500  # fewer may find room in memory that is there already
    return dataclasses.replace(case, job=job)


def plan(url: str, cases: list[Case], contestants: list[str], rounds: int = 1) -> Plan:
    return Plan(url, cases, contestants, [], rounds, SECONDS, 128)


def measure(plan: Plan) -> tuple[Results, list[tuple[str, int, str]]]:
    """What came out, and what was measured in which order."""
    begun: list[tuple[str, int, str]] = []
    return asyncio.run(
        run(plan, lambda case, *which: begun.append((case.name, *which)), lambda *_: None)
    ), begun


def traces(admin: redis.Redis) -> dict[str, Any]:
    """What a client may leave behind."""
    for _ in range(3):
        admin.ping()  # a connection that was closed is forgotten a turn or two later
    return {
        "clients": len(admin.client_list()),
        "channels": admin.pubsub_channels(),
        "patterns": admin.pubsub_numpat(),
        "keys": admin.dbsize(),
        "settings": admin.config_get("*"),
    }


def processes() -> list[int]:
    """Those of contestants that still run."""
    return [
        pid for pid in children_of(os.getpid()) if b"child.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@dataclasses.dataclass
class Run:
    """A run of everything, and what the server told before and after."""

    plan: Plan
    results: Results
    traces: list[dict[str, Any]]


@pytest.fixture(scope="module")
def whole() -> Iterator[Run]:
    """A small case of each family, as a user who may use no other channels and no keys."""
    chosen = {case.family: case for case in CASES}  # the largest of each
    cases = [smaller(case) for case in CASES if case in chosen.values() or case.name == "publish-1"]
    server = start("valkey9")
    with contextlib.ExitStack() as stack, redis.Redis(port=server.port, decode_responses=True) as admin:
        stack.callback(server.stop)
        admin.execute_command("ACL", "SETUSER", *USER)
        wanted = plan(server.url.replace("//", f"//bench:{PASSWORD}@"), cases, EVERYWHERE)
        before = traces(admin)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench_run, "token_hex", lambda _: RUN)
            results, _ = measure(wanted)
        yield Run(wanted, results, [before, traces(admin)])


def test_every_contestant_is_measured_in_every_case(whole: Run) -> None:
    """Each one that makes sense in a case has its figures, and none has failed."""
    for case in whole.plan.cases:
        outcomes = whole.results.outcomes[case.name]
        assert list(outcomes) == [name for name in EVERYWHERE if name in case.contestants]
        for name, outcome in outcomes.items():
            assert outcome.failure is None, f"{case.name}, {name}: {outcome.failure}"
            (figures,) = outcome.rounds
            assert {case.headline, "peak_bytes"} <= set(figures)
            assert all(math.isfinite(value) and value > 0 for value in figures.values()), figures


def test_nothing_is_left_behind(whole: Run) -> None:
    """Connections, subscriptions, keys and settings of the server are as before."""
    before, after = whole.traces
    assert after == before
    assert before["keys"] == 0


def test_processes_end(whole: Run) -> None:
    """No process outlives the run."""
    assert not processes()


def test_json_tells_all_and_no_secrets(whole: Run, tmp_path: Path) -> None:
    """Medians and ratios follow from the rounds, it can be read back, and nobody is named in it."""
    text = whole.results.to_json()
    told = json.loads(text)
    assert [case["name"] for case in told["cases"]] == [case.name for case in whole.plan.cases]
    for case in told["cases"]:
        cost = FIGURES[case["headline"]].cost
        ours = case["contestants"][OURS]["rounds"]
        for one in case["contestants"].values():
            for name, value in one["medians"].items():
                assert value == median(figures[name] for figures in one["rounds"])
            pairs = zip(one["rounds"], ours, strict=True)
            ratios = [cost(its[case["headline"]]) / cost(mine[case["headline"]]) for its, mine in pairs]
            assert one["cost_to_ours"] == pytest.approx(median(ratios))
    assert {"cpu", "cores", "system", "python"} == set(told["machine"])
    assert told["server"].startswith("Valkey 9")
    assert {"redis", "hiredis"} <= set(told["libraries"])
    for secret in (PASSWORD, socket.gethostname(), str(Path.home()), str(Path.cwd()), "127.0.0.1"):
        assert secret not in text
    path = tmp_path / "results.json"
    path.write_text(text)
    assert Results.from_json(path).to_json() == text


def test_uvloop_is_a_contestant(valkey: Server) -> None:
    """The same library on the other event loop, measured by itself."""
    results, _ = measure(plan(valkey.url, choose_cases(["receive-128"]), [UVLOOP]))
    assert results.median("receive-128", UVLOOP, "cpu_us_per_message")


def test_a_unix_socket_will_do(valkey: Server) -> None:
    """A URL of redis-py's is understood by all, whatever it leads through."""
    results, _ = measure(plan(valkey.socket_url, [smaller(*choose_cases(["channels-100"]))], EVERYWHERE))
    assert [one.failure for one in results.outcomes["channels-100"].values()] == [None] * 3


@pytest.mark.parametrize("more", [1, -1], ids=["one-is-lost", "one-comes-twice"])
def test_a_wrong_stream_is_no_figure(valkey: Server, more: int) -> None:
    """A contestant that loses a message, or hands one over twice, fails instead of being fast."""

    class Careless(Floor):
        async def subscribe(self, channels: Any, *, is_pattern: bool) -> Take:
            take = await super().subscribe(channels, is_pattern=is_pattern)
            taken = 0

            async def take_carelessly(messages: int) -> bytes:
                nonlocal taken
                taken += 1
                return await take(messages + (more if taken == 2 else 0))

            return take_carelessly

    job = Job("receive", valkey.url, address_of(valkey.url), "aiopubsub-bench-careless:", seconds=10)
    careless = Careless(job)
    with pytest.raises(RuntimeError, match="lost or came twice"):
        asyncio.run(receive.measure(careless, job))
    assert careless._connection is not None
    careless._connection.close()


def test_who_fails_has_no_figure(valkey: Server) -> None:
    """A contestant that fails is told with the reason, left out of later rounds, compared with nobody."""
    case = dataclasses.replace(*choose_cases(["receive-128"]), contestants=(OURS, "nobody"))
    results, begun = measure(plan(valkey.url, [case], [OURS, "nobody"], rounds=2))
    assert [name for _, _, name in begun] == [OURS, "nobody", OURS]
    assert "No module named" in str(results.outcomes["receive-128"]["nobody"].failure)
    (told,) = json.loads(results.to_json())["cases"]
    assert told["contestants"]["nobody"]["medians"] == {}
    assert told["contestants"]["nobody"]["cost_to_ours"] is None
    assert told["contestants"][OURS]["cost_to_ours"] == 1


def test_contestants_take_turns(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each round of a family everyone is measured once in each case, before the next round begins."""

    async def report(name: str, job: Job) -> dict[str, Any]:
        return {"figures": {"messages_per_s": 1.0}}

    monkeypatch.setattr(bench_run, "_measure", report)
    _, begun = measure(
        plan(valkey.url, choose_cases(["many", "fan-out-1", "fan-out-10"]), [OURS, UVLOOP], 2)
    )
    assert begun == [
        *(
            ("fan-out-1", 1, OURS),
            ("fan-out-1", 1, UVLOOP),
            ("fan-out-10", 1, OURS),
            ("fan-out-10", 1, UVLOOP),
        ),
        *(
            ("fan-out-1", 2, OURS),
            ("fan-out-1", 2, UVLOOP),
            ("fan-out-10", 2, OURS),
            ("fan-out-10", 2, UVLOOP),
        ),
        *(("many", 1, OURS), ("many", 1, UVLOOP), ("many", 2, OURS), ("many", 2, UVLOOP)),
    ]


def test_who_is_stuck_is_ended(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contestant that is not done in time has failed, and its process is gone."""
    monkeypatch.setattr(bench_run, "_MARGIN_S", 0.0)
    results, _ = measure(plan(valkey.url, choose_cases(["receive-128"]), [OURS]))
    assert "messages were lost, or it is stuck" in str(results.outcomes["receive-128"][OURS].failure)
    assert not processes()


def test_a_contestant_ends_with_its_parent(valkey: Server) -> None:
    """A process whose standard input is closed ends at once, whatever it is doing."""
    job = Job("receive", valkey.url, address_of(valkey.url), "aiopubsub-bench-left:", seconds=1000)
    child = Path(bench_run.__file__).with_name("child.py")
    with subprocess.Popen([sys.executable, "-P", child, OURS], stdin=subprocess.PIPE) as process:
        try:
            process.communicate(job.to_line(), timeout=DEADLINE_S)
        finally:
            process.kill()
        assert process.returncode == 1


def test_ratios_compare_round_by_round() -> None:
    """What slowed down a round slowed down both; a ratio of two medians would take it for a difference."""
    setting = Setting("2026-01-01", {}, "Redis 7", {}, 3, 1.0, 128, [])
    ours, theirs = (
        Outcome([{"messages_per_s": rate} for rate in rates])
        for rates in ((6.0, 60.0, 10.0), (2.0, 20.0, 20.0))
    )
    results = Results(setting, {"publish-100": {OURS: ours, "redis-py": theirs}})
    assert results.ratio("publish-100", "redis-py") == pytest.approx(3)
    assert results.ratio("publish-100", OURS, to="redis-py") == pytest.approx(1 / 3)
    assert results.ratio("publish-100", "glide") is None


def test_growth_counts_from_the_smallest() -> None:
    """What ten subscribers cost is told in relation to one, and not at all if one was not measured."""
    setting = Setting("2026-01-01", {}, "Redis 7", {}, 1, 1.0, 128, [])
    outcomes = {
        f"fan-out-{size}": {OURS: Outcome([{"cpu_us_per_message": cost}])}
        for size, cost in ((1, 2.0), (10, 6.5))
    }
    assert Results(setting, outcomes).extra_deliveries(OURS) == {10: pytest.approx(0.25)}
    del outcomes["fan-out-1"]
    assert Results(setting, outcomes).extra_deliveries(OURS) == {}


def test_every_promise_reads_what_a_whole_run_measures() -> None:
    """Each is about a case, a contestant and a figure that exist; none is kept by not being measured."""
    setting = Setting("2026-01-01", {}, "Redis 7", {}, 1, 1.0, 128, [])
    everything = {
        case.name: {name: Outcome([dict.fromkeys(FIGURES, 1.0)]) for name in case.contestants}
        for case in choose_cases(None, is_quick=True)
    }
    for promise in PROMISES:
        assert promise.got(Results(setting, everything)) is not None, promise.text
        assert promise.holds(Results(setting)) is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: choose_contestants(["redis-py", "aredis"]),
            "no peer is called 'aredis'; there are redis-py,",
        ),
        (
            lambda: choose_cases(["latency", "speed"]),
            "no case is called 'speed'; there are receive, pattern,",
        ),
        (
            lambda: check_payload(7, choose_cases(["latency"])),
            "latency needs a payload of at least 8 bytes",
        ),
        (lambda: check_payload(2**20 + 1, []), "at most 1048576 bytes"),
    ],
)
def test_bad_choices(call: Callable[[], object], words: str) -> None:
    """What does not exist, or cannot work, is refused before anything is measured."""
    with pytest.raises(ValueError, match=words):
        call()


def test_choices() -> None:
    """Families and single cases may be named, in any order; we take part whoever else does."""
    assert [case.name for case in choose_cases(["latency", "receive-16", "pattern"])] == [
        *("receive-16", "pattern", "latency")
    ]
    assert choose_cases(None) == list(CASES)
    check_payload(8, CASES)
    assert choose_contestants(["floor", "redis-py"])[0] == [OURS, UVLOOP, "redis-py", "floor"]


def test_a_missing_peer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is left out, and said so."""
    monkeypatch.setattr(bench_cases, "find_spec", lambda name: None if name == "coredis" else name)
    contestants, missing = choose_contestants(None)
    assert missing == ["coredis"]
    assert contestants == [OURS, UVLOOP, *(peer for peer in PEERS if peer != "coredis")]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", Address("h")),
        ("redis://u:p%40@h:1/3", Address("h", 1, username="u", password="p@")),
        ("unix:///tmp/s.sock?db=1", Address(path="/tmp/s.sock")),
        ("rediss://h?ssl_cert_reqs=none", Address("h", tls={"ssl_cert_reqs": "none"})),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    """A URL is taken apart by redis-py's rules."""
    assert address_of(url) == address


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 0, "cases": []}', '{"format": 1, "cases": []}']
)
def test_a_file_that_is_no_run(tmp_path: Path, text: str) -> None:
    """What `--json` did not write is refused with the file's name."""
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no results of a benchmark"):
        Results.from_json(path)
