"""`aiopubsub chat`: the lines that one types go to everybody on the channel.

Lives here: how a line travels, and the two faces of a chat: a terminal, where what comes appears above
the line being typed, and pipes. Must not live here: options (`app`), connections (`runner`). `app` calls.

A line travels as a JSON object, so that any client can read and write it: `name`, `text`, `kind`
("said", "joined" or "left") and `from`, which tells one's own lines from those of others with the same
name. Whatever else is published on the channel is shown as it is, as said by nobody in particular.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import secrets
import sys
import zlib
from dataclasses import dataclass
from typing import Any, cast

import anyio
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app_or_none, get_app_session
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.renderer import print_formatted_text
from prompt_toolkit.styles import default_ui_style

from aiopubsub.errors import PubSubError
from aiopubsub.message import Gap, Message
from aiopubsub.publisher import Publisher
from aiopubsub.subscriber import Subscriber
from aiopubsub.topic import Topic

from .runner import BadInput, Place, bad_input, until_first
from .streams import LineReader, Writer, is_terminal, visible
from .sub import gap_sentence

__all__ = ["chat"]

_NOBODY = "anonymous"  # who says what is published without a name, for example from redis-cli
_LONGEST_NAME = 32
_LEAVE_TIMEOUT_S = 1.0  # for the last words; the server may be gone
_DRAIN_TIMEOUT_S = 5.0  # for what the others said before our input ended
_LINES_AT_ONCE = 200  # shown in one go, so that a flood leaves time to type
_SENDING = 100  # lines that may be under way before the next is asked for
_COLORS = ("ansicyan", "ansigreen", "ansiyellow", "ansimagenta", "ansiblue", "ansired")


@dataclass(frozen=True)
class Line:
    """One line of a chat: who, what kind (`"said"`, `"joined"`, `"left"`), and what was said."""

    sender: str
    name: str
    kind: str
    text: str


async def chat(place: Place, channel: str, name: str | None) -> None:
    """Talk until the input ends.

    Raises:
        BadInput: The channel, the name or the place cannot be used.
        OutputClosed: The reader of standard output is gone.
        PubSubError: The server refuses, or there is none.
    """
    with bad_input():
        topic = Topic(channel, encode=encode, decode=decode)
    me = _check_name(_login_name() if name is None else name)
    async with (
        place.client() as client,
        Subscriber(client, topic) as subscriber,
        Publisher(client) as publisher,
    ):
        talk = _Talk(topic, subscriber, publisher, me)
        face = _Terminal(talk) if is_terminal(sys.stdin) and is_terminal(sys.stdout) else _Pipes(talk)
        try:
            await talk.say("", "joined")  # cancelled before its receipt, it may have been heard
            await face.run()
        finally:
            await talk.leave()


def encode(line: Line) -> bytes:
    """A line as it travels."""
    fields = {"name": line.name, "text": line.text, "kind": line.kind, "from": line.sender}
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")


def decode(payload: bytes) -> Line:
    """A line as it came; anything that is not one is said by nobody in particular. Never raises."""
    try:
        value: Any = json.loads(payload)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)  # JSON has no other keys
        name, text = fields.get("name"), fields.get("text")
        kind, sender = fields.get("kind", "said"), fields.get("from", "")
        if all(isinstance(field, str) for field in (name, text, kind, sender)):
            return Line(sender, cast("str", name)[:_LONGEST_NAME], kind, cast("str", text))
    return Line("", _NOBODY, "said", payload.decode("utf-8", "backslashreplace"))


class _Talk:
    """One person's side of a chat, whatever the face."""

    def __init__(
        self, topic: Topic[Line], subscriber: Subscriber[Line], publisher: Publisher, name: str
    ) -> None:
        self.topic = topic
        self.subscriber = subscriber
        self.name = name
        self._publisher = publisher
        self._me = secrets.token_hex(8)

    async def say(self, text: str, kind: str = "said") -> None:
        await self._publisher.publish(self.topic, Line(self._me, self.name, kind, text))

    async def say_all(self, texts: list[str]) -> None:
        lines = [Line(self._me, self.name, "said", text) for text in texts]
        await self._publisher.publish_many(self.topic, lines)

    async def leave(self) -> None:
        """Tell the others, if that takes no time; also while this task is being cancelled."""
        with (
            anyio.move_on_after(_LEAVE_TIMEOUT_S, shield=True),
            contextlib.suppress(PubSubError),
        ):
            await self.say("", "left")

    def fragments(self, event: object) -> list[tuple[str, str]]:
        """What to show of an event, as styles and texts; nothing of one's own lines."""
        if isinstance(event, Gap):
            return [("ansired", f"* {gap_sentence(event)}\n")]
        if not isinstance(event, Message):
            return []
        line = cast("Message[Line]", event).data
        name = visible(line.name)
        if line.sender == self._me:
            return []
        if line.kind in {"joined", "left"}:
            return [("ansibrightblack", f"* {name} {line.kind}\n")]
        color = _COLORS[zlib.crc32(line.name.encode("utf-8", "replace")) % len(_COLORS)]
        return [(f"bold {color}", name), ("", f": {visible(line.text)}\n")]


class _Terminal:
    """A chat at a terminal: what comes appears above the line that is being typed."""

    def __init__(self, talk: _Talk) -> None:
        self._talk = talk
        self._sending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until Ctrl-D or Ctrl-C. What is under way then is waited for."""
        with patch_stdout():  # whatever else is printed, a warning for example, tears nothing either
            await until_first(self._type(), self._show())

    async def _type(self) -> None:
        session = PromptSession[str](FormattedText([("bold", f"{visible(self._talk.name)}> ")]))
        with (
            contextlib.suppress(EOFError, KeyboardInterrupt),
            session.input.raw_mode(),  # between two prompts too: a key pressed then is for the next
        ):
            while True:
                text = await session.prompt_async()
                if text:
                    self._send(text)
                if len(self._sending) >= _SENDING:
                    await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        if self._sending:
            await asyncio.wait(self._sending)

    def _send(self, text: str) -> None:
        """Publish in the background, so that the next line can be typed; the order is kept."""

        async def send() -> None:
            try:
                await self._talk.say(text)
            except PubSubError as error:
                _print_above([("ansired", f"* {error}: {visible(text)}\n")])

        task = asyncio.create_task(send(), name="chat line")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _show(self) -> None:
        fragments: list[tuple[str, str]] = []
        lines = 0
        subscriber = self._talk.subscriber
        async for event in subscriber.events():
            fragments += self._talk.fragments(event)
            lines += 1
            if fragments and (lines >= _LINES_AT_ONCE or not subscriber.stats.buffered):
                _print_above(fragments)
                fragments, lines = [], 0


class _Pipes:
    """A chat of a script: lines in, lines out."""

    def __init__(self, talk: _Talk) -> None:
        self._talk = talk
        self._writer = Writer()

    async def run(self) -> None:
        """Until standard input ends and everything is published, and printed what came before that."""
        await until_first(self._read(), self._show())

    async def _read(self) -> None:
        reader = LineReader()
        while lines := await reader.read():
            await self._talk.say_all([line.decode("utf-8", "backslashreplace") for line in lines])
        await self._talk.subscriber.drain(_DRAIN_TIMEOUT_S)

    async def _show(self) -> None:
        subscriber = self._talk.subscriber
        async for event in subscriber.events():
            text = "".join(part for _, part in self._talk.fragments(event))
            self._writer.add(text.encode())
            if self._writer.is_full or not subscriber.stats.buffered:
                await self._writer.flush()


def _print_above(fragments: list[tuple[str, str]]) -> None:
    """Print above the line that is being typed, which is drawn again by the event loop.

    prompt_toolkit's own `run_in_terminal` takes the terminal out of raw mode meanwhile, so that a key
    pressed just then is echoed, or lost if it is Ctrl-D.
    """
    app = get_app_or_none()
    if app is not None and app.is_running:
        app.renderer.erase()
    print_formatted_text(get_app_session().output, FormattedText(fragments), default_ui_style())
    if app is not None and app.is_running:
        app.renderer.request_absolute_cursor_position()
        app.invalidate()


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name, as in a container
        return _NOBODY


def _check_name(name: str) -> str:
    if not name.strip() or len(name) > _LONGEST_NAME:
        raise BadInput(f"--name must have 1 to {_LONGEST_NAME} characters, not {len(name.strip())}")
    return name.strip()
