"""Where to begin: what users may say, and what it means."""

from __future__ import annotations

from typing import Any

import pytest

from aiopubsub import History, Pattern, Position, Topic
from aiopubsub.checks import check_cursor_name
from aiopubsub.keys import mark_of
from aiopubsub.since import start_of_each

A = Topic("a", history=History())
B = Topic("b", history=History())
PLAIN = Topic("plain")
AT_A = Position(1, 2, mark_of(b"a"), "u.1")
AT_B = Position(1, 2, mark_of(b"b"), "u.1")


@pytest.mark.parametrize(
    ("since", "topics", "starts"),
    [
        (None, [A, B], {"a": None, "b": None}),
        (None, [A, PLAIN, Pattern("*")], {"a": None}),
        (None, [PLAIN], {}),
        ("beginning", [A, B], {"a": "beginning", "b": "beginning"}),
        (AT_A, [A], {"a": AT_A}),
        (str(AT_A), [A], {"a": AT_A}),
        ({"a": AT_A}, [A, B], {"a": AT_A, "b": None}),
        ({"a": str(AT_A), "b": "beginning"}, [A, B, PLAIN], {"a": AT_A, "b": "beginning"}),
        ({"a": None}, [A], {"a": None}),
        ({}, [A, PLAIN], {"a": None}),
        ({}, [], {}),
        ("beginning", [], {}),
    ],
)
def test_what_it_means(since: Any, topics: list[Any], starts: dict[str, Any]) -> None:
    """A start for each topic that has a history, and for no other."""
    assert start_of_each(since, topics) == starts


@pytest.mark.parametrize(
    ("since", "topics", "error", "words"),
    [
        ("beginning", [PLAIN], ValueError, "'plain' is not a topic with history here"),
        ("beginning", [A, Pattern("*")], ValueError, "'*' is not a topic with history here"),
        (AT_A, [A, B], ValueError, "is not a position of 'b', but of another topic"),
        (AT_B, [A], ValueError, "is not a position of 'a', but of another topic"),
        ({"a": AT_B}, [A], ValueError, "is not a position of 'a', but of another topic"),
        ({"plain": None}, [A, PLAIN], ValueError, "'plain' is not a topic with history here"),
        ({"c": None}, [A], ValueError, "'c' is not a topic with history here"),
        ("now", [A], ValueError, "since: not a position: 'now'"),
        ("", [A], ValueError, "or say 'beginning'"),
        (b"beginning", [A], TypeError, "not bytes"),
        (0, [A], TypeError, "not int"),
        ({"a": 1.5}, [A], TypeError, "not float"),
    ],
)
def test_what_it_cannot_mean(since: Any, topics: list[Any], error: type, words: str) -> None:
    """The error names what was wrong and what would do."""
    with pytest.raises(error) as caught:
        start_of_each(since, topics)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["a", "worker-1", "A.b_c", "0", "x" * 128])
def test_names_of_cursors(name: str) -> None:
    """What a key can carry as it is."""
    assert check_cursor_name(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a:b", "{a}", "a\n", "\n", "ä", "x" * 129, "a/b", "*", "\0"])
def test_names_that_no_cursor_has(name: str) -> None:
    """Anything else is an error that says what would do."""
    with pytest.raises(ValueError, match=r"`name` must be 1 to 128 letters, digits and \. _ -"):
        check_cursor_name(name)


def test_a_name_that_is_no_text() -> None:
    """A `TypeError`."""
    with pytest.raises(TypeError, match="`name` must be a str, not bytes"):
        check_cursor_name(b"a")  # type: ignore[arg-type]
