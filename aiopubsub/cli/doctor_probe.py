"""Messages that are published and have to come back, through the library itself.

Lives here: publishing, waiting, leaving nothing behind. Must not live here: what else is looked at.
`doctor` calls.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import anyio

from aiopubsub.client import Client
from aiopubsub.errors import PublishRefused, PubSubError, SubscribeRefused
from aiopubsub.keys import history_key, slot_of
from aiopubsub.publisher import Publisher
from aiopubsub.subscriber import Subscriber
from aiopubsub.topic import History, Topic

from .asking import ask
from .doctor_facts import Deployment
from .doctor_findings import Finding, Level

__all__ = ["channels_of", "probe"]

_IS_FORBIDDEN = re.compile(r"NOPERM|no permissions|ACL failure", re.IGNORECASE).search
_HISTORY = History(size=1, ttl=60.0)  # seconds that it lives if we are killed in the middle


def channels_of(found: Deployment, name: str) -> dict[str, str]:
    """A channel for each server that can be reached: channel to server; the name itself, or one like it."""
    if not found.is_cluster:
        return {name: found.servers[0].name}
    channels: dict[str, str] = {}
    for place in found.places:
        if place.primary is None and place.facts is not None and place.slots:
            channels[next(_names_in(name, place.slots))] = place.facts.name
    return channels


async def probe(client: Client, channels: dict[str, str], timeout: float, *, with_history: bool) -> Finding:
    """Publish to each channel, wait for what comes, and let nothing stay behind.

    Args:
        client: Not open.
        channels: Each with the server that has it.
        timeout: Seconds that each message may take.
        with_history: Whether the server keeps the messages meanwhile.
    """
    subject = "probe with history" if with_history else "probe"
    took: dict[str, float] = {}
    for channel, server in channels.items():
        try:
            with anyio.fail_after(timeout):
                took[server] = await _round(client, channel, with_history=with_history)
        except TimeoutError:
            says = f"a message to {server} did not come back within {timeout:g} s"
            return Finding(Level.PROBLEM, subject, says)
        except (PublishRefused, SubscribeRefused) as error:
            if _IS_FORBIDDEN(str(error)):
                return Finding(Level.UNKNOWN, subject, f"not tried, this user may not: {error}")
            return Finding(Level.PROBLEM, subject, f"{server}: {error}")
        except PubSubError as error:
            return Finding(Level.PROBLEM, subject, f"a message to {server} did not come back: {error}")
    slowest = max(took, key=lambda server: took[server])
    of_whom = f"; {slowest} took longest" if len(took) > 1 else ""
    many = f"{len(took)} messages, one to each primary," if len(took) > 1 else "a message"
    return Finding(Level.OK, subject, f"{many} came back within {1000 * took[slowest]:.2f} ms{of_whom}")


async def _round(client: Client, channel: str, *, with_history: bool) -> float:
    """One message; the seconds from publishing to having it."""
    history = _HISTORY if with_history else None
    topic = Topic(channel, history=history)
    async with Publisher(client) as pub, Subscriber(client, topic) as sub:
        try:
            await pub.publish(topic, b"-")
            await anext(sub)  # the first one opens connections and loads the script
            before = time.perf_counter()
            await pub.publish(topic, b"-")
            await anext(sub)
            return time.perf_counter() - before
        finally:
            if with_history:  # not DEL, which publishers need not be allowed
                await ask(client, (b"PEXPIRE", history_key(topic.key), b"1"))


def _names_in(name: str, slots: set[int]) -> Iterator[str]:
    """The name, or the first with a number behind it whose slot is one of these."""
    if slot_of(name.encode()) in slots:
        yield name
    number = 0
    while True:
        number += 1
        if slot_of(f"{name}:{number}".encode()) in slots:
            yield f"{name}:{number}"
