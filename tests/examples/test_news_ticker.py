"""The news ticker: everything for who is new, what was missed for who comes back."""

from __future__ import annotations

import pytest

import aiopubsub as ps
from docs.examples.news_ticker import NEWS, app
from tests.contrib.browser import Visit
from tests.examples.conftest import give

pytestmark = pytest.mark.anyio


async def test_news_are_resumed(client: ps.Client, pub: ps.Publisher) -> None:
    """By the header, which a browser sends by itself, and by the query, which the page does."""
    give(app, client, pub)
    async with Visit(app) as visit:
        assert (await visit.answer())[0] == 200
        assert "EventSource(`events?last=" in await visit.body()
    receipts = await pub.publish_many(NEWS, ["one", "two"])
    first = str(receipts[0].position)
    for said in ({}, {"last_event_id": first}, {"query": f"last={first}"}):
        async with Visit(app, "/events", **said) as visit:
            await visit.answer()
            await visit.next()
            assert (await visit.next()).data == ("two" if said else "one")
