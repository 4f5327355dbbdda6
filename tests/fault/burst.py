"""A subscriber in a process of its own, whose memory is measured: run by `test_overflow.py`.

It subscribes, says `ready`, and takes nothing until all was published: the consumer waits for a line of
input, or the event loop is blocked by reading it. Then it takes everything until an `end`, and prints its
books. Ends are numbered: with the one that it hears it knows how many messages were published before.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import aiopubsub as ps
from aiopubsub.options import OverflowName


def peak_bytes() -> int:
    """The most memory until now. `getrusage` would count what its parent had when it was forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def main(
    url: str, overflow: OverflowName, sleeper: str, buffer_bytes: int, heartbeat_s: float
) -> None:
    books = {"delivered": 0, "overflow": 0, "reconnected": 0, "slow": 0, "ends": 0}
    causes: list[str] = []
    async with (
        ps.Client(url, heartbeat=heartbeat_s) as client,
        ps.Subscriber(client, "burst", buffer=10**9, buffer_bytes=buffer_bytes, overflow=overflow) as sub,
    ):
        before = peak_bytes()
        print("ready", flush=True)
        if sleeper == "consumer":
            await asyncio.to_thread(sys.stdin.readline)
            if overflow != "block":
                await sub.unsubscribe("fence")  # all that was published until now is here
        else:
            sys.stdin.readline()  # blocks the event loop, which is the fault
        events = sub.events()
        try:
            async for event in events:
                if isinstance(event, ps.Gap):
                    books[event.reason.value] += event.missed or 1
                    causes.append(event.cause)
                elif isinstance(event, ps.Message):
                    if event.data.startswith(b"end "):
                        books["ends"] = int(event.data[4:])
                        break
                    books["delivered"] += 1
        except ps.SlowConsumer as error:
            books["slow"] = error.missed
        print(json.dumps(books | {"grown": peak_bytes() - before, "causes": causes}), flush=True)


_, url, overflow, sleeper, buffer_bytes, heartbeat_s = sys.argv
asyncio.run(main(url, overflow, sleeper, int(buffer_bytes), float(heartbeat_s)))  # type: ignore[arg-type]
