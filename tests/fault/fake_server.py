"""A server that answers the handshake as Redis does, and after that says what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Self

import hiredis


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


def push(*parts: bytes) -> bytes:
    return b">%d\r\n" % len(parts) + b"".join(map(bulk, parts))


class FakeServer:
    """Answers HELLO, CLIENT, PING, SUBSCRIBE, UNSUBSCRIBE and PUBLISH.

    Args:
        on_subscribed: Called when a connection has subscribed and its fence was answered; with the
            number of such connections until now, and with what writes to this one.
        first_receipt: The answer to the first PUBLISH.
    """

    def __init__(
        self,
        on_subscribed: Callable[[int, asyncio.StreamWriter], Coroutine[Any, Any, None]] | None = None,
        first_receipt: bytes = b":1\r\n",
    ) -> None:
        self._on_subscribed = on_subscribed
        self._next_receipt = first_receipt
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.listeners = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._begin(self._serve(reader, writer))

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        has_subscribed = False
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65_536):
                    parser.feed(data)
                    while command := parser.gets():
                        writer.write(self._answer(command))
                        if command[0] == b"SUBSCRIBE":
                            has_subscribed = True
                        elif command[0] == b"PING" and has_subscribed and self._on_subscribed:
                            has_subscribed = False
                            self.listeners += 1
                            self._begin(self._on_subscribed(self.listeners, writer))
        finally:
            writer.transport.abort()

    def _answer(self, command: list[Any]) -> bytes:
        verb, *args = command
        match verb:
            case b"HELLO":
                return b"%1\r\n" + bulk(b"proto") + b":3\r\n"
            case b"PING":
                return bulk(args[0]) if args else b"+PONG\r\n"
            case b"SUBSCRIBE" | b"UNSUBSCRIBE":
                return b"".join(push(verb.lower(), arg) for arg in args)
            case b"PUBLISH":
                receipt, self._next_receipt = self._next_receipt, b":1\r\n"
                return receipt
            case _:
                return b"+OK\r\n"
