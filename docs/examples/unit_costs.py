"""What a message costs the servers: the figures that docs/scaling.md plans with, on your machine.

    python docs/examples/unit_costs.py    # servers of its own: a single one, clusters of 3 + 3 and of 6 + 0
    python docs/examples/unit_costs.py --url redis+cluster://host:port

It publishes to channels that begin with `unit-costs:`, and asks every server before and after how much CPU
it has used (`INFO cpu`), and every node of a cluster how often it has told another one of a message
(`CLUSTER INFO`). Histories are kept for a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeAlias

import redis.asyncio as aioredis

import aiopubsub as ps
from aiopubsub.testing import Cluster, Server, find_redis

_redis: Any = aioredis  # its own types have holes

CHANNELS = 600  # over all slots
PAYLOAD = b"x" * 128

Topics: TypeAlias = list[ps.Topic[bytes]]


class Servers:
    """All servers of a deployment, asked from outside."""

    def __init__(self, nodes: dict[str, Any], whole: Any) -> None:
        self.nodes = nodes
        self.whole = whole

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, url: str) -> AsyncGenerator[Servers]:
        """Those that belong to this URL."""
        if "+cluster" not in url:
            async with _redis.Redis.from_url(url) as server:
                yield cls({"": server}, None)
            return
        first = "redis://" + url.partition("://")[2].partition(",")[0]
        async with _redis.RedisCluster.from_url(first) as whole, contextlib.AsyncExitStack() as stack:
            nodes = {
                node.name: await stack.enter_async_context(
                    _redis.Redis(host=node.host, port=int(node.port))
                )
                for node in whole.get_nodes()
            }
            yield cls(nodes, whole)

    async def used(self) -> tuple[float, int]:
        """Seconds of CPU of all servers, and how often a node has told another of a message, so far."""
        cpu_s, told = 0.0, 0
        for node in self.nodes.values():
            cpu: Any = await node.info("cpu")
            cpu_s += cpu["used_cpu_user"] + cpu["used_cpu_sys"]
            if self.whole is not None:
                told_of: Any = await node.execute_command("CLUSTER", "INFO")
                lines: list[str] = told_of.decode().splitlines()
                counts = (
                    line.split(":") for line in lines if "_messages_publish" in line and "_sent" in line
                )
                told += sum(int(count) for _, count in counts)
        return cpu_s, told

    async def cost_of(self, work: Callable[[], Awaitable[None]], count: int) -> tuple[float, float]:
        """Of one message: microseconds of CPU, less what is used when nothing is done; how often told."""
        began, before = time.perf_counter(), await self.used()
        await work()
        took, after = time.perf_counter() - began, await self.used()
        await asyncio.sleep(min(took, 1.0))  # servers use some CPU when they have nothing to do
        idle = (await self.used())[0] - after[0]
        cpu_s = after[0] - before[0] - idle * took / min(took, 1.0)
        return 1e6 * cpu_s / count, (after[1] - before[1]) / count

    @contextlib.asynccontextmanager
    async def listening(self, names: list[str], count: int) -> AsyncGenerator[None]:
        """So many subscribers with all channels, which read and do nothing else."""
        homes: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            home = None if self.whole is None else self.whole.get_node_from_key(name)
            homes["" if home is None else home.name].append(name)
        subscribe = "SUBSCRIBE" if self.whole is None else "SSUBSCRIBE"
        async with contextlib.AsyncExitStack() as stack:
            for place, channels in [*homes.items()] * count:
                settings = self.nodes[place].connection_pool.connection_kwargs
                _, writer = await asyncio.open_connection(settings["host"], settings["port"], limit=2**16)
                stack.callback(writer.close)
                writer.transport.set_protocol(_Drain())
                writer.write("".join(f"{subscribe} {channel}\r\n" for channel in channels).encode())
            yield


class _Drain(asyncio.Protocol):
    """Reads."""


async def measure(title: str, url: str, messages: int, connections: int) -> None:
    """Print the rows of one deployment."""
    prefix = f"unit-costs:{secrets.token_hex(4)}:"
    names = [f"{prefix}{number}" for number in range(CHANNELS)]
    few = max(1, messages // 10)
    plain = [ps.Topic(name) for name in names]
    kept = [ps.Topic(f"{name}:kept", history=ps.History(size=100, ttl=60)) for name in names[:10]]
    async with Servers.at(url) as servers, ps.Client(url) as client, ps.Publisher(client) as pub:

        async def many(topics: Topics, run: int = 1) -> None:
            await pub.publish_many((topics[n // run % len(topics)], PAYLOAD) for n in range(messages))

        async def one_by_one(topics: Topics) -> None:
            for n in range(few):
                await pub.publish(topics[n % len(topics)], PAYLOAD)

        async def row(what: str, work: Callable[[], Awaitable[None]], count: int) -> float:
            cpu_us, told = await servers.cost_of(work, count)
            print(f"{title:12} {what:48} {cpu_us:8.2f} {told:8.2f}", flush=True)
            return cpu_us

        await many(kept, run=100)  # connections are opened, the script is loaded
        await many(plain)
        alone = await row("publish, one at a time", lambda: one_by_one(plain), few)
        nobody = await row("publish, many in flight", lambda: many(plain), messages)
        if servers.whole is not None:
            wide = [ps.Topic(name, sharded=False) for name in names]
            await many(wide)
            await row("publish, many in flight, cluster-wide", lambda: many(wide), messages)
        await row("publish with history, one at a time", lambda: one_by_one(kept), few)
        await row("publish with history, a hundred in a call", lambda: many(kept, run=100), messages)
        async with servers.listening(names, connections):
            await many(plain)
            heard = await row(f"{connections} listen: one at a time", lambda: one_by_one(plain), few)
            print(f"{title:12} {'  more, for each that listens':48} {(heard - alone) / connections:8.2f}")
            heard = await row(f"{connections} listen: many in flight", lambda: many(plain), messages)
            print(f"{title:12} {'  more, for each that listens':48} {(heard - nobody) / connections:8.2f}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--url", help="a deployment of yours instead of servers of its own")
    parser.add_argument("--messages", type=int, default=30_000, help="of each row (default: 30000)")
    parser.add_argument("--connections", type=int, default=20, help="that listen (default: 20)")
    options = parser.parse_args()
    print(f"{'':12} {'of one message':48} {'us CPU':>8} {'told':>8}")
    if options.url:
        await measure("", options.url, options.messages, options.connections)
        return
    async with Server(find_redis()) as server:
        await measure("one server", server.url, options.messages, options.connections)
    for primaries, replicas in ((3, 1), (6, 0)):
        async with Cluster(find_redis(), primaries=primaries, replicas=replicas) as cluster:
            title = f"cluster {primaries}+{primaries * replicas}"
            await measure(title, cluster.url, options.messages, options.connections)


if __name__ == "__main__":
    asyncio.run(main())
