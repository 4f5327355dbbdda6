"""What a subscriber costs that gets nothing: memory for each beyond the first, all of one client.

Lives here: the process's memory before and after. Must not live here: libraries. `worker` calls.
"""

from __future__ import annotations

import asyncio
import gc

from aiopubsub.bench.contestants import Contestant, Take
from aiopubsub.bench.job import Figures, Job, resident_bytes

__all__ = ["measure"]


async def measure(contestant: Contestant, job: Job) -> Figures:
    """Bytes for each: open, and with a task that waits for its messages."""
    await _open(contestant, job, 1)
    before = _settled_bytes()
    takes = await _open(contestant, job, job.subscribers - 1)
    opened = _settled_bytes()
    waiting = [asyncio.ensure_future(take(1)) for take in takes]
    await asyncio.sleep(0)
    waited = _settled_bytes()
    for task in waiting:
        task.cancel()
    return {
        "bytes_per_subscriber": (opened - before) / len(takes),
        "bytes_per_waiting_subscriber": (waited - before) / len(takes),
    }


async def _open(contestant: Contestant, job: Job, count: int) -> list[Take]:
    """One after the other: what thousands of tasks take to open them is not what a subscriber holds."""
    return [await contestant.subscribe(job.channel_names(), is_pattern=False) for _ in range(count)]


def _settled_bytes() -> int:
    gc.collect()
    return resident_bytes()
