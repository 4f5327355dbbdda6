"""A browser's end of an ASGI application, so that tests see every byte and decide what it takes when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

DEADLINE_S = 10


@dataclass
class SentEvent:
    """One server-sent event, or what stands in its place."""

    event: str = "message"
    data: str | None = None
    id: str | None = None
    retry: str | None = None
    comment: str | None = None

    @property
    def gap(self) -> dict[str, Any]:
        assert self.event == "gap", self
        return json.loads(self.data or "")


class Connection:
    """What both kinds of visits share: the application as a task, and queues to and from it."""

    def __init__(self, app: Any, scope: Mapping[str, Any]) -> None:
        self._app = app
        self.scope = {
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
            **scope,
        }
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.takes = asyncio.Event()  # cleared: it takes nothing more
        self.takes.set()
        self.has_gone = False
        self.task: asyncio.Task[None]

    async def _receive(self) -> dict[str, Any]:
        for _ in range(5):  # some web servers take a few turns of the event loop
            await asyncio.sleep(0)
        return await self._to_app.get()

    async def _send(self, message: dict[str, Any]) -> None:
        await self.takes.wait()
        if self.has_gone:
            if self.scope["asgi"]["spec_version"] == "2.3":
                return
            raise OSError  # https://asgi.readthedocs.io/en/latest/specs/www.html, 2.4
        self.sent.put_nowait(message)

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(
            self._app(self.scope, self._receive, self._send), name="application"
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.task.done():
            self.go()
            await self.ended()

    async def ended(self) -> None:
        """Until the application has returned; raises what it raised."""
        async with asyncio.timeout(DEADLINE_S):
            await self.task

    async def next_sent(self) -> Any:
        """What the application sends next; fails at once if it has ended before."""
        getter = asyncio.create_task(self.sent.get())
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait((getter, self.task), return_when=asyncio.FIRST_COMPLETED)
        if not getter.done():
            getter.cancel()
            self.task.result()
            raise EOFError
        return getter.result()

    def go(self) -> None:
        """Close the connection, as a browser does that leaves the page."""
        raise NotImplementedError


class Visit(Connection):
    """A request for an event stream."""

    def __init__(
        self,
        app: Any,
        path: str = "/",
        last_event_id: str | bytes | None = None,
        *,
        query: str = "",
        method: str = "GET",
        asgi: str = "2.3",
    ) -> None:
        headers = []
        if last_event_id is not None:
            text = last_event_id.encode() if isinstance(last_event_id, str) else last_event_id
            headers.append((b"last-event-id", text))
        super().__init__(
            app,
            {
                "type": "http",
                "method": method,
                "path": path,
                "raw_path": path.encode(),
                "query_string": query.encode(),
                "headers": headers,
            },
        )
        self.scope["asgi"]["spec_version"] = asgi
        self._to_app.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        self._text = ""

    async def answer(self) -> tuple[int, dict[str, str]]:
        """The status and the headers."""
        start = await self.next_sent()
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], headers

    async def body(self) -> str:
        """All of it, to its end."""
        text = self._text
        while True:
            part = await self.next_sent()
            text += part["body"].decode()
            if not part.get("more_body"):
                return text

    async def next(self) -> SentEvent:
        """The next event.

        Raises:
            EOFError: The response is complete.
        """
        while "\r\n\r\n" not in self._text:
            part = await self.next_sent()
            self._text += part["body"].decode()
            if not part.get("more_body"):
                assert not self._text
                raise EOFError
        block, _, self._text = self._text.partition("\r\n\r\n")
        event = SentEvent()
        data: list[str] = []
        for line in block.split("\r\n"):
            name, _, value = line.partition(": ")
            if name == "data":
                data.append(value)
            else:
                setattr(event, name or "comment", value)
        event.data = "\n".join(data) if data else None
        return event

    async def events(self, count: int) -> list[SentEvent]:
        return [await self.next() for _ in range(count)]

    async def data(self, count: int) -> list[str | None]:
        return [event.data for event in await self.events(count)]

    async def all(self) -> AsyncIterator[SentEvent]:
        """All to the end of the response."""
        while True:
            try:
                yield await self.next()
            except EOFError:
                return

    def go(self) -> None:
        self.has_gone = True
        self._to_app.put_nowait({"type": "http.disconnect"})


class Talk(Connection):
    """A websocket."""

    def __init__(self, app: Any, path: str = "/") -> None:
        super().__init__(app, {"type": "websocket", "path": path, "scheme": "ws", "subprotocols": []})
        self.scope["asgi"]["spec_version"] = "2.4"
        self._to_app.put_nowait({"type": "websocket.connect"})

    async def __aenter__(self) -> Self:
        """Until it is accepted."""
        await super().__aenter__()
        assert (await self.next_sent())["type"] == "websocket.accept"
        return self

    def say(self, content: str | bytes) -> None:
        kind = "text" if isinstance(content, str) else "bytes"
        self._to_app.put_nowait({"type": "websocket.receive", kind: content})

    async def hear(self) -> str | bytes | int:
        """What comes next; the code, if it is closed."""
        message = await self.next_sent()
        if message["type"] == "websocket.close":
            self.has_gone = True
            self._to_app.put_nowait({"type": "websocket.disconnect", "code": message["code"]})
            code: int = message["code"]
            return code
        text = message.get("text")
        content: str | bytes = message["bytes"] if text is None else text
        return content

    def go(self) -> None:
        self.has_gone = True
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": 1001})
