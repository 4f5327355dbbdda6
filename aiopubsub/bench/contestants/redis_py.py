"""redis-py: `redis.asyncio`, `PubSub.listen()`, hiredis.

Its guide: https://redis.readthedocs.io/en/stable/examples/asyncio_examples.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import redis.asyncio

from aiopubsub.bench.job import Job
from aiopubsub.keys import history_key

from . import Publish, PublishMany, Take

__all__ = ["Contestant"]


class Contestant:
    """One client with its pool; each subscriber is a `PubSub`, which takes a connection of its own."""

    is_blocking = False
    module = "redis.asyncio"

    def __init__(self, job: Job) -> None:
        address = job.address
        self._client: Any = redis.asyncio.Redis(  # Any: its types have holes
            host=address.host,
            port=address.port,
            unix_socket_path=address.path,
            username=address.username,
            password=address.password,
            ssl=address.tls is not None,
            protocol=3,
            **cast("dict[str, Any]", address.tls or {}),
        )
        self._listening: Any = None

    async def open(self) -> None:
        """Its pool connects when it is needed."""

    async def subscribe(self, channels: Sequence[str], *, is_pattern: bool) -> Take:
        pubsub = self._client.pubsub()
        await (pubsub.psubscribe if is_pattern else pubsub.subscribe)(*channels)
        self._listening = listening = pubsub.listen()
        await self.resubscribed(len(channels))

        async def take(count: int) -> bytes:
            async for message in listening:
                count -= 1
                if not count:
                    payload: bytes = message["data"]
                    return payload
            raise RuntimeError("the iterator has ended")

        return take

    async def resubscribed(self, channels: int) -> None:
        async for message in self._listening:  # it subscribes again by itself
            if message["type"] in ("subscribe", "psubscribe"):
                channels -= 1
                if not channels:
                    return

    async def publisher(self) -> Publish:
        publish: Publish = self._client.publish
        return publish

    async def publisher_of_many(self) -> PublishMany:
        async def publish_many(channel: str, payloads: Sequence[bytes]) -> None:
            async with self._client.pipeline(transaction=False) as pipeline:
                for payload in payloads:
                    pipeline.publish(channel, payload)
                await pipeline.execute()

        return publish_many

    async def catch_up(self, channel: str, count: int) -> bytes:
        key, last = history_key(channel.encode()), b"0"
        while True:
            streams = await self._client.xread({key: last}, count=1000)
            ((entries,),) = streams.values()
            for _, fields in entries:
                count -= 1
                if not count:
                    payload: bytes = fields[b"data"]
                    return payload
            last = entries[-1][0]

    def check(self) -> None:
        """It does not count what it loses."""
