"""The keyword arguments of a subscriber, as type checkers see them.

Lives here: their names and words; what they mean is said at `Subscriber`. Must not live here: checks.
Anybody may import this file.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict

from .since import SinceLike

__all__ = ["OnGap", "OverflowName", "SubscriberOptions"]

OverflowName: TypeAlias = Literal["drop_oldest", "drop_newest", "fail", "block"]
"""What a full buffer does with a message that does not fit."""

OnGap: TypeAlias = Literal["log", "raise"]
"""What the plain iterator does with a gap."""


class SubscriberOptions(TypedDict, total=False):
    """The keyword arguments of `Subscriber`."""

    buffer: int
    buffer_bytes: int
    overflow: OverflowName
    since: SinceLike
    name: str | None
    on_gap: OnGap
