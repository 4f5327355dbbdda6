"""A random schedule of all faults against a real server; at the end the books must balance.

The schedule comes from a seed. `AIOPUBSUB_CHAOS_FAULTS` (60) and `AIOPUBSUB_CHAOS_SEED` (1) set its
length and the seed; a failure prints both, and the same two replay the schedule. To a cluster a
twentieth of the faults is done, because it takes seconds to recover from one.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
from functools import partial
from pathlib import Path

import pytest
import redis

import aiopubsub as ps
from aiopubsub.testing import Cluster, Proxy, Server
from tests.chaos.books import CHANNELS, CONFIRMED, UNDER_WAY, Reader, Source, books_bytes, summary
from tests.chaos.cluster_faults import ClusterFaults
from tests.chaos.faults import Faults
from tests.conftest import cluster_of, start

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


async def test_the_books_balance(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever happens to connections and server: no silent loss, no duplicate, no reordering."""
    caplog.set_level(logging.CRITICAL)  # a thousand lost connections are no news here
    server = start("valkey9")
    try:
        async with asyncio.timeout(60 + 2 * FAULTS):
            await chaos(server)
    except BaseException as error:
        error.add_note(f"replay: AIOPUBSUB_CHAOS_SEED={SEED} AIOPUBSUB_CHAOS_FAULTS={FAULTS}")
        raise
    finally:
        server.stop()


async def test_the_books_of_a_cluster_balance(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever happens to slots and nodes: the same, for each channel by itself."""
    caplog.set_level(logging.CRITICAL)
    faults = max(9, FAULTS // 20)
    try:
        async with (
            asyncio.timeout(60 + 30 * faults),
            cluster_of("valkey9", node_timeout_ms=1000, partitions=True) as cluster,
        ):
            await cluster_chaos(cluster, faults)
    except BaseException as error:
        error.add_note(f"replay: AIOPUBSUB_CHAOS_SEED={SEED} AIOPUBSUB_CHAOS_FAULTS={FAULTS}")
        raise


async def cluster_chaos(cluster: Cluster, count: int) -> None:
    """One source for each channel, because channels of two nodes have no common order."""
    async with (
        ps.Client(cluster.url, heartbeat=HEARTBEAT_S, backoff=QUICK) as listener,
        ps.Client(cluster.url, heartbeat=HEARTBEAT_S, backoff=QUICK) as publisher,
        ps.Publisher(publisher, timeout=1) as pub,
        asyncio.TaskGroup() as reading,
    ):
        sources = [Source(index, pub, [channel]) for index, channel in enumerate(CHANNELS)]
        small = partial(ps.Subscriber[bytes], listener, *CHANNELS, buffer=20)
        readers = [
            Reader("exact", lambda: ps.Subscriber(listener, *CHANNELS)),
            Reader("drop_oldest", lambda: small(overflow="drop_oldest")),
            Reader("drop_newest", lambda: small(overflow="drop_newest")),
            Reader("fail", lambda: small(overflow="fail")),
            Reader("block", lambda: small(overflow="block")),
        ]
        for reader in readers:
            reading.create_task(reader.run(), name=reader.name)
            await reader.is_open.wait()
        is_over = asyncio.Event()
        publishing = [reading.create_task(source.run(is_over, PER_S)) for source in sources]
        faults = ClusterFaults(random.Random(SEED), cluster, readers, HEARTBEAT_S)
        await faults.run(count)
        is_over.set()
        await asyncio.gather(*publishing)
        while not all(reader.has_heard_the_end for reader in readers):
            for source in sources:
                await source.end()
            await asyncio.sleep(0.02)
        assert [await reader.sub.drain(10) for reader in readers] == [0] * len(readers)
    print(f"{count} faults of seed {SEED}: {dict(faults.counts)}", *summary(sources, readers), sep="\n")
    for source in sources:
        assert UNDER_WAY not in source.outcomes
        assert source.outcomes.count(CONFIRMED) > len(source.outcomes) / 10
    for reader in readers:
        reader.check(sources, faults.moves * len(CHANNELS))


async def chaos(server: Server) -> None:
    """Publish and read through the schedule, end in an orderly way, and look at the books."""
    async with (
        Proxy(server.port) as proxy,
        ps.Client(proxy.url, heartbeat=HEARTBEAT_S, backoff=QUICK) as far,
        ps.Client(server.url, heartbeat=HEARTBEAT_S, backoff=QUICK) as near,
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
        faults = Faults(random.Random(SEED), server, proxy, far, readers, HEARTBEAT_S)
        await faults.run(FAULTS // 4)
        before = rss_bytes() - books_bytes(sources, readers)
        await faults.run(FAULTS - FAULTS // 4)
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

    print(f"{FAULTS} faults of seed {SEED}: {dict(faults.counts)}", *summary(sources, readers), sep="\n")
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
        clients = admin.client_list(_type="pubsub")
        if sorted((client["sub"], client["psub"]) for client in clients) == wanted:
            break
        await asyncio.sleep(0.01)  # old connections end in the server a moment later; no event tells
    assert sorted(admin.pubsub_channels()) == sorted(CHANNELS)
