"""The text that a browser keeps: it goes round, and whatever else it says is survived."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import aiopubsub as ps
from aiopubsub.contrib.starlette.last_event_id import LIVE, id_of, read_id
from aiopubsub.keys import mark_of

KEPT = [ps.Topic(name, history=ps.History()) for name in ("a", "b", "c")]
TOPICS = [*KEPT, ps.Topic("plain"), ps.Pattern("*")]

positions = st.builds(
    ps.Position,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.sampled_from([mark_of(topic.key) for topic in KEPT]),
    st.text("az09-.,~!", min_size=1, max_size=50),
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), positions))
def test_positions_go_round(stands: dict[str, ps.Position]) -> None:
    """Each topic gets back its own; those without history are lost to who comes back, and no others."""
    stands = {name: at._replace(mark=mark_of(name.encode())) for name, at in stands.items()}
    back = read_id(id_of(stands.values()), TOPICS)
    assert back.positions == stands
    assert back.lost == ("plain", "*")


@given(st.text("0123-ab. live\n\0é"))
def test_any_text_is_read(text: str) -> None:
    """Nothing is raised, and who says something unreadable has lost what it does not say."""
    back = read_id(text, TOPICS)
    if not text:
        assert not back.lost
    elif set(text.split()) <= {LIVE}:
        assert back.lost == ("plain", "*")
    else:
        assert back.lost == ("a", "b", "c", "plain", "*")


def test_one_topic_is_its_position() -> None:
    """`str(position)`, as other clients of the topic write it."""
    position = ps.Position(1, 2, mark_of(b"a"), "x.1")
    assert id_of([position]) == str(position)
    assert id_of([]) == LIVE
