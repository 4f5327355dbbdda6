"""What README and docs show is run, so that it cannot go out of date."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import textwrap
import tomllib
import types
from pathlib import Path

import pytest
import redis.asyncio

import aiopubsub
import aiopubsub.contrib.otel
import aiopubsub.contrib.starlette
import aiopubsub.testing
from aiopubsub.append import SCRIPT
from aiopubsub.frame import VERSION, frame, unframe
from aiopubsub.keys import cursor_key, history_key, mark_of, slot_of
from aiopubsub.testing import Server

ROOT = Path(__file__).parent.parent
LLMS = ROOT / "docs/llms.txt"
PAGES = [ROOT / "README.md", LLMS, *sorted((ROOT / "docs").rglob("*.md"))]
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
    monkeypatch.setitem(sys.modules, "aioredis", redis.asyncio)  # what it has become
    code = re.sub("redis://localhost(:6379)?", valkey.url, code)
    exec(compile(code, "snippet", "exec"), vars(snippet))
    is_deaf = int(redis.__version__.split(".")[0]) >= 8 and sys.version_info < (3, 12)
    if "import Broadcast\n" in code and is_deaf:
        with pytest.raises(TimeoutError):  # as the page says of broadcaster with such a redis-py
            asyncio.run(asyncio.wait_for(snippet.main(), 1))
        return
    asyncio.run(asyncio.wait_for(snippet.main(), 30))
    assert capsys.readouterr().out


def excerpts() -> list[tuple[str, str, str]]:
    """What pages show of the examples: page, file, text."""
    block = re.compile(r"```\w+ title=\"(examples/[\w/.]+)\"\n(.*?)```", re.DOTALL)
    return [(page.name, *found) for page in PAGES for found in block.findall(page.read_text())]


@pytest.mark.parametrize(("page", "example", "text"), excerpts())
def test_an_excerpt_is_what_the_example_says(page: str, example: str, text: str) -> None:
    """Word for word, however deep it is indented there; the examples have tests of their own."""
    code = (ROOT / "docs" / example).read_text()
    indented = [textwrap.indent(text, spaces * " ") for spaces in (0, 2, 4, 8)]
    assert any(shown in code for shown in indented), f"{page} shows what {example} does not say"


WIRE_FORMAT = (ROOT / "docs/reference/wire-format.md").read_text()


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without their quotes."""
    lines = WIRE_FORMAT.split(f"\n{heading}\n")[1].split("\n|---")[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def unhexed(cell: str) -> bytes:
    return bytes.fromhex(cell.replace("(empty)", ""))


def test_vectors_of_the_wire_format() -> None:
    """Each row of the table is what the code publishes, and is taken apart again."""
    rows = rows_after("## Test vectors")
    assert len(rows) == 4
    for payload_cell, text, published_cell in rows:
        payload, published = unhexed(payload_cell), unhexed(published_cell)
        headers = {} if text == "none" else json.loads(text)
        assert frame(payload, headers) == published
        if published != payload:
            assert unframe(published) == (payload, headers, None)


def test_vectors_with_a_place(valkey: Server) -> None:
    """Each row is what the script makes of a message after the one in front of it: stored and pushed."""
    rows = rows_after("With a place in a history; the headers as they are in the stream:\n")
    assert len(rows) == 3
    key = history_key(b"vectors")
    with redis.Redis(port=valkey.port) as admin, admin.pubsub(ignore_subscribe_messages=False) as pubsub:
        pubsub.subscribe("vectors")
        assert pubsub.get_message(timeout=10)
        sha = admin.script_load(SCRIPT)
        for payload_cell, headers, place_cell, published_cell in rows:
            payload, published = unhexed(payload_cell), unhexed(published_cell)
            name, uid, after = place_cell.encode().split()
            epoch, offset = name.split(b"-")
            admin.delete(key)
            before = b"%b-%d" % (epoch, int(offset) - 1)
            admin.xadd(key, {"uid": after, "after": "-", "data": ""}, id=before)
            answer = admin.evalsha(sha, 1, key, "vectors", 10, "", "", uid, headers, payload)
            assert answer == [name, 1]
            assert pubsub.get_message(timeout=10)["data"] == published
            assert unframe(published) == (
                payload,
                json.loads(headers),
                b" ".join([VERSION, name, uid, after]),
            )
            ((stored, fields),) = admin.xrevrange(key, count=1)
            told = {b"headers": headers.encode()} if headers != "{}" else {}
            assert (stored, fields) == (name, {b"uid": uid, b"after": after, **told, b"data": payload})
            again = admin.evalsha(sha, 1, key, "vectors", 10, "", "-", uid, headers, payload)
            assert again == [name, -1]


def test_names_of_the_wire_format() -> None:
    """Each row of the table of keys is what the code makes of the channel."""
    rows = rows_after("## Histories")
    assert len(rows) == 4
    for channel, stream, cursor, mark in rows:
        key = channel.encode()
        assert history_key(key).decode() == stream
        assert cursor_key(key, "billing").decode() == cursor
        assert mark_of(key) == mark
        assert slot_of(key) == slot_of(stream.encode()) == slot_of(cursor.encode())


def test_links_lead_somewhere() -> None:
    """A relative link in a page names a file that exists."""
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_language_models_are_told_of_every_page_and_name() -> None:
    """`llms.txt` links to each page of the site, and has each public name."""
    text = LLMS.read_text()
    linked = {(LLMS.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    pages = {page for page in PAGES if page.suffix == ".md" and page.is_relative_to(LLMS.parent)}
    assert linked == pages - {LLMS.parent / "index.md"}
    assert set(aiopubsub.__all__) <= set(re.findall(r"\w+", text))


def test_the_reference_has_every_public_name() -> None:
    """Each public name has its place in the reference, one, and nothing else has."""
    public = [f"aiopubsub.{name}" for name in aiopubsub.__all__]
    public += [f"aiopubsub.testing.{name}" for name in aiopubsub.testing.__all__]
    public += ["pytest_aiopubsub"]
    public += [f"aiopubsub.contrib.starlette.{name}" for name in aiopubsub.contrib.starlette.__all__]
    public += [f"aiopubsub.contrib.otel.{name}" for name in aiopubsub.contrib.otel.__all__]
    pages = [page.read_text() for page in (ROOT / "docs/reference").glob("*.md")]
    told = [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    assert sorted(told) == sorted(public)


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
