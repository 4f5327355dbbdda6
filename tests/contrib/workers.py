"""Web servers as processes, which may be killed and started again on the port that they had."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from aiopubsub.testing import free_port

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20


class Worker:
    """uvicorn with one application, on the loopback interface. Started and ended as a context manager."""

    def __init__(self, app: str, redis_url: str, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "uvicorn", app, "--port", str(self.port), *options]
        self._env = os.environ | {"REDIS_URL": redis_url}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in the end
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Until it answers."""
        self._process = subprocess.Popen(  # noqa: ASYNC220  # takes no time worth a thread
            self._command, cwd=ROOT, env=self._env, stdout=self._log, stderr=self._log
        )
        async with asyncio.timeout(DEADLINE_S):
            while True:
                assert self._process.poll() is None, self.log
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    async def end(self, how: signal.Signals) -> int:
        """Send it a signal and wait; its exit status."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(how)
        try:
            return await asyncio.to_thread(process.wait, DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    @property
    def log(self) -> str:
        """What it has said, since it was first started."""
        self._log.seek(0)
        return self._log.read()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._process is not None:
                await self.end(signal.SIGTERM)
        finally:
            if exc is not None:
                print(self.log)
            self._log.close()
