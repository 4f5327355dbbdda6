"""The permissions of each role, as docs/how-to/security.md has them."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs/how-to/security.md"


def read_file() -> str:
    """The file of users, as it stands."""
    return re.findall(r'```text title="users.acl"\n(.*?)```', PAGE.read_text(), re.DOTALL)[0]


def read_roles() -> dict[str, list[str]]:
    """The rules by role, without those that come first in all of them."""
    line = re.compile(r"^user (\S+) on >secret resetkeys resetchannels -@all (.+)$", re.MULTILINE)
    return {role: rules.split() for role, rules in line.findall(read_file())}


def read_sentinel_rules() -> list[str]:
    """What a client needs on a sentinel."""
    return re.findall(
        r"^user asks on >secret resetkeys resetchannels -@all (.+)$", PAGE.read_text(), re.MULTILINE
    )[0].split()


def all_commands(*, in_cluster: bool) -> set[str]:
    """What a user needs who has every role."""
    commands = {rule for rules in read_roles().values() for rule in rules if rule.startswith("+")}
    if in_cluster:
        told = PAGE.read_text().split("In a Redis Cluster")[1].split("\n\n")[1]
        commands |= set(re.findall(r"\+[\w|]+", told))
    return commands
