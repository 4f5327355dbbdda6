"""The benchmark: this library beside others, in one run, on a real server.

Lives here: what is measured and how, and what the figures mean. Must not live here: words for people
(`aiopubsub.cli`). The command `aiopubsub bench` calls `run`; `child` is what the processes run.
"""

from __future__ import annotations

__all__: list[str] = []
