"""Commands that only a person wants answered: they look at what the server keeps.

Lives here: asking. Must not live here: what the answers mean (`history`). The commands call.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiopubsub.client import Client, deployment_of
from aiopubsub.dialogue import Command
from aiopubsub.errors import Closed, NotSent, Unconfirmed
from aiopubsub.keys import history_key

from .runner import Failed

__all__ = ["ask", "count_kept"]

_IN_FLIGHT = 1000
_TIMEOUT_S = 30.0


async def ask(client: Client, *commands: Command) -> list[Any]:
    """The answers to some commands, sent together; an `ErrorReply` is the answer where one was refused.

    Raises:
        Failed: There was no answer.
        PubSubError: There will be no connection.
    """
    link = deployment_of(client).commanding()
    line = link.dialogue.open_line(_IN_FLIGHT)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _TIMEOUT_S
    answers: list[asyncio.Future[Any]] = [loop.create_future() for _ in commands]
    try:
        for answer, command in zip(answers, commands, strict=True):
            line.add((answer, deadline, command, line))
        link.kick(deadline)
        return list(await asyncio.gather(*answers))
    except (NotSent, Unconfirmed) as error:
        raise Failed(f"no answer from the server: {error.reason}") from error
    finally:
        link.dialogue.close_line(line, Closed("Client"))


async def count_kept(client: Client, channel: bytes) -> int:
    """How many messages the server keeps of a channel; 0 where it does not tell."""
    (length,) = await ask(client, (b"XLEN", history_key(channel)))
    return length if isinstance(length, int) else 0
