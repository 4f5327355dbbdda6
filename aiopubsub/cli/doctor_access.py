"""What this user may do of what publishers and subscribers need.

The server is asked by `ACL DRYRUN` where that is allowed, else by beginning a transaction that is
discarded, else by doing it: on a channel and keys that nobody uses, so that it harms nothing.

Lives here: needs, and how they are tried. Must not live here: other findings. `doctor` calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from aiopubsub.append import LOADS, SHAS
from aiopubsub.dialogue import PUBLISH, SPUBLISH, Command
from aiopubsub.errors import ErrorReply
from aiopubsub.keys import cursor_key, history_key

from .doctor_findings import Finding, Level
from .doctor_line import Line
from .runner import Failed
from .streams import visible

__all__ = ["HISTORY", "NAME", "NEEDS", "PUBLISHING", "SUBSCRIBING", "examine_access"]

PUBLISHING, SUBSCRIBING, HISTORY, NAME = NEEDS = ("publish", "subscribe", "history", "name")

_WHAT = re.compile(r"access .*\b(key|channel)(?:s used as arguments)?$").search
_CURSOR = "aiopubsub-doctor"


class _Role(NamedTuple):
    """What somebody does, and the commands that are needed for it."""

    title: str
    needs: frozenset[str]
    commands: list[Command]


async def examine_access(
    line: Line,
    channel: str,
    wanted: frozenset[str] | None,
    *,
    user: str | None,
    is_ours: bool,
    sharded: bool,
) -> list[Finding]:
    """Try what is needed on a channel.

    Args:
        line: To the server that has it.
        channel: Its name.
        wanted: Of `NEEDS`, those that there must be; `None` where nobody said.
        user: Whose permissions; `None` those of the line.
        is_ours: Whether nobody else uses the channel, so that things may be done to it.
        sharded: Whether topics are, as in a cluster.

    Raises:
        Failed: The connection was lost, or the server does not tell what this other user may do.
    """
    findings: list[Finding] = []
    for role in _roles(channel.encode(), sharded=sharded):
        if wanted is not None and not role.needs <= wanted:
            continue
        refusals = await _try(line, role.commands, user, is_ours=is_ours)
        is_wanted = role.needs <= ({PUBLISHING, SUBSCRIBING} if wanted is None else wanted)
        findings.append(_finding(role, refusals, channel, is_wanted=is_wanted, is_ours=is_ours))
    return findings


def _roles(channel: bytes, *, sharded: bool) -> Iterator[_Role]:
    verb = SPUBLISH if sharded else PUBLISH
    letter = b"S" if sharded else b""
    history, cursor = history_key(channel), cursor_key(channel, _CURSOR)
    publishes: Command = (verb, channel, b"the doctor looks at permissions")
    listens: list[Command] = [
        (letter + b"SUBSCRIBE", channel),
        (letter + b"UNSUBSCRIBE", channel),
        (b"PING",),
    ]
    reads: list[Command] = [
        (b"XRANGE", history, b"-", b"+", b"COUNT", b"1"),
        (b"XREVRANGE", history, b"+", b"-", b"COUNT", b"1"),
    ]
    appends: list[Command] = [
        LOADS[verb],
        (b"EVALSHA", SHAS[verb][::-1], b"1", history),  # a script that nobody has
        (b"XADD", history, b"NOMKSTREAM", b"*", b"field", b"value"),
        (b"PEXPIRE", history, b"1"),
        (b"PERSIST", history),
        (b"TIME",),
    ]
    keeps: list[Command] = [(b"SET", cursor, b"-", b"PX", b"1"), (b"GET", cursor)]
    yield _Role("publish", frozenset({PUBLISHING}), [publishes, (b"PING",)])
    yield _Role("subscribe", frozenset({SUBSCRIBING}), listens)
    yield _Role(
        "publish with history", frozenset({PUBLISHING, HISTORY}), [publishes, *appends, *reads, (b"PING",)]
    )
    yield _Role("subscribe with history", frozenset({SUBSCRIBING, HISTORY}), [*listens, *reads])
    yield _Role(
        "subscribe with a name", frozenset({SUBSCRIBING, HISTORY, NAME}), [*listens, *reads, *keeps]
    )


async def _try(
    line: Line, commands: list[Command], user: str | None, *, is_ours: bool
) -> list[str | None] | None:
    """The server's refusal of each, `None` where it has none; `None` in all if it cannot be told."""
    (name,) = await line.ask((b"ACL", b"WHOAMI")) if user is None else [user.encode()]
    if isinstance(name, bytes):
        answers = await line.ask(*((b"ACL", b"DRYRUN", name, *command) for command in commands))
        error = next((answer for answer in answers if isinstance(answer, ErrorReply)), None)
        if error is None:
            return [None if answer == b"OK" else visible(answer) for answer in answers]
        if user is not None:
            raise Failed(f"--user: the server does not tell what {visible(user)} may do: {error}")
    if is_ours:
        return [_refusal(answer) for answer in await line.ask(*commands)]
    (begun,) = await line.ask((b"MULTI",))
    if isinstance(begun, ErrorReply):
        return None
    *answers, _ = await line.ask(*commands, (b"DISCARD",))
    return [_refusal(answer) for answer in answers]


def _refusal(answer: object) -> str | None:
    """Any other error comes after permissions were looked at."""
    is_one = isinstance(answer, ErrorReply) and str(answer).startswith("NOPERM")
    return str(answer) if is_one else None


def _finding(
    role: _Role, refusals: list[str | None] | None, channel: str, *, is_wanted: bool, is_ours: bool
) -> Finding:
    if refusals is None:
        says = "not checked: this user may run neither ACL DRYRUN nor MULTI, and the channel may be in use"
        return Finding(Level.UNKNOWN, role.title, says)
    lacking: dict[str, None] = {}  # in order, each once
    for command, refusal in zip(role.commands, refusals, strict=True):
        if refusal is not None:
            what = _WHAT(refusal)
            lacking[_name_of(command) if what is None else _grant(what[1], channel)] = None
    if not lacking:
        return Finding(Level.OK, role.title, "allowed")
    advice = f"ACL SETUSER … {' '.join(lacking)}"
    if is_ours and any(grant.startswith("&") for grant in lacking):
        advice += "; or name a channel that the user may use with --channel"
    level = Level.PROBLEM if is_wanted else Level.WARNING
    return Finding(level, role.title, f"not allowed, without {' '.join(lacking)}", advice)


def _name_of(command: Command) -> str:
    """What grants it: `+publish`, `+script|load`."""
    words = command[:2] if command[0] == b"SCRIPT" else command[:1]
    return "+" + b"|".join(words).decode().lower()


def _grant(what: str, channel: str) -> str:
    return f"&{visible(channel)}" if what == "channel" else "~aiopubsub:*"
