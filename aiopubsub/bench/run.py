"""A run: every contestant in every case, in turn, round after round, each in a process of its own.

Lives here: the order of measurements, and the processes. Must not live here: what they do (`worker`),
words (`aiopubsub.cli`). The command line calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

import redis.asyncio.connection

from .cases import Case
from .histories import forget
from .job import Job
from .machine import describe_machine, describe_server, library_versions
from .raw import Address, RawConnection
from .results import Results, Setting

__all__ = ["Plan", "address_of", "run"]

_MARGIN_S = 90.0  # to start, connect and subscribe, on a machine that has much else to do
_STORED_PER_S = 10_000  # at least, to store and to read messages
_CHILD = str(Path(__file__).with_name("child.py"))


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        url: Where the server is.
        cases: In their order.
        contestants: Who takes part where it makes sense.
        missing: Who would, if it were installed.
        rounds: How often.
        seconds: How long each time.
        payload_bytes: In cases that do not say otherwise.
    """

    url: str
    cases: list[Case]
    contestants: list[str]
    missing: list[str]
    rounds: int
    seconds: float
    payload_bytes: int

    def contestants_of(self, case: Case) -> list[str]:
        """Who takes part in a case."""
        return [name for name in self.contestants if name in case.contestants]

    def families(self) -> Iterable[list[Case]]:
        """Cases that are measured in turn, because they are compared with each other."""
        for family in dict.fromkeys(case.family for case in self.cases):
            yield [case for case in self.cases if case.family == family]


async def run(
    plan: Plan,
    on_begin: Callable[[Case, int, str], None],
    on_end: Callable[[Results, list[Case]], None],
) -> Results:
    """Measure everything. A contestant that fails once in a case is out of it.

    Args:
        plan: What to run.
        on_begin: Told of each measurement: case, round from 1, contestant.
        on_end: Told of each family that is complete.

    Raises:
        OSError: There is no connection.
    """
    address = address_of(plan.url)
    results = Results(
        Setting(
            date=dt.datetime.now(dt.UTC).date().isoformat(),
            machine=describe_machine(),
            server=await asyncio.to_thread(describe_server, address),
            libraries=library_versions(),
            rounds=plan.rounds,
            seconds=plan.seconds,
            payload_bytes=plan.payload_bytes,
            missing=plan.missing,
        )
    )
    prefix = f"aiopubsub-bench-{token_hex(4)}:"
    for family in plan.families():
        for number in range(1, plan.rounds + 1):
            for case in family:
                fields: dict[str, Any] = {"payload_bytes": plan.payload_bytes, **case.job}
                job = Job(url=plan.url, address=address, prefix=prefix, seconds=plan.seconds, **fields)
                for name in plan.contestants_of(case):
                    outcome = results.outcome(case.name, name)
                    if outcome.failure is not None:
                        continue
                    on_begin(case, number, name)
                    report = await _measure(name, job)
                    if job.has_history or job.messages:
                        await asyncio.to_thread(_forget, job)
                    outcome.failure = report.get("failure")
                    if outcome.failure is None:
                        outcome.rounds.append(report["figures"])
        on_end(results, family)
    return results


def address_of(url: str) -> Address:
    """A URL taken apart, by redis-py's rules.

    Raises:
        ValueError: It cannot be read.
    """
    told: dict[str, Any] = dict(redis.asyncio.connection.parse_url(url))
    settings = {name: str(value) for name, value in told.items() if name.startswith("ssl_")}
    return Address(
        host=told.get("host", "localhost"),
        port=told.get("port", 6379),
        path=told.get("path"),
        username=told.get("username"),
        password=told.get("password"),
        tls=settings if url.startswith("rediss://") else None,
    )


def _forget(job: Job) -> None:
    """Leave no history behind."""
    connection = RawConnection(job.address)
    for channel in job.channel_names():
        forget(connection, channel)
    connection.close()


async def _measure(contestant: str, job: Job) -> dict[str, Any]:
    """What a process reports; or why it does not."""
    limit_s = 2 * job.seconds + _MARGIN_S + job.messages / _STORED_PER_S
    async with _process(contestant, job) as (process, said, warned):
        try:
            async with asyncio.timeout(limit_s):
                report: dict[str, Any] = {}
                while not report and (line := await said.readline()):
                    report = _report_of(line)
                status = await process.wait()
        except TimeoutError:
            return {"failure": f"not done within {limit_s:g} s: messages were lost, or it is stuck"}
        if report:
            return report
        last_words = (await warned).decode(errors="replace").strip().split("\n")[-1]
        return {"failure": f"its process ended with status {status}: {last_words}"}


def _report_of(line: bytes) -> dict[str, Any]:
    """What a line says; nothing if it is a library's own, such as a log."""
    try:
        report = json.loads(line)
    except ValueError:
        return {}
    return cast("dict[str, Any]", report) if isinstance(report, dict) else {}


@contextlib.asynccontextmanager
async def _process(
    contestant: str, job: Job
) -> AsyncGenerator[tuple[Process, asyncio.StreamReader, asyncio.Task[bytes]]]:
    """A process that has its job, what it says, and what it warns of. It has ended when the context has."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", _CHILD, contestant),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,  # Ctrl-C is for us; we end our processes ourselves
    )
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise RuntimeError("a process that was started with pipes has none")
    warned = asyncio.create_task(process.stderr.read(), name="bench: warnings")
    try:
        process.stdin.write(job.to_line())
        yield process, process.stdout, warned
    finally:
        process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await warned
