"""The places that must all behave alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from aiopubsub import Client
from aiopubsub.testing import Sentinels, Server
from tests.conftest import FINDERS, Place, executable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Behind Sentinel everything runs on one event loop: it is found there in the same way."""
    items[:] = [item for item in items if "[uvloop-sentinel" not in item.name]


@pytest.fixture(scope="session")
def sentinels() -> Iterator[Sentinels]:
    """Servers that nobody fails over: whoever wants that starts some of their own."""
    with Sentinels(executable("redis7"), down_after_s=10) as sentinels:
        yield sentinels


@pytest.fixture(params=["memory", *FINDERS, "sentinel"])
def place(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Place:
    """The memory, every kind of server, and servers behind Sentinel, one after the other."""
    if request.param == "memory":
        return Place("memory", f"memory://{request.node.name}")
    if request.param == "sentinel":
        sentinels: Sentinels = request.getfixturevalue("sentinels")
        return Place("sentinel", sentinels.url, sentinels.servers[0])
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
