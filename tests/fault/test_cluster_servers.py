"""The clusters of `aiopubsub.testing` are what they say, by the servers' own words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import trustme
from redis.backoff import NoBackoff
from redis.retry import Retry

from aiopubsub.keys import slot_of
from aiopubsub.testing import Cluster, Node
from tests.conftest import LONG, cluster_of, start
from tests.fault.line import ask, line

pytestmark = pytest.mark.anyio

CHAT = slot_of(b"chat")


@pytest.fixture
def anyio_backend() -> str:
    """What servers do does not depend on the event loop."""
    return "asyncio"


async def others(cluster: Cluster, node: Node) -> list[Node]:
    """The other primaries."""
    return [primary for primary in await cluster.primaries() if primary is not node]


def owners(cluster: Cluster, slot: int) -> set[int]:
    """The port of whoever serves a slot, by what each running node tells clients."""
    found: set[int] = set()
    for node in cluster.nodes:
        if node.is_running and node not in cluster.isolated:
            ranges = ask(node, "CLUSTER", "SLOTS")
            found |= {nodes[0][1] for first, last, *nodes in ranges if first <= slot <= last} or {0}
    return found


# -- as it is started -------------------------------------------------------------------------------


async def test_every_node_knows_the_whole_cluster(cluster: Cluster) -> None:
    """Three primaries with a replica each, all slots served, and any node of the URL says so."""
    assert cluster.url == "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)
    assert len(cluster.nodes) == 6
    primaries = await cluster.primaries()
    for node in cluster.nodes:
        ranges = ask(node, "CLUSTER", "SLOTS")
        assert sum(last + 1 - first for first, last, *_ in ranges) == 16_384
        assert {nodes[0][1] for _, _, *nodes in ranges} == {primary.port for primary in primaries}
    for primary in primaries:
        (replica,) = await cluster.replicas(of=primary)
        role, host, port, state, _ = ask(replica, "ROLE")
        assert (role, host, port, state) == ("slave", "127.0.0.1", primary.port, "connected")


async def test_the_node_of_a_channel_is_where_the_server_has_it(cluster: Cluster) -> None:
    """A channel, its bytes and its slot lead to the node that accepts it."""
    for channel in ("chat", "{user}.é", "x{}y"):
        node = await cluster.node_of(channel)
        slot = ask(node, "CLUSTER", "KEYSLOT", channel)
        assert node is await cluster.node_of(channel.encode()) is await cluster.node_of(slot)
        assert ask(node, "SPUBLISH", channel, "x") == 0
    with pytest.raises(LookupError, match="slot 16384 is served by none of"):
        await cluster.node_of(16_384)


async def test_a_cluster_client_works_with_it(cluster: Cluster) -> None:
    """redis-py finds its way."""
    with redis.RedisCluster("127.0.0.1", cluster.nodes[-1].port) as client:
        assert client.set("chat", "1")
        assert client.get("chat") == b"1"


async def test_with_a_password_and_tls(tmp_path: Path) -> None:
    """Nodes and operators come in as well; a plain `with` works beside a running event loop."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    paths = (f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem", f"{tmp_path}/ca.pem")
    certificate.cert_chain_pems[0].write_to_path(paths[0])
    certificate.private_key_pem.write_to_path(paths[1])
    authority.cert_pem.write_to_path(paths[2])
    with cluster_of("redis7", primaries=2, password="hunter2", tls=paths) as cluster:
        assert cluster.url.startswith("rediss+cluster://127.0.0.1:")
        source = await cluster.node_of("chat")
        (target,) = await others(cluster, source)
        await source.ask("SET", "chat", "1")
        await cluster.move_slots("chat", target)
        assert await target.ask("GET", "chat") == "1"
        with (
            redis.Redis(
                target.host, target.port, ssl=True, ssl_ca_certs=paths[2], retry=Retry(NoBackoff(), 0)
            ) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()


async def test_what_does_not_start_says_why() -> None:
    """The server's last words, or what is still missing when the time is over; nothing is left running."""
    broken = cluster_of("valkey9", "--cluster-node-timeout", "no number")
    with pytest.raises(RuntimeError, match=r"(?s)did not start:.*cluster-node-timeout"):
        await broken.__aenter__()
    hasty = cluster_of("valkey9", primaries=1, replicas=0, timeout=0.1)
    with pytest.raises(TimeoutError, match=r"waited 0\.1 s until the cluster is whole.*cluster_state:fail"):
        hasty.start()
    assert not any(node.is_running for node in (*broken.nodes, *hasty.nodes))
    for primaries, replicas in ((0, 1), (3, -1)):
        with pytest.raises(ValueError, match="at least 1 and 0 are needed"):
            Cluster("no-server", primaries=primaries, replicas=replicas)


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    """No process outlives it."""
    cluster = cluster_of("valkey9", primaries=2, replicas=0)
    starting = asyncio.create_task(cluster.__aenter__())
    while not any(node.is_running for node in cluster.nodes):
        await asyncio.sleep(0)
    processes = [node._process for node in cluster.nodes]
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [process.poll() is not None for process in processes] == [True, True]


# -- slots ------------------------------------------------------------------------------------------


async def test_slots_move_step_by_step(cluster: Cluster) -> None:
    """Each step is there for a test to see: marked, keys gone, target told, all told."""
    source = await cluster.node_of("chat")
    target, third = await others(cluster, source)
    keys = ["chat", "{chat}\udcff", *(f"{{chat}}{number}" for number in range(250))]
    await source.ask_all(("SET", key, "1") for key in keys)
    async with cluster.moving("chat", target) as move:
        assert move.sources == {source: [CHAT]}
        assert f"[{CHAT}->-{target.id}]" in ask(source, "CLUSTER", "NODES")
        assert f"[{CHAT}-<-{source.id}]" in ask(target, "CLUSTER", "NODES")
        assert await source.ask("CLUSTER", "COUNTKEYSINSLOT", CHAT) == len(keys)
        await move.keys()
        assert await source.ask("CLUSTER", "COUNTKEYSINSLOT", CHAT) == 0
        assert await cluster.node_of("chat") is source
        await move.give(target)
        assert await cluster.node_of("chat") is target
    assert owners(cluster, CHAT) == {target.port}
    assert await target.ask_all(("GET", key) for key in keys) == ["1"] * len(keys)
    assert not any(entry.open_slots for entry in (await cluster._own_entries()).values())
    await cluster.move_slots(["chat", "other", 7], third)
    assert all(owners(cluster, slot) == {third.port} for slot in (CHAT, slot_of(b"other"), 7))
    await third.ask_all(("DEL", key) for key in keys)


async def test_a_move_goes_to_its_end_when_a_test_fails(cluster: Cluster) -> None:
    """The slot is not left between two nodes."""
    (target, *_) = await others(cluster, await cluster.node_of("chat"))
    with pytest.raises(ZeroDivisionError):
        async with cluster.moving("chat", target):
            1 / 0  # noqa: B018
    assert owners(cluster, CHAT) == {target.port}


async def test_slots_left_half_moved_are_healed(cluster: Cluster) -> None:
    """They stay where they were."""
    source = await cluster.node_of("chat")
    (target, *_) = await others(cluster, source)
    await cluster.moving("chat", target).__aenter__()
    await cluster.heal()
    assert not any(entry.open_slots for entry in (await cluster._own_entries()).values())
    assert owners(cluster, CHAT) == {source.port}


async def test_valkey_migrates_slots_by_itself(clusters: Callable[[str], Cluster]) -> None:
    """In one command, from all who have them, with their keys; Redis 7 says that it can't."""
    cluster = await asyncio.to_thread(clusters, "valkey9")
    source = await cluster.node_of("chat")
    (target, *_) = await others(cluster, source)
    await source.ask("SET", "chat", "1")
    await cluster.migrate_slots(["chat", *range(5455, 5465), *range(10_920, 10_925)], target)
    assert all(owners(cluster, slot) == {target.port} for slot in (CHAT, 5455, 5464, 10_920, 10_924))
    assert await target.ask("GET", "chat") == "1"
    without = await asyncio.to_thread(clusters, "redis7")
    (elsewhere, *_) = await others(without, await without.node_of("chat"))
    with pytest.raises(redis.ResponseError, match="unknown subcommand 'GETSLOTMIGRATIONS'"):
        await without.migrate_slots("chat", elsewhere)


# -- nodes ------------------------------------------------------------------------------------------


async def test_a_replica_takes_over(breakable: Cluster) -> None:
    """Every node gives the slots to it, and the primary copies it."""
    primary = await breakable.node_of(0)
    (replica,) = await breakable.replicas(of=primary)
    await breakable.fail_over(replica)
    assert owners(breakable, 0) == {replica.port}
    assert ask(primary, "ROLE")[2] == replica.port
    with pytest.raises(redis.ResponseError, match="to a replica"):
        await breakable.fail_over(replica)
    if LONG:  # Redis 7.0 promotes it for a moment by the votes of the first time
        await breakable.fail_over(primary)
        await breakable.fail_over(replica)
        assert owners(breakable, 0) == {replica.port}


async def test_a_killed_primary_is_replaced_and_comes_back(breakable: Cluster) -> None:
    """Its replica is voted for; started again, on the same port with the same id, it copies that one."""
    primary = await breakable.node_of(6000)
    (replica,) = await breakable.replicas(of=primary)
    with pytest.raises(ValueError, match="has served no slots"):
        await breakable.wait_for_promotion(replica)
    with line(primary) as told:
        primary.kill()
        assert told.next() is None
    assert await breakable.wait_for_promotion(primary) is replica
    assert owners(breakable, 6000) == {replica.port}
    assert primary not in await breakable.primaries()
    name, port = primary.id, primary.port
    await breakable.heal()
    assert (primary.id, primary.port) == (name, port)
    assert ask(primary, "ROLE")[2:4] == [replica.port, "connected"]


async def test_only_a_cluster_made_for_it_is_divided(cluster: Cluster) -> None:
    """It is said how to make one; and that it can't be with TLS."""
    with pytest.raises(RuntimeError, match="partitions=True"):
        await cluster.isolate(cluster.nodes[0])
    with pytest.raises(ValueError, match="tls"):
        Cluster("no-server", tls=("cert", "key", "ca"), partitions=True)


async def test_nodes_come_and_go(breakable: Cluster) -> None:
    """A new primary and its replica are known to all; removed, they are known to none."""
    primary = await breakable.add_node()
    replica = await breakable.add_node(of=primary)
    await breakable.move_slots(range(100, 110), primary)
    assert owners(breakable, 105) == {primary.port}
    assert ask(replica, "ROLE")[2] == primary.port
    await breakable.remove_node(replica)
    await breakable.remove_node(primary)
    assert len(breakable.nodes) == 6
    for node in breakable.nodes:
        told = ask(node, "CLUSTER", "NODES")
        assert primary.id not in told
        assert replica.id not in told
    assert owners(breakable, 105) <= {node.port for node in breakable.nodes}
    assert not primary.is_running


async def test_a_wait_that_is_over_says_what_was_seen(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has given the slot away."""
    (elsewhere, *_) = await others(cluster, await cluster.node_of("chat"))
    monkeypatch.setattr(cluster, "_timeout", 0.1)
    with pytest.raises(TimeoutError, match=rf"0\.1 s until .* has the slots; .*: \[\({CHAT}, {CHAT}\)\]"):
        await cluster.wait_until_owned("chat", by=elsewhere)


async def test_a_hanging_node_is_not_waited_for(cluster: Cluster) -> None:
    """What is asked of the cluster is asked of those that run."""
    node = cluster.nodes[-1]
    node.pause()
    assert (node.is_paused, node.is_running) == (True, False)
    await cluster.wait_until_agreed()
    node.resume()
    assert (node.is_paused, node.is_running) == (False, True)
    with line(node) as told:
        assert told.heard_nothing()


async def test_a_hanging_server_ends_in_order() -> None:
    """It is told to end, and goes on to do so."""
    server = start("valkey9")
    process = server._process
    server.pause()
    server.stop()
    assert process is not None
    assert process.returncode == 0
