"""The web chat's own answers; tests/browser shows the rest."""

from __future__ import annotations

import json
import os

import pytest

import aiopubsub as ps
from docs.examples.web_chat.app import ROOM, app
from tests.contrib.browser import Talk, Visit
from tests.examples.conftest import give

pytestmark = pytest.mark.anyio

SAID = {"kind": "say", "id": "me-1", "name": "Ada", "text": "hello"}


async def test_what_is_said_is_heard(client: ps.Client, pub: ps.Publisher) -> None:
    """By who listens, and by who comes later; who is typing only by who is there."""
    give(app, client, pub)
    async with Talk(app, "/talk") as ada, Talk(app, "/talk") as grace, Visit(app, "/said") as early:
        for talk in (ada, grace):
            assert json.loads(await talk.hear()) == {"kind": "hello", "worker": os.getpid()}
        await early.answer()
        await early.next()
        ada.say(json.dumps({"kind": "typing", "id": "me", "name": "Ada"}))
        assert json.loads(await grace.hear()) == {"kind": "typing", "id": "me", "name": "Ada"}
        ada.say(json.dumps(SAID))
        first = await early.next()
        said = json.loads(first.data or "")
        assert said.pop("at") > 0
        assert said == {key: SAID[key] for key in ("id", "name", "text")}
        for last, count in ((None, 1), (first.id, 0)):
            async with Visit(app, "/said", query=f"last={last or ''}") as late:
                await late.answer()
                await late.next()
                await pub.publish(ROOM, ROOM.decode(json.dumps({**SAID, "at": 1}).encode()))
                events = await late.events(count + 1)
                assert (events[0].data == first.data) is (count == 1)


@pytest.mark.parametrize(
    "frame",
    [
        "no json",
        b"\xff\xfe",
        "[]",
        json.dumps({**SAID, "kind": "shout"}),
        json.dumps({**SAID, "text": ""}),
        json.dumps({**SAID, "name": "x" * 33}),
        json.dumps({**SAID, "text": "x" * 4001}),
        json.dumps({**SAID, "id": None}),
    ],
)
async def test_what_is_no_message_ends_the_talk(
    client: ps.Client, pub: ps.Publisher, frame: str | bytes
) -> None:
    """Code 1008, "policy violation", and nothing in the room."""
    give(app, client, pub)
    async with ps.Subscriber(client, ROOM) as room, Talk(app, "/talk") as talk:
        await talk.hear()
        talk.say(frame)
        assert await talk.hear() == 1008
        await talk.ended()
        assert room.stats.received == 0


async def test_a_room_without_a_server_says_so(client: ps.Client, pub: ps.Publisher) -> None:
    """A page that comes then is told to come again: code 1013, and 503."""
    give(app, client, pub)
    await client.aclose()
    async with Talk(app, "/talk") as talk:
        await talk.hear()
        assert await talk.hear() == 1013
    async with Visit(app, "/said") as visit:
        assert (await visit.answer())[0] == 503


async def test_the_page_is_there(client: ps.Client, pub: ps.Publisher) -> None:
    """Nothing is fetched from elsewhere."""
    async with Visit(give(app, client, pub)) as visit:
        status, headers = await visit.answer()
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        page = await visit.body()
    assert "<title>" in page
    assert "https://" not in page
    assert page.count("http://") == 1  # the name of SVG
