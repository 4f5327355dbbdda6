"""Channels that are forbidden: the server's reason, at once, and no storm of retries."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis

import aiopubsub as ps
from aiopubsub.testing import Server
from tests.fault.books import watching
from tests.fault.conftest import admin
from tests.fault.timing import again_if_late, in_time

pytestmark = pytest.mark.anyio

OBSERVED_S = 0.5  # how long a storm would be seen
AT_ONCE_S = 0.3  # the longest first wait before a reconnect is 0.05; the rest is for two shared cores


def user(server: redis.Redis, *rules: str) -> None:
    server.execute_command("ACL", "SETUSER", "u", "on", ">p", "+@all", "~*", *rules)


def calls(server: redis.Redis) -> int:
    """How often subscribing and connecting were tried."""
    stats = server.info("commandstats")
    names = ("cmdstat_subscribe", "cmdstat_psubscribe", "cmdstat_hello")
    return sum(stats[name]["calls"] + stats[name]["rejected_calls"] for name in names if name in stats)


@again_if_late
async def test_a_forbidden_channel_is_refused_at_once(both_kinds: Server) -> None:
    """`async with` raises the server's reason, and nobody asks again."""
    with admin(both_kinds) as server:
        user(server, "resetchannels", "&mine*")
        async with ps.Client(f"redis://u:p@127.0.0.1:{both_kinds.port}") as client:
            server.execute_command("CONFIG", "RESETSTAT")
            began_at = time.monotonic()
            with pytest.raises(ps.SubscribeRefused, match="NOPERM") as caught:
                await ps.Subscriber(client, "mine", "theirs").__aenter__()
            took_s = time.monotonic() - began_at
            assert set(caught.value.refused) == {"theirs"}
            # a connection, which says HELLO twice; both channels together, and each of them alone
            assert calls(server) == 5
            await asyncio.sleep(OBSERVED_S)
            assert calls(server) == 5
            assert server.pubsub_channels() == []
            in_time("refused", took_s, AT_ONCE_S)


@again_if_late
async def test_a_permission_that_is_withdrawn_is_told_in_the_iterator(both_kinds: Server) -> None:
    """The iterator raises the server's reason, once; the other channels go on; nobody asks again."""
    with admin(both_kinds) as server:
        user(server, "resetchannels", "&mine*", "&shared*")
        async with (
            ps.Client(f"redis://u:p@127.0.0.1:{both_kinds.port}") as client,
            ps.Subscriber(client, "mine", "shared", ps.Pattern("shared*")) as sub,
            ps.Publisher(both_kinds.url) as pub,
            asyncio.timeout(10),
        ):
            server.execute_command("CONFIG", "RESETSTAT")
            user(server, "resetchannels", "&mine*")  # the server closes the connection
            told: dict[str, str] = {}
            events = sub.events()
            gap: object = None
            began_at = time.monotonic()
            while gap is None or len(told) < 2:
                try:
                    gap = await anext(events)
                except ps.SubscribeRefused as error:
                    told |= error.refused
            took_s = time.monotonic() - began_at
            assert set(told) == {"shared", "shared*"}
            assert all("NOPERM" in reason for reason in told.values())
            assert isinstance(gap, ps.Gap)
            assert [topic.name for topic in sub.topics] == ["mine"]
            assert (await pub.publish("mine", b"x")).receivers == 1
            assert isinstance(await anext(events), ps.Message)
            # one connection, which says HELLO twice; two channels together, each alone; the pattern
            assert calls(server) == 6
            await asyncio.sleep(OBSERVED_S)
            assert calls(server) == 6
            assert server.pubsub_channels() == ["mine"]
            assert server.pubsub_numpat() == 0
            in_time("told", took_s, AT_ONCE_S)


@again_if_late
async def test_a_user_that_is_deleted_ends_the_iterator_with_the_reason(both_kinds: Server) -> None:
    """A client that the server refuses for good is told so, in the iterator and in `publish`."""
    with admin(both_kinds) as server:
        user(server, "resetchannels", "allchannels")
        async with (
            ps.Client(f"redis://u:p@127.0.0.1:{both_kinds.port}") as client,
            ps.Subscriber(client, "c") as sub,
            asyncio.timeout(10),
        ):
            pub = ps.Publisher(client)
            await pub.publish("c", b"x")
            assert (await anext(sub)).data == b"x"
            server.execute_command("CONFIG", "RESETSTAT")
            server.execute_command("ACL", "DELUSER", "u")
            began_at = time.monotonic()
            with pytest.raises(ps.ConnectFailed, match="WRONGPASS") as caught:
                await anext(sub)
            took_s = time.monotonic() - began_at
            assert caught.value.permanent
            with pytest.raises((ps.ConnectFailed, ps.Unconfirmed)):
                await pub.publish("c", b"x")
            with pytest.raises(ps.ConnectFailed, match="WRONGPASS"):
                await pub.publish("c", b"x")
            with pytest.raises(StopAsyncIteration):
                await anext(sub)
            assert calls(server) == 2  # one try of each connection
            await asyncio.sleep(OBSERVED_S)
            assert calls(server) == 2
            in_time("told", took_s, AT_ONCE_S)


async def test_publishing_where_it_is_forbidden(both_kinds: Server) -> None:
    """`PublishRefused` with the server's reason; the publishes around it are not touched."""
    with admin(both_kinds) as server:
        user(server, "resetchannels", "&mine")
        async with (
            ps.Client(f"redis://u:p@127.0.0.1:{both_kinds.port}") as client,
            ps.Subscriber(client, "mine") as sub,
            watching(sub) as watcher,
        ):
            pub = ps.Publisher(client)
            first, refused, last = await asyncio.gather(
                pub.publish("mine", b"1"),
                pub.publish("theirs", b"2"),
                pub.publish("mine", b"3"),
                return_exceptions=True,
            )
            assert (first, last) == (ps.Receipt(1), ps.Receipt(1))
            assert isinstance(refused, ps.PublishRefused)
            assert "NOPERM" in refused.reason
            await watcher.until(lambda: watcher.numbers == [1, 3])
