"""Histories at the command line: `pub --history`, `sub --since`, and a look at what is kept."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable

import pytest
import redis

from aiopubsub import Position
from aiopubsub.keys import history_key
from aiopubsub.testing import Cluster, Server
from tests.cli.process import Cli, run, wait_for_subscribers
from tests.conftest import start

STAND = rb"go on with --since (\d+-\d+-[0-9a-f]{8}-\S+?)(?:\x1b|\s)"


def keep(server: Server, channel: str, *messages: str) -> None:
    """Publish with history."""
    assert run("pub", channel, *messages, "--history", "--url", server.url).returncode == 0


def look(server: Server, channel: str, *options: str) -> dict[str, object]:
    """What `history --json` says."""
    ended = run("history", channel, "--json", "--url", server.url, *options)
    assert (ended.returncode, ended.stderr) == (0, b"")
    told = json.loads(ended.stdout)
    assert isinstance(told, dict)
    return told


def test_from_the_beginning(valkey: Server) -> None:
    """`--since beginning` prints what is kept, then what comes."""
    keep(valkey, "h1", "a", "b")
    with Cli("sub", "h1", "--since", "beginning", "--url", valkey.url) as sub:
        assert sub.out.until(b"b\n") == b"a\nb\n"
        keep(valkey, "h1", "c")
        assert sub.out.until(b"\n") == b"c\n"


def test_verbose_shows_positions_to_go_on_from(valkey: Server) -> None:
    """The position that `--verbose` prints is one that `--since` takes, and it begins after it."""
    keep(valkey, "h2", "a", "b", "c")
    shown = run("sub", "h2", "--since", "beginning", "-v", "-n", "2", "--url", valkey.url)
    lines = [line.split("\t") for line in shown.stdout.decode().splitlines()]
    assert [(channel, message) for channel, _, message in lines] == [("h2", "a"), ("h2", "b")]
    after_a = lines[0][1]
    assert Position.parse(after_a).offset == 1
    rest = run("sub", "h2", "--since", after_a, "-n", "2", "--url", valkey.url)
    assert rest.stdout == b"b\nc\n"


def test_a_message_without_a_place_has_no_position(valkey: Server) -> None:
    """On a topic with history, one that was published without it is printed with a dash, and said."""
    with Cli("sub", "h3", "--history", "-v", "--url", valkey.url) as sub:
        wait_for_subscribers(valkey, "h3")
        run("pub", "h3", "plain", "--url", valkey.url)
        assert sub.out.until(b"\n") == b"h3\t-\tplain\n"
        assert b"also published to without history" in sub.err.until(b"\n")


def test_nothing_is_lost_with_a_connection(valkey: Server) -> None:
    """With `--history` a connection that was cut loses nothing, and nothing is said to be missing."""
    with Cli("sub", "h4", "--history", "--url", valkey.url) as sub, redis.Redis(port=valkey.port) as admin:
        wait_for_subscribers(valkey, "h4")
        keep(valkey, "h4", "before")
        assert sub.out.until(b"\n") == b"before\n"
        admin.client_kill_filter(_type="pubsub")
        keep(valkey, "h4", "a", "b", "c")
        assert sub.out.until(b"c\n") == b"a\nb\nc\n"
        sub.signal(signal.SIGTERM)
        assert sub.status() == 143
        assert b"missing" not in sub.err.rest()


@pytest.mark.parametrize("options", [("--since", "beginning", "-n", "2"), ("--history",)])
def test_the_end_says_where_to_go_on_from(valkey: Server, options: tuple[str, ...]) -> None:
    """At a terminal the end, or Ctrl-C, says which option goes on exactly there."""
    channel = f"h5{len(options)}"
    keep(valkey, channel, "a", "b")
    with Cli("sub", channel, *options, "--url", valkey.url, at_terminal=True) as sub:
        sub.out.until(b"subscribed to")
        if "-n" not in options:
            sub.signal(signal.SIGINT)
        said = re.search(STAND, sub.out.rest())
        assert sub.status() == (0 if "-n" in options else 130)
    assert said
    keep(valkey, channel, "c")
    rest = run("sub", channel, "--since", said[1].decode(), "-n", "1", "--url", valkey.url)
    assert rest.stdout == b"c\n"


def test_several_channels_each_go_on(valkey: Server) -> None:
    """A position belongs to its channel, whatever the order; `beginning` is for the others."""
    keep(valkey, "h6", "a1", "a2")
    keep(valkey, "g6", "b1", "b2")
    keep(valkey, "f6", "c1")
    after_first = {name: str(look(valkey, name)["first"]) for name in ("h6", "g6")}
    since = ("--since", after_first["g6"], "--since", "beginning", "--since", after_first["h6"])
    ended = run("sub", "h6", "g6", "f6", *since, "-n", "3", "--url", valkey.url)
    assert sorted(ended.stdout.split()) == [b"a2", b"b2", b"c1"]


def test_a_name_goes_on_where_it_ended(valkey: Server) -> None:
    """With `--name` each message is printed by one run, in order, also when `--count` ends it."""
    keep(valkey, "h7", *"abcde")
    runs = [
        run("sub", "h7", "--name", "w", "--since", "beginning", "-n", count, "--url", valkey.url)
        for count in ("2", "1", "2")
    ]
    assert [ended.stdout for ended in runs] == [b"a\nb\n", b"c\n", b"d\ne\n"]
    assert [ended.stderr for ended in runs] == [b"", b"", b""]
    (cursor,) = look(valkey, "h7", "--cursors")["cursors"]  # type: ignore[misc]  # of JSON
    assert (cursor["name"], cursor["behind"]) == ("w", 0)


def test_what_a_name_is_done_with_was_printed(valkey: Server) -> None:
    """Killed in the middle, no message is done that was not written out."""
    lines = b"".join(b"%d\n" % number for number in range(1000))
    assert run("pub", "h17", "--history", "--url", valkey.url, stdin=lines).returncode == 0
    with (
        redis.Redis(port=valkey.port, socket_timeout=20) as watching,
        watching.monitor() as monitor,
        Cli("sub", "h17", "--name", "w", "--since", "beginning", "--url", valkey.url) as sub,
    ):
        saved = 0
        while saved < 20:
            saved += monitor.next_command()["command"].startswith("SET ")
        sub.process.kill()
        printed = sub.out.rest()
    (cursor,) = look(valkey, "h17", "--cursors")["cursors"]  # type: ignore[misc]  # of JSON
    assert 20 <= Position.parse(cursor["position"]).offset <= printed.count(b"\n")
    assert lines.startswith(printed)


def test_gaps_are_said(valkey: Server) -> None:
    """What the history does not hold any more is a sentence with its number."""
    keep(valkey, "h8", "a", "b")
    first = str(look(valkey, "h8")["first"])
    keep(valkey, "h8", *(str(number) for number in range(8)))
    with redis.Redis(port=valkey.port) as admin:
        admin.xtrim(history_key(b"h8"), 3, approximate=False)
        trimmed = run("sub", "h8", "--since", first, "-n", "3", "--url", valkey.url)
        assert trimmed.stdout == b"5\n6\n7\n"
        assert b"6 messages are missing on h8: the history does not reach back so far\n" in trimmed.stderr
        admin.delete(history_key(b"h8"))
    keep(valkey, "h8", "anew")
    reset = run("sub", "h8", "--since", first, "-n", "1", "--url", valkey.url)
    assert reset.stdout == b"anew\n"
    assert b"messages may be missing on h8: the history that was followed is gone" in reset.stderr


def test_how_much_is_kept(valkey: Server) -> None:
    """`--size` and `--ttl` are the history's; without a size nothing that is kept is thrown away."""
    many = "".join(f"{number}\n" for number in range(3000)).encode()
    assert run("pub", "h9", "--history", "--size", "3000", "--url", valkey.url, stdin=many).returncode == 0
    keep(valkey, "h9", "more")
    told = look(valkey, "h9")
    assert told["count"] == 3001
    assert 86_300 < float(str(told["expires_in_s"])) <= 86_400
    run("pub", "h9", "m", "--history", "--size", "10", "--ttl", "inf", "--url", valkey.url)
    told = look(valkey, "h9")
    assert 10 <= int(str(told["count"])) <= 200
    assert told["expires_in_s"] is None


def test_a_look_at_a_history(valkey: Server) -> None:
    """Anywhere but at a terminal: name, tab, value, one a line, and cursors on request."""
    keep(valkey, "h10", "a", "b", "c")
    run("sub", "h10", "--name", "w1", "--since", "beginning", "-n", "1", "--url", valkey.url)
    with redis.Redis(port=valkey.port) as admin:
        for odd in (b"aiopubsub:{h10}:cursor:x:h10", b"aiopubsub:{h10?}:cursor:w2"):  # of other channels
            admin.set(odd, "x")
    plain = run("history", "h10", "--url", valkey.url)
    rows = dict(line.split("\t", 1) for line in plain.stdout.decode().splitlines())
    assert list(rows) == ["messages", "first", "last", "bytes", "expires in s"]
    assert rows["messages"] == "3"
    assert (Position.parse(rows["first"]).offset, Position.parse(rows["last"]).offset) == (1, 3)
    assert int(rows["bytes"]) > 0
    with_cursors = run("history", "h10", "--cursors", "--url", valkey.url)
    last = with_cursors.stdout.decode().splitlines()[-1].split("\t")
    assert (last[0], last[2]) == ("cursor w1", "2")
    assert look(valkey, "h10")["cursors"] is None


@pytest.mark.parametrize("channel", ["h*?[11]", "a{tag}h11", "{}}h11"])
def test_cursors_of_channels_with_odd_names(valkey: Server, channel: str) -> None:
    """Cursors are found whatever the channel's name does to the keys."""
    keep(valkey, channel, "a", "b")
    run("sub", channel, "--name", "w", "--since", "beginning", "-n", "1", "--url", valkey.url)
    (cursor,) = look(valkey, channel, "--cursors")["cursors"]  # type: ignore[misc]  # of JSON
    assert (cursor["name"], cursor["behind"]) == ("w", 1)


def test_a_table_at_a_terminal(valkey: Server) -> None:
    """At a terminal it is a table that fits."""
    keep(valkey, "h12", "a", "b")
    run("sub", "h12", "--name", "w", "--since", "beginning", "-n", "1", "--url", valkey.url)
    with Cli("history", "h12", "--cursors", "--url", valkey.url, at_terminal=True) as shown:
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.out.rest().decode())
        assert shown.status() == 0
    assert re.search(r"^messages +2\b", text, re.MULTILINE)
    assert re.search(r"^ *w +1 +\d+-1-", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80


def test_nothing_is_kept(valkey: Server) -> None:
    """A channel without a history is a sentence, and for programs a count of 0."""
    ended = run("history", "h13", "--url", valkey.url)
    assert (ended.returncode, ended.stdout) == (0, b"")
    assert ended.stderr.startswith(b"aiopubsub: nothing is kept of h13: ")
    assert look(valkey, "h13")["count"] == 0


def test_something_else_is_kept(valkey: Server) -> None:
    """What this library did not write is said, with status 1."""
    with redis.Redis(port=valkey.port) as admin:
        admin.set(history_key(b"h14"), "x")
        ended = run("history", "h14", "--url", valkey.url)
        assert (ended.returncode, ended.stdout) == (1, b"")
        assert b"the history of h14 cannot be read: WRONGTYPE" in ended.stderr
        admin.delete(history_key(b"h14"))
        admin.xadd(history_key(b"h14"), {"a": "b"})
        ended = run("history", "h14", "--url", valkey.url)
        assert (ended.returncode, ended.stdout) == (1, b"")
        assert b"holds entries that this library did not write" in ended.stderr


@pytest.mark.parametrize("at_terminal", [False, True])
def test_what_nobody_would_write(valkey: Server, at_terminal: bool) -> None:
    """Numbers beyond all dates are shown, and a name that cannot be one is said, without a traceback."""
    key = history_key(b"h16")
    with redis.Redis(port=valkey.port) as admin:
        for uid, status in ((b"far.1", 0), (b"\xff", 1)):
            admin.delete(key)
            admin.xadd(key, {"uid": uid, "after": "-", "data": ""}, id=f"{2**64 - 1}-1")
            admin.pexpire(key, 10**17)
            with Cli("history", "h16", "--url", valkey.url, at_terminal=at_terminal) as shown:
                text = shown.out.rest()
                assert shown.status() == status
                assert b"Traceback" not in text
                assert status or b"far.1" in text


def test_a_server_that_does_not_tell_all() -> None:
    """Without the permission to ask for the memory, all else is shown."""
    server = start("valkey9")
    try:
        with redis.Redis(port=server.port) as admin:
            admin.execute_command("ACL SETUSER ann on >pw ~aiopubsub:* &* +@all -memory")
        keep(server, "h15", "a")
        ended = run("history", "h15", "--url", server.url.replace("//", "//ann:pw@"))
        assert ended.returncode == 0
        assert b"bytes\tnot told\n" in ended.stdout
    finally:
        server.stop()


def test_a_look_at_histories_of_a_cluster(clusters: Callable[[str], Cluster]) -> None:
    """Whichever node has it: what is kept, its size, and who has read how far."""
    url = clusters("valkey9").url
    for channel in ("look 1", "look 2", "{look} 3", "look}4"):
        assert run("pub", channel, "a", "b", "--history", "--url", url).returncode == 0
        run("sub", channel, "--since", "beginning", "--name", "reader", "-n", "2", "--url", url)
        ended = run("history", channel, "--json", "--cursors", "--url", url)
        assert (ended.returncode, ended.stderr) == (0, b"")
        told = json.loads(ended.stdout)
        assert told["count"] == 2
        assert told["bytes"] > 0
        assert [cursor["name"] for cursor in told["cursors"]] == ["reader"]
