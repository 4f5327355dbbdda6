"""The floor: what Python costs with no library at all, a blocking socket and hiredis.

Nothing here serves a second task, notices a dead connection or bounds a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiopubsub.append import LOAD, SHA
from aiopubsub.bench.histories import uid_of
from aiopubsub.bench.job import Job
from aiopubsub.bench.raw import RawConnection, pack
from aiopubsub.dialogue import Command
from aiopubsub.keys import history_key

from . import Publish, PublishMany, Take

__all__ = ["Contestant"]

_READ_BYTES = 65_536
_BATCH = 512  # channels in a SUBSCRIBE


class Contestant:
    """A connection for whoever needs one."""

    is_blocking = True
    module = "hiredis"

    def __init__(self, job: Job) -> None:
        self._address = job.address
        self._connection: RawConnection | None = None
        self._wanted: list[bytes] = []
        self._has_history = job.has_history
        self._number = 0

    async def open(self) -> None:
        """It is opened when it is needed."""

    async def subscribe(self, channels: Sequence[str], *, is_pattern: bool) -> Take:
        verb = "PSUBSCRIBE" if is_pattern else "SUBSCRIBE"
        batches = [channels[start : start + _BATCH] for start in range(0, len(channels), _BATCH)]
        self._wanted = [pack((verb, *batch)) for batch in batches]
        connection = self._subscribed(len(channels))
        gets, feed, receive = connection.reader.gets, connection.reader.feed, connection.socket.recv

        async def take(count: int) -> bytes:
            while True:
                while (push := gets()) is not False:
                    count -= 1
                    if not count:
                        payload: bytes = push[-1]
                        return payload
                feed(receive(_READ_BYTES))

        return take

    async def resubscribed(self, channels: int) -> None:
        while self._connection is not None:
            try:
                self._connection.read()
            except ConnectionError:
                self._connection = None
        self._subscribed(channels)

    async def publisher(self) -> Publish:
        publish_many = await self.publisher_of_many()

        async def publish(channel: str, payload: bytes) -> None:
            await publish_many(channel, (payload,))

        return publish

    async def publisher_of_many(self) -> PublishMany:
        connection = RawConnection(self._address)
        command = self._append if self._has_history else _publish
        if self._has_history:
            connection.call(*LOAD)

        async def publish_many(channel: str, payloads: Sequence[bytes]) -> None:
            connection.send(*[pack(command(channel, payload)) for payload in payloads])
            for _ in payloads:
                connection.reply()

        return publish_many

    async def catch_up(self, channel: str, count: int) -> bytes:
        connection = RawConnection(self._address)
        key, start = history_key(channel.encode()), b"-"
        while True:
            for name, fields in connection.call("XRANGE", key, start, "+", "COUNT", 1000):
                count -= 1
                if not count:
                    payload: bytes = fields[-1]
                    return payload
                start = b"(" + name

    def _append(self, channel: str, payload: bytes) -> Command:
        """The library's script for one message, and nothing around it."""
        self._number += 1
        key = history_key(channel.encode())
        limits = (b"10000", b"300000", b"")  # as ours
        return (b"EVALSHA", SHA, b"1", key, channel.encode(), *limits, uid_of(self._number), b"{}", payload)

    def check(self) -> None:
        """It counts nothing."""

    def _subscribed(self, channels: int) -> RawConnection:
        """A new connection, subscribed and confirmed."""
        self._connection = connection = RawConnection(self._address)
        connection.send(*self._wanted)
        for _ in range(channels):
            connection.reply()
        return connection


def _publish(channel: str, payload: bytes) -> Command:
    return (b"PUBLISH", channel.encode(), payload)
