"""Services behind Sentinel: sources, refusals, and what each of them is told."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis.asyncio
import trustme
from redis.asyncio.sentinel import Sentinel

import aiopubsub as ps
from aiopubsub.testing import Sentinels, free_port
from aiopubsub.testing.sentinel import SentinelServer, _ask
from tests.conftest import FINDERS, executable, start

pytestmark = pytest.mark.anyio

SERVERS, SENTINELS = "hunter2", "s3ntinel"
WRONG = "(WRONGPASS )?invalid username-password pair"  # redis-py 6 takes the code off
MAY_ASK = ("+sentinel|master", "+sentinel|get-master-addr-by-name")
MAY_LISTEN = ("+subscribe", "&+switch-master", "&+failover-state-reconf-slaves")


@pytest.fixture
def anyio_backend() -> object:
    """One event loop: the others are in the tests that all deployments share."""
    return ("asyncio", {"use_uvloop": False})


@pytest.fixture(scope="module")
def guarded() -> Iterator[Sentinels]:
    """A Valkey with one replica and two sentinels, and passwords everywhere."""
    with Sentinels(
        executable("valkey9"),
        replicas=1,
        sentinels=2,
        service="my.service",
        down_after_s=10,
        password=SERVERS,
        sentinel_password=SENTINELS,
    ) as guarded:
        yield guarded


def url(trio: Sentinels, of_servers: str = SERVERS, of_sentinels: str = SENTINELS, **parts: str) -> str:
    """The URL of a service, with passwords; or with other parts than the right ones."""
    hosts = parts.get("hosts") or ",".join(f"127.0.0.1:{each.port}" for each in trio.sentinels)
    service = parts.get("service") or trio.service
    return f"redis+sentinel://:{of_servers}@{hosts}/{service}/2?sentinel_password={of_sentinels}"


async def meets(source: str | redis.asyncio.Redis, other: str) -> None:
    """Publish through one source, receive through the other."""
    async with asyncio.timeout(10), ps.Subscriber(source, "c") as sub, ps.Publisher(other) as pub:
        assert await pub.publish("c", b"x") == ps.Receipt(1)
        assert (await anext(sub)).data == b"x"


async def refused(source: str | redis.asyncio.Redis, **options: float) -> ps.ConnectFailed:
    """Whoever opens it is told at once, and no secret is repeated anywhere."""
    client = ps.Client(source, **options)
    with pytest.raises(ps.ConnectFailed) as caught:
        async with asyncio.timeout(5):
            await client.__aenter__()
    return caught.value


# -- sources ---------------------------------------------------------------------------------------


async def test_passwords_of_servers_and_of_sentinels(guarded: Sentinels) -> None:
    """Each has its own; the database is the servers'."""
    async with ps.Client(url(guarded)) as client:
        await meets(url(guarded), url(guarded))
        pub = ps.Publisher(client)
        await pub.publish(ps.Topic("kept", history=ps.History(size=10)), b"x")
        with guarded.admin(guarded.primary) as admin:
            assert admin.info("keyspace").keys() == {"db2"}


async def test_a_client_of_redis_py_is_a_source(guarded: Sentinels) -> None:
    """What `Sentinel.master_for` makes: its settings are copied, it is neither used nor closed."""
    hosts = [("127.0.0.1", sentinel.port) for sentinel in guarded.sentinels]
    manager = Sentinel(hosts, sentinel_kwargs={"password": SENTINELS}, min_other_sentinels=1)
    mine = manager.master_for(guarded.service, password=SERVERS, db=2, protocol=2, decode_responses=True)
    await meets(mine, url(guarded))
    assert await mine.ping() is True
    with pytest.raises(
        ValueError, match=r"^source: a client of replicas; give one that `Sentinel\.master_for`"
    ):
        ps.Client(manager.slave_for(guarded.service, password=SERVERS))
    lonely = Sentinel(hosts, sentinel_kwargs={"password": SENTINELS}, min_other_sentinels=2)
    error = await refused(lonely.master_for(guarded.service, password=SERVERS), connect_timeout=0.3)
    assert "it knows of 1 other sentinels only, and 2 are wanted" in str(error)
    await mine.aclose()
    for each in [*manager.sentinels, *lonely.sentinels]:
        await each.aclose()


async def test_tls(tmp_path: Path) -> None:
    """`rediss+sentinel://` encrypts and checks certificates on the way to sentinels and to servers."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    options = {"tls-cert-file": "cert.pem", "tls-key-file": "key.pem", "tls-ca-cert-file": "ca.pem"}
    tls = [f"{option} {tmp_path}/{file}" for option, file in options.items()]
    tls += ["tls-auth-clients no", "tls-replication yes"]
    port, sentinel_port = free_port(), free_port()
    server = start(
        "redis7", *(word for line in tls for word in f"--{line}".split()), "--tls-port", str(port)
    )
    sentinel = SentinelServer(
        executable("redis7"),
        *(*tls, f"tls-port {sentinel_port}", f"sentinel monitor s 127.0.0.1 {port} 1"),
        port=free_port(),
        password=None,
    )
    try:
        sentinel.start()
        source = f"rediss+sentinel://127.0.0.1:{sentinel_port}/s"
        await meets(f"{source}?ssl_ca_certs={tmp_path}/ca.pem", server.url)
        error = await refused(source, connect_timeout=1.0)
        assert "certificate verify failed" in str(error)
    finally:
        sentinel.stop()
        server.stop()


async def test_what_a_user_of_the_sentinels_must_be_allowed(
    guarded: Sentinels, caplog: pytest.LogCaptureFixture
) -> None:
    """A handful of commands; who may not subscribe asks all the same, and is told what that means."""
    for may, words in [(MAY_ASK + MAY_LISTEN, ""), (MAY_ASK, "NOPERM"), (MAY_LISTEN, "NOPERM")]:
        for sentinel in guarded.sentinels:
            with guarded.admin(sentinel) as admin:
                rules = ("reset", "on", f">{SENTINELS}", *may)
                _ask(admin, "ACL", "SETUSER", "watcher", *rules)
        caplog.clear()
        source = url(guarded) + "&sentinel_username=watcher"
        if may == MAY_LISTEN:
            error = await refused(source)
            assert error.permanent
            assert "NOPERM" in str(error)
        else:
            await meets(source, url(guarded))
        assert words in caplog.text
        assert ("does not tell us of failovers" in caplog.text) == (may == MAY_ASK)


@pytest.mark.parametrize("kind", [kind for kind in FINDERS if kind != "valkey9"])
async def test_sentinels_of_every_age(kind: str) -> None:
    """Those of Redis 6.2 have no PING with a token."""
    async with Sentinels(executable(kind), replicas=1, sentinels=1, down_after_s=10) as trio:
        await meets(trio.url, trio.url)


# -- refusals --------------------------------------------------------------------------------------


async def test_an_unknown_service(guarded: Sentinels) -> None:
    """The sentinels' addresses and the name that they don't know; told at once."""
    error = await refused(url(guarded, service="other"))
    assert error.permanent
    said = f"'other': no sentinel says where it is: 127.0.0.1:{guarded.sentinels[0].port}: it watches no"
    assert f"cannot connect to the primary of {said}" in str(error)
    assert "it watches no service 'other'; 127.0.0.1:" in str(error)


async def test_a_wrong_password_of_the_sentinels(guarded: Sentinels) -> None:
    """Which of the two passwords is wrong can be seen from the address; none is as bad as a wrong one."""
    error = await refused(url(guarded, of_sentinels="wr0ng"))
    assert error.permanent
    assert re.search(rf"127\.0\.0\.1:{guarded.sentinels[1].port}: {WRONG}", str(error))
    error = await refused(url(guarded, of_sentinels=""))
    assert error.permanent
    assert re.search(
        rf"127\.0\.0\.1:{guarded.sentinels[0].port}: (NOAUTH )?HELLO must be called", str(error)
    )


async def test_a_wrong_password_of_the_servers(guarded: Sentinels) -> None:
    """The same, with the primary's address."""
    error = await refused(url(guarded, of_servers="wr0ng"))
    assert error.permanent
    assert re.search(rf"the sentinels say it is 127\.0\.0\.1:{guarded.primary.port}: {WRONG}", str(error))


async def test_no_sentinel_is_there(guarded: Sentinels) -> None:
    """Each is named; it is tried until the time is over."""
    port = free_port()
    error = await refused(url(guarded, hosts=f"127.0.0.1:{port}"), connect_timeout=0.3)
    assert not error.permanent
    assert f"no sentinel says where it is: 127.0.0.1:{port}: Error" in str(error)


async def test_a_server_in_the_place_of_a_sentinel(guarded: Sentinels) -> None:
    """It is told from the first word that it says."""
    error = await refused(url(guarded, hosts=f"127.0.0.1:{guarded.primary.port}", of_sentinels=SERVERS))
    assert error.permanent
    assert f"{guarded.primary.port}: it is a single server: use redis://host:port" in str(error)


async def test_a_sentinel_in_the_place_of_a_server(guarded: Sentinels) -> None:
    """The same the other way round, before something is subscribed there that never comes."""
    error = await refused(f"redis://:{SENTINELS}@127.0.0.1:{guarded.sentinels[0].port}")
    assert error.permanent
    assert "it is a sentinel, which knows servers but is none: use redis+sentinel://host:port" in str(error)


async def test_an_address_that_cannot_be_reached(guarded: Sentinels) -> None:
    """It is named: perhaps it is one that only the sentinels can reach."""
    sentinel, port = guarded.sentinels[0], free_port()
    with guarded.admin(sentinel) as admin:
        _ask(admin, "SENTINEL", "MONITOR", "elsewhere", "127.0.0.1", port, 2)
        error = await refused(url(guarded, service="elsewhere"), connect_timeout=0.3)
        _ask(admin, "SENTINEL", "REMOVE", "elsewhere")
    assert not error.permanent
    assert f"the sentinels say it is 127.0.0.1:{port}: Error 111 connecting to" in str(error)


@pytest.mark.parametrize(
    "source",
    [
        f"redis+sentinel://:{SERVERS}@127.0.0.1:1",
        f"redis+sentinel://:{SERVERS}@127.0.0.1:x/s",
        f"redis+sentinel://:{SERVERS}@127.0.0.1/s/one",
        f"rediss+sentinel://127.0.0.1:1/s?sentinel_password={SERVERS}&socket_timeout=soon",
    ],
)
def test_a_url_that_cannot_be_read(source: str) -> None:
    """It says what would do, and repeats nothing; more of them are in tests/unit."""
    with pytest.raises(ValueError, match=r"^source: .*; write redis\+sentinel://") as caught:
        ps.Client(source)
    assert SERVERS not in str(caught.value)


async def test_no_password_is_told(guarded: Sentinels, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in a repr nor in an error nor in the log, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    told = ""
    for of_servers, of_sentinels, service in [
        (SERVERS, SENTINELS, ""),
        ("wr0ng", SENTINELS, ""),
        (SERVERS, "wr0ng", ""),
        (SERVERS, SENTINELS, "other"),
    ]:
        client = ps.Client(url(guarded, of_servers, of_sentinels, service=service), connect_timeout=1)
        try:
            async with client:
                told += repr(client.stats)
        except ps.ConnectFailed as error:
            told += repr(error) + str(error) + repr(error.__cause__)
        told += repr(client)
    told += "".join(record.getMessage() for record in caplog.records if "aiopubsub" in record.name)
    assert "<Client of the primary of 'my.service'>" in told
    for secret in (SERVERS, SENTINELS, "wr0ng"):
        assert secret not in told
