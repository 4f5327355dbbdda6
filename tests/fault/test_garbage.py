"""Bytes that no server should send, huge ones, and ones that come in pieces: delivery or a clear error."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import aiopubsub as ps
from aiopubsub.testing import Proxy, Server
from tests.conftest import LONG
from tests.fault.books import jumps, watching
from tests.fault.conftest import admin
from tests.fault.fake_server import FakeServer, push
from tests.fault.timing import Late, again_if_late

pytestmark = pytest.mark.anyio

QUICK = ps.Backoff(first_s=0.001, cap_s=0.01)

NO_PAYLOAD = b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$-1\r\n"

TOKENS = st.sampled_from(
    [
        *(b"+OK\r\n", b"-ERR no\r\n", b":1\r\n", b"$-1\r\n", b"_\r\n", b"#t\r\n", b",1.5\r\n", b"*0\r\n"),
        *(b">1\r\n", b">2\r\n", b">3\r\n", b">0\r\n", b"*3\r\n", b"%1\r\n", b"~2\r\n", b"|1\r\n"),
        *(b"$7\r\nmessage\r\n", b"$1\r\nc\r\n", b"$1\r\nx\r\n", b"$5\r\n", b"$99999\r\n", b"*99999\r\n"),
        *(b"$-7\r\n", b"*-2\r\n", b"(12\r\n", b"=4\r\n", b"\r\n", b"\x00", b"\xff\xaeps1 - - - {}\n"),
        *(NO_PAYLOAD, b">3\r\n:1\r\n:2\r\n:3\r\n"),
        *(b">2\r\n$7\r\nmessage\r\n$1\r\nc\r\n", b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n:5\r\n"),
        *(b">4\r\n$8\r\npmessage\r\n*0\r\n$1\r\nc\r\n$1\r\nx\r\n", b">3\r\n$7\r\nmessage\r\n*0\r\n:1\r\n"),
    ]
)
GARBAGE = st.one_of(st.binary(max_size=200), st.lists(TOKENS, max_size=8).map(b"".join))


async def meets(garbage: bytes, *, stays_open: bool) -> None:
    """A listener that is sent garbage must still hear what is published afterwards."""

    async def on_subscribed(nth: int, writer: asyncio.StreamWriter) -> None:
        if nth == 1:
            writer.write(garbage)
            if not stays_open:
                await writer.drain()
                writer.close()
                return
        while not writer.is_closing():  # garbage may be the beginning of what swallows some of these
            writer.write(push(b"message", b"c", b"the end"))
            await asyncio.sleep(0.005)

    async with (
        FakeServer(on_subscribed) as server,
        ps.Client(server.url, heartbeat=0.05, backoff=QUICK) as client,
        asyncio.timeout(3),
        ps.Subscriber(client, "c") as sub,
    ):
        while True:
            event = await anext(sub.events())
            if isinstance(event, ps.Message):
                assert type(event.payload) is bytes
                if event.payload == b"the end":
                    break
        assert client.stats.links["listens"].state == "live"


fuzzed = settings(
    max_examples=2_000 if LONG else 200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@fuzzed
@example(garbage=b"%1\r\n*0\r\n", stays_open=True)  # a map whose key is a list
@example(garbage=b"$99999\r\n", stays_open=True)  # a length that swallows the answers to PING
@example(garbage=NO_PAYLOAD, stays_open=True)
@example(garbage=NO_PAYLOAD.replace(b"$-1", b"*0"), stays_open=True)
@given(garbage=GARBAGE, stays_open=st.booleans())
async def test_garbage_never_silences_a_listener(garbage: bytes, stays_open: bool) -> None:
    """Whatever the server says, the subscriber hears what is published afterwards."""
    await meets(garbage, stays_open=stays_open)


@fuzzed
@example(garbage=b"")
@example(garbage=b"+OK\r\n")
@example(garbage=b":1\r\n:1\r\n")
@given(garbage=GARBAGE)
async def test_garbage_never_stops_a_publisher(garbage: bytes) -> None:
    """Whatever the server answers, a publish has a receipt or an error, and later ones are confirmed."""
    async with (
        FakeServer(first_receipt=garbage) as server,
        ps.Client(server.url, heartbeat=0.05, backoff=QUICK) as client,
        asyncio.timeout(3),
    ):
        pub = ps.Publisher(client, timeout=0.1)
        receipt = None
        while receipt != ps.Receipt(1):  # garbage may be the beginning of what swallows some answers
            with contextlib.suppress(ps.PubSubError):
                receipt = await pub.publish("c", b"x")
                assert type(receipt.receivers) is int


async def test_frames_cut_at_every_byte(valkey: Server) -> None:
    """Wherever the connection ends inside a frame, the message is whole or in the gap."""
    frame = len(push(b"message", b"c", b"1000"))
    async with (
        Proxy(valkey.port) as proxy,
        ps.Client(proxy.url, backoff=QUICK) as client,
        ps.Subscriber(client, "c") as sub,
        ps.Publisher(valkey.url) as pub,
        watching(sub) as watcher,
    ):
        number = 1000
        await pub.publish("c", b"1000")
        await watcher.until(lambda: watcher.last == 1000)
        for cut in range(frame + 1):
            before, gaps = watcher.last, len(watcher.gaps)
            proxy.cut_after(cut)
            await pub.publish_many("c", [b"%d" % (number := number + 1) for _ in range(2)])
            await watcher.until(lambda gaps=gaps: len(watcher.gaps) > gaps)
            assert watcher.last == (number - 1 if cut == frame else before)
            await pub.publish("c", b"%d" % (number := number + 1))
            await watcher.until(lambda number=number: watcher.last == number)
    assert jumps(watcher) == [n for n, event in enumerate(watcher.events) if isinstance(event, ps.Gap)]
    assert len(watcher.gaps) == frame + 1


async def test_a_handshake_cut_at_every_byte(valkey: Server) -> None:
    """Wherever the connection ends before it has subscribed, it is opened again."""
    async with Proxy(valkey.port) as proxy, ps.Publisher(valkey.url) as pub:
        async with ps.Client(proxy.url) as client:
            commands_only = proxy.bytes_down
            async with ps.Subscriber(client, "c"):
                to_subscribe = proxy.bytes_down - commands_only
        for cut in range(0, to_subscribe, 1 if LONG else 7):
            async with ps.Client(proxy.url, backoff=QUICK) as client, asyncio.timeout(10):
                proxy.cut_after(cut)
                async with ps.Subscriber(client, "c") as sub:
                    assert client.stats.links["listens"].error is None
                    assert (await pub.publish("c", b"x")).receivers == 1
                    assert (await anext(sub)).data == b"x"
        assert proxy.accepted == 2 + 3 * len(range(0, to_subscribe, 1 if LONG else 7))


async def test_frames_that_dribble(valkey: Server) -> None:
    """Frames that come byte by byte are put together."""
    async with (
        Proxy(valkey.port, piece_bytes=1) as proxy,
        ps.Client(proxy.url) as client,
        ps.Subscriber(client, "c") as sub,
        watching(sub) as watcher,
    ):
        pub = ps.Publisher(client, timeout=60)
        await asyncio.gather(*(pub.publish("c", b"%d" % n) for n in range(200)))
        await watcher.until(lambda: watcher.last == 199, timeout=60)
    assert watcher.numbers == list(range(200))


async def test_a_payload_of_100_mb(own_valkey: Server) -> None:
    """It is delivered whole where the server's limit allows it, and a gap where it does not."""
    size = 100_000_000
    payload = b"0123456789" * (size // 10)
    async with (
        ps.Client(own_valkey.url) as client,
        ps.Subscriber(client, "c", buffer_bytes=1_000_000) as sub,
        asyncio.timeout(60),
    ):
        pub = ps.Publisher(client, timeout=30)
        assert (await pub.publish("c", payload)).receivers == 1
        assert isinstance(await anext(sub.events()), ps.Gap)  # the default limit: 32 MB
        with admin(own_valkey) as server:
            server.config_set("client-output-buffer-limit", "pubsub 0 0 0")
        assert (await pub.publish("c", payload)).receivers == 1
        assert (await anext(sub)).data == payload


@again_if_late
async def test_a_payload_that_takes_longer_than_two_heartbeats(valkey: Server) -> None:
    """A connection that moves is alive, though no message is complete for a long time."""
    async with (
        Proxy(valkey.port, bytes_per_s=1_000_000) as proxy,
        ps.Client(proxy.url, heartbeat=0.1) as client,
        ps.Subscriber(client, "c") as sub,
        ps.Publisher(valkey.url) as pub,
        asyncio.timeout(10),
    ):
        await pub.publish("c", b"x" * 600_000)
        event = await anext(sub.events())
        if sub.stats.reconnects:
            raise Late("32 KiB did not come within 0.2 s")
        assert isinstance(event, ps.Message)
        assert len(event.data) == 600_000


async def test_bytes_that_are_not_utf_8(valkey: Server) -> None:
    """A payload that is not text is delivered as it is, or as an `Undecodable`; the listener goes on."""
    async with (
        ps.Client(valkey.url) as client,
        ps.Subscriber(client, ps.Topic.text("c")) as sub,
        ps.Subscriber(client, "c") as raw,
        asyncio.timeout(10),
    ):
        pub = ps.Publisher(client)
        await pub.publish("c", b"\xff\xfe")
        await pub.publish("c", b"text")
        events = sub.events()
        first, second = await anext(events), await anext(events)
        assert isinstance(first, ps.Undecodable)
        assert isinstance(second, ps.Message)
        assert (first.payload, second.data) == (b"\xff\xfe", "text")
        assert (await anext(raw)).data == b"\xff\xfe"


async def test_a_channel_that_is_not_utf_8(valkey: Server) -> None:
    """A pattern's message on such a channel is delivered, and the channel can be told from others."""
    async with ps.Subscriber(valkey.url, ps.Pattern("c*")) as sub, asyncio.timeout(10):
        with admin(valkey) as server:
            assert server.publish(b"c\xff", b"x") == 1
            assert server.publish("c", b"y") == 1
        first, second = await anext(sub), await anext(sub)
        assert first.channel.encode("utf-8", "surrogateescape") == b"c\xff"
        assert (first.data, second.channel, second.data) == (b"x", "c", b"y")
