"""Subscribing and unsubscribing around reconnects: no ghost, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random

import pytest

import aiopubsub as ps
from aiopubsub.testing import Proxy, Server
from tests.fault.conftest import LONG, admin

pytestmark = pytest.mark.anyio

INTERLEAVINGS = 10_000 if LONG else 150
SEED = int(os.environ.get("AIOPUBSUB_SEED", "1"))
NAMES: list[str | ps.Pattern[bytes]] = [*"abcd", ps.Pattern("p*"), ps.Pattern("q*")]


async def change(sub: ps.Subscriber[bytes], wanted: set[object], rnd: random.Random) -> None:
    """Let a subscriber want something else; cancelled now and then."""
    some = rnd.sample(NAMES, rnd.randrange(1, 4))
    if rnd.random() < 0.5:
        task = asyncio.create_task(sub.subscribe(*some))
        await turns(rnd)
        if rnd.random() < 0.2:
            task.cancel()
    else:
        task = asyncio.create_task(sub.unsubscribe(*some))
        await turns(rnd)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    wanted.clear()
    wanted.update(topic.name for topic in sub.topics)


async def turns(rnd: random.Random) -> None:
    for _ in range(rnd.choice([0, 0, 1, 2, 3, 5, 10, 30])):
        await asyncio.sleep(0)


async def test_random_interleavings(valkey: Server) -> None:
    """After each round the server has exactly the subscriptions that the subscribers want."""
    rnd = random.Random(SEED)
    quick = ps.Backoff(first_s=0.001, cap_s=0.005)
    async with (
        asyncio.timeout(600 if LONG else 60),
        Proxy(valkey.port) as proxy,
        ps.Client(proxy.url, backoff=quick) as client,
        ps.Publisher(valkey.url) as pub,
        ps.Subscriber(client, "x") as one,
        ps.Subscriber(client, "x") as two,
        ps.Subscriber(client, "x") as three,
    ):
        subs = [one, two, three]
        with admin(valkey) as server:
            for round_ in range(INTERLEAVINGS):
                changes = [asyncio.create_task(change(sub, set(), rnd)) for sub in subs]
                for _ in range(rnd.randrange(3)):
                    await turns(rnd)
                    rnd.choice([proxy.cut, lambda: server.client_kill_filter(_type="pubsub")])()
                await asyncio.gather(*changes)
                wanted = {topic for sub in subs for topic in sub.topics}
                for sub in subs:
                    await sub.unsubscribe("x")
                    await sub.subscribe("x")  # asked last: what was wanted before is settled
                where = f"round {round_} of seed {SEED}"
                exact = {topic.name for topic in wanted if isinstance(topic, ps.Topic)} | {"x"}
                patterns = {topic.name for topic in wanted if isinstance(topic, ps.Pattern)}
                async with asyncio.timeout(5):
                    # a connection that was cut lives on in the server for a moment: no event tells
                    while (
                        set(server.pubsub_channels()) != exact
                        or server.pubsub_numpat() != len(patterns)
                        or {n for _, n in server.pubsub_numsub(*exact)} != {1}
                    ):
                        await asyncio.sleep(0.001)
                for name in exact:
                    assert (await pub.publish(name, b"%d" % round_)).receivers == 1, where
                for sub in subs:
                    mine = {topic.name for topic in sub.topics}
                    got: set[str] = set()
                    async with asyncio.timeout(5):
                        while {name for name in mine if name in exact} - got:
                            message = await anext(sub)
                            if int(message.data) == round_:
                                got.add(message.channel)
                    assert got <= exact & mine, where
