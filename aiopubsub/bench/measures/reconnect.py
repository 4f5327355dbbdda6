"""A connection that the server has closed: how long until all its channels are confirmed again.

Lives here: finding the contestant's own connection and having the server close it. Must not live here:
libraries. `worker` calls.
"""

from __future__ import annotations

from aiopubsub.bench.contestants import Contestant
from aiopubsub.bench.job import Figures, Job, Meter
from aiopubsub.bench.raw import RawConnection

__all__ = ["measure"]


async def measure(contestant: Contestant, job: Job) -> Figures:
    """Seconds from the server's hang-up to the last confirmation."""
    admin = RawConnection(job.address)
    before = _listeners(admin, job.channels)
    await contestant.subscribe(job.channel_names(), is_pattern=False)
    (connection,) = _listeners(admin, job.channels) - before
    meter = Meter()
    admin.call("CLIENT", "KILL", "ID", connection)
    await contestant.resubscribed(job.channels)
    meter.stop()
    (again,) = _listeners(admin, job.channels) - before
    if again == connection:
        raise RuntimeError("the connection was not closed")
    return {"resubscribed_s": meter.wall_s, "cpu_s": meter.cpu_s}


def _listeners(admin: RawConnection, channels: int) -> set[str]:
    """The connections that are subscribed to so many channels."""
    lines = admin.call("CLIENT", "LIST", "TYPE", "pubsub").decode().splitlines()
    clients = [dict(field.partition("=")[::2] for field in line.split()) for line in lines]
    return {client["id"] for client in clients if client["sub"] == str(channels)}
