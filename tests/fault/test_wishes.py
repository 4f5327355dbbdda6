"""Subscribing and unsubscribing around reconnects: no ghost, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random

import pytest
import redis

import aiopubsub as ps
from aiopubsub.testing import Proxy, Server
from tests.conftest import LONG
from tests.fault.conftest import admin

pytestmark = pytest.mark.anyio

INTERLEAVINGS = 10_000 if LONG else 150
SEED = int(os.environ.get("AIOPUBSUB_SEED", "1"))

Wish = ps.Topic[bytes] | ps.Pattern[bytes]
ALWAYS = ps.Topic("always")
CHANNEL_OF: dict[Wish, str] = {
    **{ps.Topic(name): name for name in "abcd"},
    **{ps.Pattern(f"{name}*"): f"{name}1" for name in "pq"},
    ALWAYS: ALWAYS.name,
}
"""A channel that each matches."""


async def change(sub: ps.Subscriber[bytes], rnd: random.Random) -> None:
    """Let a subscriber want something else, cancelled now and then, and see that it does."""
    before = {*sub.topics}
    some = rnd.sample([wish for wish in CHANNEL_OF if wish is not ALWAYS], rnd.randrange(1, 4))
    if rnd.random() < 0.5:
        after = before.union(some)
        task = asyncio.create_task(sub.subscribe(*some))
        await turns(rnd)
        if rnd.random() < 0.2:
            task.cancel()
    else:
        after = before.difference(some)
        task = asyncio.create_task(sub.unsubscribe(*some))
        await turns(rnd)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert {*sub.topics} == (before if task.cancelled() else after)


async def turns(rnd: random.Random) -> None:
    for _ in range(rnd.choice([0, 0, 1, 2, 3, 5, 10, 30])):
        await asyncio.sleep(0)


async def settled(server: redis.Redis, wanted: set[Wish]) -> None:
    """Until the server has exactly these, of one connection."""
    channels = {wish.name for wish in wanted if isinstance(wish, ps.Topic)}
    patterns = sum(isinstance(wish, ps.Pattern) for wish in wanted)
    async with asyncio.timeout(5):
        # a connection that was cut lives on in the server for a moment: no event tells
        while (
            set(server.pubsub_channels()) != channels
            or server.pubsub_numpat() != patterns
            or {count for _, count in server.pubsub_numsub(*channels)} != {1}
        ):
            await asyncio.sleep(0.001)


async def test_random_interleavings(valkey: Server) -> None:
    """After each round the server has exactly the subscriptions that the subscribers want."""
    rnd = random.Random(SEED)
    quick = ps.Backoff(first_s=0.001, cap_s=0.005)
    async with (
        asyncio.timeout(3600 if LONG else 60),
        Proxy(valkey.port) as proxy,
        ps.Client(proxy.url, backoff=quick) as client,
        ps.Publisher(valkey.url) as pub,
        ps.Subscriber(client, ALWAYS) as one,
        ps.Subscriber(client, ALWAYS) as two,
        ps.Subscriber(client, ALWAYS) as three,
    ):
        subs = [one, two, three]
        with admin(valkey) as server:
            for round_ in range(INTERLEAVINGS):
                changes = [asyncio.create_task(change(sub, rnd)) for sub in subs]
                for _ in range(rnd.randrange(3)):
                    await turns(rnd)
                    rnd.choice([proxy.cut, lambda: server.client_kill_filter(_type="pubsub")])()
                await asyncio.gather(*changes)
                for sub in subs:
                    await sub.unsubscribe(ALWAYS)
                    await sub.subscribe(ALWAYS)  # asked last: what was wanted before is settled
                wanted = {wish for wish in CHANNEL_OF if any(wish in sub.topics for sub in subs)}
                await settled(server, wanted)
                for wish, channel in CHANNEL_OF.items():
                    receipt = await pub.publish(channel, b"%d" % round_)
                    assert receipt.receivers == (wish in wanted), f"{wish}, round {round_} of seed {SEED}"
                for sub in subs:
                    await hears(sub, round_)
        print(f"{INTERLEAVINGS} interleavings, {one.stats.reconnects} reconnects")


async def hears(sub: ps.Subscriber[bytes], round_: int) -> None:
    """What was published in this round comes for each topic once, and for no other."""
    missing = {*sub.topics}
    async with asyncio.timeout(5):
        while missing:
            message = await anext(sub)
            if int(message.data) == round_:
                missing.remove(message.topic)
