"""A Redis or Valkey Cluster.

Lives here: what of a cluster does what. Must not live here: topology (the nodes), channels (the
router of the cluster), requests (its outbox). A client makes one; roles don't know what it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from .cluster_outbox import ClusterOutbox
from .cluster_router import ClusterRouter
from .deployment import AnyLink, Listening
from .errors import PubSubError
from .link import Backoff
from .nodes import Nodes
from .wire import ClusterOpener

__all__ = ["Cluster"]


class Cluster:
    """A link that commands and one that listens for each primary that has something to do; and one
    connection that looks at the topology."""

    def __init__(self, opener: ClusterOpener, *, heartbeat: float, backoff: Backoff) -> None:
        self._nodes = Nodes(opener, heartbeat=heartbeat, backoff=backoff)
        self._nodes.on_change = self._settle
        self._nodes.on_refusal = self._refuse
        self._commanding = ClusterOutbox(self._nodes)
        self._listening = ClusterRouter(self._nodes, "listens")
        self._own: list[ClusterRouter] = []
        self._count = 0

    def commanding(self) -> ClusterOutbox:
        return self._commanding

    def listening(self, *, is_shared: bool) -> ClusterRouter:
        if is_shared:
            return self._listening
        self._count += 1
        own = ClusterRouter(self._nodes, f"listens alone {self._count}")
        self._own.append(own)
        return own

    async def release(self, link: Listening) -> None:
        own = cast("ClusterRouter", link)
        if own in self._own:
            self._own.remove(own)
            await _end(own.close(None))

    def links(self) -> dict[str, AnyLink]:
        links: dict[str, AnyLink] = {**self._commanding.links()}
        for router in self._routers():
            links |= router.links()
        return links

    async def aclose(self) -> None:
        closing = self._close(None)  # before the first await, where this can be cancelled
        await _end(closing)
        await self._nodes.wait_closed()

    def _close(self, error: PubSubError | None) -> list[AnyLink]:
        closing: list[AnyLink] = [*self._commanding.close(error), *self._nodes.close()]
        for router in self._routers():
            closing += router.close(error)
        return closing

    def _routers(self) -> list[ClusterRouter]:
        return [self._listening, *self._own]

    def _settle(self) -> None:
        """The topology may have changed."""
        self._commanding.settle()
        for router in self._routers():
            router.settle()

    def _refuse(self, error: PubSubError) -> None:
        self._commanding.close(error)
        for router in self._routers():
            router.close(error)


async def _end(closing: Sequence[AnyLink]) -> None:
    await asyncio.gather(*(link.aclose() for link in closing))
