"""`aiopubsub history`: what the server keeps of a channel.

Lives here: what is asked for, and how it is shown. Must not live here: options (`app`), connections
(`runner`). `app` calls.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, cast

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiopubsub.client import Client
from aiopubsub.errors import ErrorReply
from aiopubsub.frame import is_uid
from aiopubsub.keys import around_cursor, history_key
from aiopubsub.message import position_at
from aiopubsub.position import Position
from aiopubsub.topic import Topic

from .asking import ask
from .runner import Failed, Place, bad_input, tell
from .streams import Writer, is_terminal, visible

__all__ = ["Cursor", "Kept", "show"]

_SCAN_COUNT = b"1000"  # keys looked at in one step: the server does nothing else for about 1 ms
_NAME = re.compile(rb"[A-Za-z0-9._-]{1,128}").fullmatch
_LATEST_MS = 250_000_000_000_000  # the end of the year 9891: what a date can be
_UNKNOWN = "not told"  # by a server where this user may not ask

_Rows: TypeAlias = list[tuple[str, str]]


@dataclass(frozen=True)
class Cursor:
    """Where a durable cursor stands.

    Attributes:
        name: Under which it is kept.
        position: Its text.
        behind: Messages after it; `None` where it stands in another history, or cannot be read.
    """

    name: str
    position: str
    behind: int | None


@dataclass(frozen=True)
class Kept:
    """What is kept of a channel.

    Attributes:
        channel: Its name.
        count: How many messages.
        first: The position of the first of them; `None` without any.
        last: Of the last.
        bytes: Memory on the server; `None` where the user may not ask.
        expires_in_s: Seconds that it lives if nothing more is published; `None`: for ever.
        cursors: Those that were found; `None` if they were not looked for.
    """

    channel: str
    count: int = 0
    first: str | None = None
    last: str | None = None
    bytes: int | None = None
    expires_in_s: float | None = None
    cursors: list[Cursor] | None = field(default=None)


async def show(place: Place, channel: str, *, with_cursors: bool, as_json: bool) -> None:
    """Print what is kept.

    Raises:
        BadInput: The channel or the place cannot be used, or standard output is closed.
        Failed: The server refuses to tell, or keeps something else there.
        OutputClosed: The reader of standard output is gone.
        PubSubError: There is no server.
    """
    with bad_input():
        topic = Topic(channel)
    writer = Writer()
    async with place.client() as client:
        kept = await _look(client, topic, with_cursors=with_cursors)
    if not kept.count and not as_json:
        name = visible(channel)
        tell(f"nothing is kept of {name}: it was never published to with history, or that is over")
    if as_json:
        writer.add(json.dumps(asdict(kept)).encode() + b"\n")
    elif is_terminal(sys.stdout):
        _print_tables(kept)
    else:
        writer.add("".join(f"{name}\t{value}\n" for name, value in _plain_rows(kept)).encode())
    await writer.flush()


async def _look(client: Client, topic: Topic[bytes], *, with_cursors: bool) -> Kept:
    key = history_key(topic.key)
    first, last, count, size, lives_ms = await ask(
        client,
        (b"XRANGE", key, b"-", b"+", b"COUNT", b"1"),
        (b"XREVRANGE", key, b"+", b"-", b"COUNT", b"1"),
        (b"XLEN", key),
        (b"MEMORY", b"USAGE", key),
        (b"PTTL", key),
    )
    for answer in (first, last, count):
        if isinstance(answer, ErrorReply):
            raise Failed(f"the history of {visible(topic.name)} cannot be read: {answer}")
    newest = _position(last, topic.name)
    cursors = await _look_for_cursors(client, topic.key, newest) if with_cursors else None
    if newest is None:
        return Kept(topic.name, cursors=cursors)
    return Kept(
        topic.name,
        count=count,
        first=str(_position(first, topic.name)),
        last=str(newest),
        bytes=size if isinstance(size, int) else None,
        expires_in_s=lives_ms / 1000 if isinstance(lives_ms, int) and lives_ms >= 0 else None,
        cursors=cursors,
    )


def _position(entries: Any, channel: str) -> Position | None:
    """Of the only entry of an answer.

    Raises:
        Failed: It was not written by this library.
    """
    if not entries:
        return None
    ((name, fields),) = cast("list[tuple[bytes, list[bytes]]]", entries)
    uid = dict(zip(fields[::2], fields[1::2], strict=True)).get(b"uid")
    if uid is None or not is_uid(uid):
        raise Failed(f"the history of {visible(channel)} holds entries that this library did not write")
    return position_at(name, uid, channel)


async def _look_for_cursors(client: Client, channel: bytes, newest: Position | None) -> list[Cursor]:
    """The cursors in a channel, by name. Goes through all keys of the server."""
    before, after = around_cursor(channel)
    pattern = _escaped(before) + b"*" + _escaped(after)
    found: dict[str, bytes] = {}
    at = b"0"
    while True:
        (answer,) = await ask(client, (b"SCAN", at, b"MATCH", pattern, b"COUNT", _SCAN_COUNT))
        if isinstance(answer, ErrorReply):
            raise Failed(f"the cursors cannot be looked for: {answer}")
        at, keys = cast("tuple[bytes, list[bytes]]", answer)
        for key in keys:
            name = key[len(before) : len(key) - len(after)]
            if _NAME(name):
                found[name.decode()] = key
        if at == b"0":
            break
    texts = await ask(client, *((b"GET", key) for key in found.values())) if found else []
    return sorted(
        (_cursor(name, text, newest) for name, text in zip(found, texts, strict=True) if text is not None),
        key=lambda cursor: cursor.name,
    )


def _cursor(name: str, text: object, newest: Position | None) -> Cursor:
    words = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)
    try:
        position = Position.parse(words)
    except ValueError:
        return Cursor(name, words, None)
    is_in_it = newest is not None and position.epoch == newest.epoch and position.offset <= newest.offset
    return Cursor(name, words, newest.offset - position.offset if newest and is_in_it else None)


def _plain_rows(kept: Kept) -> _Rows:
    """Name and value of each thing that is known, for other programs."""
    rows: _Rows = []
    if kept.count:
        rows = [
            ("messages", str(kept.count)),
            ("first", str(kept.first)),
            ("last", str(kept.last)),
            ("bytes", _UNKNOWN if kept.bytes is None else str(kept.bytes)),
            ("expires in s", "never" if kept.expires_in_s is None else f"{kept.expires_in_s:.0f}"),
        ]
    for cursor in kept.cursors or ():
        behind = "?" if cursor.behind is None else str(cursor.behind)
        rows.append((f"cursor {cursor.name}", f"{visible(cursor.position)}\t{behind}"))
    return rows


def _print_tables(kept: Kept) -> None:
    """For a person."""
    console = Console(highlight=False)
    if kept.count:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, value in _shown_rows(kept):
            table.add_row(Text(name, "dim"), Text(value))
        console.print(table)
    if kept.cursors:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
        table.add_column("cursor")
        table.add_column("behind", justify="right")
        table.add_column("position", overflow="fold")
        for cursor in kept.cursors:
            behind = "?" if cursor.behind is None else f"{cursor.behind:,}"
            table.add_row(cursor.name, behind, Text(visible(cursor.position)))
        console.print(table)
    elif kept.cursors is not None:
        console.print(Text("no cursors", "dim"))


def _shown_rows(kept: Kept) -> Sequence[tuple[str, str]]:
    size = kept.bytes
    memory = _UNKNOWN if size is None else f"{size:,} bytes on the server"
    if size is not None and kept.count >= 100:  # fewer say nothing of the next ones
        memory += f", {size / kept.count:,.0f} a message"
    return [
        ("channel", visible(kept.channel)),
        ("messages", f"{kept.count:,}"),
        ("first", str(kept.first)),
        ("last", str(kept.last)),
        ("memory", memory),
        ("began", _date(Position.parse(str(kept.last)).epoch)),
        ("expires", _duration(kept.expires_in_s)),
    ]


def _date(epoch_ms: int) -> str:
    if epoch_ms > _LATEST_MS:  # not by our script
        return "?"
    return f"{datetime.fromtimestamp(epoch_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    if seconds * 1000 > _LATEST_MS:
        return "in thousands of years"
    return f"in {timedelta(seconds=round(seconds))}"


def _escaped(text: bytes) -> bytes:
    r"""As a pattern that matches this alone: `*`, `?`, `[`, `]`, `^` and `\` mean themselves."""
    return re.sub(rb"([*?\[\]^\\])", rb"\\\1", text)
