"""What a sentinel is asked, and whom of several sentinels to believe.

A sentinel is subscribed to its own events, and asked where the primary is: at the beginning, at every
event, and for a sign of life. The address is asked after the epoch of the configuration, so that an old
address never stands beside a new epoch if the two change between the questions.

Lives here: `Lookout`, one sentinel's side of a connection; `newest`. Must not live here: connections,
waiting, what follows from the answer. It is no router, whose fences need a PING with a token, which a
sentinel of Redis 6.2 does not take.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NamedTuple, cast

from .dialogue import Command, OutOfStep
from .errors import ErrorReply, PubSubError
from .slots import Address

__all__ = ["Lookout", "Sighting", "newest"]

# The second one is said by the sentinel that leads the failover, which switches last: when all replicas
# follow the new primary (https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/#pubsub-messages)
_EVENTS = (b"+switch-master", b"+failover-state-reconf-slaves")


# What divides the errors of SUBSCRIBE from what follows: nobody can be forbidden to say it
_FENCE: Command = (b"HELLO", b"3")


class Sighting(NamedTuple):
    """What a sentinel says of the primary.

    Attributes:
        epoch: Of its configuration: each failover has a higher one, and all sentinels come to agree on it.
        address: Where the primary is.
    """

    epoch: int
    address: Address


class _Asked(Enum):
    """What was asked and is not answered."""

    EVENTS = "events"
    PRIMARY = "primary"
    ADDRESS = "address"


class Lookout:
    """The decisions of one connection to a sentinel.

    Args:
        service: The name under which the sentinel watches the primary.
        push: The type of a RESP3 push.
        on_news: Called when the sentinel has answered, or does not answer any more.
        min_others: So many other sentinels it must know of to be believed.

    Attributes:
        sighting: What it says; `None` while it says nothing that can be believed.
        trouble: Why it says nothing, in its own words or about it; `None` if it does, or was not heard yet.
        deaf: Why it does not tell us of its events, or `None`. It is asked all the same.
    """

    is_stalled = False
    subject = None  # it is sent little, and does not fall behind

    def __init__(
        self,
        service: str,
        push: type[list[Any]],
        on_news: Callable[[], None],
        min_others: int = 0,
    ) -> None:
        self.sighting: Sighting | None = None
        self.trouble: str | None = None
        self.deaf: str | None = None
        self._service = service
        self._push = push
        self._on_news = on_news
        self._min_others = min_others
        self._to_say: list[Command] = []
        self._due: deque[_Asked] = deque()
        self._epoch = 0

    # -- what the session tells and asks -----------------------------------------------------------

    def begin(self) -> None:
        """A session begins: listen, and ask."""
        self.deaf = self.trouble = None
        self._to_say = [(b"SUBSCRIBE", *_EVENTS), _FENCE]
        self._due.append(_Asked.EVENTS)
        self.ping()

    def commands(self) -> list[Command]:
        """What to send now, in order."""
        commands, self._to_say = self._to_say, []
        return commands

    def ping(self, on_answer: object = None) -> None:
        """Ask for the primary, which is a sign of life, too."""
        name = self._service.encode()
        self._to_say += [
            (b"SENTINEL", b"MASTER", name),
            (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name),
        ]
        self._due += (_Asked.PRIMARY, _Asked.ADDRESS)

    def receive(self, backlog: deque[Any]) -> bool:
        """Deal with all that the sentinel said; so there is never more to do.

        Raises:
            OutOfStep: It was not what was due.
        """
        while backlog:
            item = backlog.popleft()
            if item.__class__ is not self._push:
                self._on_reply(item)
            elif item[0] == b"message":
                self.ping()  # of whatever service: that is rare, and to ask is cheap
        return False

    def expire(self, now: float) -> float:
        """Nothing is ever overdue: the link sees to it that the sentinel answers."""
        return math.inf

    def end(self, reason: str) -> None:
        """The session has ended."""
        self._to_say.clear()
        self._due.clear()
        self.sighting = self.trouble = None
        self._on_news()

    def close(self, error: PubSubError) -> None:
        """There will be no other session."""

    # -- inside ------------------------------------------------------------------------------------

    def _on_reply(self, reply: object) -> None:
        if not self._due:
            raise OutOfStep(f"a reply that nobody asked for: {type(reply).__name__}")
        asked = self._due[0]
        if asked is _Asked.EVENTS and isinstance(reply, ErrorReply):
            self.deaf = str(
                reply
            )  # of SUBSCRIBE, which else has no reply; that to the fence comes behind it
            return
        self._due.popleft()
        if asked is _Asked.EVENTS:
            if not isinstance(reply, dict) or b"proto" not in reply:
                raise OutOfStep("the answer to HELLO was due, and something else came")
        elif asked is _Asked.PRIMARY:
            self.trouble = self._note_primary(reply)
        else:
            self.sighting = self._sighting_of(reply)
            self._on_news()

    def _note_primary(self, reply: object) -> str | None:
        """Keep the epoch; what speaks against the sentinel."""
        if isinstance(reply, ErrorReply):
            return str(reply)
        try:
            told = cast("dict[bytes, bytes]", reply)
            self._epoch, others = int(told[b"config-epoch"]), int(told[b"num-other-sentinels"])
        except (TypeError, KeyError, ValueError):
            raise OutOfStep(f"a primary was due, not {type(reply).__name__}") from None
        if others < self._min_others:
            return f"it knows of {others} other sentinels only, and {self._min_others} are wanted"
        return None

    def _sighting_of(self, reply: object) -> Sighting | None:
        if reply is None:
            self.trouble = f"it watches no service {self._service!r}"
        elif isinstance(reply, ErrorReply):
            self.trouble = str(reply)
        if self.trouble is not None:
            return None
        try:
            host, port = cast("list[bytes]", reply)
            return Sighting(self._epoch, Address(host.decode(), int(port)))
        except (TypeError, ValueError, AttributeError):
            raise OutOfStep(f"an address was due, not {type(reply).__name__}") from None


def newest(said: Iterable[Sighting], believed: Sighting | None, sentinels: int) -> Sighting | None:
    """What to believe of what the sentinels say now; `None` if that is nothing.

    The highest epoch is the latest failover: a sentinel that is cut off from the others tells an older one.
    If all that is said is older than what was believed before, they were set up anew if more than half of
    them say so; else those that know better cannot be heard, and nothing is believed. Of addresses with the
    same epoch (names of one server, perhaps) the one that was believed before is kept.

    Args:
        said: By those that say something now.
        believed: Before.
        sentinels: How many there are.
    """
    found: Sighting | None = None
    count = 0
    for count, sighting in enumerate(said, 1):  # noqa: B007
        is_kept = believed is not None and sighting.address == believed.address
        if found is None or sighting.epoch > found.epoch or (sighting.epoch == found.epoch and is_kept):
            found = sighting
    if found is None or believed is None or found.epoch >= believed.epoch or 2 * count > sentinels:
        return found
    return None
