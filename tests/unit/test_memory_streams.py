"""Streams of `memory://`: a server's answers, to the byte. The contract compares them with real ones."""

from __future__ import annotations

from typing import Any

import pytest

from aiopubsub.append import SHA
from aiopubsub.errors import ErrorReply
from aiopubsub.memory_streams import MemoryStreams


class Streams:
    """Streams with a clock in hand, and what they published."""

    def __init__(self) -> None:
        self.now = 1.0
        self.streams = MemoryStreams(lambda: self.now)
        self.published: list[tuple[bytes, bytes]] = []

    def publish(self, channel: bytes, payload: bytes) -> int:
        self.published.append((channel, payload))
        return 7

    def append(self, *uids: bytes, size: int = 100, ttl: bytes = b"", since: bytes = b"") -> Any:
        entries = [part for uid in uids for part in (uid, b"{}", b"d" + uid)]
        return self.streams.append(self.publish, SHA, b"1", b"k", b"c", b"%d" % size, ttl, since, *entries)

    def ids(self, first: bytes = b"-", last: bytes = b"+", *options: bytes) -> list[bytes]:
        entries: Any = self.streams.range(b"k", first, last, *options)
        return [name for name, _ in entries]


def test_appending() -> None:
    """Offsets count up, each entry names the one in front of it, and is published."""
    streams = Streams()
    assert streams.append(b"a", b"b") == [b"1000-1", 7, b"1000-2", 7]
    streams.now = 2.0
    assert streams.append(b"c") == [b"1000-3", 7]
    assert streams.streams.range(b"k", b"-", b"+") == [
        [b"1000-1", [b"uid", b"a", b"after", b"-", b"data", b"da"]],
        [b"1000-2", [b"uid", b"b", b"after", b"a", b"data", b"db"]],
        [b"1000-3", [b"uid", b"c", b"after", b"b", b"data", b"dc"]],
    ]
    assert streams.published[1] == (b"c", b"\xff\xaeps1 1000-2 b a {}\ndb")
    assert len(streams.published) == 3


def test_headers() -> None:
    """They are a field of their own, where there are some."""
    streams = Streams()
    streams.streams.append(streams.publish, SHA, b"1", b"k", b"c", b"9", b"", b"", b"a", b'{"h":"v"}', b"x")
    [entry] = streams.streams.reverse_range(b"k", b"+", b"-")  # type: ignore[misc]
    assert entry == [b"1000-1", [b"uid", b"a", b"after", b"-", b"headers", b'{"h":"v"}', b"data", b"x"]]
    assert streams.published == [(b"c", b'\xff\xaeps1 1000-1 a - {"h":"v"}\nx')]


def test_a_retry() -> None:
    """With `since` what is stored is found by its uid, and neither stored nor published again."""
    streams = Streams()
    streams.append(b"a", b"b")
    assert streams.append(b"b", b"c", since=b"-") == [b"1000-2", -1, b"1000-3", 7]
    assert len(streams.published) == 3
    assert streams.append(b"c") == [b"1000-4", 7]  # nobody asked


def test_trimming() -> None:
    """No more than the size is kept."""
    streams = Streams()
    streams.append(*[b"%d" % n for n in range(10)], size=4)
    assert streams.ids() == [b"1000-7", b"1000-8", b"1000-9", b"1000-10"]
    assert streams.streams.trim(b"k", 3) == 1
    assert streams.streams.trim(b"k", 3) == 0
    assert streams.streams.trim(b"nothing", 0) == 0


def test_ranges() -> None:
    """Both ends included, unless they begin with a parenthesis; the first COUNT of them."""
    streams = Streams()
    streams.append(*[b"%d" % n for n in range(12)])
    assert streams.ids(b"1000-3", b"1000-5") == [b"1000-3", b"1000-4", b"1000-5"]
    assert streams.ids(b"(1000-3", b"1000-5") == [b"1000-4", b"1000-5"]
    assert streams.ids(b"(1000-3", b"(1000-5") == [b"1000-4"]
    assert streams.ids(b"1000-9", b"+", b"COUNT", b"2") == [b"1000-9", b"1000-10"]
    assert streams.ids(b"1000-13") == []
    newest: Any = streams.streams.reverse_range(b"k", b"+", b"-", b"COUNT", b"1")
    assert newest[0][0] == b"1000-12"
    back: Any = streams.streams.reverse_range(b"k", b"1000-3", b"-", b"COUNT", b"2")
    assert [name for name, _ in back] == [b"1000-3", b"1000-2"]
    assert streams.streams.range(b"nothing", b"-", b"+") == []


def test_a_history_that_is_idle_ends() -> None:
    """Its time begins anew with each publish; after it there is another epoch."""
    streams = Streams()
    streams.append(b"a", ttl=b"1000")
    streams.now = 1.9
    streams.append(b"b", ttl=b"1000")
    streams.now = 2.8
    assert len(streams.ids()) == 2
    streams.now = 2.9
    assert streams.ids() == []
    assert streams.append(b"c") == [b"2900-1", 7]
    streams.now = 1e9
    assert len(streams.ids()) == 1  # without a time to live it stays


def test_deleted_before_its_time() -> None:
    """The next history has its own time."""
    streams = Streams()
    streams.append(b"a", ttl=b"1000")
    assert streams.streams.delete(b"k", b"nothing") == 1
    streams.now = 1.5
    streams.append(b"b")
    streams.now = 3.0
    assert streams.ids() == [b"1500-1"]


def test_strings_and_flushing() -> None:
    """What cursors need."""
    streams = Streams().streams
    assert streams.get(b"s") is None
    assert streams.set(b"s", b"1") == b"OK"
    assert streams.get(b"s") == b"1"
    assert streams.delete(b"s", b"s") == 1
    streams.set(b"s", b"1")
    assert streams.flush() == b"OK"
    assert streams.get(b"s") is None


def test_another_script() -> None:
    """As a server that does not know it."""
    reply = MemoryStreams().append(lambda *_: 0, b"0" * 40, b"1", b"k", b"c", b"9", b"", b"")
    assert isinstance(reply, ErrorReply)
    assert str(reply).startswith("NOSCRIPT")


@pytest.mark.parametrize("ttl", [b"", b"5"])
def test_a_flushed_history_begins_anew(ttl: bytes) -> None:
    """FLUSHALL takes the times along."""
    streams = Streams()
    streams.append(b"a", ttl=ttl)
    streams.streams.flush()
    assert streams.ids() == []
    streams.now = 2.0
    assert streams.append(b"a") == [b"2000-1", 7]
    assert len(streams.ids()) == 1
