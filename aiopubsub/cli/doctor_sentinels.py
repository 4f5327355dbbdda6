"""What the sentinels of a service say, and whether a failover would work.

Lives here: asking each of them, and judging. Must not live here: the server that they watch
(`doctor_facts`, `doctor_findings`). `doctor` calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from aiopubsub.errors import ConnectFailed, ErrorReply
from aiopubsub.wire import RedisOpener, SentinelSettings

from .doctor_findings import Finding, Level, list_some
from .doctor_line import Line
from .runner import Failed

__all__ = ["Sentinel", "judge_sentinels", "survey_sentinels"]

_TIMEOUT_S = 3.0  # to reach one: one that cannot be reached is not waited for long
_SHORT_DOWN_MS = 1000
_LONG_DOWN_MS = 30_000  # the server's own default


@dataclass(frozen=True)
class Sentinel:
    """What one sentinel says of the service.

    Attributes:
        name: Where it is.
        trouble: Why it says nothing; empty if it does.
        primary: Host and port of the primary.
        others: How many other sentinels it knows; `None` where that may not be asked.
        replicas: How many replicas it knows; likewise.
        down_after_ms: A server that is silent for so long is down; likewise.
        no_quorum: Why no failover would be agreed on; empty if one would, or that may not be asked.
    """

    name: str
    trouble: str = ""
    primary: str = ""
    others: int | None = None
    replicas: int | None = None
    down_after_ms: int | None = None
    no_quorum: str = ""


async def survey_sentinels(settings: SentinelSettings, timeout: float) -> list[Sentinel]:
    """Ask each of them, for so many seconds at most; in the order given."""
    service, timeout = settings.service, min(timeout, _TIMEOUT_S)
    return list(await asyncio.gather(*(_ask(each, service, timeout) for each in settings.sentinels)))


async def _ask(opener: RedisOpener, service: str, timeout: float) -> Sentinel:
    name = opener.target
    try:
        async with await Line.open(opener, timeout) as line:
            address, state, quorum = await line.ask(
                (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service.encode()),
                (b"SENTINEL", b"MASTER", service.encode()),
                (b"SENTINEL", b"CKQUORUM", service.encode()),
            )
    except ConnectFailed as error:
        return Sentinel(name, error.reason)
    except Failed as error:
        return Sentinel(name, str(error))
    if isinstance(address, ErrorReply):
        return Sentinel(name, str(address))
    if address is None:
        return Sentinel(name, f"it does not watch {service!r}")
    told = cast("Mapping[bytes, bytes]", {} if isinstance(state, ErrorReply) else state)
    numbers: dict[str, Any] = {
        field: int(told[theirs])
        for field, theirs in (
            ("others", b"num-other-sentinels"),
            ("replicas", b"num-slaves"),
            ("down_after_ms", b"down-after-milliseconds"),
        )
        if theirs in told
    }
    is_lacking = isinstance(quorum, ErrorReply) and str(quorum).startswith("NOQUORUM")
    host, port = cast("list[bytes]", address)
    primary = f"{host.decode()}:{port.decode()}"
    return Sentinel(name, "", primary, no_quorum=str(quorum) if is_lacking else "", **numbers)


def judge_sentinels(sentinels: list[Sentinel]) -> Iterator[Finding]:
    """What is good and what is bad about them."""
    answering = [sentinel for sentinel in sentinels if not sentinel.trouble]
    for sentinel in sentinels:
        if sentinel.trouble:
            says = f"{sentinel.name} says nothing: {sentinel.trouble}"
            yield Finding(Level.WARNING, "sentinel", says, "start it, or take it out of the URL")
    primaries = sorted({sentinel.primary for sentinel in answering})
    if len(primaries) > 1:
        says = f"they name different primaries: {', '.join(primaries)}"
        yield Finding(Level.PROBLEM, "sentinels", says, "see which of them are cut off from the others")
    else:
        says = f"{len(answering)} of {len(sentinels)} name {' '.join(primaries)}"
        yield Finding(Level.OK, "sentinels", says)
    known = max((1 + (sentinel.others or 0) for sentinel in answering), default=0)
    if known > len(sentinels):
        says = f"they know {known}, and the URL names {len(sentinels)}"
        yield Finding(Level.WARNING, "sentinels", says, "name all: others are not asked")
    yield from _judge_failover(answering)


def _judge_failover(answering: list[Sentinel]) -> Iterator[Finding]:
    lacking = [sentinel for sentinel in answering if sentinel.no_quorum]
    if lacking:
        says = f"{list_some([sentinel.name for sentinel in lacking])}: {lacking[0].no_quorum}"
        yield Finding(
            Level.PROBLEM, "failover", says, "start more of the sentinels: no primary is replaced"
        )
    elif 0 in {sentinel.replicas for sentinel in answering}:
        yield Finding(Level.PROBLEM, "failover", "no replica could take over", "add replicas")
    slowest = max((sentinel.down_after_ms or 0 for sentinel in answering), default=0)
    if slowest:
        is_odd = not _SHORT_DOWN_MS <= slowest <= _LONG_DOWN_MS
        says = f"a primary that is silent for {slowest / 1000:g} s is replaced"
        advice = "down-after-milliseconds: below a second busy machines fail over without need"
        level = Level.WARNING if is_odd else Level.OK
        yield Finding(level, "failover time", says, advice if is_odd else "")
