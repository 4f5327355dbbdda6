"""The helpers under uvicorn, as a process: SIGTERM ends it whole and in time."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import aiopubsub as ps
from aiopubsub.testing import Server
from tests.conftest import start
from tests.contrib.streams import KEPT, LIVE
from tests.contrib.workers import Worker
from tests.fault.conftest import admin

pytestmark = pytest.mark.anyio

APP = "tests.contrib.streams:app"
COUNT = 2_000
TEXT = "x" * 2_000  # so that not all of them fit into the sockets' buffers


@pytest.fixture
def anyio_backend() -> str:
    """The application has an event loop of its own."""
    return "asyncio"


@contextlib.asynccontextmanager
async def stream(client: httpx2.AsyncClient, url: str) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of an event stream, after its first block: it is subscribed then.

    A response that ends without its last chunk is an error of httpx2.
    """
    async with client.stream("GET", url) as response:
        assert response.status_code == 200
        lines = response.aiter_lines()
        while await anext(lines):
            pass
        yield lines


async def numbers_of(lines: AsyncIterator[str]) -> list[int]:
    """What it holds, to its end."""
    return [int(line.split()[1]) async for line in lines if line.startswith("data: ")]


async def test_sigterm_hands_over_what_was_published(valkey: Server) -> None:
    """Browsers that have not read yet get all that was published before; websockets close with 1012."""
    async with (
        Worker(APP, valkey.url) as worker,
        httpx2.AsyncClient(timeout=20) as client,
        stream(client, f"{worker.url}/live") as live,
        stream(client, f"{worker.url}/kept") as kept,
        connect(f"ws://127.0.0.1:{worker.port}/talk") as websocket,
        ps.Publisher(valkey.url) as pub,
    ):
        await pub.publish(LIVE, "0")
        assert await websocket.recv() == "0"
        for topic in (LIVE, KEPT):
            await pub.publish_many(topic, [f"{number} {TEXT}" for number in range(1, COUNT)])
        ending = asyncio.create_task(worker.end(signal.SIGTERM))
        with contextlib.suppress(ConnectionClosed):
            while True:
                await websocket.recv()
        assert websocket.protocol.close_code == 1012
        got_live, got_kept = await asyncio.gather(numbers_of(live), numbers_of(kept))
        assert got_live == list(range(COUNT))
        assert got_kept == list(range(1, COUNT))
        await ending
        assert "ERROR" not in worker.log
        assert "Finished server process" in worker.log
        with admin(valkey) as server:
            assert server.pubsub_channels() == []


@pytest.mark.parametrize("fault", ["a server that is gone", "a browser that does not read"])
async def test_sigterm_ends_in_time(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain that cannot be done takes its second, and the process ends in its own way."""
    monkeypatch.setenv("DRAIN_S", "1")
    server = start("valkey9")
    try:
        async with (
            Worker(APP, server.url, "--timeout-graceful-shutdown", "3") as worker,
            httpx2.AsyncClient(timeout=20) as client,
            stream(client, f"{worker.url}/live"),
            stream(client, f"{worker.url}/kept"),
            ps.Publisher(server.url) as pub,
        ):
            if fault == "a server that is gone":
                server.kill()
            else:
                await pub.publish_many(LIVE, [TEXT] * 5 * COUNT)
            began_at = asyncio.get_running_loop().time()
            await worker.end(signal.SIGTERM)
            assert asyncio.get_running_loop().time() - began_at < 15
            assert "Finished server process" in worker.log
            assert "Traceback" not in worker.log
            if fault == "a server that is gone":
                assert "ERROR" not in worker.log
    finally:
        server.stop()
