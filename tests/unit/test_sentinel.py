"""Finding a primary and leaving it, in virtual time: bounds come out exact."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from aiopubsub.dialogue import Command
from aiopubsub.errors import ConnectFailed, ErrorReply
from aiopubsub.link import Backoff, State
from aiopubsub.sentinel import PrimaryOpener, SentinelDeployment, SentinelSource
from aiopubsub.slots import Address
from aiopubsub.wire import Push, SentinelSettings
from tests.unit.fakes import FakeWire
from tests.virtual_time import run

HEARTBEAT = 4.0
QUICK = Backoff(0.5, 0.5)
DOWN = ConnectFailed("s:1", "connection refused")
WRONGPASS = ConnectFailed("s:1", "WRONGPASS", permanent=True)


def now() -> float:
    return asyncio.get_running_loop().time()


class SentinelWire(FakeWire):
    """A connection to a sentinel, which answers in the next turn, unless it is stalled."""

    def __init__(self, sentinel: FakeSentinel) -> None:
        super().__init__()
        self._sentinel = sentinel

    def write(self, commands: Iterable[Command]) -> None:
        super().write(commands)
        loop = asyncio.get_running_loop()
        for command in self.writes[-1]:
            reply = self._sentinel.answer(command)
            if not self._sentinel.is_stalled and command[0] != b"SUBSCRIBE":
                loop.call_soon(self.say, reply)


class FakeSentinel:
    """Opens connections to a sentinel, which says what a test wants."""

    def __init__(self, number: int) -> None:
        self.target = f"s{number}:26379"
        self.epoch = 1
        self.primary: tuple[str, int] | None = ("a", 1)
        self.is_stalled = False
        self.failure: ConnectFailed | None = None
        self.hole: Awaitable[None] | None = None  # swallows the next try
        self.wires: list[SentinelWire] = []
        self.tries = 0

    async def open(self) -> SentinelWire:
        self.tries += 1
        hole, self.hole = self.hole, None
        if hole is not None:
            await hole
        if self.failure is not None:
            raise self.failure
        wire = SentinelWire(self)
        self.wires.append(wire)
        return wire

    def answer(self, command: Command) -> Any:
        if command[0] == b"HELLO":
            return {b"proto": 3}
        if command[1] == b"MASTER" and self.primary is not None:
            return {b"config-epoch": b"%d" % self.epoch, b"num-other-sentinels": b"2"}
        if command[1] == b"MASTER":
            return ErrorReply("ERR No such master with that name")
        return None if self.primary is None else [self.primary[0].encode(), b"%d" % self.primary[1]]

    def switch(self, name: str, *, says_so: bool = True) -> None:
        """After a failover."""
        self.epoch += 1
        self.primary = (name, 1)
        if says_so:
            self.wires[-1].say(Push([b"message", b"+switch-master", b"svc a 1 b 1"]))

    def die(self) -> None:
        self.failure = DOWN
        self.wires[-1].lose()


class ServerWire(FakeWire):
    """A connection to a server."""

    def __init__(self, host: str, *, is_replica: bool) -> None:
        super().__init__(answers_pings=True)
        self.host = host
        self.is_replica = is_replica


class FakeServers:
    """Opens connections to servers: `how` says what happens at each host."""

    def __init__(self) -> None:
        self.how: dict[str, Callable[[], Awaitable[Any]] | ConnectFailed] = {}
        self.replicas: set[str] = set()
        self.opened: list[ServerWire] = []
        self.tried: list[str] = []

    def at(self, address: Address) -> FakeServers._At:
        return self._At(self, address)

    class _At:
        def __init__(self, servers: FakeServers, address: Address) -> None:
            self._servers, self._host = servers, address.host
            self.target = str(address)

        async def open(self) -> ServerWire:
            servers = self._servers
            servers.tried.append(self._host)
            how = servers.how.get(self._host)
            if isinstance(how, ConnectFailed):
                raise how
            if how is not None:
                await how()
            wire = ServerWire(self._host, is_replica=self._host in servers.replicas)
            servers.opened.append(wire)
            return wire


class World:
    """Three sentinels, some servers, and an opener."""

    def __init__(self, count: int = 3, **settings: Any) -> None:
        self.sentinels = [FakeSentinel(number) for number in range(1, count + 1)]
        self.servers = FakeServers()
        options: Any = {"service": "svc", "servers": self.servers, "sentinels": self.sentinels}
        self.source = SentinelSource(SentinelSettings(**options | settings))
        self.left: list[str] = []  # why, each time that all connections are to be given up
        self.opener = PrimaryOpener(self.source, self.left.append, heartbeat=HEARTBEAT, backoff=QUICK)

    async def open(self) -> ServerWire:
        return cast("ServerWire", await self.opener.open())

    async def fails(self) -> ConnectFailed:
        with pytest.raises(ConnectFailed) as caught:
            await self.opener.open()
        return caught.value


@asynccontextmanager
async def world(count: int = 3, **settings: Any) -> Any:
    """A world that is left at the end."""
    it = World(count, **settings)
    try:
        yield it
    finally:
        await it.opener.aclose()


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def turns() -> None:
    """What is to happen at once has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


# -- finding it ------------------------------------------------------------------------------------


def test_it_is_opened_where_the_sentinels_say() -> None:
    """At once, if all of them answer."""

    async def main() -> None:
        async with world() as it:
            wire = await it.open()
            assert (wire.host, wire.is_aborted, now()) == ("a", False, 0)
            assert it.left == []

    run(main())


def test_a_host_of_your_own() -> None:
    """`force_master_ip` of redis-py: the port is the sentinels', the host is not."""

    async def main() -> None:
        async with world(host="far") as it:
            assert (await it.open()).host == "far"
            for sentinel in it.sentinels:
                sentinel.switch("b")
            await turns()
            assert len(it.left) == 1

    run(main())


@pytest.mark.parametrize("is_stalled", [True, False])
def test_one_that_is_silent_is_waited_for_once_and_not_for_long(is_stalled: bool) -> None:
    """At first it may be the only one that knows the latest; later the others have told for long."""

    async def main() -> None:
        async with world() as it:
            if is_stalled:
                it.sentinels[0].is_stalled = True
            else:
                it.sentinels[0].failure = DOWN
            await it.open()
            assert now() == (0.5 if is_stalled else 0)
            await it.open()
            assert now() == (0.5 if is_stalled else 0)

    run(main())


def test_the_newest_configuration_wins() -> None:
    """A sentinel that is cut off from the others tells an old one, though it may be the quickest."""

    async def main() -> None:
        async with world() as it:
            it.sentinels[1].switch("b", says_so=False)
            assert (await it.open()).host == "b"

    run(main())


def test_no_sentinel_is_there() -> None:
    """Each is named with its reason; it may be tried again."""

    async def main() -> None:
        async with world() as it:
            for sentinel in it.sentinels:
                sentinel.failure = DOWN
            error = await it.fails()
            assert (error.permanent, now()) == (False, 0)
            assert str(error) == (
                "cannot connect to the primary of 'svc': no sentinel says where it is: "
                "s1:26379: connection refused; s2:26379: connection refused; s3:26379: connection refused "
                "(check that the server is running and can be reached from here)"
            )
            it.sentinels[2].failure = None
            await asyncio.sleep(1)
            assert (await it.open()).host == "a"

    run(main())


def test_no_sentinel_answers() -> None:
    """They are waited for a while."""

    async def main() -> None:
        async with world() as it:
            for sentinel in it.sentinels:
                sentinel.is_stalled = True
            error = await it.fails()
            assert (error.permanent, now()) == (False, 3)
            assert "s1:26379: no answer in time; s2:26379: no answer in time" in str(error)

    run(main())


def test_an_unknown_service() -> None:
    """At first that is a mistake, and is told at once; a sentinel that is down could not have helped."""

    async def main() -> None:
        async with world() as it:
            it.sentinels[0].primary = it.sentinels[1].primary = None
            it.sentinels[2].failure = DOWN
            error = await it.fails()
            assert (error.permanent, now()) == (True, 0)
            assert "s1:26379: it watches no service 'svc'; s2" in error.reason
            assert "s3:26379: connection refused" in error.reason

    run(main())


def test_a_service_that_is_forgotten_later() -> None:
    """Sentinels that are set up anew know it again in a moment."""

    async def main() -> None:
        async with world() as it:
            await it.open()
            for sentinel in it.sentinels:
                sentinel.primary = None
            await asyncio.sleep(HEARTBEAT + 0.1)
            assert not (await it.fails()).permanent
            assert it.left == []
            for sentinel in it.sentinels:
                sentinel.epoch, sentinel.primary = 0, ("b", 1)
            await asyncio.sleep(HEARTBEAT + 0.1)
            assert (await it.open()).host == "b"
            assert len(it.left) == 1

    run(main())


@pytest.mark.parametrize("others_are", ["wrong too", "down", "stalled"])
def test_a_wrong_password_of_the_sentinels(others_are: str) -> None:
    """It is told, and not tried again."""

    async def main() -> None:
        async with world() as it:
            it.sentinels[0].failure = WRONGPASS
            for sentinel in it.sentinels[1:]:
                sentinel.is_stalled = others_are == "stalled"
                sentinel.failure = {"wrong too": WRONGPASS, "down": DOWN}.get(others_are)
            error = await it.fails()
            assert (error.permanent, now()) == (True, 3 if others_are == "stalled" else 0)
            assert "s1:26379: WRONGPASS" in str(error)
            await asyncio.sleep(100)
            assert it.sentinels[0].tries == 1

    run(main())


def test_one_that_refuses_does_no_harm() -> None:
    """The others say where it is."""

    async def main() -> None:
        async with world() as it:
            it.sentinels[0].failure = WRONGPASS
            it.sentinels[1].primary = None
            assert (await it.open()).host == "a"

    run(main())


def test_what_speaks_against_a_sentinel_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Once for each change."""

    async def main() -> None:
        async with world() as it:
            it.sentinels[1].primary = None
            await it.open()
            await asyncio.sleep(10 * HEARTBEAT)

    run(main())
    assert [record.getMessage() for record in caplog.records if record.name == "aiopubsub.sentinel"] == [
        "sentinel s2:26379: it watches no service 'svc'"
    ]


def test_the_primary_cannot_be_reached() -> None:
    """The error says what the sentinels have announced."""

    async def main() -> None:
        async with world() as it:
            it.servers.how["a"] = ConnectFailed("a:1", "no route to host")
            assert str(await it.fails()) == (
                "cannot connect to the primary of 'svc': the sentinels say it is a:1: no route to host "
                "(check that the server is running and can be reached from here)"
            )
            it.servers.how["a"] = forever
            error = await it.fails()
            assert now() == 4.5
            assert "the sentinels say it is a:1: no answer within 4.5 s" in str(error)
            it.servers.how["a"] = WRONGPASS
            assert (await it.fails()).permanent

    run(main())


def test_the_primary_says_that_it_is_a_replica() -> None:
    """It is not used; in a moment the sentinels will know better."""

    async def main() -> None:
        async with world() as it:
            it.servers.replicas.add("a")
            error = await it.fails()
            assert not error.permanent
            assert "the sentinels say it is a:1: it answers that it is a replica" in str(error)
            assert it.servers.opened[0].is_aborted
            it.servers.replicas.clear()
            await it.open()

    run(main())


# -- leaving it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_demoted_primary_is_left_at_once(number: int) -> None:
    """Whichever sentinel says it first; connections to the new one stay, also when the others follow."""

    async def main() -> None:
        async with world() as it:
            await it.open()
            it.sentinels[number].switch("b")
            await turns()
            assert it.left == ["the primary is b:1 now, and no longer a:1"]
            assert (await it.open()).host == "b"
            for sentinel in it.sentinels:
                if sentinel.epoch == 1:
                    sentinel.switch("b")
            await turns()
            assert (len(it.left), now()) == (1, 0)

    run(main())


def test_an_event_that_is_lost_is_made_up_for_within_a_heartbeat() -> None:
    """Each sentinel is asked again when it has been silent for so long."""

    async def main() -> None:
        async with world() as it:
            await it.open()
            await asyncio.sleep(2.5 * HEARTBEAT)
            it.sentinels[2].switch("b", says_so=False)
            await asyncio.sleep(0.5 * HEARTBEAT - 0.01)
            assert it.left == []
            await asyncio.sleep(0.02)
            assert len(it.left) == 1

    run(main())


def test_a_sentinel_that_died_is_asked_when_it_is_back() -> None:
    """All were gone when there was a failover: nobody says so until one can be reached again."""

    async def main() -> None:
        async with world() as it:
            await it.open()
            for sentinel in it.sentinels:
                sentinel.die()
                sentinel.switch("b", says_so=False)
            await asyncio.sleep(10)
            assert it.left == [], "without a sentinel there is no failover that we could know of"
            it.sentinels[0].failure = None
            await asyncio.sleep(0.5)
            assert len(it.left) == 1

    run(main())


def test_a_lone_voice_from_the_past_is_not_believed() -> None:
    """The only sentinel that can be heard was cut off before the failover: better none than the old one."""

    async def main() -> None:
        async with world() as it:
            it.sentinels[1].switch("b", says_so=False)
            it.sentinels[2].switch("b", says_so=False)
            wire = await it.open()
            it.left.clear()
            for sentinel in it.sentinels[1:]:
                sentinel.die()
            await turns()
            assert (wire.host, it.left) == ("b", [])
            error = await it.fails()
            assert not error.permanent
            assert "s1:26379: it says what was true before a failover" in str(error)

    run(main())


def test_a_try_that_hangs_is_broken_off() -> None:
    """The machine of the old primary is gone, so nothing refuses the connection: it is not waited for."""

    async def main() -> None:
        async with world() as it:
            it.servers.how["a"] = forever
            opening = asyncio.create_task(it.open())
            await asyncio.sleep(1)
            it.sentinels[0].switch("b")
            assert ((await opening).host, now()) == ("b", 1)

    run(main())


def test_a_try_that_succeeds_too_late() -> None:
    """It was broken off, and gives a connection all the same: that is not kept."""

    async def stubborn() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            cast("asyncio.Task[Any]", asyncio.current_task()).uncancel()

    async def main() -> None:
        async with world() as it:
            it.servers.how["a"] = stubborn
            opening = asyncio.create_task(it.open())
            await asyncio.sleep(1)
            it.sentinels[0].switch("b")
            assert (await opening).host == "b"
            assert [wire.is_aborted for wire in it.servers.opened] == [True, False]

    run(main())


def test_a_try_that_fails_while_it_is_broken_off() -> None:
    """What becomes of it is of no interest: the new primary is connected to."""

    async def refuse() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            cast("asyncio.Task[Any]", asyncio.current_task()).uncancel()
            raise DOWN from None

    async def main() -> None:
        async with world() as it:
            it.servers.how["a"] = refuse
            opening = asyncio.create_task(it.open())
            await asyncio.sleep(1)
            it.sentinels[0].switch("b")
            assert (await opening).host == "b"

    run(main())


def test_a_sentinel_that_hangs_is_tried_again() -> None:
    """A black hole swallows the handshake: a try takes a heartbeat, not longer."""

    async def main() -> None:
        async with world(count=1) as it:
            await it.open()
            it.sentinels[0].switch("b", says_so=False)
            it.sentinels[0].hole = forever()
            it.sentinels[0].wires[-1].lose()
            await asyncio.sleep(HEARTBEAT + 1.01)  # and two waits between tries
            assert len(it.left) == 1

    run(main())


def test_sentinels_that_refuse_us_later() -> None:
    """Nobody would tell us of a failover any more, so that is told."""

    async def main() -> None:
        async with world() as it:
            await it.open()
            for number, sentinel in enumerate(it.sentinels, 1):
                assert it.left == []
                sentinel.failure = WRONGPASS
                sentinel.wires[-1].lose()
                await asyncio.sleep(number)
            assert it.left == ["every sentinel refuses us"]
            assert (await it.fails()).permanent

    run(main())


# -- the deployment --------------------------------------------------------------------------------


def test_links_come_to_the_new_primary_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long they would have waited after so many failures: as after the first."""
    monkeypatch.setattr(random, "random", lambda: 1.0)

    async def main() -> None:
        it = World()
        deployment = SentinelDeployment(it.source, heartbeat=HEARTBEAT, backoff=Backoff(0.05, 60.0))
        try:
            link = deployment.commanding()
            await link.ready(None)
            it.servers.how["a"] = DOWN
            it.servers.opened[0].lose()
            await asyncio.sleep(100)
            assert link.state is State.WAITING
            it.sentinels[1].switch("b")
            await link.ready(None)
            assert now() == 100 + 0.05
            it.sentinels[1].switch("c")
            await turns()
            assert link.state is State.WAITING
            await link.ready(None)
            assert now() == pytest.approx(100 + 0.1)
            assert [wire.host for wire in it.servers.opened] == ["a", "b", "c"]
            assert [wire.is_aborted for wire in it.servers.opened] == [True, True, False]
            assert deployment.links().keys() == {"commands", "listens"}
        finally:
            await deployment.aclose()
        assert all(wire.is_aborted for sentinel in it.sentinels for wire in sentinel.wires)

    run(main())


# -- the URL ---------------------------------------------------------------------------------------


def settings_of(opener: Any) -> dict[str, Any]:
    """What counts of what redis-py is given."""
    names = ("host", "port", "db", "username", "password", "ssl_ca_certs", "socket_timeout", "client_name")
    return {name: opener._settings[name] for name in names if name in opener._settings}


def test_a_url_with_everything() -> None:
    """Servers and sentinels have credentials of their own; TLS and time-outs are for both."""
    source = SentinelSource.from_url(
        "rediss+sentinel://us%40er:p%2Fw@one,two:1,[::1]:2,[fe80::1]/my%20svc/3"
        "?sentinel_username=watch&sentinel_password=s%26w&ssl_ca_certs=ca.pem&socket_timeout=2.5",
        "me",
    )
    settings = source.settings
    both = {"ssl_ca_certs": "ca.pem", "socket_timeout": 2.5, "client_name": "me"}
    own = {"username": "watch", "password": "s&w"}
    assert (settings.service, settings.min_others, settings.host) == ("my svc", 0, None)
    assert source.target == "the primary of 'my svc'"
    of_servers = {"host": "h", "port": 9, "db": 3, "username": "us@er", "password": "p/w"}
    assert settings_of(settings.servers.at(Address("h", 9))) == of_servers | both
    assert [settings_of(sentinel) for sentinel in settings.sentinels] == [
        {"host": "one", "port": 26379, **own, **both},
        {"host": "two", "port": 1, **own, **both},
        {"host": "::1", "port": 2, **own, **both},
        {"host": "fe80::1", "port": 26379, **own, **both},
    ]
    classes = {opener._class.__name__ for opener in [settings.servers, *settings.sentinels]}
    assert classes == {"SSLConnection"}


@pytest.mark.parametrize("url", ["redis+sentinel://h/s", "redis+sentinel://h/s/", "redis+sentinel://h/s/?"])
def test_a_url_with_nothing_but_the_least(url: str) -> None:
    """One sentinel at the usual port; no credentials."""
    settings = SentinelSource.from_url(url, None).settings
    assert settings.service == "s"
    assert settings_of(settings.servers.at(Address("h", 9))) == {"host": "h", "port": 9}
    assert [settings_of(sentinel) for sentinel in settings.sentinels] == [{"host": "h", "port": 26379}]


def test_no_credentials_of_servers_reach_a_sentinel() -> None:
    """Wherever in the URL they stand."""
    url = "redis+sentinel://:one@h/s?username=u&password=two&db=4"
    settings = SentinelSource.from_url(url, None).settings
    assert settings_of(settings.sentinels[0]) == {"host": "h", "port": 26379}
    assert settings_of(settings.servers)["db"] == 4


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("h:1", "the URL names no service"),
        ("h:1/", "the URL names no service"),
        ("h:1?sentinel_password=S3CRET", "the URL names no service"),
        ("/svc", "number 1 of the sentinels is no host"),
        ("h,/svc", "number 2 of the sentinels is no host"),
        (":S3CRET@/svc", "number 1 of the sentinels is no host"),
        ("h:port/svc", "number 1 of the sentinels is no host"),
        ("h,i:0/svc", "number 2 of the sentinels is no host"),
        ("h,i,j:65536/svc", "number 3 of the sentinels is no host"),
        ("::1/svc", "number 1 of the sentinels is no host"),
        ("u:S3CR@ET@h:1:2/svc", "number 1 of the sentinels is no host"),
        ("h/svc/one", "there must be the number of a database"),
        ("h/svc/-1", "there must be the number of a database"),
        ("h/svc/1/2", "there must be the number of a database"),
        (":S3CRET@h/svc?socket_timeout=soon", "the URL cannot be read"),
        (":S3CRET@h/svc?db=one", "the URL cannot be read"),
    ],
)
def test_a_url_that_cannot_be_read(rest: str, words: str) -> None:
    """It says what is wrong and what would do, and repeats nothing."""
    with pytest.raises(ValueError, match=words) as caught:
        SentinelSource.from_url("redis+sentinel://" + rest, None)
    assert "write redis+sentinel://[user:password@]host[:port]" in str(caught.value)
    assert "S3CR" not in str(caught.value)
    assert caught.value.__cause__ is None
