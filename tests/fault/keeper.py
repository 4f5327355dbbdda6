"""A consumer with a durable cursor, in a process of its own: `python -m tests.fault.keeper URL CHANNEL`.

It writes each number on a line of its own when it is done with it, and then asks for the next one.
"""

from __future__ import annotations

import asyncio
import os
import sys

import aiopubsub as ps


async def keep(url: str, channel: str) -> None:
    """Until somebody kills it."""
    topic = ps.Topic(channel, history=ps.History(size=1_000_000))
    async with ps.Subscriber(url, topic, name="keeper", since="beginning", buffer=500) as sub:
        async for message in sub:
            os.write(1, message.data + b"\n")


if __name__ == "__main__":
    asyncio.run(keep(*sys.argv[1:]))
