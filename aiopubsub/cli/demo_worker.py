"""One process of `aiopubsub demo`: the publisher or a subscriber.

`python -m aiopubsub.cli.demo_worker` reads its job as one JSON line from standard input, so that no
URL shows in a list of processes, and reports as JSON lines on standard output. It ends when standard
input does, so that it never outlives the demo.

Lives here: one publisher, one subscriber, their reports. Must not live here: what the figures mean
(`demo_books`). `demo` starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

from aiopubsub.client import Client
from aiopubsub.errors import PubSubError, Unconfirmed
from aiopubsub.message import Gap, Message
from aiopubsub.publisher import Publisher
from aiopubsub.subscriber import Subscriber
from aiopubsub.topic import History, Pattern, Subscribable, Topic

from .demo_books import Ledger
from .runner import until_first
from .streams import LineReader

__all__ = ["Job", "main"]

_REPORT_EVERY_S = 0.25
_PACE_S = 0.01  # between two batches of the publisher
_CATCH_UP = 2  # a publisher that is late goes at most so many times as fast
_PAYLOAD = b"x" * 64
_PUBLISH_TIMEOUT_S = 30.0  # the server is killed and started again meanwhile
_END_EVERY_S = 0.2
_HISTORY = History(size=100_000, ttl=600)
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
        kept: The channel that is published to, or followed, with history.
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
    kept: str | None = None

    def topic(self, channel: str) -> Topic[bytes]:
        """A channel as this worker knows it."""
        return Topic(channel, history=_HISTORY if channel == self.kept else None)

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
class _Published:
    """What a publisher has published so far, by channel; and how many have no receipt, at most."""

    published: dict[str, int]
    unconfirmed: int = 0

    def figures(self) -> dict[str, Any]:
        return asdict(self)


def main() -> None:
    """Do the job that standard input gives. The exit status is 1 if it was not done."""
    logging.getLogger("aiopubsub").addHandler(logging.NullHandler())  # gaps say what it would
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
    async with Client(job.url, connect_timeout=job.connect_timeout) as client:
        if job.seconds:
            await _publish(job, client, reader)
        else:
            ledger = Ledger.of(job.channels)
            await until_first(_subscribe(job, client, ledger), _report_often(ledger), _parent_gone(reader))


async def _publish(job: Job, client: Client, reader: LineReader) -> None:
    """Publish, then mark the end of each channel again and again: a connection may just be lost."""
    figures = _Published(dict.fromkeys(job.channels, 0))
    async with Publisher(client, timeout=_PUBLISH_TIMEOUT_S) as publisher:
        publishing = _publish_numbers(job, publisher, figures)
        await until_first(publishing, _report_often(figures), _parent_gone(reader))
        _report({"done": True, **figures.figures()})
        await until_first(_mark_ends(job, publisher, figures), _parent_gone(reader))


async def _publish_numbers(job: Job, publisher: Publisher, figures: _Published) -> None:
    """Publish at a steady rate; the messages of each channel are numbered from 1."""
    clock = asyncio.get_running_loop().time
    topics = itertools.cycle([job.topic(channel) for channel in job.channels])
    largest = int(job.rate * _PACE_S * _CATCH_UP) + 1
    sent = 0
    began = clock()
    while (elapsed := clock() - began) < job.seconds:
        kept: list[tuple[Topic[bytes], bytes]] = []
        plain: list[tuple[Topic[bytes], bytes]] = []
        for _ in range(min(int(elapsed * job.rate) - sent, largest)):
            topic = next(topics)
            figures.published[topic.name] += 1
            payload = b"%d %b" % (figures.published[topic.name], _PAYLOAD)
            (plain if topic.history is None else kept).append((topic, payload))
        sent += len(kept) + len(plain)
        await asyncio.gather(publisher.publish_many(kept), _publish_plain(publisher, plain, figures))
        await asyncio.sleep(_PACE_S)


async def _publish_plain(
    publisher: Publisher, batch: list[tuple[Topic[bytes], bytes]], figures: _Published
) -> None:
    """Publish what no history keeps: it is sent once, whatever becomes of the answer."""
    try:
        await publisher.publish_many(batch)
    except Unconfirmed:
        figures.unconfirmed += len(batch)


async def _mark_ends(job: Job, publisher: Publisher, figures: _Published) -> None:
    while True:
        for channel, count in figures.published.items():
            with contextlib.suppress(Unconfirmed):
                await publisher.publish(job.topic(channel), b"", headers={_END: str(count)})
        await asyncio.sleep(_END_EVERY_S)


async def _subscribe(job: Job, client: Client, ledger: Ledger) -> None:
    """Take messages until the end of each channel was seen."""
    wanted: list[Subscribable[bytes]] = [job.topic(channel) for channel in job.channels]
    if job.pattern is not None:
        wanted = [Pattern(job.pattern)]
    waiting = set(job.channels)
    async with Subscriber(client, *wanted, buffer=job.buffer) as subscriber:
        _report({"ready": True})
        events = subscriber.events()
        while waiting:
            event = await anext(events)
            if isinstance(event, Gap):
                ledger.gap(event.missed)
            elif isinstance(event, Message):
                if (published := event.headers.get(_END)) is not None:
                    if event.channel in waiting:
                        ledger.end(event.channel, int(published))
                        waiting.discard(event.channel)
                    continue
                ledger.message(event.channel, int(event.payload.split(b" ", 1)[0]))
                if job.pause_every and ledger.delivered % job.pause_every == 0:
                    await asyncio.sleep(job.pause_s)
    ledger.close()
    _report({"done": True, **ledger.figures()})


async def _report_often(figures: Ledger | _Published) -> None:
    while True:
        await asyncio.sleep(_REPORT_EVERY_S)
        _report(figures.figures())


async def _parent_gone(reader: LineReader) -> None:
    while await reader.read():
        pass


def _report(fields: dict[str, Any]) -> None:
    """One line, in one write; the parent reads all the time."""
    os.write(sys.stdout.fileno(), json.dumps(fields).encode() + b"\n")


if __name__ == "__main__":
    main()
