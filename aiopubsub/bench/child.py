"""What every process of the bench runs: `python -P child.py ROLE`, with its job on standard input.

It is run by its path, so that a process has in it what its contestant needs and nothing else: the
package `aiopubsub` would load the library, and redis-py with it, into everybody's memory.

Lives here: what is loaded. Must not live here: work. `run` and `source` start it; nobody imports it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

__all__: list[str] = []

_PACKAGE = Path(__file__).parents[1]


def _main(role: str) -> None:
    sys.path.append(str(_PACKAGE.parent))
    if not role.startswith("ours"):
        stand_in = ModuleType("aiopubsub")
        stand_in.__path__ = [str(_PACKAGE)]
        sys.modules["aiopubsub"] = stand_in
    if role == "source":
        import_module("aiopubsub.bench.source").main()
    else:
        import_module("aiopubsub.bench.worker").main(role)


if __name__ == "__main__":
    _main(sys.argv[1])
