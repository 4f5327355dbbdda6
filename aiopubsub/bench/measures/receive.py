"""Receiving: one channel, a pattern, many channels, many subscribers.

A source publishes as fast as it is let. Each payload has a number, which is looked at now and then: a
message that is lost or comes twice shifts all that follow it. A run begins with nothing on its way
and ends when everything that was published was taken.

Lives here: runs of messages and their consumers. Must not live here: libraries. `worker` calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from typing import Any, Protocol

from aiopubsub.bench.contestants import Contestant, Take
from aiopubsub.bench.job import Figures, Job, Meter
from aiopubsub.bench.source import Flow, Source, number_in

__all__ = ["measure"]

_TURNS_TO_WAIT = 3  # of the event loop, until a task that was just made waits for messages


async def measure(contestant: Contestant, job: Job) -> Figures:
    """CPU for each message that is published, whoever many subscribers it goes to."""
    flow = Flow.of(job)
    with contextlib.closing(Source(job, flow)) as source:
        return await _measure(contestant, job, source, flow)


async def _measure(contestant: Contestant, job: Job, source: Source, flow: Flow) -> Figures:
    names = [f"{job.prefix}*"] if job.is_pattern else job.channel_names()
    takes = await asyncio.gather(
        *(contestant.subscribe(names, is_pattern=job.is_pattern) for _ in range(job.subscribers))
    )
    consumers = _Consumers(takes, source, flow)
    chunks, meter = 1, Meter()
    while True:
        await consumers.run(chunks, meter)
        if meter.wall_s >= job.warm_up_s:
            break
        chunks *= 2
    least = flow.window if job.subscribers > 1 else 1  # so that the ends of thousands of tasks weigh little
    chunks = max(least, round(chunks * job.seconds / meter.wall_s))
    await consumers.run(chunks, meter)
    figures = meter.per_message(chunks * flow.chunk)
    if job.subscribers > 1:
        figures["cpu_us_per_delivery"] = figures["cpu_us_per_message"] / job.subscribers
        figures["full_collection_ms"] = _collect_and_freeze() * 1e3
        ticker = _Ticker()
        await consumers.run(chunks, ticker)  # apart, because ticking costs
        figures["longest_turn_ms"] = ticker.longest_s * 1e3
    contestant.check()
    return figures


def _collect_and_freeze() -> float:
    """Seconds that a full pass of the garbage collector takes; from here on it is spared what is alive.

    As the documentation of `gc.freeze` advises for what has many objects: a pass over 10 000 tasks and
    what they hold stops the event loop for longer than anything that a library does.
    """
    gc.collect()
    began_s = time.thread_time()
    gc.collect()
    taken_s = time.thread_time() - began_s
    gc.freeze()
    return taken_s


class _Consumers:
    """Tasks that take messages, one for each subscriber; the last one has more published as it goes."""

    def __init__(self, takes: list[Take], source: Source, flow: Flow) -> None:
        self._takes = takes
        self._source = source
        self._flow = flow
        self._taken = 0  # chunks, in the runs before

    async def run(self, chunks: int, meter: _Watch) -> None:
        """Have so many chunks published, and take them all."""
        runs: list[Any] = [
            *(self._take_all(take, chunks) for take in self._takes[:-1]),
            self._take_in_chunks(self._takes[-1], chunks),
        ]
        if len(runs) > 1:  # all of them shall wait for messages before; a single one may be blocking
            runs = [asyncio.create_task(run) for run in runs]
            for _ in range(_TURNS_TO_WAIT):
                await asyncio.sleep(0)
        done = asyncio.gather(*runs)  # to gather 10 000 tasks takes long itself
        meter.start()
        self._source.grant(min(chunks, self._flow.window))
        await done
        meter.stop()
        self._taken += chunks

    async def _take_all(self, take: Take, chunks: int) -> None:
        self._check(await take(chunks * self._flow.chunk), chunks)

    async def _take_in_chunks(self, take: Take, chunks: int) -> None:
        for done in range(1, chunks + 1):
            self._check(await take(self._flow.chunk), done)
            if done + self._flow.window <= chunks:
                self._source.grant(1)

    def _check(self, payload: bytes, chunks: int) -> None:
        if number_in(payload) != self._flow.number_of_last(self._taken + chunks):
            raise RuntimeError("a message was lost or came twice")


class _Watch(Protocol):
    """Runs while messages are taken: a `Meter`, or the ticker."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class _Ticker:
    """The longest that the event loop is held, in CPU time, so that other processes do not count."""

    longest_s = 0.0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._before_s = time.thread_time()
        self._handle = self._loop.call_soon(self._tick)

    def stop(self) -> None:
        self._handle.cancel()

    def _tick(self) -> None:
        now_s = time.thread_time()
        self.longest_s = max(self.longest_s, now_s - self._before_s)
        self._before_s = now_s
        self._handle = self._loop.call_soon(self._tick)
