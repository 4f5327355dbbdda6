"""The header of a framed message: build and parse (docs/reference/wire-format.md).

A plain message is the payload and nothing else, so that any client understands it. A message that
carries headers is framed: the magic, one ASCII header line, a newline, the payload.

Lives here: bytes in, values out. Must not live here: who frames when. Publishers and the router call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

__all__ = ["MAGIC", "NO_HEADERS", "frame", "unframe"]

MAGIC = b"\xff\xaeps"
"""Starts a frame. The byte 0xFF occurs nowhere in UTF-8 (RFC 3629, section 3), so no text begins so."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
"""The headers of a message that has none."""

_PREFIX = MAGIC + b"1 - - - "  # version 1; id, uid and after belong to topics with history
_LONGEST_HEADER_BYTES = 65_536  # a bound on what a stranger can make us search and parse


def frame(payload: bytes, headers: Mapping[str, str] | None) -> bytes:
    """The bytes to publish: the payload alone, unless it carries headers or could pass for a frame.

    Raises:
        TypeError: A header's name or value is not a `str`.
        ValueError: The headers are longer than 64 KiB.
    """
    if not headers and not payload.startswith(MAGIC):
        return payload
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers map str to str, but {name!r} maps to {type(value).__name__}")
    line = _PREFIX + json.dumps(dict(headers or {}), separators=(",", ":")).encode("ascii")
    if len(line) > _LONGEST_HEADER_BYTES:
        raise ValueError(f"headers take {len(line)} bytes; at most {_LONGEST_HEADER_BYTES} are allowed")
    return line + b"\n" + payload


def unframe(framed: bytes) -> tuple[bytes, Mapping[str, str]]:
    """The payload and the headers of what begins with the magic; bytes that only look so, unchanged."""
    end = framed.find(b"\n", 0, _LONGEST_HEADER_BYTES + 1)
    if end < 0 or not framed.startswith(_PREFIX):
        return framed, NO_HEADERS
    try:
        headers: Any = json.loads(framed[len(_PREFIX) : end].decode("ascii"))
    except (ValueError, RecursionError):
        return framed, NO_HEADERS
    if not isinstance(headers, dict):
        return framed, NO_HEADERS
    named = cast("dict[str, Any]", headers)  # JSON has no other keys
    if not all(isinstance(value, str) for value in named.values()):
        return framed, NO_HEADERS
    return framed[end + 1 :], named
