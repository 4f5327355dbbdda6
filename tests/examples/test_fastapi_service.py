"""The FastAPI service: typed in, typed out, resumed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx2
import pytest

from docs.examples import fastapi_service
from docs.examples.fastapi_service import app
from tests.contrib.browser import Visit

pytestmark = pytest.mark.anyio


@pytest.fixture
async def http(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[httpx2.AsyncClient]:
    """The running service."""
    monkeypatch.setattr(fastapi_service, "URL", f"memory://{request.node.name}")
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://shop") as http,
    ):
        yield http


async def test_orders_come_and_are_counted(http: httpx2.AsyncClient) -> None:
    """What is posted is stored, streamed from where one was, and counted."""
    answers = [await http.post("/orders", json={"item": "tea", "quantity": n}) for n in (1, 2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    positions = [answer.json()["position"] for answer in answers]
    async with (
        Visit(app, "/orders", query=f"since={positions[0]}") as new,
        Visit(app, "/orders", last_event_id=positions[0]) as back,
    ):
        for visit in (new, back):
            assert (await visit.answer())[0] == 200
            await visit.next()
            event = await visit.next()
            assert json.loads(event.data or "") == {"item": "tea", "quantity": 2}
            assert event.id == positions[1]
        while (await http.get("/totals")).json() != {"tea": 3}:
            pass  # each turn is a round through the application
    assert (await http.get("/ready")).json() == {"commands": "live", "listens": "live"}


async def test_what_is_no_order_is_refused(http: httpx2.AsyncClient) -> None:
    """By its type, and a position that is none by a sentence."""
    assert (await http.post("/orders", json={"item": "tea", "quantity": 0})).status_code == 422
    answer = await http.get("/orders", params={"since": "garbage"})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("since: not a position: 'garbage'")


async def test_without_a_server_it_says_so(http: httpx2.AsyncClient) -> None:
    """Not ready, and no traceback."""
    await app.state.publisher.aclose()
    await app.state.pubsub.aclose()
    assert (await http.get("/ready")).status_code == 503
    assert (await http.get("/orders")).status_code == 503
