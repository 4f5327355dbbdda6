"""The places that must all behave alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import redis

from aiopubsub import Client
from aiopubsub.testing import Cluster, Server
from tests.conftest import FINDERS, Place
from tests.roles import all_commands

LEAST = "redis7"
"""Here the suite runs as a user who may do what the docs say that is needed, and nothing else."""

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
    return at(request.param, servers(request.param))


@pytest.fixture(params=list(FINDERS))
def real_place(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Place:
    """Every kind of server."""
    return at(request.param, servers(request.param))


def at(name: str, server: Server) -> Place:
    """A server, and how to come in."""
    if name != LEAST:
        return Place(name, server.url, server)
    with redis.Redis(port=server.port) as admin:
        admin.execute_command(
            *("ACL", "SETUSER", "least", "on", ">privilege", "resetkeys", "resetchannels", "-@all"),
            *("&*", "~aiopubsub:*", *all_commands(), "+client|setname"),
        )
    return Place(name, server.url.replace("://", "://least:privilege@"), server)


@pytest.fixture
async def client(place: Place) -> AsyncIterator[Client]:
    """A client of the place."""
    async with Client(place.url) as client:
        yield client
