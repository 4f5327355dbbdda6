"""coredis: its multiplexed client, and its `PubSub` as an async iterator.

Its handbook: https://coredis.readthedocs.io/en/stable/handbook/pubsub.html
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from typing import Any

from aiopubsub.bench.job import Job

from . import Publish, PublishMany, Take

__all__ = ["Contestant"]


class Contestant:
    """One client; each subscriber takes a connection of its own."""

    is_blocking = False
    module = "coredis"

    def __init__(self, job: Job) -> None:
        coredis: Any = import_module(self.module)
        self._client = coredis.Redis.from_url(job.url)
        self._stack = AsyncExitStack()
        self._consumer: Any = None

    async def open(self) -> None:
        await self._stack.enter_async_context(self._client)

    async def subscribe(self, channels: Sequence[str], *, is_pattern: bool) -> Take:
        wanted = {"patterns" if is_pattern else "channels": channels}
        self._consumer = consumer = await self._stack.enter_async_context(self._client.pubsub(**wanted))
        await self.resubscribed(len(channels))

        async def take(count: int) -> bytes:
            async for message in consumer:
                count -= 1
                if not count:
                    payload: bytes = message["data"]
                    return payload
            raise RuntimeError("the iterator has ended")

        return take

    async def resubscribed(self, channels: int) -> None:
        async for message in self._consumer:  # it subscribes again by itself
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

        return publish_many

    async def catch_up(self, channel: str, count: int) -> bytes:
        raise NotImplementedError("it is not measured with histories")

    def check(self) -> None:
        """It does not count what it loses."""
