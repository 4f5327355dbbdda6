"""A client and a publisher for as long as an application runs.

Lives here: opening, closing and finding them. Must not live here: what is done with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

from starlette.applications import Starlette
from starlette.requests import HTTPConnection

import aiopubsub as ps
from aiopubsub.client import Source

__all__ = ["client_of", "lifespan", "publisher_of"]

T = TypeVar("T")


def lifespan(
    source: Source | Callable[[], ps.Client] = "redis://localhost:6379",
) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
    """A client and a publisher while the application runs: its `state.pubsub` and `state.publisher`.

        app = Starlette(routes=[...], lifespan=lifespan("redis://localhost"))
        app = FastAPI(lifespan=lifespan(lambda: ps.Client(URL, heartbeat=2.0)))

    Inside a lifespan of your own: `async with lifespan(URL)(app): ...`.

    Startup fails with the server's reason if there is no connection. At shutdown, on SIGTERM for example,
    the web server first ends what it has open: it closes websockets, each `EventStream` hands over what
    was published until then, handlers finish. Then what was given to the publisher is sent, and the client
    is closed.

    Args:
        source: What `Client` takes, or a function that makes a client: one is made for each run of the
            application, because a client that was closed stays closed.
    """

    @contextlib.asynccontextmanager
    async def open_client(app: Starlette) -> AsyncGenerator[None]:
        client = source() if callable(source) else ps.Client(source)
        async with client, ps.Publisher(client) as publisher:
            app.state.pubsub, app.state.publisher = client, publisher
            yield

    return open_client


def client_of(connection: HTTPConnection) -> ps.Client:
    """The client of the application that answers this request or websocket. In FastAPI, a dependency.

    Raises:
        RuntimeError: The application was not started with `lifespan`.
    """
    return _of_state(connection, "pubsub", ps.Client)


def publisher_of(connection: HTTPConnection) -> ps.Publisher:
    """The publisher of the application that answers this request or websocket. In FastAPI, a dependency.

    Raises:
        RuntimeError: The application was not started with `lifespan`.
    """
    return _of_state(connection, "publisher", ps.Publisher)


def _of_state(connection: HTTPConnection, name: str, kind: type[T]) -> T:
    found = getattr(connection.app.state, name, None)
    if isinstance(found, kind):
        return found
    raise RuntimeError(
        f"the application has no {kind.__name__}: give it `lifespan=lifespan(url)` of "
        f"aiopubsub.contrib.starlette; a mounted application has a `state.{name}` of its own, set that too"
    )
