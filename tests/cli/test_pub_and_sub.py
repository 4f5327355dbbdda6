"""`aiopubsub pub` and `aiopubsub sub`, as a shell runs them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from aiopubsub.frame import frame
from aiopubsub.testing import Server
from tests.cli.process import ROOT, Cli, environment, run, wait_for_patterns, wait_for_subscribers


def test_messages_come_out_as_they_went_in(valkey: Server) -> None:
    """Arguments are published in order, an empty one too, and printed one a line; nothing else is."""
    with Cli("sub", "c1", "--count", "4", "--url", valkey.url) as sub:
        wait_for_subscribers(valkey, "c1")
        published = run("pub", "--url", valkey.url, "c1", "--", "hello", "", "-x", "\udcff")
        assert (published.returncode, published.stdout, published.stderr) == (0, b"", b"")
        assert sub.status() == 0
        assert sub.out.rest() == b"hello\n\n-x\n\xff\n"
        assert sub.err.rest() == b""


def test_bytes_are_not_touched(valkey: Server) -> None:
    """Bytes that are no text pass through both commands unchanged."""
    wild = bytes(b for b in range(256) if b != 10)
    with Cli("sub", "c2", "--count", "3", "--url", valkey.url) as sub:
        wait_for_subscribers(valkey, "c2")
        assert run("pub", "c2", "--url", valkey.url, stdin=wild + b"\n\nlast").returncode == 0
        assert sub.status() == 0
        assert sub.out.rest() == wild + b"\n\nlast\n"


def test_lines_are_published_as_they_come(valkey: Server) -> None:
    """A line of standard input is published before the next one is there."""
    with Cli("sub", "c3", "--url", valkey.url) as sub, Cli("pub", "c3", "--url", valkey.url) as pub:
        wait_for_subscribers(valkey, "c3")
        for line in (b"one\n", b"two\n", b"three\n"):
            pub.send(line)
            assert sub.out.until(b"\n") == line
        pub.end_input()
        assert pub.status() == 0


def test_many_lines_arrive_in_order(valkey: Server) -> None:
    """A large standard input is published whole and in order."""
    text = b"".join(b"%d\n" % number for number in range(30_000))
    with Cli("sub", "c4", "--count", "30000", "--url", valkey.url) as sub:
        wait_for_subscribers(valkey, "c4")
        assert run("pub", "c4", "--url", valkey.url, stdin=text).returncode == 0
        assert sub.out.rest() == text
        assert sub.status() == 0


def test_patterns_and_channel_names(valkey: Server) -> None:
    """`--pattern` matches channels, and `--verbose` puts the channel and a tab before each message."""
    with Cli("sub", "-p", "-v", "p5.*", "--count", "2", "--url", valkey.url) as sub:
        wait_for_patterns(valkey)
        with redis.Redis(port=valkey.port) as admin:
            admin.publish("other", "no")
            admin.publish("p5.a", "1")
            admin.publish(b"p5.\xff", "2")
        assert sub.status() == 0
        assert sub.out.rest() == b"p5.a\t1\np5.\xff\t2\n"


def test_several_channels(valkey: Server) -> None:
    """Several channels are printed in the order of the server; without `--pattern` a star is a star."""
    with Cli("sub", "c6", "d6", "c6*", "-v", "-n", "3", "--url", valkey.url) as sub:
        wait_for_subscribers(valkey, "c6*")
        with redis.Redis(port=valkey.port) as admin:
            for channel in ("d6", "c6x", "c6*", "c6"):
                admin.publish(channel, "m")
        assert sub.out.rest() == b"d6\tm\nc6*\tm\nc6\tm\n"


def test_the_environment_names_the_server(valkey: Server) -> None:
    """`AIOPUBSUB_URL` is where the server is when no option says so."""
    with redis.Redis(port=valkey.port) as admin:
        listening = admin.pubsub(ignore_subscribe_messages=False)
        listening.subscribe("c7")
        assert listening.get_message(timeout=10)["type"] == "subscribe"
        assert run("pub", "c7", "m", env={"AIOPUBSUB_URL": valkey.url}).returncode == 0
        assert listening.get_message(timeout=10)["data"] == b"m"
        listening.close()


def test_a_reader_that_has_had_enough(valkey: Server) -> None:
    """When the reader of its output is gone, `sub` ends with status 0 and says nothing."""
    with Cli("sub", "c8", "--url", valkey.url) as sub:
        wait_for_subscribers(valkey, "c8")
        with redis.Redis(port=valkey.port) as admin:
            admin.publish("c8", "first")
            assert sub.out.until(b"\n") == b"first\n"
            assert sub.process.stdout
            sub.process.stdout.close()
            admin.publish("c8", "second")
        assert sub.status() == 0
        assert sub.err.rest() == b""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_it_cleanly(valkey: Server, number: signal.Signals, status: int) -> None:
    """Ctrl-C and its like end `sub` with the usual status, without a traceback."""
    with Cli("sub", "c9", "--url", valkey.url) as sub:
        wait_for_subscribers(valkey, "c9")
        sub.signal(number)
        assert sub.status() == status
        assert (sub.out.rest(), sub.err.rest()) == (b"", b"")


def test_ctrl_c_while_standard_input_is_awaited(valkey: Server) -> None:
    """`pub` that waits for a line ends at once on Ctrl-C."""
    with Cli("sub", "c10", "--url", valkey.url) as sub, Cli("pub", "c10", "--url", valkey.url) as pub:
        wait_for_subscribers(valkey, "c10")
        pub.send(b"line\n")
        assert sub.out.until(b"\n") == b"line\n"
        pub.signal(signal.SIGINT)
        assert pub.status() == 130
        assert pub.err.rest() == b""


def test_what_was_lost_is_said(valkey: Server) -> None:
    """A connection that was cut is reported on standard error, and the messages go on."""
    with Cli("sub", "c11", "--url", valkey.url) as sub, redis.Redis(port=valkey.port) as admin:
        wait_for_subscribers(valkey, "c11")
        admin.client_kill_filter(_type="pubsub")
        said = sub.err.until(b"(the server closed the connection)\n")
        assert b"messages may be missing on c11: the connection was lost for" in said
        wait_for_subscribers(valkey, "c11")
        admin.publish("c11", "after")
        assert sub.out.until(b"\n") == b"after\n"


def test_lines_of_json(valkey: Server) -> None:
    """Everything that a message has is in its object; what is not UTF-8 is in base64; a gap is a line."""
    with (
        Cli("sub", "-p", "j?", "-f", "json", "--url", valkey.url) as sub,
        redis.Redis(port=valkey.port) as r,
    ):
        wait_for_patterns(valkey)
        r.publish("j1", "grüße\n")
        r.publish("j2", b"\xff")
        r.publish("j1", frame(b"x", {"trace": "7"}))
        lines = [json.loads(sub.out.until(b"\n")) for _ in range(3)]
        assert lines == [
            {"channel": "j1", "pattern": "j?", "data": "grüße\n"},
            {"channel": "j2", "pattern": "j?", "data_base64": "/w=="},
            {"channel": "j1", "pattern": "j?", "data": "x", "headers": {"trace": "7"}},
        ]
        r.client_kill_filter(_type="pubsub")
        gap = json.loads(sub.out.until(b"\n"))
        assert (gap["gap"], gap["channels"], gap["missed"]) == ("reconnected", ["j?"], None)
        assert b"messages may be missing" not in sub.err.seen


def test_positions_in_json(valkey: Server) -> None:
    """They can be given as `--since`."""
    assert run("pub", "--history", "j3", "a", "b", "--url", valkey.url).returncode == 0
    told = run("sub", "j3", "--since", "beginning", "-n", "1", "-f", "json", "--url", valkey.url)
    position = json.loads(told.stdout)["position"]
    told = run("sub", "j3", "--since", position, "-n", "1", "--url", valkey.url)
    assert told.stdout == b"b\n"


def test_hex(valkey: Server) -> None:
    """Two digits a byte, and the channel if it is wanted."""
    with Cli("sub", "x1", "-v", "-f", "hex", "-n", "2", "--url", valkey.url) as sub:
        wait_for_subscribers(valkey, "x1")
        with redis.Redis(port=valkey.port) as admin:
            admin.publish("x1", b"\x00a\n")
            admin.publish("x1", b"")
        assert sub.out.rest() == b"x1\t00 61 0a\nx1\t\n"


def test_what_is_printed_is_chosen(valkey: Server) -> None:
    """By regular expressions, all of which have to be found, and by headers; the rest does not count."""
    choice = ("-g", "r[aä]t", "-g", "!$", "--header", "to=me", "--count", "2")
    with Cli("sub", "g1", *choice, "--url", valkey.url) as sub, redis.Redis(port=valkey.port) as admin:
        wait_for_subscribers(valkey, "g1")
        for text, to in [("rät!", "me"), ("rat", "me"), ("rot!", "me"), ("rat!", "you"), ("Brat!", "me")]:
            admin.publish("g1", frame(text.encode(), {"to": to}))
        assert sub.status() == 0
        assert sub.out.rest() == "rät!\nBrat!\n".encode()


def test_it_ends_after_so_many_seconds(valkey: Server) -> None:
    """With status 0, and with what came until then."""
    with Cli("sub", "t1", "--seconds", "3", "--url", valkey.url) as sub:
        wait_for_subscribers(valkey, "t1")
        with redis.Redis(port=valkey.port) as admin:
            admin.publish("t1", "in time")
        assert sub.status() == 0
        assert (sub.out.rest(), sub.err.rest()) == (b"in time\n", b"")


def test_a_long_history_does_not_hold_up_the_end(valkey: Server) -> None:
    """It is not read to its end, whatever is printed of it."""
    count = 100_000
    kept = run("pub", "--history", "t2", "--size", str(count), "--url", valkey.url, stdin=b"x\n" * count)
    assert kept.returncode == 0
    told = run("sub", "t2", "--since", "beginning", "--seconds", "0.001", "--url", valkey.url)
    assert told.returncode == 0
    assert told.stdout.count(b"x") < count
    with Cli("sub", "t2", "--history", "--seconds", "0.001", "--url", valkey.url) as idle:
        assert (idle.status(), idle.out.rest()) == (0, b"")


def test_rates(valkey: Server) -> None:
    """Each second how much came, printed or not."""
    with Cli("sub", "r1", "--rate", "-g", "nothing", "--url", valkey.url) as sub:
        wait_for_subscribers(valkey, "r1")
        with redis.Redis(port=valkey.port) as admin:
            admin.publish("r1", "x" * 1234)
        sub.err.until(b"aiopubsub: 1 messages/s, 1,234 bytes/s\n")
        sub.err.until(b"aiopubsub: 0 messages/s, 0 bytes/s\n")
        sub.signal(signal.SIGINT)
        assert (sub.status(), sub.out.rest()) == (130, b"")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--grep", "("), b"--grep: missing ), unterminated subpattern at position 0"),
        (("--header", "trace"), b"--header: trace is not NAME=VALUE"),
        (("--format", "xml"), b"'xml' is not one of 'text', 'json', 'hex'"),
        (("--seconds", "0"), b"0.001"),
    ],
)
def test_choices_that_cannot_be_read(options: tuple[str, str], said: bytes) -> None:
    """A sentence, and status 2; no server is asked for."""
    told = run("sub", "c", *options, "--url", "redis://127.0.0.1:1")
    assert (told.returncode, told.stdout) == (2, b"")
    assert said in b" ".join(told.stderr.replace("│".encode(), b"").split())


def test_bash_completes(tmp_path: Path) -> None:
    """Bash itself, with the script that `--show-completion` prints, completes commands and options."""
    bin_ = tmp_path / "aiopubsub"
    bin_.write_text(f'#!/bin/sh\nexec {sys.executable} -m aiopubsub "$@"\n')
    bin_.chmod(0o755)
    script = f"""
        export PATH={tmp_path}:$PATH
        eval "$(_AIOPUBSUB_COMPLETE=source_bash aiopubsub)"
        complete -p aiopubsub >/dev/null || exit 1
        fill() {{
            COMP_WORDS=("$@")
            COMP_CWORD=$(($# - 1))
            _aiopubsub_completion aiopubsub
            echo "${{COMPREPLY[@]}}"
        }}
        fill aiopubsub do
        fill aiopubsub sub --format j
    """
    told = subprocess.run(
        ["bash", "-c", script], check=False, capture_output=True, env=environment(), timeout=60, cwd=ROOT
    )
    assert told.stdout.split() == [b"doctor", b"json"], told.stderr


def test_a_terminal_is_not_driven_by_messages(valkey: Server) -> None:
    """At a terminal control characters show as escapes, and the person is told what is going on."""
    with Cli("sub", "c12", "-v", "--url", valkey.url, at_terminal=True) as sub:
        assert b"subscribed to c12; Ctrl-C ends" in sub.out.until(b"\n")
        with redis.Redis(port=valkey.port) as admin:
            admin.publish("c12", b"a\x1b[31m\xffb\nc")
        assert rb"a\x1b[31m\xffb\nc" in sub.out.until(b"\n")
        sub.signal(signal.SIGINT)
        assert sub.status() == 130


def test_a_receipt_at_a_terminal(valkey: Server) -> None:
    """At a terminal `pub` says how many connections got the message."""
    with Cli("pub", "c13", "a", "b", "--url", valkey.url, at_terminal=True) as pub:
        assert b"2 messages published, 0 receivers" in pub.out.until(b"receivers")
        assert pub.status() == 0


def test_an_embedded_server_can_be_joined() -> None:
    """`--embedded` prints the URL of a server that another process can use, and that ends with it."""
    with Cli("sub", "c14", "--embedded") as sub:
        said = sub.err.until(b"--url ") + sub.err.until(b"\n")
        found = re.search(rb"redis://127\.0\.0\.1:(\d+)", said)
        assert found
        wait_for_subscribers(Server("unused", port=int(found[1])), "c14")
        assert run("pub", "c14", "m", "--url", found[0].decode()).returncode == 0
        assert sub.out.until(b"\n") == b"m\n"
        sub.signal(signal.SIGTERM)
        assert sub.status() == 143
        gone = run("pub", "c14", "m", "--url", found[0].decode(), "--connect-timeout", "0.2")
        assert gone.returncode == 1
