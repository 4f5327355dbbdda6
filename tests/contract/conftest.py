"""The places that must all behave alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from aiopubsub import Client
from aiopubsub.testing import Server
from tests.conftest import FINDERS, Place


@pytest.fixture(params=["memory", *FINDERS])
def place(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Place:
    """The memory and every kind of server, one after the other."""
    if request.param == "memory":
        return Place("memory", f"memory://{request.node.name}")
    server = servers(request.param)
    return Place(request.param, server.url, server)


@pytest.fixture(params=list(FINDERS))
def real_place(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Place:
    """Every kind of server."""
    server = servers(request.param)
    return Place(request.param, server.url, server)


@pytest.fixture
async def client(place: Place) -> AsyncIterator[Client]:
    """A client of the place."""
    async with Client(place.url) as client:
        yield client
