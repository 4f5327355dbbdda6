"""What bad input gets: a clear error before anything is sent, or the server's own words."""

from __future__ import annotations

import pytest

import aiopubsub as ps
from aiopubsub.testing import free_port

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ps.Client("http://x"), ValueError, "unknown scheme 'http'; use one of redis://"),
        (lambda: ps.Client("localhost:6379"), ValueError, "not a URL; write for example redis://"),
        (lambda: ps.Client("redis://u:s3cret@h:port"), ValueError, "percent-encoded"),
        (lambda: ps.Client("redis://u:s3#cret@h"), ValueError, "percent-encoded"),
        (lambda: ps.Client(7), TypeError, "a URL, a redis.asyncio.Redis or RedisCluster, not int"),
        (lambda: ps.Client(connect_timeout=0), ValueError, "`connect_timeout` must be more than 0"),
        (lambda: ps.Client(heartbeat="5"), TypeError, "`heartbeat` must be a number of seconds"),
        (lambda: ps.Publisher("memory://", timeout=-1), ValueError, "`timeout` must be more than 0"),
        (lambda: ps.Publisher("memory://", max_in_flight=0), ValueError, "at least 1, not 0"),
        (lambda: ps.Subscriber("memory://", "c", buffer=0), ValueError, "`buffer` must be at least 1"),
        (lambda: ps.Subscriber("memory://", "c", buffer=1.5), TypeError, "`buffer` must be an int"),
        (lambda: ps.Subscriber("memory://", "c", buffer_bytes=0), ValueError, "`buffer_bytes` must be"),
        (lambda: ps.Subscriber("memory://", "c", overflow="no"), ValueError, "'drop_oldest', 'drop_new"),
        (lambda: ps.Subscriber("memory://", "c", on_gap="no"), ValueError, "'log', 'raise', not 'no'"),
        (lambda: ps.Subscriber("memory://", ""), ValueError, "a channel must not be empty"),
        (lambda: ps.Subscriber("memory://", b"c"), TypeError, "a str, a Topic or a Pattern, not bytes"),
        (lambda: ps.Subscriber("memory://", "\ud800"), ValueError, "must be Unicode text"),
        (lambda: ps.Pattern(""), ValueError, "a pattern must not be empty"),
        (lambda: ps.Topic("c", encode=str.encode), ValueError, "has `encode` but no `decode`"),
        (lambda: ps.Topic("c", encode=1, decode=2), TypeError, "`encode` must be callable, not int"),
    ],
)
async def test_arguments_are_checked_at_once(make: object, error: type, words: str) -> None:
    """The error names what was wrong and what would do, and repeats no password."""
    with pytest.raises(error) as caught:
        make()  # type: ignore[operator]
    assert words in str(caught.value)
    assert "s3" not in str(caught.value)
    assert caught.value.__cause__ is None or "s3" not in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("topic", "data", "headers", "error", "words"),
    [
        ("", b"x", None, ValueError, "a channel must not be empty"),
        (b"c", b"x", None, TypeError, "topic must be a str or a Topic, not bytes"),
        ("c", 5, None, TypeError, "must be bytes or str, not int; give the topic an `encode`"),
        ("c", None, None, TypeError, "must be bytes or str, not NoneType"),
        ("c", "\ud800", None, ps.EncodeFailed, "`encode` raised UnicodeEncodeError"),
        ("c", b"x", {"a": 1}, TypeError, "headers map str to str"),
        ("c", b"x", {"a": "b" * 70_000}, ValueError, "headers take 70"),
        (ps.Topic.json("c"), {1, 2}, None, ps.EncodeFailed, "'c': `encode` raised TypeError"),
        (ps.Topic("c", encode=str, decode=str), 1, None, ps.EncodeFailed, "returned str, not bytes"),
    ],
)
async def test_publish_checks_before_it_sends(
    client: ps.Client, topic: object, data: object, headers: object, error: type, words: str
) -> None:
    """Nothing is sent for what cannot be published."""
    async with ps.Subscriber(client, "c") as sub:
        with pytest.raises(error, match=words):
            await ps.Publisher(client).publish(topic, data, headers=headers)  # type: ignore[call-overload]
        await ps.Publisher(client).publish("c", b"end")
        assert (await anext(sub)).data == b"end"


async def test_no_server_is_said_within_the_timeout() -> None:
    """A server that is not there is a `ConnectFailed` with the system's words."""
    client = ps.Client(f"redis://:hunter2@127.0.0.1:{free_port()}", connect_timeout=0.2)
    with pytest.raises(ps.ConnectFailed, match=r"Connection refused|Connect call failed") as caught:
        await client.__aenter__()
    assert not caught.value.permanent
    assert "hunter2" not in str(caught.value)
