"""The web chat in Chromium: two pages on two workers, and what can go wrong between them.

`AIOPUBSUB_SCREENSHOT=1` takes the picture in the docs anew.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from aiopubsub.keys import history_key
from aiopubsub.testing import Server
from docs.examples.web_chat.app import ROOM
from tests.conftest import start
from tests.contrib.workers import ROOT, Worker

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.anyio

CHAT = "docs.examples.web_chat.app:app"
PICTURE = ROOT / "docs/examples/web_chat/web-chat.png"
DEADLINE_MS = 30_000
PAUSE_S = 0.05  # between two things that somebody says: pages that never rest take the workers' time

NOTES_IDS = """
window.ids = [];
window.EventSource = class extends EventSource {
    constructor(url) {
        super(url);
        this.addEventListener("message", event => ids.push(event.lastEventId));
    }
};
"""


class Person:
    """Somebody at a page of the chat."""

    def __init__(self, name: str, context: BrowserContext, page: Page) -> None:
        self.name = name
        self.context = context
        self.page = page
        self.said: list[str] = []
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    async def say(self, text: str) -> None:
        """Type it and press Enter."""
        self.said.append(text)
        await self.page.fill("#text", text)
        await self.page.press("#text", "Enter")

    async def is_(self, state: str) -> None:
        """Until the page says so of its connections."""
        await self.page.wait_for_selector(f"#state[data-state={state}]", timeout=DEADLINE_MS)

    async def sees(self, count: int) -> None:
        """Until there are so many messages in the room, and none of one's own is on its way."""
        condition = (
            "count => document.querySelectorAll('#said .text').length >= count"
            " && !document.querySelector('#waiting li')"
        )
        await self.page.wait_for_function(condition, arg=count, timeout=DEADLINE_MS)

    async def reads(self) -> list[str]:
        """All that is in the room."""
        return await self.page.locator("#said .text").all_text_contents()

    async def was_sent(self) -> list[str]:
        """The ids of the events that came to the page, those included that it passed over."""
        ids: list[str] = await self.page.evaluate("ids")
        return ids


async def enter(browser: Browser, worker: Worker, name: str, **options: Any) -> Person:
    """Open a page."""
    context = await browser.new_context(**options)
    await context.add_init_script(NOTES_IDS)
    person = Person(name, context, await context.new_page())
    await person.page.goto(f"{worker.url}/?name={name}")
    await person.is_("connected")
    return person


@contextlib.asynccontextmanager
async def talking(*people: Person) -> AsyncIterator[None]:
    """Everybody says one thing after the other until the block is left."""
    is_over = asyncio.Event()

    async def talk(person: Person) -> None:
        for number in itertools.count():
            if is_over.is_set():
                break
            await person.say(f"{person.name} {number}")
            await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for person in people:
            group.create_task(talk(person))
        try:
            yield
        finally:
            is_over.set()


async def until_each_said(count: int, *people: Person) -> None:
    """So many more; each takes a hundredth of a second or so."""
    before = [len(person.said) for person in people]
    while any(len(p.said) < b + count for p, b in zip(people, before, strict=True)):
        await asyncio.sleep(0.01)


@pytest.fixture
def kept() -> Iterator[Server]:
    """A server that keeps its data when it is killed."""
    server = start("valkey9", "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.stop()


async def test_no_message_is_missing(browser: Browser, kept: Server) -> None:
    """Two people talk while their workers and the server are killed, and one of them is offline.

    In the end both pages show the same: each message once, those of each person in order, and no gap.
    """
    async with Worker(CHAT, kept.url) as one, Worker(CHAT, kept.url) as other:
        ada, grace = await enter(browser, one, "Ada"), await enter(browser, other, "Grace")
        both = (ada, grace)
        async with talking(*both):
            await grace.sees(5)

            for worker, person, how in ((one, ada, signal.SIGKILL), (other, grace, signal.SIGTERM)):
                await worker.end(how)
                await person.is_("connecting")
                await until_each_said(3, *both)
                await worker.start()
                await person.is_("connected")

            await grace.context.set_offline(True)
            await grace.is_("offline")
            await until_each_said(5, *both)
            await grace.context.set_offline(False)
            await grace.is_("connected")

            kept.kill()
            await ada.page.wait_for_selector("#waiting li:nth-child(5)", timeout=DEADLINE_MS)
            await asyncio.to_thread(kept.start)
            await ada.sees(len(ada.said))

            kept.kill()  # and a worker that holds what is not stored yet
            await until_each_said(5, *both)
            await one.end(signal.SIGKILL)
            await ada.is_("connecting")
            await asyncio.to_thread(kept.start)
            await one.start()
            await ada.is_("connected")
        count = len(ada.said) + len(grace.said)
        for person in both:
            await person.sees(count)
        room = await ada.reads()
        assert await grace.reads() == room
        for person in both:
            assert [text for text in room if text.startswith(person.name)] == person.said
            assert await person.page.locator(".gap").count() == 0
            assert not person.errors
        ids = await ada.was_sent()
        assert await grace.was_sent() == ids
        assert len(set(ids)) == len(ids)
        print(f"{count} messages, {len(ids) - count} of them said twice")

        await ada.page.reload()
        await ada.sees(count)
        assert await ada.reads() == room


async def test_what_is_said_twice_is_shown_once(browser: Browser, kept: Server) -> None:
    """A page that does not know whether its message has arrived says it again."""
    async with Worker(CHAT, kept.url) as worker:
        ada = await enter(browser, worker, "Ada")
        await ada.context.route("**/said*", lambda route: route.abort())
        await ada.page.reload()
        await ada.page.wait_for_selector("#worker:has-text('worker')")  # talks, and hears nothing
        await ada.say("once")
        with redis.Redis(port=kept.port) as admin:
            for times in (1, 2):
                while admin.xlen(history_key(ROOM.key)) < times:
                    await asyncio.sleep(0.01)
                if times == 1:
                    await worker.end(signal.SIGKILL)
                    await worker.start()
        await ada.context.unroute_all()
        await ada.is_("connected")
        await ada.sees(1)
        await ada.say("again")
        await ada.sees(2)
        assert len(await ada.was_sent()) == 3
        assert await ada.reads() == ["once", "again"]


async def test_a_page_says_where_messages_are_missing(browser: Browser, kept: Server) -> None:
    """A history that is gone: a line at its place, and the page goes on."""
    async with Worker(CHAT, kept.url) as worker:
        ada = await enter(browser, worker, "Ada")
        await ada.say("before")
        await ada.sees(1)
        await ada.context.set_offline(True)
        await ada.is_("offline")
        kept.stop()  # with its data
        await asyncio.to_thread(kept.start)
        grace = await enter(browser, worker, "Grace")
        await grace.say("<img src=x onerror='throw 1'>")
        await grace.sees(1)
        await ada.context.set_offline(False)
        await ada.sees(2)
        assert await ada.page.locator("#said li .text, #said .gap").all_text_contents() == [
            "before",
            await ada.page.locator(".gap").text_content(),
            "<img src=x onerror='throw 1'>",
        ]
        assert not ada.errors


async def test_what_it_looks_like(browser: Browser, kept: Server, tmp_path: Path) -> None:
    """On a wide screen by day and on a phone by night: nothing is wider than its page."""
    lines = [
        ("Ada", "Good morning! Is the release out?"),
        ("Grace", "Since a minute ago."),
        ("Grace", "I had no network on the train, and have everything that you two wrote meanwhile."),
        ("Ada", "Nothing missing, nothing twice."),
        ("Ada", "And I killed the worker that you were talking to. Three times."),
        ("Grace", "I noticed: for half a second the light up there was yellow."),
    ]
    async with Worker(CHAT, kept.url) as one, Worker(CHAT, kept.url) as other:
        wide = {"viewport": {"width": 800, "height": 600}, "color_scheme": "light"}
        phone = {"viewport": {"width": 360, "height": 600}, "color_scheme": "dark", "has_touch": True}
        people = {
            "Ada": await enter(browser, one, "Ada", locale="en-GB", **wide),
            "Grace": await enter(browser, other, "Grace", locale="en-GB", **phone),
        }
        for count, (name, text) in enumerate(lines, 1):
            await people[name].say(text)
            await people["Ada"].sees(count)
            await people["Grace"].sees(count)
        await people["Grace"].page.locator("#text").press_sequentially("And")
        await people["Ada"].page.wait_for_selector("#typing:has-text('Grace is typing')")
        for name, person in people.items():
            fits = "document.documentElement.scrollWidth <= innerWidth"
            assert await person.page.evaluate(fits)
            await person.page.screenshot(path=tmp_path / f"{name}.png")
        if os.environ.get("AIOPUBSUB_SCREENSHOT") == "1":
            await beside(browser, [tmp_path / "Ada.png", tmp_path / "Grace.png"])
    assert PICTURE.stat().st_size < 200_000


async def beside(browser: Browser, pictures: list[Path]) -> None:
    """Both pictures as one, for the docs."""
    page = await browser.new_page(viewport={"width": 1232, "height": 640})
    encoded = [base64.b64encode(picture.read_bytes()).decode() for picture in pictures]
    images = "".join(f"<img src='data:image/png;base64,{picture}'>" for picture in encoded)
    style = "margin: 0; padding: 20px; display: flex; gap: 32px; background: #8b8ba7"
    await page.set_content(f"<body style='{style}'>{images}")
    await page.screenshot(path=PICTURE)
