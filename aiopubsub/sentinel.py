"""A server that Sentinel watches: finding the primary, and leaving one that is none any more.

Each sentinel is asked over a standing connection of its own. So a failover is heard at once, whichever of
them is down or cut off. Connections lead to the primary that the newest configuration names, and are given
up when it names another one: then their links connect anew, as after any loss.

Lives here: reading the URL, which connections are left. Must not live here: what a sentinel is asked and
who is believed (the lookout), how a link connects again. A client makes a `SentinelDeployment`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from urllib.parse import parse_qsl, unquote, urlencode

import anyio

from .deployment import SingleServer
from .errors import ConnectFailed
from .link import Backoff, Link
from .lookout import Lookout, Sighting, newest
from .slots import Address
from .wire import Push, RedisOpener, RedisWire, SentinelSettings, Wire

__all__ = ["PrimaryOpener", "SentinelDeployment", "SentinelSource"]

logger: logging.Logger = logging.getLogger("aiopubsub.sentinel")

_PORT = "26379"  # https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/
_HOST = re.compile(r"(\[[^][]+\]|[^][:]+)(?::([0-9]{1,5}))?")

_TIMEOUT_S = 4.5  # of one try to connect; less than the link's, so that it is told what was tried
_ANSWER_TIMEOUT_S = 3.0  # of that, for the first sentinel to answer
_GRACE_S = 0.5  # at first, for the other ones: the quickest may be one that is cut off from them

_HOW = (
    "write redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/database]"
    "[?sentinel_username=…&sentinel_password=…], or rediss+sentinel://… for TLS, "
    "with special characters in names and passwords percent-encoded"
)


class SentinelSource:
    """What a client has to know to find its primary.

    Args:
        settings: Of the service, its servers and its sentinels.

    Attributes:
        target: For people; never credentials.
    """

    def __init__(self, settings: SentinelSettings) -> None:
        self.settings = settings
        self.target: str = f"the primary of {settings.service!r}"

    @classmethod
    def from_url(cls, url: str, name: str | None) -> SentinelSource:
        """By redis-py's rules for `redis://`, with several hosts, and the service before the database.

        Raises:
            ValueError: The URL cannot be read. The message does not repeat it: it may hold a password.
        """
        scheme, _, rest = url.partition("://")
        scheme = scheme.removesuffix("+sentinel")
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        credentials, at, hosts = authority.rpartition("@")
        service, _, database = path.rstrip("/").partition("/")
        if not service:
            raise ValueError(f"source: the URL names no service behind the sentinels; {_HOW}")
        if database and not (database.isascii() and database.isdecimal()):
            raise ValueError(f"source: behind the service there must be the number of a database; {_HOW}")
        options = dict(parse_qsl(query))
        names = {f"sentinel_{key}": key for key in ("username", "password")}
        of_sentinels = {names[key]: options.pop(key) for key in names.keys() & options.keys()}
        servers = _opener("standalone", f"{scheme}://{credentials}{at}server/{database}", options, name)
        of_sentinels |= {key: options[key] for key in options.keys() - {"db", "username", "password"}}
        sentinels = [
            _opener("sentinel", f"{scheme}://{_host(host, nth)}/", of_sentinels, name)
            for nth, host in enumerate(hosts.split(","), 1)
        ]
        return cls(SentinelSettings(unquote(service), servers, sentinels))


class PrimaryOpener:
    """Opens wires to the primary of a service.

    Args:
        source: The service, its servers and sentinels.
        leave: Called when connections that were opened until now are to be given up; why.
        heartbeat: Seconds: how often each sentinel is asked; a silent one is given up after two.
        backoff: Waits between tries to connect to a sentinel.
    """

    def __init__(
        self, source: SentinelSource, leave: Callable[[str], None], *, heartbeat: float, backoff: Backoff
    ) -> None:
        self.target: str = source.target
        self._settings = source.settings
        self._leave = leave
        self._sentinels = [
            _Sentinel(opener, source.settings, self._on_news, heartbeat=heartbeat, backoff=backoff)
            for opener in source.settings.sentinels
        ]
        self._primary: Sighting | None = None  # believed last, whether or not it is said just now
        self._tries: set[anyio.CancelScope] = set()  # to connect to it
        self._news = asyncio.Event()

    async def open(self) -> Wire:
        for sentinel in self._sentinels:
            sentinel.link.open()
        wire: Wire | None = None
        address: Address | None = None
        try:
            with anyio.fail_after(_TIMEOUT_S):
                while wire is None:
                    address = await self._find()
                    wire = await self._open_at(address)
        except TimeoutError:
            raise self._failed(address, f"no answer within {_TIMEOUT_S:g} s") from None
        return wire

    def close(self) -> None:
        """Leave the sentinels, now."""
        for sentinel in self._sentinels:
            sentinel.link.close()

    async def aclose(self) -> None:
        """Leave them, and wait until that is done. Never hangs; cancelling it leaves nothing over."""
        self.close()
        await asyncio.gather(*(sentinel.link.aclose() for sentinel in self._sentinels))

    # -- inside ------------------------------------------------------------------------------------

    async def _find(self) -> Address:
        """Where the primary is, as the sentinels say now.

        Raises:
            ConnectFailed: None of them says anything that can be believed.
        """
        is_first = self._primary is None
        with anyio.move_on_after(_ANSWER_TIMEOUT_S):
            while self._said() is None and self._have_pending():
                await self._news.wait()
            if is_first:
                with anyio.move_on_after(_GRACE_S):
                    while self._have_pending():
                        await self._news.wait()
        said = self._said()
        if said is not None:
            return said.address
        reasons = "; ".join(f"{sentinel.target}: {sentinel.trouble}" for sentinel in self._sentinels)
        permanent = any(s.is_refusing for s in self._sentinels) if is_first else self._are_closed()
        raise ConnectFailed(self.target, f"no sentinel says where it is: {reasons}", permanent)

    async def _open_at(self, address: Address) -> Wire | None:
        """A wire to what is the primary; `None` if another server became it meanwhile."""
        opener = self._settings.servers.at(Address(self._settings.host or address.host, address.port))
        wire: RedisWire | None = None
        with anyio.CancelScope() as moved:
            self._tries.add(moved)
            try:
                wire = await opener.open()
            except ConnectFailed as error:
                if not moved.cancel_called:
                    raise self._failed(address, error.reason, error.permanent) from error
            finally:
                self._tries.remove(moved)
        if wire is None:
            return None
        if moved.cancel_called:  # too late
            wire.abort()
            return None
        if wire.is_replica:
            wire.abort()
            raise self._failed(address, "it answers that it is a replica")
        return wire

    def _failed(self, address: Address | None, reason: str, permanent: bool = False) -> ConnectFailed:
        where = "" if address is None else f"the sentinels say it is {address}: "
        return ConnectFailed(self.target, where + reason, permanent)

    def _said(self) -> Sighting | None:
        said = (sentinel.lookout.sighting for sentinel in self._sentinels)
        return newest(filter(None, said), self._primary, len(self._sentinels))

    def _have_pending(self) -> bool:
        """Whether one of them may still say something."""
        return any(s.lookout.sighting is None and not s.is_decided for s in self._sentinels)

    def _are_closed(self) -> bool:
        """Whether none of them will ever say anything: their passwords were changed, perhaps."""
        return all(s.failure is not None and s.failure.permanent for s in self._sentinels)

    def _on_news(self) -> None:
        """A sentinel has said something, or has gone."""
        self._news.set()
        self._news = asyncio.Event()
        said, before = self._said(), self._primary
        if said is not None:
            self._primary = said
            if before is not None and said.address != before.address:
                for scope in self._tries:
                    scope.cancel()
                self._leave(f"the primary is {said.address} now, and no longer {before.address}")
        elif self._are_closed():  # nobody would tell us of a failover
            self._leave("every sentinel refuses us")


class SentinelDeployment(SingleServer):
    """One server at a time: the primary, found through sentinels; links as those of a `SingleServer`."""

    def __init__(self, source: SentinelSource, *, heartbeat: float, backoff: Backoff) -> None:
        self._primary = PrimaryOpener(source, self._leave, heartbeat=heartbeat, backoff=backoff)
        super().__init__(self._primary, heartbeat=heartbeat, backoff=backoff)

    async def aclose(self) -> None:
        self._primary.close()  # before the first await, where this can be cancelled
        await super().aclose()
        await self._primary.aclose()

    def _leave(self, reason: str) -> None:
        """All links lead to what was the primary until now, or try to; they are to try the new one soon."""
        for link in self.links().values():
            link.leave(reason)
            link.hurry()


class _Sentinel:
    """One sentinel: a standing link, which opens its wires through this."""

    def __init__(
        self,
        opener: RedisOpener,
        settings: SentinelSettings,
        on_news: Callable[[], None],
        *,
        heartbeat: float,
        backoff: Backoff,
    ) -> None:
        self.target = opener.target
        self.failure: ConnectFailed | None = None  # of the last try to connect
        self.lookout = Lookout(settings.service, Push, self._on_answer, settings.min_others)
        self.link = Link(self, self.lookout, role="asks a sentinel", heartbeat=heartbeat, backoff=backoff)
        self._opener = opener
        self._timeout_s = heartbeat  # of one try to connect: a failover is heard within two of them
        self._on_news = on_news
        self._told: str | None = None  # of its trouble, in the log

    @property
    def trouble(self) -> str:
        """Why it does not say where the primary is, or is not believed."""
        if self.failure is not None:
            return self.failure.reason
        outdated = "it says what was true before a failover, and so few others can be heard"
        return self.lookout.trouble or (outdated if self.lookout.sighting else "no answer in time")

    @property
    def is_decided(self) -> bool:
        """Whether it has answered, or could not be connected to."""
        return self.failure is not None or self.lookout.trouble is not None

    @property
    def is_refusing(self) -> bool:
        """Whether it has answered, but does not say it."""
        return self.lookout.trouble is not None if self.failure is None else self.failure.permanent

    async def open(self) -> Wire:
        try:
            with anyio.fail_after(self._timeout_s):
                wire = await self._opener.open()
        except ConnectFailed as error:
            self.failure = error
        except TimeoutError:
            self.failure = ConnectFailed(self.target, f"no answer within {self._timeout_s:g} s")
        else:
            self.failure = None
            return wire
        self._on_news()
        raise self.failure

    def _on_answer(self) -> None:
        """Its link logs what it can't connect for; this is what it says."""
        trouble = self.lookout.trouble
        if trouble is None and self.lookout.deaf is not None:
            trouble = f"{self.lookout.deaf} (it does not tell us of failovers, so they are asked for)"
        if trouble is not None and trouble != self._told:
            logger.warning("sentinel %s: %s", self.target, trouble)
        self._told = trouble
        self._on_news()


def _opener(mode: str, url: str, options: dict[str, str], name: str | None) -> RedisOpener:
    try:
        return RedisOpener.from_url(f"{url}?{urlencode(options)}", name, mode)
    except ValueError:
        raise ValueError(f"source: the URL cannot be read; {_HOW}") from None


def _host(text: str, nth: int) -> str:
    """Host and port of a sentinel."""
    match = _HOST.fullmatch(text)
    if match is None or not 0 < int(match[2] or _PORT) < 65536:
        raise ValueError(f"source: number {nth} of the sentinels is no host[:port]; {_HOW}")
    return f"{match[1]}:{match[2] or _PORT}"
