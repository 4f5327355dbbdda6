"""What the nodes of a cluster say, together.

Lives here: who is who, and waiting until all nodes say the same. Must not live here: what changes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

import redis

from aiopubsub.keys import slot_of
from aiopubsub.testing.nodes import Entry, Node, ranges_of

__all__ = ["Topology", "Where", "slots_of"]

_POLL_S = 0.02
_ILL = {"handshake", "noaddr", "fail?", "fail"}

Where = int | str | bytes
"""A slot, or a channel or key that is in it."""

View = dict[str, Entry]


def slots_of(where: Where | Iterable[Where]) -> list[int]:
    """The slots that are meant, in order, each once."""
    if isinstance(where, int):
        return [where]
    if isinstance(where, str | bytes):
        return [slot_of(where.encode() if isinstance(where, str) else where)]
    return sorted({slot for each in where for slot in slots_of(each)})


class Topology:
    """Who is who in a `Cluster`, asked from all nodes that run and are not isolated.

    Args:
        timeout: How long a wait may take, in seconds.

    Attributes:
        nodes: All of them, also those that were killed.
        isolated: Those that are cut off from the others.
    """

    def __init__(self, timeout: float) -> None:
        self.nodes: list[Node] = []
        self.isolated: frozenset[Node] = frozenset()
        self._timeout = timeout
        self._served: dict[str, frozenset[int]] = {}  # by id: what all nodes last agreed on, if anything

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

    async def node_of(self, where: Where) -> Node:
        """The primary that serves a slot, or the slot of a channel or key, now.

        Of several that claim it, as after a partition, the one with the highest epoch.

        Raises:
            LookupError: No running node claims the slot.
        """
        (node,) = await self.owners_of(where)
        return node

    async def owners_of(self, where: Where | Iterable[Where]) -> dict[Node, list[int]]:
        """The primaries that serve these slots, now: node to slots in order; see `node_of`."""
        by_epoch = sorted((await self._own_entries()).items(), key=lambda item: -item[1].epoch)
        owners: dict[Node, list[int]] = {}
        for slot in slots_of(where):
            owner = next((node for node, own in by_epoch if slot in own.slots), None)
            if owner is None:
                raise LookupError(f"slot {slot} is served by none of {[node for node, _ in by_epoch]}")
            owners.setdefault(owner, []).append(slot)
        return owners

    async def _own_entries(self) -> dict[Node, Entry]:
        return {node: view[node.id] for node, view in (await self._views()).items()}

    async def _views(self) -> dict[Node, View]:
        nodes = self._present()
        return dict(zip(nodes, await asyncio.gather(*(node.view() for node in nodes)), strict=True))

    def _present(self) -> list[Node]:
        return [node for node in self.nodes if node.is_running and node not in self.isolated]

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

    async def wait_until_owned(self, where: Where | Iterable[Where], by: Node) -> None:
        """Wait until all running nodes say that this node serves these slots, and agree on all else."""
        wanted = frozenset(slots_of(where))

        async def late() -> str:
            views = await self._views()
            missing = {
                node: ranges_of(wanted.difference(view[by.id].slots if by.id in view else ()))
                for node, view in views.items()
            }
            return f"missing, by node: {missing}" if any(missing.values()) else ""

        await self._until(f"{by} has the slots", late)
        await self.wait_until_agreed()

    async def wait_for_promotion(self, of: Node) -> Node:
        """Wait until others serve what this primary, killed, paused or cut off, has served.

        Returns:
            Who does: its replica, as a rule.

        Raises:
            ValueError: It has served nothing when all nodes agreed last.
        """
        slots = self._served.get(of.id)
        if slots is None:
            raise ValueError(f"{of} has served no slots")

        async def held() -> str:
            views = await self._views()
            late = [node for node, view in views.items() if of.id in view and view[of.id].slots & slots]
            return f"{late} still give its slots to {of}" if late else ""

        await self._until(f"the slots of {of} are taken over", held)
        await self.wait_until_agreed()
        return await self.node_of(min(slots))

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
            for other in self._present():
                if other.id not in view or view[other.id].flags & _ILL:
                    return f"{node} has for {other}: {view.get(other.id)}"
        return ""

    async def _disagreement(self) -> str:
        (first, view), *rest = (await self._views()).items()
        told = _claims(view)
        for node, other in rest:
            if differing := told.items() ^ _claims(other).items():
                names = {name for name, _ in differing}
                ours, theirs = ([str(each.get(name)) for name in names] for each in (view, other))
                return f"{first} says {ours}, {node} says {theirs}"
        self._served |= {entry.id: entry.slots for entry in view.values() if entry.slots}
        return ""

    async def _trouble(self) -> str:
        if trouble := await self._strangers() or await self._disagreement():
            return trouble
        for node in self._present():
            state = (await node.info("cluster info"))["cluster_state"]
            link = (await node.info("replication")).get("master_link_status", "up")
            if (state, link) != ("ok", "up"):
                return f"{node} says cluster_state:{state}, master_link_status:{link}"
        return ""


def _claims(view: View) -> dict[str, tuple[str | None, frozenset[int]]]:
    """Who copies whom and who serves what, by the id of those who do either."""
    return {
        entry.id: (entry.primary, entry.slots) for entry in view.values() if entry.primary or entry.slots
    }
