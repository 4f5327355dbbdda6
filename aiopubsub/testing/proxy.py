"""A proxy that makes a connection worse, in each way that networks do.

Lives here: passing bytes on, late, slowly, in pieces or not at all. Must not live here: what the bytes
mean. It runs in the event loop of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import TracebackType
from typing import Self

from .servers import HOST

__all__ = ["Proxy"]

_READ_BYTES = 65_536
_BACKLOG = 100  # connections that wait to be accepted
_UNDER_WAY = 1000  # reads that may be under way in one direction; then the sender has to wait


class Proxy:
    """Stands between a client and a server, and makes the connection worse.

    `async with` returns when it listens. Bytes keep their order whatever is done to them. *Up* is from
    the client to the server, *down* from the server to the client. Any fault may be begun and ended at
    any time, from within the event loop.

    Args:
        port: Of the server, on the loopback interface.
        delay_s: Seconds that every byte takes, in each direction.
        bytes_per_s: Bytes that pass in a second in each direction of each connection, > 0; `None` is
            no limit.
        piece_bytes: Bytes that are passed on at once, at least 1, each piece in a turn of the event
            loop of its own; so 1 dribbles. `None`: as they come.

    Attributes:
        delay_s: May be changed at any time.
        bytes_per_s: May be changed at any time.
        piece_bytes: May be changed at any time.
        accepted: Connections that were accepted since the start.
        bytes_up: Bytes that were passed on to the server.
        bytes_down: Bytes that were passed on to clients.
    """

    def __init__(
        self,
        port: int,
        *,
        delay_s: float = 0.0,
        bytes_per_s: float | None = None,
        piece_bytes: int | None = None,
    ) -> None:
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s
        self.piece_bytes = piece_bytes
        self.accepted: int = 0
        self.bytes_up: int = 0
        self.bytes_down: int = 0
        self._target = port
        self._port = 0
        self._listener: socket.socket | None = None
        self._pipes: dict[_Pipe, None] = {}
        self._is_stalled = (False, False)  # up, down: of connections that are yet to come
        self._cut_after: int | None = None

    @property
    def port(self) -> int:
        """Where it listens, also while it refuses."""
        if not self._port:
            raise RuntimeError("the proxy is not open; enter it with `async with` first")
        return self._port

    @property
    def url(self) -> str:
        """What a `Client` takes."""
        return f"redis://{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """Connections that are open now, those that are stalled included."""
        return len(self._pipes)

    def cut(self) -> None:
        """Close every connection that goes through it, on both sides, now; new ones are served."""
        for pipe in self._pipes:
            pipe.cut()

    def cut_after(self, count: int) -> None:
        """Close a connection, on both sides, when so many more bytes have passed down; only once.

        Args:
            count: Bytes, at least 0, of all connections together. The one that the last of them
                belongs to is closed; with 0 the one that the next byte belongs to, before it.
        """
        self._cut_after = count

    def stall(self, *, up: bool = True, down: bool = True, new: bool = True) -> None:
        """Let nothing pass and close nothing: a black hole. It lasts until `resume`.

        Bytes and closings wait, as packets that are sent again and again would; up to a bound: then
        the sender's own buffers fill.

        Args:
            up: From clients to the server.
            down: From the server to clients.
            new: Also on connections that are yet to come; they are accepted all the same.
        """
        for pipe in self._pipes:
            pipe.stall(up, down)
        if new:
            self._is_stalled = (self._is_stalled[0] or up, self._is_stalled[1] or down)

    def resume(self) -> None:
        """Let pass what `stall` has held up, and all that follows."""
        self._is_stalled = (False, False)
        for pipe in self._pipes:
            pipe.resume()

    def refuse(self) -> None:
        """Accept no new connection until `accept`: a client is told "connection refused"."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def accept(self) -> None:
        """Accept connections again, on the same port.

        Raises:
            OSError: Somebody else has taken the port.
        """
        if self._listener is None:
            # not `asyncio.start_server`: closed in the turn in which a connection has come, that loses it
            self._listener = socket.create_server((HOST, self._port), backlog=_BACKLOG)
            self._listener.setblocking(False)
            self._port = self._listener.getsockname()[1]
            asyncio.get_running_loop().add_reader(self._listener, self._serve)

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        tasks = [pipe.task for pipe in self._pipes]
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- inside ------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Somebody wants to connect."""
        if self._listener is None:
            return
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has changed its mind
        self.accepted += 1
        pipe = _Pipe(self, connection)
        pipe.stall(*self._is_stalled)
        self._pipes[pipe] = None
        pipe.task.add_done_callback(lambda _: self._forget(pipe))

    def _forget(self, pipe: _Pipe) -> None:
        """A pipe has ended, perhaps before it began."""
        self._pipes.pop(pipe)
        pipe.connection.close()

    def _count(self, piece: bytes, *, is_down: bool) -> tuple[bytes, bool]:
        """What of a piece may pass, and whether the connection is to be closed after it."""
        if not is_down:
            self.bytes_up += len(piece)
            return piece, False
        left = self._cut_after
        is_last = left is not None and left <= len(piece)
        if left is not None:
            piece = piece[:left]
            self._cut_after = None if is_last else left - len(piece)
        self.bytes_down += len(piece)
        return piece, is_last


class _Pipe:
    """One connection that goes through the proxy: two flows."""

    def __init__(self, proxy: Proxy, connection: socket.socket) -> None:
        self.task = asyncio.get_running_loop().create_task(self._run(), name="aiopubsub proxy")
        self.connection = connection
        self._proxy = proxy
        self._writers: list[asyncio.StreamWriter] = []
        self._gates = (asyncio.Event(), asyncio.Event())  # up, down
        self.resume()

    def stall(self, up: bool, down: bool) -> None:
        for gate, wanted in zip(self._gates, (up, down), strict=True):
            if wanted:
                gate.clear()

    def resume(self) -> None:
        for gate in self._gates:
            gate.set()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self.task.cancel()

    async def _run(self) -> None:
        """Until both sides are closed."""
        try:
            near_reader, near = await asyncio.open_connection(sock=self.connection)
            self._writers.append(near)
            far_reader, far = await asyncio.open_connection(HOST, self._proxy._target)
            self._writers.append(far)
            async with asyncio.TaskGroup() as flows:
                flows.create_task(self._flow(near_reader, far, is_down=False))
                flows.create_task(self._flow(far_reader, near, is_down=True))
        except OSError:
            pass  # no server: the client sees a connection that is closed at once
        finally:
            for writer in self._writers:
                writer.transport.abort()

    async def _flow(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_down: bool
    ) -> None:
        """Read as fast as it comes, and pass on as the proxy says; an end of file comes last."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)
        async with asyncio.TaskGroup() as flow:
            flow.create_task(self._pass_on(under_way, writer, is_down=is_down))
            data = b"-"
            while data:
                data = b""
                with contextlib.suppress(OSError):  # a reset is an end, too
                    data = await reader.read(_READ_BYTES)
                await under_way.put((loop.time(), data))

    async def _pass_on(
        self,
        under_way: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        *,
        is_down: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        proxy, gate = self._proxy, self._gates[is_down]
        data = b"-"
        while data:
            came_at, data = await under_way.get()
            if (left_s := came_at + proxy.delay_s - loop.time()) > 0:
                await asyncio.sleep(left_s)
            start = 0
            while start < len(data):
                piece = data[start : start + self._piece_bytes(len(data))]
                start += len(piece)
                if proxy.bytes_per_s is not None:
                    await asyncio.sleep(len(piece) / proxy.bytes_per_s)
                await gate.wait()
                piece, is_last = proxy._count(piece, is_down=is_down)
                if not writer.is_closing():
                    writer.write(piece)
                if is_last:
                    self._close_after(writer)
                with contextlib.suppress(OSError):  # its reader sees the end, too
                    await writer.drain()
                if proxy.piece_bytes is not None:
                    await asyncio.sleep(0)
        await gate.wait()
        writer.close()

    def _piece_bytes(self, most: int) -> int:
        """Small enough for the rate to be even, 100 pieces a second."""
        most = most if self._proxy.piece_bytes is None else self._proxy.piece_bytes
        rate = self._proxy.bytes_per_s
        return most if rate is None else max(1, min(most, int(rate / 100)))

    def _close_after(self, writer: asyncio.StreamWriter) -> None:
        """Close both sides; what was written to this one still arrives."""
        for other in self._writers:
            if other is not writer:
                other.transport.abort()
        writer.close()
