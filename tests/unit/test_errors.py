"""The exception tree: fields, words, pickles."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from aiopubsub import errors
from aiopubsub.errors import (
    Closed,
    ConnectFailed,
    CursorFailed,
    EncodeFailed,
    ErrorReply,
    GapError,
    MissingExtra,
    NotSent,
    PublishRefused,
    PubSubError,
    SlowConsumer,
    SubscribeRefused,
    Unconfirmed,
)
from aiopubsub.message import Gap, GapReason

WHEN = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def gap(missed: int | None, *channels: str) -> Gap:
    return Gap(GapReason.OVERFLOW, channels, missed, WHEN, WHEN)


# an error, its fields, and all that it says
CASES: list[tuple[PubSubError, dict[str, Any], str]] = [
    (
        ConnectFailed("h:1", "refused"),
        {"target": "h:1", "reason": "refused", "permanent": False},
        "cannot connect to h:1: refused (check that the server is running and can be reached from here)",
    ),
    (
        ConnectFailed("h:1", "WRONGPASS", permanent=True),
        {"target": "h:1", "reason": "WRONGPASS", "permanent": True},
        (
            "cannot connect to h:1: WRONGPASS "
            "(the server answered and refused; mend the settings, trying again will not help)"
        ),
    ),
    (
        CursorFailed("n", "c", "NOPERM no"),
        {"name": "n", "channel": "c", "reason": "NOPERM no"},
        (
            "the cursor 'n' in 'c' failed: NOPERM no "
            "(the user needs GET and SET on its key; a message may be repeated after a restart)"
        ),
    ),
    (
        Closed("Client"),
        {"what": "Client", "opened": True},
        "this Client is closed; make a new one",
    ),
    (
        Closed("Client", opened=False),
        {"what": "Client", "opened": False},
        "this Client is not open; enter it with `async with` first",
    ),
    (
        SubscribeRefused({"a": "NOPERM x", "b'": "NOPERM y"}),
        {"refused": {"a": "NOPERM x", "b'": "NOPERM y"}},
        (
            "the server refused to subscribe to 'a': NOPERM x; \"b'\": NOPERM y "
            "(grant the user these channels)"
        ),
    ),
    (
        PublishRefused("a", "NOPERM x"),
        {"channel": "a", "reason": "NOPERM x"},
        "the server refused to publish to 'a': NOPERM x",
    ),
    (
        NotSent("a", "no connection"),
        {"channel": "a", "reason": "no connection"},
        "not sent to 'a': no connection (nothing left, safe to publish again)",
    ),
    (
        Unconfirmed("a", "lost"),
        {"channel": "a", "reason": "lost"},
        "unconfirmed on 'a': lost (published once or not at all; publishing again may double it)",
    ),
    (
        SlowConsumer(7, 10, 2000),
        {"missed": 7, "buffer": 10, "buffer_bytes": 2000},
        (
            "the consumer was too slow: 7 messages came after the buffer (10 messages, 2000 bytes)"
            " was full "
            "(consume faster, buffer more, or choose another overflow policy)"
        ),
    ),
    (
        GapError(gap(3, "a", "b")),
        {"gap": gap(3, "a", "b")},
        "3 messages missing on 'a', 'b': overflow (fetch the current state again, then go on iterating)",
    ),
    (
        GapError(gap(None, "a", "b", "c", "d")),
        {"gap": gap(None, "a", "b", "c", "d")},
        (
            "an unknown number of messages missing on 'a', 'b', 'c', …: overflow "
            "(fetch the current state again, then go on iterating)"
        ),
    ),
    (
        GapError(lost := Gap(GapReason.RECONNECTED, ("a",), None, WHEN, WHEN, cause="reset by peer")),
        {"gap": lost},
        (
            "an unknown number of messages missing on 'a': reconnected, reset by peer "
            "(fetch the current state again, then go on iterating)"
        ),
    ),
    (
        EncodeFailed("a", "TypeError"),
        {"channel": "a", "reason": "TypeError"},
        "cannot encode a message for 'a': TypeError",
    ),
    (
        MissingExtra("the command line", "cli"),
        {"feature": "the command line", "extra": "cli"},
        "the command line needs an extra: pip install 'aiopubsub-redis[cli]'",
    ),
]

each = pytest.mark.parametrize(
    ("error", "fields", "words"),
    CASES,
    ids=[f"{type(case[0]).__name__}{n}" for n, case in enumerate(CASES)],
)


@each
def test_fields_and_words(error: PubSubError, fields: dict[str, Any], words: str) -> None:
    """An error keeps its fields and says what happened and what to do."""
    assert vars(error) == fields
    assert str(error) == words


@each
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_and_pickles(error: PubSubError, fields: dict[str, Any], words: str, again: Any) -> None:
    """An error that was copied or sent to another process is the same error."""
    other = again(error)
    assert other is not error
    assert type(other) is type(error)
    assert vars(other) == fields
    assert str(other) == words


def test_every_error_is_one_of_ours_and_was_looked_at() -> None:
    """All public errors derive from `PubSubError`, and each is in the table above."""
    public = {getattr(errors, name) for name in errors.__all__}
    assert all(issubclass(error, PubSubError) for error in public)
    assert public - {PubSubError} == {type(case[0]) for case in CASES}
    made_here = {
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert made_here == public | {errors.ErrorReply}


def test_the_servers_own_error_is_not_ours() -> None:
    """What the server said cannot be caught as `PubSubError`: it is translated first."""
    assert not issubclass(errors.ErrorReply, PubSubError)


def test_a_missing_extra_is_an_import_error() -> None:
    """Code that guards an import catches a missing extra too."""
    assert issubclass(MissingExtra, ImportError)


@pytest.mark.parametrize("quote", ["`", "'"])
def test_what_a_server_repeats_is_left_out(quote: str) -> None:
    """An unknown command's arguments, which may be a password or a payload."""
    words = f"ERR unknown command {quote}HELLO{quote}"
    assert (
        str(ErrorReply(f"{words}, with args beginning with: {quote}3{quote} {quote}secret{quote} "))
        == words
    )
    assert str(ErrorReply("NOPERM no")) == "NOPERM no"
