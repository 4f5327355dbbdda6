"""What the fault tests share: servers of their own, which may be killed.

`AIOPUBSUB_LONG=1` runs the full figures (outages of 15 to 30 s, 100 000 cancels, …), which take minutes;
without it each test takes a second or so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import redis

from aiopubsub.testing import Server
from tests.conftest import start

LONG = os.environ.get("AIOPUBSUB_LONG") == "1"


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


def admin(server: Server) -> redis.Redis:
    """A connection of redis-py, to look at the server from outside."""
    return redis.Redis(port=server.port, decode_responses=True, socket_timeout=10)
