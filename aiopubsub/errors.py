"""The one exception tree.

Lives here: every error that leaves the library, and `ErrorReply`, the server's own error as it came
off the wire. Must not live here: decisions about when to raise. Anybody may import this file.

Each error keeps its fields (`error.channel`, `error.reason`, …) and makes its message from them, with
a word on what to do. No message ever holds a password or a payload.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .message import Gap

__all__ = [
    "Closed",
    "ConnectFailed",
    "CursorFailed",
    "EncodeFailed",
    "GapError",
    "MissingExtra",
    "NotSent",
    "PubSubError",
    "PublishRefused",
    "SlowConsumer",
    "SubscribeRefused",
    "Unconfirmed",
]


def without_arguments(words: str) -> str:
    """What a server says, without what it repeats of an unknown command: a password, a payload."""
    return words.partition(", with args beginning with")[0]


class ErrorReply(Exception):
    """An error reply of the server. Never leaves the library as such."""

    def __init__(self, words: str) -> None:
        super().__init__(without_arguments(words))


class PubSubError(Exception):
    """What all errors of this library have in common."""


class ConnectFailed(PubSubError):
    """No connection could be opened.

    Attributes:
        target: Where to: host and port, a socket's path or `memory://`. Never credentials.
        reason: What the server or the system said, in its own words.
        permanent: Whether trying again is pointless (wrong password, unknown database, no RESP3).
    """

    def __init__(self, target: str, reason: str, permanent: bool = False) -> None:
        super().__init__(target, reason, permanent)
        self.target = target
        self.reason = reason
        self.permanent = permanent

    def __str__(self) -> str:
        advice = (
            "the server answered and refused; mend the settings, trying again will not help"
            if self.permanent
            else "check that the server is running and can be reached from here"
        )
        return f"cannot connect to {self.target}: {self.reason} ({advice})"


class Closed(PubSubError):
    """The object was used after it was closed, or before it was opened.

    Attributes:
        what: The class of the object.
        opened: Whether it had been open before.
    """

    def __init__(self, what: str, opened: bool = True) -> None:
        super().__init__(what, opened)
        self.what = what
        self.opened = opened

    def __str__(self) -> str:
        if self.opened:
            return f"this {self.what} is closed; make a new one"
        return f"this {self.what} is not open; enter it with `async with` first"


class SubscribeRefused(PubSubError):
    """The server refused a subscription. Other channels are not affected.

    Attributes:
        refused: The server's reason for each channel or pattern that it refused.
    """

    def __init__(self, refused: dict[str, str]) -> None:
        super().__init__(refused)
        self.refused = refused

    def __str__(self) -> str:
        what = "; ".join(f"{name!r}: {reason}" for name, reason in self.refused.items())
        return f"the server refused to subscribe to {what} (grant the user these channels)"


class PublishRefused(PubSubError):
    """The server refused a publish; the message was not published.

    Attributes:
        channel: Where the message was to go.
        reason: The server's own words.
    """

    def __init__(self, channel: str, reason: str) -> None:
        super().__init__(channel, reason)
        self.channel = channel
        self.reason = reason

    def __str__(self) -> str:
        return f"the server refused to publish to {self.channel!r}: {self.reason}"


class NotSent(PubSubError):
    """The message never left this process, so it is safe to publish it again.

    Attributes:
        channel: Where the message was to go.
        reason: What it had been waiting for.
    """

    def __init__(self, channel: str, reason: str) -> None:
        super().__init__(channel, reason)
        self.channel = channel
        self.reason = reason

    def __str__(self) -> str:
        return f"not sent to {self.channel!r}: {self.reason} (nothing left, safe to publish again)"


class Unconfirmed(PubSubError):
    """The message left this process, but the reply never came: it was published once or not at all.

    Attributes:
        channel: Where the message was to go.
        reason: Why no reply will come.
    """

    def __init__(self, channel: str, reason: str) -> None:
        super().__init__(channel, reason)
        self.channel = channel
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"unconfirmed on {self.channel!r}: {self.reason} "
            "(published once or not at all; publishing again may double it)"
        )


class SlowConsumer(PubSubError):
    """The buffer of a subscriber with `overflow="fail"` was full; the subscriber has ended.

    Attributes:
        missed: Messages that came after the buffer was full, up to the moment this was raised.
        buffer: The bound in messages.
        buffer_bytes: The bound in bytes.
    """

    def __init__(self, missed: int, buffer: int, buffer_bytes: int) -> None:
        super().__init__(missed, buffer, buffer_bytes)
        self.missed = missed
        self.buffer = buffer
        self.buffer_bytes = buffer_bytes

    def __str__(self) -> str:
        return (
            f"the consumer was too slow: {self.missed} messages came after the buffer "
            f"({self.buffer} messages, {self.buffer_bytes} bytes) was full "
            "(consume faster, buffer more, or choose another overflow policy)"
        )


class CursorFailed(PubSubError):
    """The position of a named subscriber could not be kept on the server, or not be read.

    Attributes:
        name: The cursor's name.
        channel: Of the topic.
        reason: The server's own words, or what was found instead of a position.
    """

    def __init__(self, name: str, channel: str, reason: str) -> None:
        super().__init__(name, channel, reason)
        self.name = name
        self.channel = channel
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the cursor {self.name!r} in {self.channel!r} failed: {self.reason} "
            "(the user needs GET and SET on its key; a message may be repeated after a restart)"
        )


class GapError(PubSubError):
    """Messages are missing here, raised where `on_gap="raise"`. Iteration can go on after it.

    Attributes:
        gap: What is known about the missing messages.
    """

    def __init__(self, gap: Gap) -> None:
        super().__init__(gap)
        self.gap = gap

    def __str__(self) -> str:
        missed = "an unknown number of" if self.gap.missed is None else str(self.gap.missed)
        where = ", ".join(map(repr, self.gap.channels[:3])) + (", …" if len(self.gap.channels) > 3 else "")
        cause = f", {self.gap.cause}" if self.gap.cause else ""
        return (
            f"{missed} messages missing on {where}: {self.gap.reason.value}{cause} "
            "(fetch the current state again, then go on iterating)"
        )


class EncodeFailed(PubSubError):
    """`Topic.encode` raised or returned something that is not bytes. Nothing was sent.

    Attributes:
        channel: Where the message was to go.
        reason: The type of the failure. The failure itself is the `__cause__`.
    """

    def __init__(self, channel: str, reason: str) -> None:
        super().__init__(channel, reason)
        self.channel = channel
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot encode a message for {self.channel!r}: {self.reason}"


class MissingExtra(PubSubError, ImportError):
    """A feature needs a package that an extra of this distribution brings.

    Attributes:
        feature: What was asked for.
        extra: The name of the extra.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(feature, extra)
        self.feature = feature
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.feature} needs an extra: pip install 'aiopubsub-redis[{self.extra}]'"
