"""The proxy does to a connection what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from aiopubsub.testing import Proxy, free_port

pytestmark = pytest.mark.anyio


class Echo:
    """A server that sends back what it gets, and knows how its connections ended."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                self.received += data
                writer.write(data)
        self.ended.set()
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, int]]:
    server = Echo()
    async with asyncio.timeout(20):
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        yield server, listener.sockets[0].getsockname()[1]
        listener.close()


@contextlib.asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def said(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends."""
    data = b""
    with contextlib.suppress(OSError):
        while more := await reader.read(65_536):
            data += more
    return data


async def test_it_passes_bytes_both_ways(echo: tuple[Echo, int]) -> None:
    """Without a fault everything arrives, and the end of one side reaches the other."""
    server, port = echo
    async with Proxy(port) as proxy, connected(proxy) as (reader, writer):
        payload = bytes(range(256)) * 4_000
        writer.write(payload)
        assert await reader.readexactly(len(payload)) == payload
        assert (proxy.bytes_up, proxy.bytes_down) == (len(payload), len(payload))
        assert (proxy.accepted, proxy.connections) == (1, 1)
        writer.close()
        await server.ended.wait()
    assert proxy.connections == 0


async def test_cut_closes_both_sides(echo: tuple[Echo, int]) -> None:
    """Client and server both see the end; a new connection is served."""
    server, port = echo
    async with Proxy(port) as proxy:
        async with connected(proxy) as (reader, writer):
            writer.write(b"x")
            await reader.readexactly(1)
            proxy.cut()
            assert await said(reader) == b""
            await server.ended.wait()
        async with connected(proxy) as (reader, writer):
            writer.write(b"y")
            assert await reader.readexactly(1) == b"y"


@pytest.mark.parametrize(("up", "down"), [(True, False), (False, True), (True, True)])
async def test_a_stall_closes_nothing_and_passes_nothing(
    echo: tuple[Echo, int], up: bool, down: bool
) -> None:
    """Bytes wait in the direction that is stalled, and all arrive when it is over."""
    server, port = echo
    async with Proxy(port) as proxy, connected(proxy) as (reader, writer):
        writer.write(b"before")
        await reader.readexactly(6)
        proxy.stall(up=up, down=down)
        writer.write(b"after")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.1)
        assert bytes(server.received) == (b"before" if up else b"beforeafter")
        assert not server.ended.is_set()
        proxy.resume()
        assert await reader.readexactly(5) == b"after"


async def test_a_stall_holds_back_the_end(echo: tuple[Echo, int]) -> None:
    """A side that closes behind a black hole is not seen to close until the hole is gone."""
    server, port = echo
    async with Proxy(port) as proxy:
        async with connected(proxy) as (reader, writer):
            writer.write(b"x")
            await reader.readexactly(1)
            proxy.stall()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.ended.wait(), 0.1)
        proxy.resume()
        await server.ended.wait()


async def test_a_stall_may_spare_new_connections(echo: tuple[Echo, int]) -> None:
    """With `new=False` only what is connected already is stalled."""
    _, port = echo
    async with Proxy(port) as proxy, connected(proxy) as (old, old_writer):
        old_writer.write(b"x")
        await old.readexactly(1)
        proxy.stall(new=False)
        old_writer.write(b"y")
        async with connected(proxy) as (new, new_writer):
            new_writer.write(b"z")
            assert await new.readexactly(1) == b"z"
        proxy.stall()
        async with connected(proxy) as (new, new_writer):
            new_writer.write(b"z")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(new.readexactly(1), 0.1)


async def test_a_delay_keeps_the_order_and_takes_its_time(echo: tuple[Echo, int]) -> None:
    """A byte takes the delay in each direction; many are under way at once."""
    _, port = echo
    loop = asyncio.get_running_loop()
    async with Proxy(port, delay_s=0.03) as proxy, connected(proxy) as (reader, writer):
        began_at = loop.time()
        for n in range(100):
            writer.write(b"%02d" % n)
            await asyncio.sleep(0)
        assert await reader.readexactly(200) == b"".join(b"%02d" % n for n in range(100))
        assert 0.055 < loop.time() - began_at < 1


async def test_throttle_bounds_the_rate(echo: tuple[Echo, int]) -> None:
    """No more bytes pass in a second than were allowed."""
    _, port = echo
    loop = asyncio.get_running_loop()
    async with Proxy(port, bytes_per_s=100_000) as proxy, connected(proxy) as (reader, writer):
        began_at = loop.time()
        writer.write(b"x" * 20_000)
        await reader.readexactly(20_000)
        assert 0.19 < loop.time() - began_at < 2


async def test_dribble_passes_byte_by_byte(echo: tuple[Echo, int]) -> None:
    """Each byte is a read of its own."""
    _, port = echo
    async with Proxy(port, piece_bytes=1) as proxy, connected(proxy) as (reader, writer):
        writer.write(b"x" * 100)
        reads = []
        while sum(reads) < 100:
            reads.append(len(await reader.read(100)))
        assert max(reads) <= 4


@pytest.mark.parametrize("count", [0, 1, 7])
async def test_cut_after_ends_inside_a_reply(echo: tuple[Echo, int], count: int) -> None:
    """So many bytes still come, then the connection ends; the next one is not cut."""
    server, port = echo
    async with Proxy(port) as proxy:
        async with connected(proxy) as (reader, writer):
            proxy.cut_after(count)
            writer.write(b"0123456789")
            assert await said(reader) == b"0123456789"[:count]
            await server.ended.wait()
        async with connected(proxy) as (reader, writer):
            writer.write(b"0123456789")
            assert await reader.readexactly(10) == b"0123456789"


async def test_refuse_and_accept(echo: tuple[Echo, int]) -> None:
    """New connections are refused, on the same port as they are accepted later; old ones go on."""
    _, port = echo
    async with Proxy(port) as proxy, connected(proxy) as (reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        there = proxy.port
        proxy.refuse()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", there)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        await proxy.accept()
        assert proxy.port == there
        async with connected(proxy) as (new, new_writer):
            new_writer.write(b"z")
            assert await new.readexactly(1) == b"z"


async def test_no_server_behind_it() -> None:
    """A client of a proxy without a server sees its connection closed."""
    async with Proxy(free_port()) as proxy, connected(proxy) as (reader, _):
        assert await said(reader) == b""


async def test_a_port_only_while_it_is_open() -> None:
    """A proxy that was not entered has no port."""
    with pytest.raises(RuntimeError, match="enter it with `async with` first"):
        _ = Proxy(1).port
