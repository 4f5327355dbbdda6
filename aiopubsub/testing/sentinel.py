"""A primary, its replicas, and the sentinels that watch them, on free ports of the loopback interface.

Lives here: starting them so that they know each other at once, and what is done to them: failing over,
killing, cutting off. Must not live here: a single server, what is done to its connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .servers import HOST, Server, free_port

__all__ = ["SentinelServer", "Sentinels"]

_ADMIN, _WATCH, _SECRET = "the-admin", "the-sentinels", "s3cret"  # users of every server, to log in with
_TIMEOUT_S = 30.0
_ASK_TIMEOUT_S = 5.0
_LOOK_S = 0.02

_USERS = (
    *("--user", _ADMIN, "on", f">{_SECRET}", "~*", "&*", "+@all"),
    *("--user", _WATCH, "on", f">{_SECRET}", "~*", "&*", "+@all"),
    *("--masteruser", _WATCH, "--masterauth", _SECRET, "--repl-diskless-sync-delay", "0"),
)

# How often a sentinel looks, in ms, instead of once in 1 to 10 s. While the primary is down it asks the
# replicas once in 1 s, and takes one that it has heard within five PINGs: these must take longer than that
_PERIODS: dict[str, str | int] = {
    "info-period": 200,
    "ping-period": 300,
    "ask-period": 100,
    "publish-period": 200,
    "min-link-reconnect-period": 1000,
    "slave-reconf-timeout": 2000,
}


class SentinelServer(Server):
    """One of the `Sentinels`, which makes it; `start`, `stop` and `kill` are a `Server`'s.

    It keeps what it has learned when it is killed and started again.
    """

    _READY = "Sentinel ID is"

    def __init__(self, executable: str, *lines: str, port: int, password: str | None) -> None:
        super().__init__(executable, port=port)
        self._lines_of_file = lines
        self._password = password

    def start(self) -> None:
        """Start it and wait until it accepts connections, 10 s at most."""
        super().start()
        with (
            contextlib.suppress(redis.ResponseError),
            _connect(self, password=self._password) as admin,
        ):
            _ask(admin, "SENTINEL", "DEBUG", *itertools.chain.from_iterable(_PERIODS.items()))

    def _command(self, folder: str) -> list[str]:
        file = Path(folder) / "sentinel.conf"
        if not file.exists():
            file.write_text("\n".join(self._lines_of_file) + "\n", encoding="utf-8")
        executable, *options = super()._command(folder)
        return [executable, str(file), "--sentinel", *options]


class Sentinels:
    """A primary, its replicas and sentinels of your own, on free ports of the loopback interface.

    A context manager, plain or `async with`; `start` and `stop` can also be called, from any thread. It is
    ready when the replicas follow and the sentinels know each other and all servers.

    Args:
        executable: The server's path, for example from `find_redis()`; it runs the sentinels, too.
        *options: More of the servers' command line, for example `"--appendonly", "yes"`.
        replicas: How many, at least 1.
        sentinels: How many, at least 1; more than half of them must agree on a failover.
        service: The name under which they watch the primary: letters, digits and `. _ -`.
        down_after_s: A server that is silent for so many seconds is down to a sentinel, for some for twice
            as many. Redis 6.2 needs 3 s at least.
        password: Of the servers, for the user `default`.
        sentinel_password: Of the sentinels.

    Attributes:
        service: As given.
        servers: The primary and its replicas; which of them is the primary changes.
        sentinels: The sentinels; each may be killed and started.
    """

    def __init__(
        self,
        executable: str,
        *options: str,
        replicas: int = 2,
        sentinels: int = 3,
        service: str = "the-service",
        down_after_s: float = 1.0,
        password: str | None = None,
        sentinel_password: str | None = None,
    ) -> None:
        self.service = service
        self._sentinel_password = sentinel_password
        first, *others = [free_port() for _ in range(1 + replicas)]
        secret = ("--requirepass", password) if password else ()
        every = (executable, *_USERS, *secret, *options)
        self.servers: list[Server] = [
            Server(*every, port=first),
            *(Server(*every, "--replicaof", HOST, str(first), port=port) for port in others),
        ]
        ports = [free_port() for _ in range(sentinels)]
        down_after_ms = round(down_after_s * 1000)
        quorum = sentinels // 2 + 1
        lines = [
            f"sentinel monitor {service} {HOST} {first} {quorum}",
            f"sentinel auth-user {service} {_WATCH}",
            f"sentinel auth-pass {service} {_SECRET}",
            f"sentinel failover-timeout {service} 3000",
            *(f"sentinel known-replica {service} {HOST} {port}" for port in others),
        ]
        if sentinel_password:
            lines += [f"requirepass {sentinel_password}", f"sentinel sentinel-pass {sentinel_password}"]
        known = {port: f"sentinel known-sentinel {service} {HOST} {port} {_id(port)}" for port in ports}
        self.sentinels: list[SentinelServer] = [
            SentinelServer(
                executable,
                f"sentinel myid {_id(port)}",
                *lines,
                # as many as are needed notice it first: when all do, each votes for itself, again and again
                f"sentinel down-after-milliseconds {service} {down_after_ms * (1 + (nth > quorum))}",
                *(line for other, line in known.items() if other != port),
                port=port,
                password=sentinel_password,
            )
            for nth, port in enumerate(ports, 1)
        ]

    @property
    def url(self) -> str:
        """What a `Client` takes, without any password."""
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.service}"

    @property
    def primary(self) -> Server:
        """The server that all sentinels that run call the primary now.

        Raises:
            RuntimeError: They do not agree, or none of them runs.
        """
        told = {self._told_by(sentinel) for sentinel in self._running_sentinels()}
        agreed = [server for server in self.servers if {server.port} == told]
        if not agreed:
            raise RuntimeError(f"the sentinels do not agree on the primary: its port is one of {told}")
        return agreed[0]

    def admin(self, server: Server) -> redis.Redis:
        """A connection of redis-py to one of the servers or sentinels, with every permission.

        Close it after use.
        """
        if isinstance(server, SentinelServer):
            return _connect(server, password=self._sentinel_password)
        return _connect(server, username=_ADMIN, password=_SECRET)

    # -- lifetime ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all of them and wait until they are ready, 30 s at most.

        Raises:
            RuntimeError: One of them did not start.
            TimeoutError: They are not ready.
        """
        try:
            for server in [*self.servers, *self.sentinels]:
                server.start()
            self._wait(self._is_settled)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all of them, and remove what they kept."""
        for server in [*self.sentinels, *self.servers]:
            server.stop()

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

    # -- what is done to them ----------------------------------------------------------------------

    async def fail_over(self, *, coordinated: bool = False) -> Server:
        """Let a replica become the primary in an orderly way, as an operator would (`SENTINEL FAILOVER`).

        Args:
            coordinated: Let the primary wait until the replica has all that was written; then nothing is
                lost. Valkey 9 can do it.

        Returns:
            The new primary, when all sentinels say so and the old one is a replica of it. For a moment
            between, the old one goes on as though nothing had happened.

        Raises:
            TimeoutError: That did not happen within 30 s.
        """
        return await asyncio.to_thread(self._fail_over, *(["COORDINATED"] if coordinated else []))

    async def kill_primary(self) -> Server:
        """Kill the primary with SIGKILL. It can be started again: it becomes a replica.

        Returns:
            The new primary, when all sentinels say so.

        Raises:
            TimeoutError: That did not happen within 30 s.
        """
        return await asyncio.to_thread(self._kill_primary)

    async def isolate_primary(self) -> Server:
        """Cut the primary off from the sentinels and replicas, but not from clients, until `rejoin`.

        Returns:
            It, which goes on as a primary. When `primary` is another one, it was replaced.
        """
        return await asyncio.to_thread(self._isolate_primary)

    async def rejoin(self, server: Server) -> None:
        """End what `isolate_primary` did to a server. Returns when it is a replica, or the primary again.

        Raises:
            TimeoutError: That did not happen within 30 s.
        """
        await asyncio.to_thread(self._rejoin, server)

    async def settled(self) -> None:
        """Wait until the sentinels agree, and all servers that run follow the primary.

        Raises:
            TimeoutError: That did not happen within 30 s.
        """
        await asyncio.to_thread(self._wait, self._is_settled)

    # -- inside ------------------------------------------------------------------------------------

    def _fail_over(self, *how: str) -> Server:
        old = self.primary
        sentinel = next(self._running_sentinels())

        def is_begun() -> bool:
            with self.admin(sentinel) as admin:
                try:
                    _ask(admin, "SENTINEL", "FAILOVER", self.service, *how)
                except redis.ResponseError:  # another one is under way, or no replica is fit for it
                    return self._is_replaced(old)
                return True

        self._wait(is_begun)
        self._wait(lambda: self._is_replaced(old) and self._role_of(old) == "slave")
        return self.primary

    def _kill_primary(self) -> Server:
        old = self.primary
        old.kill()
        self._wait(lambda: self._is_replaced(old))
        return self.primary

    def _isolate_primary(self) -> Server:
        server = self.primary
        with self.admin(server) as admin:
            # not `off`: where `default` needs no password, who fails to log in is let in as that
            _ask(admin, "ACL", "SETUSER", _WATCH, "-@all")
            _ask(admin, "CLIENT", "KILL", "USER", _WATCH)
        return server

    def _rejoin(self, server: Server) -> None:
        with self.admin(server) as admin:
            _ask(admin, "ACL", "SETUSER", _WATCH, "+@all")
        self._wait(self._is_settled)

    def _is_replaced(self, old: Server) -> bool:
        try:
            return self.primary is not old
        except RuntimeError:
            return False

    def _is_settled(self) -> bool:
        try:
            primary = self.primary
        except RuntimeError:
            return False
        followers = {server.port for server in self.servers if server.is_running} - {primary.port}
        running = list(self._running_sentinels())
        return all(
            view.is_up and view.followers >= followers and view.sentinels == len(running) - 1
            for view in map(self._view, running)
        )

    def _running_sentinels(self) -> Iterator[SentinelServer]:
        return (sentinel for sentinel in self.sentinels if sentinel.is_running)

    def _told_by(self, sentinel: SentinelServer) -> int:
        """The port of the primary, by one of them."""
        with self.admin(sentinel) as admin:
            return int(_ask(admin, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)[1])

    def _view(self, sentinel: SentinelServer) -> _View:
        with self.admin(sentinel) as admin:
            primary = _ask(admin, "SENTINEL", "MASTER", self.service)
            replicas = [
                int(each["port"])
                for each in _ask(admin, "SENTINEL", "REPLICAS", self.service)
                if each["flags"] == "slave"
                and each["master-link-status"] == "ok"
                and each["master-port"] == primary["port"]
            ]
            others = [
                each
                for each in _ask(admin, "SENTINEL", "SENTINELS", self.service)
                if not {"s_down", "disconnected"} & set(each["flags"].split(","))
            ]
        return _View(primary["flags"] == "master", set(replicas), len(others))

    def _role_of(self, server: Server) -> str:
        with self.admin(server) as admin:
            return str(_ask(admin, "ROLE")[0])

    @staticmethod
    def _wait(is_true: Callable[[], bool]) -> None:
        """Look again and again; a server that does not answer just now makes it false."""
        give_up_at = time.monotonic() + _TIMEOUT_S
        while True:
            with contextlib.suppress(redis.RedisError):
                if is_true():
                    return
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"the sentinels did not come to it within {_TIMEOUT_S:g} s")
            time.sleep(_LOOK_S)


class _View(NamedTuple):
    """What one sentinel sees."""

    is_up: bool
    """The primary."""
    followers: set[int]
    """Ports of the replicas that follow it."""
    sentinels: int
    """Others that are there."""


def _ask(admin: redis.Redis, *words: str | int) -> Any:
    """One command; redis-py's types have holes."""
    return cast("Any", admin).execute_command(*words)


def _id(port: int) -> str:
    """A sentinel's name: 40 hexadecimal digits."""
    return sha256(str(port).encode()).hexdigest()[:40]


def _connect(server: Server, **secrets: str | None) -> redis.Redis:
    return redis.Redis(
        HOST,
        server.port,
        **cast("Any", secrets),
        protocol=3,
        decode_responses=True,
        socket_timeout=_ASK_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
