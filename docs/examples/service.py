"""A service that ends well: told to stop, it works off what was published until then, within a deadline.

    REDIS_URL=redis://localhost:6379 DRAIN_S=20 python service.py

It takes jobs from one channel and publishes their results on another. SIGTERM, or Ctrl-C, begins the end:

1. No more jobs are taken from the server; those that were published before are worked off, for `DRAIN_S`
   seconds at most.
2. What is still waiting then is left behind, and counted. What was begun is finished.
3. The connections are closed, and the exit status is 0.

Choose `DRAIN_S`, plus the time that the longest job takes, below what the process manager allows before
it sends SIGKILL: `terminationGracePeriodSeconds` in Kubernetes (30 s), `TimeoutStopSec` in systemd (90 s).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from dataclasses import asdict, dataclass

import aiopubsub as ps

URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
DRAIN_S = float(os.environ.get("DRAIN_S", "20"))
WORKERS = 4  # jobs at a time

logger = logging.getLogger("service")


@dataclass
class Job:
    """What there is to do."""

    number: int
    seconds: float


JOBS = ps.Topic(
    "jobs",
    encode=lambda job: json.dumps(asdict(job)).encode(),
    decode=lambda payload: Job(**json.loads(payload)),
)
RESULTS = ps.Topic.text("results")


async def main() -> None:
    """Work until told to stop."""
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    async with (
        ps.Client(URL) as client,
        ps.Subscriber(client, JOBS) as jobs,
        asyncio.TaskGroup() as workers,  # the innermost: its jobs end before the connections do
    ):
        results = ps.Publisher(client)
        for _ in range(WORKERS):
            workers.create_task(work(jobs, results))
        logger.info("ready")
        await told_to_stop.wait()
        left = await jobs.drain(DRAIN_S)
        await jobs.aclose()  # each worker ends after the job that it is at
        logger.info("stopping, %d jobs are left behind", left)


async def work(jobs: ps.Subscriber[Job], results: ps.Publisher) -> None:
    """Do one job after the other. One that fails does not take the others with it."""
    async for message in jobs:
        try:
            await do(message.data, results)
        except Exception:
            logger.exception("job %d failed", message.data.number)


async def do(job: Job, results: ps.Publisher) -> None:
    """Your work, in place of this sleep."""
    await asyncio.sleep(job.seconds)
    await results.publish(RESULTS, str(job.number))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
