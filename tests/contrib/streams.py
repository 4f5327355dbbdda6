"""An application with one of each, for the tests of how it ends: `uvicorn tests.contrib.streams:app`."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import aiopubsub as ps
from aiopubsub.contrib.starlette import Event, EventStream, client_of, lifespan, pump

DRAIN_S = float(os.environ.get("DRAIN_S", "20"))

LIVE = ps.Topic.text("live")
KEPT = ps.Topic.text("kept", history=ps.History(size=10_000))


async def live(request: Request) -> EventStream:
    return EventStream(
        request, client_of(request), LIVE, buffer=10_000, buffer_bytes=2**26, drain_timeout=DRAIN_S
    )


async def kept(request: Request) -> EventStream:
    return EventStream(request, client_of(request), KEPT, drain_timeout=DRAIN_S)


async def talk(websocket: WebSocket) -> None:
    def to_page(event: Event[str]) -> str | None:
        return event.text if isinstance(event, ps.Message) else None

    await pump(websocket, ps.Subscriber(client_of(websocket), LIVE), to_page)


app = Starlette(
    routes=[Route("/live", live), Route("/kept", kept), WebSocketRoute("/talk", talk)],
    lifespan=lifespan(os.environ.get("REDIS_URL", "redis://localhost")),
)
