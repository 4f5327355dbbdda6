"""The places that must all behave alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import redis

from aiopubsub import Client
from aiopubsub.testing import Cluster, Sentinels, Server
from tests.conftest import FINDERS, Place, executable
from tests.roles import all_commands

LEAST = ("redis7", "cluster7")
"""Here the suite runs as a user who may do what the docs say that is needed, and nothing else."""

CLUSTERS = {"cluster9": "valkey9", "cluster7": "redis7"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Behind Sentinel everything runs on one event loop: it is found there in the same way."""
    items[:] = [item for item in items if "[uvloop-sentinel" not in item.name]


@pytest.fixture(scope="session")
def sentinels() -> Iterator[Sentinels]:
    """Servers that nobody fails over: whoever wants that starts some of their own."""
    with Sentinels(executable("redis7"), down_after_s=10) as sentinels:
        yield sentinels


@pytest.fixture(params=["memory", *FINDERS, *CLUSTERS, "sentinel"])
def place(
    request: pytest.FixtureRequest,
    servers: Callable[[str], Server],
    clusters: Callable[[str], Cluster],
) -> Place:
    """The memory, every kind of server and of cluster, and servers behind Sentinel, one after the other."""
    if request.param == "memory":
        return Place("memory", f"memory://{request.node.name}")
    if request.param in CLUSTERS:
        cluster = clusters(CLUSTERS[request.param])
        url = enter(request.param, cluster.url, [node.port for node in cluster.nodes])
        return Place(request.param, url, cluster=cluster)
    if request.param == "sentinel":
        sentinels: Sentinels = request.getfixturevalue("sentinels")
        return Place("sentinel", sentinels.url, sentinels.servers[0])
    return at(request.param, servers(request.param))


@pytest.fixture(params=list(FINDERS))
def real_place(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Place:
    """Every kind of server."""
    return at(request.param, servers(request.param))


def at(name: str, server: Server) -> Place:
    """A server, and how to come in."""
    return Place(name, enter(name, server.url, [server.port]), server)


def enter(name: str, url: str, ports: list[int]) -> str:
    """The URL to come in by: of a user who may do what is needed, where such a one is to be used."""
    if name not in LEAST:
        return url
    commands = all_commands(in_cluster="cluster" in name)
    for port in ports:
        with redis.Redis(port=port) as admin:
            admin.execute_command(
                *("ACL", "SETUSER", "least", "on", ">privilege", "resetkeys", "resetchannels", "-@all"),
                *("&*", "~aiopubsub:*", *commands, "+client|setname"),
            )
    return url.replace("://", "://least:privilege@")


@pytest.fixture
async def client(place: Place) -> AsyncIterator[Client]:
    """A client of the place."""
    async with Client(place.url) as client:
        yield client
