"""`aiopubsub sub`: print what is published.

Lives here: the form of a line, the sentence for a gap, where to go on from. Must not live here: options
(`app`), connections (`runner`). `app` calls; `chat` shares the sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import typer

from aiopubsub.checks import check_cursor_name
from aiopubsub.keys import mark_of
from aiopubsub.message import Gap, GapReason, Message
from aiopubsub.position import Position
from aiopubsub.since import BEGINNING
from aiopubsub.subscriber import Subscriber
from aiopubsub.topic import History, Pattern, Subscribable, Topic

from .runner import BadInput, Place, bad_input, tell
from .streams import Writer, is_terminal, visible

__all__ = ["Wanted", "gap_sentence", "subscribe"]


@dataclass(frozen=True)
class Wanted:
    """What to print, as it was typed.

    Attributes:
        channels: Their names, or patterns.
        is_pattern: Whether they are patterns.
        has_history: Whether to follow their histories; `since` and `name` say so too.
        since: Positions, each of one of the channels, and `"beginning"` for the others.
        name: Of the durable cursor, or `None`.
        count: How many messages; `None` for all.
        is_verbose: Whether to print where a message comes from.
    """

    channels: Sequence[str]
    is_pattern: bool = False
    has_history: bool = False
    since: Sequence[str] = ()
    name: str | None = None
    count: int | None = None
    is_verbose: bool = False

    @property
    def follows_history(self) -> bool:
        """Whether histories are followed."""
        return self.has_history or bool(self.since) or self.name is not None

    def topics(self) -> list[Subscribable[bytes]]:
        """What to subscribe to.

        Raises:
            BadInput: Patterns have no history.
            ValueError: A channel's name, or the cursor's, cannot be one.
        """
        if self.name is not None:
            check_cursor_name(self.name)
        if self.is_pattern and self.follows_history:
            raise BadInput("a pattern has no history; name the channels, without --pattern")
        if self.is_pattern:
            return [Pattern(name) for name in self.channels]
        history = History() if self.follows_history else None  # its size is the publishers' matter
        return [Topic(name, history=history) for name in self.channels]

    def starts(self) -> dict[str, str | None] | None:
        """Where to begin, by channel; `None` where that is now.

        Raises:
            BadInput: A position is not of one of the channels.
            ValueError: A position cannot be read.
        """
        if not self.since:
            return None
        by_mark = {mark_of(name.encode("utf-8", "surrogateescape")): name for name in self.channels}
        others: str | None = BEGINNING if BEGINNING in self.since else None
        starts: dict[str, str | None] = dict.fromkeys(self.channels, others)
        for text in self.since:
            if text != BEGINNING:
                channel = by_mark.get(Position.parse(text).mark)
                if channel is None:
                    names = " or ".join(visible(name) for name in self.channels)
                    raise BadInput(f"--since: {visible(text)} is not a position in {names}")
                starts[channel] = text
        return starts


async def subscribe(place: Place, wanted: Wanted) -> None:
    """Print messages until as many have come as are wanted, or for ever.

    Raises:
        BadInput: A channel, a position or the place cannot be used, or standard output is closed.
        OutputClosed: The reader of standard output is gone.
        PubSubError: The server refuses, or there is none.
    """
    with bad_input():
        topics, since = wanted.topics(), wanted.starts()
    writer = Writer()
    write_line = _form(wanted)
    async with (
        place.client() as client,
        Subscriber(client, *topics, since=since, name=wanted.name) as subscriber,
    ):
        stands = _Stands(wanted, subscriber)
        try:
            if is_terminal(sys.stderr):
                names = ", ".join(visible(name) for name in wanted.channels)
                typer.secho(f"subscribed to {names}; Ctrl-C ends", err=True, dim=True)
            await _print(subscriber, wanted, writer, write_line, stands)
        finally:
            stands.tell()


async def _print(
    subscriber: Subscriber[bytes],
    wanted: Wanted,
    writer: Writer,
    write_line: Callable[[Message[bytes]], bytes],
    stands: _Stands,
) -> None:
    left = wanted.count
    async for event in subscriber.events():
        if isinstance(event, Message):
            writer.add(write_line(event))
            left = None if left is None else left - 1
        elif isinstance(event, Gap):
            tell(gap_sentence(event))
        # a cursor counts a message as done when the next one is asked for: it must be out by then
        if left == 0 or writer.is_full or not subscriber.stats.buffered or wanted.name is not None:
            await writer.flush()
            stands.note()
        if left == 0:
            await subscriber.done()
            return


class _Stands:
    """Where to go on from: what was written out, not what was handed over."""

    def __init__(self, wanted: Wanted, subscriber: Subscriber[bytes]) -> None:
        self._is_wanted = wanted.follows_history and wanted.name is None and is_terminal(sys.stderr)
        self._channels = wanted.channels
        self._subscriber = subscriber
        self._positions: dict[str, Position] = {}
        self.note()

    def note(self) -> None:
        """All that was handed over is written."""
        if self._is_wanted:
            self._positions = self._subscriber.positions

    def tell(self) -> None:
        """Tell the person how to go on from here."""
        if self._is_wanted:
            starts = [str(position) for position in self._positions.values()]
            if len(starts) < len(set(self._channels)):
                starts.append(BEGINNING)  # nothing was ever kept of the others
            options = " ".join(f"--since {start}" for start in starts)
            typer.secho(f"go on with {options}", err=True, dim=True)


_REASONS = {
    GapReason.MOVED: "the channel went to another node of the cluster",
    GapReason.TRIMMED: "the history does not reach back so far",
    GapReason.RESET: "the history that was followed is gone, here begins what is kept now",
    GapReason.ROLLED_BACK: "the server has forgotten messages that were printed here",
    GapReason.OVERFLOW: "they came faster than they were printed",
}


def gap_sentence(gap: Gap) -> str:
    """What a person is told of messages that are missing."""
    where = ", ".join(visible(name) for name in gap.channels[:3]) + (", …" if len(gap.channels) > 3 else "")
    if gap.missed is None:
        many = "messages may be missing"
    elif gap.missed == 0:
        many = "no message is missing"
    else:
        many = f"{gap.missed} message{' is' if gap.missed == 1 else 's are'} missing"
    return f"{many} on {where}: {_reason(gap)}"


def _reason(gap: Gap) -> str:
    if gap.reason is GapReason.RECONNECTED:
        seconds = (gap.ended - gap.started).total_seconds()
        return f"the connection was lost for {seconds:.1f} s ({visible(gap.cause)})"
    if gap.reason is GapReason.ROLLED_BACK and gap.withdrawn is not None:
        last = "message" if gap.withdrawn == 1 else f"{gap.withdrawn} messages"
        return f"the server has forgotten the last {last} printed here"
    return _REASONS[gap.reason]


def _form(wanted: Wanted) -> Callable[[Message[bytes]], bytes]:
    """How a message becomes a line: its bytes as they are, but harmless where a person looks."""

    def place_of(message: Message[bytes], channel: str) -> str:
        if not wanted.is_verbose:
            return ""
        return f"{channel}\t{message.position or '-'}\t" if wanted.follows_history else f"{channel}\t"

    def raw(message: Message[bytes]) -> bytes:
        return (
            place_of(message, message.channel).encode("utf-8", "surrogateescape") + message.payload + b"\n"
        )

    def shown(message: Message[bytes]) -> bytes:
        return f"{place_of(message, visible(message.channel))}{visible(message.payload)}\n".encode()

    return shown if is_terminal(sys.stdout) else raw
