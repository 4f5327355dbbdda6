"""Standard input and output without holding up the event loop, and text that a terminal may show.

Lives here: reading lines, writing bytes, making text harmless. Must not live here: what the lines
mean. The commands call.

A read of standard input can take for ever, and so can a write to a pipe that nobody empties. Both run
in daemon threads: an executor's thread would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
import threading
import unicodedata
from collections.abc import Callable
from typing import TextIO, TypeVar

from .runner import BadInput, OutputClosed

__all__ = ["LineReader", "Writer", "is_terminal", "visible"]

T = TypeVar("T")

_READ_BYTES = 65_536
_LONGEST_LINE_BYTES = 512 * 1024 * 1024  # a larger one is refused by Redis: proto-max-bulk-len
_WRITE_BYTES = 1024 * 1024  # what may wait for a write; more makes the subscriber's own buffer fill

_HARMFUL = {"Cc", "Cs", "Zl", "Zp"}  # Unicode categories: control, surrogate, line and paragraph ends


class LineReader:
    """Reads standard input line by line. One task reads.

    A standard input that is closed is one that has ended.
    """

    def __init__(self) -> None:
        self._fd = _fileno(sys.stdin)
        self._pending = bytearray()

    async def read(self) -> list[bytes]:
        """The next lines, without their newlines: all that one read brings. Empty at the end.

        Cancelling it may lose what is read meanwhile.

        Raises:
            BadInput: A line is longer than what Redis takes, 512 MiB.
            OSError: It cannot be read.
        """
        while self._fd is not None:
            chunk = await _in_daemon_thread(functools.partial(os.read, self._fd, _READ_BYTES))
            if not chunk:
                self._fd = None
                return [bytes(self._pending)] if self._pending else []
            *lines, rest = chunk.split(b"\n")
            if lines:
                lines[0] = bytes(self._pending) + lines[0]
                self._pending = bytearray(rest)
                return lines
            self._pending += rest
            if len(self._pending) > _LONGEST_LINE_BYTES:
                raise BadInput(f"standard input has a line of more than {_LONGEST_LINE_BYTES} bytes")
        return []


class Writer:
    """Writes bytes to standard output. One task writes.

    Raises:
        BadInput: Standard output is closed.
    """

    def __init__(self) -> None:
        fd = _fileno(sys.stdout)
        if fd is None:
            raise BadInput("standard output is closed; there is nowhere to write to")
        self._fd = fd
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def is_full(self) -> bool:
        """Whether enough waits that it should be flushed before more is added."""
        return self._size >= _WRITE_BYTES

    def add(self, data: bytes) -> None:
        """Keep bytes for the next flush."""
        self._parts.append(data)
        self._size += len(data)

    async def flush(self) -> None:
        """Write what was added. Cancelling it leaves open how much is written.

        Raises:
            OutputClosed: The reader is gone.
            OSError: It cannot be written.
        """
        data, self._parts, self._size = b"".join(self._parts), [], 0
        if not data:
            return
        try:
            await _in_daemon_thread(functools.partial(_write_all, self._fd, data))
        except BrokenPipeError as error:
            raise OutputClosed from error


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person looks."""
    fd = _fileno(stream)
    return fd is not None and os.isatty(fd)


def visible(data: bytes | str) -> str:
    """Text that cannot drive a terminal or pass for two lines: what could is shown as an escape."""
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    if text.isprintable():
        return text
    return "".join(
        c if c == "\t" or unicodedata.category(c) not in _HARMFUL else ascii(c)[1:-1] for c in text
    )


def _fileno(stream: TextIO | None) -> int | None:
    return None if stream is None else stream.fileno()


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


async def _in_daemon_thread(function: Callable[[], T]) -> T:
    """What a blocking call returns or raises; if this is cancelled, the call is left to itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[], None]) -> None:
        if not future.done():
            set_outcome()

    def work() -> None:
        try:
            outcome = functools.partial(future.set_result, function())
        except Exception as error:
            outcome = functools.partial(future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=work, name="aiopubsub-cli", daemon=True).start()
    return await future
