"""Following a topic's history: what to read, what to hand over, what to report.

The stream is the truth; a push saves a read. Every entry names the one in front of it, so a message
follows on a position exactly when its `after` is the position's uid. That needs no knowledge of
servers and holds through failover, restore and restart: a history that forked cannot pass for one that
went on.

    OFF -on-> READING -short page-> LIVE        LIVE -a push that does not follow-> READING
    READING, LIVE -no room-> FULL -room-> READING        any -off-> OFF

* LIVE: a push that follows is taken; one that was taken before is dropped; anything else: READING.
* READING: pages are read on the listening connection, from the position on, itself included, which
  shows whether it is still there. Pushes are ignored until a page comes back short: the server answers
  in order, so what was published before the read is in the page, and what comes after it is pushed
  after it.
* FULL: the mailbox has no room. Nothing is taken; when there is room again it is read.

What does not follow on the position in a page is a gap. *Trimmed*: the first entry is further on than
the next one; the offsets tell how many are missing. *Reset*: it is of another epoch, or there is none.
*Rolled back*: where the position's entry should be there is another one, or the history ends before it.
Then entries are read backwards until one is found that was taken before: the history forked there.

Lives here: decisions, one trail for each subscriber and topic. Must not live here: sockets, waiting,
who reads when. The router calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, cast

from .dialogue import Command
from .frame import NO_HEADERS, VERSION, are_uids, unpack_headers
from .keys import history_key, mark_of
from .mailbox import MESSAGE_OVERHEAD_BYTES, Mailbox
from .message import Gap, GapReason, KeptMessage, Message, Origin, position_at
from .position import Position
from .since import BEGINNING, Since
from .topic import Subscribable

__all__ = ["Stage", "Trail", "Unreadable"]

PAGE_BYTES = 1024 * 1024
"""Of one page, about: replies to a listener count against the limit for slow subscribers, which is
8 MB for a minute (`client-output-buffer-limit pubsub`)."""

LARGEST_PAGE = 1024
"""Entries in one page: to unpack so many takes about 3 ms, and more wake the garbage collector more."""

FIRST_PAGE = 16
"""Entries in the first page, whose sizes nobody knows."""

SMALLEST_PAGE = 2
"""Entries in a page of large messages: the position itself and the one after it."""

REMEMBERED = 2_500
"""Messages taken last that can still be recognized, twice as many at most: a history that forked further
back is reported without a number. Their uids are kept, 60 bytes each, which subscribers of one client
share; to keep hashes instead would take an eighth of that, but 0.15 µs more for each message."""

_FIELDS = [b"uid", b"after", b"data"]

_BEFORE_FIRST = b"-"  # the uid that the first message of a history names


class Unreadable(Exception):
    """What the stream holds was not written by this library, or not in a version that is known."""


class Stage(Enum):
    """Where a trail stands."""

    OFF = "off"
    READING = "reading"
    LIVE = "live"
    FULL = "full"


class _Ask(Enum):
    """What was asked for last."""

    NEWEST = "newest"  # to begin there
    PAGE = "page"
    BACK = "back"
    AUDIT = "audit"


class Trail:
    """One subscriber's way along one topic's history.

    Args:
        mailbox: Where what is taken is staged, and gaps are put.
        topic: The topic, which has a history.
        since: Where to begin.
        clock: Seconds since the epoch.
        on_stray: Told once, when there is a message that was published without history.

    Attributes:
        state: Where it stands.
        is_joined: Whether it was answered once: from then on nothing is lost.
        start: Where it began; `None` while that is not known: before the answer, and at the beginning.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        topic: Subscribable[object],
        since: Since,
        clock: Callable[[], float],
        on_stray: Callable[[], None] | None = None,
    ) -> None:
        self.mailbox = mailbox
        self.topic = topic
        self.state: Stage = Stage.OFF
        self.is_joined: bool = False
        self._key = history_key(topic.key)
        self._origin = Origin(topic.name, topic)
        self._clock = clock
        self._on_stray = on_stray
        self._heard_at = self._taken_at = clock()
        self._ask = _Ask.NEWEST if since is None else _Ask.PAGE
        self._is_anywhere = since == BEGINNING  # what comes first is the beginning, wherever it stands
        self._id: bytes | None = None  # of the position; None: before the first message
        self._uid = _BEFORE_FIRST
        # the uids taken last, without a hole; the last one is the position's
        self._recent = [_BEFORE_FIRST]
        self._is_whole = False  # they are all that were ever taken, and where that began
        self._count = self._asked_count = FIRST_PAGE
        self._back_from = 0  # offset
        self.start: Position | None = None
        if isinstance(since, Position):
            self.start = since
            if since.epoch:  # else there was no history yet
                self._move(since.id.encode(), since.uid.encode())

    @property
    def position(self) -> Position | None:
        """Of the last message that was taken, or where it begins; `None` before a first message."""
        return None if self._id is None else position_at(self._id, self._uid, self.topic.name)

    @property
    def wants_answer(self) -> bool:
        """Whether there is something to ask the server for."""
        return self.state is Stage.READING

    # -- what the router tells ---------------------------------------------------------------------

    def on(self) -> None:
        """The channel is subscribed: pushes come from here on. Read what there is."""
        self.state = Stage.READING
        if self._ask is not _Ask.NEWEST:
            self._ask = _Ask.PAGE

    def off(self) -> None:
        """The connection is gone."""
        if self.state is Stage.READING:  # perhaps the page was too large for the server to send
            self._count = max(SMALLEST_PAGE, self._count // 8)
        self.state = Stage.OFF

    def has_room(self) -> None:
        """The mailbox has room again."""
        if self.state is Stage.FULL:
            self.state = Stage.READING

    def push(self, messages: Sequence[Message[object]], uids: Sequence[bytes]) -> None:
        """Messages were pushed, in this order; the uids of the first that follow on each other."""
        if len(uids) == len(messages):
            if self.state is not Stage.LIVE:
                return
            kept = cast("Sequence[KeptMessage[object]]", messages)
            if kept[0].after == self._uid and kept[-1].is_sound:  # then so are those that lead to it
                self._take(kept, uids)
                return
        for message in messages:
            self._push_one(message)

    # -- what the router asks ----------------------------------------------------------------------

    def ask(self) -> list[Command]:
        """What to send to the server; `answer` gets the replies. Empty: there is no room for them."""
        if self.state is Stage.LIVE:
            self._ask = _Ask.AUDIT
        if self._ask in (_Ask.NEWEST, _Ask.AUDIT):
            return [self._ask_newest()]
        if self._ask is _Ask.BACK:
            epoch, _ = _split(self._id or b"0-0")
            end = b"%d-%d" % (epoch, self._back_from)
            return [(b"XREVRANGE", self._key, end, b"-", b"COUNT", b"%d" % self._count)]
        room = self.mailbox.room
        if not room:
            self._be_full()
            return []
        self._asked_count = min(self._count, room + 1)  # one is the position itself
        count = b"%d" % self._asked_count
        return [(b"XRANGE", self._key, self._id or b"-", b"+", b"COUNT", count), self._ask_newest()]

    def answer(self, replies: Sequence[Any]) -> None:
        """The replies to what was asked, if the connection is still the same.

        Raises:
            Unreadable: The stream holds something else than a history.
        """
        ask, self._ask = self._ask, _Ask.PAGE
        pages = [self._unpack(reply) for reply in replies]
        self.is_joined = True
        newest = pages[-1][0] if pages[-1] else None
        if ask is _Ask.NEWEST:
            if newest is not None:
                self._move(newest.id, newest.uid)
            self._is_whole = True
            self._taken_at = self._clock()
            self.start = self.position or Position(0, 0, mark_of(self.topic.key), _BEFORE_FIRST.decode())
            self.state = Stage.LIVE
        elif ask is _Ask.AUDIT:
            if newest is not None and (newest.id, newest.uid) != (self._id, self._uid):
                self.state = Stage.READING
        elif ask is _Ask.BACK:
            self._search_fork(pages[0])
        else:
            self._on_page(pages[0], newest)
        self._heard_at = self._clock()

    # -- pushes ------------------------------------------------------------------------------------

    def _push_one(self, message: Message[object]) -> None:
        if not isinstance(message, KeptMessage) or not message.is_sound:
            if self._on_stray is not None:
                self._on_stray()
                self._on_stray = None
            self.mailbox.staged.append(message)  # it has no place: delivered as it came
        elif self.state is not Stage.LIVE:
            pass  # one before it was not taken: both will be read
        elif message.after == self._uid:
            self._take([message], [message.uid])
        elif self._was_taken(message):
            pass  # pushed twice
        elif message.after == _BEFORE_FIRST and self._begins_anew(message):
            if not self._has_expired():
                self._report(GapReason.RESET, message, missed=None)
            self._move(b"%d-0" % _split(message.id)[0], _BEFORE_FIRST)
            self._take([message], [message.uid])
        else:
            self.state = Stage.READING

    def _begins_anew(self, message: KeptMessage[object]) -> bool:
        """Whether it is the first message of a later history."""
        return self._id is not None and _split(message.id)[0] > _split(self._id)[0]

    def _has_expired(self) -> bool:
        """Whether the topic was idle for so long that its history has just come to its end."""
        history = self.topic.history
        if history is None or history.ttl is None:
            return False
        return self._clock() - self._taken_at >= 0.9 * history.ttl  # clocks are not the same

    def _was_taken(self, message: KeptMessage[object]) -> bool:
        if self._id is None:
            return False
        epoch, offset = _split(message.id)
        return epoch == _split(self._id)[0] and self._is_known(offset, message.uid)

    # -- pages -------------------------------------------------------------------------------------

    def _on_page(self, page: list[KeptMessage[object]], newest: KeptMessage[object] | None) -> None:
        is_short = len(page) < self._asked_count
        if page:
            size = sum(len(message.payload) for message in page) // len(page) + MESSAGE_OVERHEAD_BYTES
            self._count = max(SMALLEST_PAGE, min(LARGEST_PAGE, PAGE_BYTES // size))
        if page and page[0].id == self._id:
            if page[0].uid != self._uid:
                self._look_back(_split(page[0].id)[1])
                return
            page = page[1:]
        elif not page and self._id is not None and not self._is_end(newest):
            return
        if self._walk(page) and is_short:
            self.state = Stage.LIVE

    def _is_end(self, newest: KeptMessage[object] | None) -> bool:
        """Nothing stands at the position or after it: whether that is all, after it was reported."""
        epoch, offset = _split(self._id or b"0-0")
        if newest is None:
            self._report(GapReason.RESET, None, missed=None)
            self._begin_anywhere()
            return True
        newest_epoch, newest_offset = _split(newest.id)
        if newest_epoch != epoch:
            self._report(GapReason.RESET, None, missed=None)
            self._begin_anywhere()
        elif newest_offset < offset:
            self._look_back(newest_offset)
        return False  # else it was appended after the page was read: read again

    def _walk(self, page: list[KeptMessage[object]]) -> bool:
        """Take a page, with gaps in front of what does not follow; whether there was room for all."""
        # lists compared, and looked through only if they differ: 0.3 µs less for each message
        places = [message.place.split(b" ", 3) for message in page]
        uids = [place[2] for place in places]
        afters = [place[3] for place in places]
        if afters == [self._uid, *uids[:-1]]:
            return self._take(page, uids)
        at = 0
        while at < len(page):
            end, uid = at, self._uid
            while end < len(page) and afters[end] == uid:
                uid = uids[end]
                end += 1
            if end == at:
                self._jump(page[at])
            elif not self._take(page[at:end], uids[at:end]):
                return False
            at = end
        return True

    def _jump(self, message: KeptMessage[object]) -> None:
        """Report what is missing in front of a message, and stand in front of it."""
        epoch, offset = _split(message.id)
        if self._id is None:
            if not self._is_anywhere:  # it was empty, so all that it has had since is missing
                self._report(GapReason.TRIMMED, message, missed=offset - 1)
        else:
            my_epoch, my_offset = _split(self._id)
            missed = offset - my_offset - 1
            if epoch != my_epoch:
                self._report(GapReason.RESET, message, missed=None)
            elif missed:
                self._report(GapReason.TRIMMED, message, missed=missed)
            else:  # it forked at the position or before it, where nothing is left to compare with
                self._report(GapReason.ROLLED_BACK, message, missed=0, withdrawn=None)
        self._move(b"%d-%d" % (epoch, offset - 1), message.after)

    # -- forks -------------------------------------------------------------------------------------

    def _look_back(self, offset: int) -> None:
        """Search for the fork, from this offset downwards."""
        self._ask = _Ask.BACK
        self._back_from = offset

    def _search_fork(self, page: list[KeptMessage[object]]) -> None:
        """A page that goes backwards, from `_back_from` on."""
        epoch, offset = _split(self._id or b"0-0")
        oldest = offset - len(self._recent) + 1  # that is remembered; what stands before it is not known
        lowest: KeptMessage[object] | None = None
        for message in page:
            its_epoch, its_offset = _split(message.id)
            if its_epoch != epoch:
                break
            if self._is_known(its_offset, message.uid):
                self._fork_at(message.id, message.uid, offset - its_offset)
                return
            if its_offset < oldest:
                if lowest is None:  # all that is remembered is gone: go on after what there is
                    self._lose_way(message.id, message.uid, None, is_all=True)
                    return
                break
            lowest = message
        if lowest is None:
            return  # the whole history was replaced while we looked: read again
        low = _split(lowest.id)[1] - 1  # what an entry names in front of it can be known, too
        if self._is_known(low, lowest.after):
            self._fork_at(b"%d-%d" % (epoch, low), lowest.after, offset - low)
        elif low < oldest or len(page) < self._count:
            self._lose_way(b"%d-%d" % (epoch, low), lowest.after, lowest, is_all=low < oldest)
        else:
            self._look_back(low)

    def _lose_way(
        self, name: bytes, uid: bytes, after: KeptMessage[object] | None, *, is_all: bool
    ) -> None:
        """Nothing tells where the history forked; go on from here, behind which all is new.

        Only if all that was ever taken has been looked at, and was not found, its number is withdrawn.
        """
        withdrawn = len(self._recent) - 1 if self._is_whole and is_all else None
        self._report(GapReason.ROLLED_BACK, after, missed=None, withdrawn=withdrawn)
        self._move(name, uid)

    def _fork_at(self, name: bytes, uid: bytes, withdrawn: int) -> None:
        recent, is_whole = self._recent[: len(self._recent) - withdrawn], self._is_whole
        stood = self.position
        self._move(name, uid)
        self._recent, self._is_whole = recent, is_whole
        self._report(GapReason.ROLLED_BACK, None, missed=0, withdrawn=withdrawn, stood=stood)

    # -- the position ------------------------------------------------------------------------------

    def _take(self, messages: Sequence[KeptMessage[object]], uids: Sequence[bytes]) -> bool:
        """Stage messages that follow, with these uids; whether there was room for all."""
        count = self.mailbox.stage(messages)
        if count:
            self._id, self._uid = messages[count - 1].id, uids[count - 1]
            self._is_anywhere = False
            self._heard_at = self._taken_at = self._clock()
            recent = self._recent
            recent.extend(uids if count == len(uids) else uids[:count])
            if len(recent) > 2 * REMEMBERED:
                del recent[:-REMEMBERED]
                self._is_whole = False
        if count < len(messages):
            self._be_full()
            return False
        return True

    def _be_full(self) -> None:
        self.state = Stage.FULL
        self.mailbox.wants_room = True

    def _move(self, name: bytes, uid: bytes) -> None:
        """Stand somewhere else; what was taken before is not on this way."""
        self._id, self._uid = name, uid
        self._is_anywhere = self._is_whole = False
        self._recent = [uid]

    def _begin_anywhere(self) -> None:
        self.start = self.position or self.start
        self._id, self._uid = None, _BEFORE_FIRST
        self._is_anywhere = True
        self._is_whole = False
        self._recent = [_BEFORE_FIRST]

    def _is_known(self, offset: int, uid: bytes) -> bool:
        """Whether what was taken at this offset had this uid."""
        index = len(self._recent) - 1 - (_split(self._id or b"0-0")[1] - offset)
        return 0 <= index < len(self._recent) and self._recent[index] == uid

    def _report(
        self,
        reason: GapReason,
        message: KeptMessage[object] | None,
        *,
        missed: int | None,
        withdrawn: int | None = 0,
        stood: Position | None = None,
    ) -> None:
        now = self._clock()
        gap = Gap(
            reason,
            (self.topic.name,),
            missed,
            datetime.fromtimestamp(self._heard_at, UTC),
            datetime.fromtimestamp(now, UTC),
            withdrawn,
            self.position,
            None if message is None else message.position,
            _stood=stood or self.position,
        )
        self.mailbox.put(gap)

    def _ask_newest(self) -> Command:
        return (b"XREVRANGE", self._key, b"+", b"-", b"COUNT", b"1")

    def _unpack(self, reply: Any) -> list[KeptMessage[object]]:
        """Messages of a reply to XRANGE: entries of an id and a list of fields and values."""
        origin = self._origin
        page: list[KeptMessage[object]] = []
        uids: list[bytes] = []
        try:
            for name, fields in reply:
                headers = NO_HEADERS
                if fields[::2] == _FIELDS:  # as the script writes it
                    _, uid, _, after, _, data = fields
                else:
                    told = dict(zip(fields[::2], fields[1::2], strict=True))
                    uid, after, data = told[b"uid"], told[b"after"], told[b"data"]
                    headers = unpack_headers(told.get(b"headers", b"{}")) or NO_HEADERS
                uids += uid, after
                page.append(
                    KeptMessage(data, data, origin, headers, b" ".join((VERSION, name, uid, after)))
                )
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise Unreadable(f"{type(error).__name__} in an entry of {self._key!r}") from error
        if not are_uids(uids):
            raise Unreadable(f"a uid that cannot be one in {self._key!r}")
        return page


def _split(name: bytes) -> tuple[int, int]:
    """Epoch and offset of an id."""
    epoch, _, offset = name.partition(b"-")
    return int(epoch), int(offset)
