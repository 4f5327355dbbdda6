"""The command that appends, and its answer. The script itself is shown by the contract, on real servers."""

from __future__ import annotations

import math
from hashlib import sha1
from typing import Any

import pytest

from aiopubsub import History
from aiopubsub.append import LOAD, SCRIPT, SHA, Append, Entry, pack, unpack
from aiopubsub.dialogue import OutOfStep
from aiopubsub.errors import PublishRefused


class Promise:
    """A future without a loop."""

    def __init__(self) -> None:
        self.results: list[Any] = []

    def done(self) -> bool:
        return bool(self.results)

    def set_result(self, result: Any, /) -> None:
        self.results.append(result)

    def set_exception(self, exception: Any, /) -> None:
        self.results.append(exception)


def append(*uids: bytes, history: History = History(), was_sent: bool = False) -> Append:  # noqa: B008
    entries = [Entry(uid, b"{}", b"data of " + uid) for uid in uids]
    return Append(Promise(), math.inf, b"c", history, entries, was_sent=was_sent)


def test_the_command() -> None:
    """One call for all entries, in order."""
    assert pack(b"k", [append(b"a", b"b"), append(b"c")], None) == (
        *(b"EVALSHA", SHA, b"1", b"k", b"c", b"1000", b"86400000", b""),
        *(b"a", b"{}", b"data of a", b"b", b"{}", b"data of b", b"c", b"{}", b"data of c"),
    )
    assert LOAD == (b"SCRIPT", b"LOAD", SCRIPT)
    assert sha1(SCRIPT).hexdigest().encode() == SHA


@pytest.mark.parametrize(
    ("ttl", "ms"), [(None, b""), (1.5, b"1500"), (0.0001, b"1"), (86_400.0, b"86400000"), (0.0016, b"2")]
)
def test_times_to_live(ttl: float | None, ms: bytes) -> None:
    """In milliseconds, at least one; none is nothing."""
    assert pack(b"k", [append(b"a", history=History(5, ttl))], None)[5:7] == (b"5", ms)


def test_where_a_retry_is_looked_for() -> None:
    """Behind what is known to be stored, or everywhere; and only if something was sent before."""
    again = append(b"a", was_sent=True)
    assert pack(b"k", [again, append(b"b")], b"1-5")[7] == b"(1-5"
    assert pack(b"k", [append(b"b"), again], None)[7] == b"-"
    assert pack(b"k", [append(b"b")], b"1-5")[7] == b""


def test_the_answer() -> None:
    """Id and receivers of each."""
    assert unpack([b"1-1", 3, b"1-2", -1], 2) == [(b"1-1", 3), (b"1-2", -1)]


@pytest.mark.parametrize(
    "reply",
    [
        *(None, 1, b"OK", "1-1", [], [b"1-1"], [b"1-1", 1, b"1-2"], [b"1-1", 1, b"1-2", 1]),
        *([1, b"1-1"], [b"1-1", None], [None, 1], [b"1-1", b"1"], [["1-1"], 1], [True, 1]),
    ],
)
def test_what_cannot_be_the_answer(reply: Any) -> None:
    """Anything else shows that answers and requests are out of step."""
    with pytest.raises(OutOfStep, match="the ids of 1 messages were due"):
        unpack(reply, 1)


def test_failing() -> None:
    """Who waits is told once, and each message has the error."""
    one = append(b"a", b"b")
    assert (one.size, one.in_flight, one.failures()) == (2, 2, {})
    error = PublishRefused("c", "no")
    one.fail(error)
    assert one.failures() == {0: error, 1: error}
    assert one.promise.results == [None]  # type: ignore[attr-defined]
