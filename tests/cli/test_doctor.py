"""What the doctor says of servers that are well, and of servers that are not."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
import redis

from aiopubsub.cli.doctor_facts import Deployment, Facts
from aiopubsub.cli.doctor_findings import Level, judge
from aiopubsub.cli.doctor_sentinels import Sentinel, judge_sentinels
from aiopubsub.slots import Address
from aiopubsub.testing import Cluster, Sentinels, Server, free_port
from tests.cli.conftest import InProcess
from tests.cli.process import DEADLINE_S, Cli, run
from tests.conftest import FINDERS, executable, start

LISTENS = "+ping +subscribe +unsubscribe"  # what docs/history.md says, in parts
APPENDS = "+ping +publish +evalsha +script|load +xadd +xrange +xrevrange +pexpire +persist +time"


Examine: TypeAlias = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def examine(in_process: InProcess) -> Examine:
    """The status, and what `--json` says."""

    def call(url: str, *options: str) -> tuple[int, dict[str, Any]]:
        ended = in_process("doctor", "--json", "--url", url, *options)
        assert ended.stderr == "", ended.stderr
        told = json.loads(ended.stdout)
        assert isinstance(told, dict)
        return ended.returncode, told

    return call


def found(told: dict[str, Any], subject: str) -> dict[str, Any]:
    """The only finding about this."""
    (finding,) = (finding for finding in told["findings"] if finding["subject"] == subject)
    return dict(finding)


def levels(told: dict[str, Any]) -> dict[str, str]:
    return {finding["subject"]: finding["level"] for finding in told["findings"]}


def nothing_is_left(port: int) -> bool:
    """No key that lives on; those that end in a millisecond are given that long."""
    with redis.Redis(port=port) as admin:
        give_up = time.monotonic() + DEADLINE_S
        while admin.keys("aiopubsub:*doctor*") and time.monotonic() < give_up:
            pass
        return not admin.keys("*doctor*") and not admin.pubsub_channels("*doctor*")


@pytest.fixture(scope="module", params=[name for name in FINDERS if name != "redis7"])
def durable(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server as it should be."""
    server = start(request.param, "--appendonly", "yes")
    yield server
    server.stop()


@pytest.fixture
def own() -> Iterator[Server]:
    """A server of the test's own, which may be spoilt."""
    server = start("valkey9", "--appendonly", "yes")
    yield server
    server.stop()


def test_a_healthy_server(durable: Server, examine: Examine) -> None:
    """All is well: every finding is ok, status 0, and nothing stays behind."""
    status, told = examine(durable.url, "--need", "publish,subscribe,name")
    assert (status, told["status"], told["deployment"]) == (0, "ok", "a single server")
    assert set(levels(told).values()) == {"ok"}, told
    assert {"version", "role", "round trip", "output buffer", "eviction", "persistence"} <= levels(
        told
    ).keys()
    assert {"publish with history", "subscribe with a name", "probe with history"} <= levels(told).keys()
    (server,) = told["servers"]
    assert (server["role"], server["user"]) == ("primary", "default")
    assert 0 < server["ping_ms"]["p50"] <= server["ping_ms"]["p99"]
    assert nothing_is_left(durable.port)


def test_only_what_is_needed(valkey: Server, examine: Examine) -> None:
    """Without histories nothing is said of them."""
    status, told = examine(valkey.url, "--need", "publish,subscribe")
    assert (status, told["status"]) == (0, "ok")
    assert (
        not {"eviction", "persistence", "publish with history", "probe with history"} & levels(told).keys()
    )


def test_a_report_at_a_terminal(valkey: Server) -> None:
    """Colours, what to change, and a summary; a server without persistence is a warning, status 0."""
    with Cli("doctor", "--url", valkey.url, at_terminal=True) as doctor:
        report = doctor.out.until(b"1 warning.").decode()
        assert doctor.status() == 0
    assert "\x1b[32mok" in report
    assert "\x1b[33mwarning" in report
    plain = re.sub(r"\x1b\[[0-9;]*m", "", report)
    assert "A single server" in plain
    assert "→ CONFIG SET appendonly yes" in plain


def test_plain_lines_without_a_terminal(valkey: Server) -> None:
    """A line each: level, subject, what was found, advice, with tabs between; no colours."""
    ended = run("doctor", "--url", valkey.url)
    lines = [line.split("\t") for line in ended.stdout.decode().splitlines()]
    assert ended.returncode == 0
    assert lines[0][:2] == ["server", f"127.0.0.1:{valkey.port}"]
    assert {line[0] for line in lines[1:]} == {"ok", "warning"}
    assert ["ok", "publish", "allowed"] in lines
    assert b"\x1b" not in ended.stdout


# -- permissions -----------------------------------------------------------------------------------


def as_user(server: Server, rules: str) -> str:
    """A user of these rules; the URL to log in as it."""
    with redis.Redis(port=server.port) as admin:
        admin.acl_deluser("low")
        admin.execute_command("ACL", "SETUSER", "low", "on", ">s3cret", "resetchannels", *rules.split())
    return server.url.replace("//", "//low:s3cret@")


def test_a_user_without_a_permission(durable: Server, examine: Examine) -> None:
    """What is missing is named in words for ACL SETUSER; what is not needed is a warning."""
    url = as_user(durable, f"~aiopubsub:* &aiopubsub:* -@all {LISTENS}")
    status, told = examine(url)
    assert (status, told["status"]) == (1, "problem")
    assert found(told, "publish") == {
        "level": "problem",
        "subject": "publish",
        "says": "not allowed, without +publish",
        "advice": "ACL SETUSER … +publish",
    }
    assert found(told, "subscribe")["level"] == "ok"
    with_history = found(told, "publish with history")
    assert with_history["level"] == "warning"
    assert set(with_history["advice"].split()) == {"ACL", "SETUSER", "…", *APPENDS.split()} - {"+ping"}
    assert found(told, "subscribe with a name")["advice"] == "ACL SETUSER … +xrange +xrevrange +set +get"
    assert found(told, "probe")["level"] == "unknown"
    assert {found(told, name)["level"] for name in ("output buffer", "eviction", "persistence")} == {
        "unknown"
    }
    assert "not allowed to this user" in found(told, "output buffer")["says"]
    assert nothing_is_left(durable.port)


def test_the_least_permissions(durable: Server, examine: Examine) -> None:
    """With exactly what the docs name everything works, messages that come back included."""
    url = as_user(durable, f"~aiopubsub:* &aiopubsub:doctor:* -@all {LISTENS} {APPENDS} +get +set")
    status, told = examine(url)
    assert status == 0
    roles = (
        "publish",
        "subscribe",
        "publish with history",
        "subscribe with history",
        "subscribe with a name",
    )
    for subject in (*roles, "probe", "probe with history"):
        assert found(told, subject)["level"] == "ok", told
    assert nothing_is_left(durable.port)


def test_a_forbidden_channel(durable: Server, examine: Examine) -> None:
    """A user of other channels: that is said, and with --channel it is about theirs."""
    url = as_user(durable, f"~aiopubsub:* &orders -@all {LISTENS} {APPENDS}")
    status, told = examine(url, "--need", "publish,subscribe")
    assert status == 1
    assert "&aiopubsub:doctor:" in found(told, "publish")["says"]
    assert "--channel" in found(told, "publish")["advice"]
    status, told = examine(url, "--need", "publish,subscribe", "--channel", "orders")
    assert (status, found(told, "publish")["level"]) == (0, "unknown")  # it may be in use
    url = as_user(durable, f"~aiopubsub:* &orders -@all {LISTENS} {APPENDS} +multi +discard")
    status, told = examine(url, "--channel", "orders")
    assert (status, found(told, "publish")["level"]) == (0, "ok")
    assert (found(told, "publish with history")["level"], found(told, "probe")["level"]) == (
        "ok",
        "unknown",
    )
    _, told = examine(url, "--need", "publish", "--channel", "other")
    assert found(told, "publish")["advice"] == "ACL SETUSER … &other"


def test_a_channel_that_is_in_use_is_not_published_to(valkey: Server, examine: Examine) -> None:
    """With --channel nothing comes on it, and its history stays as it is."""
    assert run("pub", "busy", "kept", "--history", "--url", valkey.url).returncode == 0
    with redis.Redis(port=valkey.port) as admin, admin.pubsub() as pubsub:
        before = admin.dump("aiopubsub:{busy}:history"), admin.pttl("aiopubsub:{busy}:history") > 1000
        pubsub.subscribe("busy")
        assert pubsub.get_message(timeout=DEADLINE_S)
        for url in (valkey.url, as_user(valkey, "~* &* +@all -acl")):
            status, told = examine(url, "--channel", "busy")
            assert (status, found(told, "subscribe with a name")["level"]) == (0, "ok")
        admin.publish("busy", "the end")
        message = pubsub.get_message(timeout=DEADLINE_S)
        assert message is not None
        assert message["data"] == b"the end"
        after = admin.dump("aiopubsub:{busy}:history"), admin.pttl("aiopubsub:{busy}:history") > 1000
        assert before == after


def test_another_user(valkey: Server, examine: Examine) -> None:
    """An operator asks what a service's user may do; who is not there is a sentence."""
    as_user(valkey, f"&orders -@all {LISTENS}")
    status, told = examine(valkey.url, "--user", "low", "--channel", "orders")
    assert status == 1
    assert found(told, "subscribe")["level"] == "ok"
    assert found(told, "subscribe with history")["advice"] == "ACL SETUSER … +xrange +xrevrange"
    assert found(told, "publish")["advice"] == "ACL SETUSER … +publish"
    assert found(told, "probe")["level"] == "ok"  # by the URL's user
    ended = run("doctor", "--url", valkey.url, "--user", "nobody")
    assert ended.returncode == 1
    assert ended.stderr.startswith(b"aiopubsub: --user: the server does not tell what nobody may do")
    assert ended.stderr.count(b"\n") == 1


# -- settings --------------------------------------------------------------------------------------


def test_a_tiny_output_buffer(own: Server, examine: Examine) -> None:
    """A listener would be hung up on at the first burst: a problem, with what to set."""
    with redis.Redis(port=own.port) as admin:
        admin.config_set("client-output-buffer-limit", "pubsub 65536 0 0")
    status, told = examine(own.url)
    assert status == 1
    buffer = found(told, "output buffer")
    assert buffer["level"] == "problem"
    assert "64 KiB" in buffer["says"]
    assert "client-output-buffer-limit" in buffer["advice"]
    with redis.Redis(port=own.port) as admin:
        admin.config_set("client-output-buffer-limit", "pubsub 0 0 0")
    status, told = examine(own.url)
    assert (status, found(told, "output buffer")["level"]) == (0, "warning")


def test_an_eviction_policy(own: Server, examine: Examine) -> None:
    """Where memory is bounded and histories may go it is a warning, a problem for whoever needs them."""
    with redis.Redis(port=own.port) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        assert found(examine(own.url)[1], "eviction")["level"] == "ok"  # nothing is evicted without a bound
        admin.config_set("maxmemory", "100mb")
    status, told = examine(own.url)
    assert (status, found(told, "eviction")["level"]) == (0, "warning")
    assert "any history and any cursor" in found(told, "eviction")["says"]
    status, told = examine(own.url, "--need", "history")
    assert (status, found(told, "eviction")["level"]) == (1, "problem")
    with redis.Redis(port=own.port) as admin:
        admin.config_set("maxmemory-policy", "volatile-ttl")
    assert "histories with a ttl" in found(examine(own.url)[1], "eviction")["says"]


def test_a_replica(valkey: Server, own: Server, examine: Examine) -> None:
    """What is published at a replica does not reach everybody: a problem; the primary has one replica."""
    with redis.Redis(port=own.port) as admin, redis.Redis(port=valkey.port) as primary:
        admin.replicaof("127.0.0.1", valkey.port)
        give_up = time.monotonic() + DEADLINE_S
        while not primary.info("replication")["connected_slaves"]:
            assert time.monotonic() < give_up
        status, told = examine(own.url)
        assert (status, found(told, "role")["level"]) == (1, "problem")
        assert found(told, "probe with history")["level"] == "problem"
        assert found(examine(valkey.url)[1], "role")["says"] == "a primary with 1 replica"
        assert found(examine(valkey.url)[1], "replicas")["advice"].endswith("min-replicas-to-write 1")


# -- clusters --------------------------------------------------------------------------------------


@pytest.fixture(params=["redis7", "valkey9"])
def cluster(request: pytest.FixtureRequest, clusters: Callable[[str], Cluster]) -> Cluster:
    """A cluster whose nodes all name each other's replicas, which takes them a second."""
    shared = clusters(request.param)

    async def all_named() -> None:
        for node in shared.nodes:
            while min(len(row) for row in await node.ask("CLUSTER", "SLOTS")) < 4:
                await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(all_named(), DEADLINE_S))
    return shared


def test_a_healthy_cluster(cluster: Cluster, examine: Examine) -> None:
    """Every node is looked at, a message goes through every primary, and nothing stays behind."""
    status, told = examine(cluster.nodes[0].url.replace("redis", "redis+cluster", 1))
    assert (status, told["deployment"]) == (0, "a cluster")
    assert {node["address"] for node in told["servers"]} == {f"127.0.0.1:{n.port}" for n in cluster.nodes}
    assert sorted(node["slots"] for node in told["servers"]) == [0, 0, 0, 5461, 5461, 5462]
    assert {subject for subject, level in levels(told).items() if level != "ok"} == {"persistence"}
    assert {"slots", "addresses", "replicas", "node timeout"} <= levels(told).keys()
    assert found(told, "probe")["says"].startswith("3 messages, one to each primary, came back")
    assert all(nothing_is_left(node.port) for node in cluster.nodes)


def test_an_announced_address_that_cannot_be_reached(cluster: Cluster, examine: Examine) -> None:
    """Which node, from where it was tried, and what to set; the others are looked at all the same."""
    node = asyncio.run(cluster.primaries())[0]
    try:
        asyncio.run(node.ask("CONFIG", "SET", "cluster-announce-port", free_port()))
        status, told = examine(node.url.replace("redis", "redis+cluster", 1))
    finally:
        asyncio.run(node.ask("CONFIG", "SET", "cluster-announce-port", 0))
        asyncio.run(cluster.wait_until_ok())
    assert status == 1
    address = found(told, "address")
    assert address["level"] == "problem"
    assert "cannot be reached from here" in address["says"]
    assert "cluster-announce-ip" in address["advice"]
    assert len(told["servers"]) == 5


def test_a_cluster_where_the_topology_may_not_be_asked_for(cluster: Cluster, examine: Examine) -> None:
    """The permissions that every client of a cluster needs, by name."""
    for node in cluster.nodes:
        as_user(node, f"~* &* -@all {LISTENS}")
    status, told = examine(cluster.url.replace("//", "//low:s3cret@"))
    assert status == 1
    assert "+cluster|slots" in found(told, "topology")["advice"]


# -- behind Sentinel -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    """A primary with two replicas, and three sentinels."""
    with Sentinels(executable("redis7"), "--appendonly", "yes", down_after_s=10) as running:
        yield running


def test_behind_sentinel(sentinels: Sentinels, examine: Examine) -> None:
    """Who is named, how many replicas there are, and when a primary is replaced."""
    status, told = examine(sentinels.url)
    assert (status, told["deployment"]) == (0, "a primary behind Sentinel")
    assert found(told, "sentinels")["says"] == f"3 of 3 name 127.0.0.1:{sentinels.primary.port}"
    assert found(told, "role")["says"] == "a primary with 2 replicas"
    assert "silent for" in found(told, "failover time")["says"]
    assert (found(told, "probe")["level"], found(told, "probe with history")["level"]) == ("ok", "ok")
    assert nothing_is_left(sentinels.primary.port)


def test_sentinels_that_are_down_or_not_named(sentinels: Sentinels, examine: Examine) -> None:
    """Each that says nothing; too few for a failover are a problem; those that the URL leaves out."""
    one, two, three = sentinels.sentinels
    service = sentinels.url.rpartition("/")[2]
    _, told = examine(f"redis+sentinel://127.0.0.1:{one.port}/{service}")
    assert {f["says"] for f in told["findings"]} >= {"they know 3, and the URL names 1"}
    two.kill()
    three.kill()
    try:
        give_up = time.monotonic() + DEADLINE_S
        while "failover" not in levels(told := examine(sentinels.url)[1]) and time.monotonic() < give_up:
            pass  # the last one has to find out that it is alone
        assert found(told, "failover")["level"] == "problem"
        assert [f["says"].split()[0] for f in told["findings"] if f["subject"] == "sentinel"] == [
            f"127.0.0.1:{two.port}",
            f"127.0.0.1:{three.port}",
        ]
    finally:
        two.start()
        three.start()


def test_judging_sentinels() -> None:
    """Those that disagree, without replicas, and with times that do not suit."""
    one = Sentinel("a:1", primary="p:1", others=1, replicas=0, down_after_ms=100)
    other = Sentinel("b:1", primary="p:2", others=1, replicas=1, down_after_ms=50)
    judged = {f.subject: f.level for f in judge_sentinels([one, other])}
    assert judged == {"sentinels": "problem", "failover": "problem", "failover time": "warning"}


# -- what cannot be used ---------------------------------------------------------------------------


def test_another_kind_of_deployment(valkey: Server, clusters: Callable[[str], Cluster]) -> None:
    """A sentence that says which URL to use, and status 1."""
    node = clusters("valkey9").nodes[0]
    for url, words in (
        (f"redis://127.0.0.1:{node.port}", b"it is a node of a cluster: use redis+cluster://"),
        (f"redis+cluster://127.0.0.1:{valkey.port}", b"it is a single server: use redis://"),
    ):
        ended = run("doctor", "--url", url)
        assert ended.returncode == 1
        assert ended.stdout == b""
        assert words in ended.stderr
        assert ended.stderr.count(b"\n") == 1


def test_a_name_that_is_no_need() -> None:
    """A sentence with those there are, and status 2."""
    ended = run("doctor", "--need", "publish,fly")
    assert ended.returncode == 2
    assert ended.stderr == b"aiopubsub: --need: fly is not one of publish, subscribe, history, name\n"


# -- judging, without a server ---------------------------------------------------------------------


def server(**more: Any) -> Facts:
    values: dict[str, Any] = {
        "name": "a:1",
        "product": "Redis",
        "version": "7.2.4",
        "is_replica": False,
        "user": "default",
        "settings": {},
        "info": {},
        "pings_ms": [1.0] * 100,
    }
    return Facts(**(values | more))


def judged(deployment: Deployment) -> dict[str, tuple[Level, str]]:
    return {f.subject: (f.level, f.says) for f in judge(deployment, needs_history=None)}


def cluster_of(*servers: Facts, **more: Any) -> Deployment:
    state = {"cluster_state": "ok"}
    return Deployment("a cluster", list(servers), **({"asked": Address("a", 1), "state": state} | more))


def test_versions() -> None:
    """Too old is a problem, earlier for a cluster; several are a warning."""
    assert judged(Deployment("", [server(version="6.0.9")]))["version"][0] is Level.PROBLEM
    assert judged(Deployment("", [server(version="6.2.1")]))["version"][0] is Level.OK
    assert judged(cluster_of(server(version="6.2.1")))["version"][0] is Level.PROBLEM
    mixed = judged(cluster_of(server(), server(version="7.4.0")))["version"]
    assert mixed == (Level.WARNING, "different versions: Redis 7.2.4, Redis 7.4.0")


def test_a_cluster_that_is_not_whole() -> None:
    """Slots that nobody serves are named; so is a cluster that says that it is down."""
    level, says = judged(cluster_of(server(), uncovered=[5, 6, 7, 100]))["slots"]
    assert (level, says) == (Level.PROBLEM, "nobody serves 4 slots: 5-7, 100")
    assert judged(cluster_of(server(), state={"cluster_state": "fail"}))["slots"][0] is Level.PROBLEM


@pytest.mark.parametrize(("ms", "level"), [(500, "warning"), (5000, "ok"), (60_000, "warning")])
def test_node_timeouts(ms: int, level: str) -> None:
    """Neither so short that a busy node counts as failing, nor minutes until a dead one is replaced."""
    deployment = cluster_of(server(settings={"cluster-node-timeout": str(ms)}))
    assert judged(deployment)["node timeout"][0] == level


def test_connections_and_round_trips() -> None:
    """Nearly all connections in use, and a path that takes long."""
    full = server(settings={"maxclients": "100"}, info={"connected_clients": "90"})
    assert judged(Deployment("", [full]))["connections"][0] is Level.WARNING
    slow = server(pings_ms=[1.0] * 98 + [400.0] * 2)
    level, says = judged(Deployment("", [slow]))["round trip"]
    assert (level, says) == (Level.WARNING, "1.00 ms; 99 of 100 within 400.00 ms")


def test_settings_that_differ() -> None:
    """Where they do, it is said whose is which."""
    one, other = ({"appendonly": value} for value in ("yes", "no"))
    deployment = cluster_of(server(settings=one), server(name="b:2", settings=other))
    says = [f.says for f in judge(deployment, needs_history=True) if f.subject == "persistence"]
    assert [text.split(": ")[0] for text in says] == ["a:1", "b:2"]
