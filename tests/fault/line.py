"""A connection without a library in front of it: what the server says, word for word."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import hiredis

from aiopubsub.testing import Server

TIMEOUT_S = 10


class Line:
    """Speaks RESP3 over a blocking socket; pushes come as tuples, refusals as texts."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reader = hiredis.Reader(encoding="utf-8")

    def send(self, *words: str | int) -> None:
        """Send a command, and don't wait."""
        self.send_raw(hiredis.pack_command(tuple(str(word) for word in words)))

    def send_raw(self, commands: bytes) -> None:
        """Send commands that are packed already."""
        self._socket.sendall(commands)

    def send_bytes(self, *words: bytes) -> None:
        """The same, of words that need not be text."""
        self._socket.sendall(hiredis.pack_command(words))

    def next(self) -> Any:
        """What comes next; `None` when the server has hung up."""
        while (said := self._reader.gets()) is False:
            data = self._socket.recv(65_536)
            if not data:
                return None
            self._reader.feed(data)
        if isinstance(said, hiredis.PushNotification):
            return tuple(said)
        return str(said) if isinstance(said, hiredis.HiredisError) else said

    def ask(self, *words: str | int) -> Any:
        """Send a command, and return what comes next."""
        self.send(*words)
        return self.next()

    def heard_nothing(self) -> bool:
        """Whether the server has said nothing up to now, and still answers."""
        return bool(self.ask("PING", "nothing in front") == "nothing in front")


@contextlib.contextmanager
def line(server: Server) -> Iterator[Line]:
    """A connection to this server, closed in the end."""
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        told = Line(connection)
        told.ask("HELLO", 3)
        yield told


def ask(server: Server, *words: str | int) -> Any:
    """The answer to one command, on a connection of its own."""
    with line(server) as told:
        return told.ask(*words)


def ask_asking(server: Server, *words: str | int) -> Any:
    """The same after `ASKING`, as a client does that was told `ASK`."""
    with line(server) as told:
        told.ask("ASKING")
        return told.ask(*words)
