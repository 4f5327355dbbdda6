"""Subscribers with and without history on one topic, when a named one is done, and large messages."""

from __future__ import annotations

from secrets import token_hex

import pytest

from aiopubsub import Client, Gap, GapReason, History, Message, Publisher, Subscriber, Topic
from aiopubsub.keys import history_key
from tests.conftest import Place

pytestmark = pytest.mark.anyio


@pytest.fixture
def topic() -> Topic[bytes]:
    """One that no other test has published to."""
    return Topic(f"orders-{token_hex(4)}", history=History(size=100))


async def test_a_plain_subscriber_drops_the_oldest(client: Client, topic: Topic[bytes]) -> None:
    """One that does not follow the history drops by its policy, though the messages have a place."""
    async with Subscriber(client, topic.name, buffer=3) as sub:
        await Publisher(client).publish_many(topic, [b"%d" % number for number in range(10)])
        # of the same slot, so confirmed after all that was pushed before
        await sub.subscribe(f"{{{topic.name}}}later")
        events = sub.events()
        gap = await anext(events)
        assert isinstance(gap, Gap)
        assert (gap.reason, gap.missed) == (GapReason.OVERFLOW, 7)
        left = [await anext(events) for _ in range(3)]
        assert [event.data for event in left if isinstance(event, Message)] == [b"7", b"8", b"9"]


async def test_a_message_that_is_said_to_be_done(client: Client, topic: Topic[bytes]) -> None:
    """`done` finishes the message at hand; leaving the block, which may happen anywhere, does not."""
    await Publisher(client).publish_many(topic, [b"1", b"2", b"3"])
    async with Subscriber(client, topic, name="w", since="beginning") as sub:
        assert (await anext(sub)).data == b"1"
        await sub.done()
        await sub.done()
    async with Subscriber(client, topic, name="w", since="beginning") as sub:
        assert (await anext(sub)).data == b"2"
    async with Subscriber(client, topic, name="w", since="beginning") as sub:
        assert (await anext(sub)).data == b"2"
        assert (await anext(sub)).data == b"3"


async def test_pages_that_are_too_large_for_the_server(real_place: Place, topic: Topic[bytes]) -> None:
    """Messages whose first page exceeds what a server sends to a subscriber are read in smaller ones."""
    payloads = [bytes([number]) * 3_000_000 for number in range(14)]  # 42 MB; the limit is 32
    async with Client(real_place.url) as client:
        for payload in payloads:
            await Publisher(client, timeout=30).publish(topic, payload)
        async with Subscriber(client, topic, since="beginning") as sub:
            assert [(await anext(sub)).data for _ in payloads] == payloads
            assert sub.stats.gaps == 0
            assert sub.stats.reconnects >= 1  # else this shows nothing
    with real_place.admin() as admin:
        admin.delete(history_key(topic.key))
