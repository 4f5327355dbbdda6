"""Checks of arguments, before the first await: what was wrong, and what would do.

Lives here: checks that more than one class needs. Must not live here: what an argument means. Anybody
may import this file.
"""

from __future__ import annotations

import math
import re

__all__ = ["check_choice", "check_count", "check_cursor_name", "check_seconds"]


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


def check_cursor_name(name: str) -> str:
    """A name that a key can carry as it is: 1 to 128 ASCII letters, digits, dots, dashes, underscores.

    Raises:
        TypeError: It is not a `str`.
        ValueError: It is something else.
    """
    if not isinstance(name, str):
        raise TypeError(f"`name` must be a str, not {type(name).__name__}")
    if not re.fullmatch("[A-Za-z0-9._-]{1,128}", name):
        raise ValueError(f"`name` must be 1 to 128 letters, digits and . _ -, not {name[:200]!r}")
    return name
