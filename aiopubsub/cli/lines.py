"""The form of a message on standard output.

Lives here: text, JSON and hex. Must not live here: which messages are printed, and when (`sub`).
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Protocol

from aiopubsub.message import Gap, Message
from aiopubsub.topic import Pattern

from .streams import is_terminal, visible

__all__ = ["Form", "form_of"]


class Form(Protocol):
    """How what comes is written."""

    def message(self, message: Message[bytes]) -> bytes:
        """A line, with its newline."""
        ...

    def gap(self, gap: Gap) -> bytes | None:
        """A line; `None` where a person is told instead."""
        ...


def form_of(name: str, *, has_place: bool, has_position: bool) -> Form:
    """The form with this name.

    Args:
        name: `"text"`, `"json"` or `"hex"`.
        has_place: Whether channel, and position if there is one, stand before each message.
        has_position: Whether messages have positions.
    """
    if name == "json":
        return _Json()
    return _Text(is_hex=name == "hex", has_place=has_place, has_position=has_position)


class _Text:
    """Bytes as they are, but harmless where a person looks; or in hex."""

    def __init__(self, *, is_hex: bool, has_place: bool, has_position: bool) -> None:
        self._is_hex = is_hex
        self._has_place = has_place
        self._has_position = has_position
        self._is_shown = is_terminal(sys.stdout)

    def message(self, message: Message[bytes]) -> bytes:
        payload = message.payload
        if self._is_hex:
            payload = payload.hex(" ").encode()
        elif self._is_shown:
            payload = visible(payload).encode()
        return self._place_of(message) + payload + b"\n"

    def gap(self, gap: Gap) -> None:
        """A person is told."""

    def _place_of(self, message: Message[bytes]) -> bytes:
        if not self._has_place:
            return b""
        channel = visible(message.channel) if self._is_shown else message.channel
        position = f"{message.position or '-'}\t" if self._has_position else ""
        return f"{channel}\t{position}".encode("utf-8", "surrogateescape")


class _Json:
    """An object a line. What is not UTF-8 is in base64, under another name."""

    def message(self, message: Message[bytes]) -> bytes:
        said: dict[str, object] = {"channel": message.channel}
        if isinstance(message.topic, Pattern):
            said["pattern"] = message.topic.name
        try:
            said["data"] = message.payload.decode()
        except UnicodeDecodeError:
            said["data_base64"] = base64.b64encode(message.payload).decode()
        if message.headers:
            said["headers"] = dict(message.headers)
        if message.position is not None:
            said["position"] = str(message.position)
        return _line(said)

    def gap(self, gap: Gap) -> bytes:
        """So that a program which reads the lines knows."""
        said: dict[str, object] = {"gap": gap.reason.value, "channels": gap.channels, "missed": gap.missed}
        said |= {"started": gap.started.isoformat(), "ended": gap.ended.isoformat()}
        if gap.cause:
            said["cause"] = gap.cause
        return _line(said)


def _line(said: dict[str, object]) -> bytes:
    return json.dumps(said).encode() + b"\n"
