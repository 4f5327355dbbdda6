"""`aiopubsub sub`: print what is published.

Lives here: the form of a line, and the sentence for a gap. Must not live here: options (`app`),
connections (`runner`). `app` calls; `chat` shares the sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import typer

from aiopubsub.message import Gap, GapReason, Message
from aiopubsub.subscriber import Subscriber
from aiopubsub.topic import Pattern, Subscribable, Topic

from .runner import Place, bad_input, tell
from .streams import Writer, is_terminal, visible

__all__ = ["gap_sentence", "subscribe"]


async def subscribe(
    place: Place, channels: Sequence[str], *, is_pattern: bool, count: int | None, with_channel: bool
) -> None:
    """Print messages until `count` have come, or for ever.

    Raises:
        BadInput: A channel or the place cannot be used, or standard output is closed.
        OutputClosed: The reader of standard output is gone.
        PubSubError: The server refuses, or there is none.
    """
    with bad_input():
        topics = [_topic(name, is_pattern) for name in channels]
    writer = Writer()
    write_line = _form(with_channel)
    async with place.client() as client, Subscriber(client, *topics) as subscriber:
        if is_terminal(sys.stderr):
            names = ", ".join(visible(name) for name in channels)
            typer.secho(f"subscribed to {names}; Ctrl-C ends", err=True, dim=True)
        left = count
        async for event in subscriber.events():
            if isinstance(event, Message):
                writer.add(write_line(event))
                left = None if left is None else left - 1
            elif isinstance(event, Gap):
                tell(gap_sentence(event))
            if left == 0:
                break
            if writer.is_full or not subscriber.stats.buffered:
                await writer.flush()
        await writer.flush()


def gap_sentence(gap: Gap) -> str:
    """What a person is told of messages that are missing."""
    where = ", ".join(visible(name) for name in gap.channels[:3]) + (", …" if len(gap.channels) > 3 else "")
    if gap.missed is None:
        many = "messages may be missing"
    else:
        many = f"{gap.missed} message{' is' if gap.missed == 1 else 's are'} missing"
    if gap.reason is GapReason.RECONNECTED:
        seconds = (gap.ended - gap.started).total_seconds()
        return f"{many} on {where}: the connection was lost for {seconds:.1f} s ({visible(gap.cause)})"
    return f"{many} on {where}: they came faster than they were printed"


def _topic(name: str, is_pattern: bool) -> Subscribable[bytes]:
    return Pattern(name) if is_pattern else Topic(name)


def _form(with_channel: bool) -> Callable[[Message[bytes]], bytes]:
    """How a message becomes a line: its bytes as they are, but harmless where a person looks."""

    def raw(message: Message[bytes]) -> bytes:
        if not with_channel:
            return message.payload + b"\n"
        return message.channel.encode("utf-8", "surrogateescape") + b"\t" + message.payload + b"\n"

    def shown(message: Message[bytes]) -> bytes:
        channel = f"{visible(message.channel)}\t" if with_channel else ""
        return f"{channel}{visible(message.payload)}\n".encode()

    return shown if is_terminal(sys.stdout) else raw
