"""`Topic` and `Pattern`: names, codecs, equality."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from aiopubsub.topic import Pattern, Subscribable, Topic, as_subscribable


def encode(data: Any) -> bytes:
    return repr(data).encode()


def decode(payload: bytes) -> Any:
    return payload


@pytest.mark.parametrize(("kind", "what"), [(Topic, "a channel"), (Pattern, "a pattern")])
class TestNames:
    def test_an_empty_name_is_refused(self, kind: Any, what: str) -> None:
        """A name must not be empty."""
        with pytest.raises(ValueError, match=rf"^{what} must not be empty$"):
            kind("")

    @pytest.mark.parametrize("name", [b"news", None, 1, ["news"]])
    def test_a_name_that_is_no_str_is_refused(self, kind: Any, what: str, name: object) -> None:
        """A name of another type is a TypeError that names the type."""
        with pytest.raises(TypeError, match=rf"^{what} must be a str, not {type(name).__name__}$"):
            kind(name)

    def test_a_lone_surrogate_is_refused(self, kind: Any, what: str) -> None:
        """A name that cannot be UTF-8 is a ValueError that shows it."""
        with pytest.raises(ValueError, match=f"{what} must be Unicode text, not 'a.udc80'") as caught:
            kind("a\udc80")
        assert not isinstance(caught.value, UnicodeError)

    def test_the_key_is_utf8(self, kind: Any, what: str) -> None:
        """The server gets the name as UTF-8, as it was given."""
        assert kind("Zeitung.ä☃ \n").key == "Zeitung.ä☃ \n".encode()
        assert kind("Zeitung.ä☃ \n").name == "Zeitung.ä☃ \n"

    def test_a_codec_must_be_callable(self, kind: Any, what: str) -> None:
        """What cannot be called is no codec."""
        with pytest.raises(TypeError, match=r"^`decode` must be callable, not str$"):
            kind("c", **({"encode": encode} if kind is Topic else {}), decode="utf-8")

    def test_repr_shows_the_name(self, kind: Any, what: str) -> None:
        """A repr is the way to make one of bytes."""
        assert repr(kind("a'b")) == f'{kind.__name__}("a\'b")'


def test_encode_must_be_callable() -> None:
    """What cannot be called is no codec."""
    with pytest.raises(TypeError, match=r"^`encode` must be callable, not int$"):
        Topic("c", encode=1, decode=decode)  # type: ignore[call-overload]


def test_a_codec_without_its_mate_is_refused() -> None:
    """Both codecs are given or neither, and the error names the one that is missing."""
    with pytest.raises(ValueError, match=r"^topic 'c' has `encode` but no `decode`"):
        Topic("c", encode=encode)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"^topic 'c' has `decode` but no `encode`"):
        Topic("c", decode=decode)  # type: ignore[call-overload]


def test_a_topic_of_bytes_has_no_codec() -> None:
    """Without codecs the payload is left as it is."""
    assert (Topic("c").encode, Topic("c").decode, Pattern("c").decode) == (None, None, None)


def test_equality_is_of_class_name_and_codecs() -> None:
    """Topics are equal, and hash alike, when kind, name and codecs are the same."""
    kinds: list[Subscribable[Any]] = [
        Topic("a"),
        Topic("b"),
        Pattern("a"),
        Topic.text("a"),
        Topic.json("a"),
        Topic("a", encode=encode, decode=decode),
        Topic("a", encode=str.encode, decode=decode),
        Topic("a", encode=encode, decode=bytes.decode),
        Pattern("a", decode=decode),
    ]
    again: list[Subscribable[Any]] = [
        Topic("a"),
        Topic("b"),
        Pattern("a"),
        Topic.text("a"),
        Topic.json("a"),
        Topic("a", encode=encode, decode=decode),
        Topic("a", encode=str.encode, decode=decode),
        Topic("a", encode=encode, decode=bytes.decode),
        Pattern("a", decode=decode),
    ]
    for i, one in enumerate(kinds):
        for j, other in enumerate(again):
            assert (one == other) is (i == j)
    assert {hash(topic) for topic in kinds} == {hash(topic) for topic in again}
    assert len(set(kinds + again)) == len(kinds)
    assert Topic("a") != "a"


def test_topics_copy_and_pickle() -> None:
    """A topic survives a copy and, with codecs that do, a pickle."""
    for topic in (Topic("a"), Topic.json("a"), Pattern("a", decode=decode)):
        assert copy.copy(topic) == topic
        assert pickle.loads(pickle.dumps(topic)) == topic


def test_text_is_strict_utf8() -> None:
    """`Topic.text` carries str; a payload that is not UTF-8 raises."""
    topic = Topic.text("a")
    assert topic.encode is not None
    assert topic.decode is not None
    assert topic.encode("ä") == "ä".encode()
    assert topic.decode("ä".encode()) == "ä"
    with pytest.raises(UnicodeDecodeError):
        topic.decode(b"\xff")


def test_json_is_compact_utf8() -> None:
    """`Topic.json` writes no spaces and no escapes that UTF-8 can do without, and reads it back."""
    topic = Topic.json("a")
    assert topic.encode is not None
    assert topic.decode is not None
    data = {"ä": [1, 2.5, None, True, {"b": "c"}]}
    assert topic.encode(data) == '{"ä":[1,2.5,null,true,{"b":"c"}]}'.encode()
    assert topic.decode(topic.encode(data)) == data
    with pytest.raises(ValueError, match="Expecting value"):
        topic.decode(b"nope")


def test_a_str_stands_for_a_topic_of_bytes() -> None:
    """A plain str becomes a topic; topics and patterns stay what they are."""
    pattern = Pattern("a*")
    assert as_subscribable("a") == Topic("a")
    assert as_subscribable(pattern) is pattern


@pytest.mark.parametrize("topic", [b"a", None, 3, ("a",)])
def test_nothing_else_is_a_topic(topic: Any) -> None:
    """What is neither str, Topic nor Pattern is refused by its type."""
    message = f"^a topic must be a str, a Topic or a Pattern, not {type(topic).__name__}$"
    with pytest.raises(TypeError, match=message):
        as_subscribable(topic)
