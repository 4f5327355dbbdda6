"""Fixtures for services that use aiopubsub: `pubsub_client`, `pubsub_url` and `pubsub_server`.

pytest loads this file wherever the package is installed, so it imports nothing but pytest; it stands
beside the package because a module within it would load the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from aiopubsub import Client
    from aiopubsub.testing import Server

__all__ = ["pubsub_client", "pubsub_server", "pubsub_url"]


@pytest.fixture
def pubsub_url(request: pytest.FixtureRequest) -> str:
    """The URL of a `memory://` server of the test's own. Each client of it in the test sees the others."""
    return f"memory://{request.node.nodeid}"


@pytest.fixture
def pubsub_client(pubsub_url: str) -> Client:
    """A client of a `memory://` server of the test's own, to be entered with `async with`.

    It is not open yet, so that it works with every plugin that runs coroutines.
    """
    from aiopubsub import Client  # noqa: PLC0415  # loaded when somebody asks for it

    return Client(pubsub_url)


@pytest.fixture(scope="session")
def _pubsub_server() -> Iterator[Server]:
    """One server for all tests of a run: Valkey of the extra `server`, else the system's Redis."""
    from aiopubsub import MissingExtra  # noqa: PLC0415
    from aiopubsub.testing import Server, find_redis, find_valkey  # noqa: PLC0415

    try:
        executable = find_valkey()
    except (MissingExtra, FileNotFoundError) as no_valkey:
        try:
            executable = find_redis()
        except FileNotFoundError:
            pytest.skip(f"no server: {no_valkey}")
    with Server(executable) as server:
        yield server


@pytest.fixture
def pubsub_server(_pubsub_server: Server) -> Server:
    """A real server, empty, started when the first test asks for it and ended after the last one.

    `pubsub_server.url` is for `Client`. Without a server on this machine the test is skipped. A test
    that kills it starts it again.
    """
    import redis  # noqa: PLC0415

    redis_py: Any = redis  # its own types have holes
    with redis_py.Redis.from_url(_pubsub_server.url) as admin:
        admin.flushall()
    return _pubsub_server
