"""From a subscriber to a browser, as server-sent events that can be resumed.

Lives here: which event says what, and where one begins who comes back. Must not live here: how events are
written, keep-alives, noticing that a browser goes or the web server shuts down (`sse-starlette`).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack, overload

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

import aiopubsub as ps
from aiopubsub.checks import check_seconds
from aiopubsub.since import SinceLike, start_of_each
from aiopubsub.topic import as_subscribable

from .last_event_id import id_of, read_id

__all__ = ["EventStream", "EventStreamOptions", "text_of"]

logger: logging.Logger = logging.getLogger("aiopubsub.contrib.starlette")

T = TypeVar("T")

_END_S = 1.0  # what is left, after a drain that took all of its time, to end the response whole

_UNAVAILABLE = "There are no live updates just now, try again later.\n"


def text_of(message: ps.Message[object]) -> str:
    """The payload as text, as it was published."""
    return message.text


class EventStreamOptions(TypedDict, total=False):
    """The keyword arguments of `EventStream`, but for `encode`; what they mean is said there."""

    since: SinceLike
    last_event_id: str | None
    buffer: int
    buffer_bytes: int
    keep_alive: float
    retry: float | None
    send_timeout: float | None
    drain_timeout: float


class EventStream(EventSourceResponse):
    """A response of server-sent events: what is published, for as long as the browser stays.

    Each message is an event with its payload as `data` and `str(position)` as `id`. A browser that was
    away says the last id that it got, by itself (`Last-Event-ID`), and is sent what it missed, as far back
    as the topic's history reaches. Where something is missing there is an event named `gap` with JSON:
    `{"reason": "trimmed", "missed": 12, "withdrawn": 0, "channels": ["news"]}`; `missed` and `withdrawn`
    are `null` where they cannot be known. A topic without history cannot be resumed: a browser that comes
    back begins now, with a `gap`. So does one whose `Last-Event-ID` cannot be read, which may say anything:
    its page lives on and knows that it has to fetch its state anew, where an error would end it for good.

    The next message is taken when the connection has room for it. So a browser that is slow fills the
    buffer. What does not fit is dropped, the oldest first, which is a `gap` with the exact number; on a
    topic with history it is read again later instead. The response ends when the browser goes or the
    client is closed, and leaves no task and no subscription. When the web server shuts down, what was
    published until then is handed over first (uvicorn; others as far as `sse-starlette` knows them).

    If the client is closed, is not connected or may not subscribe, the answer is 503 and the reason is
    logged. Browsers do not try again by themselves then: `EventSource.readyState` is `CLOSED`.

    Args:
        request: What is answered: it says `Last-Event-ID`.
        client: An open client, for example `client_of(request)`.
        *topics: `Topic`, `Pattern`, or `str` for a topic of bytes; at least one. With several, the id holds
            the positions in all of them, 40 to 60 characters each.
        since: Where a browser without a `Last-Event-ID` begins, as that of `Subscriber`: `None` (now),
            `"beginning"`, a position, for example of the state that the page was made from.
        last_event_id: The same as the header, which counts for more, from elsewhere. A page that makes an
            `EventSource` anew cannot set headers: `request.query_params.get("last")`, for example.
        encode: What to send for a message: its `data`, or a `ServerSentEvent` (whose `id` is set here), or
            `None` for nothing. By default the payload as text, without decoding it; U+FFFD stands for what
            is not UTF-8. Messages that cannot be decoded are logged and left out.
        buffer: Messages, at least 1, that may wait for the browser.
        buffer_bytes: Bytes, at least 1, that they may take; as that of `Subscriber`.
        keep_alive: Seconds, > 0, between comments that keep proxies from closing a quiet connection.
        retry: Seconds, > 0, that a browser waits before it connects again; `None`: its own choice, 3 to 5.
        send_timeout: Seconds, > 0, after which a browser that takes nothing is given up; `None`: when TCP
            does, up to a quarter of an hour.
        drain_timeout: Seconds, > 0, that a shutdown may wait for the browser to take what was published.

    Raises:
        HTTPException: 400: `since` is no position in one of the topics.
        ValueError: There are no topics, or a number is out of range.
        TypeError: An argument has the wrong type.
    """

    @overload
    def __init__(
        self,
        request: HTTPConnection,
        client: ps.Client,
        *topics: str | ps.Subscribable[bytes],
        encode: Callable[[ps.Message[bytes]], str | ServerSentEvent | None] = text_of,
        **options: Unpack[EventStreamOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        request: HTTPConnection,
        client: ps.Client,
        *topics: ps.Subscribable[T],
        encode: Callable[[ps.Message[T]], str | ServerSentEvent | None] = text_of,
        **options: Unpack[EventStreamOptions],
    ) -> None: ...

    def __init__(
        self,
        request: HTTPConnection,
        client: ps.Client,
        *topics: str | ps.Subscribable[Any],
        encode: Callable[[ps.Message[Any]], str | ServerSentEvent | None] = text_of,
        since: SinceLike = None,
        last_event_id: str | None = None,
        buffer: int = 1024,
        buffer_bytes: int = 1024 * 1024,
        keep_alive: float = 15.0,
        retry: float | None = None,
        send_timeout: float | None = 60.0,
        drain_timeout: float = 3.0,
    ) -> None:
        if not topics:
            raise ValueError("an EventStream needs a topic")
        wanted = [as_subscribable(topic) for topic in topics]
        if encode is text_of:
            wanted = [_undecoded(topic) for topic in wanted]
        back = read_id(request.headers.get("last-event-id") or last_event_id or "", wanted)
        try:
            starts = start_of_each(since, wanted)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        self._subscriber: ps.Subscriber[Any] = ps.Subscriber(
            client, *wanted, since={**starts, **back.positions}, buffer=buffer, buffer_bytes=buffer_bytes
        )
        retry_ms = None if retry is None else round(1000 * check_seconds("retry", retry))
        self._drain_s = check_seconds("drain_timeout", drain_timeout)
        self._shutdown_began = anyio.Event()
        super().__init__(  # pyright: ignore[reportUnknownMemberType]  # its `dict` has no parameters
            _Sent(self._subscriber, encode, back.lost, retry_ms),
            ping=check_seconds("keep_alive", keep_alive),
            ping_message_factory=_keep_alive,
            data_sender_callable=self._drain_at_shutdown,
            send_timeout=None if send_timeout is None else check_seconds("send_timeout", send_timeout),
            shutdown_event=self._shutdown_began,
            shutdown_grace_period=self._drain_s + _END_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: subscribe, then send until the browser goes or nothing more will come."""
        if scope.get("method") == "HEAD":
            await super().__call__(scope, receive, send)
            return
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._subscriber)
            except ps.PubSubError as error:
                logger.warning("an event stream cannot begin: %s", error)
                answer = PlainTextResponse(_UNAVAILABLE, 503, headers={"Retry-After": "1"})
                await answer(scope, receive, send)
                return
            try:
                await super().__call__(scope, receive, send)
            except* SendTimeoutError:
                logger.warning("an event stream ends: its browser took nothing for %g s", self.send_timeout)
            except* OSError:
                pass  # the browser has gone, as web servers of ASGI 2.4 and later say it

    async def _drain_at_shutdown(self) -> None:
        """The web server waits for responses to end: end this one when everything is handed over."""
        await self._shutdown_began.wait()
        with contextlib.suppress(ps.Closed):
            await self._subscriber.drain(self._drain_s)


class _Sent(Generic[T]):
    """What is sent to one browser: an async iterator of `ServerSentEvent`."""

    def __init__(
        self,
        subscriber: ps.Subscriber[T],
        encode: Callable[[ps.Message[T]], str | ServerSentEvent | None],
        lost: tuple[str, ...],
        retry_ms: int | None,
    ) -> None:
        self._subscriber = subscriber
        self._encode = encode
        self._events: ps.Events[T] | None = None  # from the first event on; the subscriber is open then
        self._positions: dict[str, ps.Position] = {}  # of what was sent last
        self._lost = lost
        self._retry_ms = retry_ms

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ServerSentEvent:
        if self._events is None:
            self._events = self._subscriber.events()
            return self._first()
        while True:
            try:
                sent = self._sent_for(await anext(self._events))
            except ps.PubSubError as error:
                logger.warning("an event stream ends: %s", error)
                raise StopAsyncIteration from error
            if sent is not None:
                return sent

    def _first(self) -> ServerSentEvent:
        """An id to come back with if nothing is published, in one event with what is lost already."""
        self._positions = self._subscriber.positions
        reconnected = ps.GapReason.RECONNECTED
        first = _gap_event(reconnected, None, None, self._lost) if self._lost else ServerSentEvent()
        first.id, first.retry = id_of(self._positions.values()), self._retry_ms
        return first

    def _sent_for(self, event: ps.Message[T] | ps.Gap | ps.Undecodable) -> ServerSentEvent | None:
        if isinstance(event, ps.Gap):
            self._positions = self._subscriber.positions
            sent = _gap_event(event.reason, event.missed, event.withdrawn, event.channels)
        else:
            if event.position is not None and event.topic.history is not None:
                self._positions[event.channel] = event.position
            if isinstance(event, ps.Undecodable):
                logger.warning("an event stream leaves out a message: %r", event)
                return None
            data = self._encode(event)
            if data is None:
                return None
            sent = ServerSentEvent(data) if isinstance(data, str) else data
        sent.id = id_of(self._positions.values())
        return sent


def _gap_event(
    reason: ps.GapReason, missed: int | None, withdrawn: int | None, channels: tuple[str, ...]
) -> ServerSentEvent:
    told = {"reason": reason.value, "missed": missed, "withdrawn": withdrawn, "channels": channels}
    return ServerSentEvent(json.dumps(told), event="gap")


def _keep_alive() -> ServerSentEvent:
    return ServerSentEvent(comment="keep-alive")


def _undecoded(topic: ps.Subscribable[Any]) -> ps.Subscribable[bytes]:
    """The same topic, of bytes: what is sent as it was published need not be decoded."""
    if isinstance(topic, ps.Pattern):
        return ps.Pattern(topic.name)
    return ps.Topic(topic.name, history=topic.history)
