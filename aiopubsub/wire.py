"""The only file that knows the insides of redis-py, hiredis and asyncio's transports.

redis-py connects, does TLS, authenticates and selects the database; its rules for URLs and settings
are ours. Then the socket is taken over: asyncio reads straight into our buffer, hiredis parses it, and
one batch of replies and pushes goes to the session in the same callback.

Lives here: `open`, a batch read, a write, `close`, and the translation of foreign errors. Must not
live here: what the bytes mean. Links open wires; a session owns one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast
from urllib.parse import unquote, urlsplit

import hiredis
import redis.asyncio as aioredis
from redis import exceptions as redis_errors
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff

from .dialogue import PUBLISH, SPUBLISH, Command
from .errors import ConnectFailed, ErrorReply, without_arguments
from .slots import Address

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

__all__ = [
    "ClusterOpener",
    "Push",
    "RedisOpener",
    "RedisWire",
    "SentinelSettings",
    "Wire",
    "WireOpener",
    "WireUser",
]

READ_BYTES = 32_768
"""One read: 200 messages of 128 bytes, which die before Python's garbage collector counts 700 new
objects. Reads of 64 KiB, which wake it for each batch, cost a fifth more per message."""

PART_BYTES = 32_768
"""Of a message that is not complete yet: so many bytes are a sign of life. A large payload may take
longer than two heartbeats; but answers to PING, which are short, must not pass for life if a length
that went wrong swallows them."""

Push: type[list[Any]] = hiredis.PushNotification
"""A RESP3 push: a list of its parts, of a type of its own."""

_hiredis = cast("Any", hiredis)  # its stub leaves types open, and knows no `feed` of a bytearray
_redis_py = cast("Any", aioredis)  # so do its own

_NOTHING = object()  # what hiredis returns when it needs more bytes

_BEGINNINGS = 1024  # remembered for each connection

_OURS: dict[str, object] = {
    # redis-py's own retry, health check, decoding and maintenance pushes are off on our connections
    "protocol": 3,
    "retry_on_error": [],
    "retry_on_timeout": False,
    "health_check_interval": 0,
    "decode_responses": False,
}
_NOT_COPIED = {
    # what a pool adds to its connections to tell them of itself
    "event_dispatcher",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "oss_cluster_maint_notifications_handler",
    "orig_host_address",
    "orig_socket_timeout",
    "orig_socket_connect_timeout",
    "maintenance_state",
    "maintenance_notification_hash",
    "himport_registry",
    "max_connections",
    "timeout",
    "parser_class",
    "connection_pool",
    # what a cluster's client adds
    "response_callbacks",
    "redis_connect_func",
}


class WireUser(Protocol):
    """Who owns a wire: a session."""

    def on_batch(self, batch: Iterable[Any]) -> bool:
        """Replies and pushes came, in the order of the server; whether there was one.

        The batch may raise in the middle: what the server sent cannot be read from there on.
        """
        ...

    def on_part(self) -> None:
        """A good deal of a large item came."""
        ...

    def on_writable(self) -> None:
        """What was written has mostly left: `is_writable` is true again."""
        ...

    def on_lost(self, reason: str) -> None:
        """The connection is gone. Called once, not after `abort`."""
        ...


class Wire(Protocol):
    """An open connection, handshake done."""

    is_writable: bool
    """Whether little enough waits to be sent that more may be written."""

    def start(self, user: WireUser) -> None:
        """Begin to deliver what comes."""
        ...

    def write(self, commands: Iterable[Command]) -> None:
        """Send commands. Never waits."""
        ...

    def pause(self) -> None:
        """Read no more for now."""
        ...

    def resume(self) -> None:
        """Read again."""
        ...

    def abort(self) -> None:
        """Close at once; what was not sent is lost. Does nothing the second time."""
        ...


class WireOpener(Protocol):
    """Where wires come from."""

    target: str
    """For people: host and port, or the like. Never credentials."""

    async def open(self) -> Wire:
        """Connect, authenticate and check that the server speaks RESP3.

        Raises:
            ConnectFailed: It did not work; `permanent` tells whether trying again is pointless.
        """
        ...


class RedisOpener:
    """Opens connections as redis-py would.

    Args:
        connection_class: Of redis-py.
        settings: For it.
        name: What `CLIENT LIST` shows; `None` keeps what the settings say.
        mode: What the server must be by its own words: `standalone`, `cluster` for a node of one, or
            `sentinel`.
    """

    def __init__(
        self,
        connection_class: Callable[..., AbstractConnection],
        settings: Mapping[str, Any],
        name: str | None,
        mode: str = "standalone",
    ) -> None:
        ours = {k: v for k, v in settings.items() if k not in _NOT_COPIED}
        ours |= _OURS | {"retry": Retry(NoBackoff(), 0)}
        if name is not None:
            ours["client_name"] = name
        self._class = connection_class
        self._settings = ours
        self._mode = mode
        self.target: str = _describe(ours)

    @classmethod
    def from_url(cls, url: str, name: str | None, mode: str = "standalone") -> RedisOpener:
        """By redis-py's rules for `redis://`, `rediss://` and `unix://`.

        Raises:
            ValueError: The URL cannot be read. The message does not repeat it: it may hold a password.
        """
        try:
            _check_place(url)
            pool = _redis_py.ConnectionPool.from_url(url)
            return cls(pool.connection_class, pool.connection_kwargs, name, mode)
        except (ValueError, TypeError, redis_errors.RedisError):
            raise ValueError(
                "source: the URL cannot be read; write redis://[user:password@]host[:port][/database], "
                "rediss://… for TLS, or unix:///path/to/socket[?db=n], with special characters "
                "in names and passwords percent-encoded"
            ) from None

    @classmethod
    def from_pool(
        cls, pool: aioredis.ConnectionPool, name: str | None, mode: str = "standalone"
    ) -> RedisOpener:
        """With the settings of a pool of redis-py's, which is not used otherwise."""
        return cls(_plain(pool.connection_class), pool.connection_kwargs, name, mode)

    def at(self, address: Address) -> RedisOpener:
        """The same for another server."""
        settings = {**self._settings, "host": address.host, "port": address.port}
        return RedisOpener(self._class, settings, None, self._mode)

    async def open(self) -> RedisWire:
        connection: Any = self._class(**self._settings)  # redis-py's own types have holes
        try:
            await connection.connect()
            is_replica = await self._check_greeting(connection)
            return RedisWire(connection, is_replica=is_replica)
        except ConnectFailed:
            connection._close()
            raise
        except (redis_errors.RedisError, OSError, RuntimeError) as error:
            connection._close()  # RuntimeError: uvloop's, when it is to write to what was just closed
            reason = _reason(error)
            failed = ConnectFailed(self.target, reason, _is_permanent(error))
            raise failed from (error if str(error) in reason else None)  # else it holds a password, perhaps
        except BaseException:  # cancelled somewhere between the socket and the handshake's end
            connection._close()
            raise

    async def _check_greeting(self, connection: Any) -> bool:
        """A URL of one kind of deployment for another would half work, and lose messages in silence.

        Returns whether the server is a replica. HELLO tells everybody; ROLE is a permission of its own.
        """
        await connection.send_command("HELLO", "3")
        greeting = await connection.read_response()
        mode = greeting.get(b"mode", b"standalone").decode()
        if mode != self._mode:
            advice = _ADVICE.get(mode, "another URL")
            raise ConnectFailed(
                self.target, f"it is {_MODES.get(mode, mode)}: use {advice}", permanent=True
            )
        return bool(greeting.get(b"role") == b"replica")


_MODES = {
    "standalone": "a single server",
    "cluster": "a node of a cluster",
    "sentinel": "a sentinel, which knows servers but is none",
}
_ADVICE = {
    "standalone": "redis://host:port",
    "cluster": "redis+cluster://host:port",
    "sentinel": "redis+sentinel://host:port/service",
}


class ClusterOpener:
    """Opens connections to the nodes of a cluster.

    Args:
        opener: With the settings for every node.
        startup: Nodes to ask first, at least one.
        remap: What redis-py calls `address_remap`: from the address that a node announces to where it
            can be reached.
    """

    def __init__(
        self,
        opener: RedisOpener,
        startup: Sequence[Address],
        remap: Callable[[tuple[str, int]], tuple[str, int]] | None = None,
    ) -> None:
        self._opener = opener
        self._remap = remap
        self.startup: tuple[Address, ...] = tuple(startup)
        self.target: str = "cluster " + ",".join(map(str, startup[:3])) + (",…" if len(startup) > 3 else "")

    @classmethod
    def from_url(cls, url: str, name: str | None) -> ClusterOpener:
        """By redis-py's rules for `redis+cluster://` and `rediss+cluster://`, with several hosts.

        Raises:
            ValueError: The URL cannot be read. The message does not repeat it: it may hold a password.
        """
        scheme, _, rest = url.partition("+cluster://")
        place, *query = rest.split("?", 1)
        place, _, database = place.partition("/")
        user, at, hosts = place.rpartition("@")
        try:
            if database not in ("", "0"):
                raise ValueError(database)
            startup = [_address(host) for host in hosts.split(",")]
            pool = _redis_py.ConnectionPool.from_url("?".join([f"{scheme}://{user}{at}localhost", *query]))
        except (ValueError, TypeError, redis_errors.RedisError):
            raise ValueError(
                "source: the URL cannot be read; write redis+cluster://[user:password@]host:port"
                "[,host:port…], or rediss+cluster://… for TLS; a cluster has database 0 alone, and special "
                "characters in names and passwords are percent-encoded"
            ) from None
        opener = RedisOpener(pool.connection_class, pool.connection_kwargs, name, "cluster")
        return cls(opener, startup)

    @classmethod
    def from_client(cls, client: aioredis.RedisCluster, name: str | None) -> ClusterOpener:
        """With the settings of a `redis.asyncio.RedisCluster` that the user already has."""
        manager: Any = client.nodes_manager
        settings = dict(manager.connection_kwargs)
        connection_class = settings.pop("connection_class", _redis_py.Connection)
        startup = [Address(str(node.host), int(node.port)) for node in manager.startup_nodes.values()]
        opener = RedisOpener(connection_class, settings, name, "cluster")
        return cls(opener, startup, getattr(manager, "address_remap", None))

    def at(self, address: Address) -> RedisOpener:
        """For one node."""
        return self._opener.at(address)

    def reach(self, announced: Address) -> Address:
        """Where a node can be reached that announces this address."""
        return announced if self._remap is None else Address(*self._remap(announced))


class SentinelSettings(NamedTuple):
    """What it takes to find a server through Sentinel.

    Attributes:
        service: The name under which the sentinels watch the server.
        servers: Opens connections to servers, at addresses that are to be set.
        sentinels: Opens connections to each sentinel.
        min_others: So many other sentinels a sentinel must know of to be believed.
        host: Takes the place of the host that sentinels tell, or `None`.
    """

    service: str
    servers: RedisOpener
    sentinels: list[RedisOpener]
    min_others: int = 0
    host: str | None = None

    @classmethod
    def from_client(cls, client: aioredis.Redis, name: str | None) -> SentinelSettings | None:
        """Those of a `redis.asyncio.Redis`, or `None` if it was told where its server is.

        Raises:
            ValueError: It is made for replicas.
        """
        pool: Any = client.connection_pool
        if not isinstance(pool, SentinelConnectionPool):
            return None
        pool = cast("Any", pool)
        if not pool.is_master:
            raise ValueError("source: a client of replicas; give one that `Sentinel.master_for` has made")
        manager = pool.sentinel_manager
        return cls(
            pool.service_name,
            RedisOpener.from_pool(pool, name),
            [RedisOpener.from_pool(each.connection_pool, name, "sentinel") for each in manager.sentinels],
            manager.min_other_sentinels,
            manager._force_master_ip,
        )


class RedisWire(asyncio.BufferedProtocol):
    """A socket that redis-py has opened and we have taken over.

    Attributes:
        is_replica: Whether the server said so when it was opened.
    """

    def __init__(self, connection: Any, *, is_replica: bool = False) -> None:
        stream, writer = connection._reader, connection._writer
        self.is_writable: bool = True
        self.is_replica = is_replica
        self._connection = connection  # keeps the StreamWriter alive, which closes when collected
        self._transport = cast("asyncio.Transport", writer.transport)
        self._early = bytes(stream._buffer)  # what came together with the handshake's end
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._reader = _hiredis.Reader(
            protocolError=redis_errors.InvalidResponse,
            replyError=ErrorReply,
            notEnoughData=_NOTHING,
        )
        # of what is sent most, by channel
        self._beginnings: dict[bytes, dict[bytes, bytes]] = {PUBLISH: {}, SPUBLISH: {}}
        self._part_bytes = 0
        self._user: WireUser | None = None

    def start(self, user: WireUser) -> None:
        self._user = user
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            asyncio.get_running_loop().call_soon(self.connection_lost, None)
            return
        if self._early:
            self._reader.feed(self._early)
            self._drain_reader()
        self.resume()

    # uvloop raises where a closed transport of asyncio does nothing

    def write(self, commands: Iterable[Command]) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._pack(commands))

    def pause(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        self._user = None
        self._transport.abort()
        self._let_go()

    # -- asyncio calls these -----------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.feed(self._buffer, 0, nbytes)
        self._part_bytes += nbytes
        self._drain_reader()

    def eof_received(self) -> None:
        """Close: the server has nothing more to say."""

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        if self._user is not None:
            self._user.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        user, self._user = self._user, None
        self._let_go()
        if user is not None:
            user.on_lost("the server closed the connection" if exc is None else _reason(exc))

    def _pack(self, commands: Iterable[Command]) -> bytes:
        """Commands as RESP. A PUBLISH is pasted behind what all of its channel begin with, which takes
        0.2 µs; hiredis takes 0.33."""
        parts: list[bytes] = []
        for command in commands:
            beginnings = self._beginnings.get(command[0])
            if beginnings is not None:
                verb, key, payload = command
                beginning = beginnings.get(key) or _begin(beginnings, verb, key)
                parts += (beginning, b"%d\r\n" % len(payload), payload, b"\r\n")
            else:
                parts.append(_hiredis.pack_command(command))
        return b"".join(parts)

    def _drain_reader(self) -> None:
        if self._user is None:
            return
        user = self._user
        if user.on_batch(iter(self._reader.gets, _NOTHING)):
            self._part_bytes = 0
        elif self._part_bytes >= PART_BYTES:
            self._part_bytes = 0
            user.on_part()

    def _let_go(self) -> None:
        self.is_writable = False
        # told that it is closed, redis-py neither warns nor closes a second time
        self._connection._reader = self._connection._writer = None


def _begin(beginnings: dict[bytes, bytes], verb: bytes, key: bytes) -> bytes:
    if len(beginnings) >= _BEGINNINGS:
        beginnings.clear()
    beginning = b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$" % (len(verb), verb, len(key), key)
    beginnings[key] = beginning
    return beginning


def _check_place(url: str) -> None:
    """A password with a character that is not encoded must not pass for a host, which errors name.

    Raises:
        ValueError: What stands in front of the `@` is not where it belongs.
    """
    parts = urlsplit(url)
    astray = parts.path + parts.fragment + parts.query.partition("=")[0]
    is_wrong = ":" in astray.partition("@")[0] if parts.scheme == "unix" else True
    if "@" in astray and is_wrong:
        raise ValueError(url)


def _address(text: str) -> Address:
    """Host and port; the port is 6379 if none is given.

    Raises:
        ValueError: It is neither.
    """
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path:
        raise ValueError(text)
    return Address(unquote(parts.hostname), 6379 if parts.port is None else parts.port)


def _plain(of_pool: type[AbstractConnection]) -> type[AbstractConnection]:
    """The class of connection without the look for a primary, which redis-py's own for Sentinel add."""
    if not issubclass(of_pool, SentinelManagedConnection):
        return of_pool
    return SSLConnection if issubclass(of_pool, SSLConnection) else Connection


def _describe(settings: Mapping[str, Any]) -> str:
    if "path" in settings:
        return str(settings["path"])
    return f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"


def _is_permanent(error: Exception) -> bool:
    """Whether the server itself said no: it will say so again."""
    if isinstance(error, (redis_errors.AuthenticationError, redis_errors.AuthorizationError)):
        return True
    return isinstance(error, redis_errors.ResponseError) and not str(error).startswith("max number")


def _reason(error: BaseException) -> str:
    """What the server or the system said."""
    text = without_arguments(str(error)) or type(error).__name__
    code = getattr(error, "status_code", None)  # redis-py takes the code off the server's words
    if isinstance(code, str) and not text.startswith(code):
        text = f"{code} {text}"
    if ("HELLO" in text and "unknown command" in text) or text.startswith("NOPROTO"):
        text += " (RESP3 is needed: Redis 6 or newer, or any Valkey)"
    return text
