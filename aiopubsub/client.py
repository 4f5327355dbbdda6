"""`Client`: what holds the connections to one Redis deployment.

Lives here: the choice of deployment from the source, and the lifetime of its links. Must not live
here: publishing and subscribing. Roles take a client, or make one of their own from a source.
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Self, TypeAlias

import redis.asyncio as aioredis

from .checks import check_seconds
from .cluster import Cluster
from .deployment import Deployment, SingleServer
from .errors import Closed
from .link import Backoff
from .memory import MemoryOpener
from .sentinel import SentinelDeployment, SentinelSource
from .stats import ClientStats, LinkStats
from .wire import ClusterOpener, RedisOpener, SentinelSettings, WireOpener

__all__ = ["Client", "Source"]

Source: TypeAlias = str | aioredis.Redis | aioredis.RedisCluster
"""A URL, or a client of `redis.asyncio` whose settings are copied."""

_IS_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*").fullmatch  # RFC 3986, section 3.1
_SCHEMES = (
    *("redis", "rediss", "unix", "redis+cluster", "rediss+cluster"),
    *("redis+sentinel", "rediss+sentinel", "memory"),
)


class Client:
    """The connections of one service to one Redis deployment, shared by publishers and subscribers.

    Two connections, opened when first needed: one that commands, one that listens; so a hang-up of a
    slow listener never stops publishing. A subscriber with `overflow="block"` has one of its own.
    `async with` returns when the server has answered. A connection that is lost is opened again for
    as long as the client is open. It may be entered in one task and closed in another, of the same
    event loop.

    Args:
        source: A URL, or a `redis.asyncio.Redis` or `RedisCluster` that you already have; its settings
            are copied (TLS, credentials provider, database), the object itself is not used and not
            closed. URLs by redis-py's rules: `redis://[user:password@]host[:port][/database]`,
            `rediss://…` for TLS, `unix:///path[?db=n]`; of a cluster
            `redis+cluster://[user:password@]host:port[,host:port…]`, `rediss+cluster://…`; behind Sentinel
            `redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/database]` with the
            sentinels' hosts, `rediss+sentinel://…`, and `?sentinel_username=…&sentinel_password=…` where
            they have their own.
            `memory://[name]` is a server in this process, for tests.
        connect_timeout: Seconds, > 0, that the first connection may take, refused tries included;
            also what a `subscribe` may take. `None` waits for ever.
        heartbeat: Seconds, > 0. A connection that is quiet for so long is asked for a sign of life,
            and given up after as long again.
        backoff: How long to wait before each next try to connect.
        name: The connections' name in `CLIENT LIST`; `None` sets none.

    Raises:
        ValueError: The URL cannot be read, its scheme is unknown, or a number is out of range.
        TypeError: `source` is neither a URL nor such a client.
    """

    def __init__(
        self,
        source: Source = "redis://localhost:6379",
        *,
        connect_timeout: float | None = 10.0,
        heartbeat: float = 5.0,
        backoff: Backoff = Backoff(),  # noqa: B008  # frozen
        name: str | None = None,
    ) -> None:
        if connect_timeout is not None:
            connect_timeout = check_seconds("connect_timeout", connect_timeout)
        self.connect_timeout = connect_timeout
        self._heartbeat = check_seconds("heartbeat", heartbeat)
        self._backoff = backoff
        self._opener = _choose_opener(source, name)
        self._deployment: Deployment | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ConnectFailed: The server refused, or did not answer within `connect_timeout`.
            Closed: The client was closed before.
        """
        deployment = begin(self)
        try:
            await deployment.commanding().ready(self.connect_timeout)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Never hangs; a second call does nothing.

        Iterators of its subscribers end. Publishes that still wait raise `Closed`, those that were
        sent and not answered `Unconfirmed`. Cancelling it leaves no connection behind.
        """
        self._is_closed = True
        deployment, self._deployment = self._deployment, None
        if deployment is not None:
            await deployment.aclose()

    @property
    def stats(self) -> ClientStats:
        """A look at the connections, now. Costs no round trip."""
        deployment = self._deployment
        if deployment is None:
            return ClientStats({}, 0, 0)
        links = {
            role: LinkStats(
                link.state.value,
                link.reconnects,
                link.heard_s_ago,
                None if link.error is None else str(link.error),
            )
            for role, link in deployment.links().items()
        }
        outbox = deployment.commanding().dialogue
        return ClientStats(links, outbox.in_flight, outbox.waiting)

    def __repr__(self) -> str:
        return f"<Client of {self._opener.target}>"


def begin(client: Client) -> Deployment:
    """Open a client without connecting: its links are opened when they are first needed."""
    if client._is_closed:
        raise Closed("Client")
    if client._deployment is None:
        opener, heartbeat, backoff = client._opener, client._heartbeat, client._backoff
        if isinstance(opener, ClusterOpener):
            client._deployment = Cluster(opener, heartbeat=heartbeat, backoff=backoff)
        elif isinstance(opener, SentinelSource):
            client._deployment = SentinelDeployment(opener, heartbeat=heartbeat, backoff=backoff)
        else:
            client._deployment = SingleServer(opener, heartbeat=heartbeat, backoff=backoff)
    return client._deployment


def deployment_of(client: Client) -> Deployment:
    """What an open client is connected to.

    Raises:
        Closed: The client is not open.
    """
    if client._deployment is None:
        raise Closed("Client", opened=client._is_closed)
    return client._deployment


def as_client(source: Source | Client) -> tuple[Client, bool]:
    """The client, and whether it was made here and is to be closed by whoever asked."""
    if isinstance(source, Client):
        return source, False
    return Client(source), True


def _choose_opener(source: Source, name: str | None) -> WireOpener | ClusterOpener | SentinelSource:
    if isinstance(source, aioredis.Redis):
        settings = SentinelSettings.from_client(source, name)
        opener = RedisOpener.from_pool(source.connection_pool, name)
        return opener if settings is None else SentinelSource(settings)
    if isinstance(source, aioredis.RedisCluster):
        return ClusterOpener.from_client(source, name)
    if not isinstance(source, str):
        raise TypeError(
            f"source must be a URL, a redis.asyncio.Redis or RedisCluster, not {type(source).__name__}"
        )
    scheme, separator, rest = source.partition("://")
    if not separator or not _IS_SCHEME(scheme):  # nothing of it is repeated: it may hold a password
        raise ValueError("source: not a URL; write for example redis://localhost:6379")
    if scheme not in _SCHEMES:
        known = ", ".join(f"{known}://" for known in _SCHEMES)
        raise ValueError(f"source: unknown scheme {scheme!r}; use one of {known}")
    if scheme == "memory":
        return MemoryOpener(rest)
    if scheme.endswith("+cluster"):
        return ClusterOpener.from_url(source, name)
    if scheme.endswith("+sentinel"):
        return SentinelSource.from_url(source, name)
    return RedisOpener.from_url(source, name)
