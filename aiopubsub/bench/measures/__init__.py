"""What is measured: each kind of case in a file of its own, the same for every contestant.

Lives here: nothing. Must not live here: how a library is used (`contestants`). A worker calls.
"""

from __future__ import annotations

__all__: list[str] = []
