"""The lookout: what a sentinel is asked, what its answers mean, and who is believed."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopubsub.dialogue import OutOfStep
from aiopubsub.errors import Closed, ErrorReply
from aiopubsub.lookout import Lookout, Sighting, newest
from aiopubsub.slots import Address

ASK = [(b"SENTINEL", b"MASTER", b"svc"), (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", b"svc")]
HELLO = [(b"SUBSCRIBE", b"+switch-master", b"+failover-state-reconf-slaves"), (b"HELLO", b"3")]
GREETING = {b"server": b"redis", b"proto": 3}


class Push(list[Any]):
    """A push of the sentinel."""


def primary(epoch: int, others: int = 2) -> dict[bytes, bytes]:
    """What SENTINEL MASTER answers, as far as it counts."""
    told = {b"ip": b"old", b"port": b"1", b"config-epoch": b"%d" % epoch}
    return told | {b"num-other-sentinels": b"%d" % others}


class Told:
    """A lookout with a count of its news."""

    def __init__(self, min_others: int = 0) -> None:
        self.news = 0
        self.lookout = Lookout("svc", Push, self.count, min_others)
        self.lookout.begin()
        assert self.lookout.commands() == [*HELLO, *ASK]

    def count(self) -> None:
        self.news += 1

    def hear(self, *items: Any) -> None:
        assert self.lookout.receive(deque(items)) is False


def test_a_sentinel_is_asked_at_once() -> None:
    """The epoch comes from one answer, the address from the next: that one is right during a failover."""
    told = Told()
    told.hear(Push([b"subscribe", b"+switch-master", 1]), GREETING, primary(7))
    assert (told.lookout.sighting, told.news) == (None, 0)
    told.hear([b"10.0.0.1", b"6379"])
    assert told.lookout.sighting == Sighting(7, Address("10.0.0.1", 6379))
    assert (told.lookout.trouble, told.lookout.deaf, told.news) == (None, None, 1)
    assert told.lookout.commands() == []


@pytest.mark.parametrize("channel", [b"+switch-master", b"+failover-state-reconf-slaves"])
def test_an_event_is_a_reason_to_ask(channel: bytes) -> None:
    """What it says is not read: the answer to the question counts."""
    told = Told()
    told.hear(GREETING, primary(1), [b"a", b"1"], Push([b"message", channel, b"svc a 1 b 2"]))
    assert told.lookout.commands() == ASK
    told.hear(primary(2), [b"b", b"2"])
    assert told.lookout.sighting == Sighting(2, Address("b", 2))


def test_a_sign_of_life_is_a_question() -> None:
    """So a lost event is made up for within a heartbeat."""
    told = Told()
    told.hear(GREETING, primary(1), [b"a", b"1"])
    told.lookout.ping()
    assert told.lookout.commands() == ASK


def test_an_unknown_service() -> None:
    """It is said whose fault it is, and later answers may be better."""
    told = Told()
    told.hear(GREETING, ErrorReply("ERR No such master with that name"), None)
    assert told.lookout.trouble == "it watches no service 'svc'"
    assert told.news == 1
    told.lookout.ping()
    told.hear(primary(1), [b"a", b"1"])
    assert (told.lookout.trouble, told.news) == (None, 2)
    assert told.lookout.sighting is not None
    told.lookout.ping()
    told.hear(ErrorReply("ERR No such master with that name"), None)
    assert told.lookout.sighting is None


def test_no_permission_to_ask() -> None:
    """The sentinel's own words."""
    told = Told()
    told.hear(GREETING, ErrorReply("NOPERM no sentinel|master"), ErrorReply("NOPERM no sentinel|get"))
    assert told.lookout.trouble == "NOPERM no sentinel|get"


def test_no_permission_to_subscribe() -> None:
    """It is noted, and the sentinel is asked all the same."""
    told = Told()
    told.hear(ErrorReply("NOPERM no channels"), GREETING, primary(1), [b"a", b"1"])
    assert told.lookout.deaf == "NOPERM no channels"
    assert told.lookout.sighting == Sighting(1, Address("a", 1))


def test_a_sentinel_that_knows_too_few_others() -> None:
    """It is not believed, if that is wanted."""
    told = Told(min_others=2)
    told.hear(GREETING, primary(1, others=1), [b"a", b"1"])
    assert told.lookout.trouble == "it knows of 1 other sentinels only, and 2 are wanted"
    assert told.lookout.sighting is None
    told.lookout.ping()
    told.hear(primary(1, others=2), [b"a", b"1"])
    assert told.lookout.sighting is not None


@pytest.mark.parametrize(
    "replies",
    [
        [primary(1)],
        [b"PONG"],
        [GREETING, [b"a", b"1"]],
        [GREETING, {b"ip": b"a"}],
        [GREETING, 7],
        [GREETING, primary(1), b"a"],
        [GREETING, primary(1), [b"a", b"one"]],
        [GREETING, primary(1), [b"a", b"1", b"x"]],
        [GREETING, primary(1), [1, b"1"]],
        [GREETING, primary(1), [b"a", b"1"], b"OK"],
    ],
)
def test_what_cannot_be_an_answer(replies: list[Any]) -> None:
    """The session is out of step, and is to end."""
    told = Told()
    with pytest.raises(OutOfStep):
        told.hear(*replies)


def test_the_end_of_a_session() -> None:
    """What it said counts no more; in the next one it is asked anew."""
    told = Told()
    told.hear(ErrorReply("NOPERM"), GREETING, primary(1), [b"a", b"1"])
    told.lookout.ping()
    told.lookout.end("cut")
    assert (told.lookout.sighting, told.lookout.trouble, told.news) == (None, None, 2)
    assert told.lookout.commands() == []
    told.lookout.begin()
    assert told.lookout.commands() == [*HELLO, *ASK]
    assert told.lookout.deaf is None
    told.hear(GREETING, primary(1), [b"a", b"1"])
    assert told.lookout.sighting is not None
    assert told.lookout.expire(5.0) == math.inf
    told.lookout.close(Closed("Client"))


# -- who is believed -------------------------------------------------------------------------------

A, B, C = Address("a", 1), Address("b", 1), Address("c", 1)


@pytest.mark.parametrize(
    ("said", "believed", "expected"),
    [
        ([], None, None),
        ([], Sighting(1, A), None),
        ([Sighting(1, A)], None, Sighting(1, A)),
        ([Sighting(1, A), Sighting(2, B), Sighting(1, A)], None, Sighting(2, B)),
        ([Sighting(1, A), Sighting(2, B)], Sighting(1, A), Sighting(2, B)),
        # names of one server: it does not matter which, but it is to stay the same one
        ([Sighting(1, A), Sighting(1, B)], None, Sighting(1, A)),
        ([Sighting(1, A), Sighting(1, B)], Sighting(1, B), Sighting(1, B)),
        ([Sighting(1, B), Sighting(1, A)], Sighting(1, B), Sighting(1, B)),
        ([Sighting(1, A), Sighting(1, B)], Sighting(0, B), Sighting(1, B)),
        # one that is cut off from the others, which cannot be heard
        ([Sighting(1, A)], Sighting(2, B), None),
        # all of them were set up anew
        ([Sighting(0, A), Sighting(0, A)], Sighting(2, B), Sighting(0, A)),
        ([Sighting(0, A), Sighting(2, B), Sighting(0, A)], Sighting(2, B), Sighting(2, B)),
    ],
)
def test_who_is_believed(
    said: list[Sighting], believed: Sighting | None, expected: Sighting | None
) -> None:
    """The newest configuration, and in doubt the one that was believed before."""
    assert newest(said, believed, 3) == expected


def test_a_lone_sentinel_is_believed() -> None:
    """If there is but one, it was set up anew."""
    assert newest([Sighting(0, A)], Sighting(9, B), 1) == Sighting(0, A)


sightings = st.builds(Sighting, st.integers(0, 3), st.sampled_from([A, B, C]))


@given(st.lists(sightings, min_size=1, max_size=5), sightings)
def test_nobody_is_led_back_by_a_minority(said: list[Sighting], believed: Sighting) -> None:
    """An older configuration counts only if more than half of the sentinels tell of older ones."""
    found = newest(said, believed, 5)
    assert found is None or found.epoch == max(sighting.epoch for sighting in said)
    if found is None or found.epoch < believed.epoch:
        assert (found is None) == (len(said) <= 2)
    if believed in said and found is not None and found.epoch == believed.epoch:
        assert found == believed
