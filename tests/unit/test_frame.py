"""The header of a framed message: what is framed comes back, what only looks so stays as it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopubsub.frame import MAGIC, NO_HEADERS, frame, unframe

LIMIT = 65_536
PREFIX = MAGIC + b"1 - - - "

# str of any kind, lone surrogates included: JSON escapes them
headers_of_any_kind = st.dictionaries(st.text(st.characters()), st.text(st.characters()), max_size=8)
payloads = st.one_of(
    st.binary(),
    st.binary().map(MAGIC.__add__),
    st.binary().map(PREFIX.__add__),
    st.binary().map((PREFIX + b'{"a":"b"}\n').__add__),
)


@given(payloads, headers_of_any_kind)
def test_round_trip(payload: bytes, headers: dict[str, str]) -> None:
    """Any payload with any headers of str comes back as it was."""
    assert unframe(frame(payload, headers)) == (payload, headers)


@given(payloads)
def test_round_trip_without_headers(payload: bytes) -> None:
    """A payload without headers is left alone, unless it could pass for a frame, and comes back."""
    framed = frame(payload, None)
    assert (framed == payload) is not payload.startswith(MAGIC)
    received = unframe(framed) if framed.startswith(MAGIC) else (framed, NO_HEADERS)
    assert received == (payload, {})


@given(st.binary())
def test_garbage_behind_the_magic_is_left_alone(garbage: bytes) -> None:
    """What begins with the magic and is no frame comes back byte for byte."""
    assert unframe(MAGIC + garbage) == (MAGIC + garbage, {})


@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ).map(lambda value: json.dumps(value).encode()),
    ),
    st.binary(),
)
def test_unframe_never_raises(line: bytes, payload: bytes) -> None:
    """Whatever a stranger writes where headers belong, it is a frame or it is left alone."""
    whole = PREFIX + line + b"\n" + payload
    got, headers = unframe(whole)
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in headers.items())
    if got == whole:
        assert headers == {}
    else:
        assert whole.endswith(b"\n" + got)
        assert isinstance(json.loads(whole[len(PREFIX) : -len(got) - 1]), dict)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b'{"a":1}',
        b'{"a":null}',
        b'{"a":{}}',
        b'{"a":"b","c":["d"]}',
        b"[" * 60_000,
        b'{"a":' * 12_000,
        b"9" * 60_000,
        '{"a":"ä"}'.encode(),
        b'{"a":"\xff"}',
        b"\xff\xfe",
    ],
)
def test_headers_that_are_none(line: bytes) -> None:
    """A header line that is not a JSON object of str, in ASCII, makes no frame."""
    whole = PREFIX + line + b"\npayload"
    assert unframe(whole) == (whole, {})


@pytest.mark.parametrize(
    "whole",
    [
        b"",
        b"\n",
        MAGIC,
        PREFIX,
        PREFIX + b'{"a":"b"}',  # no end of the line
        MAGIC + b'2 - - - {"a":"b"}\nx',  # a later version
        MAGIC + b'1 1-1 u - {"a":"b"}\nx',  # not written by this version
        MAGIC[1:] + b'1 - - - {"a":"b"}\nx',
    ],
)
def test_what_is_no_frame(whole: bytes) -> None:
    """Anything but the prefix, an object and a newline is left alone."""
    assert unframe(whole) == (whole, {})


def test_the_bytes_on_the_wire() -> None:
    """What other clients are told in docs/reference/wire-format.md."""
    assert frame(b"p\n", {"a": "ä"}) == b'\xff\xaeps1 - - - {"a":"\\u00e4"}\np\n'
    assert frame(MAGIC + b"x", None) == b"\xff\xaeps1 - - - {}\n\xff\xaepsx"
    assert frame(MAGIC + b"x", {}) == b"\xff\xaeps1 - - - {}\n\xff\xaepsx"
    assert frame(b"x", {}) == b"x"


def test_no_text_begins_with_the_magic() -> None:
    """The magic cannot begin UTF-8, so text is never framed without need."""
    with pytest.raises(UnicodeDecodeError):
        MAGIC[:1].decode()


def test_the_longest_headers() -> None:
    """A header line of 64 KiB passes both ways; one byte more is refused, and ignored if it comes."""
    room = LIMIT - len(PREFIX) - len(b'{"a":""}')
    framed = frame(b"x", {"a": "v" * room})
    assert framed.index(b"\n") == LIMIT
    assert unframe(framed) == (b"x", {"a": "v" * room})
    with pytest.raises(ValueError, match=r"^headers take 65537 bytes; at most 65536 are allowed$"):
        frame(b"x", {"a": "v" * (room + 1)})
    too_long = PREFIX + b'{"a":"' + b"v" * (room + 1) + b'"}\nx'
    assert unframe(too_long) == (too_long, {})


def test_headers_that_are_not_str() -> None:
    """A header's name and value are str; the error names the header and the type, never the value."""
    with pytest.raises(TypeError, match=r"^headers map str to str, but 'token' maps to bytes$"):
        frame(b"", {"token": b"s3cret"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"^headers map str to str, but 1 maps to str$"):
        frame(b"", {1: "a"})  # type: ignore[dict-item]


def test_no_headers_cannot_be_changed() -> None:
    """All messages without headers share one empty mapping, which is read-only."""
    with pytest.raises(TypeError):
        NO_HEADERS["a"] = "b"  # type: ignore[index]
