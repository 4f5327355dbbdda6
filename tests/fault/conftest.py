"""What the fault tests share: servers of their own, which may be killed.

`AIOPUBSUB_LONG=1` runs the full figures (outages of 15 to 30 s, 100 000 cancels, …), which take minutes;
without it each test takes a second or so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest
import redis

from aiopubsub.testing import Cluster, Server
from tests.conftest import LONG, one_of_each, start, start_cluster


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked as `long` are part of the full figures only."""
    left_out = [] if LONG else [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(params=["valkey9", "redis7"])
def both_kinds(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of the test's own, of each kind."""
    server = start(request.param)
    yield server
    server.stop()


@pytest.fixture
def own_valkey() -> Iterator[Server]:
    """A Valkey of the test's own."""
    server = start("valkey9")
    yield server
    server.stop()


@pytest.fixture(params=["redis7", "valkey9"])
async def cluster(
    request: pytest.FixtureRequest, clusters: Callable[[str], Cluster]
) -> AsyncIterator[Cluster]:
    """The cluster of each kind that all tests share."""
    shared = await asyncio.to_thread(clusters, request.param)
    yield shared
    await shared.heal()


@pytest.fixture(scope="session")
def breakables() -> Iterator[Callable[[str], Cluster]]:
    """Clusters of each kind that can be divided, one for all tests that do worse than to move slots."""
    with one_of_each(partial(start_cluster, partitions=True)) as get:
        yield get


@pytest.fixture(params=["redis7", "valkey9"])
async def breakable(
    request: pytest.FixtureRequest, breakables: Callable[[str], Cluster]
) -> AsyncIterator[Cluster]:
    """A cluster whose nodes may fail, come and go, and be cut off from each other."""
    cluster = await asyncio.to_thread(breakables, request.param)
    yield cluster
    await cluster.heal()


def admin(server: Server) -> redis.Redis:
    """A connection of redis-py, to look at the server from outside."""
    return redis.Redis(port=server.port, decode_responses=True, socket_timeout=10)
