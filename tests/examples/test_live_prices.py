"""Live prices: each browser gets what it watches, and is told of what it missed."""

from __future__ import annotations

import json

import pytest

import aiopubsub as ps
from docs.examples.live_prices import Price, app, prices_of
from tests.contrib.browser import Talk
from tests.examples.conftest import give

pytestmark = pytest.mark.anyio


async def test_one_gets_what_one_watches(client: ps.Client, pub: ps.Publisher) -> None:
    """And nothing else; what is no price is passed over."""
    async with Talk(give(app, client, pub), "/prices/ACME") as talk:
        await pub.publish(prices_of("OTHER"), Price("OTHER", 1))
        await pub.publish("prices.ACME", b"no price")
        await pub.publish(prices_of("ACME"), Price("ACME", 1250))
        assert json.loads(await talk.hear()) == {"symbol": "ACME", "cents": 1250}
        talk.say('{"watch": "OTHER"}')
        while not (await pub.publish(prices_of("OTHER"), Price("OTHER", 2))).receivers:
            pass  # each try is a round through the server
        assert json.loads(await talk.hear()) == {"symbol": "OTHER", "cents": 2}


async def test_who_is_slow_is_told(client: ps.Client, pub: ps.Publisher) -> None:
    """How many were left out, and then the newest."""
    async with Talk(give(app, client, pub), "/prices/ACME") as talk:
        talk.takes.clear()
        await pub.publish_many(prices_of("ACME"), [Price("ACME", cents) for cents in range(1, 1001)])
        talk.takes.set()
        got, missed = [0], 0
        while got[-1] != 1000:
            heard = json.loads(await talk.hear())
            missed += heard.get("missed", 0)
            got += [heard["cents"]] if "cents" in heard else []
        assert len(got) - 1 + missed == 1000
        assert missed


@pytest.mark.parametrize("frame", ["no json", '{"watch": "*"}', '{"watch": 5}', b"\xff"])
async def test_what_is_no_wish_ends_it(client: ps.Client, pub: ps.Publisher, frame: str | bytes) -> None:
    """Code 1008."""
    async with Talk(give(app, client, pub), "/prices/ACME") as talk:
        talk.say(frame)
        assert await talk.hear() == 1008
