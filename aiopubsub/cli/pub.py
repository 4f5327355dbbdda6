"""`aiopubsub pub`: publish what the command line or standard input gives.

Lives here: where the messages come from, and the receipt. Must not live here: options (`app`),
connections (`runner`). `app` calls.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import typer

from aiopubsub.errors import PubSubError
from aiopubsub.publisher import Publisher
from aiopubsub.topic import History, Topic

from .asking import count_kept
from .runner import BadInput, Place, bad_input, tell
from .streams import LineReader, is_terminal

__all__ = ["Keeping", "publish"]


class Keeping(NamedTuple):
    """How much is kept, as it was typed; `None` where it was not."""

    is_wanted: bool = False
    size: int | None = None
    ttl: float | None = None

    def history(self, kept: int = 0) -> History | None:
        """The same, where so many messages are kept already: without a size none of them is thrown away.

        Raises:
            BadInput: A number is given without `--history`.
            ValueError: A number is out of range.
        """
        if not self.is_wanted:
            if self.size is not None or self.ttl is not None:
                raise BadInput("--size and --ttl say how much of a history is kept; add --history")
            return None
        usual = History()
        size = max(usual.size, kept) if self.size is None else self.size
        return History(size, usual.ttl if self.ttl is None else None if self.ttl == math.inf else self.ttl)


async def publish(place: Place, channel: str, messages: Sequence[str], keeping: Keeping) -> None:
    """Publish the messages, or the lines of standard input as they come, in order.

    Raises:
        BadInput: The channel or the place cannot be used.
        PubSubError: A message was not published; those before it were.
    """
    with bad_input():
        topic = Topic(channel, history=keeping.history())
    published = receivers = 0
    async with place.client() as client, Publisher(client) as publisher:
        if keeping.is_wanted and keeping.size is None:
            topic = Topic(channel, history=keeping.history(await count_kept(client, topic.key)))
        reader = None if messages else LineReader()
        # the arguments' own bytes, UTF-8 or not
        batch = [os.fsencode(message) for message in messages] if reader is None else await reader.read()
        while batch:
            try:
                receivers = (await publisher.publish_many(topic, batch))[-1].receivers
            except PubSubError:
                if published:
                    tell(f"{published} messages were published before one failed")
                raise
            published += len(batch)
            batch = [] if reader is None else await reader.read()
    if is_terminal(sys.stderr):
        receipt = f"{_count(published, 'message')} published, {_count(receivers, 'receiver')}"
        typer.secho(receipt, err=True, dim=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
