"""Who serves which slot of a cluster, and what a node says when it is not the one.

A node that does not serve a slot names the one that does (MOVED). Between two looks at the topology
that is the newest news, and stays so until a look from a later epoch says otherwise: a node that is
asked may not have heard yet (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).

Lives here: the map of slots, replies of `CLUSTER SLOTS` and `CLUSTER INFO`, redirections. Must not
live here: asking, connections. A cluster owns one map; routers and outboxes read redirections.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["SLOTS", "Address", "Redirect", "SlotMap", "View", "ranges_of", "redirect_of"]

SLOTS = 16_384


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
        address: Where to, of `MOVED` and `ASK`; an empty host is the one that was asked.
    """

    kind: str
    slot: int | None = None
    address: Address | None = None


def redirect_of(text: str) -> Redirect | None:
    """What an error reply says of redirection; `None` if it is another error."""
    kind, *rest = text.split(" ")
    if kind in ("TRYAGAIN", "CLUSTERDOWN"):
        return Redirect(kind)
    if kind not in ("MOVED", "ASK") or len(rest) != 2 or not rest[0].isdigit():
        return None
    host, colon, port = rest[1].rpartition(":")
    if not colon or not port.isdigit():
        return None
    return Redirect(kind, int(rest[0]), Address(host, int(port)))


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
            for first, last, (host, port, *_), *_ in slots:
                # no host: the node that was asked does not know its own (cluster-spec, "CLUSTER SLOTS")
                address = Address(host.decode() if host else asked.host, port)
                owners[first : last + 1] = [address] * (last + 1 - first)
            told = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
            return cls(owners, int(told["cluster_current_epoch"]), told["cluster_state"] == "ok")
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"no answer to CLUSTER SLOTS and INFO: {type(error).__name__}") from error


class SlotMap:
    """The newest that is known.

    Attributes:
        epoch: Of the last view that was taken; -1 before the first.
        primaries: Every node that serves a slot.
    """

    def __init__(self) -> None:
        self.epoch: int = -1
        self.primaries: frozenset[Address] = frozenset()
        self._owners: list[Address | None] = [None] * SLOTS
        self._told: dict[int, Address] = {}  # by MOVED, since that view

    def owner(self, slot: int) -> Address | None:
        """The primary of a slot, as far as is known."""
        return self._told.get(slot) or self._owners[slot]

    def take(self, view: View) -> bool:
        """Believe a view, unless a later one is known; whether anything has changed."""
        if view.epoch < self.epoch:
            return False
        before = (self._owners, self._told)
        if view.epoch > self.epoch:
            self._told = {}
        else:
            self._told = {slot: node for slot, node in self._told.items() if view.owners[slot] != node}
        self.epoch, self._owners = view.epoch, view.owners
        self._count_primaries()
        return before != (self._owners, self._told)

    def move(self, slot: int, to: Address) -> None:
        """A node has said that it does not serve a slot any more, and who does."""
        self._told[slot] = to
        self._count_primaries()

    @property
    def uncovered(self) -> list[int]:
        """The slots that nobody serves."""
        return [slot for slot in range(SLOTS) if self.owner(slot) is None]

    def _count_primaries(self) -> None:
        self.primaries = frozenset(node for node in {*self._owners, *self._told.values()} if node)


def ranges_of(slots: Iterable[int]) -> str:
    """Slots in ascending order, for people: `0-5460, 7000`."""
    ranges: list[list[int]] = []
    for slot in slots:
        if ranges and ranges[-1][1] == slot - 1:
            ranges[-1][1] = slot
        else:
            ranges.append([slot, slot])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
