"""What nodes say of slots, and what is believed of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopubsub.slots import (
    PATIENCE_S,
    SLOTS,
    Address,
    Redirect,
    SlotMap,
    View,
    ranges_of,
    redirect_of,
)

A, B, C = Address("10.0.0.1", 7001), Address("10.0.0.2", 7002), Address("10.0.0.3", 7003)
INFO = b"cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_current_epoch:7\r\n"


def view(epoch: int, **owners: Address | None) -> View:
    """All slots are A's but for those that are named: `view(3, s5=B)`."""
    slots: list[Address | None] = [A] * SLOTS
    for name, owner in owners.items():
        slots[int(name[1:])] = owner
    return View(slots, epoch, True)


# -- redirections ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("127.0.0.1:7001", Address("127.0.0.1", 7001)),
        ("node.example:7001", Address("node.example", 7001)),
        ("::1:7001", Address("::1", 7001)),
        ("2001:db8::8:7001", Address("2001:db8::8", 7001)),
        (":7001", Address("", 7001)),  # the one that was asked, on another port
        ("?:7001", None),  # a node that was given no name
    ],
)
@pytest.mark.parametrize("kind", ["MOVED", "ASK"])
def test_a_redirection_with_an_address(kind: str, place: str, address: Address | None) -> None:
    """The port is behind the last colon; before it stands any form of host, or nothing."""
    assert redirect_of(f"{kind} 3999 {place}") == Redirect(kind, 3999, address)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CLUSTERDOWN The cluster is down", "CLUSTERDOWN"),
        ("CLUSTERDOWN Hash slot not served", "CLUSTERDOWN"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "TRYAGAIN"),
    ],
)
def test_a_redirection_without_an_address(text: str, kind: str) -> None:
    """Not now, whatever else it says."""
    assert redirect_of(text) == Redirect(kind)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NOPERM no permission",
        "CROSSSLOT Keys in request don't hash to the same slot",
        "ERR MOVED 1 h:1",
        "MOVED",
        "MOVED 1",
        "MOVED 1 h:1 more",
        "MOVED x h:1",
        "MOVED ² h:1",
        "MOVED -1 h:1",
        "MOVED 16384 h:1",
        "MOVED 1 h",
        "MOVED 1 h:",
        "MOVED 1 h:²",
        "MOVEDX 1 h:1",
        "moved 1 h:1",
    ],
)
def test_other_errors_are_no_redirections(text: str) -> None:
    """What is not exactly a redirection is told to the caller as it is."""
    assert redirect_of(text) is None


@given(st.one_of(st.text(), st.from_regex(r"(MOVED|ASK) \S+ \S+", fullmatch=True)))
def test_no_error_reply_is_too_strange(text: str) -> None:
    """Whatever a server says is a redirection to a slot that there is, or none."""
    redirect = redirect_of(text)
    assert redirect is None or redirect.slot is None or 0 <= redirect.slot < SLOTS


@given(
    st.sampled_from(["MOVED", "ASK"]), st.integers(0, SLOTS - 1), st.ip_addresses(), st.integers(1, 65535)
)
def test_every_address_is_read(kind: str, slot: int, host: Any, port: int) -> None:
    """As servers write it: `host:port`, without brackets."""
    assert redirect_of(f"{kind} {slot} {host}:{port}") == Redirect(kind, slot, Address(str(host), port))


# -- what a node sees ------------------------------------------------------------------------------


def test_a_view() -> None:
    """Primaries come first; replicas, names and other metadata are passed over."""
    slots = [
        [0, 99, [b"10.0.0.1", 7001, b"id"], [b"10.0.0.9", 7009, b"id"]],
        [100, 100, [b"10.0.0.2", 7002, b"id", {b"hostname": b"two"}]],
        [16_000, 16_383, [b"::1", 7003]],
    ]
    seen = View.of(slots, INFO, Address("asked", 1))
    assert seen.epoch == 7
    assert seen.is_up
    assert len(seen.owners) == SLOTS
    assert seen.owners[0] == seen.owners[99] == A
    assert seen.owners[100] == B
    assert seen.owners[101] is seen.owners[15_999] is None
    assert seen.owners[16_000] == seen.owners[16_383] == Address("::1", 7003)


@pytest.mark.parametrize(
    "node",
    [
        [None, 7001, b"id"],  # `cluster-preferred-endpoint-type unknown-endpoint`
        [b"", 7001, b"id"],  # it was never told its own address
        [b"?", 7001, b"id", {b"ip": b""}],  # neither name nor address
    ],
)
def test_a_node_that_names_no_host_is_the_one_that_was_asked(node: list[Any]) -> None:
    """On the port that it says."""
    seen = View.of([[0, 16_383, node]], INFO, Address("asked", 1))
    assert set(seen.owners) == {Address("asked", 7001)}


def test_a_node_without_a_name_has_an_address() -> None:
    """With `cluster-preferred-endpoint-type hostname` its address is told beside the question mark."""
    node = [b"?", 7001, b"id", {b"ip": b"10.0.0.1"}]
    assert set(View.of([[0, 16_383, node]], INFO, B).owners) == {A}


@pytest.mark.parametrize("state", [b"fail", b"FAIL", b""])
def test_a_cluster_that_is_down(state: bytes) -> None:
    """Only `ok` is up."""
    info = b"cluster_current_epoch:0\r\ncluster_state:" + state
    assert View.of([], info, A) == View([None] * SLOTS, 0, False)


NODE = [b"h", 1, b"id"]


@pytest.mark.parametrize(
    ("slots", "info"),
    [
        (None, INFO),
        (b"OK", INFO),
        (17, INFO),
        ([7], INFO),
        ([[0, 1]], INFO),
        ([[0, 1, []]], INFO),
        ([[0, 1, [b"h"]]], INFO),
        ([[0, 1, [7, 1]]], INFO),
        ([[0, 1, [b"\xff", 1]]], INFO),
        ([[0, 1, [b"h", b"x"]]], INFO),
        ([[0, 1, [b"h", None]]], INFO),
        ([[0, 1, [b"?", 1, b"id"]]], INFO),
        ([[0, 1, [b"?", 1, b"id", {}]]], INFO),
        ([[b"0", 1, NODE]], INFO),
        ([[0, 16_384, NODE]], INFO),
        ([[-1, 1, NODE]], INFO),
        ([[2, 1, NODE]], INFO),
        ([[0, 10**12, NODE]], INFO),
        ([], None),
        ([], b""),
        ([], b"\xff"),
        ([], b"cluster_state:ok\r\n"),
        ([], b"cluster_state:ok\r\ncluster_current_epoch:x\r\n"),
    ],
)
def test_replies_that_are_none(slots: Any, info: Any) -> None:
    """Said in one way, whatever was wrong with them, and without using memory for it."""
    with pytest.raises(ValueError, match=r"^no answer to CLUSTER SLOTS and INFO: "):
        View.of(slots, info, A)


# -- the map ---------------------------------------------------------------------------------------


def test_the_map_begins_empty() -> None:
    """Nobody serves anything, as far as is known; the first view is believed, whatever its epoch."""
    known = SlotMap()
    assert known.owner(0) is None
    assert len(known.uncovered) == SLOTS
    assert known.primaries == frozenset()
    assert known.take(view(0, s5=None), 0.0)
    assert (known.owner(0), known.owner(5), known.uncovered) == (A, None, [5])
    assert known.primaries == {A}


def test_a_view_of_an_earlier_epoch_is_not_believed() -> None:
    """A node that is behind would lead back; one that is abreast or ahead is believed."""
    known = SlotMap()
    known.take(view(5, s5=B), 0.0)
    assert not known.take(view(4), 1.0)
    assert known.owner(5) == B
    assert known.take(view(5, s5=C), 2.0)
    assert known.owner(5) == C
    assert known.take(view(6), 3.0)
    assert (known.owner(5), known.epoch) == (A, 6)
    assert known.primaries == {A}


def test_what_a_node_says_is_newer_than_a_view() -> None:
    """Between two looks; and after the next one too, if that has the same epoch: it may be behind."""
    known = SlotMap()
    known.take(view(5), 0.0)
    known.move(5, B, 1.0)
    assert known.owner(5) == B
    assert known.primaries == {A, B}
    known.take(view(5), 2.0)
    assert known.owner(5) == B
    known.take(view(4, s5=C), 2.5)
    assert known.owner(5) == B
    known.take(view(6, s5=C), 3.0)
    assert known.owner(5) == C
    assert known.primaries == {A, C}


def test_what_a_view_confirms_is_news_no_more() -> None:
    """The next view of the same epoch is believed again."""
    known = SlotMap()
    known.take(view(5), 0.0)
    known.move(5, B, 1.0)
    known.take(view(5, s5=B), 2.0)
    known.take(view(5, s5=C), 3.0)
    assert known.owner(5) == C


def test_the_last_of_two_news() -> None:
    """A slot may go on."""
    known = SlotMap()
    known.take(view(5), 0.0)
    known.move(5, B, 1.0)
    known.move(5, C, 1.0)
    assert known.owner(5) == C
    assert known.primaries == {A, B, C}
    known.take(view(5), 2.0)
    assert known.owner(5) == C
    assert known.primaries == {A, C}


def test_news_that_every_view_contradicts_is_given_up() -> None:
    """It came from a node that was behind, and may name one that is dead: it would be for ever."""
    known = SlotMap()
    known.take(view(5), 0.0)
    known.move(5, B, 1.0)
    known.take(view(5), 1.0 + PATIENCE_S - 0.1)
    assert known.owner(5) == B
    known.take(view(5), 1.0 + PATIENCE_S)
    assert known.owner(5) == A
    assert known.primaries == {A}


def test_a_cluster_that_was_set_up_anew_is_believed_in_the_end() -> None:
    """Its epochs begin anew; when nobody has said the old one for a while, nobody will."""
    known = SlotMap()
    known.take(view(12), 0.0)
    known.move(7, C, 1.0)
    assert not known.take(view(3, s5=B), PATIENCE_S - 0.1)
    assert known.take(view(3, s5=B), PATIENCE_S)
    assert (known.epoch, known.owner(5), known.owner(7)) == (3, B, A)
    assert not known.take(view(2), PATIENCE_S + 1)


def test_changes_are_counted() -> None:
    """Views and news that say what is known already are none."""
    known = SlotMap()
    known.take(view(5), 0.0)
    before = known.changes
    known.take(view(5), 1.0)
    known.take(view(6), 1.0)
    known.take(view(5, s5=B), 1.0)
    known.move(5, A, 1.0)
    assert known.changes == before
    known.move(5, B, 1.0)
    assert known.changes == before + 1
    known.move(5, B, 2.0)
    assert known.changes == before + 1
    known.take(view(7), 2.0)
    assert known.changes == before + 2
    known.move(5, B, 2.0)
    known.take(view(7), 2.0 + PATIENCE_S)
    assert known.changes == before + 4


OWNERS = st.sampled_from([A, B, C])
FEW = st.integers(0, 3)
STEPS = st.one_of(
    st.tuples(st.just("move"), FEW, OWNERS),
    st.tuples(st.just("take"), st.integers(0, 4), st.tuples(*[st.none() | OWNERS] * 4)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(STEPS, max_size=12))
def test_whatever_comes_in_whatever_order(steps: list[Any]) -> None:
    """The owner is who the newest news names; the epoch never falls; primaries are who owns something."""
    known = SlotMap()
    epoch, seen, news = -1, [None] * 4, dict[int, Address]()
    for kind, which, what in steps:
        if kind == "move":
            news[which] = what
            known.move(which, what, 0.0)
        else:
            slots: list[Address | None] = [*what, *[A] * (SLOTS - 4)]
            was_taken = known.take(View(slots, which, True), 0.0)
            assert was_taken == (which >= epoch)
            if was_taken:
                news = {n: node for n, node in news.items() if which == epoch and what[n] != node}
                epoch, seen = which, what
                assert known.primaries == {A, *filter(None, seen), *news.values()}
        assert known.epoch == epoch
        assert [known.owner(n) for n in range(4)] == [news.get(n, seen[n]) for n in range(4)]
        assert known.primaries >= set(news.values())
    if epoch >= 0:
        assert known.uncovered == [n for n in range(4) if n not in news and seen[n] is None]


# -- for people ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "text"),
    [
        ([], ""),
        ([7], "7"),
        ([0, 1], "0-1"),
        ([0, 2], "0, 2"),
        ([*range(5461), 7000, 16_382, 16_383], "0-5460, 7000, 16382-16383"),
    ],
)
def test_ranges(slots: list[int], text: str) -> None:
    """Slots that follow each other are said as first and last."""
    assert ranges_of(slots) == text


@given(st.sets(st.integers(0, 60)))
def test_ranges_tell_every_slot_once(slots: set[int]) -> None:
    """As few as there can be."""
    told: list[int] = []
    ranges = ranges_of(sorted(slots)).split(", ") if slots else []
    for each in ranges:
        first, _, last = each.partition("-")
        told += range(int(first), int(last or first) + 1)
    assert told == sorted(slots)
    assert len(ranges) == len({n for n in slots if n - 1 not in slots})


def test_an_address_for_people() -> None:
    """Host and port."""
    assert str(Address("::1", 7001)) == "::1:7001"
