"""A real cluster on free ports of the loopback interface.

Lives here: making it, and what an operator does to its nodes. Must not live here: how they are asked and
waited for, and the steps by which slots move.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from aiopubsub.testing.bus import Bus
from aiopubsub.testing.moves import Move, migrate
from aiopubsub.testing.nodes import Node
from aiopubsub.testing.servers import HOST, free_ports
from aiopubsub.testing.topology import Topology, Where

__all__ = ["Cluster"]

_SLOTS = 16_384
_FAILOVER_S = 6.0  # a server gives a planned failover up after 5 s (CLUSTER FAILOVER)


class Cluster(Topology):
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
        tls: Certificate, key and authority, the paths of three PEM files: what clients and nodes say is
            encrypted. Redis can, the Valkey of the wheel cannot.
        timeout: How long anything may take, in seconds.
        partitions: Whether nodes can be cut off from each other with `isolate`, not with `tls`. What nodes
            tell each other, all messages of `PUBLISH` included, then goes through a thread of this
            process, so do not measure with it.

    Attributes:
        nodes: All of them, also those that were killed.
        isolated: Those that are cut off from the others.
    """

    def __init__(
        self,
        executable: str,
        *options: str,
        primaries: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = 2000,
        password: str | None = None,
        tls: tuple[str, str, str] | None = None,
        timeout: float = 30.0,
        partitions: bool = False,
    ) -> None:
        if primaries < 1 or replicas < 0:
            raise ValueError(f"primaries={primaries} and replicas={replicas}: at least 1 and 0 are needed")
        if tls is not None and partitions:
            raise ValueError("partitions=True reads what nodes tell each other, which tls encrypts")
        super().__init__(timeout)
        self._executable = executable
        self._options = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)),
            *("--cluster-allow-replica-migration", "no", "--repl-diskless-sync-delay", "0"),
            *options,
        )
        self._primaries = primaries
        self._replicas = replicas
        self._password = password
        self._tls = tls
        self._partitions = partitions
        self._bus: Bus | None = None

    # -- its life --------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """What a `Client` takes, with all nodes, without any password."""
        scheme = "redis" if self._tls is None else "rediss"
        return f"{scheme}+cluster://" + ",".join(f"{node.host}:{node.port}" for node in self.nodes)

    def start(self) -> None:
        """Start it and wait until all slots are served and all replicas are synchronised."""
        with ThreadPoolExecutor(1) as beside:  # the caller may have an event loop in this thread
            beside.submit(asyncio.run, self._start()).result()

    def stop(self) -> None:
        """End it at once, with SIGKILL, and remove its folders."""
        for node in self.nodes:
            node.kill()
            node.stop()
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.stop()

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
        self.isolated: frozenset[Node] = frozenset()
        try:
            self._bus = Bus() if self._partitions else None
            self.nodes: list[Node] = self._new_nodes(self._primaries * (1 + self._replicas))
            await self._launch(self.nodes)
            await self._form()
        except BaseException:
            self.stop()
            raise

    def _new_nodes(self, count: int) -> list[Node]:
        bus, ports = self._bus, iter(free_ports(3 * count))
        nodes: list[Node] = []
        for port, own_bus_port, bus_port in zip(ports, ports, ports, strict=True):
            node = Node(
                self._executable,
                *self._options,
                port=port,
                own_bus_port=own_bus_port,
                bus_port=own_bus_port if bus is None else bus_port,
                password=self._password,
                tls=self._tls,
            )
            nodes.append(node)
            if bus is not None:
                bus.serve(node, own_bus_port)
        return nodes

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

    # -- slots -----------------------------------------------------------------------------------------

    def moving(self, where: Where | Iterable[Where], to: Node) -> Move:
        """Move slots step by step, with room for a test between the steps; see `Move`."""
        return Move(self, where, to)

    async def move_slots(self, where: Where | Iterable[Where], to: Node) -> None:
        """Move slots step by step, with their keys, from wherever they are."""
        async with self.moving(where, to):
            pass

    async def migrate_slots(self, where: Where | Iterable[Where], to: Node) -> None:
        """Move slots by the server's own atomic migration, which Valkey has from version 9.

        Raises:
            RuntimeError: The migration has failed; with the server's message.
            redis.ResponseError: The server refuses, or does not know the command.
        """
        await migrate(self, where, to)

    # -- nodes that fail -------------------------------------------------------------------------------

    async def fail_over(self, replica: Node, *how: str) -> None:
        """Let a replica take over from its primary, as an operator does before maintenance.

        The primary becomes its replica. If the others refuse their votes it is asked for again after 6 s;
        so does Redis 7.0, after a moment in which there are two primaries, if the same node was promoted
        less than twice the node timeout ago.

        Args:
            replica: Who takes over.
            *how: `"FORCE"` or `"TAKEOVER"`, for a primary that does not answer.

        Raises:
            redis.ResponseError: The server's reason, for example that it is no replica.
        """
        await replica.ask("CLUSTER", "FAILOVER", *how)
        ask_again = time.monotonic() + _FAILOVER_S

        async def not_yet() -> str:
            nonlocal ask_again
            own = (await replica.view())[replica.id]
            if own.primary is None:
                return await self._trouble()
            if time.monotonic() > ask_again:
                ask_again += _FAILOVER_S
                await replica.ask("CLUSTER", "FAILOVER", *how)
            return f"{replica} is a replica"

        await self._until(f"{replica} is a primary", not_yet)

    async def isolate(self, *nodes: Node) -> None:
        """Cut nodes off from the others; a cluster with `partitions=True` can.

        The two sides don't hear each other any more; clients reach both, and replicas still copy their
        primaries. What is asked of the cluster is asked of the others, until `heal`.
        """
        if self._bus is None:
            raise RuntimeError("to isolate nodes make the Cluster with partitions=True")
        self.isolated = frozenset(nodes)
        self._bus.cut(frozenset(node.id for node in nodes))

    async def heal(self) -> None:
        """Make it whole again, whatever was done to its nodes.

        Those that were killed are started, those that were paused go on, those that were isolated hear the
        others, slots that were left half moved stay where they are. Who is primary, and who serves what, is
        as the failures have left it.
        """
        if self.isolated:
            await self.isolate()
        for node in self.nodes:
            if node.is_paused:
                node.resume()
        await self._launch([node for node in self.nodes if not node.is_running])
        for primary in await self.primaries():
            own = (await primary.view())[primary.id]
            await primary.ask_all(("CLUSTER", "SETSLOT", slot, "STABLE") for slot in own.open_slots)
        await self.wait_until_ok()

    # -- nodes that come and go ------------------------------------------------------------------------

    async def add_node(self, of: Node | None = None) -> Node:
        """Start one more node, and return it.

        Args:
            of: The primary whose replica it shall be; `None` makes a primary without slots.
        """
        (node,) = self._new_nodes(1)
        self.nodes.append(node)
        await self._launch([node])
        await self._introduce(node, (other for other in self._present() if other is not node))
        await self._until("all nodes know each other", self._strangers)
        if of is not None:
            await node.ask("CLUSTER", "REPLICATE", of.id)
        await self.wait_until_ok()
        return node

    async def remove_node(self, node: Node) -> None:
        """Take a node out for good and stop it.

        Slots that it serves go to the other primaries, in equal parts, by the server's own migration if
        it has one; so do its replicas.

        Raises:
            ValueError: No other primary is there.
        """
        others = [primary for primary in await self.primaries() if primary is not node]
        if not others:
            raise ValueError(f"{node} is the last primary")
        if node.is_running:
            await self._empty(node, others)
        for number, replica in enumerate(await self.replicas(of=node)):
            await replica.ask("CLUSTER", "REPLICATE", others[number % len(others)].id)
        await self.wait_until_agreed()
        self.nodes.remove(node)
        node.stop()
        for other in self._present():
            await other.ask("CLUSTER", "FORGET", node.id)
        await self.wait_until_ok()

    async def _empty(self, node: Node, others: list[Node]) -> None:
        slots = sorted((await node.view())[node.id].slots)
        (has_migration,) = await node.ask("COMMAND", "INFO", "CLUSTER|MIGRATESLOTS")
        move = self.migrate_slots if has_migration else self.move_slots
        for number, other in enumerate(others):
            if part := slots[len(slots) * number // len(others) : len(slots) * (number + 1) // len(others)]:
                await move(part, other)
