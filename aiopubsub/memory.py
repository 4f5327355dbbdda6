"""`memory://`: a Redis Pub/Sub server that is a few dictionaries in this process.

It stands in for the socket, not for the library: the same router, session and link talk to it, in the
same commands. So what works here works there; what it cannot show is what networks do.

Lives here: the server's side of PUBLISH, SUBSCRIBE and the like. Must not live here: anything that
clients decide.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from .append import SHA
from .dialogue import Command
from .errors import ConnectFailed, ErrorReply
from .memory_streams import MemoryStreams
from .wire import Push, Wire, WireUser

__all__ = ["MemoryOpener", "MemoryServer"]


class MemoryServer:
    """The state that connections share: who has subscribed to what, and what is kept.

    Attributes:
        streams: What is kept.
        wires: The connections that are open.
        delay_s: So late is read what it says; a test may change this and what follows.
        refuses: Whether new connections are refused.
        forbidden: Channels and patterns that nobody may use.
    """

    def __init__(self) -> None:
        self.wires: dict[_MemoryWire, None] = {}
        self.delay_s: float = 0.0
        self.refuses: bool = False
        self.forbidden: set[bytes] = set()
        self._channels: dict[bytes, dict[_MemoryWire, None]] = {}
        self._patterns: dict[bytes, dict[_MemoryWire, None]] = {}
        streams = MemoryStreams()
        self.streams: MemoryStreams = streams
        self._simple: dict[bytes, Callable[..., object]] = {
            b"SCRIPT": lambda *_: SHA,
            b"XRANGE": streams.range,
            b"XREVRANGE": streams.reverse_range,
            b"GET": streams.get,
            b"SET": streams.set,
            b"DEL": streams.delete,
            b"FLUSHALL": streams.flush,
        }

    def run(self, wire: _MemoryWire, command: Command) -> None:
        """Do what a command says; the answer goes to the wire."""
        verb, *args = command
        if self.forbidden and self._is_forbidden(verb, args):
            wire.receive(ErrorReply("NOPERM No permissions to access a channel"))
            return
        match verb:
            case b"PUBLISH":
                wire.receive(self._publish(*args))
            case b"SUBSCRIBE":
                self._subscribe(wire, b"subscribe", self._channels, args)
            case b"PSUBSCRIBE":
                self._subscribe(wire, b"psubscribe", self._patterns, args)
            case b"UNSUBSCRIBE":
                self._unsubscribe(wire, b"unsubscribe", self._channels, args)
            case b"PUNSUBSCRIBE":
                self._unsubscribe(wire, b"punsubscribe", self._patterns, args)
            case b"PING":
                wire.receive(args[0] if args else b"PONG")
            case b"EVALSHA":
                wire.receive(self.streams.append(self._publish, *args))
            case _ if verb in self._simple:
                wire.receive(self._simple[verb](*args))
            case _:
                wire.receive(ErrorReply(f"ERR unknown command '{verb.decode()}'"))

    def cut(self, keys: set[bytes] | None = None) -> None:
        """Close every connection, or those that are subscribed to one of these keys."""
        wires = set(self.wires)
        if keys is not None:
            tables = (self._channels, self._patterns)
            wires = {wire for key in keys for table in tables for wire in table.get(key, ())}
        for wire in wires:
            wire.lose()

    def forget(self, wire: _MemoryWire) -> None:
        """A connection is gone."""
        self.wires.pop(wire, None)
        for table in (self._channels, self._patterns):
            for key in [key for key, wires in table.items() if wire in wires]:
                self._discard(table, key, wire)

    def _is_forbidden(self, verb: bytes, args: list[bytes]) -> bool:
        used = {b"PUBLISH": args[:1], b"EVALSHA": args[3:4], b"SUBSCRIBE": args, b"PSUBSCRIBE": args}
        return not self.forbidden.isdisjoint(used.get(verb, ()))

    def _publish(self, channel: bytes, payload: bytes) -> int:
        receivers = 0
        for wire in self._channels.get(channel, ()):
            wire.receive(Push([b"message", channel, payload]))
            receivers += 1
        for pattern, wires in self._patterns.items():
            if _glob(pattern)(channel):
                for wire in wires:
                    wire.receive(Push([b"pmessage", pattern, channel, payload]))
                    receivers += 1
        return receivers

    def _subscribe(
        self,
        wire: _MemoryWire,
        kind: bytes,
        table: dict[bytes, dict[_MemoryWire, None]],
        keys: list[bytes],
    ) -> None:
        for key in keys:
            table.setdefault(key, {})[wire] = None
            wire.receive(Push([kind, key, self._count(wire)]))

    def _unsubscribe(
        self,
        wire: _MemoryWire,
        kind: bytes,
        table: dict[bytes, dict[_MemoryWire, None]],
        keys: list[bytes],
    ) -> None:
        for key in keys:
            self._discard(table, key, wire)
            wire.receive(Push([kind, key, self._count(wire)]))

    def _count(self, wire: _MemoryWire) -> int:
        tables = (self._channels, self._patterns)
        return sum(wire in wires for table in tables for wires in table.values())

    @staticmethod
    def _discard(table: dict[bytes, dict[_MemoryWire, None]], key: bytes, wire: _MemoryWire) -> None:
        wires = table.get(key, {})
        wires.pop(wire, None)
        if not wires:
            table.pop(key, None)


class MemoryOpener:
    """Opens connections to the memory server of this name in this event loop.

    The servers are found through the loop and live as long as something is connected, so that two
    clients of `memory://` in one program meet, and two tests do not.
    """

    def __init__(self, name: str) -> None:
        self.target: str = f"memory://{name}"
        self._name = name

    def server(self) -> MemoryServer:
        """The server, which whoever holds it keeps alive; to be asked for in the event loop."""
        servers = _servers.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        return servers.setdefault(self._name, MemoryServer())

    async def open(self) -> Wire:
        server = self.server()
        if server.refuses:
            raise ConnectFailed(self.target, "connection refused")
        return _MemoryWire(server)


class _MemoryWire:
    """A connection to a memory server. Answers come in the next turn of the loop, all at once."""

    is_writable = True

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._user: WireUser | None = None
        self._inbox: list[Any] = []
        self._is_paused = False
        self._is_due = False
        server.wires[self] = None

    def start(self, user: WireUser) -> None:
        self._user = user

    def write(self, commands: Iterable[Command]) -> None:
        for command in commands:
            self._server.run(self, command)

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        self._deliver_soon()

    def abort(self) -> None:
        self._user = None
        self._inbox.clear()
        self._server.forget(self)

    def lose(self) -> None:
        """The connection is gone, with what was not read yet."""
        user = self._user
        self.abort()
        if user is not None:
            user.on_lost("the server closed the connection")

    def receive(self, item: Any) -> None:
        """The server says something."""
        self._inbox.append(item)
        self._deliver_soon()

    def _deliver_soon(self) -> None:
        if self._inbox and not self._is_due and not self._is_paused:
            self._is_due = True
            if self._server.delay_s:
                self._loop.call_later(self._server.delay_s, self._deliver)
            else:
                self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._is_due = False
        if self._user is not None and self._inbox and not self._is_paused:
            batch, self._inbox = self._inbox, []
            self._user.on_batch(batch)


# The one global table: `memory://` means the same server to all who say it in one event loop, as
# `redis://localhost` does. Weak at both ends, so it holds nothing that is not in use.
_servers: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[str, MemoryServer]] = (
    WeakKeyDictionary()
)


@lru_cache(maxsize=1024)
def _glob(pattern: bytes) -> Callable[[bytes], re.Match[bytes] | None]:
    """Redis' glob as a regular expression, by `stringmatchlen` of its `util.c`."""
    out: list[bytes] = []
    at = 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        at += 1
        if char == b"*":
            out.append(b".*")
        elif char == b"?":
            out.append(b".")
        elif char == b"\\" and at < len(pattern):
            out.append(re.escape(pattern[at : at + 1]))
            at += 1
        elif char == b"[":
            expression, at = _char_class(pattern, at)
            out.append(expression)
        else:
            out.append(re.escape(char))
    return re.compile(b"".join(out), re.DOTALL).fullmatch


def _char_class(pattern: bytes, at: int) -> tuple[bytes, int]:
    """The class that begins after `[`, and where it ends. A missing `]` ends with the pattern."""
    is_not = pattern[at : at + 1] == b"^"
    at += is_not
    members: list[bytes] = []
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            at += 1
            members.append(re.escape(pattern[at : at + 1]))
            at += 1
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at : at + 1], pattern[at + 2 : at + 3]))
            members.append(re.escape(low) + b"-" + re.escape(high))
            at += 3
        else:
            members.append(re.escape(pattern[at : at + 1]))
            at += 1
    if not members:
        return (b"." if is_not else b"(?!)"), at + 1
    return b"[" + (b"^" if is_not else b"") + b"".join(members) + b"]", at + 1
