"""`aiopubsub sub`: print what is published.

Lives here: what is printed and until when, the sentence for a gap, where to go on from. Must not live
here: options (`app`), connections (`runner`), the form of a line (`lines`). `app` calls; `chat` shares
the sentence.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from aiopubsub.checks import check_cursor_name
from aiopubsub.keys import mark_of
from aiopubsub.message import Gap, GapReason, Message
from aiopubsub.position import Position
from aiopubsub.since import BEGINNING
from aiopubsub.subscriber import Subscriber
from aiopubsub.topic import History, Pattern, Subscribable, Topic

from .lines import Form, form_of
from .runner import BadInput, Place, bad_input, tell, until_first
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
        count: How many messages are printed; `None` for all.
        is_verbose: Whether to print where a message comes from.
        form: `"text"`, `"json"` or `"hex"`.
        grep: Regular expressions; a message is printed if each is found in its text.
        headers: `NAME=VALUE`; a message is printed if it has all of them.
        seconds: After which to end; `None` for never.
        tells_rates: Whether to say each second how much came.
    """

    channels: Sequence[str]
    is_pattern: bool = False
    has_history: bool = False
    since: Sequence[str] = ()
    name: str | None = None
    count: int | None = None
    is_verbose: bool = False
    form: str = "text"
    grep: Sequence[str] = ()
    headers: Sequence[str] = ()
    seconds: float | None = None
    tells_rates: bool = False

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
        chosen = _Chosen(wanted)
    writer = Writer()
    form = form_of(wanted.form, has_place=wanted.is_verbose, has_position=wanted.follows_history)
    async with (
        place.client() as client,
        Subscriber(client, *topics, since=since, name=wanted.name) as subscriber,
    ):
        printing = _Printing(subscriber, wanted, writer, form, chosen)
        try:
            if is_terminal(sys.stderr):
                names = ", ".join(visible(name) for name in wanted.channels)
                typer.secho(f"subscribed to {names}; Ctrl-C ends", err=True, dim=True)
            beside: list[Coroutine[Any, Any, None]] = []
            if wanted.seconds is not None:
                beside.append(printing.end_after(wanted.seconds))
            if wanted.tells_rates:
                beside.append(printing.rate.tell())
            await until_first(printing.run(), *beside)
        finally:
            printing.stands.tell()


class _Printing:
    """One run of it, from the first message to the last.

    Attributes:
        rate: How much comes.
        stands: How far it is.
    """

    def __init__(
        self,
        subscriber: Subscriber[bytes],
        wanted: Wanted,
        writer: Writer,
        form: Form,
        chosen: _Chosen,
    ) -> None:
        self._subscriber = subscriber
        self._wanted = wanted
        self._writer = writer
        self._form = form
        self._chosen = chosen
        self._left = wanted.count
        self._is_over = False
        self.rate: _Rate = _Rate()
        self.stands: _Stands = _Stands(wanted, subscriber)

    async def run(self) -> None:
        """Print until as many are printed as are wanted, or it is ended."""
        subscriber, writer = self._subscriber, self._writer
        async for event in subscriber.events():
            if isinstance(event, Message):
                self._add(event)
            elif isinstance(event, Gap):
                self._report(event)
            is_last = self._left == 0 or self._is_over
            # a cursor counts a message as done when the next one is asked for: it must be out by then
            has_name = self._wanted.name is not None
            if is_last or writer.is_full or not subscriber.stats.buffered or has_name:
                await writer.flush()
                self.stands.note()
            if is_last:
                await subscriber.done()
                return

    async def end_after(self, seconds: float) -> None:
        """When the time is over, end it after what came until then; in a history at once, because much
        may be left in it."""
        await asyncio.sleep(seconds)
        self._is_over = self._wanted.follows_history
        await self._subscriber.drain()

    def _add(self, message: Message[bytes]) -> None:
        self.rate.count(len(message.payload))
        if message in self._chosen:
            self._writer.add(self._form.message(message))
            self._left = None if self._left is None else self._left - 1

    def _report(self, gap: Gap) -> None:
        if line := self._form.gap(gap):
            self._writer.add(line)
        else:
            tell(gap_sentence(gap))


class _Chosen:
    """Which messages are printed.

    Raises:
        BadInput: What they are chosen by cannot be read.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._headers: dict[str, str] = {}
        for text in wanted.headers:
            name, is_there, value = text.partition("=")
            if not is_there:
                raise BadInput(f"--header: {visible(text)} is not NAME=VALUE")
            self._headers[name] = value
        try:
            self._searches = [re.compile(text).search for text in wanted.grep]
        except re.error as error:
            raise BadInput(f"--grep: {error}") from error

    def __contains__(self, message: Message[bytes]) -> bool:
        if any(message.headers.get(name) != value for name, value in self._headers.items()):
            return False
        return not self._searches or all(search(message.text) for search in self._searches)


class _Rate:
    """How much comes: all of it, whether it is printed or not."""

    def __init__(self) -> None:
        self._messages = self._bytes = 0

    def count(self, size: int) -> None:
        """A message of so many bytes has come."""
        self._messages += 1
        self._bytes += size

    async def tell(self) -> None:
        """Say each second how much came in it."""
        while True:
            messages, size = self._messages, self._bytes
            await asyncio.sleep(1)
            tell(f"{self._messages - messages:,} messages/s, {self._bytes - size:,} bytes/s")


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
