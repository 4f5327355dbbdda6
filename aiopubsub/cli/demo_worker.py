"""One process of `aiopubsub demo`: the publisher or a subscriber.

`python -m aiopubsub.cli.demo_worker` reads its job as one JSON line from standard input, so that no
URL shows in a list of processes, and reports as JSON lines on standard output. It ends when standard
input does, so that it never outlives the demo.

Lives here: one publisher, one subscriber, their reports. Must not live here: what the figures mean
(`demo_books`). `demo` starts it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from aiopubsub.client import Client
from aiopubsub.errors import PubSubError
from aiopubsub.message import Gap, Message
from aiopubsub.publisher import Publisher
from aiopubsub.subscriber import Subscriber
from aiopubsub.topic import Pattern, Topic

from .runner import until_first
from .streams import LineReader

__all__ = ["Job", "main"]

_REPORT_EVERY_S = 0.25
_PACE_S = 0.01  # between two batches of the publisher
_CATCH_UP = 2  # a publisher that is late goes at most so many times as fast
_PAYLOAD = b"x" * 64
_END = "end"  # the header of a channel's last message


@dataclass(frozen=True)
class Job:
    """What a worker is to do.

    Attributes:
        url: Where the server is.
        connect_timeout: Seconds that connecting may take.
        channels: To publish to in turn; or whose ends a subscriber waits for.
        seconds: How long to publish; 0 makes a subscriber.
        rate: Messages a second to publish.
        pattern: What to subscribe to; without it, to the channels.
        buffer: Messages that may wait for the subscriber.
        pause_every: Messages after which the subscriber sleeps; 0 for never.
        pause_s: How long it sleeps.
    """

    url: str
    connect_timeout: float
    channels: tuple[str, ...]
    seconds: float = 0.0
    rate: int = 0
    pattern: str | None = None
    buffer: int = 65_536
    pause_every: int = 0
    pause_s: float = 0.0

    def to_line(self) -> bytes:
        """As a worker reads it."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Job:
        """As it was written."""
        fields: dict[str, Any] = json.loads(line)
        fields["channels"] = tuple(fields["channels"])
        return cls(**fields)


@dataclass
class _Figures:
    """What a subscriber has seen so far."""

    delivered: int = 0
    missing: int = 0
    has_unknown: bool = False


@dataclass
class _Published:
    """What a publisher has published so far, by channel."""

    published: dict[str, int] = field(default_factory=dict[str, int])


def main() -> None:
    """Do the job that standard input gives. The exit status is 1 if it was not done."""
    try:
        asyncio.run(_work())
    except PubSubError as error:
        _report({"error": str(error)})
        sys.exit(1)
    except (BrokenPipeError, KeyboardInterrupt):  # nobody listens any more
        sys.exit(1)


async def _work() -> None:
    reader = LineReader()
    job = Job.from_line((await reader.read())[0])
    if job.seconds:
        published = _Published(dict.fromkeys(job.channels, 0))
        await until_first(_publish(job, published), _report_often(published), _parent_gone(reader))
    else:
        figures = _Figures()
        await until_first(_subscribe(job, figures), _report_often(figures), _parent_gone(reader))


async def _publish(job: Job, figures: _Published) -> None:
    """Publish at a steady rate, then an end mark on each channel."""
    clock = asyncio.get_running_loop().time
    topics = itertools.cycle([Topic(channel) for channel in job.channels])
    largest = int(job.rate * _PACE_S * _CATCH_UP) + 1
    sent = 0
    async with (
        Client(job.url, connect_timeout=job.connect_timeout) as client,
        Publisher(client) as publisher,
    ):
        began = clock()
        while (elapsed := clock() - began) < job.seconds:
            due = min(int(elapsed * job.rate) - sent, largest)
            batch = [(next(topics), _PAYLOAD) for _ in range(due)]
            await publisher.publish_many(batch)
            sent += len(batch)
            for topic, _ in batch:
                figures.published[topic.name] += 1
            await asyncio.sleep(_PACE_S)
        for channel in dict.fromkeys(job.channels):
            await publisher.publish(channel, b"", headers={_END: str(figures.published[channel])})
    _report({"done": True, **asdict(figures)})


async def _subscribe(job: Job, figures: _Figures) -> None:
    """Take messages until the end of each channel was seen."""
    topics = [Topic(channel) for channel in job.channels] if job.pattern is None else [Pattern(job.pattern)]
    waiting = set(job.channels)
    async with (
        Client(job.url, connect_timeout=job.connect_timeout) as client,
        Subscriber(client, *topics, buffer=job.buffer) as subscriber,
    ):
        _report({"ready": True})
        events = subscriber.events()
        while waiting:
            event = await anext(events)
            if isinstance(event, Gap):
                figures.missing += event.missed or 0
                figures.has_unknown |= event.missed is None
            elif isinstance(event, Message):
                if _END in event.headers:
                    waiting.discard(event.channel)
                    continue
                figures.delivered += 1
                if job.pause_every and figures.delivered % job.pause_every == 0:
                    await asyncio.sleep(job.pause_s)
    _report({"done": True, **asdict(figures)})


async def _report_often(figures: _Figures | _Published) -> None:
    while True:
        await asyncio.sleep(_REPORT_EVERY_S)
        _report(asdict(figures))


async def _parent_gone(reader: LineReader) -> None:
    while await reader.read():
        pass


def _report(fields: dict[str, Any]) -> None:
    """One line, in one write; the parent reads all the time."""
    os.write(sys.stdout.fileno(), json.dumps(fields).encode() + b"\n")


if __name__ == "__main__":
    main()
