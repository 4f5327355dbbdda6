"""Topics with history: every message, once, in order, as far back as it is kept."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis.asyncio

import aiopubsub as ps
from aiopubsub.keys import cursor_key, history_key
from aiopubsub.memory import _servers
from tests.conftest import Place

pytestmark = pytest.mark.anyio

Kept = Callable[..., ps.Topic[bytes]]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A channel of this test's own; servers are shared."""
    return f"history {request.node.nodeid}"


@pytest.fixture
def topic(name: str) -> ps.Topic[bytes]:
    return ps.Topic(name, history=ps.History(size=1000))


class Admin:
    """What somebody does to a history from outside, on whatever server."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def _streams(self) -> Any:
        servers = _servers[asyncio.get_running_loop()]
        return servers[self._place.url.removeprefix("memory://").rstrip("/")].streams

    async def _run(self, *command: bytes | str | int) -> Any:
        async with self._place.stranger() as stranger:
            return await stranger.execute_command(*command)

    async def trim(self, channel: str, size: int) -> None:
        """Keep the last so many messages, exactly."""
        key = history_key(channel.encode())
        if self._place.name == "memory":
            self._streams().trim(key, size)
        else:
            await self._run("XTRIM", key, "MAXLEN", size)

    async def delete(self, key: bytes) -> None:
        if self._place.name == "memory":
            self._streams().delete(key)
        else:
            await self._run("DEL", key)

    async def length(self, channel: str) -> int:
        key = history_key(channel.encode())
        if self._place.name == "memory":
            return len(self._streams().range(key, b"-", b"+"))
        return int(await self._run("XLEN", key))

    async def set(self, key: bytes, value: bytes) -> None:
        if self._place.name == "memory":
            self._streams().set(key, value)
        else:
            await self._run("SET", key, value)

    async def get(self, key: bytes) -> bytes | None:
        if self._place.name == "memory":
            return self._streams().get(key)  # type: ignore[no-any-return]
        return await self._run("GET", key)  # type: ignore[no-any-return]


@pytest.fixture
async def admin(place: Place, client: ps.Client) -> AsyncIterator[Admin]:
    """Histories of this place, from outside; the client keeps the memory alive."""
    async with ps.Publisher(client):
        yield Admin(place)


async def take(sub: ps.Subscriber[Any], count: int) -> list[ps.Message[Any]]:
    """The next messages, within 10 s."""
    async with asyncio.timeout(10):
        return [await anext(sub) for _ in range(count)]


async def events(sub: ps.Subscriber[Any], count: int) -> list[Any]:
    async with asyncio.timeout(10):
        iterator = sub.events()
        return [await anext(iterator) for _ in range(count)]


def numbers(messages: list[ps.Message[Any]]) -> list[int]:
    return [int(message.payload) for message in messages]


def payloads(first: int, last: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, last)]


async def nothing_more(sub: ps.Subscriber[Any]) -> None:
    """All that the server has sent is taken: draining hands nothing over."""

    async def rest() -> list[ps.Message[Any]]:
        return [message async for message in sub]

    others = asyncio.create_task(rest())
    assert await sub.drain(10) == 0
    assert await others == []


# -- publishing ------------------------------------------------------------------------------------


async def test_receipts_tell_the_place(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """Offsets count up by one within an epoch, the receivers are counted, nothing is a duplicate."""
    pub = ps.Publisher(client)
    first = await pub.publish(topic, b"0")
    assert first.receivers == 0
    async with ps.Subscriber(client, topic):
        second = await pub.publish(topic, "1", headers={"a": "b"})
        assert second.receivers == 1
    receipts = await asyncio.gather(*(pub.publish(topic, b"%d" % n) for n in range(500)))
    positions = [receipt.position for receipt in (first, second, *receipts)]
    assert [position.offset for position in positions if position] == list(range(1, 503))
    assert len({position.epoch for position in positions if position}) == 1
    assert len({position.uid for position in positions if position}) == 502
    assert not any(receipt.duplicate for receipt in (first, second, *receipts))


async def test_publish_many_with_topics_of_both_kinds(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """Receipts come in the order given, with a position where there is a history."""
    pub = ps.Publisher(client, max_in_flight=64)
    receipts = await pub.publish_many(topic, payloads(0, 700))
    assert [r.position.offset for r in receipts if r.position] == list(range(1, 701))
    plain = topic.name + " plain"
    other = ps.Topic(topic.name + " other", history=ps.History(size=10))
    async with ps.Subscriber(client, topic) as sub, ps.Subscriber(client, plain) as live:
        pairs = [(topic, b"700"), (plain, b"a"), (plain, b"b"), (other, b"c"), (topic, b"701")]
        mixed = await pub.publish_many(pairs)
        assert [r.position.offset if r.position else None for r in mixed] == [701, None, None, 1, 702]
        assert [r.receivers for r in mixed] == [1, 1, 1, 0, 1]
        assert numbers(await take(sub, 2)) == [700, 701]
        assert [m.data for m in await take(live, 2)] == [b"a", b"b"]


async def test_no_more_than_the_size_is_kept_for_long(
    client: ps.Client, topic: ps.Topic[bytes], admin: Admin
) -> None:
    """At least the last `size` messages are there; servers trim in steps of a hundred or so."""
    await ps.Publisher(client).publish_many(topic, payloads(0, 5000))
    assert 1000 <= await admin.length(topic.name) <= 1200


async def test_an_idle_history_ends(client: ps.Client, name: str, admin: Admin) -> None:
    """After its `ttl` it is gone, and the next publish begins another; whoever was there gets no gap."""
    topic = ps.Topic(name, history=ps.History(ttl=1.0))
    pub = ps.Publisher(client)
    async with ps.Subscriber(client, topic) as sub:
        first = await pub.publish(topic, b"0")
        assert numbers(await take(sub, 1)) == [0]
        async with asyncio.timeout(10):
            while await admin.length(name):  # no event tells
                await asyncio.sleep(0.01)
        second = await pub.publish(topic, b"1")
        [message] = await events(sub, 1)
        assert isinstance(message, ps.Message)
    assert first.position is not None
    assert second.position is not None
    assert second.position.epoch > first.position.epoch
    assert second.position.offset == 1


# -- where to begin --------------------------------------------------------------------------------


async def test_from_now_on(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """Without `since` what is stored is not handed over, and what comes is, with its position."""
    pub = ps.Publisher(client)
    stored = await pub.publish_many(topic, payloads(0, 5))
    async with ps.Subscriber(client, topic) as sub:
        assert sub.positions == {topic.name: stored[-1].position}
        receipts = await pub.publish_many(topic, payloads(5, 500))
        messages = await take(sub, 495)
        assert numbers(messages) == list(range(5, 500))
        assert [m.position for m in messages] == [r.position for r in receipts]
        assert messages[0].topic == topic
        assert messages[0].channel == topic.name
        assert sub.positions == {topic.name: receipts[-1].position}
        await nothing_more(sub)


async def test_from_the_beginning(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """All that is kept, then what comes, without a seam."""
    pub = ps.Publisher(client)
    await pub.publish_many(topic, payloads(0, 600))
    async with ps.Subscriber(client, topic, since="beginning") as sub:
        await pub.publish_many(topic, payloads(600, 900))
        assert numbers(await take(sub, 900)) == list(range(900))
        await nothing_more(sub)


async def test_positions_of_a_topic_that_is_empty(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """Saved before the first message, they lead to it."""
    pub = ps.Publisher(client)
    async with ps.Subscriber(client, topic) as sub:
        saved = sub.positions
    async with ps.Subscriber(client, topic, since=saved) as sub:
        assert sub.positions == saved
    await pub.publish_many(topic, payloads(0, 5))
    texts = {channel: str(position) for channel, position in saved.items()}
    async with ps.Subscriber(client, topic, since=texts) as sub:
        assert numbers(await take(sub, 5)) == list(range(5))
        assert sub.stats.gaps == 0


async def test_from_the_beginning_of_nothing(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """A topic that nothing was published to yet."""
    async with ps.Subscriber(client, topic, since="beginning") as sub:
        assert sub.positions == {}
        await ps.Publisher(client).publish(topic, b"0")
        assert numbers(await take(sub, 1)) == [0]


@pytest.mark.parametrize("how", ["position", "text", "mapping", "mapping of texts", "subscribe"])
async def test_from_a_position(client: ps.Client, topic: ps.Topic[bytes], how: str) -> None:
    """After that message, however it is said."""
    pub = ps.Publisher(client)
    receipts = await pub.publish_many(topic, payloads(0, 20))
    position = receipts[7].position
    assert position is not None
    since: dict[str, Any] = {
        "position": position,
        "text": str(position),
        "mapping": {topic.name: position},
        "mapping of texts": {topic.name: str(position)},
    }
    initial = [] if how == "subscribe" else [topic]
    async with ps.Subscriber(client, *initial, since=since.get(how)) as sub:
        if how == "subscribe":
            await sub.subscribe(topic, since=position)
        assert sub.positions == {topic.name: position}
        assert numbers(await take(sub, 12)) == list(range(8, 20))
        await nothing_more(sub)


async def test_each_topic_from_its_own_position(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """A mapping says it for each; those that it does not name begin now, as plain ones do."""
    pub = ps.Publisher(client)
    other = ps.Topic(topic.name + " other", history=ps.History())
    third = ps.Topic(topic.name + " third", history=ps.History())
    plain = ps.Topic(topic.name + " plain")
    for each in (topic, other, third):
        receipts = await pub.publish_many(each, payloads(0, 10))
    since = {topic.name: "beginning", third.name: receipts[4].position}
    async with ps.Subscriber(client, topic, other, third, plain, since=since) as sub:
        for each in (topic, other, third, plain):
            await pub.publish(each, b"10")
        got: dict[str, list[int]] = {}
        for message in await take(sub, 11 + 1 + 6 + 1):
            got.setdefault(message.channel, []).append(int(message.data))
        assert got == {
            topic.name: list(range(11)),
            other.name: [10],
            third.name: list(range(5, 11)),
            plain.name: [10],
        }
        saved = sub.positions
    assert saved.keys() == {topic.name, other.name, third.name}
    await pub.publish_many([(other, b"11"), (topic, b"11")])
    async with ps.Subscriber(client, topic, other, third, since=saved) as sub:
        assert numbers(await take(sub, 2)) == [11, 11]
        await nothing_more(sub)


async def test_positions_tell_what_was_handed_over_not_what_is_buffered(
    client: ps.Client, topic: ps.Topic[bytes]
) -> None:
    """Saved at any time, they lead to the next message."""
    pub = ps.Publisher(client)
    receipts = await pub.publish_many(topic, payloads(0, 100))
    async with ps.Subscriber(client, topic, since="beginning") as sub:
        for receipt in receipts[:60]:
            await take(sub, 1)
            assert sub.positions == {topic.name: receipt.position}
        text = str(sub.positions[topic.name])
    async with ps.Subscriber(client, topic, since=text) as sub:
        assert numbers(await take(sub, 40)) == list(range(60, 100))


# -- order -----------------------------------------------------------------------------------------


async def test_everybody_sees_one_order(place: Place, topic: ps.Topic[bytes]) -> None:
    """Three publishers, ten subscribers who join at random times and positions: one and the same order."""
    chance = random.Random(7)
    total = 600

    async def publish(which: int) -> None:
        async with ps.Publisher(place.url) as pub:
            for n in range(total // 3):
                await pub.publish(topic, b"%d-%d" % (which, n))
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)

    async def subscribe(client: ps.Client) -> list[tuple[int, bytes]]:
        while len(seen) < chance.randrange(total - 50):
            await asyncio.sleep(0)
        since = chance.choice(["beginning", None, *seen])
        async with ps.Subscriber(client, topic, since=since, buffer=chance.choice([7, 1000])) as sub:
            got: list[tuple[int, bytes]] = []
            async for message in sub:
                assert message.position is not None
                got.append((message.position.offset, message.data))
                if message.position.offset == total:
                    break
            return got

    seen: list[ps.Position] = []

    async def watch(client: ps.Client) -> list[tuple[int, bytes]]:
        async with ps.Subscriber(client, topic) as sub:
            is_watching.set()
            got: list[tuple[int, bytes]] = []
            async for message in sub:
                assert message.position is not None
                seen.append(message.position)
                got.append((message.position.offset, message.data))
                if len(got) == total:
                    break
            return got

    is_watching = asyncio.Event()
    async with asyncio.timeout(60), ps.Client(place.url) as client:
        watcher = asyncio.create_task(watch(client))
        await is_watching.wait()
        subscribers = [asyncio.create_task(subscribe(client)) for _ in range(10)]
        await asyncio.gather(*map(publish, range(3)))
        whole = await watcher
        for got in await asyncio.gather(*subscribers):
            assert got == whole[total - len(got) :]
    assert [offset for offset, _ in whole] == list(range(1, total + 1))
    for which in range(3):
        ours = [data for _, data in whole if data.startswith(b"%d-" % which)]
        assert ours == [b"%d-%d" % (which, n) for n in range(total // 3)]


async def test_a_slow_consumer_gets_everything(client: ps.Client, name: str) -> None:
    """A buffer of a hundred behind a fast publisher: nothing is dropped, nothing is out of order."""
    topic = ps.Topic(name, history=ps.History(size=20_000))
    async with ps.Subscriber(client, topic, buffer=100) as sub:
        publishing = asyncio.create_task(ps.Publisher(client).publish_many(topic, payloads(0, 20_000)))
        got: list[int] = []
        async with asyncio.timeout(60):
            async for message in sub:
                got.append(int(message.data))
                assert sub.stats.buffered <= 200
                if len(got) % 100 == 0:
                    await asyncio.sleep(0)
                if len(got) == 20_000:
                    break
        await publishing
        assert got == list(range(20_000))
        assert (sub.stats.dropped, sub.stats.gaps) == (0, 0)
        await nothing_more(sub)


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "fail", "block"])
async def test_no_policy_drops_what_is_kept(
    client: ps.Client, topic: ps.Topic[bytes], overflow: Any
) -> None:
    """Whatever `overflow` says: what does not fit is read again."""
    async with ps.Subscriber(client, topic, buffer=5, overflow=overflow) as sub:
        await ps.Publisher(client).publish_many(topic, payloads(0, 300))
        assert numbers(await take(sub, 300)) == list(range(300))
        assert (sub.stats.dropped, sub.stats.gaps) == (0, 0)


# -- gaps ------------------------------------------------------------------------------------------


async def test_trimmed_beyond_the_position(client: ps.Client, topic: ps.Topic[bytes], admin: Admin) -> None:
    """The number that is missing is exact, and the gap stands in front of what is left."""
    receipts = await ps.Publisher(client).publish_many(topic, payloads(0, 50))
    await admin.trim(topic.name, 10)
    async with ps.Subscriber(client, topic, since=receipts[4].position) as sub:
        gap, *rest = await events(sub, 11)
    assert (gap.reason, gap.missed, gap.withdrawn) == (ps.GapReason.TRIMMED, 35, 0)
    assert gap.channels == (topic.name,)
    assert (gap.before, gap.after) == (receipts[4].position, receipts[40].position)
    assert numbers(rest) == list(range(40, 50))


async def test_a_gap_is_logged_or_raised(
    client: ps.Client, topic: ps.Topic[bytes], admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """The plain iterator does with it what `on_gap` says, and goes on."""
    receipts = await ps.Publisher(client).publish_many(topic, payloads(0, 50))
    await admin.trim(topic.name, 10)
    position = receipts[4].position
    async with ps.Subscriber(client, topic, since=position) as sub:
        assert numbers(await take(sub, 10)) == list(range(40, 50))
        assert "35 messages missing" in caplog.text
        assert sub.stats.gaps == 1
    async with ps.Subscriber(client, topic, since=position, on_gap="raise") as sub:
        with pytest.raises(ps.GapError, match="35 messages missing"):
            await take(sub, 1)
        assert numbers(await take(sub, 10)) == list(range(40, 50))


async def test_a_history_that_is_another(client: ps.Client, topic: ps.Topic[bytes], admin: Admin) -> None:
    """Deleted while away: a reset, then all of the new one."""
    pub = ps.Publisher(client)
    receipts = await pub.publish_many(topic, payloads(0, 5))
    await admin.delete(history_key(topic.key))
    await asyncio.sleep(0.002)  # the epoch is in milliseconds
    await pub.publish_many(topic, payloads(5, 9))
    async with ps.Subscriber(client, topic, since=receipts[-1].position) as sub:
        gap, *rest = await events(sub, 5)
        assert (gap.reason, gap.missed, gap.withdrawn) == (ps.GapReason.RESET, None, 0)
        assert numbers(rest) == list(range(5, 9))


async def test_a_history_that_is_gone(client: ps.Client, topic: ps.Topic[bytes], admin: Admin) -> None:
    """Deleted and nothing new: a reset at once, the next message follows on it."""
    pub = ps.Publisher(client)
    receipts = await pub.publish_many(topic, payloads(0, 5))
    await admin.delete(history_key(topic.key))
    await asyncio.sleep(0.002)  # the epoch is in milliseconds
    async with ps.Subscriber(client, topic, since=receipts[-1].position) as sub:
        [gap] = await events(sub, 1)
        assert gap.reason is ps.GapReason.RESET
        saved = sub.positions
        await pub.publish(topic, b"5")
        assert numbers(await take(sub, 1)) == [5]
    async with ps.Subscriber(client, topic, since=saved) as sub:  # what came since is not lost
        gap, message = await events(sub, 2)
        assert gap.reason is ps.GapReason.RESET
        assert message.data == b"5"


async def test_a_history_that_is_deleted_under_a_live_subscriber(
    client: ps.Client, topic: ps.Topic[bytes], admin: Admin
) -> None:
    """The next message comes with a reset in front of it."""
    pub = ps.Publisher(client)
    async with ps.Subscriber(client, topic) as sub:
        await pub.publish_many(topic, payloads(0, 5))
        assert numbers(await take(sub, 5)) == list(range(5))
        await admin.delete(history_key(topic.key))
        await asyncio.sleep(0.002)  # the epoch is in milliseconds
        await pub.publish_many(topic, payloads(5, 8))
        gap, *rest = await events(sub, 4)
        assert gap.reason is ps.GapReason.RESET
        assert numbers(rest) == list(range(5, 8))


async def test_rolled_back(client: ps.Client, topic: ps.Topic[bytes], admin: Admin) -> None:
    """A position that is newer than all that the server knows: it has forgotten something."""
    pub = ps.Publisher(client)
    receipts = await pub.publish_many(topic, payloads(0, 5))
    newest = receipts[-1].position
    assert newest is not None
    ahead = newest._replace(offset=newest.offset + 3, uid="somebody.else")
    async with ps.Subscriber(client, topic, since=ahead) as sub:
        [gap] = await events(sub, 1)
        assert (gap.reason, gap.missed, gap.withdrawn) == (ps.GapReason.ROLLED_BACK, None, None)
        await pub.publish(topic, b"5")
        assert numbers(await take(sub, 1)) == [5]


# -- durable cursors -------------------------------------------------------------------------------


async def test_a_name_goes_on_where_it_was(client: ps.Client, topic: ps.Topic[bytes], admin: Admin) -> None:
    """A message is done when the next one is asked for: what was in hand comes again, nothing else."""
    pub = ps.Publisher(client)
    receipts = await pub.publish_many(topic, payloads(0, 10))
    async with ps.Subscriber(client, topic, since="beginning", name="worker") as sub:
        assert numbers(await take(sub, 4)) == [0, 1, 2, 3]
    assert await admin.get(cursor_key(topic.key, "worker")) == str(receipts[2].position).encode()
    async with ps.Subscriber(client, topic, name="worker") as sub:
        assert sub.positions == {topic.name: receipts[2].position}
        assert numbers(await take(sub, 3)) == [3, 4, 5]
    async with ps.Subscriber(client, topic, since="beginning", name="other") as sub:
        assert numbers(await take(sub, 1)) == [0]


@pytest.mark.parametrize("stored", [0, 3])
async def test_a_name_that_has_done_nothing_yet(
    client: ps.Client, topic: ps.Topic[bytes], stored: int
) -> None:
    """It began now; what came before its first message was done is there when it comes back."""
    pub = ps.Publisher(client)
    await pub.publish_many(topic, payloads(100, 100 + stored))
    async with ps.Subscriber(client, topic, name="worker"):
        await pub.publish(topic, b"0")
    await pub.publish_many(topic, payloads(1, 4))
    async with ps.Subscriber(client, topic, name="worker") as sub:
        assert numbers(await take(sub, 4)) == list(range(4))
        assert sub.stats.gaps == 0


async def test_a_name_that_has_done_all(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """After `drain` nothing is in hand, so nothing is repeated."""
    pub = ps.Publisher(client)
    await pub.publish_many(topic, payloads(0, 10))
    async with ps.Subscriber(client, topic, since="beginning", name="worker") as sub:
        messages: list[ps.Message[bytes]] = []

        async def work() -> None:
            messages.extend([message async for message in sub])

        working = asyncio.create_task(work())
        assert await sub.drain(10) == 0
        await working
    assert numbers(messages) == list(range(10))
    await pub.publish(topic, b"10")
    async with ps.Subscriber(client, topic, since="beginning", name="worker") as sub:
        assert numbers(await take(sub, 1)) == [10]


async def test_a_name_for_each_topic(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """Each topic with history has its own position under the name; others have none."""
    pub = ps.Publisher(client)
    other = ps.Topic(topic.name + " other", history=ps.History())
    plain = ps.Topic(topic.name + " plain")
    await pub.publish_many([(topic, b"0"), (other, b"0"), (topic, b"1"), (other, b"1")])
    since = {topic.name: "beginning", other.name: "beginning"}
    async with ps.Subscriber(client, topic, other, plain, since=since, name="n") as sub:
        await pub.publish(plain, b"0")
        assert len(await take(sub, 5)) == 5
        positions = sub.positions
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(sub)  # asks for more, so all five are done
    async with ps.Subscriber(client, topic, other, since="beginning", name="n") as sub:
        assert sub.positions == positions


async def test_what_is_kept_under_the_name_is_no_position(
    client: ps.Client, topic: ps.Topic[bytes], admin: Admin
) -> None:
    """Somebody else's key is an error that says so, and nothing is subscribed."""
    await admin.set(cursor_key(topic.key, "worker"), b"rubbish")
    sub = ps.Subscriber(client, topic, name="worker")
    with pytest.raises(ps.CursorFailed, match="not a position: 'rubbish'"):
        await sub.__aenter__()
    assert (await ps.Publisher(client).publish(topic, b"x")).receivers == 0


# -- other subscribers -----------------------------------------------------------------------------


async def test_headers_and_any_payload(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """They come back as they were, pushed and read."""
    cases = [
        (b"", None),
        (b"\0\r\n\xff\xfe", {"trace": "ä", "b": ""}),
        (b"\xff\xaeps1 - - - {}\nnot ours", None),
        (b"x" * 300_000, {"a": "b"}),
    ]
    pub = ps.Publisher(client)
    async with ps.Subscriber(client, topic) as live:
        for payload, headers in cases:
            await pub.publish(topic, payload, headers=headers)
        async with ps.Subscriber(client, topic, since="beginning") as later:
            for sub in (live, later):
                messages = await take(sub, len(cases))
                assert [(m.data, dict(m.headers)) for m in messages] == [(p, h or {}) for p, h in cases]


@pytest.mark.parametrize("channel", ["grüße", "猫 und {Hund}", "a b\r\nc", "}{", "{}", "{a}}", "💬" * 50])
async def test_any_channel_has_a_history(client: ps.Client, channel: str) -> None:
    """Whatever its name."""
    topic = ps.Topic(channel, history=ps.History(ttl=1))
    pub = ps.Publisher(client)
    receipt = await pub.publish(topic, b"0")
    async with ps.Subscriber(client, topic, since=receipt.position) as sub:
        await pub.publish(topic, b"1")
        assert numbers(await take(sub, 1)) == [1]


async def test_codecs_and_what_cannot_be_decoded(client: ps.Client, name: str) -> None:
    """An `Undecodable` has its position, and the next message follows."""
    text = ps.Topic.text(name, history=ps.History())
    raw = ps.Topic(name, history=ps.History())
    pub = ps.Publisher(client)
    receipts = await pub.publish_many(raw, [b"\xff", "ä".encode()])
    async with ps.Subscriber(client, text, since="beginning") as sub:
        bad, good = await events(sub, 2)
        assert isinstance(bad, ps.Undecodable)
        assert (bad.position, bad.payload, bad.topic) == (receipts[0].position, b"\xff", text)
        assert (good.data, good.payload, good.position) == ("ä", "ä".encode(), receipts[1].position)
        assert sub.stats.undecodable == 1


async def test_a_mixed_company_on_one_channel(place: Place, client: ps.Client, name: str) -> None:
    """With history, plain, by pattern, with a codec, all on one client: each gets the payload."""
    topic = ps.Topic(name, history=ps.History(), sharded=False)
    text = ps.Topic.text(name, history=ps.History(), sharded=False)
    plain_topic = ps.Topic(name, sharded=False)
    glob = ps.Pattern(name.translate(str.maketrans(dict.fromkeys("[]*?^\\", "?"))))
    pub = ps.Publisher(client)
    async with (
        ps.Subscriber(client, topic) as kept,
        ps.Subscriber(client, plain_topic) as plain,
        ps.Subscriber(client, glob) as by_pattern,
        ps.Subscriber(client, text) as texts,
    ):
        receipts = await pub.publish_many(topic, payloads(0, 300))
        await pub.publish(topic, b"300", headers={"a": "b"})
        for sub in (kept, plain, by_pattern, texts):
            messages = await take(sub, 301)
            assert numbers(messages) == list(range(301))
            assert dict(messages[-1].headers) == {"a": "b"}
            assert {m.channel for m in messages} == {name}
        # the connection, once as subscriber and once for the pattern, which may be at another node
        assert receipts[0].receivers == 2 or (place.cluster and receipts[0].receivers == 1)


async def test_a_subscriber_of_topics_of_both_kinds(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """Each topic in its own order; a history's messages have a position, others none."""
    plain = ps.Topic(topic.name + " plain")
    pub = ps.Publisher(client)
    async with ps.Subscriber(client, topic, plain) as sub:
        await pub.publish_many([((topic, plain)[n % 2], b"%d" % n) for n in range(200)])
        messages = await take(sub, 200)
    for which, each in enumerate((topic, plain)):
        ours = [m for m in messages if m.channel == each.name]
        assert numbers(ours) == list(range(which, 200, 2))
        assert {m.position is None for m in ours} == {each is plain}


async def test_a_full_buffer_with_topics_of_both_kinds(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """What is kept is never pushed out: the plain message is dropped itself, and counted."""
    plain = ps.Topic(topic.name + " plain")
    pub = ps.Publisher(client)
    async with ps.Subscriber(client, topic, plain, buffer=10) as sub:
        await pub.publish_many([((topic, plain)[n % 2], b"%d" % n) for n in range(200)])
        await sub.subscribe(topic.name + " fence")
        kept: list[int] = []
        missed = got = 0
        while len(kept) < 100 or missed + got < 100:
            [event] = await events(sub, 1)
            if isinstance(event, ps.Gap):
                assert (event.reason, event.channels) == (ps.GapReason.OVERFLOW, (plain.name,))
                missed += event.missed or 0
            elif event.channel == topic.name:
                kept.append(int(event.data))
            else:
                got += 1
        assert kept == list(range(0, 200, 2))
        assert missed + got == 100
        assert sub.stats.dropped == missed > 0


# -- one channel, with and without history ---------------------------------------------------------


async def test_a_publisher_publishes_with_or_without_history(
    client: ps.Client, topic: ps.Topic[bytes]
) -> None:
    """Not both to one channel: nothing is sent, and the error says what would do."""
    pub, other = ps.Publisher(client), ps.Publisher(client)
    await pub.publish(topic, b"0")
    async with ps.Subscriber(client, topic) as sub:
        with pytest.raises(ValueError, match="is published to with a history"):
            await pub.publish(topic.name, b"x")
        with pytest.raises(ValueError, match="is published to with a history"):
            await pub.publish_many([(topic.name, b"x")])
        await other.publish(topic, b"1")
        with pytest.raises(ValueError, match="is published to with a history"):
            await other.publish(ps.Topic.text(topic.name), "x")
        with pytest.raises(ValueError, match=r"History\(size=1000.*so not with History\(size=5"):
            await other.publish(ps.Topic(topic.name, history=ps.History(size=5)), b"x")
        await pub.publish(topic, b"2")
        assert numbers(await take(sub, 2)) == [1, 2]


async def test_a_subscriber_is_warned_of_a_message_without_history(
    place: Place, client: ps.Client, topic: ps.Topic[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """It is handed over where it came, without a position, and a warning says so once."""
    async with ps.Subscriber(client, topic) as sub, ps.Publisher(place.url) as stranger:
        await ps.Publisher(client).publish(topic, b"0")
        with caplog.at_level(logging.WARNING, "aiopubsub"):
            await stranger.publish_many(topic.name, [b"1", b"2"])
            await ps.Publisher(client).publish(topic, b"3")
            messages = await take(sub, 4)
        assert numbers(messages) == [0, 1, 2, 3]
        assert [m.position is None for m in messages] == [False, True, True, False]
        assert [r.getMessage().count("without history") for r in caplog.records] == [1]


async def test_a_broken_frame_is_delivered_as_it_came(
    place: Place, client: ps.Client, topic: ps.Topic[bytes]
) -> None:
    """And counted; the history is not disturbed."""
    broken = b"\xff\xaeps1 1-1 u\nx"
    async with ps.Subscriber(client, topic) as sub:
        if place.name == "memory":
            servers = _servers[asyncio.get_running_loop()]
            servers[place.url.removeprefix("memory://").rstrip("/")]._publish(topic.key, broken)
        else:
            publish = "SPUBLISH" if place.cluster else "PUBLISH"
            async with place.stranger() as stranger:
                await stranger.execute_command(publish, topic.name, broken)
        await ps.Publisher(client).publish(topic, b"0")
        first, second = await take(sub, 2)
        assert (first.data, first.position) == (broken, None)
        assert second.data == b"0"
        assert sub.stats.malformed == 1


# -- coming and going ------------------------------------------------------------------------------


async def test_draining_reads_to_the_end(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """All that was published before is handed over, also what the buffer had no room for."""
    await ps.Publisher(client).publish_many(topic, payloads(0, 800))
    async with ps.Subscriber(client, topic, since="beginning", buffer=10) as sub:
        got: list[int] = []

        async def work() -> None:
            async for message in sub:
                got.append(int(message.data))
                await asyncio.sleep(0)

        working = asyncio.create_task(work())
        assert await sub.drain(30) == 0
        await working
    assert got == list(range(800))


async def test_unsubscribing_and_coming_back(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """A topic that was left is left; subscribed again, it begins where it is told to."""
    pub = ps.Publisher(client)
    async with ps.Subscriber(client, topic, buffer=10) as sub, ps.Subscriber(client, topic) as other:
        await pub.publish_many(topic, payloads(0, 5))
        assert numbers(await take(sub, 5)) == list(range(5))
        saved = sub.positions
        await sub.unsubscribe(topic)
        await pub.publish_many(topic, payloads(5, 8))
        await sub.subscribe(topic, since=saved)
        await pub.publish(topic, b"8")
        assert numbers(await take(sub, 4)) == list(range(5, 9))
        assert numbers(await take(other, 9)) == list(range(9))


async def test_the_same_topic_again_changes_nothing(client: ps.Client, topic: ps.Topic[bytes]) -> None:
    """It is confirmed, and goes on from where it is."""
    pub = ps.Publisher(client)
    await pub.publish_many(topic, payloads(0, 3))
    async with ps.Subscriber(client, topic) as sub:
        await sub.subscribe(topic, since="beginning")
        await pub.publish(topic, b"3")
        assert numbers(await take(sub, 1)) == [3]


# -- bad input -------------------------------------------------------------------------------------

KEPT = ps.Topic("kept", history=ps.History())
PLACE = ps.Position(1, 1, "00000000", "u")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ps.History(size=0), ValueError, "`size` must be at least 1, not 0"),
        (lambda: ps.History(size=1.5), TypeError, "`size` must be an int, not float"),
        (lambda: ps.History(ttl=0), ValueError, "`ttl` must be more than 0 seconds"),
        (lambda: ps.Topic("c", history=5), TypeError, "`history` must be a History, not int"),
        (lambda: sub("c", since="beginning"), ValueError, "'c' is not a topic with history here"),
        (lambda: sub(KEPT, "c", since="beginning"), ValueError, "'c' is not a topic with history here"),
        (lambda: sub(ps.Pattern("*"), since="beginning"), ValueError, "is not a topic with history here"),
        (lambda: sub("c", since={"c": None}), ValueError, "'c' is not a topic with history here"),
        (lambda: sub(KEPT, since={"other": None}), ValueError, "'other' is not a topic with history"),
        (lambda: sub(KEPT, since="begining"), ValueError, "not a position: 'begining'"),
        (lambda: sub(KEPT, since=PLACE), ValueError, "is not a position of 'kept', but of another topic"),
        (lambda: sub(KEPT, since=str(PLACE)), ValueError, "but of another topic"),
        (lambda: sub(KEPT, since={"kept": PLACE}), ValueError, "but of another topic"),
        (lambda: sub(KEPT, since=5), TypeError, "'beginning' or a mapping, not int"),
        (lambda: sub(KEPT, since={"kept": 5}), TypeError, "'beginning' or a mapping, not int"),
        (lambda: sub(KEPT, name=""), ValueError, "1 to 128 letters, digits"),
        (lambda: sub(KEPT, name="a b"), ValueError, "1 to 128 letters, digits"),
        (lambda: sub(KEPT, name="a{b}"), ValueError, "1 to 128 letters, digits"),
        (lambda: sub(KEPT, name="a\n"), ValueError, "1 to 128 letters, digits"),
        (lambda: sub(KEPT, name="ä"), ValueError, "1 to 128 letters, digits"),
        (lambda: sub(KEPT, name="x" * 129), ValueError, "1 to 128 letters, digits"),
        (lambda: sub(KEPT, name=5), TypeError, "`name` must be a str, not int"),
        (lambda: sub("c", name="n"), ValueError, "`name` is for topics with history"),
        (lambda: sub(KEPT, "kept"), ValueError, "another codec or history"),
    ],
)
async def test_arguments_are_checked_at_once(make: Any, error: type, words: str) -> None:
    """Before anything is sent, with what would do."""
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


def sub(*topics: Any, **options: Any) -> ps.Subscriber[Any]:
    return ps.Subscriber("memory://", *topics, **options)


async def test_subscribe_checks_since_as_well(client: ps.Client) -> None:
    """Nothing is subscribed when `since` cannot be."""
    async with ps.Subscriber(client, name="n") as later:
        with pytest.raises(ValueError, match="not a position"):
            await later.subscribe(KEPT, since="rubbish")
        with pytest.raises(ValueError, match="is not a topic with history"):
            await later.subscribe("plain", since="beginning")
        assert later.topics == ()


async def test_a_stream_of_somebody_else(real_place: Place, name: str) -> None:
    """What is not a stream, or holds other entries, is refused in the server's words or ours."""
    topic = ps.Topic(name, history=ps.History())
    key = history_key(topic.key)
    assert real_place.server is not None
    async with (
        ps.Client(real_place.url) as client,
        redis.asyncio.Redis(port=real_place.server.port) as admin,
    ):
        await admin.set(key, b"x")
        with pytest.raises(ps.PublishRefused, match="WRONGTYPE"):
            await ps.Publisher(client).publish(topic, b"0")
        with pytest.raises(ps.SubscribeRefused, match="WRONGTYPE"):
            await ps.Subscriber(client, topic).__aenter__()
        await admin.delete(key)
        await admin.xadd(key, {"a": "b"})
        with pytest.raises(ps.PublishRefused, match="holds an entry that is no message"):
            await ps.Publisher(client).publish(topic, b"0")
        with pytest.raises(ps.SubscribeRefused, match="KeyError"):
            await ps.Subscriber(client, topic, since="beginning").__aenter__()


async def test_another_client_sees_what_the_wire_format_says(real_place: Place, name: str) -> None:
    """A frame on the channel, and the entry's fields in the stream."""
    topic = ps.Topic(name, history=ps.History())
    assert real_place.server is not None
    async with (
        ps.Client(real_place.url) as client,
        redis.asyncio.Redis(port=real_place.server.port) as stranger,
        stranger.pubsub() as pubsub,
    ):
        await pubsub.subscribe(name)
        await pubsub.get_message(timeout=5)
        pub = ps.Publisher(client)
        first = await pub.publish(topic, b"payload\n")
        second = await pub.publish(topic, b"x", headers={"a": "ä"})
        assert first.position is not None
        assert second.position is not None
        got = [(await pubsub.get_message(timeout=5) or {})["data"] for _ in range(2)]
        one, two = first.position.uid.encode(), second.position.uid.encode()
        ids = [first.position.id.encode(), second.position.id.encode()]
        assert got == [
            b"\xff\xaeps1 %b %b - {}\npayload\n" % (ids[0], one),
            b'\xff\xaeps1 %b %b %b {"a":"\\u00e4"}\nx' % (ids[1], two, one),
        ]
        entries = await stranger.xrange(history_key(topic.key))
        assert entries == [
            (ids[0], {b"uid": one, b"after": b"-", b"data": b"payload\n"}),
            (ids[1], {b"uid": two, b"after": one, b"headers": b'{"a":"\\u00e4"}', b"data": b"x"}),
        ]
        assert 86_390_000 < await stranger.pttl(history_key(topic.key)) <= 86_400_000
