"""The client of an application: opened, found and closed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import aiopubsub as ps
from aiopubsub.contrib.starlette import client_of, lifespan, publisher_of
from tests.contrib.browser import Visit

pytestmark = pytest.mark.anyio


async def page(request: Request) -> PlainTextResponse:
    """Publishes by the application's publisher, through the application's client."""
    async with ps.Subscriber(client_of(request), "c"):
        receipt = await publisher_of(request).publish("c", b"x")
    return PlainTextResponse(str(receipt.receivers))


ROUTES = [Route("/", page)]


async def test_an_application_has_a_client() -> None:
    """While it runs; each run has one of its own, closed at the end."""
    app = Starlette(routes=ROUTES)
    run = lifespan("memory://application")
    clients = []
    for _ in range(2):
        async with run(app):
            clients.append(app.state.pubsub)
            async with Visit(app) as visit:
                assert (await visit.answer())[0] == 200
                assert await visit.body() == "1"
        with pytest.raises(ps.Closed):
            await ps.Publisher(clients[-1]).publish("c", b"x")
    assert clients[0] is not clients[1]


async def test_a_client_may_be_made_as_one_likes() -> None:
    """A function that makes it is called for each run."""
    made = []

    def make() -> ps.Client:
        made.append(ps.Client("memory://", heartbeat=2.0))
        return made[-1]

    app = Starlette(routes=ROUTES)
    async with lifespan(make)(app):
        assert app.state.pubsub is made[0]


async def test_fastapi_takes_them_as_dependencies() -> None:
    """By their types, without a word in the schema."""
    app = FastAPI(lifespan=lifespan("memory://fastapi"))

    @app.get("/")
    async def publish(
        publisher: Annotated[ps.Publisher, Depends(publisher_of)],
        client: Annotated[ps.Client, Depends(client_of)],
    ) -> int:
        async with ps.Subscriber(client, "c"):
            return (await publisher.publish("c", b"x")).receivers

    async with app.router.lifespan_context(app), Visit(app) as visit:
        assert (await visit.answer())[0] == 200
        assert await visit.body() == "1"
    assert "parameters" not in app.openapi()["paths"]["/"]["get"]


async def test_what_was_given_to_the_publisher_is_sent() -> None:
    """At shutdown nothing that waits is thrown away."""
    app = Starlette()
    async with ps.Client("memory://given") as other, ps.Subscriber(other, "c") as sub:
        async with lifespan("memory://given")(app):
            given = [
                asyncio.create_task(app.state.publisher.publish("c", b"%d" % number))
                for number in range(1000)
            ]
            await asyncio.sleep(0)
        for number, publish in enumerate(given):
            assert (await publish).receivers == 1
            assert (await anext(sub)).data == b"%d" % number


async def test_startup_fails_with_the_reason() -> None:
    """No connection, no application."""
    with pytest.raises(ps.ConnectFailed, match="cannot connect to localhost:1"):
        async with lifespan(lambda: ps.Client("redis://localhost:1", connect_timeout=0.2))(Starlette()):
            pass


@pytest.mark.parametrize(("find", "what"), [(client_of, "Client"), (publisher_of, "Publisher")])
def test_without_a_lifespan_it_is_a_sentence(find: object, what: str) -> None:
    """What is missing, and what to do."""
    request = Request({"type": "http", "app": Starlette(), "headers": []})
    with pytest.raises(RuntimeError, match=f"no {what}: give it `lifespan=lifespan"):
        find(request)  # type: ignore[operator]


@pytest.mark.parametrize("package", ["starlette", "sse_starlette"])
def test_without_the_extra_it_is_a_sentence(package: str) -> None:
    """Importing says what to install; another module that is missing is not called so."""
    code = f"import sys; sys.modules[{package!r}] = None; import aiopubsub.contrib.starlette"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    said = "aiopubsub.contrib.starlette needs an extra: pip install 'aiopubsub-redis[starlette]'"
    assert ran.stderr.splitlines()[-1].endswith(said)
