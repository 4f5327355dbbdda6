"""What is good and what is bad about a deployment, and what to change.

Lives here: judging facts; no await. Must not live here: asking (`doctor_facts`), users' permissions
(`doctor_access`), columns (`doctor_view`). `doctor` calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from aiopubsub.slots import SLOTS, ranges_of

from .doctor_facts import Deployment, Facts

__all__ = ["Finding", "Level", "judge", "list_some"]

_MIB = 1024 * 1024
_PAGE_BYTES = _MIB  # of a history, about, which a listener reads at a time
_ROOM_BYTES = 8 * _MIB  # for bursts; the server's own soft limit
_SLOW_MS = 250.0
_OLDEST = (6, 2)  # with RESP3 and all that histories need
_OLDEST_SHARDED = (7, 0)  # https://redis.io/docs/latest/commands/spublish/
_LONG_TIMEOUT_MS = 30_000
_SHORT_TIMEOUT_MS = 1_000
_FULL = 0.8  # of maxclients


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: How bad it is.
        subject: What was looked at, in a word or two.
        says: What was found, in a sentence.
        advice: What to change; empty where nothing has to be.
    """

    level: Level
    subject: str
    says: str
    advice: str = ""


def judge(found: Deployment, *, needs_history: bool | None) -> Iterator[Finding]:
    """All that can be told from facts; `None` where nobody said whether histories are used."""
    yield from _versions(found)
    yield from _cluster(found) if found.is_cluster else _single(found)
    yield from _round_trips(found)
    yield from _buffers(found)
    yield from _connections(found)
    if needs_history is not False:
        bad = Level.PROBLEM if needs_history else Level.WARNING
        yield from _memory(found, bad)
        yield from _persistence(found)


# -- servers ---------------------------------------------------------------------------------------


def _versions(found: Deployment) -> Iterator[Finding]:
    kinds = sorted({server.server for server in found.servers})
    says = kinds[0] if len(kinds) == 1 else f"different versions: {', '.join(kinds)}"
    oldest = _OLDEST_SHARDED if found.is_cluster else _OLDEST
    if any(_number(server) < oldest for server in found.servers):
        wanted = (
            "sharded Pub/Sub needs Redis 7.0" if found.is_cluster else "Redis 6.2 is the oldest supported"
        )
        yield Finding(Level.PROBLEM, "version", says, f"{wanted}, or any Valkey")
    elif len(kinds) > 1:
        yield Finding(Level.WARNING, "version", says, "finish the upgrade")
    else:
        yield Finding(Level.OK, "version", says)


def _single(found: Deployment) -> Iterator[Finding]:
    (server,) = found.servers
    if server.is_replica:
        yield Finding(
            Level.PROBLEM,
            "role",
            "a replica: what is published here does not reach subscribers of its primary, and no history "
            "can be written",
            "connect to the primary, or through the sentinels with redis+sentinel://",
        )
        return
    replicas = server.info.get("connected_slaves")
    if replicas is None:
        yield Finding(Level.OK, "role", "a primary")
        return
    yield Finding(Level.OK, "role", f"a primary with {_count(int(replicas), 'replica')}")
    if int(replicas) and server.settings.get("min-replicas-to-write") == "0":
        yield Finding(
            Level.OK,
            "replicas",
            "a write is confirmed before a replica has it: a failover may take back the last messages of "
            "a history, which is then told (ROLLED_BACK)",
            "to bound how many: CONFIG SET min-replicas-to-write 1",
        )


def _cluster(found: Deployment) -> Iterator[Finding]:
    if found.refusal:
        yield Finding(
            Level.PROBLEM,
            "topology",
            f"it may not be asked for: {found.refusal}",
            "ACL SETUSER … +cluster|slots +cluster|info, which every client of a cluster needs",
        )
        return
    yield _coverage(found)
    yield from _addresses(found)
    yield from _replicas(found)
    for timeout, where in _values(found.servers, "cluster-node-timeout"):
        ms = int(timeout)
        says = f"{where}a primary that dies is replaced after about {2 * ms / 1000:g} s"
        advice = f"cluster-node-timeout is {ms} ms; 5000 to 15000 suits most"
        if ms < _SHORT_TIMEOUT_MS:
            says = f"{where}a node that is busy for {ms} ms counts as failing"
        is_odd = not _SHORT_TIMEOUT_MS <= ms <= _LONG_TIMEOUT_MS
        yield Finding(Level.WARNING if is_odd else Level.OK, "node timeout", says, advice if is_odd else "")
    for allowed, where in _values(found.servers, "cluster-allow-pubsubshard-when-down"):
        if allowed == "no":
            yield Finding(
                Level.WARNING,
                "when it is down",
                f"{where}no sharded messages at all while any slot is not served",
                "CONFIG SET cluster-allow-pubsubshard-when-down yes",
            )


def _coverage(found: Deployment) -> Finding:
    count = len(found.uncovered)
    if count:
        says = f"nobody serves {_count(count, 'slot')}: {ranges_of(found.uncovered)}"
        return Finding(Level.PROBLEM, "slots", says, "redis-cli --cluster fix, or bring back the nodes")
    if found.state.get("cluster_state") != "ok":
        says = f"{found.asked} says that the cluster is down"
        return Finding(Level.PROBLEM, "slots", says, "see which of its nodes it cannot reach")
    return Finding(Level.OK, "slots", f"all {SLOTS} are served")


def _addresses(found: Deployment) -> Iterator[Finding]:
    away = [place for place in found.places if place.facts is None]
    for place in away:
        what = "replica" if place.primary is not None else "primary"
        yield Finding(
            Level.WARNING if what == "replica" else Level.PROBLEM,
            "address",
            f"the {what} {place.announced} cannot be reached from here: {place.error}",
            "if it runs, it announces an address of another network: set cluster-announce-ip or "
            "-hostname and -port, or give Client a RedisCluster with address_remap",
        )
    if not away:
        yield Finding(Level.OK, "addresses", f"all {len(found.places)} nodes can be reached from here")


def _replicas(found: Deployment) -> Iterator[Finding]:
    copied = {place.primary for place in found.places}
    alone = [
        str(place.announced) for place in found.places if place.slots and place.announced not in copied
    ]
    if not alone:
        yield Finding(Level.OK, "replicas", "each primary has one at least")
        return
    stops = " and all channels of the cluster with it" if _stops_whole(found.servers) else ""
    yield Finding(
        Level.WARNING,
        "replicas",
        f"none for {list_some(alone)}: if it dies, its channels are silent until it is back{stops}",
        "add replicas"
        + (
            "; CONFIG SET cluster-require-full-coverage no keeps the other primaries going" if stops else ""
        ),
    )


def _stops_whole(servers: Iterable[Facts]) -> bool:
    return any(server.settings.get("cluster-require-full-coverage") == "yes" for server in servers)


# -- what every server has -------------------------------------------------------------------------


def _round_trips(found: Deployment) -> Iterator[Finding]:
    if not found.servers:
        return
    slowest = max(found.servers, key=lambda server: server.p99_ms)
    of_whom = f" to {slowest.name}, the slowest" if len(found.servers) > 1 else ""
    yield Finding(
        Level.WARNING if slowest.p99_ms > _SLOW_MS else Level.OK,
        "round trip",
        f"{slowest.p50_ms:.2f} ms{of_whom}; 99 of 100 within {slowest.p99_ms:.2f} ms",
        "a publish that is awaited takes so long: run closer to it" if slowest.p99_ms > _SLOW_MS else "",
    )


def _buffers(found: Deployment) -> Iterator[Finding]:
    subject = "output buffer"
    yield from _untold(found, "client-output-buffer-limit", subject)
    for text, where in _values(found.servers, "client-output-buffer-limit"):
        hard, soft, seconds = _pubsub_limit(text)
        smallest = min(limit for limit in (hard, soft) if limit) if hard or soft else 0
        says = f"{where}a listener that is {_size(hard)} behind"
        says += f", or {_size(soft)} for {seconds} s, is hung up on" if soft else " is hung up on"
        raise_it = (
            "CONFIG SET client-output-buffer-limit 'pubsub 33554432 8388608 60' is the server's default"
        )
        if not smallest:
            says = f"{where}no limit: a listener that stops reading fills the server's memory"
            yield Finding(Level.WARNING, subject, says, raise_it)
        elif smallest < 3 * _PAGE_BYTES:
            says += "; a page of a history does not fit, and short bursts end connections"
            yield Finding(Level.PROBLEM, subject, says, raise_it)
        elif smallest < _ROOM_BYTES:
            yield Finding(Level.WARNING, subject, f"{says}; short bursts may be too much", raise_it)
        else:
            yield Finding(Level.OK, subject, says)


def _connections(found: Deployment) -> Iterator[Finding]:
    for server in found.servers:
        most, now = server.settings.get("maxclients"), server.info.get("connected_clients")
        if most is not None and now is not None and int(now) > _FULL * int(most):
            says = f"{server.name} has {now} of the {most} that it allows"
            yield Finding(Level.WARNING, "connections", says, "raise maxclients, or share Clients")


def _memory(found: Deployment, bad: Level) -> Iterator[Finding]:
    subject = "eviction"
    yield from _untold(found, "maxmemory-policy", subject)
    for server in found.servers:
        policy, most = server.settings.get("maxmemory-policy"), server.settings.get("maxmemory")
        if policy in (None, "noeviction") or most == "0":
            continue
        which = (
            "any history and any cursor" if str(policy).startswith("allkeys") else "histories with a ttl"
        )
        yield Finding(
            bad,
            subject,
            f"{server.name} has maxmemory-policy {policy}: when its memory is full, {which} may go",
            "CONFIG SET maxmemory-policy noeviction, or keep histories on a server of their own",
        )
        return
    if any("maxmemory-policy" in server.settings for server in found.servers):
        yield Finding(Level.OK, subject, "no history is evicted")


def _persistence(found: Deployment) -> Iterator[Finding]:
    subject = "persistence"
    yield from _untold(found, "appendonly", subject)
    for appends, where in _values(found.servers, "appendonly"):
        if appends == "yes":
            yield Finding(Level.OK, subject, f"{where}histories outlive a restart (append-only file)")
            continue
        has_snapshots = any(server.settings.get("save") for server in found.servers)
        after = "go back to the last snapshot" if has_snapshots else "are gone"
        says = f"{where}histories {after} when the server restarts, which subscribers are told"
        yield Finding(
            Level.WARNING, subject, says, "CONFIG SET appendonly yes, and in its configuration file"
        )


# -- inside ----------------------------------------------------------------------------------------


def _untold(found: Deployment, setting: str, subject: str) -> Iterator[Finding]:
    silent = [server.name for server in found.servers if setting not in server.settings]
    if silent:
        where = "" if len(silent) == len(found.servers) else f" of {list_some(silent)}"
        says = f"CONFIG GET {setting}{where} is not allowed to this user: not checked"
        yield Finding(Level.UNKNOWN, subject, says)


def _values(servers: list[Facts], setting: str) -> Iterator[tuple[str, str]]:
    """Each value of a setting, and where it has it: empty where all have the same."""
    by_value: dict[str, list[str]] = {}
    for server in servers:
        if setting in server.settings:
            by_value.setdefault(server.settings[setting], []).append(server.name)
    for value, names in by_value.items():
        yield value, "" if len(by_value) == 1 else f"{list_some(names)}: "


def _pubsub_limit(text: str) -> tuple[int, int, int]:
    """The hard limit and the soft one, in bytes, and for how many seconds that may be exceeded; 0: none."""
    words = text.split()
    at = words.index("pubsub") + 1
    hard, soft, seconds = (int(word) for word in words[at : at + 3])
    return hard, soft, seconds


def _number(server: Facts) -> tuple[int, ...]:
    """Of Redis' version; Valkey is as good as the latest."""
    if server.product == "Valkey":
        return (99,)
    return tuple(int(part) for part in server.version.split(".")[:2] if part.isdigit())


def _size(count: int) -> str:
    if count >= _MIB:
        return f"{count / _MIB:.4g} MiB"
    return f"{count / 1024:.4g} KiB" if count >= 1024 else f"{count} bytes"


def _count(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def list_some(names: list[str]) -> str:
    """The first three, and how many there are beside them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
