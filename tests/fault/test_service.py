"""The example of a service, as a process: SIGTERM ends it within its deadline, and the books balance."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import aiopubsub as ps
from aiopubsub.testing import Proxy, Server
from docs.examples.service import JOBS, RESULTS, WORKERS, Job
from tests.fault.books import watching
from tests.fault.conftest import admin
from tests.fault.timing import again_if_late, in_time

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
END_S = 2.0  # what ending an interpreter may take on two shared cores


@pytest.fixture
def anyio_backend() -> str:
    """The service runs in a process and a loop of its own."""
    return "asyncio"


class Service:
    """The example, running."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def until_it_says(self, words: str) -> re.Match[str]:
        """Read its log until these words come."""
        assert self._process.stderr is not None
        while line := (await self._process.stderr.readline()).decode():
            if found := re.search(words, line):
                return found
        raise AssertionError(f"it never said {words!r}")

    async def end(self) -> tuple[int, int, float]:
        """Send SIGTERM; jobs left behind, exit status, and seconds that it took."""
        began_at = asyncio.get_running_loop().time()
        self._process.send_signal(signal.SIGTERM)
        left = await self.until_it_says(r"(\d+) jobs are left behind")
        status = await self._process.wait()
        took_s = asyncio.get_running_loop().time() - began_at
        print(f"exit status {status}, {left[1]} left behind")
        return int(left[1]), status, took_s


@contextlib.asynccontextmanager
async def service(server: Server | Proxy, drain_s: float) -> AsyncIterator[Service]:
    """Run it; it is ended, if it still runs, on leaving."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "docs.examples.service"),
        cwd=ROOT,
        env=os.environ | {"REDIS_URL": server.url, "DRAIN_S": str(drain_s)},
        stderr=PIPE,
    )
    running = Service(process)
    try:
        async with asyncio.timeout(20):
            await running.until_it_says("ready")
            yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@again_if_late
async def test_sigterm_works_off_what_was_published(valkey: Server) -> None:
    """All jobs that were published before SIGTERM are done, once, in time; exit status 0."""
    backlog, under_way, late, job_s, path_s = 60, 30, 30, 0.01, 0.02
    async with (
        Proxy(valkey.port, delay_s=path_s) as proxy,
        service(proxy, drain_s=10) as running,
        ps.Publisher(valkey.url) as pub,
        ps.Subscriber(valkey.url, RESULTS) as results,
        watching(results) as watcher,
    ):
        numbers = iter(range(backlog + under_way + late))
        await pub.publish_many(JOBS, [Job(next(numbers), job_s) for _ in range(backlog)])
        await watcher.until(lambda: len(watcher.events) >= WORKERS)
        await pub.publish_many(JOBS, [Job(next(numbers), job_s) for _ in range(under_way)])
        ending = asyncio.create_task(running.end())
        heard = [number for number in numbers if (await pub.publish(JOBS, Job(number, job_s))).receivers]
        left, status, took_s = await ending
        await pub.publish(RESULTS, "-1")
        await watcher.until(lambda: watcher.last == -1)
    done = sorted(watcher.numbers[:-1])
    assert (left, status) == (0, 0)
    assert done[: backlog + under_way] == list(range(backlog + under_way))
    assert set(done[backlog + under_way :]) <= set(heard)
    assert len(set(done)) == len(done)
    in_time("ended", took_s, (len(done) / WORKERS + 1) * (job_s + 2 * path_s + 0.01) + 2 * END_S)


@again_if_late
async def test_a_service_that_is_too_slow_ends_in_time(valkey: Server) -> None:
    """At the deadline the rest is left behind and counted; what was begun is finished."""
    count, job_s, drain_s = 100, 0.2, 0.5
    async with (
        service(valkey, drain_s) as running,
        ps.Publisher(valkey.url) as pub,
        ps.Subscriber(valkey.url, RESULTS) as results,
        watching(results) as watcher,
    ):
        await pub.publish_many(JOBS, [Job(n, job_s) for n in range(count)])
        await watcher.until(lambda: bool(watcher.events))
        left, status, took_s = await running.end()
        await pub.publish(RESULTS, "-1")
        await watcher.until(lambda: watcher.last == -1)
    assert status == 0
    assert took_s > drain_s
    assert left > 0
    assert sorted(watcher.numbers[:-1]) == list(range(count - left))
    in_time("ended", took_s, drain_s + job_s + END_S)


@again_if_late
async def test_a_service_that_is_idle_ends_at_once(valkey: Server) -> None:
    """Without a job there is nothing to wait for; the server forgets the service."""
    async with service(valkey, drain_s=10) as running:
        left, status, took_s = await running.end()
    assert (left, status) == (0, 0)
    with admin(valkey) as server:
        assert server.pubsub_channels() == []
    in_time("ended", took_s, END_S)


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
@again_if_late
async def test_a_service_without_a_server_ends_in_time(own_valkey: Server, fault: signal.Signals) -> None:
    """A server that does not answer, or is gone, does not keep it beyond its deadline."""
    async with service(own_valkey, drain_s=0.5) as running:
        pid = own_valkey.pid
        os.kill(pid, fault)
        try:
            left, status, took_s = await running.end()
        finally:
            if fault is signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
    assert (left, status) == (0, 0)
    in_time("ended", took_s, 0.5 + 1 + END_S)  # a second for the server to confirm that it has forgotten us
