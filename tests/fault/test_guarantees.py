"""`docs/guarantees.md` names the test that shows each promise: they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_test_that_is_named_exists() -> None:
    """A name without a file is in the file that was named last; one without a folder in `tests/fault/`."""
    page = (ROOT / "docs/guarantees.md").read_text()
    named = re.findall(r"`([\w/]+\.py)?::(\w+)`", page)
    assert len(named) > 30
    source = ""
    for file, test in named:
        if file:
            source = (ROOT / (file if "/" in file else f"tests/fault/{file}")).read_text()
        assert f"def {test}(" in source, f"{file}::{test}"
