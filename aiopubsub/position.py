"""Where a message stands in its topic's history.

Lives here: `Position` and its text. Must not live here: what follows on what (the trail), how the
server keeps it (docs/reference/wire-format.md). Anybody may import this file.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Position"]

_MAX = 2**64 - 1  # of each part of a stream entry's id (https://redis.io/docs/latest/commands/xadd/)
_MAX_UID_LENGTH = 256
_MARK = re.compile("[0-9a-f]{8}").fullmatch


class Position(NamedTuple):
    """Where a message stands in its topic's history.

    `str(position)` and `Position.parse(text)` go round: ASCII without spaces, fit for a database
    column, a URL or the `Last-Event-ID` of server-sent events. Positions of one history compare in
    its order; those of different topics don't compare.

    Attributes:
        epoch: When this history began, in milliseconds since 1970 by the server's clock.
        offset: Messages of this history up to this one, itself included; counts up by one.
        mark: A checksum of the channel's name, which tells positions of different topics apart.
        uid: The message's own name, given by its publisher. It tells a history that forked from one
            that went on; `-` stands in front of a history's first message.
    """

    epoch: int
    offset: int
    mark: str
    uid: str

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that `str` gave.

        Raises:
            ValueError: The text is not a position.
            TypeError: It is not a `str`.
        """
        if not isinstance(text, str):
            raise TypeError(f"a position's text must be a str, not {type(text).__name__}")
        epoch, _, rest = text.partition("-")
        offset, _, rest = rest.partition("-")
        mark, _, uid = rest.partition("-")
        if not (_is_number(epoch) and _is_number(offset) and _MARK(mark) and _is_uid(uid)):
            raise ValueError(
                f"not a position: {text[:100]!r}; one looks like '1700000000000-42-0a1b2c3d-5f.7'"
            )
        return cls(int(epoch), int(offset), mark, uid)

    @property
    def id(self) -> str:
        """The id of the stream entry."""
        return f"{self.epoch}-{self.offset}"

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}-{self.mark}-{self.uid}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= _MAX


def _is_uid(text: str) -> bool:
    return 0 < len(text) <= _MAX_UID_LENGTH and text.isascii() and text.isprintable() and " " not in text
