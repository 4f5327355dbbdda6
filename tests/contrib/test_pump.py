"""The pump of a websocket: what goes out, what comes in, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

import aiopubsub as ps
from aiopubsub.contrib.starlette import pump
from aiopubsub.testing import Server
from tests.contrib.browser import Talk
from tests.contrib.conftest import running
from tests.fault.conftest import admin

pytestmark = pytest.mark.anyio

LIVE = ps.Topic.text("live")


def as_text(event: object) -> str | bytes | None:
    """Everything that there is, as text."""
    match event:
        case ps.Gap(reason=reason, missed=missed):
            return f"{reason.value} {missed}"
        case ps.Message(payload=b"nothing"):
            return None
        case ps.Message(payload=b"bytes" as payload):
            return payload
        case ps.Message(data=data):
            return str(data)
    return "?"


class Page:
    """An application with one websocket, and its subscriber to look at."""

    def __init__(
        self,
        client: ps.Client,
        *topics: Any,
        encode: Callable[[object], str | bytes | None] = as_text,
        received: Callable[[WebSocket], Any] | None = None,
        **options: Any,
    ) -> None:
        self.subscriber = ps.Subscriber(client, *topics, **options)
        self._encode = encode
        self._received = received
        self.app = Starlette(routes=[WebSocketRoute("/", self._talk)])

    async def _talk(self, websocket: WebSocket) -> None:
        received = None if self._received is None else self._received(websocket)
        await pump(websocket, self.subscriber, self._encode, received=received)


async def test_what_is_published_is_sent(client: ps.Client) -> None:
    """In order, as text or bytes, and nothing for `None`."""
    async with Talk(Page(client, LIVE).app) as talk:
        await ps.Publisher(client).publish_many(LIVE, ["one", "nothing", "bytes", ""])
        assert [await talk.hear() for _ in range(3)] == ["one", b"bytes", ""]


async def test_what_the_browser_sends_is_received(client: ps.Client) -> None:
    """One after the other, in order, before the browser's going too, however slow the handler."""
    heard: list[str | bytes] = []
    pub = ps.Publisher(client)

    def received(_: WebSocket) -> Any:
        async def hear(content: str | bytes) -> None:
            await pub.publish(LIVE, "nobody is there")
            for _ in range(10):  # time for the other direction to find that out
                await asyncio.sleep(0)
            heard.append(content)

        return hear

    said = ["a", b"b", "", "d"]
    async with Talk(Page(client, LIVE, received=received).app) as talk:
        for content in said:
            talk.say(content)
        talk.go()
        await talk.ended()
    assert heard == said


async def test_what_the_browser_sends_may_be_thrown_away(client: ps.Client) -> None:
    """Without `received` it is read all the same, or its going would not be seen."""
    async with Talk(Page(client, LIVE).app) as talk:
        for number in range(100):
            talk.say(str(number))
        talk.go()
        await talk.ended()


async def test_a_browser_that_goes_leaves_nothing_behind(on_valkey: ps.Client, valkey: Server) -> None:
    """No task and no subscription, quiet or in the middle of something."""
    async with ps.Subscriber(on_valkey, "warm"):
        before = running()
    for number in range(10):
        async with Talk(Page(on_valkey, LIVE).app) as talk:
            if number % 2:
                await ps.Publisher(on_valkey).publish(LIVE, "one")
            talk.go()
            await talk.ended()
    assert running() == before
    with admin(valkey) as server:
        assert server.pubsub_channels() == []


async def test_the_end_of_the_subscriber_closes_the_websocket(client: ps.Client) -> None:
    """Drained, everything is sent before; closed, it is closed at once."""
    page = Page(client, LIVE)
    async with Talk(page.app) as talk:
        talk.takes.clear()
        await ps.Publisher(client).publish_many(LIVE, ["1", "2", "3"])
        draining = asyncio.create_task(page.subscriber.drain(5))
        await asyncio.sleep(0)
        talk.takes.set()
        assert [await talk.hear() for _ in range(4)] == ["1", "2", "3", 1012]
        await talk.ended()
        assert await draining == 0
    page = Page(client, LIVE)
    async with Talk(page.app) as talk:
        await client.aclose()
        assert await talk.hear() == 1012
        await talk.ended()


async def test_a_closed_client_is_a_sentence(client: ps.Client, caplog: pytest.LogCaptureFixture) -> None:
    """Code 1013, a line in the log and no traceback; so for a subscriber that was closed before."""
    await client.aclose()
    for number in range(2):
        page = Page(client, LIVE)
        if number:
            await page.subscriber.aclose()
        async with Talk(page.app) as talk:
            assert await talk.hear() == 1013
            await talk.ended()
    assert caplog.messages == [
        "a websocket is closed: this Client is closed; make a new one",
        "a websocket is closed: this Subscriber is closed; make a new one",
    ]


async def test_it_may_be_accepted_before(client: ps.Client) -> None:
    """By an application that has something to say first."""

    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await pump(websocket, ps.Subscriber(client, LIVE), as_text)

    async with Talk(Starlette(routes=[WebSocketRoute("/", greet)])) as talk:
        assert await talk.hear() == "hello"
        pub = ps.Publisher(client)
        while not (await pub.publish(LIVE, "one")).receivers:
            await asyncio.sleep(0)
        assert await talk.hear() == "one"


async def test_a_slow_browser_is_told_how_many_it_missed(client: ps.Client) -> None:
    """What came and what is reported is what was published."""
    count = 5_000
    async with Talk(Page(client, LIVE, buffer=50).app) as talk:
        talk.takes.clear()
        await ps.Publisher(client).publish_many(LIVE, [str(number) for number in range(count)])
        talk.takes.set()
        got, missed = [], 0
        while not got or got[-1] != count - 1:
            words = str(await talk.hear()).split()
            if len(words) == 2:
                assert words[0] == "overflow"
                missed += int(words[1])
            else:
                got.append(int(words[0]))
    assert len(got) + missed == count
    assert missed > count / 2
    assert got == sorted(got)


async def test_a_slow_browser_misses_nothing_of_a_history(client: ps.Client) -> None:
    """What does not fit is read again."""
    topic = ps.Topic.text("kept", history=ps.History(size=5_000))
    count = 1_000
    async with Talk(Page(client, topic, buffer=10).app) as talk:
        talk.takes.clear()
        await ps.Publisher(client).publish_many(topic, [str(number) for number in range(count)])
        talk.takes.set()
        assert [await talk.hear() for _ in range(count)] == [str(number) for number in range(count)]


async def test_a_slow_browser_may_be_sent_away(client: ps.Client, caplog: pytest.LogCaptureFixture) -> None:
    """With `overflow="fail"`: what was buffered, then code 1013, a line in the log and no traceback."""
    async with Talk(Page(client, LIVE, buffer=10, overflow="fail").app) as talk:
        talk.takes.clear()
        await ps.Publisher(client).publish_many(LIVE, [str(number) for number in range(100)])
        talk.takes.set()
        heard = []
        while (content := await talk.hear()) != 1013:
            heard.append(content)
        await talk.ended()
    assert heard == [str(number) for number in range(len(heard))]
    assert caplog.messages[0].startswith("a websocket is closed: the consumer was too slow")


async def test_a_refusal_closes_it(
    client: ps.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A permission that is withdrawn meanwhile: code 1013 and a line in the log."""

    def refused(subscriber: object, item: object) -> None:
        raise ps.SubscribeRefused({"live": "NOPERM"})

    async with Talk(Page(client, LIVE).app) as talk:
        monkeypatch.setattr(ps.Subscriber, "_event", refused)
        await ps.Publisher(client).publish(LIVE, "one")
        assert await talk.hear() == 1013
        await talk.ended()
    assert caplog.messages[0].startswith("a websocket is closed: the server refused to subscribe")


async def test_a_publish_that_fails_closes_it(client: ps.Client, caplog: pytest.LogCaptureFixture) -> None:
    """And nothing more is read, so that nobody publishes the next one before this one is tried again."""
    heard = []

    def received(_: WebSocket) -> Any:
        async def hear(content: str | bytes) -> None:
            heard.append(content)
            raise ps.NotSent("chat", "there was no connection for 5 s")

        return hear

    async with Talk(Page(client, LIVE, received=received).app) as talk:
        talk.say("one")
        talk.say("two")
        assert await talk.hear() == 1013
        await talk.ended()
    assert heard == ["one"]
    assert caplog.messages[0].startswith("a websocket is closed: not sent to 'chat'")


async def test_what_the_browser_says_may_change_the_topics(client: ps.Client) -> None:
    """The subscriber is the application's."""

    def received(_: WebSocket) -> Any:
        async def hear(content: str | bytes) -> None:
            await page.subscriber.subscribe(ps.Topic.text(str(content)))
            await ps.Publisher(client).publish(str(content), "welcome")

        return hear

    page = Page(client, received=received)
    async with Talk(page.app) as talk:
        for room in ("kitchen", "garden"):
            talk.say(room)
            assert await talk.hear() == "welcome"


async def test_errors_of_the_application_are_raised(client: ps.Client) -> None:
    """Those of `encode` and those of `received`, bare."""

    def received(_: WebSocket) -> Any:
        return lambda content: asyncio.sleep(int(content))

    async with Talk(Page(client, LIVE, encode=lambda event: 1 // 0).app) as talk:  # type: ignore[arg-type, return-value]
        await ps.Publisher(client).publish(LIVE, "one")
        with pytest.raises(ZeroDivisionError):
            await talk.ended()
    async with Talk(Page(client, LIVE, received=received).app) as talk:
        talk.say("0")
        talk.say("no number")
        with pytest.raises(ValueError, match="invalid literal"):
            await talk.ended()


async def test_the_application_may_close_the_websocket(client: ps.Client) -> None:
    """Out of `received`, with a code of its own, whatever is being sent."""

    def received(websocket: WebSocket) -> Any:
        async def close(content: str | bytes) -> None:
            await websocket.close(4000)
            await ps.Publisher(client).publish(LIVE, "too late")
            await ps.Publisher(client).publish(LIVE, "too late")

        return close

    async with Talk(Page(client, LIVE, received=received).app) as talk:
        talk.say("bye")
        assert await talk.hear() == 4000
        await talk.ended()
        assert talk.sent.empty()


async def test_cancelling_leaves_nothing_behind(client: ps.Client) -> None:
    """No task; the websocket is the caller's to close."""
    async with ps.Subscriber(client, "warm"):
        before = running()
    async with Talk(Page(client, LIVE).app) as talk:
        await ps.Publisher(client).publish(LIVE, "one")
        assert await talk.hear() == "one"
        talk.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await talk.task
    assert talk.sent.empty()
    assert running() == before
