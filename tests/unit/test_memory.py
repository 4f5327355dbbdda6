"""`memory://`: the glob of Redis, and the answers of a server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopubsub.errors import ErrorReply
from aiopubsub.memory import MemoryOpener, MemoryServer, _glob
from aiopubsub.wire import Push
from tests.virtual_time import run


def stringmatchlen(pattern: bytes, string: bytes) -> bool:
    """A port of `stringmatchlen` of Redis' `util.c`; for ASCII only, as `char` has a sign there."""
    p, s = 0, 0
    while p < len(pattern) and s < len(string):
        char = pattern[p : p + 1]
        if char == b"*":
            rest = pattern[p:].lstrip(b"*")
            return not rest or any(stringmatchlen(rest, string[at:]) for at in range(s, len(string)))
        if char == b"[":
            matches, p = char_class(pattern, p + 1, string[s])
            if not matches:
                return False
        elif char != b"?":
            p += char == b"\\" and len(pattern) - p >= 2
            if pattern[p] != string[s]:
                return False
        s += 1
        p += 1
    if s == len(string):
        p = len(pattern) - len(pattern[p:].lstrip(b"*"))
    return p >= len(pattern) and s == len(string)


def char_class(pattern: bytes, p: int, char: int) -> tuple[bool, int]:
    """The part of it that is about `[...]`: whether it matches, and where it ends."""
    negated = pattern[p : p + 1] == b"^"
    p += negated
    match = False
    while True:
        left = len(pattern) - p
        if left >= 2 and pattern[p] == ord("\\"):
            p += 1
            match |= pattern[p] == char
        elif left >= 1 and pattern[p] == ord("]"):
            break
        elif left == 0:
            p -= 1
            break
        elif left >= 3 and pattern[p + 1] == ord("-"):
            low, high = sorted((pattern[p], pattern[p + 2]))
            p += 2
            match |= low <= char <= high
        else:
            match |= pattern[p] == char
        p += 1
    return match is not negated, p


TABLE = [
    # pattern, channel, whether it matches
    (b"news", b"news", True),
    (b"news", b"new", False),
    (b"news", b"newsy", False),
    (b"News", b"news", False),
    (b"*", b"anything", True),
    (b"news.*", b"news.", True),
    (b"news.*", b"news.art.old", True),
    (b"news.*", b"newsXart", False),
    (b"**a**", b"a", True),
    (b"a*b*c", b"aXbYc", True),
    (b"a*b*c", b"aXcYb", False),
    (b"*.art", b"news.art", True),
    (b"*\n*", b"a\nb", True),
    (b"a*b", b"a\nb", True),
    (b"a?b", b"a\nb", True),
    (b"h?llo", b"hello", True),
    (b"h?llo", b"hllo", False),
    (b"h?", b"h", False),
    (b"?", b"\xff", True),
    (b"h[ae]llo", b"hallo", True),
    (b"h[ae]llo", b"hillo", False),
    (b"h[^e]llo", b"hallo", True),
    (b"h[^e]llo", b"hello", False),
    (b"h[a-c]llo", b"hbllo", True),
    (b"h[a-c]llo", b"hdllo", False),
    (b"h[c-a]llo", b"hbllo", True),  # turned round
    (b"h[^a-c]llo", b"hbllo", False),
    (b"[a-]", b"a", True),  # the range goes on to ], and the class to the end
    (b"[a-]", b"]", True),
    (b"[a-]", b"-", False),
    (b"[-a]", b"-", True),
    (b"[ab-]", b"^", True),
    (b"[a^]", b"^", True),
    (b"[*?]", b"*", True),
    (b"[*?]", b"x", False),
    (b"[\\]]", b"]", True),
    (b"[\\^a]", b"^", True),
    (b"[a\\-c]", b"-", True),
    (b"[a\\-c]", b"b", False),
    (b"[\\a-c]", b"b", False),  # an escaped byte begins no range
    (b"[", b"[", False),
    (b"[", b"x", False),
    (b"[abc", b"b", True),  # a missing ] ends with the pattern
    (b"[abc", b"d", False),
    (b"[^abc", b"d", True),
    (b"[]", b"x", False),
    (b"[]x]", b"x]", False),
    (b"[^]", b"x", True),
    (b"[[]", b"[", True),
    (b"[a||b]", b"|", True),
    (b"[a&&b]", b"b", True),
    (b"\\*", b"*", True),
    (b"\\*", b"x", False),
    (b"a\\?c", b"a?c", True),
    (b"a\\?c", b"abc", False),
    (b"\\\\", b"\\", True),
    (b"a\\", b"a\\", True),  # a last backslash stands for itself
    (b"\\a", b"a", True),
    (b"a.b", b"axb", False),
    (b"a+", b"aa", False),
    (b"(a|b)$", b"a", False),
    (b"(a|b)$", b"(a|b)$", True),
]


@pytest.mark.parametrize(("pattern", "channel", "expected"), TABLE)
def test_globs(pattern: bytes, channel: bytes, expected: bool) -> None:
    """A pattern matches what Redis' `stringmatchlen` matches."""
    assert bool(_glob(pattern)(channel)) is expected


@pytest.mark.parametrize(("pattern", "channel", "expected"), [row for row in TABLE if row[1] != b"\xff"])
def test_the_port_agrees_with_the_table(pattern: bytes, channel: bytes, expected: bool) -> None:
    """The port of `stringmatchlen` that the next test relies on knows the same."""
    assert stringmatchlen(pattern, channel) is expected


@given(st.text("ab-]^[\\*?", max_size=8), st.text("ab-]^[\\*?", min_size=1, max_size=5))
def test_globs_like_the_original(pattern: str, channel: str) -> None:
    """No pattern is understood otherwise than by the original."""
    matches = bool(_glob(pattern.encode())(channel.encode()))
    assert matches is stringmatchlen(pattern.encode(), channel.encode())


class User:
    """Who owns a wire in these tests: keeps what came."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []

    def on_batch(self, batch: list[Any]) -> None:
        self.batches.append(batch)

    def on_writable(self) -> None:
        raise AssertionError

    def on_lost(self, reason: str) -> None:
        raise AssertionError(reason)

    def take(self) -> list[Any]:
        items = [item for batch in self.batches for item in batch]
        self.batches.clear()
        return items


async def connect(name: str = "") -> tuple[Any, User]:
    wire, user = await MemoryOpener(name).open(), User()
    wire.start(user)
    return wire, user


def test_answers() -> None:
    """Each command is answered as a server answers it, all of a turn in one batch."""

    async def main() -> None:
        wire, user = await connect()
        wire.write([(b"SUBSCRIBE", b"a", b"b"), (b"PSUBSCRIBE", b"a*"), (b"PING",), (b"PING", b"7")])
        wire.write([(b"PUBLISH", b"a", b"x"), (b"PUBLISH", b"nobody", b"x")])
        wire.write([(b"UNSUBSCRIBE", b"a", b"unknown"), (b"PUNSUBSCRIBE", b"a*"), (b"PUBLISH", b"a", b"x")])
        wire.write([(b"HGET", b"a")])
        assert user.batches == []
        await asyncio.sleep(0)
        assert len(user.batches) == 1
        items = user.take()
        error = items.pop()
        assert isinstance(error, ErrorReply)
        assert str(error) == "ERR unknown command 'HGET'"
        assert items == [
            [b"subscribe", b"a", 1],
            [b"subscribe", b"b", 2],
            [b"psubscribe", b"a*", 3],
            b"PONG",
            b"7",
            [b"message", b"a", b"x"],
            [b"pmessage", b"a*", b"a", b"x"],
            2,
            0,
            [b"unsubscribe", b"a", 2],
            [b"unsubscribe", b"unknown", 2],
            [b"punsubscribe", b"a*", 1],
            0,
        ]
        assert all(isinstance(item, Push) for item in items if isinstance(item, list))

    run(main())


def test_servers_are_found_by_name_within_a_loop() -> None:
    """Two connections to one name meet; other names, and other loops, are other servers."""

    async def main() -> None:
        one, user = await connect("a")
        other, answers = await connect("a")
        stranger, ignored = await connect("b")
        one.write([(b"SUBSCRIBE", b"c")])
        other.write([(b"PUBLISH", b"c", b"x")])
        stranger.write([(b"PUBLISH", b"c", b"y")])
        await asyncio.sleep(0)
        assert user.take() == [[b"subscribe", b"c", 1], [b"message", b"c", b"x"]]
        assert answers.take() == [1]
        assert ignored.take() == [0]

    run(main())
    run(main())


def test_an_aborted_connection_is_forgotten() -> None:
    """After `abort` nothing is delivered, and the server counts it no more."""

    async def main() -> None:
        one, user = await connect()
        other, answers = await connect()
        one.write([(b"SUBSCRIBE", b"c"), (b"PSUBSCRIBE", b"*")])
        other.write([(b"PUBLISH", b"c", b"x")])
        one.abort()
        one.abort()
        other.write([(b"PUBLISH", b"c", b"x")])
        await asyncio.sleep(0)
        assert user.take() == []
        assert answers.take() == [2, 0]
        assert one._server._channels == one._server._patterns == {}

    run(main())


def test_a_paused_connection_keeps_what_comes() -> None:
    """While it is paused nothing is delivered, and nothing is lost."""

    async def main() -> None:
        wire, user = await connect()
        wire.write([(b"PING", b"1")])
        wire.pause()
        wire.write([(b"PING", b"2")])
        await asyncio.sleep(0)
        assert user.take() == []
        wire.resume()
        wire.write([(b"PING", b"3")])
        await asyncio.sleep(0)
        assert user.batches == [[b"1", b"2", b"3"]]

    run(main())


def test_a_server_nobody_uses_is_let_go() -> None:
    """The table of servers holds none that has no connection."""

    async def main() -> None:
        wire, _ = await connect("x")
        server: MemoryServer = wire._server
        assert (await MemoryOpener("x").open())._server is server  # type: ignore[attr-defined]
        wire.write([(b"SUBSCRIBE", b"c")])
        wire.abort()
        del wire, server
        fresh = await MemoryOpener("x").open()
        assert fresh._server._channels == {}  # type: ignore[attr-defined]

    run(main())
