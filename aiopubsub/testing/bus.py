"""What stands between the nodes of a cluster, so that they can be cut off from each other.

Every node announces a port of ours as its bus port and hears what comes in there through us. Who speaks
is in the head of each message
(https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#cluster-bus).

Lives here: carrying bytes, and not carrying them, in a thread of its own, since a test may hold its event
loop up for longer than the node timeout. Must not live here: what clients say to a node.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

from aiopubsub.testing.nodes import Node
from aiopubsub.testing.servers import HOST

__all__ = ["Bus"]

_SENDER = slice(40, 80)
_AT_ONCE_BYTES = 65_536


class Bus:
    """Carries what nodes tell each other, except between the two sides of a partition."""

    def __init__(self) -> None:
        self._one_side: frozenset[str] = frozenset()
        self._links: dict[asyncio.Task[None], tuple[str, str]] = {}  # who speaks, to whom
        self._serving: set[asyncio.Task[None]] = set()
        self._listening: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="aiopubsub-bus", daemon=True)
        self._thread.start()

    def serve(self, node: Node, own_port: int) -> None:
        """Listen where the node says it does, and carry to where it does."""
        self._do(self._listen(node, own_port))

    def cut(self, one_side: frozenset[str]) -> None:
        """Carry nothing between these nodes and all others, by their ids; nothing is cut for none."""
        self._do(self._cut(one_side))

    def stop(self) -> None:
        """Close everything."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result()

    async def _listen(self, node: Node, own_port: int) -> None:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(node, own_port, reader, writer))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

        self._listening.append(await asyncio.start_server(accept, HOST, node.bus_port))

    async def _serve(
        self, node: Node, own_port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readexactly(_SENDER.stop)
            ends = (head[_SENDER].decode("ascii", "replace"), node.id)
            if self._are_apart(*ends):
                return
            back, there = await asyncio.open_connection(HOST, own_port)
            with contextlib.closing(there):
                there.write(head)
                await self._carry(ends, _pump(reader, there), _pump(back, writer))

    async def _carry(self, ends: tuple[str, str], *ways: Coroutine[Any, Any, None]) -> None:
        """Both ways, until one of them ends."""
        pumps = {asyncio.create_task(way) for way in ways}
        self._links |= dict.fromkeys(pumps, ends)
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                del self._links[pump]
                pump.cancel()

    async def _cut(self, one_side: frozenset[str]) -> None:
        self._one_side = one_side
        for pump, ends in self._links.items():
            if self._are_apart(*ends):
                pump.cancel()

    async def _close(self) -> None:
        for listening in self._listening:
            listening.close()
        tasks = [*self._serving, *self._links]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _are_apart(self, speaker: str, listener: str) -> bool:
        return (speaker in self._one_side) != (listener in self._one_side)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_AT_ONCE_BYTES):
            writer.write(data)
            await writer.drain()
