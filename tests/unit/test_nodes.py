"""The nodes of a cluster, in virtual time: what is believed of whom, and when somebody is asked again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiopubsub.errors import Closed, ConnectFailed, ErrorReply
from aiopubsub.nodes import Nodes
from aiopubsub.slots import Address, Redirect
from tests.unit.fake_cluster import HEARTBEAT, FakeCluster
from tests.virtual_time import run


def now() -> float:
    return asyncio.get_running_loop().time()


def looking(cluster: FakeCluster) -> list[Address]:
    """Who is being asked for the topology."""
    return [address for address, server in cluster.servers.items() if server.open_wires()]


def looks(cluster: FakeCluster) -> int:
    return sum(
        command == (b"CLUSTER", b"SLOTS") for server in cluster.servers.values() for command in server.ran
    )


def with_nodes(cluster: FakeCluster, test: Any) -> None:
    """Run a test with nodes, which are closed in the end."""

    async def main() -> None:
        nodes = cluster.nodes()
        try:
            await test(nodes)
        finally:
            closing = nodes.close()
            await asyncio.gather(*(link.aclose() for link in closing))
            await nodes.wait_closed()
        assert not looking(cluster)

    run(main())


def test_the_topology_is_known_when_it_is_ready() -> None:
    """One look, at one node."""
    cluster = FakeCluster()

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        assert [nodes.slots.owner(slot) for slot in (0, 8192, 16_383)] == cluster.addresses
        assert nodes.slots.primaries == frozenset(cluster.addresses)
        assert nodes.error is None
        assert (looks(cluster), len(looking(cluster))) == (1, 1)
        assert now() < 0.01

    with_nodes(cluster, test)


def test_it_looks_once_in_each_heartbeat_and_when_something_is_wrong() -> None:
    """And not more often than it has to, however often it is told."""
    cluster = FakeCluster()

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        await asyncio.sleep(4.5 * HEARTBEAT)
        assert looks(cluster) == 5
        for _ in range(100):
            nodes.look()
            await asyncio.sleep(0.001)
        assert looks(cluster) <= 5 + 3
        cluster.move(0, cluster.addresses[2])
        nodes.look()
        await asyncio.sleep(0.1)
        assert nodes.slots.owner(0) == cluster.addresses[2]

    with_nodes(cluster, test)


def test_a_change_is_told() -> None:
    """To who has asked to be told, after it is known."""
    cluster = FakeCluster()
    owners: list[Address | None] = []

    async def test(nodes: Nodes) -> None:
        nodes.on_change = lambda: owners.append(nodes.slots.owner(0))
        await nodes.ready(1.0)
        cluster.move(0, cluster.addresses[1])
        await asyncio.sleep(HEARTBEAT + 1)
        assert owners == cluster.addresses[:2]

    with_nodes(cluster, test)


def test_a_node_that_is_behind_is_not_believed() -> None:
    """What another one said of a later epoch stays."""
    cluster = FakeCluster()

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        old = cluster.slots(), cluster.epoch
        cluster.move(0, cluster.addresses[2])
        nodes.look()
        await asyncio.sleep(0.1)
        [asked] = looking(cluster)
        for address in cluster.addresses:
            cluster.servers[address].view = old
        cluster.servers[asked].lose()
        await asyncio.sleep(HEARTBEAT)
        assert looking(cluster) != [asked]
        assert nodes.slots.owner(0) == cluster.addresses[2]

    with_nodes(cluster, test)


def test_a_node_that_says_that_the_cluster_is_down_is_left_for_another() -> None:
    """It may be cut off from the others. What was known stays, and nobody waits for a heartbeat."""
    cluster = FakeCluster()

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        [asked] = looking(cluster)
        cluster.servers[asked].is_cut_off = True
        cluster.servers[asked].view = ([], 99)
        cluster.move(0, cluster.addresses[2])
        nodes.look()
        await asyncio.sleep(1.0)
        assert looking(cluster) != [asked]
        assert nodes.slots.owner(0) == cluster.addresses[2]
        assert nodes.slots.epoch == cluster.epoch
        assert nodes.error is None

    with_nodes(cluster, test)


def test_it_is_not_ready_before_the_cluster_works() -> None:
    """Whoever waits is told which slots nobody serves; when they are, it is ready within a second."""
    cluster = FakeCluster()
    cluster.needs_all = True
    for slot in (5, 6, 7, 100):
        cluster.owners[slot] = None

    async def test(nodes: Nodes) -> None:
        with pytest.raises(
            ConnectFailed, match=r"the cluster is down: nobody serves slots 5-7, 100"
        ) as caught:
            await nodes.ready(3.0)
        assert not caught.value.permanent
        assert now() == 3.0
        cluster.owners.clear()
        await nodes.ready(2.0)
        assert now() < 5.0
        assert nodes.error is None

    with_nodes(cluster, test)


def test_a_cluster_that_is_down_with_all_slots_served() -> None:
    """Then too few of its primaries see each other."""
    cluster = FakeCluster()
    for server in cluster.servers.values():
        server.is_cut_off = True

    async def test(nodes: Nodes) -> None:
        with pytest.raises(ConnectFailed, match="too many of its nodes cannot be reached"):
            await nodes.ready(1.0)

    with_nodes(cluster, test)


def test_any_node_will_do() -> None:
    """Those that do not answer are passed over; one that hangs takes 1.5 s."""
    cluster = FakeCluster()
    cluster.servers[cluster.addresses[0]].die()
    hung = cluster.servers[cluster.addresses[1]]
    hung.open = lambda: asyncio.sleep(1e6)  # type: ignore[method-assign, assignment, return-value]

    async def test(nodes: Nodes) -> None:
        await nodes.ready(4.0)
        assert looking(cluster) == cluster.addresses[2:]
        assert now() <= 1.5 + 0.01

    with_nodes(cluster, test)


def test_nobody_answers() -> None:
    """The reason of one of them is told, after the time that was given."""
    cluster = FakeCluster()
    for server in cluster.servers.values():
        server.die()

    async def test(nodes: Nodes) -> None:
        with pytest.raises(ConnectFailed, match="refused"):
            await nodes.ready(2.0)
        assert now() == 2.0
        cluster.servers[cluster.addresses[1]].revive()
        await nodes.ready(2.0)

    with_nodes(cluster, test)


@pytest.mark.parametrize("which", [0, 1])
def test_a_connection_that_is_lost_in_the_midst_of_a_look(which: int) -> None:
    """The next node is asked at once."""
    cluster = FakeCluster()

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        [asked] = looking(cluster)
        server = cluster.servers[asked]
        server.is_slow = True
        cluster.move(0, cluster.addresses[2])
        nodes.look()
        await asyncio.sleep(0.2)
        [wire] = server.open_wires()
        wire.run(which)
        server.lose()
        await asyncio.sleep(1.0)
        assert nodes.slots.owner(0) == cluster.addresses[2]

    with_nodes(cluster, test)


def test_a_node_that_does_not_answer_is_given_up() -> None:
    """The look is over after a heartbeat, the connection after two; another node is asked then."""
    cluster = FakeCluster()

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        [asked] = looking(cluster)
        cluster.servers[asked].is_slow = True
        cluster.move(0, cluster.addresses[2])
        nodes.look()
        await asyncio.sleep(3 * HEARTBEAT)
        assert looking(cluster) != [asked]
        assert nodes.slots.owner(0) == cluster.addresses[2]

    with_nodes(cluster, test)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["NOPERM no permission to run 'cluster|slots'", "ERR unknown command 'CLUSTER'"]
)
def test_a_look_that_is_refused(words: str) -> None:
    """Without the topology nothing works: whoever waits, and who has asked to be told, is told why."""
    cluster = FakeCluster()
    told: list[Any] = []
    for server in cluster.servers.values():
        server.says[b"CLUSTER"] = [ErrorReply(words)] * 10

    async def test(nodes: Nodes) -> None:
        nodes.on_refusal = told.append
        with pytest.raises(ConnectFailed, match="have to be allowed") as caught:
            await nodes.ready(5.0)
        assert caught.value.permanent
        assert words in str(caught.value)
        assert now() < 0.01
        assert len(told) == 1
        with pytest.raises(ConnectFailed):
            await nodes.ready(5.0)

    with_nodes(cluster, test)


@pytest.mark.parametrize(
    "reply",
    [
        ErrorReply("BUSY Redis is busy running a script"),
        ErrorReply("LOADING Redis is loading the dataset in memory"),
        b"OK",
        None,
        [[0, 99_999, [b"h", 1]]],
    ],
)
def test_a_node_that_cannot_answer_now(reply: Any) -> None:
    """A script that runs too long refuses nobody for good; another node is asked within a second."""
    cluster = FakeCluster()

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        [asked] = looking(cluster)
        cluster.servers[asked].says[b"CLUSTER"] = [reply] * 100
        cluster.move(0, cluster.addresses[2])
        nodes.look()
        await asyncio.sleep(1.0)
        assert looking(cluster) != [asked]
        assert nodes.slots.owner(0) == cluster.addresses[2]

    with_nodes(cluster, test)


def refuse(cluster: FakeCluster, *which: int) -> None:
    for n in which:
        server = cluster.servers[cluster.addresses[n]]
        server.refusal = ConnectFailed(server.target, "WRONGPASS", permanent=True)
        server.lose()


def test_all_nodes_refuse_us() -> None:
    """That is for good."""
    cluster = FakeCluster()
    refuse(cluster, 0, 1, 2)

    async def test(nodes: Nodes) -> None:
        with pytest.raises(ConnectFailed, match="WRONGPASS") as caught:
            await nodes.ready(5.0)
        assert caught.value.permanent
        assert now() < 0.01

    with_nodes(cluster, test)


def test_one_node_does_not_speak_for_the_others() -> None:
    """One that has left the cluster may be anything, a single server perhaps; the others are asked."""
    cluster = FakeCluster()
    refuse(cluster, 0, 1)

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        assert looking(cluster) == cluster.addresses[2:]
        cluster.servers[cluster.addresses[2]].die()
        await asyncio.sleep(5.0)
        cluster.servers[cluster.addresses[2]].revive()
        await asyncio.sleep(2.0)
        assert looking(cluster) == cluster.addresses[2:]
        refuse(cluster, 2)
        await asyncio.sleep(2.0)
        assert nodes.error is not None

    with_nodes(cluster, test)


def test_a_wrong_url_is_told_though_not_all_hosts_answer() -> None:
    """Before anything is known of the cluster, whoever answers is believed."""
    cluster = FakeCluster()
    refuse(cluster, 1)
    for n in (0, 2):
        cluster.servers[cluster.addresses[n]].die()

    async def test(nodes: Nodes) -> None:
        with pytest.raises(ConnectFailed, match="WRONGPASS"):
            await nodes.ready(5.0)

    with_nodes(cluster, test)


def test_a_remap_that_fails() -> None:
    """It is the user's own function; what it raises is not swallowed."""
    cluster = FakeCluster()
    cluster.reach = {}.__getitem__  # type: ignore[method-assign, assignment]

    async def test(nodes: Nodes) -> None:
        with pytest.raises(ConnectFailed, match="KeyError") as caught:
            await nodes.ready(5.0)
        assert caught.value.permanent

    with_nodes(cluster, test)


def test_closed_while_somebody_waits() -> None:
    """They are told."""
    cluster = FakeCluster()
    for server in cluster.servers.values():
        server.is_slow = True

    async def test(nodes: Nodes) -> None:
        waiting = asyncio.create_task(nodes.ready(None))
        await asyncio.sleep(1.0)
        nodes.close()
        with pytest.raises(Closed):
            await waiting

    with_nodes(cluster, test)


# -- addresses and redirections --------------------------------------------------------------------


def test_addresses_are_mapped_to_where_nodes_can_be_reached() -> None:
    """Those of a look and those of redirections alike."""
    cluster = FakeCluster()
    inside = Address("inside", 1)
    cluster.remap[inside] = cluster.addresses[1]
    cluster.owners[0] = inside

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        assert nodes.slots.owner(0) == cluster.addresses[1]
        assert inside not in nodes.slots.primaries
        nodes.redirected(cluster.addresses[0], Redirect("MOVED", 7, inside), 0.1)
        assert nodes.slots.owner(7) == cluster.addresses[1]

    with_nodes(cluster, test)


def test_a_redirection_without_a_host() -> None:
    """It means the host of the node that said so; of the one that was asked, if nobody knows."""
    cluster = FakeCluster()

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        assert nodes.reach(Address("here", 1), Address("", 7)) == Address("here", 7)
        assert nodes.reach(None, Address("", 7)) == Address("10.0.0.1", 7)
        assert nodes.reach(Address("here", 1), Address("there", 7)) == Address("there", 7)

    with_nodes(cluster, test)


def test_a_slot_that_has_moved_is_tried_at_once() -> None:
    """It is known where; everybody is told once for all that comes in one turn."""
    cluster = FakeCluster()
    changes: list[float] = []

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        nodes.on_change = lambda: changes.append(now())
        here, there = cluster.addresses[:2]
        for slot in range(100):
            assert nodes.redirected(here, Redirect("MOVED", slot, there), 0.1) == 0.0
            assert nodes.slots.owner(slot) == there
        assert changes == []
        await asyncio.sleep(0)
        assert len(changes) == 1
        nodes.redirected(here, Redirect("MOVED", 100, there), 0.1)
        await asyncio.sleep(0)
        assert len(changes) == 2

    with_nodes(cluster, test)


def test_two_nodes_that_name_each_other_are_asked_slowly() -> None:
    """A slot that was moved within the last second has to wait."""
    cluster = FakeCluster()

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        here, there = cluster.addresses[:2]
        assert nodes.redirected(here, Redirect("MOVED", 5, there), 0.1) == 0.0
        assert nodes.redirected(there, Redirect("MOVED", 5, here), 0.1) == 0.1
        await asyncio.sleep(1.0)
        assert nodes.redirected(here, Redirect("MOVED", 5, there), 0.1) == 0.0

    with_nodes(cluster, test)


@pytest.mark.parametrize(
    "redirect",
    [
        Redirect("CLUSTERDOWN"),
        Redirect("TRYAGAIN"),
        Redirect("ASK", 5, Address("10.0.0.1", 7002)),
        Redirect("MOVED", 5, None),
    ],
)
def test_what_does_not_tell_where_a_slot_is(redirect: Redirect) -> None:
    """Is tried again after a while, and a look is due; a slot that is asked for elsewhere has not moved."""
    cluster = FakeCluster()

    async def test(nodes: Nodes) -> None:
        await nodes.ready(1.0)
        await asyncio.sleep(1.0)
        assert nodes.redirected(cluster.addresses[0], redirect, 0.1) == 0.1
        assert nodes.slots.owner(5) == cluster.addresses[0]
        await asyncio.sleep(0.1)
        assert looks(cluster) == 2

    with_nodes(cluster, test)
