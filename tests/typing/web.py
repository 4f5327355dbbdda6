"""The helpers for Starlette and FastAPI as users type them."""

from __future__ import annotations

from typing import assert_type

from fastapi import FastAPI
from sse_starlette import JSONServerSentEvent, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.websockets import WebSocket

import aiopubsub as ps
from aiopubsub.contrib.starlette import Event, EventStream, client_of, lifespan, publisher_of, pump
from tests.typing.codecs import LISTS, STRUCTS, Struct

Starlette(lifespan=lifespan("redis://localhost"))
FastAPI(lifespan=lifespan(lambda: ps.Client("redis://localhost", heartbeat=2.0)))
FastAPI(lifespan=lifespan(5))  # type: ignore[arg-type]


def number_of(message: ps.Message[Struct]) -> str | None:
    return str(message.data.number) if message.data.number else None


def event_of(message: ps.Message[list[int]]) -> ServerSentEvent:
    return JSONServerSentEvent(message.data, event="numbers")


def streams(request: Request) -> None:
    """`encode` takes messages of the topics' type."""
    client = client_of(request)
    assert_type(client, ps.Client)
    assert_type(publisher_of(request), ps.Publisher)
    EventStream(request, client, "plain", ps.Pattern("news.*"))
    EventStream(request, client, STRUCTS, encode=number_of, since="beginning", buffer=10, retry=0.5)
    EventStream(request, client, LISTS, encode=event_of, last_event_id=request.query_params.get("last"))
    EventStream(request, client, STRUCTS, LISTS)
    EventStream(request, client, LISTS, encode=number_of)  # type: ignore[arg-type]
    EventStream(request, client, STRUCTS, overflow="fail")  # type: ignore[call-overload]


def to_browser(event: Event[Struct]) -> str | bytes | None:
    match event:
        case ps.Message():
            assert_type(event.data, Struct)
            return event.payload
        case ps.Gap(missed=missed):
            return f"{missed} are missing"
        case ps.Undecodable():
            return None


async def websockets(
    websocket: WebSocket, sub: ps.Subscriber[Struct], lists: ps.Subscriber[list[int]]
) -> None:
    """`encode` takes events of the subscriber's type."""

    async def received(frame: str | bytes) -> int:
        return len(frame)

    await pump(websocket, sub, to_browser)
    await pump(websocket, sub, to_browser, received=received)
    await pump(websocket, lists, to_browser)  # type: ignore[arg-type]
    await pump(websocket, sub, to_browser, received=print)  # type: ignore[arg-type]
