"""Pages name the test that shows each promise: they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISES = [page for page in (ROOT / "docs").rglob("*.md") if re.search(r"`test_\w+\.py", page.read_text())]


@pytest.mark.parametrize("page", PROMISES, ids=lambda page: page.stem)
def test_each_test_that_is_named_exists(page: Path) -> None:
    """A name without a file is in the one that was named last; one without a folder in any."""
    named = re.findall(r"`([\w/]+\.py)?(?:::(\w+))?`", page.read_text())
    source = ""
    for file, test in named:
        if file.rpartition("/")[2].startswith("test_"):
            found = list((ROOT / "tests").rglob(file.removeprefix("tests/")))
            assert found, file
            source = "".join(path.read_text() for path in found)
        assert f"def {test}(" in source or not test, f"{file}::{test}"


def test_there_are_promises() -> None:
    """They are found."""
    assert len(re.findall("::test_", (ROOT / "docs/guarantees.md").read_text())) > 30
    assert len(PROMISES) > 5
