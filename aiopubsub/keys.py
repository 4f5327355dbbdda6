"""The names of what a topic keeps on the server (docs/reference/wire-format.md).

Each name hashes to the slot of its channel, so that a script may touch all of them in a cluster
(https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags).

Lives here: channel in, name out. Must not live here: commands. Anybody may import this file.
"""

from __future__ import annotations

import itertools
from binascii import crc32, crc_hqx
from functools import lru_cache

__all__ = ["around_cursor", "cursor_key", "history_key", "mark_of", "slot_of"]

_SLOTS = 16_384


def history_key(channel: bytes) -> bytes:
    """The stream that holds a topic's history."""
    tag = _tag_of(channel)
    return b"aiopubsub:{%b}:history%b" % (tag, b"" if tag == channel else b":" + channel)


def cursor_key(channel: bytes, name: str) -> bytes:
    """Where a durable cursor keeps its position in a topic."""
    before, after = around_cursor(channel)
    return b"%b%b%b" % (before, name.encode(), after)


def around_cursor(channel: bytes) -> tuple[bytes, bytes]:
    """What stands in front of a cursor's name in its key, and what after it."""
    tag = _tag_of(channel)
    return b"aiopubsub:{%b}:cursor:" % tag, b"" if tag == channel else b":" + channel


def mark_of(channel: bytes) -> str:
    """Eight letters that tell positions of this channel from those of others."""
    return f"{crc32(channel):08x}"


def slot_of(key: bytes) -> int:
    """The slot of a key or a channel, as `CLUSTER KEYSLOT` has it.

    CRC16 (XMODEM) of what stands between the first `{` and the first `}` after it, if that is
    something; else of all of it.
    """
    return crc_hqx(_hashed(key), 0) % _SLOTS


def _hashed(key: bytes) -> bytes:
    begin = key.find(b"{")
    end = key.find(b"}", begin + 1) if begin >= 0 else -1
    return key[begin + 1 : end] if end > begin + 1 else key


@lru_cache(maxsize=1024)
def _tag_of(channel: bytes) -> bytes:
    """What to put between braces to reach the slot of a channel.

    It is what the channel itself is hashed by, unless that holds a `}`, which would end it too early:
    then it is the first number that falls into the same slot, of 16 384 on average.
    """
    hashed = _hashed(channel)
    if b"}" not in hashed:
        return hashed
    slot = slot_of(channel)
    numbers = (b"%d" % number for number in itertools.count())
    return next(number for number in numbers if slot_of(number) == slot)
