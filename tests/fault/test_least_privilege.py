"""Each role works with exactly the permissions that the docs name, and not without any one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

import aiopubsub as ps
from aiopubsub.testing import Proxy, Sentinels, Server
from tests.conftest import FINDERS, start
from tests.fault.conftest import admin
from tests.roles import read_file, read_roles, read_sentinel_rules

pytestmark = pytest.mark.anyio

HEARTBEAT_S = 0.05
TIMEOUT_S = 0.5
FOR_EVER = ps.Topic("orders", history=ps.History(size=10, ttl=None))
FOR_A_DAY = ps.Topic("orders", history=ps.History(size=10))
KEY = "aiopubsub:{orders}:history"


class DoesNotWork(Exception):
    """What a role is for, did not happen."""


def check(is_so: bool) -> None:
    if not is_so:
        raise DoesNotWork


class Scene:
    """A server, a user with some rules, and what the user's clients go through."""

    def __init__(self, server: redis.Redis, proxy: Proxy) -> None:
        self.server = server
        self.proxy = proxy

    @asynccontextmanager
    async def client(self) -> AsyncIterator[ps.Client]:
        """One of the user; its connections must live through some quiet heartbeats."""
        url = f"redis://u:p@127.0.0.1:{self.proxy.port}"
        async with ps.Client(url, connect_timeout=TIMEOUT_S, heartbeat=HEARTBEAT_S) as client:
            yield client

    async def let_it_be_quiet(self, client: ps.Client, role: str) -> None:
        """Until the server was asked for a sign of life, twice."""
        link = client.stats.links[role]
        pings = self.pings()
        while self.pings() < pings + 2:
            await asyncio.sleep(HEARTBEAT_S / 10)
        check(client.stats.links[role].reconnects == link.reconnects)

    def pings(self) -> int:
        stats = self.server.info("commandstats").get("cmdstat_ping", {})
        return stats.get("calls", 0) + stats.get("rejected_calls", 0)

    def subscriptions(self) -> int:
        return len(self.server.pubsub_channels()) + self.server.pubsub_numpat()

    def publish(self, channel: str = "orders") -> None:
        self.server.publish(channel, "x")

    async def publish_kept(self) -> None:
        port = self.server.connection_pool.connection_kwargs["port"]
        async with ps.Publisher(f"redis://127.0.0.1:{port}") as pub:
            await pub.publish(FOR_A_DAY, b"x")


async def publisher(scene: Scene) -> None:
    async with scene.client() as client, ps.Publisher(client, timeout=TIMEOUT_S) as pub:
        await pub.publish("orders", b"x", headers={"a": "b"})
        await pub.publish_many("orders", [b"x", b"y"])
        await scene.let_it_be_quiet(client, "commands")


async def publisher_of_history(scene: Scene) -> None:
    async with scene.client() as client, ps.Publisher(client, timeout=TIMEOUT_S) as pub:
        await pub.publish(FOR_EVER, b"x")
        scene.proxy.cut_after(0)  # the reply is lost, so it is looked for
        receipt = await pub.publish(FOR_EVER, b"y")
        check(receipt.duplicate and scene.server.xlen(KEY) == 2)
    async with scene.client() as client, ps.Publisher(client, timeout=TIMEOUT_S) as pub:
        await pub.publish(FOR_A_DAY, b"z")
        check(scene.server.ttl(KEY) > 0)
        await scene.let_it_be_quiet(client, "commands")


async def subscriber(scene: Scene, topic: ps.Subscribable[bytes] | None = None) -> None:
    async with scene.client() as client:
        channel = "orders" if topic is None else "news.art"
        async with ps.Subscriber(client, topic or ps.Topic("orders")) as sub:
            scene.publish(channel)
            check((await anext(sub)).channel == channel)
            await scene.let_it_be_quiet(client, "listens")
        check(scene.subscriptions() == 0)


async def subscriber_to_pattern(scene: Scene) -> None:
    await subscriber(scene, ps.Pattern("news.*"))


async def subscriber_to_history(scene: Scene) -> None:
    await scene.publish_kept()
    async with scene.client() as client:
        async with ps.Subscriber(client, FOR_A_DAY, since="beginning") as sub:
            check((await anext(sub)).data == b"x")
            await scene.publish_kept()
            check((await anext(sub)).data == b"x")
            await scene.let_it_be_quiet(client, "listens")
        check(scene.subscriptions() == 0)


async def named_subscriber(scene: Scene) -> None:
    await subscriber_to_history(scene)
    await scene.publish_kept()
    async with scene.client() as client:
        async with ps.Subscriber(client, FOR_A_DAY, name="billing", since="beginning") as sub:
            offsets = [(await anext(sub)).position.offset for _ in range(2)]
        async with ps.Subscriber(client, FOR_A_DAY, name="billing") as sub:
            offsets.append((await anext(sub)).position.offset)
        check(offsets == [1, 2, 2])  # the second was not done


PLAYS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "publisher": publisher,
    "history-publisher": publisher_of_history,
    "subscriber": subscriber,
    "pattern-subscriber": subscriber_to_pattern,
    "history-subscriber": subscriber_to_history,
    "named-subscriber": named_subscriber,
}
ROLES = read_roles()


@pytest.fixture
def anyio_backend() -> str:
    """What is asked of the server does not depend on the event loop."""
    return "asyncio"


@pytest.fixture(params=["valkey9", "redis7"])
def server(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Server:
    """Servers that other tests share: a user of their own is all that these need."""
    return servers(request.param)


async def play(server: Server, role: str, rules: list[str]) -> None:
    """Let a user with these rules do what the role is for."""
    with admin(server) as connection:
        connection.flushall()
        connection.script_flush()
        connection.execute_command("ACL", "DELUSER", "u")
        connection.execute_command(
            "ACL", "SETUSER", "u", "on", ">p", "resetkeys", "resetchannels", "-@all", *rules
        )
        async with Proxy(server.port) as proxy, asyncio.timeout(5):
            await PLAYS[role](Scene(connection, proxy))


def test_each_role_is_played() -> None:
    """The table of the docs and the tests have the same roles."""
    assert list(ROLES) == list(PLAYS)


def test_servers_take_the_file(tmp_path: Path) -> None:
    """The file of the docs is one that a server reads as it stands."""
    file = tmp_path / "users.acl"
    file.write_text(read_file())
    server = start("redis7", "--aclfile", str(file))
    with admin(server) as connection:
        assert set(PLAYS) <= set(connection.acl_users())
    server.stop()


@pytest.mark.parametrize("role", list(PLAYS))
async def test_a_role_works_with_its_rules(server: Server, role: str) -> None:
    """Everything that the role is for."""
    await play(server, role, ROLES[role])


@pytest.mark.parametrize(
    ("role", "missing"),
    [pytest.param(role, rule, id=f"{role} {rule}") for role in PLAYS for rule in ROLES[role]],
)
async def test_a_role_does_not_work_without_one_of_its_rules(
    server: Server, role: str, missing: str
) -> None:
    """No rule is there for nothing."""
    rules = [rule for rule in ROLES[role] if rule != missing]
    with pytest.raises((DoesNotWork, ps.PubSubError, TimeoutError)):
        await play(server, role, rules)


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    """One server and one sentinel, without passwords."""
    with Sentinels(FINDERS["redis7"](), replicas=0, sentinels=1) as sentinels:
        yield sentinels


async def ask(sentinels: Sentinels, rules: list[str]) -> None:
    """Find the primary with these rules, and be told of failovers at once: there are two events."""
    with redis.Redis(port=sentinels.sentinels[0].port) as sentinel:
        sentinel.execute_command("ACL", "DELUSER", "u")
        sentinel.execute_command("ACL", "SETUSER", "u", "on", ">p", "resetchannels", "-@all", *rules)
        url = f"{sentinels.url}?sentinel_username=u&sentinel_password=p"
        async with asyncio.timeout(5), ps.Client(url, connect_timeout=TIMEOUT_S) as client:
            await ps.Publisher(client).publish("orders", b"x")
            give_up_at = asyncio.get_running_loop().time() + TIMEOUT_S
            while not any(each["user"] == "u" and each["sub"] == "2" for each in sentinel.client_list()):
                check(asyncio.get_running_loop().time() < give_up_at)
                await asyncio.sleep(0.01)


async def test_a_sentinel_tells_who_may_ask(sentinels: Sentinels) -> None:
    """With the rules of the docs, and not without any one of them."""
    rules = read_sentinel_rules()
    await ask(sentinels, rules)
    for missing in rules:
        with pytest.raises((DoesNotWork, ps.PubSubError, TimeoutError)):
            await ask(sentinels, [rule for rule in rules if rule != missing])
