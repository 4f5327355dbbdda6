"""The places that must all behave alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from aiopubsub import Client
from aiopubsub.testing import Cluster, Server
from tests.conftest import FINDERS, Place

CLUSTERS = {"cluster9": "valkey9", "cluster7": "redis7"}


@pytest.fixture(params=["memory", *FINDERS, *CLUSTERS])
def place(
    request: pytest.FixtureRequest,
    servers: Callable[[str], Server],
    clusters: Callable[[str], Cluster],
) -> Place:
    """The memory, every kind of server and every kind of cluster, one after the other."""
    if request.param == "memory":
        return Place("memory", f"memory://{request.node.name}")
    if request.param in CLUSTERS:
        cluster = clusters(CLUSTERS[request.param])
        return Place(request.param, cluster.url, cluster=cluster)
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
