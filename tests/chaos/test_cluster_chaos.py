"""A random schedule of faults against a real cluster; at the end the books must balance.

The schedule comes from a seed, as in `test_chaos.py`. To a cluster a twentieth of the faults is done, at
least each one once, because it takes seconds to recover from one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from functools import partial

import pytest

import aiopubsub as ps
from aiopubsub.testing import Cluster
from tests.chaos.books import CHANNELS, CONFIRMED, UNDER_WAY, Reader, Source, summary
from tests.chaos.cluster_faults import ClusterFaults
from tests.chaos.test_chaos import FAULTS, HEARTBEAT_S, PER_S, QUICK, SEED
from tests.conftest import cluster_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The contract suite shows clusters on both event loops; this takes minutes."""
    return "asyncio"


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
