"""`aiopubsub pub`: publish what the command line or standard input gives.

Lives here: where the messages come from, and the receipt. Must not live here: options (`app`),
connections (`runner`). `app` calls.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from aiopubsub.errors import PubSubError
from aiopubsub.publisher import Publisher
from aiopubsub.topic import Topic

from .runner import Place, bad_input, tell
from .streams import LineReader, is_terminal

__all__ = ["publish"]


async def publish(place: Place, channel: str, messages: Sequence[str]) -> None:
    """Publish the messages, or the lines of standard input as they come, in order.

    Raises:
        BadInput: The channel or the place cannot be used.
        PubSubError: A message was not published; those before it were.
    """
    with bad_input():
        topic = Topic(channel)
    published = receivers = 0
    async with place.client() as client, Publisher(client) as publisher:
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
