"""`aiopubsub demo`: one publisher, four subscribers, trouble, and the books in the end.

Lives here: the processes, from start to end, the trouble, and the order of events. Must not live here:
what they do (`demo_worker`), figures (`demo_books`), words (`demo_view`). `app` calls.
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
from typing import Any, TypeAlias

import anyio

from aiopubsub.client import Client
from aiopubsub.errors import PubSubError
from aiopubsub.keys import history_key
from aiopubsub.testing import Server

from .asking import ask
from .demo_books import Books, Row
from .demo_view import View, view_of
from .demo_worker import Job
from .runner import Failed, OutputClosed, Place, bad_input

__all__ = ["demonstrate"]

_MARGIN_S = 45.0  # for starting and ending, on a machine that is busy with other things
_STOP_TIMEOUT_S = 2.0  # for a process whose standard input has ended

_FORGET_TIMEOUT_S = 1.0
_DURABLE = ("--appendonly", "yes", "--appendfsync", "always")  # what was confirmed survives a crash

_Report = dict[str, Any]  # a line of JSON from our own worker
_Worker: TypeAlias = "tuple[Process, asyncio.StreamReader]"  # and what it prints


@dataclass
class _Cast:
    """Who takes part; `server` is our own, to which we may do what we like."""

    books: Books
    subscribers: list[tuple[Row, Job]]
    publisher: Job
    server: Server | None = None


async def demonstrate(place: Place, seconds: float, rate: int) -> int:
    """Run the demo; 0 if the books balance, 1 if not.

    Raises:
        BadInput: The place cannot be used.
        Failed: A process failed, or it took too long.
        PubSubError: There is no connection, or no embedded server is installed.
    """
    async with place.server(*_DURABLE) as (url, server):
        with bad_input():
            client = Client(url, connect_timeout=place.connect_timeout)
        async with client:  # a server that is not there is told before anything is started
            cast = _cast(url, place.connect_timeout, seconds, rate)
            cast.server = server
            view = view_of(cast.books)
            try:
                with view.shown():
                    async with asyncio.timeout(seconds + _MARGIN_S):
                        await _conduct(cast, view, client)
                await view.finish()
            except TimeoutError as error:
                raise Failed(f"the demo did not end within {seconds + _MARGIN_S:g} s") from error
            except OutputClosed as error:
                raise Failed("the output was closed before the demo had ended") from error
            finally:
                await _forget(cast, client)
    return 0 if cast.books.is_balanced else 1


def _cast(url: str, connect_timeout: float, seconds: float, rate: int) -> _Cast:
    """Half of the messages go to a topic with history, half to two channels that a pattern matches."""
    prefix = f"aiopubsub-demo-{secrets.token_hex(4)}:"  # another demo on the server is not heard
    orders, art, sport = (prefix + name for name in ("orders", "news.art", "news.sport"))

    def subscriber(name: str, follows: str, *channels: str, **options: Any) -> tuple[Row, Job]:
        return Row(name, follows, channels), Job(url, connect_timeout, channels, **options)

    subscribers = [
        subscriber("exact", "orders", orders),
        subscriber("pattern", "news.*", art, sport, pattern=f"{prefix}news.*"),
        subscriber("slow", "orders", orders, buffer=1000, pause_every=100, pause_s=0.05),
        subscriber("history", "orders", orders, kept=orders),
    ]
    channels = (orders, art, orders, sport)
    publisher = Job(url, connect_timeout, channels, seconds=seconds, rate=rate, kept=orders)
    return _Cast(Books([row for row, _ in subscribers]), subscribers, publisher)


async def _conduct(cast: _Cast, view: View, client: Client) -> None:
    """All processes, from start to end; the publisher starts when everybody listens."""
    ready = [asyncio.Event() for _ in cast.subscribers]
    tasks = [asyncio.create_task(_run_publisher(cast, ready, view), name="demo: publisher")]
    if cast.server is not None:
        trouble = _make_trouble(cast.books, cast.server, client, ready, cast.publisher.seconds)
        tasks.append(asyncio.create_task(trouble, name="demo: trouble"))
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
            row.gaps, row.wrong = report["gaps"], report["wrong"]
            row.rate.add(asyncio.get_running_loop().time(), row.delivered)
        row.is_done = "done" in report
        ready.set()

    async with _worker(job) as worker:
        await _follow(f"the subscriber {row.name!r}", worker, note)


async def _run_publisher(cast: _Cast, ready: list[asyncio.Event], view: View) -> None:
    await _all(ready)

    def note(report: _Report) -> None:
        cast.books.published = report["published"]
        cast.books.unconfirmed = report["unconfirmed"]
        cast.books.rate.add(asyncio.get_running_loop().time(), cast.books.total)

    showing = asyncio.create_task(_show(cast.books, view))
    try:
        async with _worker(cast.publisher) as worker:
            await _follow("the publisher", worker, note)
            await showing  # until then it marks the ends of the channels
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


async def _make_trouble(
    books: Books, server: Server, client: Client, ready: list[asyncio.Event], seconds: float
) -> None:
    """Kill the subscribers' connections, then the server, which starts again with what it has kept."""
    await _all(ready)
    await asyncio.sleep(seconds / 4)
    await ask(client, (b"CLIENT", b"KILL", b"TYPE", b"PUBSUB"))
    books.faults.append("The subscribers' connections were killed.")
    await asyncio.sleep(seconds / 4)
    try:
        with anyio.CancelScope(shield=True):  # else it might start after it was to stop
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
    except RuntimeError as error:
        raise Failed(str(error)) from error
    books.faults.append("The server was killed, and started again with what it had kept.")


async def _all(events: list[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def _forget(cast: _Cast, client: Client) -> None:
    """Delete the history from a server that is not ours; if that fails, it expires."""
    if cast.server is None and cast.publisher.kept is not None:
        with (
            anyio.move_on_after(_FORGET_TIMEOUT_S, shield=True),
            contextlib.suppress(PubSubError, Failed),
        ):
            await ask(client, (b"UNLINK", history_key(cast.publisher.kept.encode())))


async def _follow(name: str, worker: _Worker, note: Callable[[_Report], None]) -> None:
    """Note what a worker reports until it is done."""
    process, lines = worker
    while line := await lines.readline():
        report: _Report = json.loads(line)
        if "error" in report:
            raise Failed(f"{name} failed: {report['error']}")
        note(report)
        if "done" in report:
            return
    raise Failed(f"{name} ended early, with status {await process.wait()}")


@contextlib.asynccontextmanager
async def _worker(job: Job) -> AsyncGenerator[_Worker]:
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
