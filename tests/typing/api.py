"""The public API as users type it: checked by mypy and pyright, both strict, and never run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, assert_type

import redis.asyncio

import aiopubsub as ps


@dataclass
class Order:
    """What a service would publish."""

    number: int


def encode_order(order: Order) -> bytes:
    return json.dumps({"number": order.number}).encode()


def decode_order(payload: bytes) -> Order:
    return Order(**json.loads(payload))


ORDERS = ps.Topic("orders", encode=encode_order, decode=decode_order)
ALL_ORDERS = ps.Pattern("orders.*", decode=decode_order)


async def subscribing(client: ps.Client) -> None:
    """The type of what is iterated follows from the topics."""
    async with ps.Subscriber(client, ORDERS) as orders:
        assert_type(orders, ps.Subscriber[Order])
        async for order in orders:
            assert_type(order, ps.Message[Order])
            assert_type(order.data, Order)
            assert_type(order.text, str)
            assert_type(order.payload, bytes)
        await orders.subscribe(ALL_ORDERS)
        await orders.subscribe("raw")  # type: ignore[arg-type]
        await orders.unsubscribe("orders")

    async with ps.Subscriber("redis://localhost", "chat", ps.Pattern("news.*")) as raw:
        assert_type(raw, ps.Subscriber[bytes])
        assert_type(await anext(raw), ps.Message[bytes])

    async with ps.Subscriber(client, ORDERS, ALL_ORDERS, buffer=10, overflow="fail") as both:
        assert_type(both, ps.Subscriber[Order])

    either: ps.Subscriber[Order | str] = ps.Subscriber(client, ORDERS, ps.Topic.text("names"))
    async for item in either:
        assert_type(item.data, Order | str)

    async with ps.Subscriber(client, ps.Topic.json("settings")) as settings:
        assert_type((await anext(settings)).data, ps.JSON)

    ps.Subscriber(client, "c", overflow="lose")  # type: ignore[call-overload]


async def events(sub: ps.Subscriber[Order]) -> None:
    """The three kinds of events are told apart by a match, and there is no fourth."""
    async for event in sub.events():
        match event:
            case ps.Message():
                assert_type(event.data, Order)
            case ps.Gap(reason=why, missed=count):
                assert_type(why, ps.GapReason)
                assert_type(count, int | None)
            case ps.Undecodable(error=error):
                assert_type(error, Exception)


KEPT_ORDERS = ps.Topic(
    "orders", encode=encode_order, decode=decode_order, history=ps.History(size=10_000, ttl=None)
)


async def histories(client: ps.Client, saved: str) -> None:
    """Topics with history are used as others are; what they tell of places is typed."""
    assert_type(KEPT_ORDERS, ps.Topic[Order])
    assert_type(ps.Topic("raw", history=ps.History()), ps.Topic[bytes])
    assert_type(ps.Topic.text("names", history=ps.History()), ps.Topic[str])
    assert_type(ps.Topic.json("settings", history=ps.History()), ps.Topic[ps.JSON])
    receipt = await ps.Publisher(client).publish(KEPT_ORDERS, Order(1), headers={"trace": "1"})
    assert_type(receipt.position, ps.Position | None)
    assert_type(receipt.duplicate, bool)
    async with ps.Subscriber(client, KEPT_ORDERS, since=saved, name="worker") as sub:
        assert_type(sub, ps.Subscriber[Order])
        assert_type(sub.positions, dict[str, ps.Position])
        message = await anext(sub)
        assert_type(message.position, ps.Position | None)
        await sub.subscribe(ORDERS, since="beginning")
        async for event in sub.events():
            if isinstance(event, ps.Gap):
                assert_type(event.withdrawn, int | None)
                assert_type(event.before, ps.Position | None)
                assert_type(event.after, ps.Position | None)
            elif isinstance(event, ps.Undecodable):
                assert_type(event.position, ps.Position | None)
    position = ps.Position.parse(saved)
    assert_type(position, ps.Position)
    ps.Subscriber(client, KEPT_ORDERS, since=position)
    ps.Subscriber(client, KEPT_ORDERS, since={"orders": position, "other": "beginning", "third": None})
    ps.Subscriber(client, KEPT_ORDERS, since=sub.positions)
    ps.Subscriber(client, KEPT_ORDERS, since=5)  # type: ignore[call-overload]
    ps.Pattern("orders.*", history=ps.History())  # type: ignore[call-overload]


async def publishing(client: ps.Client) -> None:
    """What may be published follows from the topic."""
    pub = ps.Publisher(client)
    assert_type(await pub.publish(ORDERS, Order(1)), ps.Receipt)
    await pub.publish("chat", "text")
    await pub.publish("chat", b"bytes", headers={"trace": "1"})
    await pub.publish(ps.Topic("chat"), memoryview(b"view"))
    await pub.publish(ps.Topic.text("t"), "text")
    await pub.publish(ps.Topic.json("j"), {"a": [1, 2.5, None, True, "x"]})
    assert_type(await pub.publish_many(ORDERS, [Order(1), Order(2)]), list[ps.Receipt])
    await pub.publish_many("chat", ["a", b"b"])
    await pub.publish_many([("chat", b"a"), (ORDERS, Order(3))])
    await pub.publish(ORDERS, "not an order")  # type: ignore[arg-type]
    await pub.publish("chat", 5)  # type: ignore[call-overload]


def sources(mine: redis.asyncio.Redis) -> None:
    """A URL, or a client of redis-py."""
    ps.Client("redis://localhost", connect_timeout=None, backoff=ps.Backoff(cap_s=5))
    ps.Client(mine)
    ps.Client(5)  # type: ignore[arg-type]


def any_codec(dumps: Any) -> ps.Topic[Any]:
    """A codec without types makes a topic of `Any`."""
    return ps.Topic("any", encode=dumps, decode=dumps)
