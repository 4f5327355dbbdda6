"""`Publisher`: the role that publishes.

Lives here: what a caller of `publish` gives, waits for and gets. Must not live here: order, windows
and deadlines (the outbox), connections (the link).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from secrets import token_hex
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar, overload

from .append import Append, Entry
from .checks import check_count, check_seconds
from .client import Client, Source, as_client, begin, deployment_of
from .deployment import AnyLine, Commanding
from .dialogue import PUBLISH, SPUBLISH, Command
from .errors import Closed, EncodeFailed, NotSent, PubSubError
from .frame import MAGIC, frame, pack_headers
from .line import Batch
from .message import Receipt, position_at
from .topic import History, Topic

__all__ = ["BytesLike", "Publisher"]

BytesLike: TypeAlias = bytes | bytearray | memoryview | str
"""What a topic of bytes takes; a `str` is sent as UTF-8."""

T = TypeVar("T")

_BATCH = 256  # messages that `publish_many` sends at a time, so that the server works while we prepare
_RECEIPTS = tuple(Receipt(receivers) for receivers in range(256))
_TOPICS = 1024  # remembered by name: to make and check one takes a twentieth of a publish
_BUFFERS: Any = (bytearray, memoryview)  # Any: isinstance would give a memoryview of unknown items


class Publisher:
    """Publishes messages, many at a time, in order.

    With a `Client` it can be used at once; with a source of its own it is entered with `async with`,
    which returns when the server has answered. All publishes of one turn of the event loop leave in
    one write. The messages of one publisher are published in the order of the calls.

    Args:
        source_or_client: A `Client` to share, or what `Client` takes as `source`.
        timeout: Seconds, > 0, that a publish may take from call to receipt.
        max_in_flight: Publishes that may be without an answer at a time, at least 1; more wait for
            their turn. It bounds memory; 10 000 keep a server 30 ms away busy at 300 000 a second.

    Raises:
        ValueError: A number is out of range, or the source is not a URL that is known.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        source_or_client: Source | Client,
        *,
        timeout: float = 5.0,
        max_in_flight: int = 10_000,
    ) -> None:
        self._timeout = check_seconds("timeout", timeout)
        self._max_in_flight = check_count("max_in_flight", max_in_flight)
        self._client, self._owns_client = as_client(source_or_client)
        self._way: tuple[Commanding, AnyLine] | None = None  # to the server, from the first use on
        self._topics: dict[str, Topic[bytes]] = {}  # of the channels that were given as str
        self._kept: dict[str, History] = {}  # topics with history that this client publishes to
        self._verb = PUBLISH  # of sharded topics
        self._name = token_hex(6).encode()
        self._numbers = itertools.count(1)
        self._is_closed = False
        self._time: Callable[[], float]  # of the event loop, bound at the first use
        self._create_future: Callable[[], asyncio.Future[Any]]

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ConnectFailed: The server refused, or did not answer within the client's
                `connect_timeout`.
            Closed: The publisher or its client was closed before.
        """
        if self._is_closed:
            raise Closed("Publisher")
        if self._owns_client:
            begin(self._client)
        try:
            link, _ = self._way or self._open_way()
            await link.ready(self._client.connect_timeout)
        except BaseException:
            if self._owns_client:
                await self._client.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @overload
    async def publish(
        self,
        topic: str | Topic[bytes],
        data: BytesLike,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Receipt: ...

    @overload
    async def publish(
        self, topic: Topic[T], data: T, *, headers: Mapping[str, str] | None = None
    ) -> Receipt: ...

    async def publish(
        self, topic: str | Topic[Any], data: Any, *, headers: Mapping[str, str] | None = None
    ) -> Receipt:
        """Publish one message and wait for the server's answer.

        While there is no connection it waits for one. Cancelling it is safe: a message that has not
        left is not sent; one that has is published.

        On a topic with history it is sent again after a lost connection, and stored once all the same;
        `Receipt.duplicate` tells whether the first try had arrived.

        Args:
            topic: A `Topic`, or a `str` for a topic of bytes.
            data: What the topic's `encode` takes; for a topic of bytes, bytes or `str`.
            headers: Names and values that travel with the message, 64 KiB at most; subscribers of
                this library get them as `Message.headers`, others see a framed message.

        Returns:
            How many connections the server handed it to; where it stands in the topic's history.

        Raises:
            EncodeFailed: `encode` raised, or returned something that is not bytes.
            NotSent: It did not leave this process within `timeout`: safe to publish again.
            Unconfirmed: It left, but no answer came: published once or not at all.
            PublishRefused: The server refused it, for example for lack of permission.
            ConnectFailed: There will be no connection: the server refused this client.
            Closed: The publisher or its client is closed, or not open yet.
            TypeError, ValueError: An argument is not what it should be, or the channel is published
                to with another history, or with and without one.
        """
        way = self._way or self._open_way()
        if isinstance(topic, Topic) and topic.history is not None:
            return await self._append(way, topic, self._entry(topic, topic.history, data, headers))
        return _receipt(await self._request(way, self._command(topic, data, headers)))

    @overload
    async def publish_many(
        self,
        topic: str | Topic[bytes],
        items: Iterable[BytesLike],
        /,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> list[Receipt]: ...

    @overload
    async def publish_many(
        self, topic: Topic[T], items: Iterable[T], /, *, headers: Mapping[str, str] | None = None
    ) -> list[Receipt]: ...

    @overload
    async def publish_many(
        self,
        pairs: Iterable[tuple[str | Topic[Any], Any]],
        /,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> list[Receipt]: ...

    async def publish_many(
        self,
        first: Any,
        items: Iterable[Any] | None = None,
        /,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> list[Receipt]:
        """Publish many messages, `max_in_flight` at a time: `(topic, items)` or `(pairs)`.

        Each is prepared when its turn comes, so the iterable may be long or endless. All that were
        begun are waited for, whatever becomes of the others. Cancelling it leaves those published
        that had left.

        Args:
            first: A topic, as of `publish`; or pairs of a topic and data.
            items: Data for the topic; nothing if pairs are given.
            headers: As of `publish`, for each of the messages.

        Returns:
            The receipts in the order given.

        Raises:
            PubSubError: The first failure, as `publish` would raise it, with a note that says which
                message it was and how many failed.
        """
        pairs = ((first, item) for item in items) if items is not None else iter(first)
        window = max(1, self._max_in_flight // _BATCH)
        pending: deque[tuple[Batch | Append, asyncio.Future[None]]] = deque()
        receipts: list[Receipt] = []
        settled = 0
        failures: dict[int, PubSubError] = {}
        broken: Exception | None = None
        is_over = False
        try:
            while pending or not is_over:
                if not is_over:
                    try:
                        is_over = not self._begin_batch(pairs, pending, headers)
                    except Exception as error:  # those that were begun are waited for first
                        broken, is_over = error, True
                while pending and (is_over or len(pending) >= window):
                    batch, answered = pending[0]
                    await answered
                    pending.popleft()
                    failures |= {settled + at: error for at, error in batch.failures().items()}
                    settled += batch.size
                    receipts += _receipts(batch)
                    is_over = is_over or bool(failures)
        finally:
            for _, answered in pending:  # when cancelled: what has not left is not sent
                answered.cancel()
        if failures:
            at, first_error = min(failures.items())
            first_error.add_note(
                f"publish_many: message {at} (counted from 0) was the first of {len(failures)} "
                f"that failed, out of {settled} that were begun"
            )
            raise first_error
        if broken is not None:
            raise broken
        return receipts

    async def aclose(self) -> None:
        """Send what waits, wait for the answers up to `timeout`, then close.

        From the call on, `publish` raises `Closed`. A client that was made here is closed, a shared
        one is left open. A second call does nothing. Cancelling it closes at once.
        """
        if self._is_closed:
            return
        self._is_closed = True
        way, self._way = self._way, None
        if way is not None:
            link, line = way
            try:
                await self._work_off(way)
            finally:
                link.dialogue.close_line(line, Closed("Publisher"))
                if self._owns_client:
                    await self._client.aclose()
        elif self._owns_client:
            await self._client.aclose()

    # -- inside ------------------------------------------------------------------------------------

    def _open_way(self) -> tuple[Commanding, AnyLine]:
        """The link, and a line of this publisher's own in its outbox."""
        if self._is_closed:
            raise Closed("Publisher")
        link = deployment_of(self._client).commanding()
        self._way = (link, link.dialogue.open_line(self._max_in_flight))
        self._kept = link.dialogue.histories
        self._verb = SPUBLISH if link.dialogue.in_cluster else PUBLISH
        loop = asyncio.get_running_loop()
        self._time, self._create_future = loop.time, loop.create_future
        link.open()
        return self._way

    def _request(self, way: tuple[Commanding, AnyLine], command: Command) -> asyncio.Future[int]:
        """Put a command into the line; the future gets its answer."""
        link, line = way
        promise = self._create_future()
        deadline = self._time() + self._timeout
        if line.add((promise, deadline, command, line)):
            link.kick(deadline)
        return promise

    async def _work_off(self, way: tuple[Commanding, AnyLine]) -> None:
        """Until all has its answer, or the time is over; whoever waits for a receipt is told."""
        _, line = way
        give_up_at = self._time() + self._timeout
        while (line.waiting or line.in_flight) and self._time() < give_up_at:
            try:
                # answers come in order: when this one is here, so are all before it
                await self._request(way, (b"PING",))
            except NotSent:
                return
            except PubSubError:
                continue  # the connection was lost: what a history keeps is sent again

    async def _append(self, way: tuple[Commanding, AnyLine], topic: Topic[Any], kept: _Kept) -> Receipt:
        """Put one message of a topic with history into the line, and wait for its receipt."""
        link, line = way
        promise: asyncio.Future[None] = self._create_future()
        deadline = self._time() + self._timeout
        append = Append(promise, deadline, kept.channel, kept.history, [kept.entry], verb=kept.verb)
        if line.add(append):
            link.kick(deadline)
        await promise
        if append.error is not None:
            raise append.error
        return _receipts(append)[0]

    def _begin_batch(
        self,
        pairs: Iterator[tuple[Any, Any]],
        pending: deque[tuple[Batch | Append, asyncio.Future[None]]],
        headers: Mapping[str, str] | None,
    ) -> bool:
        """Send the next messages of `publish_many`; whether there were any."""
        link, line = self._way or self._open_way()
        size = min(_BATCH, self._max_in_flight)
        prepared = [self._prepare(topic, data, headers) for topic, data in itertools.islice(pairs, size)]
        if not prepared:
            return False
        deadline = self._time() + self._timeout
        has_kept = _Kept in set(map(type, prepared))
        groups = itertools.groupby(prepared, _group_of) if has_kept else [(None, prepared)]
        for _, group in groups:
            items: list[Any] = list(group)
            answered: asyncio.Future[None] = self._create_future()
            if isinstance(items[0], _Kept):
                entries = [item.entry for item in items]
                kept = items[0]
                batch: Append | Batch = Append(
                    answered, deadline, kept.channel, kept.history, entries, verb=kept.verb
                )
            else:
                batch = Batch(answered, deadline, items)
            line.add(batch)
            pending.append((batch, answered))
        link.kick(deadline)
        return True

    def _prepare(
        self, topic: str | Topic[Any], data: Any, headers: Mapping[str, str] | None
    ) -> Command | _Kept:
        """What to send of a message of `publish_many`."""
        if isinstance(topic, Topic) and topic.history is not None:
            return self._entry(topic, topic.history, data, headers)
        return self._command(topic, data, headers)

    def _entry(
        self, topic: Topic[Any], history: History, data: Any, headers: Mapping[str, str] | None
    ) -> _Kept:
        """What to append, after all checks: nothing was sent if this raises."""
        if len(self._kept) >= _TOPICS:
            self._kept.clear()
        if self._kept.setdefault(topic.name, history) != history:
            raise ValueError(
                f"{topic.name!r} is published to with {self._kept[topic.name]}, so not with {history} too; "
                "use one Topic for it"
            )
        payload = data if topic.encode is None and isinstance(data, bytes) else _encode(topic, data)
        uid = b"%b.%d" % (self._name, next(self._numbers))
        verb = self._verb if topic.sharded else PUBLISH
        return _Kept(topic.key, history, verb, Entry(uid, pack_headers(headers), payload))

    def _command(self, topic: str | Topic[Any], data: Any, headers: Mapping[str, str] | None) -> Command:
        """What to send, after all checks: nothing was sent if this raises."""
        if isinstance(topic, str):
            topic = self._topics.get(topic) or self._topic(topic)
        elif not isinstance(topic, Topic):
            raise TypeError(f"topic must be a str or a Topic, not {type(topic).__name__}")
        if self._kept and topic.name in self._kept:
            raise ValueError(
                f"{topic.name!r} is published to with a history, in which a message without one is missing"
            )
        is_ready = topic.encode is None and isinstance(data, bytes)
        payload = data if is_ready else _encode(topic, data)
        if headers or payload[:4] == MAGIC:  # a third of what `startswith` takes
            payload = frame(payload, headers)
        return (self._verb if topic.sharded else PUBLISH, topic.key, payload)

    def _topic(self, name: str) -> Topic[bytes]:
        if len(self._topics) >= _TOPICS:
            self._topics.clear()
        topic = self._topics[name] = Topic(name)
        return topic


class _Kept(NamedTuple):
    """A message that is ready to be appended."""

    channel: bytes
    history: History
    verb: bytes
    entry: Entry


def _group_of(prepared: Command | _Kept) -> tuple[object, ...] | None:
    """Messages of one group may go into one request."""
    return prepared[:3] if isinstance(prepared, _Kept) else None


def _receipts(batch: Batch | Append) -> list[Receipt]:
    """Of what was answered, in order; those that failed are told by `failures`."""
    if isinstance(batch, Batch):
        return [_receipt(answer) for answer in batch.answers if isinstance(answer, int)]
    channel = batch.channel.decode()
    return [
        Receipt(max(0, receivers), position_at(name, entry.uid, channel), receivers < 0)
        for (name, receivers), entry in zip(batch.results, batch.entries, strict=False)
    ]


def _receipt(receivers: int) -> Receipt:
    """Of a topic without history. They are immutable, so the usual ones are made once."""
    return _RECEIPTS[receivers] if receivers < len(_RECEIPTS) else Receipt(receivers)


def _encode(topic: Topic[Any], data: Any) -> bytes:
    if topic.encode is None:
        if isinstance(data, _BUFFERS):
            return bytes(data)
        if not isinstance(data, str):
            raise TypeError(
                f"data for {topic.name!r} must be bytes or str, not {type(data).__name__}; "
                "give the topic an `encode` for anything else, or use Topic.json"
            )
        encode: Any = str.encode
    else:
        encode = topic.encode
    try:
        payload = encode(data)
    except Exception as error:
        reason = f"`encode` raised {type(error).__name__}"
        raise EncodeFailed(topic.name, reason) from error
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, _BUFFERS):
        return bytes(payload)
    raise EncodeFailed(topic.name, f"`encode` returned {type(payload).__name__}, not bytes")
