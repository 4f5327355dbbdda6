"""A web chat: any number of worker processes, one Redis or Valkey, and no message lost.

    pip install 'aiopubsub-redis[starlette]' msgspec uvicorn websockets
    REDIS_URL=redis://localhost:6379 uvicorn app:app --workers 2

What is said goes to the server through a websocket, and comes to every page as server-sent events. The room
keeps a history, so a page that was away, for whatever reason, gets what it missed: its browser says the
position of the last message that it was sent (`Last-Event-ID`). Who is typing is worth nothing a second
later, so that topic keeps none.

A page says again what it has not seen in the room yet, after it was away. So a message can be in the room
twice, with the same `id`, and pages pass over the second one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import aiopubsub as ps
from aiopubsub.contrib.starlette import Event, EventStream, client_of, lifespan, publisher_of, pump

URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
PAGE = Path(__file__).with_name("page.html")

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]


class Say(msgspec.Struct, tag_field="kind", tag="say"):
    """What a page wants to be said."""

    id: Id
    name: Name
    text: Text


class Typing(msgspec.Struct, tag_field="kind", tag="typing"):
    """Somebody is about to say something."""

    id: Id
    name: Name


class Hello(msgspec.Struct, tag_field="kind", tag="hello"):
    """Which process a page talks to."""

    worker: int


class Said(msgspec.Struct):
    """A message in the room."""

    id: Id
    name: Name
    text: Text
    at: float


from_page: msgspec.json.Decoder[Say | Typing] = msgspec.json.Decoder(Say | Typing)

ROOM: ps.Topic[Said] = ps.Topic(
    "chat.room",
    encode=msgspec.json.encode,
    decode=msgspec.json.Decoder(Said).decode,
    history=ps.History(size=1000, ttl=None),
)
TYPING: ps.Topic[Typing] = ps.Topic(
    "chat.typing", encode=msgspec.json.encode, decode=msgspec.json.Decoder(Typing).decode
)


async def page(_: Request) -> FileResponse:
    """The page."""
    return FileResponse(PAGE)


async def listen(request: Request) -> EventStream:
    """What is said: all that the room keeps for a new page, what it missed for one that comes back."""
    last = request.query_params.get("last")
    return EventStream(request, client_of(request), ROOM, since="beginning", last_event_id=last, retry=0.5)


async def talk(websocket: WebSocket) -> None:
    """A page says something, and hears who is typing."""
    publisher = publisher_of(websocket)

    async def received(frame: str | bytes) -> None:
        try:
            heard = from_page.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            await websocket.close(1008, str(error)[:100])
            return
        match heard:
            case Say():
                await publisher.publish(ROOM, Said(heard.id, heard.name, heard.text, time.time()))
            case Typing():
                await publisher.publish(TYPING, heard)

    await websocket.accept()
    await websocket.send_text(msgspec.json.encode(Hello(os.getpid())).decode())
    typing = ps.Subscriber(client_of(websocket), TYPING, buffer=100)
    await pump(websocket, typing, to_page, received=received)


def to_page(event: Event[Typing]) -> str | None:
    """Who is typing; whoever stopped meanwhile is not missed."""
    return event.text if isinstance(event, ps.Message) else None


app = Starlette(
    routes=[Route("/", page), Route("/said", listen), WebSocketRoute("/talk", talk)],
    lifespan=lifespan(URL),
)
