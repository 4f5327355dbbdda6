"""The commands and their options, as a person sees them.

Lives here: words. Must not live here: work; each command has a file of its own. `__main__` calls.
"""

from __future__ import annotations

from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from .pub import Keeping, publish
from .runner import Place, run
from .sub import Wanted, subscribe

__all__ = ["app"]

app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they would show what variables hold, passwords included
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(Enum):
    """What `sub` prints."""

    text = "text"
    json = "json"
    hex = "hex"


_EXITS = (
    "Exit status: 0 when it did what was asked, 1 when the server or the system failed, 2 when the "
    "command line cannot be used, 130 after Ctrl-C, 143 after SIGTERM."
)

Url = Annotated[
    str | None,
    typer.Option(
        help="Where the server is: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://. "
        "Default: the environment's AIOPUBSUB_URL, then redis://localhost:6379.",
        show_default=False,
    ),
]
Embedded = Annotated[
    bool,
    typer.Option(
        "--embedded",
        help="Start a server of our own, and print its URL on stderr so that a second terminal can "
        "join. It ends with the command. Needs the extra 'server'.",
    ),
]
ConnectTimeout = Annotated[float, typer.Option(help="Seconds that connecting may take.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            version = metadata.version("aiopubsub-redis")
        except metadata.PackageNotFoundError:
            version = "(not installed, run from its source)"
        typer.echo(f"aiopubsub {version}")
        raise typer.Exit


@app.callback(epilog=_EXITS)
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Publish and subscribe through Redis and Valkey."""


@app.command(
    epilog=_EXITS,
    help="Publish messages, or the lines of standard input.\n\n"
    "Prints nothing on standard output; at a terminal it says on stderr how many connections got the "
    "last message.",
)
def pub(
    channel: Annotated[
        str, typer.Argument(metavar="CHANNEL", help="Where to publish.", show_default=False)
    ],
    messages: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MESSAGE",
            help="What to publish, each as a message of its own. Without any: the lines of standard "
            "input, as they come. After -- a message may begin with a dash.",
            show_default=False,
        ),
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Publish to a topic that keeps history: the server keeps it.")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --history: the last messages that are kept at least. Give what the topic's other "
            "publishers give. Default: 1000, or as many as there are if they are more.",
            show_default=False,
        ),
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="With --history: seconds that it lives after the last publish, or inf. Default: 86400.",
            show_default=False,
        ),
    ] = None,
    url: Url = None,
    embedded: Embedded = False,
    connect_timeout: ConnectTimeout = 5.0,
) -> None:
    """`aiopubsub pub`."""
    place = Place(url, embedded, connect_timeout)
    run(publish(place, channel, messages or [], Keeping(history, size, ttl)))


@app.command(
    epilog=_EXITS,
    help="Print the messages of channels, one a line, until Ctrl-C.\n\n"
    "Bytes are written as they were published, followed by a newline; at a terminal control characters "
    "and bytes that are not UTF-8 are shown as escapes. Messages that are missing are reported on "
    "stderr. When the reader of the output is gone (| head), it ends with status 0.",
)
def sub(
    channels: Annotated[
        list[str], typer.Argument(metavar="CHANNEL", help="What to receive.", show_default=False)
    ],
    pattern: Annotated[
        bool,
        typer.Option(
            "--pattern",
            "-p",
            help="The channels are patterns, as in PSUBSCRIBE: 'news.*', 'h?llo'.",
        ),
    ] = False,
    count: Annotated[
        int | None,
        typer.Option(
            "--count", "-n", min=1, help="End after so many that were printed.", show_default=False
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", min=0.001, help="End after so many seconds.", show_default=False),
    ] = None,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            "-f",
            help="text: bytes as they are. json: an object a line with channel, data (or data_base64), "
            "headers and position; gaps are lines too. hex: two digits a byte.",
        ),
    ] = Format.text,
    grep: Annotated[
        list[str] | None,
        typer.Option(
            "--grep",
            "-g",
            metavar="REGEX",
            help="Print messages in whose text this is found. Given again, all of them have to be.",
            show_default=False,
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Print messages with this header.",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        bool,
        typer.Option("--rate", help="Say on stderr each second how many messages and bytes came."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Print the channel and a tab before each message; with a history also its position.",
        ),
    ] = False,
    history: Annotated[
        bool,
        typer.Option(
            "--history", help="Follow the channels' histories from now on: a lost connection loses nothing."
        ),
    ] = False,
    since: Annotated[
        list[str] | None,
        typer.Option(
            metavar="beginning|POSITION",
            help="Begin with the first message that the history keeps, or after a position. With several "
            "channels it can be given for each.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Keep on the server, under this name, how far it has come, and go on there the next time.",
            show_default=False,
        ),
    ] = None,
    url: Url = None,
    embedded: Embedded = False,
    connect_timeout: ConnectTimeout = 5.0,
) -> None:
    """`aiopubsub sub`."""
    wanted = Wanted(
        channels,
        is_pattern=pattern,
        has_history=history,
        since=since or (),
        name=name,
        count=count,
        is_verbose=verbose,
        form=form.value,
        grep=grep or (),
        headers=header or (),
        seconds=seconds,
        tells_rates=rate,
    )
    run(subscribe(Place(url, embedded, connect_timeout), wanted))


@app.command(
    epilog=_EXITS,
    help="Show what the server keeps of a channel: the first and the last message, how many and how "
    "large they are, how long they live, and where durable cursors stand.",
)
def history(
    channel: Annotated[
        str, typer.Argument(metavar="CHANNEL", help="Of what to show the history.", show_default=False)
    ],
    cursors: Annotated[
        bool,
        typer.Option(
            "--cursors",
            help="Show the cursors too. To find them, every key of the server is looked at: minutes on "
            "a large one.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    url: Url = None,
    connect_timeout: ConnectTimeout = 5.0,
) -> None:
    """`aiopubsub history`."""
    from .history import show  # noqa: PLC0415  # shows a table

    place = Place(url, is_embedded=False, connect_timeout=connect_timeout)
    run(show(place, channel, with_cursors=cursors, as_json=json))


@app.command(
    epilog=_EXITS,
    help="Talk to everybody on a channel: lines typed are published, those of others appear.\n\n"
    "Ctrl-D and Ctrl-C end it with status 0. When standard input or output is not a terminal, lines are "
    "read and printed plainly, and it ends when standard input does.\n\n"
    'Lines travel as JSON: {"name": "ann", "text": "hello"}. What is published as plain text, from '
    "redis-cli for example, appears as said by 'anonymous'.",
)
def chat(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="Where to talk.")] = "chat",
    name: Annotated[
        str | None,
        typer.Option(help="What the others see. Default: the login name.", show_default=False),
    ] = None,
    url: Url = None,
    embedded: Embedded = False,
    connect_timeout: ConnectTimeout = 5.0,
) -> None:
    """`aiopubsub chat`."""
    from .chat import chat as talk  # noqa: PLC0415  # its line editor would slow down the others

    run(talk(Place(url, embedded, connect_timeout), channel, name))


@app.command(
    help="See every message accounted for, with nobody's help.\n\n"
    "Starts a server, a publisher and four subscribers, each a process: one follows a channel, one a "
    "pattern, one is too slow for its small buffer, and one follows the channel's history. Their "
    "connections are killed, then the server, which starts again with what it has kept. In the end, for "
    "each subscriber, what was published must be what was delivered plus what was reported as missing, "
    "exactly.\n\n"
    "Needs the extra 'server', or --url.",
    epilog="Exit status: 0 when the books balance, 1 when they don't or something failed, 2 when the "
    "command line cannot be used, 130 after Ctrl-C, 143 after SIGTERM.",
)
def demo(
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="How long to publish.")] = 8.0,
    rate: Annotated[
        int,
        typer.Option(min=1, max=1_000_000, help="Messages a second to aim at; a slow machine does fewer."),
    ] = 20_000,
    url: Annotated[
        str | None,
        typer.Option(help="Use this server instead of an embedded one.", show_default=False),
    ] = None,
    connect_timeout: ConnectTimeout = 5.0,
) -> None:
    """`aiopubsub demo`."""
    from .demo import demonstrate  # noqa: PLC0415  # only this command shows tables

    place = Place(url, is_embedded=url is None, connect_timeout=connect_timeout)
    run(demonstrate(place, seconds, rate))


@app.command(
    help="Look at a deployment: what it is, whether all that publishers and subscribers need works, and "
    "what to change.\n\n"
    "It looks at every server's version, role and settings, at what the user may do and at how long a "
    "round trip takes, and publishes messages that have to come back, to channels that begin with "
    "aiopubsub:doctor:. No setting is changed, and nothing stays behind.",
    epilog="Exit status: 0 when there is no problem, 1 when there is one or no server, 2 when the command "
    "line cannot be used, 130 after Ctrl-C, 143 after SIGTERM.",
)
def doctor(
    need: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What has to work, separated by commas: publish, subscribe, history, name (durable "
            "cursors); nothing else is looked at. Default: all are, and it is no problem if history and "
            "name don't work.",
            show_default=False,
        ),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            help="Look at permissions for this channel, without using it. Default: one of its own.",
            show_default=False,
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            help="Look at this user's permissions; the URL's user has to be allowed ACL DRYRUN. Default: "
            "the URL's user.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    url: Url = None,
    embedded: Embedded = False,
    connect_timeout: ConnectTimeout = 5.0,
) -> None:
    """`aiopubsub doctor`."""
    from .doctor import Options, examine  # noqa: PLC0415  # shows tables

    run(examine(Place(url, embedded, connect_timeout), Options(need, channel, user, json)))


@app.command(
    help="Measure this library beside redis-py, coredis, valkey-glide and bare sockets, in one run.\n\n"
    "Each contestant has a process of its own, they take turns, and what is shown is the median of "
    "the rounds. Less is better in the column 'cost / ours', which compares what is marked with *. "
    "Messages go to channels with names of their own; nothing stays behind on the server.\n\n"
    "Needs the extra 'server', or --url. Peers that are not installed are left out.",
    epilog="Exit status: 0 when all was measured, 1 when this library, the server or the system failed, 2 "
    "when the command line cannot be used, 130 after Ctrl-C, 143 after SIGTERM.",
)
def bench(
    cases: Annotated[
        str | None,
        typer.Option(
            help="What to measure, separated by commas: receive, pattern, fan-out, channels, publish, "
            "many, history, catch-up, latency, reconnect, memory, import; or one size of a family, such as "
            "receive-128. "
            "Default: all.",
            show_default=False,
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Beside whom, separated by commas: redis-py, coredis, glide, floor (bare sockets). "
            "Default: all that are installed.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Once and shortly: under two minutes in all.")
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="How often. Default: 5, or 1 with --quick.", show_default=False),
    ] = None,
    payload: Annotated[
        int, typer.Option(min=0, help="Bytes of a message, in cases that do not say otherwise.")
    ] = 128,
    json: Annotated[
        Path | None,
        typer.Option(help="Write all figures to this file.", dir_okay=False, show_default=False),
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(
            help="Draw the figures into this folder. Needs the extra 'bench'.",
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Use this server instead of an embedded one.", show_default=False),
    ] = None,
    connect_timeout: ConnectTimeout = 5.0,
) -> None:
    """`aiopubsub bench`."""
    from .bench import Options  # noqa: PLC0415  # only this command measures
    from .bench import bench as measure  # noqa: PLC0415

    place = Place(url, is_embedded=url is None, connect_timeout=connect_timeout)
    run(measure(place, Options(peers, cases, quick, rounds, payload, json, draw)))
