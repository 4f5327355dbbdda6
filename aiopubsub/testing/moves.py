"""Slots on their way from one node of a cluster to another.

Lives here: both ways to move them, step by step and by the server itself. Must not live here: how the
cluster is asked and waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from aiopubsub.testing.nodes import Node, ranges_of
from aiopubsub.testing.topology import Topology, Where

__all__ = ["Move", "migrate"]

_KEYS_AT_ONCE = 100
_MIGRATE_TIMEOUT_MS = 5000
_OVER = {"success", "failed", "cancelled"}


class Move:
    """Slots that are moved step by step, as `redis-cli` and other operators' tools do it.

    An async context manager, made by `Cluster.moving`. Entered, it has put the slots into the state
    `IMPORTING` at the target and `MIGRATING` at their sources. Left, it has done all steps that
    remain, also after an exception, and all running nodes agree. In between call `keys` and `give`,
    or nothing.

    Attributes:
        target: Where the slots go to.
        sources: Where they come from: node to slots. Known when it is entered; slots that the target has
            already are left out.
    """

    def __init__(self, topology: Topology, where: Where | Iterable[Where], target: Node) -> None:
        self.target = target
        self.sources: dict[Node, list[int]] = {}
        self._topology = topology
        self._where = where

    async def __aenter__(self) -> Self:
        self.sources = await self._topology.owners_of(self._where)
        self.sources.pop(self.target, None)
        for source, slots in self.sources.items():
            await self.target.ask_all(
                ("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id) for slot in slots
            )
            await source.ask_all(
                ("CLUSTER", "SETSLOT", slot, "MIGRATING", self.target.id) for slot in slots
            )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.keys()
        await self.give(self.target)
        await self.give(*self.sources)
        primaries = await self._topology.primaries()
        await self.give(*(node for node in primaries if node not in (self.target, *self.sources)))
        await self._topology.wait_until_owned(self._moved, self.target)

    async def keys(self) -> None:
        """Move all keys of the slots to the target with `MIGRATE`."""
        for source, slots in self.sources.items():
            counts = await source.ask_all(("CLUSTER", "COUNTKEYSINSLOT", slot) for slot in slots)
            for slot in (slot for slot, count in zip(slots, counts, strict=True) if count):
                await self._keys_of(slot, source)

    async def give(self, *nodes: Node) -> None:
        """Tell these nodes that the slots are the target's: `SETSLOT … NODE`.

        An operator tells the target first and then the source; the source refuses while it has keys.
        """
        told = [("CLUSTER", "SETSLOT", slot, "NODE", self.target.id) for slot in self._moved]
        await asyncio.gather(*(node.ask_all(told) for node in nodes))

    @property
    def _moved(self) -> list[int]:
        return [slot for slots in self.sources.values() for slot in slots]

    async def _keys_of(self, slot: int, source: Node) -> None:
        target = self.target
        secret = ("AUTH", target.password) if target.password else ()
        where = ("MIGRATE", target.host, target.port, "", 0, _MIGRATE_TIMEOUT_MS, *secret, "KEYS")
        while keys := await source.ask("CLUSTER", "GETKEYSINSLOT", slot, _KEYS_AT_ONCE):
            await source.ask(*where, *keys)


async def migrate(topology: Topology, where: Where | Iterable[Where], target: Node) -> None:
    """Let the sources hand slots over by themselves, see `Cluster.migrate_slots`."""
    sources = await topology.owners_of(where)
    sources.pop(target, None)
    for source, slots in sources.items():
        before = {job["name"] for job in await source.ask("CLUSTER", "GETSLOTMIGRATIONS")}
        ends = (end for run in ranges_of(slots) for end in run)
        await source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *ends, "NODE", target.id)
        job = await _end_of_job(topology, source, before)
        if job["state"] != "success":
            raise RuntimeError(f"migration from {source} to {target}: {job['state']}, {job['message']}")
    await topology.wait_until_owned((slot for slots in sources.values() for slot in slots), target)


async def _end_of_job(topology: Topology, source: Node, before: set[str]) -> dict[str, str]:
    """Wait until the one migration that was not there before is over, and return what became of it."""
    job: dict[str, str] = {}

    async def under_way() -> str:
        nonlocal job
        jobs = await source.ask("CLUSTER", "GETSLOTMIGRATIONS")
        (job,) = (job for job in jobs if job["name"] not in before)
        return "" if job["state"] in _OVER else str(job)

    await topology._until("the migration is over", under_way)
    return job
