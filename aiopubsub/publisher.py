"""`Publisher`: the role that publishes.

Lives here: what a caller of `publish` gives, waits for and gets. Must not live here: order, windows
and deadlines (the outbox), connections (the link).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, cast, overload

from .checks import check_count, check_seconds
from .client import Client, Source, as_client, begin, deployment_of
from .dialogue import Command
from .errors import Closed, EncodeFailed, PubSubError
from .frame import MAGIC, frame
from .link import Link
from .message import Receipt
from .outbox import Line, Outbox, Request
from .topic import Topic

__all__ = ["BytesLike", "Publisher"]

BytesLike: TypeAlias = bytes | bytearray | memoryview | str
"""What a topic of bytes takes; a `str` is sent as UTF-8."""

T = TypeVar("T")

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
        self._link: Link[Outbox] | None = None
        self._line: Line | None = None
        self._topics: dict[str, Topic[bytes]] = {}  # of the channels that were given as str
        self._is_closed = False
        self._time: Callable[[], float]  # of the event loop, bound at the first use
        self._create_future: Callable[[], asyncio.Future[int]]

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
            link, _ = self._open_line()
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

        Args:
            topic: A `Topic`, or a `str` for a topic of bytes.
            data: What the topic's `encode` takes; for a topic of bytes, bytes or `str`.
            headers: Names and values that travel with the message, 64 KiB at most; subscribers of
                this library get them as `Message.headers`, others see a framed message.

        Returns:
            How many connections the server handed it to.

        Raises:
            EncodeFailed: `encode` raised, or returned something that is not bytes.
            NotSent: It did not leave this process within `timeout`: safe to publish again.
            Unconfirmed: It left, but no answer came: published once or not at all.
            PublishRefused: The server refused it, for example for lack of permission.
            ConnectFailed: There will be no connection: the server refused this client.
            Closed: The publisher or its client is closed, or not open yet.
            TypeError, ValueError: An argument is not what it should be.
        """
        if self._line is None:
            self._open_line()
        channel, command = self._prepare(topic, data, headers)
        return Receipt(await self._request(channel, command))

    @overload
    async def publish_many(
        self, topic: str | Topic[bytes], items: Iterable[BytesLike], /
    ) -> list[Receipt]: ...

    @overload
    async def publish_many(self, topic: Topic[T], items: Iterable[T], /) -> list[Receipt]: ...

    @overload
    async def publish_many(self, pairs: Iterable[tuple[str | Topic[Any], Any]], /) -> list[Receipt]: ...

    async def publish_many(self, first: Any, items: Iterable[Any] | None = None, /) -> list[Receipt]:
        """Publish many messages, `max_in_flight` at a time: `(topic, items)` or `(pairs)`.

        Each is prepared when its turn comes, so the iterable may be long or endless. All that were
        begun are waited for, whatever becomes of the others. Cancelling it leaves those published
        that had left.

        Returns:
            The receipts in the order given.

        Raises:
            PubSubError: The first failure, as `publish` would raise it, with a note that says which
                message it was and how many failed.
        """
        pairs = ((first, item) for item in items) if items is not None else iter(first)
        receipts: list[Receipt] = []
        while batch := list(itertools.islice(pairs, self._max_in_flight)):
            link, line = self._open_line()
            prepared = [self._prepare(topic, data, None) for topic, data in batch]
            answers = _Answers(len(prepared))
            deadline = self._time() + self._timeout
            for index, (channel, command) in enumerate(prepared):
                request = Request(channel, command, _Answer(answers, index), deadline)
                link.dialogue.add(line, request)
            link.kick(deadline)
            await answers.settled
            if answers.failures:
                at = min(answers.failures)
                error = answers.failures[at]
                error.add_note(
                    f"publish_many: message {len(receipts) + at} (counted from 0) was the first "
                    f"of {len(answers.failures)} that failed in a batch of {len(batch)}"
                )
                raise error
            receipts.extend(map(Receipt, answers.replies))
        return receipts

    async def aclose(self) -> None:
        """Send what waits, wait for the answers up to `timeout`, then close.

        From the call on, `publish` raises `Closed`. A client that was made here is closed, a shared
        one is left open. A second call does nothing. Cancelling it closes at once.
        """
        if self._is_closed:
            return
        self._is_closed = True
        link, line = self._link, self._line
        try:
            if line is not None and (line.waiting or line.in_flight):
                # answers come in order: when this one is here, so are all before it
                await self._request("", (b"PING",))
        except PubSubError:
            pass  # whoever waits for a receipt is told
        finally:
            self._line = None
            if link is not None and line is not None:
                link.dialogue.close_line(line, Closed("Publisher"))
            if self._owns_client:
                await self._client.aclose()

    # -- inside ------------------------------------------------------------------------------------

    def _open_line(self) -> tuple[Link[Outbox], Line]:
        """The line of this publisher, opened at its first use."""
        if self._is_closed:
            raise Closed("Publisher")
        if self._link is None or self._line is None:
            self._link = deployment_of(self._client).commanding()
            self._line = self._link.dialogue.open_line(self._max_in_flight)
            loop = asyncio.get_running_loop()
            self._time, self._create_future = loop.time, loop.create_future
            self._link.open()
        return self._link, self._line

    async def _request(self, channel: str, command: Command) -> int:
        link, line = cast("tuple[Link[Outbox], Line]", (self._link, self._line))
        promise = self._create_future()
        deadline = self._time() + self._timeout
        link.dialogue.add(line, Request(channel, command, promise, deadline))
        link.kick(deadline)
        return await promise

    def _prepare(
        self, topic: str | Topic[Any], data: Any, headers: Mapping[str, str] | None
    ) -> tuple[str, Command]:
        """The channel and the command, after all checks: nothing was sent if this raises."""
        if isinstance(topic, str):
            topic = self._topics.get(topic) or self._topic(topic)
        elif not isinstance(topic, Topic):
            raise TypeError(f"topic must be a str or a Topic, not {type(topic).__name__}")
        is_ready = topic.encode is None and isinstance(data, bytes)
        payload = data if is_ready else _encode(topic, data)
        if headers or payload.startswith(MAGIC):
            payload = frame(payload, headers)
        return topic.name, (b"PUBLISH", topic.key, payload)

    def _topic(self, name: str) -> Topic[bytes]:
        if len(self._topics) >= _TOPICS:
            self._topics.clear()
        topic = self._topics[name] = Topic(name)
        return topic


class _Answers:
    """The answers to one batch of `publish_many`, gathered without a future for each."""

    __slots__ = ("_left", "failures", "replies", "settled")

    def __init__(self, count: int) -> None:
        self._left = count
        self.replies = [0] * count
        self.failures: dict[int, PubSubError] = {}
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self) -> None:
        """One more is here."""
        self._left -= 1
        if not self._left and not self.settled.done():
            self.settled.set_result(None)


class _Answer:
    """Where the answer to one message of a batch goes."""

    __slots__ = ("_answers", "_index", "_is_settled")

    def __init__(self, answers: _Answers, index: int) -> None:
        self._answers = answers
        self._index = index
        self._is_settled = False

    def done(self) -> bool:
        return self._is_settled or self._answers.settled.done()  # done early: cancelled

    def set_result(self, result: int, /) -> None:
        self._is_settled = True
        self._answers.replies[self._index] = result
        self._answers.settle()

    def set_exception(self, exception: PubSubError, /) -> None:
        self._is_settled = True
        self._answers.failures[self._index] = exception
        self._answers.settle()


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
