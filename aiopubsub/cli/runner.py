"""How a command runs: where the server is, how it ends, and what a person is told when it fails.

Lives here: errors to sentences, signals and failures to exit statuses, the embedded server. Must not
live here: what a command does. The commands of `app` call; nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
from collections.abc import AsyncGenerator, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

import typer

from aiopubsub.client import Client
from aiopubsub.errors import PubSubError
from aiopubsub.testing import Server, find_valkey

__all__ = [
    "BadInput",
    "Failed",
    "OutputClosed",
    "Place",
    "bad_input",
    "run",
    "tell",
    "until_first",
]

DEFAULT_URL = "redis://localhost:6379"
URL_VARIABLE = "AIOPUBSUB_URL"

_ENDING_SIGNALS = ("SIGTERM", "SIGHUP")  # SIGINT is asyncio's own; Windows has no SIGHUP


class BadInput(Exception):
    """What the user typed cannot be used; the message says why. Exit status 2."""


class Failed(Exception):
    """It did not work, and no error of the library says so; the message does. Exit status 1."""


class OutputClosed(Exception):
    """Whoever read our output has had enough. Exit status 0."""


@dataclass(frozen=True)
class Place:
    """Where a command finds its server, as the options say.

    Attributes:
        url: From `--url`; `None` takes the environment's, then the default.
        is_embedded: Whether to start a server of our own instead.
        connect_timeout: Seconds that connecting may take.
    """

    url: str | None
    is_embedded: bool
    connect_timeout: float

    @contextlib.asynccontextmanager
    async def server(self, *options: str) -> AsyncGenerator[tuple[str, Server | None]]:
        """The URL of the server, and the embedded one, which runs as long as the context.

        Args:
            *options: More of the embedded server's command line.

        Raises:
            BadInput: The options contradict each other.
            MissingExtra: The extra `server` is not installed.
            Failed: The embedded server did not start.
        """
        if not 0 < self.connect_timeout < math.inf:
            raise BadInput(f"--connect-timeout must be more than 0 seconds, not {self.connect_timeout:g}")
        if self.is_embedded:
            if self.url is not None:
                raise BadInput("--url and --embedded are two places; give one of them")
            async with _embedded_server(*options) as server:
                tell(f"embedded server; join it with --url {server.url}")
                yield server.url, server
            return
        default = os.environ.get(URL_VARIABLE) or DEFAULT_URL
        wanted = default if self.url is None else self.url
        if wanted.startswith("memory:"):
            raise BadInput("memory:// ends at this process, nobody else can join; use --embedded")
        yield wanted, None

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncGenerator[Client]:
        """A client, connected.

        Raises:
            BadInput: The options cannot be used.
            Failed: The embedded server did not start.
            PubSubError: There is no connection, or no embedded server is installed.
        """
        async with self.server() as (url, _):
            with bad_input():
                client = Client(url, connect_timeout=self.connect_timeout, name="aiopubsub-cli")
            async with client:
                with _warnings_told():
                    yield client


@contextlib.asynccontextmanager
async def _embedded_server(*options: str) -> AsyncGenerator[Server]:
    try:
        server = Server(find_valkey(), *options)
        await asyncio.to_thread(server.start)
    except (FileNotFoundError, RuntimeError) as error:
        raise Failed(str(error)) from error
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


@contextlib.contextmanager
def bad_input() -> Generator[None]:
    """Around what checks arguments: its `ValueError` and `TypeError` are the user's to mend.

    Raises:
        BadInput: The block raised one of them.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        words = str(error)
        if words.startswith("source: "):
            words = f"--url (or {URL_VARIABLE}): {words.removeprefix('source: ')}"
        raise BadInput(words) from error


def run(main: Coroutine[Any, Any, int | None]) -> None:
    """Run a command to its end. What went wrong becomes one sentence and an exit status.

    Raises:
        typer.Exit: The status is not 0.
    """
    caught: list[int] = []
    logging.getLogger("aiopubsub").addHandler(logging.NullHandler())  # not logging's last resort
    try:
        status = asyncio.run(_watch_signals(main, caught)) or 0
    except OutputClosed:
        status = 0
    except BadInput as error:
        tell(str(error))
        status = 2
    except (PubSubError, Failed, OSError) as error:
        tell(str(error))
        status = 1
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except asyncio.CancelledError:
        if not caught:
            raise
        status = 128 + caught[0]
    if status:
        raise typer.Exit(status)


def tell(sentence: str) -> None:
    """Tell the person, on stderr, if there is one."""
    if sys.stderr is not None:  # None when it was closed before we began
        with contextlib.suppress(OSError):
            sys.stderr.write(f"aiopubsub: {sentence}\n")
            sys.stderr.flush()


async def until_first(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run all until the first ends; cancel the others, wait for them, and raise what it raised."""
    tasks = [
        asyncio.create_task(coroutine, name=getattr(coroutine, "__qualname__", None))
        for coroutine in coroutines
    ]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()


@contextlib.contextmanager
def _warnings_told() -> Generator[None]:
    """What the library warns of, such as a lost connection, is told; before that, errors say it all."""
    handler = _Telling(logging.WARNING)
    log = logging.getLogger("aiopubsub")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Telling(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell(record.getMessage())


async def _watch_signals(main: Coroutine[Any, Any, int | None], caught: list[int]) -> int | None:
    """Cancelled by the signals that end a process, so that nothing is left behind."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # for the type checkers: a coroutine runs in a task

    def end(number: int) -> None:
        caught.append(number)
        task.cancel()

    for name in _ENDING_SIGNALS:
        number = getattr(signal, name, None)
        with contextlib.suppress(NotImplementedError):  # Windows: the signal ends the process at once
            if number is not None:
                loop.add_signal_handler(number, end, number)
    return await main
