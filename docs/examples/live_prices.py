"""Live prices through websockets: each browser is sent what it watches.

    pip install 'aiopubsub-redis[starlette]' msgspec uvicorn websockets
    REDIS_URL=redis://localhost:6379 uvicorn live_prices:app
    aiopubsub pub prices.ACME '{"symbol": "ACME", "cents": 1250}'

A browser at `/prices/ACME` gets `{"symbol": "ACME", "cents": 1250}` for each price, or `{"missed": 17}`
where it was too slow or the connection to the server was lost; `null` is "nobody knows how many". It sends
`{"watch": "OTHER"}` to watch one more. Prices get old, so there is no history, and a small buffer: who is
slow wants the newest.
"""

from __future__ import annotations

import os
from typing import Annotated

import msgspec
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

import aiopubsub as ps
from aiopubsub.contrib.starlette import Event, client_of, lifespan, pump

URL = os.environ.get("REDIS_URL", "redis://localhost:6379")

Symbol = Annotated[str, msgspec.Meta(pattern="^[A-Z]{1,8}$")]


class Watch(msgspec.Struct):
    """What a browser says."""

    watch: Symbol


class Price(msgspec.Struct):
    """What is published, and sent on."""

    symbol: Symbol
    cents: int


from_browser = msgspec.json.Decoder(Watch)
decode_price = msgspec.json.Decoder(Price).decode


def prices_of(symbol: str) -> ps.Topic[Price]:
    """The topic of one symbol."""
    return ps.Topic(f"prices.{symbol}", encode=msgspec.json.encode, decode=decode_price)


async def prices(websocket: WebSocket) -> None:
    """One browser, for as long as it stays."""
    first = prices_of(websocket.path_params["symbol"])
    watched = ps.Subscriber(client_of(websocket), first, buffer=100)

    async def received(frame: str | bytes) -> None:
        try:
            symbol = from_browser.decode(frame).watch
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            await websocket.close(1008, str(error)[:100])
        else:
            await watched.subscribe(prices_of(symbol))

    await pump(websocket, watched, to_browser, received=received)


def to_browser(event: Event[Price]) -> str | None:
    """What to send for what has come."""
    match event:
        case ps.Message():
            return event.text
        case ps.Gap(missed=missed):
            return msgspec.json.encode({"missed": missed}).decode()
        case ps.Undecodable():
            return None  # somebody else's, or a mistake: our log has it


app = Starlette(routes=[WebSocketRoute("/prices/{symbol}", prices)], lifespan=lifespan(URL))
