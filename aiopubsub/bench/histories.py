"""Histories that are on the server before a measurement begins, and are gone after it.

Lives here: filling a stream as the library would, quickly; forgetting it. Must not live here:
measuring. `source`, `measures.catch_up` and `run` call.
"""

from __future__ import annotations

from aiopubsub.keys import history_key

from .raw import RawConnection, pack

__all__ = ["EPOCH", "forget", "frame_of", "store", "uid_of"]

EPOCH = 1_700_000_000_000
_CHUNK = 10_000  # commands under way
_LIFETIME_S = 300  # should nobody forget it


def uid_of(number: int) -> bytes:
    """The uid of a message, as long as those of the library."""
    return b"0123456789ab.%d" % number


def frame_of(number: int, cycle: int, payload: bytes) -> bytes:
    """A message as the script publishes it: one of a cycle, so the first follows on the last."""
    uid, after = uid_of(number), uid_of((number - 1) % cycle)
    return b"\xff\xaeps1 %d-%d %b %b {}\n%b" % (EPOCH, number + 2, uid, after, payload)


def store(connection: RawConnection, channel: str, payloads: list[bytes], *, first: int = 0) -> None:
    """Let a history hold these messages, numbered from `first` on, and nothing else."""
    key = history_key(channel.encode())
    forget(connection, channel)
    for start in range(0, len(payloads), _CHUNK):
        chunk = payloads[start : start + _CHUNK]
        numbers = range(first + start, first + start + len(chunk))
        connection.send(
            *(
                pack(
                    (
                        *("XADD", key, f"{EPOCH}-{number + 1}", "uid", uid_of(number)),
                        *("after", uid_of(number - 1) if number else "-", "data", payload),
                    )
                )
                for number, payload in zip(numbers, chunk, strict=True)
            )
        )
        for _ in chunk:
            connection.reply()
    connection.call("EXPIRE", key, _LIFETIME_S)


def forget(connection: RawConnection, channel: str) -> None:
    """Let a history be gone."""
    connection.call("DEL", history_key(channel.encode()))
