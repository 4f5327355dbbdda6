"""The local cache: what changed is loaded again, whatever happens to the connection."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

import aiopubsub as ps
from aiopubsub.testing import Proxy, Server, find_valkey
from docs.examples.cache_invalidation import CHANGED, LocalCache, changed

pytestmark = pytest.mark.anyio


class Database:
    """Where the truth is, and how often it was asked."""

    def __init__(self) -> None:
        self.rows = {"a": 1, "b": 1}
        self.asked = Counter[str]()

    async def load(self, key: str) -> int:
        value = self.rows[key]
        self.asked[key] += 1
        await asyncio.sleep(0)
        return value


async def until(cache: LocalCache[int], key: str, value: int) -> None:
    """Until the cache has it; a round through the event loop each time."""
    async with asyncio.timeout(10):
        while await cache.get(key) != value:
            await asyncio.sleep(0)


async def test_what_changed_is_loaded_again(client: ps.Client, pub: ps.Publisher) -> None:
    """In both processes, and nothing else is."""
    database = Database()
    async with LocalCache(client, database.load) as one, LocalCache(client, database.load) as other:
        for cache in (one, other):
            assert [await cache.get(key) for key in "abab"] == [1, 1, 1, 1]
        assert database.asked == {"a": 2, "b": 2}
        database.rows["a"] = 2
        await changed(pub, "a")
        await until(one, "a", 2)
        await until(other, "a", 2)
        assert database.asked == {"a": 4, "b": 2}


async def test_many_ask_once(client: ps.Client) -> None:
    """At a time; a failure is told to all of them, and not remembered."""
    database = Database()
    async with LocalCache(client, database.load) as cache:
        assert await asyncio.gather(*(cache.get("a") for _ in range(100))) == [1] * 100
        assert database.asked["a"] == 1
        failures = await asyncio.gather(*(cache.get("c") for _ in range(3)), return_exceptions=True)
        assert [type(failure) for failure in failures] == [KeyError] * 3
        database.rows["c"] = 3
        assert await cache.get("c") == 3


async def test_a_load_that_a_change_overtakes_is_not_kept(client: ps.Client, pub: ps.Publisher) -> None:
    """It may have read the old value."""
    database = Database()
    goes_on = asyncio.Event()

    async def load(key: str) -> int:
        value = await database.load(key)
        await goes_on.wait()
        return value

    async with LocalCache(client, load) as cache, ps.Subscriber(client, CHANGED) as heard:
        slow = asyncio.create_task(cache.get("a"))
        while not database.asked["a"]:
            await asyncio.sleep(0)
        database.rows["a"] = 2
        await changed(pub, "a")
        await anext(heard)
        await asyncio.sleep(0)
        goes_on.set()
        assert await slow == 1
        assert await cache.get("a") == 2


async def test_a_reconnect_costs_what_changed_meanwhile(valkey: Server) -> None:
    """Changes that were told while the connection was lost are heard when it is back."""
    database = Database()
    async with (
        Proxy(valkey.port) as proxy,
        ps.Client(proxy.url) as client,
        LocalCache(client, database.load) as cache,
        ps.Publisher(valkey.url) as elsewhere,
    ):
        assert [await cache.get("a"), await cache.get("b")] == [1, 1]
        proxy.refuse()
        proxy.cut()
        database.rows["a"] = 2
        await changed(elsewhere, "a")
        await proxy.accept()
        await until(cache, "a", 2)
        assert await cache.get("b") == 1
        assert database.asked == {"a": 2, "b": 1}


async def test_when_nobody_knows_what_changed_nothing_is_kept() -> None:
    """A server that comes back empty: a gap, and the cache begins anew."""
    database = Database()
    server = Server(find_valkey())
    async with server, ps.Client(server.url) as client, LocalCache(client, database.load) as cache:
        await changed(ps.Publisher(client), "x")
        assert [await cache.get("a"), await cache.get("b")] == [1, 1]
        database.rows["b"] = 2
        server.kill()
        await asyncio.to_thread(server.start)
        await until(cache, "b", 2)
        assert await cache.get("a") == 1
        assert database.asked["a"] == 2


async def test_an_unreadable_message_drops_everything(client: ps.Client, pub: ps.Publisher) -> None:
    """What was meant is not known."""
    database = Database()
    async with LocalCache(client, database.load) as cache:
        assert await cache.get("a") == 1
        database.rows["a"] = 2
        await pub.publish(ps.Topic(CHANGED.name, history=CHANGED.history), b"\xff")
        await until(cache, "a", 2)


async def test_nothing_is_remembered_when_nobody_listens(
    client: ps.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before it is entered, after it has failed, after the client was closed: each value is loaded."""
    database = Database()

    async def asked_each_time(cache: LocalCache[int]) -> None:
        before = database.asked["a"]
        for _ in range(2):
            assert await cache.get("a") == 1
        assert database.asked["a"] == before + 2

    def refused(subscriber: object, item: object) -> None:
        raise ps.SubscribeRefused({"cache.changed": "NOPERM"})

    await asked_each_time(LocalCache(client, database.load))
    async with LocalCache(client, database.load) as cache:
        await cache.get("a")
        with monkeypatch.context() as patch:
            patch.setattr(ps.Subscriber, "_event", refused)
            await changed(ps.Publisher(client), "b")
            while not caplog.messages:
                await asyncio.sleep(0)
        await asked_each_time(cache)
    assert caplog.messages == ["nothing is remembered any more"]
    async with LocalCache(client, database.load) as cache:
        await cache.get("a")
        await client.aclose()
        while not cache._following.done():
            await asyncio.sleep(0)
        await asked_each_time(cache)
