"""How long the import of a library takes, in a fresh interpreter.

Lives here: the interpreter and its clock. Must not live here: libraries. `worker` calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from tempfile import TemporaryDirectory

from aiopubsub.bench.contestants import Contestant
from aiopubsub.bench.job import Figures, Job

__all__ = ["measure"]

_TIMES = 5
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
_CODE = """
import json, time
wall_s, cpu_s = time.perf_counter(), time.process_time()
import {module}
print(json.dumps([time.perf_counter() - wall_s, time.process_time() - cpu_s]))
"""


async def measure(contestant: Contestant, job: Job) -> Figures:  # noqa: ARG001  # as the others
    """The least of a few times, because whatever disturbs an import adds to it.

    Before them there is one that compiles everything and fills the system's cache of files. All read
    bytecode from a folder of their own: else who was installed without it would be compiled again each
    time, where `PYTHONDONTWRITEBYTECODE` is set.
    """
    code = _CODE.format(module=contestant.module)
    with TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != _NO_BYTECODE}
        environment["PYTHONPYCACHEPREFIX"] = folder
        _import(code, environment)
        taken = [_import(code, environment) for _ in range(_TIMES)]
    return {
        "import_ms": min(wall_s for wall_s, _ in taken) * 1e3,
        "import_cpu_ms": min(cpu_s for _, cpu_s in taken) * 1e3,
    }


def _import(code: str, environment: dict[str, str]) -> tuple[float, float]:
    command = [sys.executable, "-P", "-c", code]
    said = subprocess.run(command, env=environment, capture_output=True, check=True).stdout  # noqa: S603
    wall_s, cpu_s = json.loads(said)
    return wall_s, cpu_s
