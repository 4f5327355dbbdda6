"""The header of a framed message: what is framed comes back, what only looks so stays as it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopubsub import Position
from aiopubsub.frame import MAGIC, NO_HEADERS, VERSION, frame, is_uid, pack_headers, unframe
from aiopubsub.message import position_at

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
    received = unframe(frame(payload, headers)) if headers else (payload, {}, None)
    assert received == (payload, headers, None)


@given(payloads)
def test_round_trip_without_headers(payload: bytes) -> None:
    """A payload without headers is left alone, unless it could pass for a frame, and comes back."""
    framed = frame(payload, None)
    assert (framed == payload) is not payload.startswith(MAGIC)
    received = unframe(framed) if framed.startswith(MAGIC) else (framed, NO_HEADERS, None)
    assert received == (payload, {}, None)


@given(st.binary())
def test_garbage_behind_the_magic_is_left_alone(garbage: bytes) -> None:
    """What begins with the magic and is no frame is `None`: it is to be delivered as it came."""
    assert unframe(MAGIC + garbage) is None


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
    unframed = unframe(whole)
    if unframed is None:
        return
    got, headers, place = unframed
    assert place is None
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in headers.items())
    assert whole.endswith(b"\n" + got)
    assert isinstance(json.loads(whole[len(PREFIX) : len(whole) - len(got) - 1]), dict)


numbers = st.integers(0, 10**19 - 1)
ids = st.tuples(numbers, numbers).map(lambda pair: b"%d-%d" % pair)
uids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=256).map(str.encode)
any_bytes = st.one_of(ids, uids, st.just(b"-"), st.binary(max_size=300))


@given(ids, uids.filter(lambda uid: uid != b"-"), uids, headers_of_any_kind, payloads)
def test_a_place_goes_round(
    name: bytes, uid: bytes, after: bytes, headers: dict[str, str], payload: bytes
) -> None:
    """What the script that appends writes is taken apart again: payload, headers and place."""
    framed = b"%b1 %b %b %b %b\n%b" % (MAGIC, name, uid, after, pack_headers(headers), payload)
    assert unframe(framed) == (payload, headers, b" ".join([VERSION, name, uid, after]))


@given(any_bytes, any_bytes, any_bytes, st.sampled_from([b"{}", b'{"a":"b"}', b"{", b""]), st.binary())
def test_a_place_is_whole_or_it_is_no_frame(
    name: bytes, uid: bytes, after: bytes, packed: bytes, payload: bytes
) -> None:
    """Whatever stands where a place belongs: it is one that a trail can use, or there is no frame."""
    unframed = unframe(b"%b1 %b %b %b %b\n%b" % (MAGIC, name, uid, after, packed, payload))
    if unframed is not None and unframed[2] is not None:
        _, its_name, its_uid, its_after = unframed[2].split(b" ")
        assert position_at(its_name, its_uid, "c") == Position.parse(
            str(position_at(its_name, its_uid, "c"))
        )
        assert its_uid != b"-"
        assert is_uid(its_after)


@pytest.mark.parametrize(
    ("name", "uid", "after"),
    [
        (b"1-1", b"u", b""),
        (b"1-1", b"", b"-"),
        (b"1-1", b"-", b"-"),
        (b"-", b"u", b"-"),
        (b"-", b"-", b"a"),
        (b"1", b"u", b"-"),
        (b"1-", b"u", b"-"),
        (b"-1", b"u", b"-"),
        (b"1-1-1", b"u", b"-"),
        (b"1-x", b"u", b"-"),
        (b"+1-1", b"u", b"-"),
        (b"1-" + b"9" * 50, b"u", b"-"),
        (b"18446744073709551616-1", b"u", b"-"),
        (b"1-18446744073709551616", b"u", b"-"),
        (b"1-1", b"u" * 257, b"-"),
        (b"1-1", b"\xc3\xa4", b"-"),
        (b"1-1", b"\t", b"-"),
        (b"1-1", b"u", b"a" * 257),
    ],
)
def test_places_that_are_none(name: bytes, uid: bytes, after: bytes) -> None:
    """An id that no stream has, a uid that no publisher makes: no frame."""
    assert unframe(b"%b1 %b %b %b {}\nx" % (MAGIC, name, uid, after)) is None


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
    assert unframe(whole) is None


@pytest.mark.parametrize(
    "whole",
    [
        b"",
        b"\n",
        MAGIC,
        PREFIX,
        PREFIX + b'{"a":"b"}',  # no end of the line
        MAGIC + b'2 - - - {"a":"b"}\nx',  # a later version
        MAGIC[1:] + b'1 - - - {"a":"b"}\nx',
    ],
)
def test_what_is_no_frame(whole: bytes) -> None:
    """Anything but the prefix, an object and a newline is left alone."""
    assert unframe(whole) is None


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
    """Headers of 63 KiB pass both ways, with the longest place; more are refused. A line of 64 KiB that a
    stranger sends is read, a longer one is not."""
    room = LIMIT - 1024 - len(b'{"a":""}')
    longest = {"a": "v" * room}
    assert unframe(frame(b"x", longest)) == (b"x", longest, None)
    place = b"%d-%d" % (10**19 - 1, 10**19 - 1), b"u" * 256, b"a" * 256
    framed = b"%b1 %b %b %b %b\nx" % (MAGIC, *place, pack_headers(longest))
    assert unframe(framed) == (b"x", longest, b" ".join([VERSION, *place]))
    with pytest.raises(ValueError, match=r"^headers take 64513 bytes; at most 64512 are allowed$"):
        frame(b"x", {"a": "v" * (room + 1)})
    line = PREFIX + b'{"a":"' + b"v" * (LIMIT - len(PREFIX) - len(b'{"a":""}')) + b'"}'
    assert unframe(line + b"\nx") is not None
    assert unframe(line.replace(b"v", b"vv", 1) + b"\nx") is None


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
