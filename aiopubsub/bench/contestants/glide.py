"""valkey-glide: the async client, whose core is in Rust.

Its guide: https://valkey.io/valkey-glide/how-to/publish-and-subscribe-messages/
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from importlib import import_module
from typing import Any

from aiopubsub.bench.job import Job

from . import Publish, PublishMany, Take

__all__ = ["Contestant"]

_SUBSCRIBE_TIMEOUT_MS = 10_000


class Contestant:
    """A client that listens, and one that publishes."""

    is_blocking = False
    module = "glide"

    def __init__(self, job: Job) -> None:
        self._glide: Any = import_module(self.module)
        self._address = job.address

    async def _connect(self) -> Any:
        glide, address = self._glide, self._address
        if address.path is not None:
            raise RuntimeError("it knows no Unix sockets")
        credentials = None
        if address.password is not None:
            credentials = glide.ServerCredentials(address.password, address.username)
        settings = glide.GlideClientConfiguration(
            [glide.NodeAddress(address.host, address.port)],
            use_tls=address.tls is not None,
            credentials=credentials,
        )
        return await glide.GlideClient.create(settings)

    async def open(self) -> None:
        """One that listens publishes too, but each does better alone."""

    async def subscribe(self, channels: Sequence[str], *, is_pattern: bool) -> Take:
        client = await self._connect()
        await (client.psubscribe if is_pattern else client.subscribe)(set(channels), _SUBSCRIBE_TIMEOUT_MS)

        async def take(count: int) -> bytes:
            while True:
                message = await client.get_pubsub_message()
                count -= 1
                if not count:
                    payload: bytes = message.message
                    return payload

        return take

    async def publisher(self) -> Publish:
        client = await self._connect()

        def publish(channel: str, payload: bytes) -> Awaitable[object]:
            answer: Awaitable[object] = client.publish(payload, channel)
            return answer

        return publish

    async def publisher_of_many(self) -> PublishMany:
        client, batch_of = await self._connect(), self._glide.Batch

        async def publish_many(channel: str, payloads: Sequence[bytes]) -> None:
            batch = batch_of(is_atomic=False)
            for payload in payloads:
                batch.publish(payload, channel)
            await client.exec(batch, raise_on_error=True)

        return publish_many

    async def catch_up(self, channel: str, count: int) -> bytes:
        raise NotImplementedError("it is not measured with histories")

    def check(self) -> None:
        """It does not count what it loses."""
