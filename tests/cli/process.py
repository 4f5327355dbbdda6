"""The command line as a process of its own, read with a deadline."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from aiopubsub.testing import Server

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0
COMMAND = (sys.executable, "-m", "aiopubsub")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # in the background of a shell without job control (POSIX, XCU 2.11); what we start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def environment(**more: str) -> dict[str, str]:
    """The environment without what would change the outcome."""
    kept = {k: v for k, v in os.environ.items() if k not in {"AIOPUBSUB_URL", "FORCE_COLOR", "NO_COLOR"}}
    return kept | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONWARNINGS": "default"} | more


def run(
    *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, command: tuple[str, ...] = COMMAND
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end."""
    return subprocess.run(
        (*command, *args),
        input=stdin,
        capture_output=True,
        check=False,
        cwd=ROOT,
        env=environment(**(env or {})),
        timeout=DEADLINE_S,
    )


class Reader:
    """Gathers what comes from a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen = b""

    def until(self, needle: bytes) -> bytes:
        """Read until this has come; what had come since the last call, with it."""
        deadline = time.monotonic() + DEADLINE_S
        while needle not in self.seen:
            if not self._more(deadline):
                raise AssertionError(f"ended without {needle!r}: {self.seen!r}")
        end = self.seen.index(needle) + len(needle)
        taken, self.seen = self.seen[:end], self.seen[end:]
        return taken

    def rest(self) -> bytes:
        """Read to the end."""
        deadline = time.monotonic() + DEADLINE_S
        while self._more(deadline):
            pass
        taken, self.seen = self.seen, b""
        return taken

    def _more(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"nothing more within {DEADLINE_S} s: {self.seen!r}")
        try:
            chunk = os.read(self.fd, 65_536)
        except OSError:  # a pseudo-terminal whose other end is closed
            return False
        self.seen += chunk
        return bool(chunk)


class Cli:
    """A running command with pipes, or at a pseudo-terminal. Ended, if it still runs, on leaving."""

    def __init__(self, *args: str, at_terminal: bool = False) -> None:
        self._stack = contextlib.ExitStack()
        if at_terminal:
            ours, theirs = pty.openpty()
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            stdin = stdout = stderr = theirs
        else:
            stdin = stdout = stderr = subprocess.PIPE
        self.process = subprocess.Popen(
            (*COMMAND, *args),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=ROOT,
            env=environment(),
            bufsize=0,
            start_new_session=True,
        )
        if at_terminal:
            os.close(theirs)
            self._input = ours
            self.out = self.err = Reader(ours)
            self._stack.callback(os.close, ours)
        else:
            assert self.process.stdin
            assert self.process.stdout
            assert self.process.stderr
            self._input = self.process.stdin.fileno()
            self.out = Reader(self.process.stdout.fileno())
            self.err = Reader(self.process.stderr.fileno())

    def send(self, data: bytes) -> None:
        """Give it input."""
        os.write(self._input, data)

    def end_input(self) -> None:
        """Close its standard input."""
        assert self.process.stdin
        self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self.process.send_signal(number)

    def status(self) -> int:
        """Wait until it has ended."""
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()  # so that it can end what it has started
            try:
                self.process.wait(DEADLINE_S)
            finally:
                self.process.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        self._stack.close()


def wait_for_subscribers(server: Server, channel: str) -> None:
    """Watch the server until somebody is subscribed to a channel."""
    with redis.Redis(port=server.port) as admin:
        _wait_until(server, lambda: dict(admin.pubsub_numsub(channel))[channel.encode()] > 0)


def wait_for_patterns(server: Server) -> None:
    """Watch the server until somebody is subscribed to a pattern."""
    with redis.Redis(port=server.port) as admin:
        _wait_until(server, lambda: admin.pubsub_numpat() > 0)


def _wait_until(server: Server, is_so: Callable[[], bool]) -> None:
    """Look again each time that somebody has subscribed to something."""
    with (
        redis.Redis(port=server.port, socket_timeout=DEADLINE_S) as watching,
        watching.monitor() as monitor,
    ):
        while not is_so():
            while b"SUBSCRIBE" not in monitor.next_command()["command"].encode().upper():
                pass
