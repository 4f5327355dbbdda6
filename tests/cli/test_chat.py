"""`aiopubsub chat`, through pipes and at a pseudo-terminal."""

from __future__ import annotations

import json
import signal

import redis

from aiopubsub.testing import Server
from tests.cli.process import Cli, wait_for_subscribers


def chat(server: Server, channel: str, name: str, *, at_terminal: bool = False) -> Cli:
    return Cli("chat", channel, "--name", name, "--url", server.url, at_terminal=at_terminal)


def test_two_talk_through_pipes(valkey: Server) -> None:
    """Each sees the other's lines with the name, coming and going, and never its own."""
    with chat(valkey, "r1", "ann") as ann:
        wait_for_subscribers(valkey, "r1")
        with chat(valkey, "r1", "bob") as bob:
            assert ann.out.until(b"\n") == b"* bob joined\n"
            ann.send("hällo\n".encode())
            assert bob.out.until(b"\n") == "ann: hällo\n".encode()
            bob.send(b"one\ntwo\nno newline")
            bob.end_input()
            assert bob.status() == 0
            assert ann.out.until(b"left\n") == b"bob: one\nbob: two\nbob: no newline\n* bob left\n"
            assert bob.out.rest() == b""
        ann.end_input()
        assert ann.status() == 0
        assert (ann.out.rest(), ann.err.rest()) == (b"", b"")


def test_what_came_before_the_end_is_shown(valkey: Server) -> None:
    """A script whose input has ended still prints what was said before."""
    with chat(valkey, "r2", "ann") as ann, redis.Redis(port=valkey.port) as admin:
        wait_for_subscribers(valkey, "r2")
        burst = admin.pipeline(transaction=False)
        for number in range(10_000):
            burst.publish("r2", str(number))
        burst.execute()
        ann.end_input()
        assert ann.out.rest().splitlines() == [b"anonymous: %d" % number for number in range(10_000)]
        assert ann.status() == 0


STRANGE = {
    b"plain": b"anonymous: plain\n",
    b"": b"anonymous: \n",
    b"\xff\x00": b"anonymous: \\xff\\x00\n",
    b"5": b"anonymous: 5\n",
    b'{"a": 1}': b'anonymous: {"a": 1}\n',
    b'{"name": "eve", "text": 5}': b'anonymous: {"name": "eve", "text": 5}\n',
    b'{"name": "eve", "text": "by hand"}': b"eve: by hand\n",
    b'{"name": "eve\\n\\u001b", "text": "a\\nbob: b"}': b"eve\\n\\x1b: a\\nbob: b\n",
    b'{"name": "\\ud800", "text": "\\ud800"}': b"\\ud800: \\ud800\n",
    b"[" * 100_000: b"anonymous: " + b"[" * 100_000 + b"\n",
}


def test_what_strangers_publish(valkey: Server) -> None:
    """Whatever is published appears on one line, harmless, by its name or by nobody in particular."""
    with chat(valkey, "r3", "ann") as ann, redis.Redis(port=valkey.port) as admin:
        wait_for_subscribers(valkey, "r3")
        for payload, line in STRANGE.items():
            admin.publish("r3", payload)
            assert ann.out.until(b"\n") == line


def test_others_can_read_it(valkey: Server) -> None:
    """A line travels as JSON with a name and a text."""
    with redis.Redis(port=valkey.port) as admin, chat(valkey, "r4", "ann") as ann:
        listening = admin.pubsub(ignore_subscribe_messages=False)
        listening.subscribe("r4")
        assert listening.get_message(timeout=10)["type"] == "subscribe"
        ann.send(b"hello\n")
        said = {}
        while said.get("kind") != "said":
            said = json.loads(listening.get_message(timeout=10)["data"])
        assert (said["name"], said["text"]) == ("ann", "hello")
        listening.close()


def test_ctrl_c_on_a_script(valkey: Server) -> None:
    """A chat of pipes ends on Ctrl-C with the usual status, and says goodbye."""
    with chat(valkey, "r5", "ann") as ann:
        wait_for_subscribers(valkey, "r5")
        with chat(valkey, "r5", "bob") as bob:
            ann.out.until(b"* bob joined\n")
            bob.signal(signal.SIGINT)
            assert bob.status() == 130
            assert ann.out.until(b"\n") == b"* bob left\n"
            assert bob.err.rest() == b""


def test_at_a_terminal(valkey: Server) -> None:
    """A typed line is published once, is not shown again, and Ctrl-D ends the chat with status 0."""
    with chat(valkey, "r6", "bob") as bob:
        wait_for_subscribers(valkey, "r6")
        with chat(valkey, "r6", "ann", at_terminal=True) as ann:
            ann.out.until(b"ann>")
            bob.out.until(b"* ann joined\n")
            ann.send(b"hello\r")
            assert bob.out.until(b"\n") == b"ann: hello\n"
            bob.send(b"hi\n")
            shown = ann.out.until(b": hi")
            assert b"ann: hello" not in shown
            ann.send(b"\x04")
            assert ann.status() == 0
            assert bob.out.until(b"\n") == b"* ann left\n"
            assert b"Traceback" not in ann.out.rest()


def test_what_comes_does_not_tear_what_is_typed(valkey: Server) -> None:
    """A line that comes while another is half typed appears above it, and the half is still there."""
    with chat(valkey, "r7", "bob") as bob:
        wait_for_subscribers(valkey, "r7")
        with chat(valkey, "r7", "ann", at_terminal=True) as ann:
            bob.out.until(b"* ann joined\n")
            ann.out.until(b"ann>")
            ann.send(b"half")
            ann.out.until(b"f")
            bob.send(b"interrupting\n")
            ann.out.until(b": interrupting")
            assert b"ann>" in ann.out.until(b"half")
            ann.send(b" and half\r")
            assert bob.out.until(b"\n") == b"ann: half and half\n"


def test_ctrl_c_at_a_terminal(valkey: Server) -> None:
    """Ctrl-C ends it with status 0, even with a line half typed, which is not published."""
    with chat(valkey, "r8", "bob") as bob:
        wait_for_subscribers(valkey, "r8")
        with chat(valkey, "r8", "ann", at_terminal=True) as ann:
            bob.out.until(b"* ann joined\n")
            ann.out.until(b"ann>")
            ann.send(b"half")
            ann.out.until(b"half")
            ann.send(b"\x03")
            assert ann.status() == 0
            assert bob.out.until(b"\n") == b"* ann left\n"
            assert b"Traceback" not in ann.out.rest()
