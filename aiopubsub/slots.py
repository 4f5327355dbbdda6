"""Who serves which slot of a cluster, and what a node says when it is not the one.

A node that does not serve a slot names the one that does (MOVED). Between two looks at the topology
that is the newest news, and stays so until a look from a later epoch says otherwise: a node that is
asked may not have heard yet (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).

Lives here: the map of slots, replies of `CLUSTER SLOTS` and `CLUSTER INFO`, redirections. Must not
live here: asking, connections. A cluster owns one map; routers and outboxes read redirections.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["SLOTS", "Address", "Redirect", "SlotMap", "View", "ranges_of", "redirect_of"]

SLOTS = 16_384

PATIENCE_S = 15.0
"""For so long what two nodes say may differ: the default of `cluster-node-timeout`, after which a node has
heard of a change or knows that it is cut off."""

_NO_NAME = "?"  # `cluster-preferred-endpoint-type hostname`, of a node without one


class Address(NamedTuple):
    """Where a node is."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Redirect(NamedTuple):
    """A server says: not here, or not now. Nothing was done.

    Attributes:
        kind: `MOVED`, `ASK`, `TRYAGAIN` or `CLUSTERDOWN`, the first word of an error reply; or `LEFT`,
            for a channel that is not subscribed any more.
        slot: Which slot; `None` where the reply does not say.
        address: Where to, of `MOVED` and `ASK`; an empty host is the one that was asked. `None` where the
            reply does not say: `?` stands for a name that the node has not been given.
    """

    kind: str
    slot: int | None = None
    address: Address | None = None


def redirect_of(text: str) -> Redirect | None:
    """What an error reply says of redirection; `None` if it is another error."""
    kind, *rest = text.split(" ")
    if kind in ("TRYAGAIN", "CLUSTERDOWN"):
        return Redirect(kind)
    if kind not in ("MOVED", "ASK") or len(rest) != 2 or not rest[0].isdecimal():
        return None
    host, colon, port = rest[1].rpartition(":")
    if int(rest[0]) >= SLOTS or not colon or not port.isdecimal():
        return None
    return Redirect(kind, int(rest[0]), None if host == _NO_NAME else Address(host, int(port)))


class View(NamedTuple):
    """A cluster as one node sees it."""

    owners: list[Address | None]
    """The primary of each slot; `None`: nobody serves it."""
    epoch: int
    """The latest that the node has heard of; each change of the topology raises it."""
    is_up: bool
    """Whether the node says that the cluster works."""

    @classmethod
    def of(cls, slots: Any, info: Any, asked: Address) -> View:
        """From the replies to `CLUSTER SLOTS` and `CLUSTER INFO` of a node at this address.

        Raises:
            ValueError: They are not such replies.
        """
        try:
            owners: list[Address | None] = [None] * SLOTS
            for first, last, (host, port, *more), *_ in slots:
                if not 0 <= first <= last < SLOTS:
                    raise ValueError(f"slots {first} to {last}")
                address = Address(_host_of(host, more) or asked.host, int(port))
                owners[first : last + 1] = [address] * (last + 1 - first)
            told = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
            return cls(owners, int(told["cluster_current_epoch"]), told["cluster_state"] == "ok")
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(f"no answer to CLUSTER SLOTS and INFO: {type(error).__name__}") from error


class _News(NamedTuple):
    """What a MOVED said."""

    node: Address
    at: float


class SlotMap:
    """The newest that is known.

    Neither of two things is believed for ever. A MOVED that views of the same epoch contradict may have
    come from a node that was behind; views of an earlier epoch, from a cluster that was set up anew.

    Attributes:
        epoch: Of the last view that was taken; -1 before the first.
        primaries: Every node that serves a slot, and those that were said to since that view.
        changes: How often an owner has changed.
    """

    def __init__(self) -> None:
        self.epoch: int = -1
        self.primaries: frozenset[Address] = frozenset()
        self.changes: int = 0
        self._owners: list[Address | None] = [None] * SLOTS
        self._taken_at = -math.inf
        self._told: dict[int, _News] = {}  # by MOVED, since that view

    def owner(self, slot: int) -> Address | None:
        """The primary of a slot, as far as is known."""
        news = self._told.get(slot)
        return self._owners[slot] if news is None else news.node

    def take(self, view: View, now: float) -> bool:
        """Believe a view, unless a later one is known; whether it was believed."""
        if view.epoch < self.epoch and now - self._taken_at < PATIENCE_S:
            return False
        is_of_same = view.epoch == self.epoch
        told = {
            slot: news
            for slot, news in self._told.items()
            if is_of_same and view.owners[slot] != news.node and now - news.at < PATIENCE_S
        }
        self.changes += (told, view.owners) != (self._told, self._owners)
        self._told = told
        self.epoch, self._owners, self._taken_at = view.epoch, view.owners, now
        nodes = {news.node for news in told.values()}
        self.primaries = frozenset(node for node in nodes.union(view.owners) if node)
        return True

    def move(self, slot: int, to: Address, now: float) -> None:
        """A node has said that it does not serve a slot any more, and who does."""
        self.changes += self.owner(slot) != to
        self._told[slot] = _News(to, now)
        self.primaries |= {to}

    @property
    def uncovered(self) -> list[int]:
        """The slots that nobody serves."""
        return [slot for slot in range(SLOTS) if self.owner(slot) is None]


def _host_of(host: bytes | None, more: list[Any]) -> str:
    """Of a node in `CLUSTER SLOTS`; empty if it is the one that was asked, which does not know its own.

    See https://redis.io/docs/latest/commands/cluster-slots/, "Nested Result Array".
    """
    name = host.decode() if host else ""
    if name == _NO_NAME:  # then its address is among what else is told of it
        return str(more[1][b"ip"].decode())
    return name


def ranges_of(slots: Iterable[int]) -> str:
    """Slots in ascending order, for people: `0-5460, 7000`."""
    ranges: list[list[int]] = []
    for slot in slots:
        if ranges and ranges[-1][1] == slot - 1:
            ranges[-1][1] = slot
        else:
            ranges.append([slot, slot])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
