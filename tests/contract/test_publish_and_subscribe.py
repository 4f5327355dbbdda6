"""The main job: what is published is handed over, once for each match, in order."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter

import pytest

import aiopubsub as ps
from tests.conftest import Place

pytestmark = pytest.mark.anyio


async def take(sub: ps.Subscriber, count: int) -> list[ps.Message]:
    """The next messages, within 10 s."""
    async with asyncio.timeout(10):
        return [await anext(sub) for _ in range(count)]


async def test_a_message_arrives_with_all_its_fields(client: ps.Client) -> None:
    """A subscriber is handed what was published, where, and what matched."""
    async with ps.Subscriber(client, "fields") as sub:
        receipt = await ps.Publisher(client).publish("fields", "grüße", headers={"trace": "1"})
        [message] = await take(sub, 1)
    assert receipt == ps.Receipt(receivers=1)
    assert message.channel == "fields"
    assert message.data == message.payload == "grüße".encode()
    assert message.text == "grüße"
    assert message.topic == ps.Topic("fields")
    assert dict(message.headers) == {"trace": "1"}


@pytest.mark.parametrize("history", [None, ps.History(size=10)], ids=["plain", "history"])
async def test_headers_of_many(client: ps.Client, history: ps.History | None) -> None:
    """The headers of a `publish_many` travel with each of its messages."""
    topic = ps.Topic(f"headers-of-many-{history}", history=history)
    async with ps.Subscriber(client, topic) as sub:
        await ps.Publisher(client).publish_many(topic, [b"1", b"2"], headers={"a": "b"})
        await ps.Publisher(client).publish_many([(topic, b"3")], headers={"c": "d"})
        messages = await take(sub, 3)
    assert [dict(message.headers) for message in messages] == [{"a": "b"}, {"a": "b"}, {"c": "d"}]


@pytest.mark.parametrize(
    "payload",
    [b"", b"\0\r\n\xff\xfe", b"\xff\xaeps", b"\xff\xaeps1 - - - {}\nnot ours", bytes(range(256)) * 999],
    ids=["empty", "binary", "magic", "frame", "large"],
)
async def test_payloads_arrive_byte_for_byte(client: ps.Client, payload: bytes) -> None:
    """Any bytes go through unchanged, those that look like a frame of ours included."""
    async with ps.Subscriber(client, "bytes") as sub:
        await ps.Publisher(client).publish("bytes", payload)
        [message] = await take(sub, 1)
    assert message.data == payload
    assert dict(message.headers) == {}


@pytest.mark.parametrize("channel", ["grüße", "猫 und {Hund}", "a b\r\nc", "*", "💬" * 50])
async def test_channels_may_have_any_name(client: ps.Client, channel: str) -> None:
    """Any Unicode text is a channel, blanks and glob characters included."""
    async with ps.Subscriber(client, channel) as sub:
        assert (await ps.Publisher(client).publish(channel, b"x")).receivers == 1
        [message] = await take(sub, 1)
    assert message.channel == channel


async def test_one_delivery_for_each_match(client: ps.Client) -> None:
    """A channel, a pattern that matches it and another pattern get one message each."""
    pub = ps.Publisher(client)
    art, sport = (ps.Topic(name, sharded=False) for name in ("news.art", "news.sport"))
    topics = (art, ps.Pattern("news.*"), ps.Pattern("*.art"))
    async with ps.Subscriber(client, *topics) as all_three, ps.Subscriber(client, art) as one:
        await pub.publish(art, b"a")
        await pub.publish(sport, b"b")
        messages = await take(all_three, 4)
        seen = Counter((m.channel, m.topic.name) for m in messages)
        assert seen == Counter([("news.art", topic.name) for topic in topics] + [("news.sport", "news.*")])
        assert [m.data for m in await take(one, 1)] == [b"a"]
        assert all_three.stats.buffered == one.stats.buffered == 0


@pytest.mark.parametrize(
    ("glob", "channel", "matches"),
    [
        ("h?llo", "hello", True),
        ("h?llo", "hllo", False),
        ("h*o", "ho", True),
        ("h[ae]llo", "hallo", True),
        ("h[^e]llo", "hello", False),
        ("h[a-c]llo", "hbllo", True),
        (r"h\*llo", "h*llo", True),
        (r"h\*llo", "hallo", False),
        ("*", "grüße", True),
    ],
)
async def test_patterns_match_as_in_redis(
    client: ps.Client, glob: str, channel: str, matches: bool
) -> None:
    """The glob rules of PSUBSCRIBE hold, on the memory too."""
    own = f"{uuid.uuid4()}."  # a cluster may still be passing on what an earlier test has published
    topic, pattern = ps.Topic(own + channel, sharded=False), ps.Pattern(own + glob)
    async with ps.Subscriber(client, topic, pattern) as sub:
        await ps.Publisher(client).publish_many(topic, [b"x", b"end"])
        messages = await take(sub, 2 + 2 * matches)
        assert await sub.drain(0.01) == 0
    by_pattern = [m.data for m in messages if m.topic == pattern]
    assert by_pattern == [b"x", b"end"] * matches


async def test_order_is_kept_and_nothing_is_lost(client: ps.Client) -> None:
    """Ten thousand concurrent publishes arrive in the order of the calls."""
    pub = ps.Publisher(client, max_in_flight=1000)
    async with ps.Subscriber(client, "order") as sub:
        receipts = await asyncio.gather(*(pub.publish("order", b"%d" % n) for n in range(10_000)))
        messages = await take(sub, 10_000)
    assert [int(m.data) for m in messages] == list(range(10_000))
    assert {r.receivers for r in receipts} == {1}


async def test_publish_many_returns_receipts_in_order(client: ps.Client) -> None:
    """Items of one topic, or pairs of topic and item; one receipt for each."""
    pub = ps.Publisher(client, max_in_flight=64)
    async with ps.Subscriber(client, "many") as sub:
        assert await pub.publish_many("many", (b"%d" % n for n in range(1000))) == [ps.Receipt(1)] * 1000
        pairs = [("many", b"a"), ("nobody", b"b"), ("many", b"c")]
        assert await pub.publish_many(pairs) == [ps.Receipt(1), ps.Receipt(0), ps.Receipt(1)]
        messages = await take(sub, 1002)
    assert [m.text for m in messages] == [str(n) for n in range(1000)] + ["a", "c"]


async def test_each_message_goes_to_exactly_one_of_several_iterating_tasks(
    client: ps.Client,
) -> None:
    """Tasks that share a subscriber share its messages."""
    seen: Counter[bytes] = Counter()
    async with ps.Subscriber(client, "shared") as sub:

        async def work() -> int:
            taken = 0
            async for message in sub:
                seen[message.data] += 1
                taken += 1
                await asyncio.sleep(0)
            return taken

        tasks = [asyncio.create_task(work()) for _ in range(5)]
        await ps.Publisher(client).publish_many("shared", [b"%d" % n for n in range(1000)])
        assert await sub.drain(10) == 0
        taken = await asyncio.gather(*tasks)
    assert seen == Counter({b"%d" % n: 1 for n in range(1000)})
    assert sum(taken) == 1000
    assert min(taken) > 0


async def test_topics_may_come_and_go_while_iterating(client: ps.Client) -> None:
    """`subscribe` and `unsubscribe` hold from their return on, without a break for the others."""
    pub = ps.Publisher(client)
    by_pattern = ps.Topic("pq", sharded=False)
    async with ps.Subscriber(client, "stays") as sub:
        await sub.subscribe("comes", ps.Pattern("p*"))
        assert (await pub.publish("comes", b"1")).receivers == 1
        await pub.publish(by_pattern, b"2")
        assert {m.data for m in await take(sub, 2)} == {b"1", b"2"}
        await sub.unsubscribe("comes", ps.Pattern("p*"), "never was there")
        assert (await pub.publish("comes", b"3")).receivers == 0
        assert (await pub.publish(by_pattern, b"4")).receivers == 0
        assert (await pub.publish("stays", b"5")).receivers == 1
        assert [m.data for m in await take(sub, 1)] == [b"5"]
        assert sub.topics == (ps.Topic("stays"),)


async def test_the_last_subscriber_out_unsubscribes(client: ps.Client) -> None:
    """A channel is subscribed while anybody wants it, and no longer."""
    pub = ps.Publisher(client)
    async with ps.Subscriber(client, "shared"):
        async with ps.Subscriber(client, "shared"):
            pass
        assert (await pub.publish("shared", b"x")).receivers == 1
    assert (await pub.publish("shared", b"x")).receivers == 0


async def test_text_and_json_topics(client: ps.Client) -> None:
    """Codecs run at both ends, and equal topics are interchangeable."""
    pub = ps.Publisher(client)
    async with (
        ps.Subscriber(client, ps.Topic.text("t")) as texts,
        ps.Subscriber(client, ps.Topic.json("j")) as values,
    ):
        await pub.publish(ps.Topic.text("t"), "ä")
        await pub.publish(ps.Topic.json("j"), {"a": [1, None, "ß"]})
        assert [m.data for m in await take(texts, 1)] == ["ä"]
        assert [m.data for m in await take(values, 1)] == [{"a": [1, None, "ß"]}]


async def test_what_cannot_be_decoded_is_reported_and_passed(
    client: ps.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """`events()` yields it, the plain iterator logs and counts it, and both go on."""
    pub = ps.Publisher(client)
    topic = ps.Topic.text("t")
    async with ps.Subscriber(client, topic) as plain, ps.Subscriber(client, topic) as other:
        await pub.publish_many("t", [b"\xffsecret", b"fine"])
        assert [m.data for m in await take(plain, 1)] == ["fine"]
        assert plain.stats.undecodable == 1
        assert "'t' could not be decoded: UnicodeDecodeError" in caplog.text
        assert "secret" not in caplog.text
        async with asyncio.timeout(10):
            events = other.events()
            bad, good = await anext(events), await anext(events)
    assert isinstance(bad, ps.Undecodable)
    assert (bad.channel, bad.payload, bad.topic) == ("t", b"\xffsecret", topic)
    assert isinstance(bad.error, UnicodeDecodeError)
    assert isinstance(good, ps.Message)
    assert good.data == "fine"


async def test_a_topic_of_another_codec_is_another_subscriber_s(client: ps.Client) -> None:
    """One subscriber has one codec for a channel; another may have another."""
    async with ps.Subscriber(client, "c") as sub, ps.Subscriber(client, ps.Topic.json("c")) as other:
        with pytest.raises(ValueError, match="another codec"):
            await sub.subscribe(ps.Topic.text("c"))
        await ps.Publisher(client).publish("c", b"1")
        assert [m.data for m in await take(sub, 1)] == [b"1"]
        assert [m.data for m in await take(other, 1)] == [1]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
async def test_what_does_not_fit_is_a_gap_with_the_exact_number(client: ps.Client, overflow: str) -> None:
    """Delivered plus reported is what was published, and the gap stands where it happened."""
    async with ps.Subscriber(client, "o", buffer=10, overflow=overflow) as sub:  # type: ignore[arg-type]
        await ps.Publisher(client).publish_many("o", [b"%d" % n for n in range(100)])
        await sub.subscribe("{o}fence")  # whatever was published before is in
        async with asyncio.timeout(10):
            events = sub.events()
            got = [await anext(events) for _ in range(11)]
    [gap] = [event for event in got if isinstance(event, ps.Gap)]
    kept = [int(event.data) for event in got if isinstance(event, ps.Message)]
    assert (gap.reason, gap.missed, gap.channels) == (ps.GapReason.OVERFLOW, 90, ("o",))
    if overflow == "drop_oldest":
        assert got.index(gap) == 0
        assert kept == list(range(90, 100))
    else:
        assert got.index(gap) == 10
        assert kept == list(range(10))


async def test_a_failing_subscriber_ends_with_the_exact_number(client: ps.Client) -> None:
    """`fail` hands over what was buffered, says how many came after it, and ends."""
    async with ps.Subscriber(client, "f", "{f}fence", buffer=10, overflow="fail") as sub:
        await ps.Publisher(client).publish_many("f", [b"%d" % n for n in range(100)])
        await sub.subscribe("{f}fence")
        assert [int(m.data) for m in await take(sub, 10)] == list(range(10))
        with pytest.raises(ps.SlowConsumer) as caught:
            await take(sub, 1)
        assert caught.value.missed == 90
        with pytest.raises(StopAsyncIteration):
            await anext(sub)


async def test_a_blocking_subscriber_loses_nothing(client: ps.Client) -> None:
    """`block` stops reading, so the server waits, and everything arrives in order."""
    async with ps.Subscriber(client, "b", buffer=10, overflow="block") as sub:
        await ps.Publisher(client).publish_many("b", [b"%d" % n for n in range(20_000)])
        messages = await take(sub, 20_000)
    assert [int(m.data) for m in messages] == list(range(20_000))
    assert sub.stats.dropped == 0


async def test_two_clients_of_one_url_meet(place: Place) -> None:
    """Publisher and subscriber may each bring a connection of their own."""
    async with ps.Subscriber(place.url, "c") as sub, ps.Publisher(place.url) as pub:
        assert (await pub.publish("c", "hi")).receivers == 1
        assert [m.text for m in await take(sub, 1)] == ["hi"]
