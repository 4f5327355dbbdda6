"""From a subscriber to a browser, through a websocket.

Lives here: sending no faster than the browser takes, and noticing that it goes. Must not live here: what a
message looks like to a page, which is the application's matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

import aiopubsub as ps

__all__ = ["Event", "pump"]

logger: logging.Logger = logging.getLogger("aiopubsub.contrib.starlette")

T = TypeVar("T")

Event: TypeAlias = ps.Message[T] | ps.Gap | ps.Undecodable
"""What `Subscriber.events()` yields."""

# https://www.iana.org/assignments/websocket
_RESTARTING = 1012  # as uvicorn says when it shuts down
_TRY_AGAIN_LATER = 1013


async def pump(
    websocket: WebSocket,
    subscriber: ps.Subscriber[T],
    encode: Callable[[Event[T]], str | bytes | None],
    *,
    received: Callable[[str | bytes], Awaitable[object]] | None = None,
) -> None:
    """Send what a subscriber gets to a browser, until the browser goes.

    Subscribes, accepts the websocket, and closes the subscriber in the end: a browser whose socket is open
    misses nothing from then on. It is the only one to read the websocket.

    The next message is taken when the websocket has room for it. So a browser that is slow fills the
    subscriber's buffer, and then `overflow` decides: with `"drop_oldest"` and `"drop_newest"` there is a
    `Gap` for `encode` at the place where messages were dropped; with `"fail"` the websocket is closed. A
    topic with history drops nothing: it is read on when there is room.

    Returns when the browser has gone, and all that it sent before was given to `received`. Before that it
    closes the websocket, with a code that browsers are told: 1012, "service restart", when the subscriber
    or its client was closed, or it was drained; 1013, "try again later", with a line in the log, when the
    library failed: no connection, a refusal, a slow browser and `overflow="fail"`, a publish in `received`.
    Cancelling leaves the websocket open, and nothing else behind.

    Args:
        websocket: Accepted here, if it is not yet.
        subscriber: Not open yet; nobody else iterates it. `received` may `subscribe` and `unsubscribe`.
        encode: What to send for a message, a gap or a message that cannot be decoded: text, bytes, or
            `None` for nothing. A browser that is not told of gaps does not know that something is missing.
        received: Awaited with each thing that the browser sends, one after the other; meanwhile the
            browser is not read. It may close the websocket. `None`: what comes is thrown away.

    Raises:
        Exception: What `encode` or `received` raised, but for the library's own errors.
    """
    try:
        async with subscriber:
            if websocket.application_state is WebSocketState.CONNECTING:
                await websocket.accept()
            await _until_gone(websocket, _send_all(websocket, subscriber.events(), encode), received)
    except ps.PubSubError as error:
        logger.warning("a websocket is closed: %s", error)
        await _close(websocket, _TRY_AGAIN_LATER)


async def _until_gone(
    websocket: WebSocket,
    send_all: Coroutine[Any, Any, None],
    received: Callable[[str | bytes], Awaitable[object]] | None,
) -> None:
    sending = asyncio.create_task(send_all, name="pump: send")
    try:
        while (frame := await _frame(websocket, sending)) is not None:
            if received is not None:
                await received(frame)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    if not sending.cancelled():
        sending.result()


async def _frame(websocket: WebSocket, sending: asyncio.Task[None]) -> str | bytes | None:
    """The next thing that the browser sends; `None` when it has gone, or nothing more is to be sent."""
    receiving = asyncio.create_task(websocket.receive(), name="pump: receive")
    try:
        await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
    if receiving.cancelled() or (message := receiving.result())["type"] == "websocket.disconnect":
        return None
    text: str | None = message.get("text")
    content: bytes = message.get("bytes") or b""
    return content if text is None else text


async def _send_all(
    websocket: WebSocket, events: ps.Events[T], encode: Callable[[Event[T]], str | bytes | None]
) -> None:
    """Send until there is nothing more to send. A browser that goes is noticed by who reads it."""
    with contextlib.suppress(WebSocketDisconnect):
        async for event in events:
            frame = encode(event)
            if websocket.application_state is not WebSocketState.CONNECTED:
                break  # `received` has closed it
            if isinstance(frame, str):
                await websocket.send_text(frame)
            elif frame is not None:
                await websocket.send_bytes(frame)
        else:
            await _close(websocket, _RESTARTING)
            return
    await asyncio.Event().wait()  # what the browser sent before it went is still to be read


async def _close(websocket: WebSocket, code: int) -> None:
    """Close it, if the browser has not."""
    with contextlib.suppress(WebSocketDisconnect):
        if websocket.application_state is WebSocketState.CONNECTING:
            await websocket.accept()  # or browsers are not told the code
        if websocket.application_state is WebSocketState.CONNECTED:
            await websocket.close(code)
