"""The names of what a topic keeps: one slot, one topic each."""

from __future__ import annotations

from binascii import crc_hqx

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopubsub.keys import cursor_key, history_key, mark_of, slot_of

CURSORS = "abcABC019._-"
channels = st.one_of(
    st.text(min_size=1),
    st.text("{}a:", min_size=1, max_size=12),  # braces in odd places
    st.text("{}", min_size=1, max_size=6),
    st.sampled_from(
        ["{a}", "a", "{a}:history:x", "history", "aiopubsub:{a}:history", "{}{a}", "{a}b", "0", "1"]
    ),
).map(lambda text: text.encode("utf-8", "replace"))
cursors = st.text(CURSORS, min_size=1, max_size=128)


@settings(deadline=None)  # to find a tag takes 16 ms, or more on a busy machine
@given(channels, cursors)
def test_all_of_a_topic_is_in_one_slot(channel: bytes, name: str) -> None:
    """The stream and every cursor hash to where the channel does, whatever its name."""
    assert slot_of(history_key(channel)) == slot_of(cursor_key(channel, name)) == slot_of(channel)


@settings(deadline=None)
@given(channels, channels, cursors, cursors)
def test_no_two_topics_share_a_key(one: bytes, other: bytes, name: str, other_name: str) -> None:
    """Nor do two cursors, nor a cursor and a stream."""
    assert (history_key(one) == history_key(other)) == (one == other)
    same = (one, name) == (other, other_name)
    assert (cursor_key(one, name) == cursor_key(other, other_name)) == same
    assert history_key(one) != cursor_key(other, name)


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 12739),  # 0x31C3, the check value of CRC16 XMODEM
        (b"foo", 12182),
        (b"{user1000}.following", 3443),
        (b"{user1000}.followers", 3443),
        (b"user1000", 3443),
        (b"", 0),
    ],
)
def test_slots_are_those_of_the_server(key: bytes, slot: int) -> None:
    """Known values of `CLUSTER KEYSLOT`."""
    assert slot_of(key) == slot


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"foo{}{bar}", b"foo{}{bar}"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"foo}{bar", b"foo}{bar"),
        (b"}{bar}", b"bar"),
    ],
)
def test_what_is_hashed(key: bytes, hashed: bytes) -> None:
    """The examples of the cluster specification, section "Hash tags"."""
    assert slot_of(key) == crc_hqx(hashed, 0) % 16384


def test_the_names() -> None:
    """What docs/reference/wire-format.md tells authors of other clients."""
    assert history_key(b"orders") == b"aiopubsub:{orders}:history"
    assert cursor_key(b"orders", "w1") == b"aiopubsub:{orders}:cursor:w1"
    assert history_key(b"a{b}c") == b"aiopubsub:{b}:history:a{b}c"
    assert cursor_key(b"a{b}c", "w1") == b"aiopubsub:{b}:cursor:w1:a{b}c"


def test_marks_tell_channels_apart() -> None:
    """Eight hexadecimal digits, of the CRC-32 of the channel's name."""
    assert mark_of(b"123456789") == "cbf43926"
    assert mark_of(b"") == "00000000"
    assert mark_of(b"orders") != mark_of(b"order")
