"""One server of a cluster, and what it says of itself and of the others.

Lives here: asking, and reading `CLUSTER NODES`. Must not live here: what is done to several nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from aiopubsub.testing.servers import HOST, Server

__all__ = ["Entry", "Node", "ranges_of"]

_ASK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Entry:
    """What one node says of another, or of itself: a line of `CLUSTER NODES`.

    Attributes:
        id: The node's name, 40 letters.
        flags: As the server has them: `myself`, `master`, `slave`, `fail?`, `fail`, `handshake`, …
        primary: The id of the node that it copies, or `None`.
        epoch: Its config epoch; of two nodes that claim a slot the higher one has it.
        slots: What it serves; slots on their way are still the source's.
        open_slots: Slots in a state of migration, which a node tells of itself alone.
    """

    id: str
    flags: frozenset[str]
    primary: str | None
    epoch: int
    slots: frozenset[int]
    open_slots: frozenset[int]

    def __str__(self) -> str:
        """As short as it can be told."""
        flags = ",".join(sorted(self.flags))
        copied = f" of {self.primary[:8]}" if self.primary else ""
        slots = " ".join(f"{first}-{last}" for first, last in ranges_of(self.slots))
        return f"{self.id[:8]} {flags}{copied}, epoch {self.epoch}, slots {slots or 'none'}"

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read `<id> <address> <flags> <primary> <ping> <pong> <epoch> <link> <slot> …`."""
        name, _, flags, primary, _, _, epoch, _, *slots = line.split()
        return cls(
            name,
            frozenset(flags.split(",")),
            None if primary == "-" else primary,
            int(epoch),
            frozenset(_slots(text for text in slots if text[0] != "[")),
            frozenset(int(text[1:].split("-")[0]) for text in slots if text[0] == "["),
        )


class Node(Server):
    """A server of a `Cluster`, which makes it; `start`, `kill`, `pause` and the like are a `Server`'s.

    Attributes:
        id: Its name in the cluster, 40 letters; it keeps it when it is killed and started again.
        host: Where it listens.
        bus_port: Where the other nodes reach it.
        password: Of the whole cluster, or `None`.
    """

    def __init__(
        self,
        executable: str,
        *options: str,
        port: int,
        own_bus_port: int,
        bus_port: int,
        password: str | None,
        tls: tuple[str, str, str] | None,
    ) -> None:
        super().__init__(
            executable,
            *("--cluster-port", str(own_bus_port), "--cluster-announce-bus-port", str(bus_port)),
            *(("--requirepass", password, "--masterauth", password) if password else ()),
            *(_tls_options(port, *tls) if tls else ()),
            *options,
            port=port,
        )
        self.id = ""
        self.host = HOST
        self.bus_port = bus_port
        self.password = password
        self._scheme = "redis" if tls is None else "rediss"
        self._admin: Any = redis.Redis(  # redis-py does not say what it returns
            HOST,
            port,
            password=password,
            decode_responses=True,
            encoding_errors="surrogateescape",  # see _encoded
            protocol=3,
            socket_timeout=_ASK_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            ssl=tls is not None,
            ssl_ca_certs=tls[2] if tls else None,
        )
        self._admin.response_callbacks.clear()  # the server's own words

    def __repr__(self) -> str:
        return f"<Node {self.id[:8]} {HOST}:{self.port}>"

    async def ask(self, *words: str | int) -> Any:
        """Send it one command as an operator would, and return the answer; 10 s at most.

        Raises:
            redis.RedisError: The server's refusal, or that it can't be reached.
        """
        return await asyncio.to_thread(self._admin.execute_command, *_encoded(words))

    async def ask_all(self, commands: Iterable[tuple[str | int, ...]]) -> list[Any]:
        """Send it many commands in one go; the first refusal is raised when all are answered."""
        with self._admin.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*_encoded(command))
            return await asyncio.to_thread(pipeline.execute)

    async def info(self, section: str) -> dict[str, str]:
        """Its `INFO` of one section, or with `"cluster info"` its `CLUSTER INFO`: field to text."""
        words = ("CLUSTER", "INFO") if section == "cluster info" else ("INFO", section)
        lines = str(await self.ask(*words)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def view(self) -> dict[str, Entry]:
        """What it knows of every node, itself among them: id to entry."""
        lines = str(await self.ask("CLUSTER", "NODES")).splitlines()
        return {entry.id: entry for entry in map(Entry.parse, lines)}

    def _end(self, how: Any) -> None:
        super()._end(how)
        self._admin.close()


def _encoded(words: tuple[str | int, ...]) -> list[bytes | int]:
    """Keys may be any bytes: what is not UTF-8 goes through texts unharmed."""
    return [word.encode(errors="surrogateescape") if isinstance(word, str) else word for word in words]


def ranges_of(slots: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run of neighbours."""
    runs: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if runs and slot == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], slot)
        else:
            runs.append((slot, slot))
    return runs


def _tls_options(port: int, certificate: str, key: str, authority: str) -> tuple[str, ...]:
    """Encrypt what clients, replicas and the bus say; there is no port for plain text."""
    return (
        *("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cluster", "yes", "--tls-replication", "yes"),
        *("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", authority),
    )


def _slots(ranges: Iterable[str]) -> Iterator[int]:
    """`0-5460` and `7`: each of them."""
    for text in ranges:
        first, _, last = text.partition("-")
        yield from range(int(first), int(last or first) + 1)
