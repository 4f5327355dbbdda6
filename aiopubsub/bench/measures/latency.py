"""From publish to receipt at a steady 1 000 messages a second, both in one process.

A payload carries the time at which its publish was called. What an event loop's timers add to the
sender's rhythm is the same for all and not counted.

Lives here: a sender, a receiver, the clock. Must not live here: libraries. `worker` calls.
"""

from __future__ import annotations

import asyncio
import struct
import time

from aiopubsub.bench.contestants import Contestant, Publish
from aiopubsub.bench.job import Figures, Job, Meter, latencies

__all__ = ["measure"]

_RATE = 1000
_STAMP = struct.Struct("<d")


async def measure(contestant: Contestant, job: Job) -> Figures:
    """Median and 99th percentile of the way; CPU for each message, both ends together."""
    take = await contestant.subscribe(job.channel_names(), is_pattern=False)
    publish = await contestant.publisher()
    warm_up, measured = round(_RATE * job.warm_up_s), round(_RATE * job.seconds)
    sender = asyncio.create_task(_send(publish, job, warm_up + measured))
    taken_s: list[float] = []
    meter = Meter()
    for number in range(warm_up + measured):
        if number == warm_up:
            meter.start()
        payload = await take(1)
        taken_s.append(time.perf_counter() - _STAMP.unpack_from(payload)[0])
    meter.stop()
    await sender
    contestant.check()
    return meter.per_message(measured) | latencies(taken_s[warm_up:])


async def _send(publish: Publish, job: Job, count: int) -> None:
    clock = time.perf_counter
    channel, filling = job.channel_names()[0], bytes(job.payload_bytes - _STAMP.size)
    began = clock()
    for number in range(count):
        if (early_s := began + number / _RATE - clock()) > 0:
            await asyncio.sleep(early_s)
        await publish(channel, _STAMP.pack(clock()) + filling)
