"""What an idle subscriber holds, counted by the allocator, so the same on every machine."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import aiopubsub as ps

pytestmark = pytest.mark.anyio

COUNT = 500
MOST = 2048
"""Bytes each. A single empty deque more is seen: it takes 760."""


@contextmanager
def tracing() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def bytes_each() -> float:
    gc.collect()
    return tracemalloc.get_traced_memory()[0] / COUNT


async def consume(sub: ps.Subscriber[bytes], got: list[bytes]) -> None:
    async for message in sub:
        got.append(message.data)  # noqa: PERF401  # others look meanwhile


async def have_all_consume(pub: ps.Publisher, subscribers: list[ps.Subscriber[bytes]]) -> None:
    """Hand three messages to each of them, the last two together, and cancel them while they wait."""
    got: list[bytes] = []
    tasks = [asyncio.create_task(consume(sub, got)) for sub in subscribers]
    await pub.publish("a", b"x")
    await asyncio.gather(pub.publish("a", b"x"), pub.publish("a", b"x"))
    while len(got) < 3 * len(subscribers):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_an_idle_subscriber_is_small() -> None:
    """It takes 2 KiB at most, and no more after it has received messages."""
    async with ps.Client("memory://") as client, ps.Publisher(client) as pub:
        subscribers = [await ps.Subscriber(client, "a").__aenter__()]
        with tracing():
            subscribers += [await ps.Subscriber(client, "a").__aenter__() for _ in range(COUNT)]
            assert bytes_each() <= MOST
            await have_all_consume(pub, subscribers)
            await asyncio.sleep(0)  # the event loop lets go of the tasks
            assert bytes_each() <= MOST
