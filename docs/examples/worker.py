"""A background worker that misses nothing, whatever becomes of it: a mailer.

    REDIS_URL=redis://localhost:6379 python worker.py

Messages that are published while it does not run wait for it in the topic's history, and where it stands
is kept on the server under its name. SIGTERM lets it finish the mail that it is at; after SIGKILL it
repeats that one at most.

One process runs under a name at a time. To share the work, give each process channels of its own
(`mails.0`, `mails.1`, …), or use a queue: Pub/Sub gives each message to everybody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from dataclasses import asdict, dataclass

import aiopubsub as ps

URL = os.environ.get("REDIS_URL", "redis://localhost:6379")

logger = logging.getLogger("worker")


@dataclass
class Mail:
    """What there is to send."""

    to: str
    text: str


def encode_mail(mail: Mail) -> bytes:
    return json.dumps(asdict(mail)).encode()


def decode_mail(payload: bytes) -> Mail:
    return Mail(**json.loads(payload))


MAILS = ps.Topic(
    "mails", encode=encode_mail, decode=decode_mail, history=ps.History(size=100_000, ttl=None)
)


async def main() -> None:
    """Work until told to stop."""
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    async with (
        ps.Subscriber(URL, MAILS, name="mailer", since="beginning") as mails,
        asyncio.TaskGroup() as tasks,
    ):
        at_a_mail = asyncio.Lock()
        working = tasks.create_task(work(mails, at_a_mail))
        logger.info("ready")
        await told_to_stop.wait()
        async with at_a_mail:  # it finishes what it is at, and begins no other
            working.cancel()
    logger.info("stopped")


async def work(mails: ps.Subscriber[Mail], at_a_mail: asyncio.Lock) -> None:
    """Send one mail after the other."""
    async for event in mails.events():
        match event:
            case ps.Message(data=mail):
                async with at_a_mail:
                    await send(mail)
                    await mails.done()
            case ps.Gap(missed=missed):
                logger.error("%s mails are lost: the history does not reach back to them", missed)
            case ps.Undecodable(error=error):
                logger.error("passed over what is no mail: %s", type(error).__name__)


async def send(mail: Mail) -> None:
    """Your work, in place of this sleep. If it fails, the process ends, and repeats it when it is back."""
    logger.info("sending to %s", mail.to)
    await asyncio.sleep(0.02)
    logger.info("sent to %s", mail.to)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
