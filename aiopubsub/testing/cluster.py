"""A real cluster on free ports of the loopback interface.

Lives here: making it, what an operator does to its nodes, and waiting until all of them know. Must not live
here: how one node is asked, and the steps by which slots move.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import redis

from aiopubsub.keys import slot_of
from aiopubsub.testing.moves import Move, migrate
from aiopubsub.testing.nodes import Entry, Node
from aiopubsub.testing.servers import HOST, free_ports

__all__ = ["Cluster"]

_SLOTS = 16_384
_POLL_S = 0.02
_ILL = {"handshake", "noaddr", "fail?", "fail"}

View = dict[str, Entry]


class Cluster:
    """A Redis Cluster or Valkey Cluster of your own, started in about 3 s.

    A context manager, plain or `async with`; `start` and `stop` can also be called, from any thread. A
    cluster that is started again is a new one, on other ports. All else is `async` and does not hold the
    event loop; it returns when what it says is true for every running node, and raises `TimeoutError`
    with what was seen if that takes longer than `timeout`. Cancelling leaves a step half done.

    Replicas stay with their primaries (`cluster-allow-replica-migration no`), and a new replica is
    synchronised at once (`repl-diskless-sync-delay 0`), unless `options` say otherwise.

    Args:
        executable: Its path, from `find_redis()` (Redis 7) or `find_valkey()` (Valkey 9).
        *options: More of each node's command line, for example `"--cluster-require-full-coverage", "no"`.
        primaries: How many, >= 1; with fewer than three no replica is ever promoted by vote.
        replicas: How many for each primary, >= 0.
        node_timeout_ms: After so many milliseconds without an answer a node counts as failing; a replica
            is promoted after about twice that.
        password: What clients and nodes log in with; the URL does not have it.
        timeout: How long anything may take, in seconds.

    Attributes:
        nodes: All of them, also those that were killed.
    """

    def __init__(
        self,
        executable: str,
        *options: str,
        primaries: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = 2000,
        password: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        if primaries < 1 or replicas < 0:
            raise ValueError(f"primaries={primaries} and replicas={replicas}: at least 1 and 0 are needed")
        self.nodes: list[Node] = []
        self._executable = executable
        self._options = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)),
            *("--cluster-allow-replica-migration", "no", "--repl-diskless-sync-delay", "0"),
            *options,
        )
        self._primaries = primaries
        self._replicas = replicas
        self._password = password
        self._timeout = timeout
        self._last_owners: dict[str, frozenset[int]] = {}

    # -- its life --------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """What a `Client` takes, with all nodes, without any password."""
        return "redis+cluster://" + ",".join(f"{node.host}:{node.port}" for node in self.nodes)

    def start(self) -> None:
        """Start it and wait until all slots are served and all replicas are synchronised."""
        with ThreadPoolExecutor(1) as beside:  # the caller may have an event loop in this thread
            beside.submit(asyncio.run, self._start()).result()

    def stop(self) -> None:
        """End it at once, with SIGKILL, and remove its folders."""
        for node in self.nodes:
            node.kill()
            node.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def _start(self) -> None:
        try:
            self.nodes = self._new_nodes(self._primaries * (1 + self._replicas))
            await self._launch(self.nodes)
            await self._form()
        except BaseException:
            self.stop()
            raise

    def _new_nodes(self, count: int) -> list[Node]:
        ports = free_ports(2 * count)
        return [
            Node(self._executable, *self._options, port=port, bus_port=bus_port, password=self._password)
            for port, bus_port in zip(ports[:count], ports[count:], strict=True)
        ]

    async def _launch(self, nodes: list[Node]) -> None:
        for node in nodes:
            node._launch()
        for node in nodes:
            await asyncio.to_thread(node._wait_until_ready)
            node.id = await node.ask("CLUSTER", "MYID")

    async def _form(self) -> None:
        """What `redis-cli --cluster create` does."""
        primaries, replicas = self.nodes[: self._primaries], self.nodes[self._primaries :]
        for epoch, node in enumerate(self.nodes, 1):
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        ends = [_SLOTS * number // len(primaries) for number in range(len(primaries) + 1)]
        for node, first, end in zip(primaries, ends[:-1], ends[1:], strict=True):
            await node.ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for number, node in enumerate(self.nodes):
            await self._introduce(node, self.nodes[:number])
        await self._until("all nodes know each other", self._strangers)
        for number, replica in enumerate(replicas):
            await replica.ask("CLUSTER", "REPLICATE", primaries[number % len(primaries)].id)
        await self.wait_until_ok()

    async def _introduce(self, node: Node, others: Iterable[Node]) -> None:
        for other in others:  # all pairs: gossip alone takes a second
            await node.ask("CLUSTER", "MEET", HOST, other.port, other.bus_port)

    # -- who is who ------------------------------------------------------------------------------------

    async def primaries(self) -> list[Node]:
        """The running nodes that say they are primaries, now, also those without slots."""
        return [node for node, own in (await self._own_entries()).items() if own.primary is None]

    async def replicas(self, of: Node | None = None) -> list[Node]:
        """The running nodes that say they are replicas, now: all, or those of one primary."""
        return [
            node
            for node, own in (await self._own_entries()).items()
            if own.primary is not None and (of is None or own.primary == of.id)
        ]

    async def node_of(self, where: str | bytes | int) -> Node:
        """The primary that serves a channel, a key or a slot, now.

        Of several that claim it, as after a partition, the one with the highest epoch.

        Raises:
            LookupError: No running node claims the slot.
        """
        slot = (
            where
            if isinstance(where, int)
            else slot_of(where.encode() if isinstance(where, str) else where)
        )
        (node,) = await self._owners_of([slot])
        return node

    async def _own_entries(self) -> dict[Node, Entry]:
        return {node: view[node.id] for node, view in (await self._views()).items()}

    async def _owners_of(self, slots: Iterable[int]) -> dict[Node, list[int]]:
        by_epoch = sorted((await self._own_entries()).items(), key=lambda item: -item[1].epoch)
        owners: dict[Node, list[int]] = {}
        for slot in slots:
            owner = next((node for node, own in by_epoch if slot in own.slots), None)
            if owner is None:
                raise LookupError(f"slot {slot} is served by none of {[node for node, _ in by_epoch]}")
            owners.setdefault(owner, []).append(slot)
        return owners

    async def _views(self) -> dict[Node, View]:
        running = [node for node in self.nodes if node.is_running]
        return dict(zip(running, await asyncio.gather(*(node.view() for node in running)), strict=True))

    # -- waiting ---------------------------------------------------------------------------------------

    async def wait_until_agreed(self) -> None:
        """Wait until all running nodes say the same: who serves which slot, who copies whom."""
        await self._until("all nodes agree", self._disagreement)

    async def wait_until_ok(self) -> None:
        """Wait until the cluster is whole.

        All running nodes agree, none of them counts as failing, each says `cluster_state:ok`, and
        replicas are connected to their primaries.
        """
        await self._until("the cluster is whole", self._trouble)

    async def _wait_until_owned(self, slots: Iterable[int], by: Node) -> None:
        wanted = frozenset(slots)

        async def elsewhere() -> str:
            views = await self._views()
            late = [node for node, view in views.items() if not wanted <= view[by.id].slots]
            return f"{late} give slots of {sorted(wanted)} to others than {by}" if late else ""

        await self._until(f"{by} has the slots", elsewhere)
        await self.wait_until_agreed()

    async def _until(self, wish: str, obstacle: Callable[[], Awaitable[str]]) -> None:
        """Ask for what is in the way of a wish until it is nothing."""
        give_up = time.monotonic() + self._timeout
        while True:
            try:
                seen = await obstacle()
            except redis.RedisError as error:
                seen = str(error)
            if not seen:
                return
            if time.monotonic() > give_up:
                raise TimeoutError(f"waited {self._timeout} s until {wish}; last seen: {seen}")
            await asyncio.sleep(_POLL_S)

    async def _strangers(self) -> str:
        for node, view in (await self._views()).items():
            for other in self.nodes:
                if other.is_running and (other.id not in view or view[other.id].flags & _ILL):
                    return f"{node} has for {other}: {view.get(other.id)}"
        return ""

    async def _disagreement(self) -> str:
        views = await self._views()
        told = {
            node: {
                entry.id: (entry.primary, entry.slots)
                for entry in view.values()
                if entry.slots or entry.primary
            }
            for node, view in views.items()
        }
        first, *rest = told
        for node in rest:
            if told[node] != told[first]:
                return f"{first} says {views[first]}, {node} says {views[node]}"
        self._last_owners = {entry.id: entry.slots for entry in views[first].values() if entry.slots}
        return ""

    async def _trouble(self) -> str:
        if trouble := await self._strangers() or await self._disagreement():
            return trouble
        for node in [node for node in self.nodes if node.is_running]:
            state = (await node.info("cluster info"))["cluster_state"]
            link = (await node.info("replication")).get("master_link_status", "up")
            if (state, link) != ("ok", "up"):
                return f"{node} says cluster_state:{state}, master_link_status:{link}"
        return ""

    # -- slots -----------------------------------------------------------------------------------------

    def moving(self, slots: Iterable[int], to: Node) -> Move:
        """Move slots step by step, with room for a test between the steps; see `Move`."""
        return Move(self, slots, to)

    async def move_slots(self, slots: Iterable[int], to: Node) -> None:
        """Move slots step by step, with their keys, wherever they are."""
        async with self.moving(slots, to):
            pass

    async def migrate_slots(self, slots: Iterable[int], to: Node) -> None:
        """Move slots by the server's own atomic migration, which Valkey has from version 9.

        Raises:
            RuntimeError: The migration has failed; with the server's message.
        """
        owners = await self._owners_of(sorted(set(slots)))
        owners.pop(to, None)
        for source, theirs in owners.items():
            await migrate(source, theirs, to)
        await self._wait_until_owned((slot for theirs in owners.values() for slot in theirs), to)
