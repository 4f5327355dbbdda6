"""What servers of a cluster do: what the library is built on, in the servers' own words.

Without a library in between, on Redis 7 and Valkey 9. Where a later server answers otherwise, a test here
says so before any other does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from aiopubsub.keys import slot_of
from aiopubsub.testing import Cluster, Node
from tests.fault.line import ask, ask_asking, line

pytestmark = pytest.mark.anyio

CHAT = slot_of(b"chat")
KEY = "{chat}:history"
APPEND = "redis.call('XADD', KEYS[1], '*', 'data', '1') return redis.call('SPUBLISH', ARGV[1], '1')"
EVAL = ("EVAL", APPEND, 1, KEY, "chat")


@pytest.fixture
def anyio_backend() -> str:
    """What servers do does not depend on the event loop."""
    return "asyncio"


async def home_and_others(cluster: Cluster) -> tuple[Node, Node, Node]:
    """Who serves the channel, without a history of it, and the other two primaries."""
    home = await cluster.node_of("chat")
    await home.ask("DEL", KEY)
    target, third = (primary for primary in await cluster.primaries() if primary is not home)
    return home, target, third


def moved(node: Node) -> str:
    return f"MOVED {CHAT} 127.0.0.1:{node.port}"


def asked(node: Node) -> str:
    return f"ASK {CHAT} 127.0.0.1:{node.port}"


def subscribed(count: int, channel: str = "chat") -> tuple[str, str, int]:
    return ("ssubscribe", channel, count)


# -- where a channel is served ----------------------------------------------------------------------


async def test_another_primary_says_where(cluster: Cluster) -> None:
    """SSUBSCRIBE, SUNSUBSCRIBE and SPUBLISH are refused with the name of the right node."""
    home, other, _ = await home_and_others(cluster)
    with line(other) as there:
        for command in (("SSUBSCRIBE", "chat"), ("SUNSUBSCRIBE", "chat"), ("SPUBLISH", "chat", "x")):
            assert there.ask(*command) == moved(home)
        assert there.heard_nothing()


async def test_one_command_takes_channels_of_one_slot(cluster: Cluster) -> None:
    """CROSSSLOT for more, and none is subscribed; one connection takes any number, command by command."""
    home, *_ = await home_and_others(cluster)
    near = next(f"c{n}" for n in range(10**6) if slot_of(b"c%d" % n) == CHAT + 1)
    with line(home) as told:
        assert told.ask("SSUBSCRIBE", "chat", near).startswith("CROSSSLOT")
        assert told.ask("SPUBLISH", "chat", "x") == 0
        assert told.ask("SSUBSCRIBE", "{chat}1", "{chat}2") == subscribed(1, "{chat}1")
        assert told.next() == subscribed(2, "{chat}2")
        assert told.ask("SSUBSCRIBE", near) == subscribed(3, near)


async def test_a_replica_serves_channels_too(cluster: Cluster) -> None:
    """It takes SSUBSCRIBE and SPUBLISH; messages reach both nodes, and receivers are counted on one."""
    home, *_ = await home_and_others(cluster)
    (replica,) = await cluster.replicas(of=home)
    with line(home) as at_home, line(replica) as at_replica:
        assert at_home.ask("SSUBSCRIBE", "chat") == at_replica.ask("SSUBSCRIBE", "chat") == subscribed(1)
        for node in (home, replica):
            assert ask(node, "SPUBLISH", "chat", "x") == 1
            assert at_home.next() == at_replica.next() == ("smessage", "chat", "x")
        assert ask(replica, *EVAL) == ask(replica, "XLEN", KEY) == moved(home)


# -- slots that move --------------------------------------------------------------------------------


@pytest.fixture(params=["redis7 move", "valkey9 move", "valkey9 migrate"])
async def moving(
    request: pytest.FixtureRequest, clusters: Callable[[str], Cluster]
) -> tuple[Cluster, Callable[..., Any]]:
    """A cluster and each way it has to move slots."""
    name, how = request.param.split()
    cluster = await asyncio.to_thread(clusters, name)
    return cluster, cluster.move_slots if how == "move" else cluster.migrate_slots


async def test_subscribers_are_told_when_their_slot_leaves(
    moving: tuple[Cluster, Callable[..., Any]],
) -> None:
    """A `sunsubscribe` for each channel in it and for no other; then MOVED, for SUNSUBSCRIBE as well."""
    cluster, move = moving
    home, target, _ = await home_and_others(cluster)
    near = next(f"c{n}" for n in range(10**6) if slot_of(b"c%d" % n) == CHAT + 1)
    with line(home) as told:
        for count, channel in enumerate(("chat", "{chat}1", near), 1):
            assert told.ask("SSUBSCRIBE", channel) == subscribed(count, channel)
        assert told.ask("SUBSCRIBE", "chat") == ("subscribe", "chat", 1)
        await move("chat", target)
        gone = {told.next()[:2], told.next()[:2]}
        assert gone == {("sunsubscribe", "chat"), ("sunsubscribe", "{chat}1")}
        assert told.heard_nothing()
        assert told.ask("SSUBSCRIBE", "chat") == told.ask("SUNSUBSCRIBE", "chat") == moved(target)
        assert ask(home, "SPUBLISH", near, "x") == 1
        assert told.next() == ("smessage", near, "x")
    await cluster.move_slots("chat", home)


async def test_the_epoch_rises_when_another_node_gets_a_slot(
    moving: tuple[Cluster, Callable[..., Any]],
) -> None:
    """By one for each move; not for one to the node that had the latest."""
    cluster, move = moving
    home, target, _ = await home_and_others(cluster)

    async def epochs() -> set[int]:
        await cluster.wait_until_agreed()
        return {int((await node.info("cluster info"))["cluster_current_epoch"]) for node in (home, target)}

    await move(CHAT, target)
    (before,) = await epochs()
    await move(range(CHAT + 1, CHAT + 4), target)
    assert await epochs() == {before}
    await move(CHAT, home)
    assert await epochs() == {before + 1}
    assert (await home.view())[home.id].epoch == before + 1
    await cluster.move_slots(range(CHAT, CHAT + 4), home)


async def test_channels_stay_at_the_source_until_the_slot_has_left(cluster: Cluster) -> None:
    """While a slot moves the source serves channels, keys or not; the target serves them after ASKING."""
    home, target, _ = await home_and_others(cluster)
    ask(home, *EVAL)
    with line(home) as told:
        assert told.ask("SSUBSCRIBE", "chat") == subscribed(1)
        async with cluster.moving("chat", target) as move:
            for _ in ("the keys are there", "the keys have gone"):
                assert ask(home, "SSUBSCRIBE", "chat") == subscribed(1)
                assert ask(home, "SPUBLISH", "chat", "x") == 1
                assert told.next() == ("smessage", "chat", "x")
                assert (
                    ask(target, "SSUBSCRIBE", "chat") == ask(target, "SPUBLISH", "chat", "x") == moved(home)
                )
                assert ask_asking(target, "SSUBSCRIBE", "chat") == subscribed(1)
                assert ask_asking(target, "SPUBLISH", "chat", "x") == 0
                await move.keys()
            await move.give(target)
            assert ask(target, "SSUBSCRIBE", "chat") == subscribed(1)
        assert told.next() == ("sunsubscribe", "chat", 0)
        assert ask(home, "SPUBLISH", "chat", "x") == moved(target)


async def test_scripts_go_where_the_keys_are(cluster: Cluster) -> None:
    """A script is sent on with ASK when its key has gone; its SPUBLISH is heard at the target alone."""
    home, target, _ = await home_and_others(cluster)
    with line(home) as at_home:
        assert at_home.ask("SSUBSCRIBE", "chat") == subscribed(1)
        assert ask(home, *EVAL) == 1
        assert at_home.next() == ("smessage", "chat", "1")
        async with cluster.moving("chat", target) as move:
            assert ask(home, *EVAL) == 1
            assert at_home.next() == ("smessage", "chat", "1")
            assert ask(target, *EVAL) == moved(home)
            await move.keys()
            assert ask(home, *EVAL) == ask(home, "XLEN", KEY) == asked(target)
            assert ask(target, *EVAL) == moved(home)
            with line(target) as early:
                early.ask("ASKING")
                assert early.ask("SSUBSCRIBE", "chat") == subscribed(1)
                assert ask_asking(target, *EVAL) == 1
                assert early.next() == ("smessage", "chat", "1")
            assert at_home.heard_nothing()
        assert at_home.next() == ("sunsubscribe", "chat", 0)
        assert ask(target, "XLEN", KEY) == 3


async def test_scripts_of_two_keys_wait_for_both(cluster: Cluster) -> None:
    """TRYAGAIN while one key has gone and the other has not, or is not there at all."""
    home, target, _ = await home_and_others(cluster)
    two = ("EVAL", "return redis.call('XLEN', KEYS[1])", 2, KEY, "{chat}:absent")
    ask(home, *EVAL)
    async with cluster.moving("chat", target) as move:
        assert ask(home, *two).startswith("TRYAGAIN")
        await move.keys()
        assert ask(home, *two) == asked(target)
        assert ask_asking(target, *two).startswith("TRYAGAIN")
    assert ask(target, *two) == 1


# -- nodes that fail --------------------------------------------------------------------------------


async def test_a_planned_failover_unsubscribes(cluster: Cluster) -> None:
    """A push on connections that stay open; Valkey sends it on the replica's, too, Redis does not.

    The old primary takes subscriptions again, as a replica; it hears what is published at the new one.
    """
    home, *_ = await home_and_others(cluster)
    (replica,) = await cluster.replicas(of=home)
    with line(home) as told, line(replica) as beside:
        assert told.ask("SSUBSCRIBE", "chat") == beside.ask("SSUBSCRIBE", "chat") == subscribed(1)
        await cluster.fail_over(replica)
        assert told.next() == ("sunsubscribe", "chat", 0)
        if "valkey_version" in await home.info("server"):
            assert beside.next() == ("sunsubscribe", "chat", 0)
        assert beside.heard_nothing()
        assert told.ask("SSUBSCRIBE", "chat") == subscribed(1)
        ask(replica, "SPUBLISH", "chat", "x")
        assert told.next() == ("smessage", "chat", "x")
        assert ask(home, *EVAL) == moved(replica)


async def test_an_isolated_primary_goes_on_serving_channels(breakable: Cluster) -> None:
    """It refuses keys, but takes subscribers, publishes among them and answers PING, and says nothing.

    `cluster_state:fail` in CLUSTER INFO is all that tells. It unsubscribes when it hears of the new one.
    """
    home, *_ = await home_and_others(breakable)
    with line(home) as told:
        assert told.ask("SSUBSCRIBE", "chat") == subscribed(1)
        await breakable.isolate(home)
        replica = await breakable.wait_for_promotion(home)
        assert await breakable.node_of("chat") is replica
        assert ask(home, "ROLE")[0] == "master"
        while (await home.info("cluster info"))["cluster_state"] != "fail":
            await asyncio.sleep(0.02)
        assert ask(home, *EVAL).startswith("CLUSTERDOWN")
        assert ask(home, "SSUBSCRIBE", "chat") == subscribed(1)
        assert ask(home, "SPUBLISH", "chat", "here") == 1
        assert told.next() == ("smessage", "chat", "here")
        assert ask(replica, "SPUBLISH", "chat", "there") == 0
        assert told.heard_nothing()
        assert any(nodes[0][1] == home.port for _, _, *nodes in told.ask("CLUSTER", "SLOTS"))
        await breakable.heal()
        assert told.next() == ("sunsubscribe", "chat", 0)
        assert ask(home, "ROLE")[2] == replica.port


@pytest.mark.long
async def test_a_primary_that_hung_unsubscribes_when_it_comes_back(breakable: Cluster) -> None:
    """It is replaced meanwhile; on the connections nothing is seen until it goes on."""
    home, *_ = await home_and_others(breakable)
    with line(home) as told:
        assert told.ask("SSUBSCRIBE", "chat") == subscribed(1)
        home.pause()
        await breakable.wait_for_promotion(home)
        home.resume()
        assert told.next() == ("sunsubscribe", "chat", 0)


@pytest.mark.long
async def test_slots_without_a_node(breakable: Cluster) -> None:
    """All keys are refused with CLUSTERDOWN; channels of other nodes go on, its own are MOVED to it."""
    home, other, _ = await home_and_others(breakable)
    (replica,) = await breakable.replicas(of=home)
    replica.kill()
    home.kill()
    while (await other.info("cluster info"))["cluster_state"] != "fail":
        await asyncio.sleep(0.02)
    (slot, *_) = sorted((await other.view())[other.id].slots)
    theirs = next(f"c{n}" for n in range(10**6) if slot_of(b"c%d" % n) == slot)
    assert ask(other, "GET", theirs) == "CLUSTERDOWN The cluster is down"
    assert ask(other, "SSUBSCRIBE", theirs) == subscribed(1, theirs)
    assert ask(other, "SPUBLISH", theirs, "x") == 0
    assert ask(other, "SSUBSCRIBE", "chat") == moved(home)
