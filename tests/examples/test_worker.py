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


async def sent_by(process: Process, count: int = 10**6) -> list[str]:
    """To whom it says that it has sent mails: so many more, or all until it ends."""
    assert process.stderr is not None
    sent: list[str] = []
    while len(sent) < count and (line := (await process.stderr.readline()).decode()):
        if "sent to " in line:
            sent.append(line.split()[-1])
    return sent


async def test_every_mail_is_sent() -> None:
    """Those from before it ran first of all; killed, it repeats one at most; stopped, none."""
    server, count = start("valkey9"), 60
    try:
        async with asyncio.timeout(60), ps.Publisher(server.url) as pub:
            await pub.publish_many(MAILS, [Mail(str(number), "hello") for number in range(count)])
            await pub.publish(ps.Topic(MAILS.name, history=MAILS.history), b"no mail")
            sent: list[str] = []
            for how in (signal.SIGKILL, signal.SIGTERM):
                process = await begin(server)
                sent += await sent_by(process, count // 3)
                process.send_signal(how)
                sent += await sent_by(process)
                assert await process.wait() == (0 if how is signal.SIGTERM else -how)
            process = await begin(server)
            sent += await sent_by(process, count - len(set(sent)))
            process.send_signal(signal.SIGTERM)
            sent += await sent_by(process)
            assert await process.wait() == 0
    finally:
        server.stop()
    assert set(sent) == {str(number) for number in range(count)}
    assert [int(number) for number in dict.fromkeys(sent)] == list(range(count))
    repeated = [number for number, times in Counter(sent).items() if times > 1]
    assert len(repeated) <= 1
    assert len(sent) <= count + 1
