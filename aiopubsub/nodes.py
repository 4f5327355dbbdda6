"""The nodes of a cluster: which there are, which slot is whose, links to them.

One connection asks a node for the topology, once in each heartbeat and whenever something looks wrong:
a connection is lost, a node says MOVED. What it answers is believed unless a later epoch is known. A
node that says that the cluster is down may be cut off from the others, so another one is asked.

Lives here: looking, believing, opening links. Must not live here: channels and requests. A cluster
owns one, its routers and outboxes ask it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any, TypeVar

import anyio

from .errors import Closed, ConnectFailed, ErrorReply, PubSubError
from .link import Backoff, Link, State
from .outbox import Outbox
from .router import Router
from .slots import Address, Redirect, SlotMap, View, ranges_of
from .wire import ClusterOpener, Push, Wire, WireOpener

__all__ = ["Nodes"]

logger: logging.Logger = logging.getLogger("aiopubsub.nodes")

D = TypeVar("D", Outbox, Router)

_TRY_S = 1.5  # for one node of several, when any of them will do
_PAUSE_S = 0.05  # between two looks, however much there is to see
_FOR_GOOD = ("NOPERM", "NOAUTH", "ERR")  # errors that will not pass; BUSY and LOADING will
_CALM_S = 1.0  # a slot that was moved again within this time is on its way still


class _AnyNode:
    """Opens a connection to any node that answers; not to the last one, if there are others."""

    def __init__(self, opener: ClusterOpener, known: Callable[[], Iterable[Address]]) -> None:
        self.target = opener.target
        self.asked = opener.startup[0]
        self._opener = opener
        self._known = known

    async def open(self) -> Wire:
        known = set(self._known())
        others = list({*known, *self._opener.startup} - {self.asked})
        random.shuffle(others)
        errors: list[ConnectFailed] = []
        for address in [*others, self.asked]:
            try:
                with anyio.fail_after(_TRY_S):
                    wire = await self._opener.at(address).open()
            except ConnectFailed as error:
                errors.append(error)
            except TimeoutError:
                errors.append(ConnectFailed(str(address), f"no answer within {_TRY_S:g} s"))
            else:
                self.asked = address
                return wire
        # a node that refuses us for good may have left the cluster: it does not speak for the others
        errors.sort(key=lambda error: error.permanent, reverse=not known)
        raise errors[0]


class _Announced:
    """Opens connections to a node that the cluster has named."""

    def __init__(self, opener: WireOpener, *, is_given: bool) -> None:
        self.target = opener.target
        self._opener = opener
        self._is_given = is_given

    async def open(self) -> Wire:
        try:
            return await self._opener.open()
        except ConnectFailed as error:
            if self._is_given or error.permanent:
                raise
            reason = f"{error.reason}; the cluster announces this address"
            advice = "set cluster-announce-ip, or give a RedisCluster with address_remap"
            raise ConnectFailed(error.target, f"{reason}: {advice}") from error


class Nodes:
    """What is known of a cluster's nodes.

    Args:
        opener: To the nodes.
        heartbeat: Seconds between two looks at the topology.
        backoff: Of links.

    Attributes:
        slots: Which node serves which slot.
        on_change: Called when that may have changed.
        on_refusal: Called when the cluster refuses us for good; why.
    """

    def __init__(self, opener: ClusterOpener, *, heartbeat: float, backoff: Backoff) -> None:
        self.slots: SlotMap = SlotMap()
        self.on_change: Callable[[], None] = lambda: None
        self.on_refusal: Callable[[PubSubError], None] = lambda _: None
        self._opener = opener
        self._heartbeat = heartbeat
        self._backoff = backoff
        self._loop = asyncio.get_running_loop()
        self._any = _AnyNode(opener, lambda: self.slots.primaries)
        self._asking = Link(
            self._any, Outbox(Push), role="looks at the topology", heartbeat=heartbeat, backoff=backoff
        )
        self._line = self._asking.dialogue.open_line(2)
        self._is_wanted = asyncio.Event()
        self._is_up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._error: PubSubError | None = None
        self._moved_at: dict[int, float] = {}
        self._is_change_due = False

    @property
    def target(self) -> str:
        """The cluster, for people."""
        return self._opener.target

    @property
    def error(self) -> PubSubError | None:
        """Why the cluster cannot be used."""
        return self._error or self._asking.error

    def open(self) -> None:
        """Begin to look, if it has not begun yet."""
        if self._task is None:
            self._asking.open()
            self._task = self._loop.create_task(self._watch(), name=f"aiopubsub {self._opener.target}")

    async def ready(self, timeout: float | None) -> None:
        """Wait until the topology is known and the cluster works.

        Raises:
            ConnectFailed: It does not within the timeout, or never will.
            Closed: It was closed.
        """
        self.open()
        try:
            with anyio.fail_after(timeout):
                await self._asking.ready(None)
                await self._is_up.wait()
        except Closed:
            pass  # it may be so because the cluster refuses us
        except TimeoutError:
            error = self.error
            if isinstance(error, ConnectFailed):
                raise ConnectFailed(error.target, error.reason) from error
            raise ConnectFailed(self._opener.target, f"no answer within {timeout:g} s") from None
        if self._asking.state is State.CLOSED:
            raise Closed("Client") if self._error is None else copy(self._error)

    def link(self, address: Address, dialogue: D, role: str) -> Link[D]:
        """A new link to a node."""
        return Link(
            _Announced(self._opener.at(address), is_given=address in self._opener.startup),
            dialogue,
            role=role,
            heartbeat=self._heartbeat,
            backoff=self._backoff,
            on_trouble=self.look,
        )

    def look(self) -> None:
        """Something is not as it was: look at the topology."""
        self._is_wanted.set()

    def reach(self, here: Address | None, announced: Address) -> Address:
        """Where a node is that another one, here, has named."""
        host = announced.host or (here or self._any.asked).host
        return self._opener.reach(Address(host, announced.port))

    def redirected(self, here: Address | None, redirect: Redirect, retry_s: float) -> float:
        """A node does not serve a slot, or not now; when to try again, in seconds."""
        self.look()
        if redirect.kind != "MOVED" or redirect.slot is None or redirect.address is None:
            return retry_s
        now = self._loop.time()
        was_calm = now - self._moved_at.get(redirect.slot, -_CALM_S) >= _CALM_S
        self._moved_at[redirect.slot] = now
        self.slots.move(redirect.slot, self.reach(here, redirect.address), now)
        if not self._is_change_due:  # once for all that a batch of replies says
            self._is_change_due = True
            self._loop.call_soon(self._tell_change)
        return 0.0 if was_calm else retry_s  # two nodes that name each other are asked slowly

    def close(self) -> list[Link[Outbox]]:
        """Look no more. Returns links that are closing."""
        if self._task is not None:
            self._task.cancel()
        self._asking.close()
        self._is_up.set()
        return [self._asking]

    async def wait_closed(self) -> None:
        """Until nothing is left."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=1.0)

    # -- inside ------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        try:
            while True:
                await self._asking.ready(None)
                await self._look()
                await asyncio.sleep(_PAUSE_S)
                with anyio.move_on_after(self._heartbeat):
                    await self._is_wanted.wait()
        except PubSubError as error:
            self._refuse(error)
        except Exception as error:  # a defect of ours, or of `address_remap`: it must reach whoever waits
            logger.exception("the look at the topology failed")
            self._refuse(ConnectFailed(self._opener.target, f"{type(error).__name__}: {error}", True))

    async def _look(self) -> None:
        """Ask one node, and believe it, unless it is behind."""
        self._is_wanted.clear()
        replies = await self._ask((b"CLUSTER", b"SLOTS"), (b"CLUSTER", b"INFO"))
        if replies is None:
            self.look()  # again, as soon as there is a connection
            return
        for reply in replies:
            if isinstance(reply, ErrorReply) and str(reply).startswith(_FOR_GOOD):
                reason = f"{reply} (to CLUSTER SLOTS and CLUSTER INFO, which have to be allowed)"
                raise ConnectFailed(str(self._any.asked), reason, permanent=True)
        try:
            view = View.of(replies[0], replies[1], self._any.asked)
        except ValueError as error:
            self._ask_another(str(error))
            return
        there = {owner: self._opener.reach(owner) for owner in set(view.owners) if owner is not None}
        view = view._replace(owners=[None if owner is None else there[owner] for owner in view.owners])
        if view.is_up or not self._is_up.is_set():
            self.slots.take(view, self._loop.time())
        if view.is_up:
            self._error = None
            self._is_up.set()
            self.on_change()
        else:  # or it is cut off from the others: one of them is asked
            self._error = ConnectFailed(str(self._any.asked), self._why_down())
            self._ask_another("it says that the cluster is down")

    def _ask_another(self, reason: str) -> None:
        """Look again as soon as there is a connection, to another node if there is one."""
        self._asking.leave(reason)
        self.look()

    def _tell_change(self) -> None:
        self._is_change_due = False
        self.on_change()

    def _why_down(self) -> str:
        uncovered = self.slots.uncovered
        if uncovered:
            return f"the cluster is down: nobody serves slots {ranges_of(uncovered)}"
        return "the cluster is down: too many of its nodes cannot be reached"

    async def _ask(self, *commands: tuple[bytes, ...]) -> list[Any] | None:
        """The replies to some commands; `None` if there were none in time."""
        deadline = self._loop.time() + self._heartbeat
        answers: list[asyncio.Future[Any]] = []
        for command in commands:
            answer: asyncio.Future[Any] = self._loop.create_future()
            self._line.add((answer, deadline, command, self._line))
            answers.append(answer)
        self._asking.kick(deadline)
        replies = await asyncio.gather(*answers, return_exceptions=True)
        return None if any(isinstance(reply, PubSubError) for reply in replies) else replies

    def _refuse(self, error: PubSubError) -> None:
        self._error = error
        self._asking.close()
        self._is_up.set()
        self.on_refusal(error)
