"""Event streams: what a browser is sent, comes back with, and leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sse_starlette import ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import aiopubsub as ps
from aiopubsub.contrib.starlette import EventStream
from aiopubsub.testing import Server
from tests.contrib.browser import SentEvent, Visit
from tests.contrib.conftest import running
from tests.fault.conftest import admin

pytestmark = pytest.mark.anyio

NEWS = ps.Topic.text("news", history=ps.History(size=100))
SPORT = ps.Topic.text("sport", history=ps.History(size=100))
LIVE = ps.Topic.text("live")


def app_of(make: Callable[[Request], Response]) -> Starlette:
    """An application whose one page is this response."""

    async def page(request: Request) -> Response:
        return make(request)

    return Starlette(routes=[Route("/", page, methods=["GET"])])


def stream_of(client: ps.Client, *topics: Any, **options: Any) -> Starlette:
    return app_of(lambda request: EventStream(request, client, *topics, **options))


async def test_an_event_is_a_message(client: ps.Client) -> None:
    """The payload is the data, the position the id; the first block has an id alone."""
    pub = ps.Publisher(client)
    async with Visit(stream_of(client, NEWS, retry=1.5)) as visit:
        status, headers = await visit.answer()
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-store"
        first = await visit.next()
        assert first.data is None
        assert first.retry == "1500"
        assert ps.Position.parse(first.id or "").offset == 0
        receipts = await pub.publish_many(NEWS, ["one", "two\nlines", ""])
        events = await visit.events(3)
        assert events == [
            SentEvent(data=data, id=str(receipt.position))
            for data, receipt in zip(["one", "two\nlines", ""], receipts, strict=True)
        ]


async def test_who_comes_back_gets_what_was_missed(client: ps.Client) -> None:
    """From any id on, that of the first block included: each message once, in order, and no gap."""
    pub = ps.Publisher(client)
    app = stream_of(client, NEWS)
    numbers = [str(number) for number in range(10)]
    async with Visit(app) as visit:
        await visit.answer()
        ids = [(await visit.next()).id]
        await pub.publish_many(NEWS, numbers[:5])
        ids += [event.id for event in await visit.events(5)]
    await pub.publish_many(NEWS, numbers[5:])
    for seen, last in enumerate(ids):
        async with Visit(app, last_event_id=last) as visit:
            await visit.answer()
            assert (await visit.next()).data is None
            assert await visit.data(10 - seen) == numbers[seen:]
            await pub.publish(LIVE, "nobody hears that")
            assert visit.sent.empty()


@pytest.mark.parametrize(("since", "expected"), [("beginning", "0"), ("position", "1"), (None, "live")])
async def test_who_is_new_begins_as_told(client: ps.Client, since: str | None, expected: str) -> None:
    """At the beginning, after a position, or now; an id that a browser says later counts for more."""
    pub = ps.Publisher(client)
    receipts = await pub.publish_many(NEWS, ["0", "1", "2"])
    where = str(receipts[0].position) if since == "position" else since
    app = stream_of(client, NEWS, since=where)
    async with Visit(app) as visit:
        await visit.answer()
        await visit.next()
        await pub.publish(NEWS, "live")
        assert (await visit.next()).data == expected
    async with Visit(app, last_event_id=str(receipts[1].position)) as visit:
        await visit.answer()
        await visit.next()
        assert await visit.data(2) == ["2", "live"]


@pytest.mark.parametrize(
    "said",
    [
        "garbage",
        "1-2-3",
        "null",
        "-",
        "0-0-00000000-x",
        "1700000000000-42-0a1b2c3d-5f.7",  # another topic's
        "x" * 60_000,
        "ünreadable".encode("latin-1"),
        b"\xff\xfe",
        "beginning",
        "live",
    ],
)
async def test_an_unreadable_id_begins_anew_with_a_gap(client: ps.Client, said: str | bytes) -> None:
    """Whatever a browser says, its page lives on, and is told; `live` is what a topic without one says."""
    topic = LIVE if said == "live" else NEWS
    app = stream_of(client, topic)
    async with Visit(app, last_event_id=said) as visit:
        status, _ = await visit.answer()
        assert status == 200
        gap = await visit.next()
        assert gap.gap == {
            "reason": "reconnected", "missed": None, "withdrawn": None, "channels": [topic.name]
        }  # fmt: skip
        await ps.Publisher(client).publish(topic, "live")
        assert (await visit.next()).data == "live"
    if topic is NEWS:  # who comes back with the gap's id is not told again
        async with Visit(app, last_event_id=gap.id) as visit:
            await visit.answer()
            await visit.next()
            assert (await visit.next()).data == "live"


async def test_an_id_without_anything_is_new(client: ps.Client) -> None:
    """An empty `Last-Event-ID` is what a browser has that was never sent one."""
    async with Visit(stream_of(client, LIVE), last_event_id="") as visit:
        await visit.answer()
        first = await visit.next()
        assert (first.event, first.data, first.id) == ("message", None, "live")


async def test_an_id_may_come_from_elsewhere(client: ps.Client) -> None:
    """A page that makes its `EventSource` anew says it in the query; a header that is there is newer."""
    receipts = await ps.Publisher(client).publish_many(NEWS, ["0", "1", "2"])
    first, second, _ = (str(receipt.position) for receipt in receipts)
    app = app_of(
        lambda request: EventStream(request, client, NEWS, last_event_id=request.query_params.get("last"))
    )
    for header, expected in [(None, ["1", "2"]), ("", ["1", "2"]), (second, ["2"])]:
        async with Visit(app, last_event_id=header, query=f"last={first}") as visit:
            await visit.answer()
            await visit.next()
            assert await visit.data(len(expected)) == expected
    async with Visit(app, query="last=garbage") as visit:
        await visit.answer()
        assert (await visit.next()).gap["channels"] == ["news"]


@pytest.mark.parametrize("since", ["garbage", "1700000000000-42-0a1b2c3d-5f.7", {"weather": "beginning"}])
async def test_a_since_that_is_none_is_a_bad_request(client: ps.Client, since: object) -> None:
    """What the application took from a query is answered with 400 and a sentence."""
    async with Visit(stream_of(client, NEWS, since=since)) as visit:
        status, _ = await visit.answer()
        assert status == 400
        assert (await visit.body()).startswith("since: ")
    with pytest.raises(EOFError):
        await visit.next_sent()


async def test_what_is_missing_is_a_gap(client: ps.Client) -> None:
    """A history that was trimmed: the exact number, at its place, and not again to who comes back."""
    topic = ps.Topic.text("short", history=ps.History(size=1))
    pub = ps.Publisher(client)
    (first, *_), size = await pub.publish_many(topic, ["0"] * 10), 1
    await pub.publish_many(topic, [str(number) for number in range(500)])
    app = stream_of(client, topic)
    async with Visit(app, last_event_id=str(first.position)) as visit:
        await visit.answer()
        await visit.next()
        gap = await visit.next()
        message = await visit.next()
    missed = 9 + int(message.data or "")
    assert missed > size
    assert gap.gap == {"reason": "trimmed", "missed": missed, "withdrawn": 0, "channels": ["short"]}
    async with Visit(app, last_event_id=gap.id) as visit:
        await visit.answer()
        await visit.next()
        assert await visit.next() == message


async def test_several_topics_are_resumed_together(client: ps.Client) -> None:
    """The id holds where each stands; a topic without history is a gap, one that is new is none."""
    pub = ps.Publisher(client)
    app = stream_of(client, NEWS, SPORT, LIVE)
    async with Visit(app) as visit:
        await visit.answer()
        assert len(((await visit.next()).id or "").split()) == 2
        await pub.publish(NEWS, "n1")
        await pub.publish(SPORT, "s1")
        await pub.publish(LIVE, "l1")
        *_, last, live = await visit.events(3)
        assert live.id == last.id
    await pub.publish(NEWS, "n2")
    await pub.publish(SPORT, "s2")
    async with Visit(app, last_event_id=last.id) as visit:
        await visit.answer()
        assert (await visit.next()).gap["channels"] == ["live"]
        assert sorted(await visit.data(2), key=str) == ["n2", "s2"]
    only_news = (last.id or "").split()[0]
    async with Visit(stream_of(client, NEWS, SPORT), last_event_id=only_news) as visit:
        await visit.answer()
        assert (await visit.next()).event == "message"
        assert await visit.data(1) == ["n2"]
        await pub.publish(SPORT, "s3")
        assert await visit.data(1) == ["s3"]
    async with Visit(stream_of(client, NEWS, SPORT), last_event_id=f"{only_news} garbage") as visit:
        await visit.answer()
        assert (await visit.next()).gap["channels"] == ["sport"]


async def test_patterns_have_no_positions(client: ps.Client) -> None:
    """Messages of a topic with history that come by a pattern leave the id as it is."""
    pub = ps.Publisher(client)
    async with Visit(stream_of(client, ps.Pattern("ne*"))) as visit:
        await visit.answer()
        await visit.next()
        await pub.publish(NEWS, "one")
        assert await visit.next() == SentEvent(data="one", id="live")


async def test_encode_decides_what_is_sent(client: ps.Client, caplog: pytest.LogCaptureFixture) -> None:
    """Text, an event of its own kind, or nothing; what cannot be decoded is logged and left out."""
    numbers = ps.Topic("numbers", encode=lambda n: b"%d" % n, decode=int, history=ps.History())

    def encode(message: ps.Message[int]) -> str | ServerSentEvent | None:
        if message.data < 0:
            return None
        return str(2 * message.data) if message.data < 10 else ServerSentEvent("many", event="big")

    async with Visit(stream_of(client, numbers, encode=encode)) as visit:
        await visit.answer()
        await visit.next()
        pub = ps.Publisher(client)
        await pub.publish_many(numbers, [4, -1])
        await pub.publish(ps.Topic("numbers", history=ps.History()), b"secret, and no number")
        receipt = await pub.publish(numbers, 10)
        assert (await visit.next()).data == "8"
        assert await visit.next() == SentEvent(event="big", data="many", id=str(receipt.position))
    assert "leaves out a message" in caplog.text
    assert "secret" not in caplog.text


async def test_nothing_is_decoded_that_is_sent_as_it_is(client: ps.Client) -> None:
    """The payload is passed on, whatever `decode` would say; what is not UTF-8 is marked."""
    numbers = ps.Topic("numbers", encode=lambda n: b"%d" % n, decode=int)
    async with Visit(stream_of(client, numbers)) as visit:
        await visit.answer()
        await visit.next()
        await ps.Publisher(client).publish_many("numbers", ["no number", b"\xff"])
        assert await visit.data(2) == ["no number", "\ufffd"]


async def test_it_is_kept_alive(client: ps.Client) -> None:
    """A quiet stream sends a comment now and then."""
    async with Visit(stream_of(client, LIVE, keep_alive=0.01)) as visit:
        await visit.answer()
        await visit.next()
        assert [event.comment for event in await visit.events(3)] == ["keep-alive"] * 3


@pytest.mark.parametrize("asgi", ["2.3", "2.4"])
async def test_a_browser_that_goes_leaves_nothing_behind(
    on_valkey: ps.Client, valkey: Server, asgi: str
) -> None:
    """Ten visits, gone in the middle: no task, and the server has forgotten the channels."""
    app = stream_of(on_valkey, NEWS, LIVE, ps.Pattern("*"))
    async with ps.Subscriber(on_valkey, "warm"):
        before = running()
    for _ in range(10):
        async with Visit(app, asgi=asgi) as visit:
            await visit.answer()
            await visit.next()
            await ps.Publisher(on_valkey).publish(LIVE, "on its way")
    assert running() == before
    with admin(valkey) as server:
        assert server.pubsub_channels() == []
        assert server.pubsub_numpat() == 0


async def test_it_ends_whole_when_the_client_is_closed(client: ps.Client) -> None:
    """The response is complete, not cut."""
    async with Visit(stream_of(client, LIVE)) as visit:
        await visit.answer()
        await visit.next()
        await client.aclose()
        with pytest.raises(EOFError):
            await visit.next()
        await visit.ended()


async def test_a_closed_client_is_a_sentence(client: ps.Client, caplog: pytest.LogCaptureFixture) -> None:
    """503 for the browser, the reason for the log, nothing for either that is not theirs."""
    app = stream_of(client, LIVE)
    for closed in (ps.Client("redis://:secret@localhost:1"), client):
        await closed.aclose()
        async with Visit(stream_of(closed, LIVE)) as visit:
            status, headers = await visit.answer()
            assert (status, headers["retry-after"]) == (503, "1")
            assert await visit.body() == "There are no live updates just now, try again later.\n"
    assert app
    assert caplog.messages == ["an event stream cannot begin: this Client is closed; make a new one"] * 2


async def test_a_lost_server_is_a_sentence(valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A visit that finds no server is told after the client's `connect_timeout`."""
    refused = ps.Topic("c")
    async with ps.Client(valkey.url, connect_timeout=5) as client:
        with admin(valkey) as server:
            server.acl_setuser("nochannels", enabled=True, nopass=True, commands=["+@all"], keys=["*"])
        url = valkey.url.replace("redis://", "redis://nochannels:x@")
        async with ps.Client(url) as other, Visit(stream_of(other, refused)) as visit:
            assert (await visit.answer())[0] == 503
        async with Visit(stream_of(client, refused)) as visit:
            assert (await visit.answer())[0] == 200
    assert [message for message in caplog.messages if "cannot begin: the server refused" in message]


async def test_a_stream_that_fails_ends_whole(
    client: ps.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permission that is withdrawn meanwhile: a line in the log, and a browser that may come back."""

    def refused(subscriber: object, item: object) -> None:
        raise ps.SubscribeRefused({"live": "NOPERM"})

    async with Visit(stream_of(client, LIVE)) as visit:
        await visit.answer()
        await visit.next()
        monkeypatch.setattr(ps.Subscriber, "_event", refused)
        await ps.Publisher(client).publish(LIVE, "one")
        with pytest.raises(EOFError):
            await visit.next()
    assert caplog.messages[0].startswith("an event stream ends: the server refused to subscribe")


async def test_a_slow_browser_is_told_how_many_it_missed(client: ps.Client) -> None:
    """Without history the oldest are dropped: what came and what is reported is what was published."""
    count, buffer = 5_000, 50
    async with Visit(stream_of(client, LIVE, buffer=buffer)) as visit:
        await visit.answer()
        await visit.next()
        visit.takes.clear()
        await ps.Publisher(client).publish_many(LIVE, [str(number) for number in range(count)])
        visit.takes.set()
        got, missed = [], 0
        while not got or got[-1] != count - 1:
            event = await visit.next()
            if event.event == "gap":
                assert event.gap["reason"] == "overflow"
                missed += event.gap["missed"]
            else:
                got.append(int(event.data or ""))
    assert len(got) + missed == count
    assert missed > count / 2
    assert got == sorted(got)


async def test_a_slow_browser_misses_nothing_of_a_history(client: ps.Client) -> None:
    """With history what does not fit is read again."""
    topic = ps.Topic.text("kept", history=ps.History(size=5_000))
    count = 2_000
    async with Visit(stream_of(client, topic, buffer=10)) as visit:
        await visit.answer()
        await visit.next()
        visit.takes.clear()
        await ps.Publisher(client).publish_many(topic, [str(number) for number in range(count)])
        visit.takes.set()
        assert await visit.data(count) == [str(number) for number in range(count)]


async def test_a_browser_that_takes_nothing_is_given_up(
    on_valkey: ps.Client, valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """After `send_timeout`: a line in the log, no traceback, no subscription."""
    async with Visit(stream_of(on_valkey, LIVE, send_timeout=0.05)) as visit:
        await visit.answer()
        await visit.next()
        visit.takes.clear()
        await ps.Publisher(on_valkey).publish(LIVE, "anybody?")
        await visit.ended()
    assert caplog.messages == ["an event stream ends: its browser took nothing for 0.05 s"]
    with admin(valkey) as server:
        assert server.pubsub_channels() == []


async def test_head_opens_nothing(client: ps.Client) -> None:
    """HEAD is answered with the headers; nobody is subscribed."""
    async with Visit(stream_of(client, LIVE), method="HEAD") as visit:
        status, headers = await visit.answer()
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert await visit.body() == ""
    assert client.stats.links["listens"].state == "idle"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"keep_alive": 0}, ValueError),
        ({"retry": -1}, ValueError),
        ({"send_timeout": "5"}, TypeError),
        ({"drain_timeout": 0}, ValueError),
        ({"buffer": 0}, ValueError),
    ],
)
async def test_arguments_are_checked(
    client: ps.Client, options: dict[str, Any], error: type[Exception]
) -> None:
    """At once, by name."""
    request = Request({"type": "http", "headers": []})
    with pytest.raises(error, match=f"`{next(iter(options))}`"):
        EventStream(request, client, LIVE, **options)
    with pytest.raises(ValueError, match="needs a topic"):
        EventStream(request, client)
