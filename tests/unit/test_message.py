"""What is handed over: messages, gaps, what could not be decoded, receipts."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime

import pytest

from aiopubsub.message import Gap, GapReason, Message, Origin, Receipt, Undecodable
from aiopubsub.topic import Topic

WHEN = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRET = b"s3cret"


def test_text_shows_what_is_not_utf8() -> None:
    """`text` is the payload as UTF-8, with a mark where it is not."""
    origin = Origin("c", Topic("c"))
    assert Message(b"x", "ä☃".encode(), origin, {}).text == "ä☃"
    assert Message(b"x", b"a\xffb", origin, {}).text == "a�b"


def test_repr_holds_no_payload() -> None:
    """The repr of a message tells channel and size, and nothing of payload or headers."""
    topic = Topic.text("c'h")
    message = Message("s3cret", SECRET, Origin("c'h", topic), {"token": "s3cret"})
    assert repr(message) == '<Message on "c\'h", 6 bytes>'


def test_a_message_takes_no_other_attributes() -> None:
    """A message has slots: a misspelt attribute is an error, and it stays small."""
    message = Message(b"", b"", Origin("c", Topic("c")), {})
    with pytest.raises(AttributeError):
        message.colour = 1  # type: ignore[attr-defined]


def test_a_gap_is_frozen_and_equal_by_value() -> None:
    """Gaps compare by value and cannot be changed."""
    gap = Gap(GapReason.OVERFLOW, ("a", "b"), 3, WHEN, WHEN)
    assert gap == copy.copy(gap) == pickle.loads(pickle.dumps(gap))
    assert len({gap, copy.copy(gap)}) == 1
    assert gap != Gap(GapReason.OVERFLOW, ("a", "b"), 4, WHEN, WHEN)
    with pytest.raises(FrozenInstanceError):
        gap.missed = 4  # type: ignore[misc]


def test_the_words_of_gap_reasons() -> None:
    """The values are words that log lines and JSON show."""
    assert {reason.value for reason in GapReason} == {
        "reconnected",
        "overflow",
        "trimmed",
        "reset",
        "moved",
        "rolled_back",
    }


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        UnicodeDecodeError("utf-8", SECRET + b"\xff", 6, 7, "invalid start byte"),
    ],
)
def test_repr_of_undecodable_holds_no_payload(error: Exception) -> None:
    """The repr tells channel and error, and nothing of the payload, not even through the error."""
    shown = repr(Undecodable("c", SECRET + b"\xff", error, Topic.text("c")))
    assert "s3cret" not in shown
    assert "'c'" in shown
    assert type(error).__name__ in shown


def test_receipts_compare_by_value() -> None:
    """Two receipts of as many receivers are equal."""
    assert Receipt(2) == Receipt(2) != Receipt(3)
