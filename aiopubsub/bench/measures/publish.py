"""Awaited publishes, so many at a time, and many in one go.

Nobody is subscribed: the server's part is small and the same for all. Clocks start when every task has
published, and stop before the first ends: what is measured is a steady flow.

Lives here: tasks that publish. Must not live here: libraries. `worker` calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import repeat

from aiopubsub.bench.contestants import Contestant, Publish
from aiopubsub.bench.job import Figures, Job, Meter, latencies

__all__ = ["measure"]

_LOOK_AT_CLOCK_EVERY = 16  # turns; a look costs about a fiftieth of the cheapest publish


async def measure(contestant: Contestant, job: Job) -> Figures:
    """CPU and time for each publish; with one in flight also how long it takes."""
    channel, payload = f"{job.prefix}0", b"x" * job.payload_bytes
    batch = job.batch or (job.in_flight if contestant.is_blocking else 1)
    turns = _Turns(job, batch)
    if batch > 1:
        publish_many, payloads = await contestant.publisher_of_many(), [payload] * batch
        for _ in turns:
            await publish_many(channel, payloads)
        return turns.figures()
    publish = await contestant.publisher()
    if job.in_flight == 1:
        return await _one_at_a_time(publish, channel, payload, turns)

    async def publish_on() -> None:
        for _ in turns:
            await publish(channel, payload)

    await asyncio.gather(*(publish_on() for _ in range(job.in_flight)))
    return turns.figures()


async def _one_at_a_time(publish: Publish, channel: str, payload: bytes, turns: _Turns) -> Figures:
    clock = time.perf_counter
    taken_s: list[float] = []
    for is_measured in turns:
        began = clock()
        await publish(channel, payload)
        if is_measured:
            taken_s.append(clock() - began)
    return turns.figures() | latencies(taken_s)


class _Turns:
    """Whose turn it is: one iterator for all tasks, which ends when the time is over.

    It yields whether this turn is measured.
    """

    def __init__(self, job: Job, batch: int) -> None:
        self._job = job
        self._batch = batch
        self._every = 1 if batch > 1 else _LOOK_AT_CLOCK_EVERY
        self._meter = Meter()
        self._measured = 0
        self._turns = self._take_turns()

    def __iter__(self) -> Iterator[bool]:
        return self._turns

    def _take_turns(self) -> Iterator[bool]:
        clock, every = time.perf_counter, self._every
        end, turns = clock() + self._job.warm_up_s, 0
        while clock() < end or turns * self._batch < 2 * self._job.in_flight:
            yield from repeat(False, every)
            turns += every
        self._meter.start()
        end, turns = clock() + self._job.seconds, 0
        while clock() < end:
            yield from repeat(True, every)
            turns += every
        self._meter.stop()
        self._measured = turns * self._batch

    def figures(self) -> Figures:
        """After the end."""
        return self._meter.per_message(self._measured)
