"""Reading what a history holds, from its beginning to its end.

Lives here: how long it takes. Must not live here: libraries. `worker` calls.
"""

from __future__ import annotations

from aiopubsub.bench.contestants import Contestant
from aiopubsub.bench.histories import store
from aiopubsub.bench.job import Figures, Job, Meter
from aiopubsub.bench.raw import RawConnection
from aiopubsub.bench.source import number_in

__all__ = ["measure"]


async def measure(contestant: Contestant, job: Job) -> Figures:
    """Time and CPU for each message that was stored."""
    (channel,) = job.channel_names()
    connection = RawConnection(job.address)
    payloads = [(b"%d " % number).ljust(job.payload_bytes, b"x") for number in range(job.messages)]
    store(connection, channel, payloads)
    connection.close()
    meter = Meter()
    last = await contestant.catch_up(channel, job.messages)
    meter.stop()
    if number_in(last) != job.messages - 1:
        raise RuntimeError("a message was lost or came twice")
    return meter.per_message(job.messages)
