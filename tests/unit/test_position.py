"""Positions and their text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopubsub import Position

numbers = st.integers(0, 2**64 - 1)
uids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


marks = st.integers(0, 2**32 - 1).map("{:08x}".format)


@given(numbers, numbers, marks, uids)
def test_text_goes_round(epoch: int, offset: int, mark: str, uid: str) -> None:
    """Whatever its parts are, a position comes back from its text, which is printable ASCII."""
    position = Position(epoch, offset, mark, uid)
    assert Position.parse(str(position)) == position
    assert str(position).isascii()
    assert " " not in str(position)


@given(st.text())
def test_any_other_text_is_an_error(text: str) -> None:
    """A text that is no position is a `ValueError`, never a position that prints as another text."""
    try:
        position = Position.parse(text)
    except ValueError:
        return
    assert Position(*position) == Position.parse(str(position))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1-2",
        "1-2-0a1b2c3d-",
        "-2-0a1b2c3d-u",
        "1--0a1b2c3d-u",
        "1-2-0a1b2c3d-a b",
        "1-2-0a1b2c3d-ü",
        "-1-2-0a1b2c3d-u",
        "1-2-0a1b2c3d-a\n",
        "²-1-0a1b2c3d-u",
        f"{2**64}-1-0a1b2c3d-u",
        "1-2-0A1B2C3D-u",
        "1-2-0a1b2c3-u",
        "1-2-u",
    ],
)
def test_what_is_no_position(text: str) -> None:
    """Parts that are missing, not numbers, too large, or not printable ASCII."""
    with pytest.raises(ValueError, match="not a position"):
        Position.parse(text)


def test_a_position_that_is_no_text() -> None:
    """Anything but a `str` is a `TypeError`."""
    with pytest.raises(TypeError, match="not bytes"):
        Position.parse(b"1-2-0a1b2c3d-u")  # type: ignore[arg-type]  # on purpose


def test_order() -> None:
    """Positions of one history compare in its order, a later history comes after."""
    mark = "0a1b2c3d"
    assert Position(1, 2, mark, "z") < Position(1, 10, mark, "a") < Position(2, 1, mark, "a")
