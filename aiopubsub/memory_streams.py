"""Histories of `memory://`: what a server does with streams, in a dictionary.

Lives here: XRANGE, XREVRANGE, keys that expire, and the script's twin. Must not live here: connections
and Pub/Sub (`memory`). A `MemoryServer` owns one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from .append import SHA
from .errors import ErrorReply

__all__ = ["MemoryStreams"]

Reply: TypeAlias = "bytes | int | list[Reply] | ErrorReply | None"

_Fields: TypeAlias = dict[bytes, bytes]
_Stream: TypeAlias = dict[tuple[int, int], _Fields]

_ENDS = {b"-": (0, 0), b"+": (2**64, 0)}


class MemoryStreams:
    """Streams and strings by key.

    Args:
        clock: Seconds since the epoch, for expiry and for the epochs of histories.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._streams: dict[bytes, _Stream] = {}
        self._strings: dict[bytes, bytes] = {}
        self._ends_at: dict[bytes, float] = {}

    def get(self, key: bytes) -> bytes | None:
        """GET."""
        return self._strings.get(key)

    def set(self, key: bytes, value: bytes) -> bytes:
        """SET."""
        self._strings[key] = value
        return b"OK"

    def delete(self, *keys: bytes) -> int:
        """DEL."""
        return sum(
            (self._streams.pop(key, None) or self._strings.pop(key, None)) is not None for key in keys
        )

    def flush(self) -> bytes:
        """FLUSHALL."""
        self._streams.clear()
        self._strings.clear()
        return b"OK"

    def range(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> Reply:
        """XRANGE, with COUNT."""
        return self._range(key, first, last, options, is_reversed=False)

    def reverse_range(self, key: bytes, last: bytes, first: bytes, *options: bytes) -> Reply:
        """XREVRANGE, with COUNT."""
        return self._range(key, first, last, options, is_reversed=True)

    def trim(self, key: bytes, size: int) -> int:
        """XTRIM with MAXLEN, to the entry."""
        stream = self._stream(key)
        gone = list(stream)[: max(0, len(stream) - size)]
        for name in gone:
            del stream[name]
        return len(gone)

    def append(
        self,
        publish: Callable[[bytes, bytes], int],
        sha: bytes,
        _: bytes,
        key: bytes,
        channel: bytes,
        size: bytes,
        ttl: bytes,
        since: bytes,
        *arguments: bytes,
    ) -> Reply:
        """EVALSHA of the script that appends: the same, line by line."""
        if sha != SHA:
            return ErrorReply("NOSCRIPT No matching script. Please use EVAL.")
        stream = self._stream(key)
        epoch, offset, after = int(self._clock() * 1000), 0, b"-"
        if stream:
            epoch, offset = max(stream)
            after = stream[epoch, offset][b"uid"]
        stored = {fields[b"uid"]: name for name, fields in stream.items()} if since else {}
        answers: list[Reply] = []
        for at in range(0, len(arguments), 3):
            uid, headers, data = arguments[at : at + 3]
            if uid in stored:
                answers += [_name_of(stored[uid]), -1]
                continue
            offset += 1
            fields = {b"uid": uid, b"after": after, b"headers": headers, b"data": data}
            if headers == b"{}":
                del fields[b"headers"]
            stream[epoch, offset] = fields
            name = _name_of((epoch, offset))
            frame = b"\xff\xaeps1 %b %b %b %b\n%b" % (name, uid, after, headers, data)
            answers += [name, publish(channel, frame)]
            after = uid
        self._streams[key] = stream
        self.trim(key, int(size))
        self._ends_at.pop(key, None)
        if ttl:
            self._ends_at[key] = self._clock() + int(ttl) / 1000
        return answers

    def _range(
        self, key: bytes, first: bytes, last: bytes, options: Sequence[bytes], *, is_reversed: bool
    ) -> Reply:
        low, high = _bound(first), _bound(last)
        inside = [
            name
            for name in sorted(self._stream(key), reverse=is_reversed)
            if low <= name <= high and b"(" + _name_of(name) not in (first, last)
        ]
        count = int(options[1]) if options else len(inside)
        stream = self._stream(key)
        return [
            [_name_of(name), [part for field in stream[name].items() for part in field]]
            for name in inside[:count]
        ]

    def _stream(self, key: bytes) -> _Stream:
        """What there is under a key, if its time is not over."""
        if self._ends_at.get(key, math.inf) <= self._clock():
            self._streams.pop(key, None)
            del self._ends_at[key]
        return self._streams.get(key, {})


def _bound(text: bytes) -> tuple[int, int]:
    if text in _ENDS:
        return _ENDS[text]
    epoch, _, offset = text.removeprefix(b"(").partition(b"-")
    return int(epoch), int(offset)


def _name_of(name: tuple[int, int]) -> bytes:
    return b"%d-%d" % name
