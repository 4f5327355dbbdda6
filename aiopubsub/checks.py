"""Checks of arguments, before the first await: what was wrong, and what would do.

Lives here: checks that more than one class needs. Must not live here: what an argument means. Anybody
may import this file.
"""

from __future__ import annotations

import math

__all__ = ["check_choice", "check_count", "check_seconds"]


def check_seconds(name: str, value: float) -> float:
    """A finite duration, more than 0 seconds.

    Raises:
        TypeError: It is not a number.
        ValueError: It is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number of seconds, not {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be more than 0 seconds and finite, not {value}")
    return float(value)


def check_count(name: str, value: int) -> int:
    """A number of things, at least 1.

    Raises:
        TypeError: It is not an `int`.
        ValueError: It is less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an int, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, not {value}")
    return value


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """One of some words.

    Raises:
        ValueError: It is none of them.
    """
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value
