"""The floor of asyncio: what its event loop costs with next to nothing in between.

A `BufferedProtocol`, hiredis and a `deque`: a message is awaited by an async iterator, a publish by a
future. Nothing here survives a lost connection, has a bound or a deadline, or can be cancelled safely.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Self, cast

import hiredis

from aiopubsub.bench.job import Job
from aiopubsub.bench.raw import RawConnection, pack

from . import Publish, PublishMany, Take

__all__ = ["Contestant"]

_READ_BYTES = 32_768
_BATCH = 512  # channels in a SUBSCRIBE
_NOTHING = object()


class Contestant:
    """A connection for whoever needs one."""

    is_blocking = False
    module = "asyncio"

    def __init__(self, job: Job) -> None:
        self._address = job.address

    async def open(self) -> None:
        """It is opened when it is needed."""

    async def subscribe(self, channels: Sequence[str], *, is_pattern: bool) -> Take:
        verb = "PSUBSCRIBE" if is_pattern else "SUBSCRIBE"
        pushes = _Pushes()
        await self._connect(pushes)
        for start in range(0, len(channels), _BATCH):
            pushes.write(pack((verb, *channels[start : start + _BATCH])))
        for _ in channels:
            await anext(pushes)

        async def take(count: int) -> bytes:
            async for push in pushes:
                count -= 1
                if not count:
                    payload: bytes = push[-1]
                    return payload
            raise RuntimeError("the iterator has ended")

        return take

    async def publisher(self) -> Publish:
        replies = _Replies()
        await self._connect(replies)
        return replies.publish

    async def publisher_of_many(self) -> PublishMany:
        publish = await self.publisher()

        async def publish_many(channel: str, payloads: Sequence[bytes]) -> None:
            await asyncio.gather(*(publish(channel, payload) for payload in payloads))

        return publish_many

    async def catch_up(self, channel: str, count: int) -> bytes:
        raise NotImplementedError("it is not measured with histories")

    def check(self) -> None:
        """It counts nothing."""

    async def _connect(self, protocol: _Connection) -> None:
        if self._address.tls is not None:
            raise RuntimeError("it knows no TLS")
        plain = RawConnection(self._address).socket
        plain.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: protocol, sock=plain)


class _Connection(asyncio.BufferedProtocol):
    """Reads replies and pushes into `items`."""

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self._view = memoryview(bytearray(_READ_BYTES))
        self._reader = cast("Any", hiredis).Reader(notEnoughData=_NOTHING)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = cast("asyncio.Transport", transport).write

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.feed(self._view.obj, 0, nbytes)
        self.items.extend(iter(self._reader.gets, _NOTHING))
        self.received()

    def received(self) -> None:
        """There may be something new."""


class _Pushes(_Connection):
    """An async iterator for one consumer."""

    _waiter: asyncio.Future[None] | None = None

    def received(self) -> None:
        if self._waiter is not None and self.items:
            self._waiter.set_result(None)
            self._waiter = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self.items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.items.popleft()


class _Replies(_Connection):
    """Publishes; all of one turn of the event loop leave in one write."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []

    def received(self) -> None:
        while self.items:
            self._waiting.popleft().set_result(self.items.popleft())

    def publish(self, channel: str, payload: bytes) -> asyncio.Future[Any]:
        """Done when the answer is here."""
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(pack(("PUBLISH", channel, payload)))
        answer = self._loop.create_future()
        self._waiting.append(answer)
        return answer

    def _send(self) -> None:
        self.write(b"".join(self._unsent))
        self._unsent.clear()
