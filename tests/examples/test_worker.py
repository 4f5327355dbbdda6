"""The worker, as a process that is killed and told to stop in the middle of its mails."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter

import pytest

import aiopubsub as ps
from aiopubsub.testing import Server
from docs.examples.worker import MAILS, Mail
from tests.conftest import start
from tests.contrib.workers import ROOT

pytestmark = pytest.mark.anyio


async def begin(server: Server) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "docs.examples.worker"),
        cwd=ROOT,
        env=os.environ | {"REDIS_URL": server.url},
        stderr=PIPE,
    )


async def said_by(process: Process, until: str = "") -> list[int]:
    """The numbers of the mails of which it speaks, until it says this, or to its end."""
    assert process.stderr is not None
    numbers: list[int] = []
    while line := (await process.stderr.readline()).decode():
        if " to " in line:
            numbers.append(int(line.split()[-1]))
        if until and line.endswith(f"{until}\n"):
            break
    return numbers


async def run(server: Server, until: str, how: signal.Signals) -> tuple[list[int], list[int], int]:
    """Run it until it says this, then send it a signal; what it began and sent, and its status."""
    process = await begin(server)
    numbers = await said_by(process, until)
    process.send_signal(how)
    times = Counter(numbers + await said_by(process))
    return list(times), [number for number in times if times[number] == 2], await process.wait()


async def test_every_mail_is_sent() -> None:
    """Those from before it ran first. Killed, it repeats one at most; told to stop, it finishes one."""
    server, count = start("valkey9"), 40
    try:
        async with asyncio.timeout(60), ps.Publisher(server.url) as pub:
            await pub.publish_many(MAILS, [Mail(str(number), "hello") for number in range(count)])
            await pub.publish(ps.Topic(MAILS.name, history=MAILS.history), b"no mail")
            begun, sent, status = await run(server, "sending to 10", signal.SIGTERM)
            assert status == 0
            assert begun == sent == list(range(11))
            begun, more, status = await run(server, "sending to 20", signal.SIGKILL)
            assert status == -signal.SIGKILL
            assert begun == list(range(11, begun[-1] + 1))
            begun, rest, status = await run(server, "sent to 39", signal.SIGTERM)
            assert status == 0
            assert begun == rest == list(range(begun[0], count))
            assert begun[0] in (more[-1], more[-1] + 1)  # repeated, or not
    finally:
        server.stop()
