"""What README and docs show is run, so that it cannot go out of date."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

import aiopubsub
from aiopubsub.frame import frame, unframe
from aiopubsub.testing import Server

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), 1)
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs(
    code: str,
    valkey: Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each Python snippet runs as it stands, against a server where it names one."""
    snippet = types.ModuleType("snippet")
    monkeypatch.setitem(sys.modules, "snippet", snippet)  # dataclasses look their module up
    exec(compile(code.replace("redis://localhost", valkey.url), "snippet", "exec"), vars(snippet))
    asyncio.run(asyncio.wait_for(snippet.main(), 30))
    assert capsys.readouterr().out


def test_vectors_of_the_wire_format() -> None:
    """Each row of the table is what the code publishes, and is taken apart again."""
    page = (ROOT / "docs/reference/wire-format.md").read_text()
    rows = [row.strip("|").split("|") for row in page.split("## Test vectors")[1].splitlines()[4:]]
    assert len(rows) == 4
    for payload_cell, headers_cell, published_cell in rows:
        payload, published = (
            bytes.fromhex(cell.strip().strip("`").replace("(empty)", ""))
            for cell in (payload_cell, published_cell)
        )
        text = headers_cell.strip().strip("`")
        headers = {} if text == "none" else json.loads(text)
        assert frame(payload, headers) == published
        if published != payload:
            assert unframe(published) == (payload, headers, None)


def test_links_lead_somewhere() -> None:
    """A relative link in a page names a file that exists."""
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_design_page_names_every_module() -> None:
    """The table of layers is the folder's content, no more and no less."""
    page = (ROOT / "docs/design.md").read_text()
    table = page.split("| layer | file |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+(?:\.py|/))`", table))
    package = Path(aiopubsub.__file__).parent
    there = {path.name for path in package.glob("*.py")}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert named == there


def test_version_and_changelog_agree() -> None:
    """The version that is being made has a section in the changelog."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    release = project["version"].split(".dev")[0]
    assert f"## {release}" in (ROOT / "CHANGELOG.md").read_text()
