"""What the tests of the command line share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import TypeAlias

import pytest

from aiopubsub.__main__ import main

InProcess: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> InProcess:
    """Runs the command line in this process, which is faster and shows the same."""
    monkeypatch.delenv("AIOPUBSUB_URL", raising=False)

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["aiopubsub", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return subprocess.CompletedProcess(args, int(ended.value.code or 0), said.out, said.err)

    return call
