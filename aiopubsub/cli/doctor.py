"""`aiopubsub doctor`: what is on the other side, whether all that is needed works, and what to change.

Lives here: what is looked at, in which order. Must not live here: asking (`doctor_facts`,
`doctor_access`, `doctor_probe`), judging (`doctor_findings`), columns (`doctor_view`). `app` calls.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from aiopubsub.client import Client, begin
from aiopubsub.deployment import SingleServer
from aiopubsub.errors import PubSubError
from aiopubsub.keys import slot_of
from aiopubsub.sentinel import SentinelSource
from aiopubsub.topic import Topic
from aiopubsub.wire import ClusterOpener, WireOpener

from .doctor_access import HISTORY, NAME, NEEDS, PUBLISHING, SUBSCRIBING, examine_access
from .doctor_facts import Deployment, survey, survey_cluster
from .doctor_findings import Finding, Level, judge
from .doctor_line import Line
from .doctor_probe import channels_of, probe
from .doctor_sentinels import judge_sentinels, survey_sentinels
from .doctor_view import show
from .runner import BadInput, Failed, Place, bad_input
from .streams import visible

__all__ = ["Options", "examine"]

_PREFIX = "aiopubsub:doctor:"


@dataclass(frozen=True)
class Options:
    """As they were typed.

    Attributes:
        needs: What has to work, names of `NEEDS` separated by commas; `None` where nobody said.
        channel: Whose permissions; `None` for one of the doctor's own.
        user: Whose permissions; `None` for those of the URL's user.
        as_json: Whether to print JSON.
    """

    needs: str | None
    channel: str | None
    user: str | None
    as_json: bool


async def examine(place: Place, options: Options) -> int:
    """Look at all of it and print the report; 1 if there is a problem, else 0.

    Raises:
        BadInput: The options or the place cannot be used, or standard output is closed.
        Failed: A server does not answer, or does not tell what another user may do.
        OutputClosed: The reader of standard output is gone.
        PubSubError: There is no server, or it refuses us.
    """
    needs = _needs(options.needs)
    if options.channel is not None:
        with bad_input():
            Topic(options.channel)
    async with place.server() as (url, _):
        with bad_input():
            client = Client(url, connect_timeout=place.connect_timeout)
        try:
            found, findings = await _examine(client, options, needs, place.connect_timeout)
        finally:
            await client.aclose()
    await show(found, findings, as_json=options.as_json)
    return int(any(finding.level is Level.PROBLEM for finding in findings))


async def _examine(
    client: Client, options: Options, needs: frozenset[str] | None, timeout: float
) -> tuple[Deployment, list[Finding]]:
    opener = client._opener
    if isinstance(opener, ClusterOpener):
        found = await survey_cluster(opener, timeout)
        findings: list[Finding] = []
    elif isinstance(opener, SentinelSource):
        sentinels = await survey_sentinels(opener.settings, timeout)
        findings = [*judge_sentinels(sentinels)]
        opener = _opener_of(client)
        found = await survey(opener, "a primary behind Sentinel", timeout)
    else:
        findings = []
        found = await survey(opener, "a single server", timeout)
    findings += list(judge(found, needs_history=None if needs is None else HISTORY in needs))
    channels = channels_of(found, _PREFIX + secrets.token_hex(6))
    if channels:
        channel = options.channel or next(iter(channels))
        async with await Line.open(_home_of(opener, found, channel), timeout) as line:
            findings += await examine_access(
                *(line, channel, needs),
                user=options.user,
                is_ours=options.channel is None,
                sharded=found.is_cluster,
            )
        findings += await _probe(client, channels, timeout, with_history=needs is None or HISTORY in needs)
    return found, findings


async def _probe(
    client: Client, channels: dict[str, str], timeout: float, *, with_history: bool
) -> list[Finding]:
    try:
        async with client:
            kinds = (False, True) if with_history else (False,)
            return [await probe(client, channels, timeout, with_history=kind) for kind in kinds]
    except PubSubError as error:
        return [Finding(Level.PROBLEM, "probe", f"not tried: {error}")]


def _opener_of(client: Client) -> WireOpener:
    """To the primary that a client finds through sentinels."""
    deployment = begin(client)
    if not isinstance(deployment, SingleServer):
        raise Failed("the doctor does not know this kind of deployment")
    return deployment._opener


def _home_of(opener: WireOpener | ClusterOpener, found: Deployment, channel: str) -> WireOpener:
    """To the server that has a channel; of a cluster to its primary."""
    if not isinstance(opener, ClusterOpener):
        return opener
    slot = slot_of(channel.encode())
    home = next((place.address for place in found.places if slot in place.slots), None)
    if home is None:
        raise Failed(f"nobody serves slot {slot}, which {visible(channel)} is in")
    return opener.at(home)


def _needs(text: str | None) -> frozenset[str] | None:
    """What was given, and what it takes.

    Raises:
        BadInput: A name is not known, or there is none.
    """
    if text is None:
        return None
    names = {name.strip() for name in text.split(",") if name.strip()}
    unknown = names.difference(NEEDS)
    if unknown or not names:
        known = ", ".join(NEEDS)
        raise BadInput(f"--need: {', '.join(sorted(unknown)) or 'nothing'} is not one of {known}")
    if NAME in names:
        names |= {SUBSCRIBING, HISTORY}
    if names == {HISTORY}:
        names |= {PUBLISHING, SUBSCRIBING}
    return frozenset(names)
