"""This library, as its README shows it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import cache

import aiopubsub as ps
from aiopubsub.bench.job import Job

from . import Publish, PublishMany, Take

__all__ = ["Contestant"]


class Contestant:
    """One client; every subscriber and publisher shares it."""

    is_blocking = False
    module = "aiopubsub"

    def __init__(self, job: Job) -> None:
        self._client = ps.Client(job.url)
        self._subscribers: list[ps.Subscriber[bytes]] = []
        self._has_history = job.has_history

    async def open(self) -> None:
        await self._client.__aenter__()

    async def subscribe(self, channels: Sequence[str], *, is_pattern: bool) -> Take:
        topics = [ps.Pattern(name) if is_pattern else self._topic(name) for name in channels]
        subscriber = ps.Subscriber(self._client, *topics)
        self._subscribers.append(await subscriber.__aenter__())

        async def take(count: int) -> bytes:
            async for message in subscriber:
                count -= 1
                if not count:
                    return message.data
            raise RuntimeError("the subscriber has ended")

        return take

    async def resubscribed(self, channels: int) -> None:
        event = await anext(self._subscribers[0].events())
        if not isinstance(event, ps.Gap):  # it is handed over when all channels are confirmed again
            raise TypeError(f"a gap was due, not {event!r}")

    async def publisher(self) -> Publish:
        publisher = ps.Publisher(self._client)
        if not self._has_history:
            return publisher.publish

        def publish(channel: str, payload: bytes) -> Awaitable[object]:
            return publisher.publish(self._topic(channel), payload)

        return publish

    async def publisher_of_many(self) -> PublishMany:
        return ps.Publisher(self._client).publish_many

    async def catch_up(self, channel: str, count: int) -> bytes:
        async with ps.Subscriber(self._client, _kept(channel), since="beginning") as subscriber:
            async for message in subscriber:
                count -= 1
                if not count:
                    return message.data
        raise RuntimeError("the subscriber has ended")

    def _topic(self, channel: str) -> ps.Topic[bytes]:
        return _kept(channel) if self._has_history else ps.Topic(channel)

    def check(self) -> None:
        for subscriber in self._subscribers:
            stats = subscriber.stats
            if stats.dropped or stats.gaps or stats.reconnects:
                raise RuntimeError(f"messages are missing: {stats}")


@cache
def _kept(channel: str) -> ps.Topic[bytes]:
    """One topic for each channel, as an application has it."""
    return ps.Topic(channel, history=ps.History(size=10_000, ttl=300))
