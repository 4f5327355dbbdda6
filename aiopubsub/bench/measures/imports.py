"""How long the import of a library takes, in a fresh interpreter.

Lives here: the interpreter and its clock. Must not live here: libraries. `worker` calls.
"""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median

from aiopubsub.bench.contestants import Contestant
from aiopubsub.bench.job import Figures, Job

__all__ = ["measure"]

_TIMES = 3
_CODE = """
import json, time
wall_s, cpu_s = time.perf_counter(), time.process_time()
import {module}
print(json.dumps([time.perf_counter() - wall_s, time.process_time() - cpu_s]))
"""


async def measure(contestant: Contestant, job: Job) -> Figures:  # noqa: ARG001  # as the others
    """Median of a few times, after one that fills the system's cache of files."""
    code = _CODE.format(module=contestant.module)
    _import(code)
    taken = [_import(code) for _ in range(_TIMES)]
    return {
        "import_ms": median(wall_s for wall_s, _ in taken) * 1e3,
        "import_cpu_ms": median(cpu_s for _, cpu_s in taken) * 1e3,
    }


def _import(code: str) -> tuple[float, float]:
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True).stdout  # noqa: S603
    wall_s, cpu_s = json.loads(said)
    return wall_s, cpu_s
