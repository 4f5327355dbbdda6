"""What only a real server can show: connections, other clients, refusals, sources."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio
import trustme

import aiopubsub as ps
from aiopubsub.testing import Proxy, Server, find_redis, free_port
from tests.conftest import FINDERS, LONG, Place, missing, start

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(real_place: Place) -> AsyncIterator[ps.Client]:
    """A client of a real server."""
    async with ps.Client(real_place.url, name="the-service") as client:
        yield client


async def take(sub: ps.Subscriber, count: int) -> list[ps.Message]:
    async with asyncio.timeout(10):
        return [await anext(sub) for _ in range(count)]


async def lost(client: ps.Client) -> None:
    """Let the event loop turn until the client has noticed."""
    async with asyncio.timeout(10):
        while client.stats.links["commands"].state == "live":  # no event tells
            await asyncio.sleep(0)


def redis_cli(place: Place) -> list[str]:
    """The command that talks to the server, from the same package as the server of Redis 7."""
    path = Path(find_redis()).with_name("redis-cli")
    if not path.exists():
        missing(f"no redis-cli beside {find_redis()}")
    assert place.server is not None
    return [str(path), "-p", str(place.server.port)]


# -- connections ------------------------------------------------------------------------------------


async def test_a_hundred_subscribers_and_a_thousand_publishes_take_two_connections(
    client: ps.Client, real_place: Place
) -> None:
    """One client has one connection that listens and one that commands, whatever goes on."""
    pub = ps.Publisher(client)
    subs = [ps.Subscriber(client, "many") for _ in range(100)]
    await asyncio.gather(*(sub.__aenter__() for sub in subs))
    receipts = await asyncio.gather(*(pub.publish("many", b"%d" % n) for n in range(1000)))
    assert receipts == [ps.Receipt(1)] * 1000
    with real_place.admin() as admin:
        mine = [c for c in admin.client_list() if c["name"] == "the-service"]
        assert len(mine) == 2
        assert admin.pubsub_numsub("many") == [("many", 1)]
    for sub in subs:
        assert [m.data for m in await take(sub, 1000)] == [b"%d" % n for n in range(1000)]
    await asyncio.gather(*(sub.aclose() for sub in subs))
    with real_place.admin() as admin:
        assert admin.pubsub_numsub("many") == [("many", 0)]


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])
@pytest.mark.parametrize("delay_s", [0, 0.003], ids=["no delay", "3 ms"])
async def test_publish_right_after_subscribe_misses_nothing(real_place: Place, delay_s: float) -> None:
    """`async with` returns when the server has confirmed: 0 of 10 000 publishes are missed; 0 of 1 000
    in short."""
    assert real_place.server is not None
    async with (
        Proxy(real_place.server.port, delay_s=delay_s) as proxy,
        ps.Client(proxy.url) as far,
        ps.Publisher(real_place.url) as pub,
    ):

        async def rounds(worker: int) -> int:
            missed = 0
            for n in range(100 if LONG else 10):
                async with ps.Subscriber(far, f"{worker}.{n}"):
                    missed += (await pub.publish(f"{worker}.{n}", b"x")).receivers != 1
            return missed

        assert sum(await asyncio.gather(*map(rounds, range(100)))) == 0


async def test_a_lost_connection_is_a_gap_and_no_end(client: ps.Client, real_place: Place) -> None:
    """After CLIENT KILL the subscriber is subscribed again, and says where messages may be missing."""
    pub = ps.Publisher(client)
    async with ps.Subscriber(client, "a", ps.Pattern("b*")) as sub:
        await pub.publish("a", b"before")
        await sub.subscribe("fence")
        with real_place.admin() as admin:
            admin.client_kill_filter(_type="pubsub")
        async with asyncio.timeout(10):
            events = sub.events()
            before, gap = await anext(events), await anext(events)
            assert (await pub.publish("a", b"after")).receivers == 1
            assert (await pub.publish("bb", b"after")).receivers == 1
            after = [await anext(events), await anext(events)]
    assert isinstance(before, ps.Message)
    assert isinstance(gap, ps.Gap)
    assert (gap.reason, gap.missed) == (ps.GapReason.RECONNECTED, None)
    assert set(gap.channels) == {"a", "b*", "fence"}
    assert gap.started <= gap.ended
    assert [m.channel for m in after if isinstance(m, ps.Message)] == ["a", "bb"]
    assert sub.stats.reconnects == 1


async def test_a_publish_waits_for_the_connection_to_come_back(real_place: Place) -> None:
    """While there is no connection publishes wait, and go out in order when it is back."""
    assert real_place.server is not None
    async with Proxy(real_place.server.port) as proxy, ps.Client(proxy.url) as client:
        pub = ps.Publisher(client)
        async with ps.Subscriber(real_place.url, "c") as sub:
            proxy.cut()
            await lost(client)
            await asyncio.gather(*(pub.publish("c", b"%d" % n) for n in range(100)))
            assert [int(m.data) for m in await take(sub, 100)] == list(range(100))


async def test_not_sent_after_the_timeout(real_place: Place) -> None:
    """A publish that found no connection within its timeout never left this process."""
    server = start(real_place.name)
    try:
        async with ps.Client(server.url) as client:
            pub = ps.Publisher(client, timeout=0.2)
            server.kill()
            await lost(client)
            with pytest.raises(ps.NotSent, match="there was no connection for the whole timeout"):
                await pub.publish("c", b"x")
            assert client.stats.links["commands"].error is not None
    finally:
        server.stop()


# -- other clients ------------------------------------------------------------------------------------

PAYLOADS = [b"hello", b"", b"\x00\xff\xfe\x80 \r\n binary", "grüße 💬".encode()]


@pytest.mark.parametrize("channel", ["plain", "grüße 💬"])
@pytest.mark.parametrize("payload", PAYLOADS, ids=["text", "empty", "binary", "utf-8"])
async def test_redis_cli_publishes_to_us(
    client: ps.Client, real_place: Place, channel: str, payload: bytes
) -> None:
    """What `redis-cli PUBLISH` sends arrives byte for byte."""
    async with ps.Subscriber(client, channel, ps.Pattern(channel[:3] + "*")) as sub:
        command = [*redis_cli(real_place), "-x", "publish", channel]
        done = await asyncio.to_thread(
            subprocess.run, command, input=payload, capture_output=True, check=True
        )
        assert done.stdout.strip() == b"2"
        assert [m.data for m in await take(sub, 2)] == [payload, payload]


@pytest.mark.parametrize("channel", ["plain", "grüße 💬"])
@pytest.mark.parametrize("payload", PAYLOADS, ids=["text", "empty", "binary", "utf-8"])
async def test_we_publish_to_redis_cli(
    client: ps.Client, real_place: Place, channel: str, payload: bytes
) -> None:
    """What we publish without headers `redis-cli SUBSCRIBE` shows byte for byte."""
    process = await asyncio.create_subprocess_exec(
        *redis_cli(real_place), "--raw", "subscribe", channel, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    name = channel.encode()
    try:
        async with asyncio.timeout(10):
            assert await process.stdout.readexactly(len(name) + 13) == b"subscribe\n" + name + b"\n1\n"
            assert await ps.Publisher(client).publish(channel, payload) == ps.Receipt(1)
            expected = b"message\n" + name + b"\n" + payload + b"\n"
            assert await process.stdout.readexactly(len(expected)) == expected
    finally:
        process.kill()
        await process.wait()


# -- refusals -----------------------------------------------------------------------------------------


@pytest.fixture(params=list(FINDERS))
def guarded(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with a password, an ACL user and no third database."""
    server = start(
        request.param,
        *("--requirepass", "hunter2", "--databases", "2"),
        *("--user", "limited", "on", ">s3cret", "+@all", "~*", "resetchannels", "&open.*"),
    )
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("credentials", "database", "words"),
    [
        ("", "", "HELLO must be called with the client already authenticated"),
        (":wr0ng@", "", "invalid username-password pair or user is disabled"),
        ("nobody:wr0ng@", "", "invalid username-password pair or user is disabled"),
        (":hunter2@", "/7", "DB index is out of range"),
    ],
)
async def test_a_server_that_refuses_is_quoted_at_once(
    guarded: Server, credentials: str, database: str, words: str
) -> None:
    """Wrong password, no password, unknown database: the server's words, no second try, no secret."""
    url = f"redis://{credentials}127.0.0.1:{guarded.port}{database}"
    for open_it in (ps.Client(url), ps.Publisher(url), ps.Subscriber(url, "c")):
        with pytest.raises(ps.ConnectFailed, match=words) as caught:
            async with asyncio.timeout(5):
                await open_it.__aenter__()
        assert caught.value.permanent
        assert "RESP3" not in str(caught.value)
        for secret in ("hunter2", "wr0ng"):
            assert secret not in str(caught.value) + repr(caught.value) + repr(open_it)


async def test_a_server_without_resp3_is_told_so() -> None:
    """Where HELLO is unknown the error says what is needed."""
    server = start("redis7", "--rename-command", "HELLO", "")
    try:
        with pytest.raises(ps.ConnectFailed, match=r"unknown command.*HELLO.*RESP3 is needed: Redis 6"):
            await ps.Client(server.url).__aenter__()
    finally:
        server.stop()


async def test_a_forbidden_channel_does_not_take_others_down(guarded: Server) -> None:
    """It is refused with the server's reason; the others of the same call are subscribed."""
    url = f"redis://limited:s3cret@127.0.0.1:{guarded.port}"
    async with ps.Client(url) as client:
        pub = ps.Publisher(client)
        with pytest.raises(ps.SubscribeRefused, match=r"'closed\.1': NOPERM") as caught:
            await ps.Subscriber(client, "open.0", "closed.1").__aenter__()
        assert set(caught.value.refused) == {"closed.1"}
        async with ps.Subscriber(client, "open.1") as sub:
            with pytest.raises(ps.SubscribeRefused):
                await sub.subscribe("open.2", "closed.2", ps.Pattern("*"), "open.3")
            for channel in ("open.1", "open.2", "open.3"):
                assert await pub.publish(channel, b"x") == ps.Receipt(1)
            assert [m.channel for m in await take(sub, 3)] == ["open.1", "open.2", "open.3"]
            assert [topic.name for topic in sub.topics] == ["open.1", "open.2", "open.3"]
            with pytest.raises(ps.PublishRefused, match=r"'closed\.1': NOPERM"):
                await pub.publish("closed.1", b"x")
            assert await pub.publish("open.0", b"x") == ps.Receipt(0)


async def test_a_refused_pattern_leaves_the_channel_of_the_same_name(guarded: Server) -> None:
    """A channel and a pattern that are spelled alike are two things: one is refused, one stays."""
    url = f"redis://limited:s3cret@127.0.0.1:{guarded.port}"
    async with ps.Client(url) as client, ps.Subscriber(client) as sub:
        with pytest.raises(ps.SubscribeRefused):
            await sub.subscribe("open.a", ps.Pattern("open.a"))
        assert sub.topics == (ps.Topic("open.a"),)
        assert await ps.Publisher(client).publish("open.a", b"x") == ps.Receipt(1)
        await sub.unsubscribe("open.a")
        assert await ps.Publisher(client).publish("open.a", b"x") == ps.Receipt(0)


# -- sources --------------------------------------------------------------------------------------------


async def meet(source: object, other: str) -> None:
    """Publish through one source, receive through the other."""
    async with ps.Subscriber(source, "c") as sub, ps.Publisher(other) as pub:  # type: ignore[arg-type]
        assert await pub.publish("c", b"x") == ps.Receipt(1)
        assert [m.data for m in await take(sub, 1)] == [b"x"]


async def test_a_redis_client_is_a_source(real_place: Place) -> None:
    """Its settings are copied, whatever it decodes or retries; it is neither used nor closed."""
    async with redis.asyncio.Redis.from_url(
        real_place.url, decode_responses=True, protocol=2, health_check_interval=1
    ) as mine:
        await meet(mine, real_place.url)
        assert await mine.ping() is True


async def test_a_unix_socket_is_a_source(real_place: Place) -> None:
    """`unix://` goes by redis-py's rules, the database included."""
    assert real_place.server is not None
    await meet(real_place.server.socket_url + "?db=1", real_place.url)


async def test_tls_is_a_source(tmp_path: Path) -> None:
    """`rediss://` encrypts and checks the certificate; one that is not trusted is refused."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    tls_port = free_port()
    server = start(
        "redis7",
        *("--tls-port", str(tls_port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", f"{tmp_path}/cert.pem", "--tls-key-file", f"{tmp_path}/key.pem"),
        *("--tls-ca-cert-file", f"{tmp_path}/ca.pem"),
    )
    try:
        url = f"rediss://127.0.0.1:{tls_port}"
        await meet(f"{url}?ssl_ca_certs={tmp_path}/ca.pem", server.url)
        async with ps.Client(f"{url}?ssl_ca_certs={tmp_path}/ca.pem") as client:
            big = b"x" * 3_000_000
            async with ps.Subscriber(client, "big") as sub:
                await ps.Publisher(client).publish_many("big", [big] * 3)
                assert [m.data for m in await take(sub, 3)] == [big] * 3
        with pytest.raises(ps.ConnectFailed, match="certificate verify failed"):
            await ps.Client(url, connect_timeout=0.5).__aenter__()
    finally:
        server.stop()
