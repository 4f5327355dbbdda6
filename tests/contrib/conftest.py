"""What the tests of the helpers share: a client, and a look at what was left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import aiopubsub as ps
from aiopubsub.testing import Server

WATCHES = "_shutdown_watcher"  # of sse-starlette: one for each event loop, for as long as that runs


@pytest.fixture
async def client(request: pytest.FixtureRequest) -> AsyncIterator[ps.Client]:
    """A client of a memory of the test's own."""
    async with ps.Client(f"memory://{request.node.name}") as client:
        yield client


@pytest.fixture
async def on_valkey(valkey: Server) -> AsyncIterator[ps.Client]:
    """A client of a real server."""
    async with ps.Client(valkey.url) as client:
        yield client


def running() -> set[str]:
    """The names of the tasks that run, apart from what is there before and after."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return {task.get_name() for task in tasks if WATCHES not in repr(task.get_coro())}
