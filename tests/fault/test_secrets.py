"""Nothing that people see carries a password: no error, no log line, no `repr`, on any path."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis.asyncio
import trustme
from hypothesis import example, given
from hypothesis import strategies as st
from redis.credentials import UsernamePasswordCredentialProvider

import aiopubsub as ps
from aiopubsub.testing import Cluster, Proxy, Sentinels, Server, free_port
from tests.conftest import FINDERS, start

pytestmark = pytest.mark.anyio

SECRET = "s3cr3t/wörd@#"  # what has to be encoded in a URL, too
ENCODED = quote(SECRET, safe="")
NEEDLES = (SECRET, ENCODED, "s3cr3t", repr(SECRET.encode()))
KEPT = ps.Topic("kept", history=ps.History(size=10))


class Seen:
    """All that somebody could have seen."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def error(self, error: BaseException) -> None:
        """An error, as it is printed and as reporters take it apart."""
        self.texts += traceback.format_exception(error)
        seen: BaseException | None = error
        while seen is not None:
            self.texts += [str(seen), repr(seen), repr(seen.args)]
            seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)

    def objects(self) -> None:
        """Each object of ours that is alive."""
        for each in gc.get_objects():
            if type(each).__module__.partition(".")[0] == "aiopubsub":
                self.texts.append(repr(each))
        self.texts += [task.get_name() for task in asyncio.all_tasks()]

    def check(self) -> None:
        assert self.texts
        for text in self.texts:
            assert not [needle for needle in NEEDLES if needle in text], text


@pytest.fixture
def anyio_backend() -> str:
    """What is said does not depend on the event loop."""
    return "asyncio"


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Iterator[Seen]:
    """What was seen until the test's end, all logs included; they are looked through then."""
    caplog.set_level(logging.DEBUG)
    seen = Seen()
    yield seen
    formatter = logging.Formatter()
    seen.texts += [formatter.format(record) for record in caplog.records]
    seen.check()


@pytest.fixture
def guarded() -> Iterator[Server]:
    """A server on which `u` may use channels that begin with `mine`, and all histories."""
    server = start("redis7", "--requirepass", SECRET)
    with redis.Redis(port=server.port, password=SECRET) as connection:
        rules = ("resetchannels", "&mine*", "&kept", "+@all", "~*", "-get")
        connection.execute_command("ACL", "SETUSER", "u", "on", f">{SECRET}", *rules)
    yield server
    server.stop()


def url_of(server: Server | Proxy, user: str = "u", password: str = ENCODED, scheme: str = "redis") -> str:
    return f"{scheme}://{user}:{password}@127.0.0.1:{server.port}"


@contextlib.asynccontextmanager
async def noting(seen: Seen, *wanted: type[BaseException]) -> AsyncIterator[None]:
    """The body fails so; the error is seen, and so is what is alive then."""
    try:
        yield
    except wanted as error:
        seen.objects()
        seen.error(error)
    else:
        pytest.fail(f"no {wanted}")


# -- sources that cannot be read -------------------------------------------------------------------

URLS = [
    f"{scheme}://u:{secret}@host:1/service"
    for scheme in (
        "redis",
        "rediss",
        "redis+cluster",
        "rediss+cluster",
        "redis+sentinel",
        "unix",
        "http",
        "",
    )
    for secret in ("s3cr3t", "4711")
] + ["redis+sentinel://h:1/service?sentinel_password=s3cr3t", "redis://h:1?password=s3cr3t"]


@given(url=st.sampled_from(URLS), at=st.integers(0, 60), what=st.sampled_from([*"/?#@:[]%& \\\n", "://"]))
@example(url="redis://u:4711@host:1", at=12, what="/")
@example(url="redis://u:4711@host:1", at=12, what="#")
@example(url="redis://u:4711@host:1", at=12, what="?")
def test_a_url_that_is_not_quite_one(url: str, at: int, what: str) -> None:
    """Wherever a character too many stands: an error without the password, or a client without it."""
    at = min(at, len(url))
    try:
        text = repr(ps.Client(url[:at] + what + url[at:]))
    except (ValueError, TypeError) as error:
        text = "".join(traceback.format_exception(error))
        text = "\n".join(line for line in text.splitlines() if "File" not in line and "Client(" not in line)
    assert "s3cr3t" not in text
    assert "4711" not in text


# -- no connection ---------------------------------------------------------------------------------


async def test_no_connection(seen: Seen, guarded: Server) -> None:
    """Refused, unknown, silent, not TLS, another kind of deployment: host and reason are told."""
    silent = socket.create_server(("127.0.0.1", 0))  # accepts by its backlog
    urls = [
        f"redis://u:{ENCODED}@127.0.0.1:{free_port()}",
        f"redis://u:{ENCODED}@nowhere.invalid",
        f"redis://u:{ENCODED}@127.0.0.1:{silent.getsockname()[1]}",
        f"unix://u:{ENCODED}@/nowhere/redis.sock",
        url_of(guarded, scheme="rediss"),
        url_of(guarded, scheme="redis+cluster"),
        f"redis+sentinel://u:{ENCODED}@127.0.0.1:{guarded.port}/service?sentinel_password={ENCODED}",
        url_of(guarded, user="nobody"),
        url_of(guarded, password="wrong" + ENCODED),
        url_of(guarded) + "/99",
    ]
    for url in urls:
        async with noting(seen, ps.ConnectFailed):
            await ps.Client(url, connect_timeout=0.3).__aenter__()
    silent.close()


async def test_a_server_that_repeats_what_it_was_told(seen: Seen) -> None:
    """Servers that don't know HELLO, as Redis 5, answer with its arguments, the password among them."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = (await reader.read(1000)).replace(b"\r\n", b" ")
        assert SECRET.encode() in heard
        writer.write(b"-ERR unknown command `HELLO`, with args beginning with: `3`, %s\r\n" % heard)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with noting(seen, ps.ConnectFailed):
            await ps.Client(f"redis://u:{ENCODED}@127.0.0.1:{port}", connect_timeout=1).__aenter__()
    assert any("RESP3 is needed" in text for text in seen.texts)


# -- connected -------------------------------------------------------------------------------------


def sources(server: Server) -> list[tuple[str, Callable[[], ps.Client]]]:
    """Each way to tell a client the password."""

    def from_provider() -> ps.Client:
        provider = UsernamePasswordCredentialProvider("u", SECRET)
        return ps.Client(redis.asyncio.Redis(port=server.port, credential_provider=provider))

    return [
        ("url", lambda: ps.Client(url_of(server))),
        ("query", lambda: ps.Client(f"redis://127.0.0.1:{server.port}?username=u&password={ENCODED}")),
        ("unix", lambda: ps.Client(server.socket_url.replace("://", f"://u:{ENCODED}@"))),
        (
            "redis-py",
            lambda: ps.Client(redis.asyncio.Redis(port=server.port, username="u", password=SECRET)),
        ),
        ("provider", from_provider),
    ]


async def test_refusals(seen: Seen, guarded: Server) -> None:
    """What the server refuses a user who is logged in, whichever way it was told the password."""
    for name, make in sources(guarded):
        async with make() as client, ps.Subscriber(client, "mine", KEPT) as sub:
            pub = ps.Publisher(client)
            async with noting(seen, ps.PublishRefused):
                await pub.publish("theirs", b"x")
            async with noting(seen, ps.SubscribeRefused):
                await sub.subscribe("theirs")
            async with noting(seen, ps.CursorFailed):
                await ps.Subscriber(client, KEPT, name=name).__aenter__()
            await pub.publish(KEPT, b"x")
            seen.objects()


async def test_a_password_that_is_changed(seen: Seen, guarded: Server) -> None:
    """The connection is lost, and the new one is refused: told in the iterator and in `publish`."""
    async with ps.Client(url_of(guarded)) as client, ps.Subscriber(client, "mine") as sub:
        with redis.Redis(port=guarded.port, password=SECRET) as connection:
            connection.execute_command("ACL", "SETUSER", "u", "resetpass", ">other")
            connection.client_kill_filter(_type="pubsub")
            connection.client_kill_filter(_type="normal", skipme=True)
        async with noting(seen, ps.ConnectFailed):
            await anext(sub)
        async with noting(seen, ps.ConnectFailed):
            await ps.Publisher(client).publish("mine", b"x")
        seen.texts.append(repr(client.stats))


async def test_trouble_on_the_way(seen: Seen, guarded: Server) -> None:
    """Connections that are cut at any place of the handshake, stalled and refused."""
    async with Proxy(guarded.port) as proxy:
        async with (
            ps.Client(url_of(proxy), heartbeat=0.1, connect_timeout=5) as client,
            ps.Subscriber(client, "mine") as sub,
        ):
            pub = ps.Publisher(client, timeout=0.2)
            for count in range(0, 200, 20):
                proxy.cut_after(count)
                proxy.cut()
                assert isinstance(await anext(sub.events()), ps.Gap)
                seen.objects()
            proxy.stall()
            async with noting(seen, ps.Unconfirmed, ps.NotSent):
                await pub.publish("mine", b"x")
            proxy.resume()
            proxy.refuse()
            proxy.cut()
            async with noting(seen, ps.Unconfirmed, ps.NotSent):
                await pub.publish("mine", b"x")
        async with noting(seen, ps.ConnectFailed):
            await ps.Client(url_of(proxy), connect_timeout=0.2).__aenter__()


async def test_tls(seen: Seen, tmp_path: Path) -> None:
    """A certificate that nobody trusts."""
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    port, pem = free_port(), str(tmp_path / "pem")
    server = start(
        "redis7",
        *("--tls-port", str(port), "--tls-cert-file", pem, "--tls-key-file", pem),
        *("--tls-ca-cert-file", pem, "--tls-auth-clients", "no", "--requirepass", SECRET),
    )
    async with noting(seen, ps.ConnectFailed):
        await ps.Client(f"rediss://:{ENCODED}@127.0.0.1:{port}", connect_timeout=0.3).__aenter__()
    server.stop()


async def test_a_cluster(seen: Seen) -> None:
    """One that wants a password: the right one, another one, and nodes that are gone."""
    async with Cluster(FINDERS["valkey9"](), primaries=1, replicas=0, password=SECRET) as cluster:
        url = cluster.url.replace("://", f"://:{ENCODED}@")
        async with ps.Client(url) as client, ps.Subscriber(client, "mine", KEPT):
            await ps.Publisher(client).publish(KEPT, b"x")
            seen.objects()
        async with noting(seen, ps.ConnectFailed):
            wrong = cluster.url.replace("://", f"://:wrong{ENCODED}@")
            await ps.Client(wrong, connect_timeout=1).__aenter__()
    async with noting(seen, ps.ConnectFailed):
        await ps.Client(url, connect_timeout=0.3).__aenter__()


async def test_sentinels(seen: Seen) -> None:
    """They and their server have passwords: the right ones, others, and sentinels that are gone."""
    async with Sentinels(
        FINDERS["valkey9"](), password=SECRET, sentinel_password=SECRET + "2"
    ) as sentinels:
        plain = sentinels.url.replace("://", f"://:{ENCODED}@")
        right, wrong = (f"{plain}?sentinel_password={ENCODED}{more}" for more in "23")
        async with ps.Client(right) as client, ps.Subscriber(client, "mine", KEPT):
            await ps.Publisher(client).publish(KEPT, b"x")
            seen.objects()
        for url in (wrong, right.replace(f":{ENCODED}@", f":wrong{ENCODED}@")):
            async with noting(seen, ps.ConnectFailed):
                await ps.Client(url, connect_timeout=1).__aenter__()
    async with noting(seen, ps.ConnectFailed):
        await ps.Client(right, connect_timeout=0.3).__aenter__()


# -- the command line ------------------------------------------------------------------------------

COMMANDS = [
    ["pub", "mine", "x"],
    ["pub", "theirs", "x"],
    ["sub", "theirs"],
    ["sub", "mine", "--name", "n"],
    ["history", "kept", "--cursors"],
    ["doctor"],
    ["chat", "theirs"],
]


def test_the_command_line(guarded: Server) -> None:
    """Whatever is asked of a user who may do little, or not come in: what it prints has no password."""
    calls = [(command, url_of(guarded)) for command in COMMANDS]
    calls.append((COMMANDS[0], url_of(guarded, password="wrong" + ENCODED)))
    calls.append((COMMANDS[0], f"redis://u:{ENCODED}@host:port"))
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "aiopubsub", *command, "--url", url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, url in calls
    ]
    for process in running:
        printed, _ = process.communicate(timeout=120)
        assert printed or not process.returncode
        assert not [needle for needle in NEEDLES if needle in printed], printed


def test_this_file_sees_a_password(seen: Seen) -> None:
    """Teeth: a leak in an error, its cause, a log line or an object would be found."""
    for leak in (SECRET, ENCODED):
        found = Seen()
        error = ValueError("x")
        error.__cause__ = RuntimeError(leak)
        found.error(error)
        with pytest.raises(AssertionError):
            found.check()
    seen.texts.append("nothing")
