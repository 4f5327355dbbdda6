"""The examples run as users run them, but for their server: a memory, or a process of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

import aiopubsub as ps


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that people begin with."""
    return "asyncio"


@pytest.fixture
async def client(request: pytest.FixtureRequest) -> AsyncIterator[ps.Client]:
    """A client of a memory of the test's own."""
    async with ps.Client(f"memory://{request.node.name}") as client:
        yield client


@pytest.fixture
async def pub(client: ps.Client) -> AsyncIterator[ps.Publisher]:
    """Its publisher."""
    async with ps.Publisher(client) as publisher:
        yield publisher


def give(app: Any, client: ps.Client, publisher: ps.Publisher) -> Any:
    """Start an application, in a way: what its lifespan would do."""
    app.state.pubsub, app.state.publisher = client, publisher
    return app
