"""The command line: `aiopubsub pub`, `sub`, `chat` and `demo` (docs/cli.md). Needs the extra `cli`.

Defines nothing; `app` holds the commands. Nothing in the library may import this package.
"""
