"""The routers of a cluster's nodes, as one.

A channel is at the node that serves its slot. When the slot goes elsewhere, the channel goes after it,
with all who want it; one function does that, whatever has told us.

Lives here: which channel is at which node. Must not live here: the topology (the cluster), what is
said to a node (its router). Subscribers take it for a link and its router.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, Self

from .errors import Closed, ConnectFailed, PubSubError
from .keys import slot_of
from .link import Link
from .mailbox import Mailbox
from .nodes import Nodes
from .router import Router
from .routes import Kind, Target, Ticket
from .slots import Address, Redirect
from .topic import Subscribable
from .trail import Trail
from .wire import Push

__all__ = ["ClusterRouter"]

_RETRY_S = 0.05  # while a slot is on its way, or nobody serves it
_LEFT_S = 0.2  # for a look at the topology; a node that has become a replica would take the channel back


class _Home(NamedTuple):
    """Where a channel is: its slot, and the node that it is subscribed at; `None`: nobody serves it."""

    slot: int
    address: Address | None


class ClusterRouter:
    """Plays `Link[Router]`, and its dialogue, to subscribers.

    Args:
        nodes: Of the cluster.
        role: What it is for, in logs.
    """

    def __init__(self, nodes: Nodes, role: str) -> None:
        self._nodes = nodes
        self._role = role
        self._loop = asyncio.get_running_loop()
        self._links: dict[Address, Link[Router]] = {}
        self._limbo = Router(Push, partial(self._on_redirect, None))  # of what nobody serves
        self._homes: dict[Target, _Home] = {}
        self._seen = -1  # of the changes of who serves which slot
        self._mailboxes: dict[Mailbox, None] = {}
        self._is_closed = False

    # -- as a router -------------------------------------------------------------------------------

    @property
    def dialogue(self) -> Self:
        return self

    def add(
        self,
        mailbox: Mailbox,
        topics: Iterable[Subscribable[object]],
        ticket: Ticket,
        trails: Mapping[Subscribable[object], Trail] = MappingProxyType({}),
    ) -> None:
        self._mailboxes[mailbox] = None
        ticket.hold()
        for router, there in self._by_router(topics).items():
            router.add(mailbox, there, ticket, trails)
        ticket.release()

    def remove(self, mailbox: Mailbox, topics: Iterable[Subscribable[object]], ticket: Ticket) -> None:
        ticket.hold()
        for router, there in self._by_router(self._known(topics)).items():
            router.remove(mailbox, there, ticket)
            for topic in there:
                target = self._limbo.target_of(topic)
                if not router.is_wanted(target):
                    self._homes.pop(target, None)
        ticket.release()

    def wants(self, mailbox: Mailbox, topic: Subscribable[object]) -> bool:
        home = self._homes.get(self._limbo.target_of(topic))
        return home is not None and self._router(home.address).wants(mailbox, topic)

    def fence(self, ticket: Ticket, topics: Iterable[Subscribable[object]] | None = None) -> None:
        ticket.hold()
        for router in self._routers() if topics is None else self._by_router(self._known(topics)):
            router.fence(ticket)  # without a connection, of what nobody serves, it is done at once
        ticket.release()

    def catch_up(self, mailbox: Mailbox, ticket: Ticket) -> None:
        ticket.hold()
        for router in self._routers():
            router.catch_up(mailbox, ticket)
        ticket.release()

    def make_use_of_room(self, mailbox: Mailbox) -> None:
        for router in self._routers():
            router.make_use_of_room(mailbox)

    def forget(self, mailbox: Mailbox) -> None:
        self._mailboxes.pop(mailbox, None)
        for router in self._routers():
            router.forget(mailbox)

    # -- as a link ---------------------------------------------------------------------------------

    @property
    def error(self) -> PubSubError | None:
        """Why it cannot do all that is wanted of it."""
        for home in self._homes.values():
            if home.address is None:
                reason = f"no node of the cluster serves slot {home.slot}"
                return ConnectFailed(self._nodes.target, reason)
        errors = (link.error for link in self._links.values() if link.error is not None)
        return next(errors, None) or self._nodes.error

    @property
    def reconnects(self) -> int:
        return sum(link.reconnects for link in self._links.values())

    @property
    def heard_s_ago(self) -> float | None:
        """Of the node that was silent longest."""
        heard = [link.heard_s_ago for link in self._links.values()]
        known = [seconds for seconds in heard if seconds is not None]
        return max(known, default=None)

    async def ready(self, timeout: float | None) -> None:
        await self._nodes.ready(timeout)

    def kick(self, deadline: float = math.inf) -> None:
        for link in self._links.values():
            link.kick(deadline)

    def resume(self) -> None:
        for link in self._links.values():
            link.resume()

    # -- what the cluster tells --------------------------------------------------------------------

    def links(self) -> dict[str, Link[Router]]:
        """Those there are, by role."""
        return {f"{self._role} {address}": link for address, link in self._links.items()}

    def settle(self) -> None:
        """The topology may have changed: let each channel be where its slot is."""
        if self._is_closed:
            return
        self._forget_refused()
        slots = self._nodes.slots
        if slots.changes != self._seen:  # with 100 000 channels it takes 0.1 s
            self._seen = slots.changes
            self._follow()
        if unused := self._links.keys() - slots.primaries:
            for address in unused - {home.address for home in self._homes.values()}:
                link = self._links.pop(address)
                link.dialogue.let_go()
                link.close()

    def close(self, error: PubSubError | None) -> list[Link[Router]]:
        """Nothing more will come; `None`: because it was closed. Returns links that are closing."""
        if self._is_closed:
            return []
        self._is_closed = True
        why = Closed("Client") if error is None else error
        self._limbo.close(why)
        for link in self._links.values():
            link.dialogue.close(why)
            link.close()
        for mailbox in self._mailboxes:
            if error is not None:
                mailbox.put(error)
            mailbox.end()
        self._mailboxes.clear()
        return list(self._links.values())

    # -- inside ------------------------------------------------------------------------------------

    def _known(self, topics: Iterable[Subscribable[object]]) -> list[Subscribable[object]]:
        """Those of them that somebody wants."""
        return [topic for topic in topics if self._limbo.target_of(topic) in self._homes]

    def _by_router(
        self, topics: Iterable[Subscribable[object]]
    ) -> dict[Router, list[Subscribable[object]]]:
        groups: defaultdict[Router, list[Subscribable[object]]] = defaultdict(list)
        for topic in topics:
            target = self._limbo.target_of(topic)
            home = self._homes.get(target)
            if home is None:
                slot = slot_of(target.key)
                home = self._homes[target] = _Home(slot, self._place(target.kind, slot, None))
            groups[self._router(home.address)].append(topic)
        return groups

    def _place(self, kind: Kind, slot: int, here: Address | None) -> Address | None:
        """Where a channel of this slot has to be; it may stay where it is if it need not go."""
        slots = self._nodes.slots
        if kind is not Kind.SHARD and here in slots.primaries:
            return here  # every node has it
        return slots.owner(slot) or here

    def _router(self, address: Address | None) -> Router:
        if address is None or self._is_closed:
            return self._limbo
        link = self._links.get(address)
        if link is None:
            router = Router(Push, partial(self._on_redirect, address))
            link = self._links[address] = self._nodes.link(address, router, self._role)
            link.open()
        return link.dialogue

    def _routers(self) -> list[Router]:
        return [self._limbo, *(link.dialogue for link in self._links.values())]

    def _follow(self) -> None:
        """Move what is not where its slot is."""
        moves: defaultdict[tuple[Address | None, Address], list[Target]] = defaultdict(list)
        for target, home in self._homes.items():
            there = self._place(target.kind, home.slot, home.address)
            if there is not None and there != home.address:
                moves[home.address, there].append(target)
        for (here, there), targets in moves.items():
            self._move(targets, here, there)

    def _move(self, targets: list[Target], here: Address | None, there: Address) -> None:
        router = self._router(there)
        cause = f"the slot went to {there}" if here is None else f"the slot went from {here} to {there}"
        self._router(here).move(targets, router, cause)
        for target in targets:
            self._homes[target] = _Home(self._homes[target].slot, there)
        if here is not None:
            self._links[here].kick()
        self._links[there].kick(self._loop.time())

    def _forget_refused(self) -> None:
        """What a server has refused is nobody's wish any more."""
        if len(self._homes) > sum(router.wished for router in self._routers()):
            self._homes = {
                target: home
                for target, home in self._homes.items()
                if self._router(home.address).is_wanted(target)
            }

    def _on_redirect(self, here: Address | None, targets: list[Target], redirect: Redirect) -> None:
        """A node does not serve these, or not now."""
        retry_s = _LEFT_S if redirect.kind == "LEFT" else _RETRY_S
        delay = self._nodes.redirected(here, redirect, retry_s)
        self._loop.call_later(delay, self._try_again, targets)

    def _try_again(self, targets: list[Target]) -> None:
        for target in targets:
            home = self._homes.get(target)
            link = None if home is None or home.address is None else self._links.get(home.address)
            if link is not None and not self._is_closed:
                link.dialogue.ask_again([target])
                link.kick()
