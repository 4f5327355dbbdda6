"""Channel names, however strange: they, and what is kept of them, hash to the slot that the servers say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopubsub.keys import cursor_key, history_key, slot_of
from aiopubsub.slots import SLOTS
from aiopubsub.testing import Cluster
from tests.fault.line import Line, line

pytestmark = pytest.mark.anyio

channels = st.one_of(
    st.text(min_size=1),  # any UTF-8
    st.text("{}ab", min_size=1, max_size=12),  # braces in odd places
    st.text("{}", min_size=1, max_size=6),
    st.builds("{}{{{}}}{}".format, st.text(max_size=4), st.text(max_size=6), st.text("{}é", max_size=4)),
    st.sampled_from(["{}", "{}{a}", "{{a}}", "}a{", "a{b", "a}b", "{a}{b}", "a{}b{c}", "x" * 3000]),
)


@pytest.fixture
def anyio_backend() -> str:
    """What servers do does not depend on the event loop."""
    return "asyncio"


async def test_key_channel_and_slot_agree_with_the_server(cluster: Cluster) -> None:
    """`CLUSTER KEYSLOT` of a channel, of its history and of a cursor is our slot of the channel."""
    with line(cluster.nodes[0]) as told:
        agree(told)


def agree(told: Line) -> None:
    @settings(max_examples=400, deadline=None)
    @given(channels)
    def check(name: str) -> None:
        channel = name.encode()
        names = [channel, history_key(channel), cursor_key(channel, "worker-1")]
        for key in names:
            told.send_bytes(b"CLUSTER", b"KEYSLOT", key)
        assert [told.next() for _ in names] == [slot_of(channel)] * 3
        assert 0 <= slot_of(channel) < SLOTS

    check()
