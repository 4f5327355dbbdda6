"""A burst that nobody takes: memory stays within the bound, and the books balance."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from asyncio.subprocess import PIPE
from typing import Any, Self

import pytest

import aiopubsub as ps
from aiopubsub.testing import Server
from tests.conftest import LONG
from tests.fault.conftest import admin

pytestmark = pytest.mark.anyio

MB = 1_000_000
BURST_MB = 200 if LONG else 30
BUFFER_BYTES = 64 * MB if LONG else 8 * MB
ASLEEP_S = 20.0 if LONG else 0.5
MESSAGE_BYTES = 1024
COUNT = BURST_MB * MB // MESSAGE_BYTES


@pytest.fixture
def anyio_backend() -> str:
    """The subscriber runs in a process and a loop of its own."""
    return "asyncio"


async def burst(
    server: Server, overflow: str, sleeper: str, *, asleep_s: float = ASLEEP_S, heartbeat_s: float = 60
) -> dict[str, Any]:
    """Publish while the subscriber is asleep; its books, and by how many bytes it has grown."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fault.burst", server.url, overflow, sleeper),
        *(str(BUFFER_BYTES), str(heartbeat_s)),
        stdin=PIPE,
        stdout=PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        payload = b"x" * MESSAGE_BYTES
        async with ps.Publisher(server.url, timeout=60, max_in_flight=1000) as pub:
            await pub.publish_many("burst", (payload for _ in range(COUNT)))
            await asyncio.sleep(asleep_s)  # the fault itself
            process.stdin.write(b"\n")
            async with asyncio.timeout(60):
                answer = asyncio.create_task(process.stdout.readline())
                ends = 0
                while not answer.done():  # one that was hung up on must be back to hear the end
                    await pub.publish("burst", b"end %d" % ends)
                    ends += 1
                    await asyncio.wait([answer], timeout=0.05)
                books: dict[str, Any] = json.loads(answer.result())
                await process.wait()
                print(f"{COUNT} published: {books}")
                return books | {"ends published": ends}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("sleeper", ["consumer", "loop"])
@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "fail", "block"])
async def test_books_and_memory_of_a_burst(own_valkey: Server, overflow: str, sleeper: str) -> None:
    """Where the server does not hang up, delivered plus reported is what was published, in bounds."""
    with admin(own_valkey) as server:
        server.config_set("client-output-buffer-limit", "pubsub 0 0 0")
    books = await burst(own_valkey, overflow, sleeper)
    assert books["grown"] <= BUFFER_BYTES + 10 * MB
    assert books["reconnected"] == 0
    assert books["slow"] == 0 or overflow == "fail"
    reported = books["overflow"] + books["slow"]
    if sleeper == "consumer":
        assert (reported > 0) == (overflow != "block")
    if books["slow"]:  # it ended before it heard the end, and with a blocked loop before all had come
        least = COUNT if sleeper == "consumer" else 0
        assert least <= books["delivered"] + reported <= COUNT + books["ends published"]
    else:
        assert books["delivered"] + reported == COUNT + books["ends"]


async def test_a_server_that_hangs_up_on_a_burst_is_a_gap(own_valkey: Server) -> None:
    """A blocked event loop is hung up on at the server's limit: the gap says so, and it goes on."""
    with admin(own_valkey) as server:
        server.config_set("client-output-buffer-limit", "pubsub 8mb 0 0")
    books = await burst(own_valkey, "drop_oldest", "loop", asleep_s=max(2.0, ASLEEP_S), heartbeat_s=0.5)
    assert books["grown"] <= BUFFER_BYTES + 10 * MB
    assert books["reconnected"] == 1
    assert books["delivered"] + books["overflow"] < COUNT
    assert "client-output-buffer-limit pubsub" in books["causes"][-1]


class Logged(logging.Handler):
    """Waits for a warning of the library."""

    def __init__(self, words: str) -> None:
        super().__init__(logging.WARNING)
        self._words = words
        self.said: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage() and not self.said.done():
            self.said.set_result(record.getMessage())

    def __enter__(self) -> Self:
        logging.getLogger("aiopubsub").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("aiopubsub").removeHandler(self)


async def test_a_hang_up_is_seen_coming(own_valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A consumer that holds its connection up is warned of, and the gap afterwards names the limit."""
    count, payload = 20_000, b"x" * MESSAGE_BYTES  # more than the sockets' own buffers hold
    with admin(own_valkey) as server:
        server.config_set("client-output-buffer-limit", "pubsub 0 0 0")
        async with (
            ps.Client(own_valkey.url, heartbeat=0.2) as client,
            ps.Subscriber(client, "c", overflow="block", buffer=10) as sub,
            ps.Publisher(own_valkey.url, timeout=60) as pub,
            asyncio.timeout(60),
        ):
            with Logged("listens alone: consumers are too slow on 'c'") as log:
                await pub.publish_many("c", [payload] * count)
                assert "client-output-buffer-limit pubsub" in await log.said
            await asyncio.sleep(1)  # so far behind that a hang-up is no accident
            server.config_set("client-output-buffer-limit", "pubsub 1mb 0 0")
            while server.pubsub_numsub("c") != [("c", 0)]:
                await pub.publish("c", b"")  # the server looks when it has something to say
            taken = 0
            async for event in sub.events():
                if isinstance(event, ps.Gap):
                    break
                taken += 1
            assert event.reason is ps.GapReason.RECONNECTED
            assert "client-output-buffer-limit pubsub" in event.cause
            assert 0 < taken < count
            assert caplog.text.count("consumers are too slow") == 1
            await pub.publish("c", b"the end")
            while (await anext(sub)).data != b"the end":
                pass
