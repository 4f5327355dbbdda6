"""A random schedule of all faults against real servers; at the end the books must balance.

The schedule comes from a seed. `AIOPUBSUB_CHAOS_FAULTS` (60) and `AIOPUBSUB_CHAOS_SEED` (1) set its
length and the seed; a failure prints both, and the same two replay the schedule.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

import aiopubsub as ps
from aiopubsub.testing import Proxy, Sentinels
from tests.chaos.books import CHANNELS, CONFIRMED, UNDER_WAY, Reader, Source, books_bytes, summary
from tests.chaos.faults import Failovers, Faults, Schedule
from tests.conftest import executable, start

pytestmark = pytest.mark.anyio

FAULTS = int(os.environ.get("AIOPUBSUB_CHAOS_FAULTS", "60"))
SEED = int(os.environ.get("AIOPUBSUB_CHAOS_SEED", "1"))

HEARTBEAT_S = 0.2
QUICK = ps.Backoff(first_s=0.01, cap_s=0.1)  # back before the next fault, so that it finds something
PER_S = 300.0
MB = 1_000_000


def rss_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Place(NamedTuple):
    """Where it happens: the URLs of two clients, and what makes the faults."""

    far: str
    near: str
    faults: Callable[[ps.Client, list[Reader]], Schedule]


@asynccontextmanager
async def one_server() -> AsyncIterator[Place]:
    """A server, and a proxy in front of it."""
    server = start("valkey9")
    try:
        async with Proxy(server.port) as proxy:
            rnd = random.Random(SEED)
            yield Place(
                proxy.url,
                server.url,
                lambda far, readers: Faults(rnd, server, proxy, far, readers, HEARTBEAT_S),
            )
    finally:
        server.stop()


@asynccontextmanager
async def sentinels() -> AsyncIterator[Place]:
    """Servers that are failed over."""
    async with Sentinels(executable("redis7")) as trio:
        rnd = random.Random(SEED)
        yield Place(
            trio.url, trio.url, lambda far, readers: Failovers(rnd, trio, far, readers, HEARTBEAT_S)
        )


@pytest.mark.parametrize(
    ("place", "count"),
    [
        pytest.param(one_server, FAULTS, id="one server"),
        pytest.param(sentinels, max(4, FAULTS // 50), id="sentinel"),  # each takes some seconds
    ],
)
async def test_the_books_balance(
    place: Callable[[], AbstractAsyncContextManager[Place]], count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever happens to connections and servers: no silent loss, no duplicate, no reordering."""
    caplog.set_level(logging.CRITICAL)  # a thousand lost connections are no news here
    try:
        async with asyncio.timeout(60 + 2 * FAULTS), place() as chosen:
            await chaos(chosen, count)
    except BaseException as error:
        error.add_note(f"replay: AIOPUBSUB_CHAOS_SEED={SEED} AIOPUBSUB_CHAOS_FAULTS={FAULTS}")
        raise


async def chaos(place: Place, count: int) -> None:
    """Publish and read through the schedule, end in an orderly way, and look at the books."""
    async with (
        ps.Client(place.far, heartbeat=HEARTBEAT_S, backoff=QUICK) as far,
        ps.Client(place.near, heartbeat=HEARTBEAT_S, backoff=QUICK) as near,
        ps.Publisher(far, timeout=1) as far_pub,
        ps.Publisher(near, timeout=1) as near_pub,
        asyncio.TaskGroup() as reading,
    ):
        sources = [Source(0, far_pub), Source(1, near_pub)]
        readers = make_readers(far, near)
        for reader in readers:  # one that has a twin opens after it
            reading.create_task(reader.run(), name=reader.name)
            await reader.is_open.wait()
        is_over = asyncio.Event()
        publishing = [reading.create_task(source.run(is_over, PER_S)) for source in sources]
        faults = place.faults(far, readers)
        await faults.run(count // 4)
        before = rss_bytes() - books_bytes(sources, readers)
        await faults.run(count - count // 4)
        is_over.set()
        await asyncio.gather(*publishing)
        while not all(reader.has_heard_the_end for reader in readers):
            for source in sources:
                await source.end()
            await asyncio.sleep(0.02)  # the buffers of some hold 20 messages only
        grown = rss_bytes() - books_bytes(sources, readers) - before
        assert (far.stats.in_flight, near.stats.in_flight) == (0, 0)
        with faults.admin() as admin:
            await only_theirs(admin)
        assert [await reader.sub.drain(10) for reader in readers] == [0] * len(readers)

    print(f"{count} faults of seed {SEED}: {dict(faults.counts)}", *summary(sources, readers), sep="\n")
    print(f"memory has grown by {grown / MB:.1f} MB")
    for source in sources:
        assert UNDER_WAY not in source.outcomes
        assert source.outcomes.count(CONFIRMED) > len(source.outcomes) / 10
    for reader in readers:
        reader.check(sources)
    assert grown < 20 * MB


def make_readers(far: ps.Client, near: ps.Client) -> list[Reader]:
    """One for each policy, and one that drops nothing beside those that do."""
    news = ps.Pattern("news.*")
    small = partial(ps.Subscriber[bytes], buffer=20)
    exact = Reader("exact", lambda: ps.Subscriber(far, *CHANNELS))
    pattern = Reader("pattern", lambda: ps.Subscriber(near, news))
    return [
        exact,
        Reader("drop_oldest", lambda: small(far, *CHANNELS, overflow="drop_oldest"), exact),
        Reader("fail", lambda: small(far, *CHANNELS, overflow="fail"), exact),
        pattern,
        Reader("drop_newest", lambda: small(near, news, overflow="drop_newest"), pattern),
        Reader("block", lambda: small(far, news, overflow="block")),
    ]


async def only_theirs(admin: redis.Redis) -> None:
    """Until the server knows of the readers' subscriptions, and of no others."""
    wanted = [("0", "1"), ("0", "1"), ("2", "0")]  # channels and patterns of each connection
    while True:
        clients = [each for each in admin.client_list(_type="pubsub") if each["user"] == "default"]
        if sorted((client["sub"], client["psub"]) for client in clients) == wanted:
            break
        await asyncio.sleep(0.01)  # old connections end in the server a moment later; no event tells
    assert set(admin.pubsub_channels()) - {"__sentinel__:hello"} == set(CHANNELS)
