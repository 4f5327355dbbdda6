"""The tutorial, walked as a reader walks it: programs written, commands typed, output seen."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from aiopubsub.testing import free_port

TUTORIAL = Path(__file__).parent.parent / "docs/tutorial"
PAGES = ["index.md", "topics.md", "history.md", "service.md"]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]*)")?[^\n]*\n(.*?)^```$', re.DOTALL | re.MULTILINE)
PATIENCE_S = 60.0
# a run in the background ignores Ctrl-C, and all that it starts would, too
SHELL = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
SHELL += "os.execvp('bash', ['bash', '-euc', sys.argv[1]])"


class Terminal:
    """Where commands are typed, one after the other."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []

    def type(self, commands: str, *, is_awaited: bool) -> None:
        """Ctrl-C to what runs there, then the next commands."""
        self.interrupt()
        before = self._subscribers()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", SHELL, commands],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"PATH": path, "AIOPUBSUB_URL": self._url},
        )
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        if is_awaited:
            status = process.wait(PATIENCE_S)
            reader.join(PATIENCE_S)
            assert status == 0, f"{commands}\n{''.join(self._lines)}"
        else:
            wait_until(lambda: process.poll() is not None or self._subscribers() > before)

    def interrupt(self) -> None:
        """Ctrl-C."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(PATIENCE_S)

    def expect(self, line: str) -> None:
        """A line comes, after those that were expected before."""

        def has_come() -> bool:
            at = next((at for at, printed in enumerate(self._lines) if line in printed), None)
            if at is not None:
                del self._lines[: at + 1]
            return at is not None

        assert wait_until(has_come), f"never printed: {line}\nbut: {''.join(self._lines)}"

    def _subscribers(self) -> int:
        """Connections that listen: -1 without a server."""
        try:
            with redis.Redis.from_url(self._url) as admin:
                return len(admin.client_list("pubsub"))
        except redis.ConnectionError:
            return -1

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.append(line)


def wait_until(is_so: Callable[[], bool]) -> bool:
    """Look again and again; whether it came to be so."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[dict[str, Terminal]]:
    """Every terminal that is open, by name."""
    terminals: dict[str, Terminal] = {}
    yield terminals
    for terminal in terminals.values():
        terminal.interrupt()


def test_the_tutorial(terminals: dict[str, Terminal], tmp_path: Path) -> None:
    """All pages, in order, in one folder, on a port of its own instead of 6379."""
    port = str(free_port())
    for page in PAGES:
        text = (TUTORIAL / page).read_text().replace("6379", port)
        for language, title, block in BLOCK.findall(text):
            if language == "python":
                (tmp_path / title).write_text(block)
            elif language == "sh" and "pip install" not in block:
                terminal = terminals.setdefault(title, Terminal(tmp_path, f"redis://localhost:{port}"))
                terminal.type(block, is_awaited=not title)
            elif language == "text":
                for line in block.splitlines():
                    terminals[title].expect(line)
