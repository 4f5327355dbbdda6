"""Where messages come from: a raw publisher in a process of its own.

It publishes a chunk of messages for each byte that it is given. So whoever receives them decides how
many are on their way: few enough that the server's limit for slow subscribers (32 MB, or 8 MB for a
minute: `client-output-buffer-limit pubsub`) is never near, and that no library has to hold more of
them than another. Its commands are packed beforehand, and the server is told not to reply.

Lives here: both ends, the handle and the process. `measures.receive` calls.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hiredis

from .histories import frame_of, store
from .job import Job
from .raw import Address, RawConnection, pack

__all__ = ["Flow", "Source", "main", "number_in"]

_OUTSTANDING_BYTES = 1024 * 1024  # on their way to one subscriber
_LEAST_OUTSTANDING = 512  # with many subscribers
_CHUNK = 256
_GRANT = b"."
_READY = "ready"


@dataclass(frozen=True)
class Flow:
    """How messages flow.

    Attributes:
        chunk: Messages that are published for a grant.
        window: Chunks that may be on their way.
        cycle: Messages after which the payloads begin again, a multiple of `chunk`.
    """

    chunk: int
    window: int
    cycle: int

    @classmethod
    def of(cls, job: Job) -> Flow:
        """What fits a job: the more subscribers there are, the fewer messages are on their way.

        But no fewer than one read brings, so that a subscriber among many is woken for as many at a time
        as one that is alone.
        """
        message_bytes = job.payload_bytes + 96  # and what RESP takes
        outstanding = max(8, _OUTSTANDING_BYTES // message_bytes)
        if job.subscribers > 1:
            outstanding = max(_LEAST_OUTSTANDING, outstanding // job.subscribers)
        chunk = min(_CHUNK, max(1, outstanding // 4))
        laps = -(-max(job.channels, chunk) // chunk)
        return cls(chunk=chunk, window=outstanding // chunk, cycle=laps * chunk)

    def number_of_last(self, chunks: int) -> int:
        """The number in the payload of the last message, after so many chunks."""
        return (chunks * self.chunk - 1) % self.cycle


class Source:
    """The process, as its user sees it. Ready when it is made.

    Raises:
        RuntimeError: It cannot publish; with the reason.
    """

    def __init__(self, job: Job, flow: Flow) -> None:
        child = str(Path(__file__).with_name("child.py"))
        self._process = subprocess.Popen(  # noqa: S603  # a command line of our own
            [sys.executable, "-P", child, "source"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None  # noqa: S101  # for the type checkers
        assert self._process.stdout is not None  # noqa: S101
        self._fd = self._process.stdin.fileno()
        order = {
            "address": asdict(job.address),
            "channels": job.channel_names(),
            "payload_bytes": job.payload_bytes,
            "flow": asdict(flow),
            "has_history": job.has_history,
        }
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline().decode().strip()
        if said != _READY:
            raise RuntimeError(f"the source of messages failed: {said or 'it ended'}")

    def grant(self, chunks: int) -> None:
        """Let it publish so many chunks more."""
        os.write(self._fd, _GRANT * chunks)

    def close(self) -> None:
        """End the process, and wait until it has ended."""
        self._process.communicate(timeout=10)


def number_in(payload: bytes) -> int:
    """The number that a payload of the source begins with."""
    return int(payload.split(b" ", 1)[0])


def main() -> None:
    """Publish what is granted until standard input ends."""
    order = _read_order()
    address = Address(**order["address"])
    try:
        connection = RawConnection(address)
        connection.call("PUBLISH", order["channels"][0] + ":source", "")  # a refusal is seen here
    except (OSError, hiredis.ReplyError) as error:
        _say(str(error))
        return
    flow = Flow(**order["flow"])
    chunks = _pack(order["channels"], order["payload_bytes"], flow, has_history=order["has_history"])
    if order["has_history"]:  # the last of the cycle, so that the first follows on it
        store(connection, order["channels"][0], [b""], first=flow.cycle - 1)
    connection.send(pack(("CLIENT", "REPLY", "OFF")))
    _say(_READY)
    at = 0
    while granted := os.read(0, 4096):
        for _ in granted:
            connection.send(chunks[at])
            at = (at + 1) % len(chunks)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _read_order() -> Any:
    """The first line of standard input. Nothing is granted before we say that we are ready."""
    line = bytearray()
    while not line.endswith(b"\n"):
        line += os.read(0, 65_536)
    return json.loads(line)


def _pack(channels: list[str], payload_bytes: int, flow: Flow, *, has_history: bool) -> list[bytes]:
    """Each channel in turn, in an order that no cache can foresee; each payload begins with a number."""
    shuffled = random.Random(1).sample(channels, len(channels))  # noqa: S311  # no secret
    payloads = [(b"%d " % number).ljust(payload_bytes, b"x") for number in range(flow.cycle)]
    if has_history:
        payloads = [frame_of(number, flow.cycle, payload) for number, payload in enumerate(payloads)]
    packed = [
        pack(("PUBLISH", shuffled[number % len(shuffled)], payload))
        for number, payload in enumerate(payloads)
    ]
    return [b"".join(packed[at : at + flow.chunk]) for at in range(0, flow.cycle, flow.chunk)]
