"""The command `aiopubsub`, also as `python -m aiopubsub`.

Lives here: finding out whether the extra `cli` is installed. Must not live here: the commands
themselves (`aiopubsub.cli`). Called by the entry point only.
"""

from __future__ import annotations

import sys

from .errors import MissingExtra

__all__ = ["main"]

_BROUGHT_BY_EXTRA = {"typer", "rich", "prompt_toolkit"}


def main() -> None:
    """Run the command line; the process ends with its exit status."""
    try:
        from .cli.app import app  # noqa: PLC0415  # an extra; without it there is a hint to print

        app(prog_name="aiopubsub")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _BROUGHT_BY_EXTRA:
            raise
        sys.exit(f"aiopubsub: {MissingExtra('the command line', 'cli')}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
