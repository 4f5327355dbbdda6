"""Helpers for other projects' libraries, each named after one and with an extra of its own.

Must not live here: anything that the library itself needs, or that the other project already does.
"""

__all__: list[str] = []
