"""`aiopubsub demo`: one publisher, three subscribers, and the books in the end.

Lives here: the processes, from start to end, and the order of events. Must not live here: what they do
(`demo_worker`), figures (`demo_books`), words (`demo_view`). `app` calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from aiopubsub.client import Client

from .demo_books import Books, Row
from .demo_view import View, view_of
from .demo_worker import Job
from .runner import Failed, OutputClosed, Place, bad_input

__all__ = ["demonstrate"]

_MARGIN_S = 45.0  # for starting and ending, on a machine that is busy with other things
_STOP_TIMEOUT_S = 2.0  # for a process whose standard input has ended

_Report = dict[str, Any]  # a line of JSON from our own worker


@dataclass
class _Cast:
    """Who takes part."""

    books: Books
    subscribers: list[tuple[Row, Job]]
    publisher: Job


async def demonstrate(place: Place, seconds: float, rate: int) -> int:
    """Run the demo; 0 if the books balance, 1 if not.

    Raises:
        BadInput: The place cannot be used.
        Failed: A process failed, or it took too long.
        PubSubError: There is no connection, or no embedded server is installed.
    """
    async with place.server_url() as url:
        with bad_input():
            client = Client(url, connect_timeout=place.connect_timeout)
        async with client:
            pass  # a server that is not there is told before anything is started
        cast = _cast(url, place.connect_timeout, seconds, rate)
        view = view_of(cast.books)
        try:
            with view.shown():
                async with asyncio.timeout(seconds + _MARGIN_S):
                    await _conduct(cast, view)
            await view.finish()
        except TimeoutError as error:
            raise Failed(f"the demo did not end within {seconds + _MARGIN_S:g} s") from error
        except OutputClosed as error:
            raise Failed("the output was closed before the demo had ended") from error
    return 0 if cast.books.is_balanced else 1


def _cast(url: str, connect_timeout: float, seconds: float, rate: int) -> _Cast:
    """Half of the messages go to a channel, half to two others that a pattern matches."""
    prefix = f"aiopubsub-demo-{secrets.token_hex(4)}:"  # another demo on the server is not heard
    orders, art, sport = (prefix + name for name in ("orders", "news.art", "news.sport"))

    def subscriber(name: str, follows: str, *channels: str, **options: Any) -> tuple[Row, Job]:
        return Row(name, follows, channels), Job(url, connect_timeout, channels, **options)

    subscribers = [
        subscriber("exact", "orders", orders),
        subscriber("pattern", "news.*", art, sport, pattern=f"{prefix}news.*"),
        subscriber("slow", "orders", orders, buffer=1000, pause_every=100, pause_s=0.05),
    ]
    publisher = Job(url, connect_timeout, (orders, art, orders, sport), seconds=seconds, rate=rate)
    return _Cast(Books([row for row, _ in subscribers]), subscribers, publisher)


async def _conduct(cast: _Cast, view: View) -> None:
    """All processes, from start to end; the publisher starts when everybody listens."""
    ready = [asyncio.Event() for _ in cast.subscribers]
    tasks = [asyncio.create_task(_run_publisher(cast, ready, view), name="demo: publisher")]
    for (row, job), event in zip(cast.subscribers, ready, strict=True):
        tasks.append(asyncio.create_task(_run_subscriber(row, job, event), name=f"demo: {row.name}"))
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            if not task.cancelling():  # a second time would disturb it in ending its process
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run_subscriber(row: Row, job: Job, ready: asyncio.Event) -> None:
    def note(report: _Report) -> None:
        if "delivered" in report:
            row.delivered, row.missing = report["delivered"], report["missing"]
            row.has_unknown = report["has_unknown"]
            row.rate.add(asyncio.get_running_loop().time(), row.delivered)
        row.is_done = "done" in report
        ready.set()

    await _follow(f"the subscriber {row.name!r}", job, note)


async def _run_publisher(cast: _Cast, ready: list[asyncio.Event], view: View) -> None:
    for event in ready:
        await event.wait()

    def note(report: _Report) -> None:
        cast.books.published = report["published"]
        cast.books.rate.add(asyncio.get_running_loop().time(), cast.books.total)

    showing = asyncio.create_task(_show(cast.books, view))
    try:
        await _follow("the publisher", cast.publisher, note)
        await showing
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


async def _show(books: Books, view: View) -> None:
    """Show the books until they are closed."""
    clock = asyncio.get_running_loop().time
    began = clock()
    while not all(row.is_done for row in books.rows):
        await asyncio.sleep(view.every_s)
        await view.refresh(clock() - began)


async def _follow(name: str, job: Job, note: Callable[[_Report], None]) -> None:
    """Run a worker, and note what it reports until it is done."""
    async with _worker(job) as (process, lines):
        while line := await lines.readline():
            report: _Report = json.loads(line)
            if "error" in report:
                raise Failed(f"{name} failed: {report['error']}")
            note(report)
            if "done" in report:
                return
        raise Failed(f"{name} ended early, with status {await process.wait()}")


@contextlib.asynccontextmanager
async def _worker(job: Job) -> AsyncGenerator[tuple[Process, asyncio.StreamReader]]:
    """A worker that has its job, and what it prints. It has ended when the context has."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiopubsub.cli.demo_worker"),
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,  # Ctrl-C is for us; we end our processes ourselves
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a process that was started with pipes has none")
    try:
        process.stdin.write(job.to_line())
        yield process, process.stdout
    finally:
        process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
