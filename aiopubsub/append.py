"""Appending to a topic's history: the script, what it is given, what it answers.

One call appends all messages of one topic that leave together. What a publisher retries is found by
its uid, so that it is stored once.

Lives here: the script, what is asked of it, the command and its answer. Must not live here: lines,
windows, deadlines. A publisher makes an `Append`, the outbox sends some in one command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any, NamedTuple, cast

from .dialogue import PUBLISH, SPUBLISH, Command, OutOfStep, Promise
from .errors import ErrorReply, PubSubError
from .topic import History

__all__ = [
    "CALL_BYTES",
    "CALL_ENTRIES",
    "LOAD",
    "LOADS",
    "SCRIPT",
    "SHA",
    "SHAS",
    "Append",
    "Entry",
    "Writes",
    "pack",
    "unpack",
]

CALL_ENTRIES = 256
"""Messages in one call: the server does nothing else for the 2 ms that so many take."""

CALL_BYTES = 1024 * 1024
"""Bytes after which a call takes no more messages."""

SCRIPT = rb"""
local stream, channel, size, ttl, since = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local call = redis.call

local function uid_of(entry)
  local fields = entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'uid' then return fields[i + 1] end
  end
end

local newest = call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
local epoch, offset, after
if newest then
  local text
  epoch, text = string.match(newest[1], '^(%d+)-(%d+)$')
  offset, after = tonumber(text), uid_of(newest)
  if not after then
    return redis.error_reply('ERR ' .. stream .. ' holds an entry that is no message')
  end
else
  local now = call('TIME')
  epoch, offset, after = now[1] .. string.format('%03d', math.floor(now[2] / 1000)), 0, '-'
end

local stored = {}
if since ~= '' and newest then
  local from, page = since
  repeat
    page = call('XRANGE', stream, from, '+', 'COUNT', 1000)
    for _, entry in ipairs(page) do
      stored[uid_of(entry) or ''] = entry[1]
      from = '(' .. entry[1]
    end
  until #page < 1000
end

local answers, n = {}, 0
for i = 5, #ARGV, 3 do
  local uid, headers, data = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local id, receivers = stored[uid], -1
  if not id then
    offset = offset + 1
    id = epoch .. '-' .. string.format('%.0f', offset)
    if headers == '{}' then
      call('XADD', stream, 'MAXLEN', '~', size, id, 'uid', uid, 'after', after, 'data', data)
    else
      call('XADD', stream, 'MAXLEN', '~', size, id,
           'uid', uid, 'after', after, 'headers', headers, 'data', data)
    end
    receivers = call('PUBLISH', channel,
      '\255\174ps1 ' .. id .. ' ' .. uid .. ' ' .. after .. ' ' .. headers .. '\n' .. data)
    after = uid
  end
  answers[n + 1], answers[n + 2] = id, receivers
  n = n + 2
end
if ttl == '' then call('PERSIST', stream) else call('PEXPIRE', stream, ttl) end
return answers
"""
"""Arguments: the channel; `size`; the time to live in ms, or nothing; for a retry the id after which
what is to be stored may stand, as XRANGE takes it, else nothing; then uid, headers and data of each
message. Answers with id and receivers of each; -1 receivers for what was stored already."""

_SCRIPTS = {PUBLISH: SCRIPT, SPUBLISH: SCRIPT.replace(b"'PUBLISH'", b"'SPUBLISH'")}

SHAS = {verb: sha1(script).hexdigest().encode() for verb, script in _SCRIPTS.items()}  # noqa: S324
"""The name that Redis gives the script, by how it publishes."""

LOADS: dict[bytes, Command] = {verb: (b"SCRIPT", b"LOAD", script) for verb, script in _SCRIPTS.items()}

SHA, LOAD = SHAS[PUBLISH], LOADS[PUBLISH]


_IS_READONLY = re.compile("^READONLY |: -READONLY ")  # Redis 6.2 says it of a script in the second way


class Entry(NamedTuple):
    """One message that is to be appended."""

    uid: bytes
    headers: bytes
    data: bytes


@dataclass(slots=True, eq=False)
class Append:
    """Messages of one topic that a caller waits for together.

    Attributes:
        promise: Gets `None`, whatever the results are.
        deadline: When the caller gives up, by the clock of `Outbox.expire`.
        channel: Of the topic.
        history: Of the topic.
        entries: The messages, in order.
        results: Id and receivers of each, once they are stored; -1 receivers if they had been before.
        error: Why there are no results.
        was_sent: Whether it has left once: it may be stored already.
        verb: How it is published, `PUBLISH` or `SPUBLISH`.
    """

    promise: Promise
    deadline: float
    channel: bytes
    history: History
    entries: list[Entry]
    results: list[tuple[bytes, int]] = field(default_factory=list[tuple[bytes, int]])
    error: PubSubError | None = None
    was_sent: bool = False
    verb: bytes = PUBLISH

    @property
    def size(self) -> int:
        """Messages in all."""
        return len(self.entries)

    @property
    def in_flight(self) -> int:
        """Messages without an answer, once it was sent."""
        return len(self.entries)

    @property
    def bytes(self) -> int:
        """What to send takes, about."""
        return sum(len(entry.data) + len(entry.headers) + 64 for entry in self.entries)

    def fail(self, error: PubSubError) -> None:
        """There will be no results."""
        self.error = error
        self.promise.set_result(None)

    def failures(self) -> dict[int, PubSubError]:
        """What went wrong, by the index of the message."""
        return {} if self.error is None else dict.fromkeys(range(len(self.entries)), self.error)


class Writes:
    """Whether a server takes them, by its answers.

    One that has become a replica is left, once: the primary may be elsewhere. If the next one takes none
    either, its answer is for whoever asked.
    """

    def __init__(self) -> None:
        self._was_refused = False  # the last time that something was to be written

    def check(self, reply: object) -> None:
        """Look at the answer to a script or a SET; answers to other commands do no harm.

        Raises:
            OutOfStep: The session is to end.
        """
        if isinstance(reply, ErrorReply):
            if not self._was_refused and _IS_READONLY.search(str(reply)):
                self._was_refused = True
                raise OutOfStep("the server has become a replica, which takes no writes")
        elif reply == b"OK" or isinstance(reply, list):
            self._was_refused = False


def pack(key: bytes, appends: Sequence[Append], known: bytes | None) -> Command:
    """The command that appends to one history; `known` is the last id known to be stored in it."""
    first = appends[0]
    ttl = first.history.ttl
    since = b""
    if any(append.was_sent for append in appends):
        since = b"-" if known is None else b"(" + known
    arguments = [
        *(b"EVALSHA", SHAS[first.verb], b"1", key, first.channel, b"%d" % first.history.size),
        *(b"" if ttl is None else b"%d" % max(1, round(ttl * 1000)), since),
    ]
    for append in appends:
        for entry in append.entries:
            arguments += entry
    return tuple(arguments)


def unpack(reply: Any, count: int) -> list[tuple[bytes, int]]:
    """The results of so many messages.

    Raises:
        OutOfStep: That cannot be the answer.
    """
    if not isinstance(reply, list):
        raise OutOfStep(f"the ids of {count} messages were due, not {type(reply).__name__}")
    items = cast("list[object]", reply)
    ids, receivers = items[::2], items[1::2]
    are_right = set(map(type, ids)) == {bytes} and set(map(type, receivers)) == {int}
    if len(items) != 2 * count or not are_right:
        raise OutOfStep(f"the ids of {count} messages were due, not this list of {len(items)}")
    return cast("list[tuple[bytes, int]]", list(zip(ids, receivers, strict=True)))
