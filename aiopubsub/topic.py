"""What can be published to and subscribed to.

Lives here: `Topic`, `History` and `Pattern`, their checks, and the codecs that come with them.
Must not live here: anything that sends or receives. Anybody may import this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar, overload

from .checks import check_count, check_seconds

__all__ = ["JSON", "History", "Pattern", "Subscribable", "Topic"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

JSON: TypeAlias = "Mapping[str, JSON] | Sequence[JSON] | str | int | float | bool | None"
"""What `json` can read and write."""


@dataclass(frozen=True, slots=True)
class History:
    """How much of a topic is kept on the server, in a Redis Stream beside the channel.

    All publishers and subscribers of a topic give the same. Each publish trims: nobody else needs to.

    Args:
        size: The last messages that are kept at least, >= 1. Redis trims in steps, so there are up to
            a hundred more (https://redis.io/docs/latest/commands/xtrim/, "Nearly exact trimming").
        ttl: Seconds, > 0, that the history lives after the last publish; `None`: for ever.

    Raises:
        TypeError: `size` is not an `int`, or `ttl` not a number.
        ValueError: One of them is out of range.
    """

    size: int = 1000
    ttl: float | None = 86_400.0

    def __post_init__(self) -> None:
        check_count("size", self.size)
        if self.ttl is not None:
            check_seconds("ttl", self.ttl)


class Subscribable(Generic[T_co]):
    """What a `Subscriber` takes: a `Topic` or a `Pattern`. Not made directly.

    Two of them are equal when their names, their codecs, their histories and `sharded` are.

    Attributes:
        name: The channel's name, or the pattern's glob.
        key: The same as UTF-8, as the server knows it.
        decode: Makes `T` of a payload; `None` leaves the bytes as they are.
        history: How much of it is kept; `None`: nothing, it is live only.
        sharded: Whether a cluster keeps its messages within one shard.
    """

    __slots__ = ("decode", "history", "key", "name", "sharded")

    name: str
    key: bytes
    decode: Callable[[bytes], T_co] | None
    history: History | None
    sharded: bool

    def _identity(self) -> tuple[object, ...]:
        return (self.__class__, self.name, self.decode, self.history, self.sharded)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Subscribable):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.name!r})"


class Topic(Subscribable[T]):
    """A channel plus what both ends must agree on: how data is encoded, whether history is kept.

    Publishers and subscribers of one channel use an equal topic, usually one constant of the
    application. A plain `str` where a topic is asked means `Topic(name)`, a topic of bytes.

    Args:
        name: The channel, not empty; sent as UTF-8.
        encode: Makes bytes of what is published. Runs in `publish`, before anything is sent.
        decode: Makes of a payload what is handed over. Runs in the consumer; if it raises, the
            message becomes an `Undecodable`. Give both `encode` and `decode`, or neither: without
            them the topic carries bytes, and `publish` takes `str` too, as UTF-8.
        history: What the server keeps of it, so that no subscriber misses a message; `None` (the
            default): nothing.
        sharded: In a cluster: `True` (the default) keeps its messages within the shard of the
            channel's slot (SPUBLISH), so that load spreads over the shards; patterns don't see
            them. `False` lets each node pass them to all others (PUBLISH), and patterns match.
            Without a cluster it makes no difference.

    Raises:
        TypeError: `name` is not a `str`, a codec cannot be called, or `history` is no `History`.
        ValueError: `name` is empty or not Unicode, or one codec is given without the other.
    """

    __slots__ = ("encode",)

    encode: Callable[[T], bytes] | None

    @overload
    def __init__(
        self: Topic[bytes], name: str, *, history: History | None = None, sharded: bool = True
    ) -> None: ...

    @overload
    def __init__(
        self,
        name: str,
        *,
        encode: Callable[[T], bytes],
        decode: Callable[[bytes], T],
        history: History | None = None,
        sharded: bool = True,
    ) -> None: ...

    def __init__(
        self,
        name: str,
        *,
        encode: Callable[[T], bytes] | None = None,
        decode: Callable[[bytes], T] | None = None,
        history: History | None = None,
        sharded: bool = True,
    ) -> None:
        self.name = name
        self.key: bytes = _name_to_key("a channel", name)
        self.encode = _check_codec("encode", encode)
        self.decode: Callable[[bytes], T] | None = _check_codec("decode", decode)
        if (encode is None) != (decode is None):
            given, wanted = ("encode", "decode") if decode is None else ("decode", "encode")
            raise ValueError(
                f"topic {name!r} has `{given}` but no `{wanted}`; give both, or neither for bytes"
            )
        if history is not None and not isinstance(history, History):
            raise TypeError(f"`history` must be a History, not {type(history).__name__}")
        self.history = history
        self.sharded: bool = bool(sharded)

    @staticmethod
    def text(name: str, *, history: History | None = None, sharded: bool = True) -> Topic[str]:
        """A topic of `str`, as UTF-8. A payload that is not UTF-8 arrives as `Undecodable`."""
        return Topic(name, encode=str.encode, decode=bytes.decode, history=history, sharded=sharded)

    @staticmethod
    def json(name: str, *, history: History | None = None, sharded: bool = True) -> Topic[JSON]:
        """A topic of JSON values, by the standard library's `json`, compact and as UTF-8."""
        return Topic(name, encode=_encode_json, decode=_decode_json, history=history, sharded=sharded)

    def _identity(self) -> tuple[object, ...]:
        return (*super()._identity(), self.encode)


class Pattern(Subscribable[T_co]):
    """A glob over channel names, as in PSUBSCRIBE (https://redis.io/commands/psubscribe).

    `?` is any byte, `*` any number of them, `[ab]` one of these; a backslash takes the next literally.
    A channel that matches is delivered once for each match: a subscriber of `"news.art"` and of
    `Pattern("news.*")` gets a message on `news.art` twice.

    Args:
        glob: The pattern, not empty; sent as UTF-8.
        decode: As for `Topic`; `None` (the default) leaves the bytes as they are.

    Raises:
        TypeError: `glob` is not a `str`, or `decode` cannot be called.
        ValueError: `glob` is empty or not Unicode.
    """

    __slots__ = ()

    @overload
    def __init__(self: Pattern[bytes], glob: str) -> None: ...

    @overload
    def __init__(self, glob: str, *, decode: Callable[[bytes], T_co]) -> None: ...

    def __init__(self, glob: str, *, decode: Callable[[bytes], T_co] | None = None) -> None:
        self.name = glob
        self.key: bytes = _name_to_key("a pattern", glob)
        self.decode: Callable[[bytes], T_co] | None = _check_codec("decode", decode)
        self.history: History | None = None  # patterns are live only
        self.sharded = False  # and see what the whole cluster is told


def as_subscribable(topic: str | Subscribable[T]) -> Subscribable[T] | Subscribable[bytes]:
    """The topic itself, or the bytes topic that a plain `str` stands for."""
    if isinstance(topic, str):
        return Topic(topic)
    if not isinstance(topic, Subscribable):
        raise TypeError(f"a topic must be a str, a Topic or a Pattern, not {type(topic).__name__}")
    return topic


def _name_to_key(what: str, name: str) -> bytes:
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, not {type(name).__name__}")
    if not name:
        raise ValueError(f"{what} must not be empty")
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} must be Unicode text, not {name!r}") from error


def _check_codec(name: str, codec: T) -> T:
    if codec is not None and not callable(codec):
        raise TypeError(f"`{name}` must be callable, not {type(codec).__name__}")
    return codec


def _encode_json(data: JSON) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def _decode_json(payload: bytes) -> JSON:
    value: JSON = json.loads(payload)
    return value
