"""Trouble without a server."""

from __future__ import annotations

import asyncio

import pytest

import aiopubsub as ps
from aiopubsub.testing import Trouble, inject_gap

pytestmark = pytest.mark.anyio

ORDERS = ps.Topic.text("orders")
KEPT = ps.Topic.text("kept", history=ps.History(size=10))


async def test_a_cut_is_a_gap_and_no_end() -> None:
    """Plain subscribers are told, histories are read again, both go on."""
    async with ps.Client("memory://") as client, ps.Subscriber(client, ORDERS, KEPT) as sub:
        trouble, pub = Trouble(client), ps.Publisher(client)
        await pub.publish(KEPT, "1")
        trouble.cut()
        await pub.publish(KEPT, "2")
        events = sub.events()
        told = [await anext(events) for _ in range(3)]
        gaps = [event for event in told if isinstance(event, ps.Gap)]
        assert [gap.reason for gap in gaps] == [ps.GapReason.RECONNECTED]
        assert gaps[0].channels == ("orders",)
        assert [event.data for event in told if isinstance(event, ps.Message)] == ["1", "2"]


async def test_a_publish_without_an_answer_is_unconfirmed() -> None:
    """What a cut takes with it is unknown, as on a real connection."""
    async with ps.Client("memory://") as client:
        pub = ps.Publisher(client)
        publishing = asyncio.create_task(pub.publish(ORDERS, "1"))
        trouble = Trouble(client)
        trouble.delay_s = 60
        while not client.stats.in_flight:
            await asyncio.sleep(0)
        trouble.delay_s = 0
        trouble.cut()
        with pytest.raises(ps.Unconfirmed):
            await publishing


async def test_a_server_that_is_gone_and_comes_back() -> None:
    """Nothing is sent meanwhile; a new client is told why; afterwards all is well."""
    async with ps.Client("memory://") as client, ps.Subscriber(client, ORDERS) as sub:
        trouble = Trouble(client)
        trouble.refuse()
        trouble.cut()
        with pytest.raises(ps.NotSent):
            await ps.Publisher(client, timeout=0.05).publish(ORDERS, "1")
        with pytest.raises(ps.ConnectFailed, match="connection refused"):
            await ps.Client("memory://", connect_timeout=0.05).__aenter__()
        trouble.accept()
        events = sub.events()
        assert isinstance(await anext(events), ps.Gap)
        await ps.Publisher(client).publish(ORDERS, "2")
        assert isinstance(await anext(events), ps.Message)


async def test_a_slow_server() -> None:
    """Answers take as long as is said, and keep their order."""
    loop = asyncio.get_running_loop()
    async with ps.Client("memory://") as client, ps.Subscriber(client, ORDERS) as sub:
        pub = ps.Publisher(client)
        Trouble(client).delay_s = 0.05
        began_at = loop.time()
        await asyncio.gather(*(pub.publish(ORDERS, str(number)) for number in range(10)))
        assert loop.time() - began_at >= 0.05
        assert [(await anext(sub)).data for _ in range(10)] == [str(number) for number in range(10)]
        with pytest.raises(ps.Unconfirmed):
            await ps.Publisher(client, timeout=0.02).publish(ORDERS, "late")
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="delay_s"):
            Trouble("memory://").delay_s = wrong


async def test_a_forbidden_channel() -> None:
    """Publishing and subscribing are refused, with and without history, and allowed again."""
    async with ps.Client("memory://") as client:
        trouble, pub = Trouble(client), ps.Publisher(client)
        trouble.forbid("orders", "kept", "news.*")
        for topic in (ORDERS, KEPT):
            with pytest.raises(ps.PublishRefused, match="NOPERM"):
                await pub.publish(topic, "1")
        with pytest.raises(ps.SubscribeRefused) as caught:
            await ps.Subscriber(client, "orders", "other", ps.Pattern("news.*")).__aenter__()
        assert set(caught.value.refused) == {"orders", "news.*"}
        trouble.allow("orders", "kept", "news.*")
        async with ps.Subscriber(client, ORDERS, KEPT, ps.Pattern("news.*", decode=bytes.decode)):
            assert (await pub.publish(ORDERS, "1")).receivers == 1


async def test_a_permission_that_is_withdrawn() -> None:
    """The iterator raises the reason, and its other topics go on."""
    async with ps.Client("memory://") as client, ps.Subscriber(client, ORDERS, "mine") as sub:
        Trouble(client).forbid("orders")
        with pytest.raises(ps.SubscribeRefused):
            await anext(sub)  # a gap of the others may come first, and is logged
        assert (await ps.Publisher(client).publish("mine", b"1")).receivers == 1


async def test_a_gap_of_any_kind() -> None:
    """It comes after the messages that came before it, with what is said of it."""
    async with ps.Client("memory://") as client, ps.Subscriber(client, ORDERS, on_gap="raise") as sub:
        await ps.Publisher(client).publish(ORDERS, "1")
        inject_gap(sub, ps.GapReason.TRIMMED, missed=7, withdrawn=None, cause="because")
        assert (await anext(sub)).data == "1"
        with pytest.raises(ps.GapError) as caught:
            await anext(sub)
        gap = caught.value.gap
        told = (gap.reason, gap.channels, gap.missed, gap.withdrawn, gap.cause)
        assert told == (ps.GapReason.TRIMMED, ("orders",), 7, None, "because")
        assert sub.stats.gaps == 1
    with pytest.raises(ps.Closed):
        inject_gap(sub, ps.GapReason.RESET)


async def test_trouble_is_for_one_server() -> None:
    """Two names are two servers; whoever holds the trouble keeps the histories."""
    trouble = Trouble("memory://a")
    async with ps.Client("memory://b") as client:
        trouble.refuse()
        assert (await ps.Publisher(client).publish(ORDERS, "1")).receivers == 0
    trouble.accept()
    async with ps.Client("memory://a") as client:
        await ps.Publisher(client).publish(KEPT, "1")
    async with ps.Subscriber("memory://a", KEPT, since="beginning") as sub:
        assert (await anext(sub)).data == "1"


async def test_trouble_is_for_the_memory() -> None:
    """A real server has a proxy for that; what is no source is a type error."""
    with pytest.raises(ValueError, match="Proxy"):
        Trouble("redis://localhost")
    with pytest.raises(TypeError, match="source"):
        Trouble(1)  # type: ignore[arg-type]
