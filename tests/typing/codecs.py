"""Topics with the codecs of other libraries: what follows from their types, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, assert_type

import msgspec
import orjson
import pydantic

import aiopubsub as ps


class Struct(msgspec.Struct):
    """msgspec's."""

    number: int


class Other(msgspec.Struct, tag=True):
    """Another one, for a union."""

    name: str


class Tagged(msgspec.Struct, tag=True):
    """And one more."""

    number: int


class Model(pydantic.BaseModel):
    """pydantic's."""

    number: int


@dataclass
class Plain:
    """The standard library's."""

    number: int


def encode_model(model: Model) -> bytes:
    return model.model_dump_json().encode()


def encode_plain(plain: Plain) -> bytes:
    return json.dumps(asdict(plain)).encode()


def decode_plain(payload: bytes) -> Plain:
    return Plain(**json.loads(payload))


STRUCTS: ps.Topic[Struct] = ps.Topic(
    "a", encode=msgspec.json.encode, decode=msgspec.json.Decoder(Struct).decode
)
PACKED: ps.Topic[Struct] = ps.Topic(
    "b", encode=msgspec.msgpack.encode, decode=msgspec.msgpack.Decoder(Struct).decode
)
UNIONS: ps.Topic[Other | Tagged] = ps.Topic(
    "c", encode=msgspec.json.encode, decode=msgspec.json.Decoder(Other | Tagged).decode
)
MODELS = ps.Topic("d", encode=encode_model, decode=Model.model_validate_json)
PLAINS = ps.Topic("e", encode=encode_plain, decode=decode_plain)
CHECKED: ps.Topic[Plain] = ps.Topic(
    "f", encode=msgspec.json.encode, decode=msgspec.json.Decoder(Plain).decode
)
DICTS: ps.Topic[dict[str, Any]] = ps.Topic("g", encode=orjson.dumps, decode=orjson.loads)

numbers: pydantic.TypeAdapter[list[int]] = pydantic.TypeAdapter(list[int])
LISTS = ps.Topic("h", encode=numbers.dump_json, decode=numbers.validate_json, history=ps.History())


async def receiving(client: ps.Client) -> None:
    """The message carries what the codec makes."""
    assert_type(await anext(ps.Subscriber(client, STRUCTS)), ps.Message[Struct])
    assert_type(await anext(ps.Subscriber(client, PACKED)), ps.Message[Struct])
    assert_type(await anext(ps.Subscriber(client, UNIONS)), ps.Message[Other | Tagged])
    assert_type(await anext(ps.Subscriber(client, MODELS)), ps.Message[Model])
    assert_type(await anext(ps.Subscriber(client, PLAINS)), ps.Message[Plain])
    assert_type(await anext(ps.Subscriber(client, CHECKED)), ps.Message[Plain])
    assert_type(await anext(ps.Subscriber(client, DICTS)), ps.Message[dict[str, Any]])
    assert_type(await anext(ps.Subscriber(client, LISTS)), ps.Message[list[int]])
    match (await anext(ps.Subscriber(client, UNIONS))).data:
        case Other(name=name):
            assert_type(name, str)
        case Tagged(number=number):
            assert_type(number, int)


async def publishing(pub: ps.Publisher) -> None:
    """What is published is what the codec takes."""
    await pub.publish(STRUCTS, Struct(1))
    await pub.publish(UNIONS, Other("x"))
    await pub.publish(MODELS, Model(number=1))
    await pub.publish(PLAINS, Plain(1))
    await pub.publish(LISTS, [1, 2])
    await pub.publish_many(MODELS, [Model(number=1)])
    await pub.publish(MODELS, Plain(1))  # type: ignore[misc]
    await pub.publish(PLAINS, {"number": 1})  # type: ignore[misc]
    await pub.publish(LISTS, ["1"])  # type: ignore[misc]
