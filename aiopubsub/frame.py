"""The header of a framed message: build and parse (docs/reference/wire-format.md).

A plain message is the payload and nothing else, so that any client understands it. A message that
carries headers, or has a place in a history, is framed: the magic, one ASCII header line, a newline,
the payload.

Lives here: bytes in, values out. Must not live here: who frames when. Publishers and the router call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias, cast

__all__ = [
    "MAGIC",
    "NONE_TOLD",
    "NO_HEADERS",
    "VERSION",
    "Place",
    "are_uids",
    "frame",
    "is_id",
    "is_uid",
    "pack_headers",
    "unframe",
    "unpack_headers",
]

MAGIC = b"\xff\xaeps"
"""Starts a frame. The byte 0xFF occurs nowhere in UTF-8 (RFC 3629, section 3), so no text begins so."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
"""The headers of a message that has none."""

VERSION = MAGIC + b"1"
"""The first part of a frame's header, up to a space."""

_LONGEST_HEADER_BYTES = 65_536  # a bound on what a stranger can make us parse
LONGEST_HEADERS_BYTES = _LONGEST_HEADER_BYTES - 1024  # of the line: id, uid and after take the rest
_LONGEST_NUMBER = 19  # digits: whatever they are, they fit into 64 bits
_LONGEST_UID = 256
_PRINTABLE = bytes(range(0x21, 0x7F))

NONE_TOLD = b" {}\n"
"""The end of a frame's header without headers."""

Place: TypeAlias = bytes
"""Where a framed message stands in its history, as its frame says it: the version, its id, its uid, and
the uid of the one before it, with a space between. One object that the garbage collector does not see,
because more of them make receiving dearer."""


def frame(payload: bytes, headers: Mapping[str, str] | None) -> bytes:
    """The bytes to publish: the payload alone, unless it carries headers or could pass for a frame.

    Raises:
        TypeError: A header's name or value is not a `str`.
        ValueError: The headers are longer than 64 KiB.
    """
    if not headers and not payload.startswith(MAGIC):
        return payload
    return b"%b - - - %b\n%b" % (VERSION, pack_headers(headers), payload)


def pack_headers(headers: Mapping[str, str] | None) -> bytes:
    """The headers as they stand in a frame.

    Raises:
        TypeError: A header's name or value is not a `str`.
        ValueError: The headers are longer than 64 KiB.
    """
    if not headers:
        return b"{}"
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers map str to str, but {name!r} maps to {type(value).__name__}")
    line = json.dumps(dict(headers), separators=(",", ":")).encode("ascii")
    if len(line) > LONGEST_HEADERS_BYTES:
        raise ValueError(f"headers take {len(line)} bytes; at most {LONGEST_HEADERS_BYTES} are allowed")
    return line


def unframe(framed: bytes) -> tuple[bytes, Mapping[str, str], Place | None] | None:
    """The payload, the headers and the place of what begins with the magic.

    `None` for bytes that only look like a frame: they are to be delivered as they came.
    """
    line, newline, payload = framed.partition(b"\n")
    parts = line.split(b" ", 4)
    if len(parts) != 5 or parts[0] != VERSION or not newline or len(line) > _LONGEST_HEADER_BYTES:
        return None
    headers = unpack_headers(parts.pop())
    if headers is None:
        return None
    _, name, uid, after = parts
    if name == uid == after == b"-":
        return payload, headers, None
    is_sound = is_id(name) and is_uid(uid) and is_uid(after) and uid != b"-"
    return (payload, headers, b" ".join(parts)) if is_sound else None


def unpack_headers(packed: bytes) -> Mapping[str, str] | None:
    """The headers as they stand in a frame; `None` for what cannot be read."""
    if packed == b"{}":
        return NO_HEADERS
    try:
        headers: Any = json.loads(packed.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(headers, dict):
        return None
    named = cast("dict[str, Any]", headers)  # JSON has no other keys
    return named if all(isinstance(value, str) for value in named.values()) else None


def is_id(name: bytes) -> bool:
    """Whether it is the id of a stream's entry: two numbers with a dash between."""
    epoch, _, offset = name.partition(b"-")
    return epoch.isdigit() and offset.isdigit() and len(epoch) <= _LONGEST_NUMBER >= len(offset)


def is_uid(uid: bytes) -> bool:
    """Whether it can be a uid: up to 256 printable ASCII characters without a space."""
    return 0 < len(uid) <= _LONGEST_UID and uid.isascii() and not uid.translate(None, _PRINTABLE)


def are_uids(uids: Sequence[bytes]) -> bool:
    """Whether all of them can be, in a tenth of the time that it takes to ask for each."""
    lengths = {*map(len, uids), 1}
    return (
        min(lengths) > 0 and max(lengths) <= _LONGEST_UID and not b"".join(uids).translate(None, _PRINTABLE)
    )
