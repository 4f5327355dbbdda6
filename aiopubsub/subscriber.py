"""`Subscriber`: the role that iterates.

Lives here: what a consumer waits for and gets; decoding, which runs in the consumer. Must not live
here: waiting (the intake), bounds and overflow (the mailbox), what the server knows (the router),
connections (the link).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack, cast, overload

import anyio

from .checks import check_choice, check_count, check_cursor_name, check_seconds
from .client import Client, Source, as_client, begin, deployment_of
from .cursor import Cursor
from .deployment import Deployment, Listening
from .errors import Closed, ConnectFailed, GapError, SlowConsumer, SubscribeRefused
from .intake import Intake
from .mailbox import Item, Mailbox, Overflow
from .message import Gap, KeptMessage, Message, Undecodable
from .options import OnGap, OverflowName, SubscriberOptions
from .position import Position
from .routes import Ticket
from .since import Since, SinceLike, start_of_each
from .stats import SubscriberStats
from .topic import Pattern, Subscribable, as_subscribable
from .trail import Trail

__all__ = ["Events", "Subscriber"]

logger: logging.Logger = logging.getLogger("aiopubsub.subscriber")

T = TypeVar("T")

_FORGET_TIMEOUT_S = 1.0  # how long `aclose` waits for the server to confirm that it has forgotten us


class Subscriber(Generic[T]):
    """Receives the messages of some topics and patterns, as an async iterator of `Message`.

    `async with` returns when the server has confirmed every topic: what is published from then on
    arrives, in the order of the server, once for each match. Several tasks may iterate one subscriber;
    each message goes to exactly one of them. It may be entered in one task and closed in another, of
    the same event loop.

    The iterator survives lost connections. What may have been missed meanwhile is a `Gap`, at its
    place among the messages. On a topic with history nothing is missed: it is read again, each message
    once and in order, as far back as the history reaches; beyond that it is a `Gap`.

    Args:
        source_or_client: A `Client` to share, or what `Client` takes as `source`.
        *topics: `Topic`, `Pattern`, or `str` for a topic of bytes. None is allowed: `subscribe` later.
        buffer: Messages, at least 1, that may wait for the consumer; not counted are up to 256 (or
            `buffer`, if that is less) that the iterator has in hand.
        buffer_bytes: Bytes, at least 1, that they may take: payloads and 128 bytes each. A larger
            message is still taken when no other waits. The iterator has 256 KiB in hand at most, or
            one message more.
        overflow: What happens to a message that does not fit. `"drop_oldest"`: the oldest that waits
            gives way. `"drop_newest"`: it is dropped itself. `"fail"`: the subscriber ends with
            `SlowConsumer` after what was buffered. `"block"`: the server is not read until half of the
            buffer is free; the subscriber has a connection of its own, which Redis closes at
            `client-output-buffer-limit pubsub` (32 MB by default). When the server is a heartbeat
            ahead, that is logged as a warning. What was read from the socket already is kept, so the
            buffer may be exceeded by one read of 32 KiB, or one message.
            Every drop is in a `Gap(OVERFLOW)` at the place where it happened, with the exact number.
            Messages of a topic with history are never dropped, whatever this says: those that do not
            fit are read again when there is room. With `"drop_oldest"` a message without history
            that would have to push them out is dropped itself.
        since: Where to begin in topics with history. `None`: now. `"beginning"`: with the first message
            that is kept. A `Position`, or its text: after that message. A mapping says it for each
            channel; `sub.positions` is one. Begins anew only if there is no cursor yet, with `name`.
        name: A durable cursor: where this subscriber stands in its topics with history is kept on the
            server under this name, of 1 to 128 letters, digits and `. _ -`; a process that comes back
            goes on there. A message is done when the next one is asked for, or with `done`; a process
            that ends or is killed before repeats it. Each message costs a round trip. One process at
            a time; the server keeps it until somebody deletes it.
        on_gap: What the plain iterator does with a gap: `"log"` a warning, or `"raise"` a `GapError`,
            after which iteration can go on. `events()` hands gaps over instead.

    Raises:
        ValueError: A number or a word is out of range, a channel is empty, or the source is not a URL
            that is known.
        TypeError: An argument has the wrong type.
    """

    @overload
    def __init__(
        self: Subscriber[bytes],
        source_or_client: Source | Client,
        *topics: str | Subscribable[bytes],
        **options: Unpack[SubscriberOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        source_or_client: Source | Client,
        *topics: Subscribable[T],
        **options: Unpack[SubscriberOptions],
    ) -> None: ...

    def __init__(
        self,
        source_or_client: Source | Client,
        *topics: str | Subscribable[Any],
        buffer: int = 65_536,
        buffer_bytes: int = 64 * 1024 * 1024,
        overflow: OverflowName = "drop_oldest",
        since: SinceLike = None,
        name: str | None = None,
        on_gap: OnGap = "log",
    ) -> None:
        self._initial = [as_subscribable(topic) for topic in topics]
        self._overflow = check_choice("overflow", overflow, tuple(o.value for o in Overflow))
        self._raises_gaps = check_choice("on_gap", on_gap, ("log", "raise")) == "raise"
        self._mailbox = Mailbox(
            buffer=check_count("buffer", buffer),
            buffer_bytes=check_count("buffer_bytes", buffer_bytes),
            overflow=Overflow(overflow),
            clock=time.time,
        )
        self._topics: dict[tuple[bool, str], Subscribable[object]] = {}
        self._check_conflicts(self._initial)
        self._since = since
        start_of_each(since, self._initial)
        self._name = None if name is None else check_cursor_name(name)
        if name is not None and self._initial and not any(topic.history for topic in self._initial):
            raise ValueError("`name` is for topics with history; give one of the topics a `history`")
        self._cursor: Cursor | None = None
        self._trails: dict[str, Trail] = {}
        self._client, self._owns_client = as_client(source_or_client)
        self._deployment: Deployment | None = None
        self._link: Listening | None = None
        self._is_closed = False
        self._undecodable = 0
        self._intake = Intake(self._mailbox)
        # of T, by the topics; a cast would take 0.05 µs for each message. With a name each one is asked for
        self._hand: list[Message[T]] = cast("list[Message[T]]", self._intake.hand if name is None else [])
        self._changing = asyncio.Lock()  # one subscribe or unsubscribe at a time

    # -- lifetime ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect, subscribe, and wait until the server has confirmed.

        Raises:
            ConnectFailed: No connection, or no confirmation, within the client's `connect_timeout`.
            SubscribeRefused: The server refused a topic; nothing stays subscribed.
            CursorFailed: The position that is kept under `name` cannot be read.
            Closed: The subscriber or its client was closed before.
        """
        if self._is_closed:
            raise Closed("Subscriber")
        if self._link is not None:
            raise RuntimeError("this Subscriber is open already")
        if self._owns_client:
            begin(self._client)
        try:
            is_shared = self._overflow != Overflow.BLOCK.value
            self._deployment = deployment_of(self._client)
            self._link = link = self._deployment.listening(is_shared=is_shared)
            self._mailbox.on_room = self._on_room
            link.dialogue.add(self._mailbox, (), Ticket())
            await link.ready(self._client.connect_timeout)
            if self._name is not None:
                self._cursor = Cursor(self._name, self._deployment.commanding(), self._mailbox.put)
            await self.subscribe(*cast("list[Subscribable[T]]", self._initial), since=self._since)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Unsubscribe and end every iterator; what is buffered is dropped.

        Waits a second at most for the server to confirm, so it never hangs; a second call does
        nothing. A client that was made here is closed, a shared one left open. Cancelling is safe.
        """
        if self._is_closed:
            return
        ticket, forgotten = self._ticket()
        link = self._shut(ticket)
        try:
            with anyio.move_on_after(_FORGET_TIMEOUT_S):
                if self._cursor is not None:
                    await self._cursor.aclose()
                if link is not None and not self._owns_client:
                    await forgotten
        finally:
            if link is not None and self._deployment is not None:
                await self._deployment.release(link)
            if self._owns_client:
                await self._client.aclose()

    async def drain(self, timeout: float | None = None) -> int:
        """Unsubscribe, let the consumers have what was published until now, and end the iterators.

        Returns when everything was handed over and a consumer has come back for more; one that works
        on its last message is waited for. What histories hold is read to their end first. With several
        consumers, wait for their tasks too. Without any consumer it waits for the timeout. `aclose` is
        still due, as always.

        Args:
            timeout: Seconds, > 0; `None` waits for ever.

        Returns:
            Messages in the buffer that were left behind when the time was over; 0 if all went well.
            What was not read from a history yet is not counted; it is still there.

        Raises:
            Closed: The subscriber is closed, or not open yet.
        """
        link = self._open_link()
        if timeout is not None:
            check_seconds("timeout", timeout)
        with anyio.move_on_after(timeout):
            await self._caught_up(link)
            await self._fence(link)
            link.dialogue.remove(self._mailbox, self._topics.values(), Ticket())
            link.kick()
            self._topics.clear()
            self._mailbox.end()
            await self._intake.until_ended()
        self._mailbox.end()
        return self._mailbox.buffered + len(self._intake.hand)

    # -- topics ------------------------------------------------------------------------------------

    @overload
    async def subscribe(
        self: Subscriber[bytes], *topics: str | Subscribable[bytes], since: SinceLike = None
    ) -> None: ...

    @overload
    async def subscribe(self, *topics: Subscribable[T], since: SinceLike = None) -> None: ...

    async def subscribe(self, *topics: str | Subscribable[Any], since: SinceLike = None) -> None:
        """Receive more topics, also while others iterate. Returns when the server has confirmed.

        Those that are subscribed already are confirmed again and change nothing. Cancelling it takes
        back what it has added.

        Args:
            *topics: As those of `Subscriber`.
            since: Where to begin in those that have a history, as that of `Subscriber`.

        Raises:
            SubscribeRefused: The server refused some; the others of this call are subscribed.
            ConnectFailed: No confirmation within the client's `connect_timeout`.
            CursorFailed: The position that is kept under the subscriber's `name` cannot be read.
            Closed: The subscriber is closed, or not open yet.
            ValueError: A name is subscribed to with another codec or history, or is empty; `since` is no
                position in one of the topics.
        """
        link = self._open_link()
        wanted = [as_subscribable(topic) for topic in topics]
        self._check_conflicts(wanted)
        starts = start_of_each(since, wanted)
        async with self._changing:
            router = link.dialogue
            added = [topic for topic in wanted if _name(topic) not in self._topics]
            trails: dict[Subscribable[object], Trail] = {
                topic: await self._trail(topic, starts) for topic in added if topic.history
            }
            ticket, settled = self._ticket()
            try:
                self._topics.update((_name(topic), topic) for topic in added)
                self._trails.update((topic.name, trail) for topic, trail in trails.items())
                router.add(self._mailbox, wanted, ticket, trails)
                link.kick(asyncio.get_running_loop().time() if trails else math.inf)
                await self._confirmation(link, settled)
                if ticket.error is not None:
                    raise ticket.error
            except BaseException:
                self._drop(link, added, Ticket())
                raise
            if ticket.refused:
                self._forget_refused(link)
                raise SubscribeRefused(ticket.refused)
            if self._cursor is not None:
                for trail in trails.values():
                    if trail.start is not None:
                        await self._cursor.begin(trail.topic.name, trail.start)

    async def unsubscribe(self, *topics: str | Subscribable[Any]) -> None:
        """Receive some topics no more. What was published before the call is still handed over.

        A `str` names a topic whatever its codec; a pattern is named by a `Pattern`. Those that are not
        subscribed are passed over. Returns when the server has confirmed, if there is a connection.
        Cancelling it leaves them unsubscribed.

        With `overflow="block"` and a full buffer the server is not read, so nothing is confirmed until
        a consumer takes messages: call it from another task than theirs.

        Raises:
            ConnectFailed: No confirmation within the client's `connect_timeout`; they are unsubscribed
                all the same.
            Closed: The subscriber is closed, or not open yet.
        """
        link = self._open_link()
        names = [_name(as_subscribable(topic)) for topic in topics]
        async with self._changing:
            ticket, forgotten = self._ticket()
            left = [self._topics[name] for name in names if name in self._topics]
            try:
                await self._confirmation(link, self._fence(link, left))
            finally:
                self._drop(link, left, ticket)
            await self._confirmation(link, forgotten)

    # -- iteration ---------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        """Iterate over messages.

        Raises:
            Closed: The subscriber is closed, or not open yet.
        """
        self._open_link()
        return self

    async def __anext__(self) -> Message[T]:
        """The next message. Ends when the subscriber is closed or drained.

        Cancelling it loses nothing: the message is still there for the next call.

        Raises:
            GapError: Messages are missing here, and `on_gap` is `"raise"`.
            SubscribeRefused: The server refused a topic after a reconnect; the others go on.
            SlowConsumer: The buffer was full, and `overflow` is `"fail"`.
            ConnectFailed: The server refuses this client for good.
        """
        hand = self._hand
        while True:
            if hand:
                message = hand.pop()
                if message._origin.is_bare:
                    return message
                event = self._event(message)
            else:
                item = await self._next_item()
                if item is None:
                    raise StopAsyncIteration
                event = self._event(item)
            if isinstance(event, Message):
                return event
            self._report(event)

    async def done(self) -> None:
        """With a `name`: what this task was handed last is done, though it may ask for no more.

        Waits until the server has confirmed that, or the connection is lost. Cancelling changes nothing.
        """
        if self._cursor is not None:
            await self._cursor.finish()

    def events(self) -> Events[T]:
        """Iterate over messages, gaps and undecodable messages alike, each at its place.

        Raises:
            Closed: The subscriber is closed, or not open yet.
        """
        self._open_link()
        return Events(self)

    def _next_item(self) -> Coroutine[Any, Any, Item | None]:
        """The next item. Not a coroutine itself: one less for each task that waits."""
        return self._intake.next_item() if self._cursor is None else self._next_of(self._cursor)

    async def _next_of(self, cursor: Cursor) -> Item | None:
        """The next item, after the one before it is done."""
        await cursor.finish()
        item = await self._intake.next_item()
        if isinstance(item, KeptMessage) and item.topic.history is not None:
            cursor.hand_over(item)
        return item

    # -- a look at it ------------------------------------------------------------------------------

    @property
    def topics(self) -> tuple[Subscribable[object], ...]:
        """What is subscribed, in the order of subscribing."""
        return tuple(self._topics.values())

    @property
    def positions(self) -> dict[str, Position]:
        """Where it stands in its topics with history, by channel: the last message handed over.

        Before the first one, where it begins: in a topic that was empty, a position before its first
        message; with `"beginning"`, it is not in it yet. Fit to be saved, and given as `since` later.
        """
        stands = {name: self._stand(trail) for name, trail in self._trails.items()}
        return {name: position for name, position in stands.items() if position is not None}

    @property
    def stats(self) -> SubscriberStats:
        """A look at the counts, now. Costs no round trip."""
        mailbox, link = self._mailbox, self._link
        return SubscriberStats(
            received=mailbox.received,
            delivered=mailbox.delivered - len(self._intake.hand),
            dropped=mailbox.dropped,
            undecodable=self._undecodable,
            malformed=mailbox.malformed,
            gaps=mailbox.gaps,
            buffered=mailbox.buffered + len(self._intake.hand),
            buffered_bytes=mailbox.buffered_bytes,
            reconnects=0 if link is None else link.reconnects,
            heard_s_ago=None if link is None else link.heard_s_ago,
        )

    # -- inside ------------------------------------------------------------------------------------

    def _open_link(self) -> Listening:
        if self._link is None or self._is_closed:
            raise Closed("Subscriber", opened=self._is_closed)
        return self._link

    def _check_conflicts(self, topics: Iterable[Subscribable[object]]) -> None:
        known = dict(self._topics)
        for topic in topics:
            if known.setdefault(_name(topic), topic) != topic:
                raise ValueError(
                    f"{topic!r} is subscribed to with another codec or history; "
                    "use one topic for it, or another subscriber"
                )

    def _ticket(self) -> tuple[Ticket, asyncio.Future[None]]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settle() -> None:
            if not done.done():  # cancelled: nobody waits any more
                done.set_result(None)

        return Ticket(settle), done

    def _stand(self, trail: Trail) -> Position | None:
        """In front of what waits; so nothing has to be noted for each message."""
        name = trail.topic.name
        in_hand = (
            m for m in reversed(self._intake.hand) if isinstance(m, KeptMessage) and m.channel == name
        )
        waiting = next(in_hand, None) or self._mailbox.first_of(name)
        if isinstance(waiting, Gap):
            return waiting._stood or trail.start
        return trail.position or trail.start if waiting is None else waiting.position_before

    async def _trail(self, topic: Subscribable[object], starts: Mapping[str, Since]) -> Trail:
        """The way along a topic's history, from where its cursor or the caller says."""
        since = starts[topic.name]
        if self._cursor is not None:
            since = await self._cursor.load(topic.key, self._client.connect_timeout) or since
        return Trail(self._mailbox, topic, since, time.time, partial(self._on_stray, topic.name))

    def _on_stray(self, channel: str) -> None:
        """A topic with history is also published to without."""
        logger.warning(
            "%r is also published to without history: such messages come without a position, and are lost "
            "with a connection",
            channel,
        )

    def _on_room(self) -> None:
        """The mailbox made somebody wait, and has room again."""
        if self._link is not None:
            self._link.dialogue.make_use_of_room(self._mailbox)
            self._link.kick()
            self._link.resume()

    def _caught_up(self, link: Listening) -> asyncio.Future[None]:
        """Done when all that the histories hold is in the mailbox."""
        ticket, reached = self._ticket()
        link.dialogue.catch_up(self._mailbox, ticket)
        return reached

    def _fence(
        self, link: Listening, topics: Iterable[Subscribable[object]] | None = None
    ) -> asyncio.Future[None]:
        """Done when what the server has sent so far is here; at once if there is no connection."""
        ticket, reached = self._ticket()
        link.dialogue.fence(ticket, topics)
        link.kick()
        return reached

    async def _confirmation(self, link: Listening, settled: asyncio.Future[None]) -> None:
        if settled.done():
            return  # without a timer, which asyncio keeps until it is due
        try:
            with anyio.fail_after(self._client.connect_timeout):
                await settled
        except TimeoutError:
            error = link.error
            if isinstance(error, ConnectFailed):
                raise ConnectFailed(error.target, error.reason) from error
            raise ConnectFailed(
                repr(self._client), f"no confirmation within {self._client.connect_timeout:g} s"
            ) from None

    def _drop(self, link: Listening, topics: Iterable[Subscribable[object]], ticket: Ticket) -> None:
        topics = list(topics)
        for topic in topics:
            self._topics.pop(_name(topic), None)
        link.dialogue.remove(self._mailbox, topics, ticket)
        link.kick()

    def _forget_refused(self, link: Listening) -> None:
        for name, topic in list(self._topics.items()):
            if not link.dialogue.wants(self._mailbox, topic):
                del self._topics[name]

    def _shut(self, ticket: Ticket) -> Listening | None:
        """Close without waiting; the ticket is done when the server has forgotten us."""
        self._is_closed = True
        link = self._link
        if link is not None:
            self._drop(link, list(self._topics.values()), ticket)
            link.dialogue.forget(self._mailbox)
        self._mailbox.end()
        self._mailbox.clear()
        self._intake.hand.clear()
        self._intake.wake_all()
        return link

    def _event(self, item: Item) -> Message[T] | Gap | Undecodable:
        """What a consumer is to see of an item. Raises it if it is an error."""
        if isinstance(item, Message):
            return self._decoded(item)
        if isinstance(item, Gap):
            return item
        if isinstance(item, SubscribeRefused) and self._link is not None:
            self._forget_refused(self._link)
        if isinstance(item, SlowConsumer):
            self._shut(Ticket())
        raise item

    def _decoded(self, message: Message[object]) -> Message[T] | Undecodable:
        topic = cast("Subscribable[T]", message.topic)
        if topic.decode is None:
            return cast("Message[T]", message)
        try:
            data = topic.decode(message.payload)
        except Exception as error:
            self._undecodable += 1
            return Undecodable(message.channel, message.payload, error, topic, message.position)
        if isinstance(message, KeptMessage):
            return KeptMessage(data, message.payload, message._origin, message.headers, message.place)
        return Message(data, message.payload, message._origin, message.headers)

    def _report(self, event: Gap | Undecodable) -> None:
        """What the plain iterator does with what is not a message."""
        if isinstance(event, Undecodable):
            logger.warning(
                "a message on %r could not be decoded: %s",
                event.channel,
                type(event.error).__name__,
            )
        elif self._raises_gaps:
            raise GapError(event)
        else:
            logger.warning("%s", GapError(event))


class Events(Generic[T]):
    """What `Subscriber.events()` returns: an async iterator of `Message`, `Gap` and `Undecodable`."""

    def __init__(self, subscriber: Subscriber[T]) -> None:
        self._subscriber = subscriber

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message[T] | Gap | Undecodable:
        """The next event; ends and raises as `Subscriber.__anext__` does, but for gaps."""
        item = await self._subscriber._next_item()
        if item is None:
            raise StopAsyncIteration
        return self._subscriber._event(item)


def _name(topic: Subscribable[Any]) -> tuple[bool, str]:
    return isinstance(topic, Pattern), topic.name
