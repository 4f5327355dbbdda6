"""The permissions of each role, as docs/how-to/security.md has them."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs/how-to/security.md"


def read_roles() -> dict[str, list[str]]:
    """The rules by role."""
    return _read("| role | rules |")


def all_commands(*, in_cluster: bool) -> set[str]:
    """What a user needs who has every role."""
    tables = [read_roles(), _read("| role in a cluster | rules |") if in_cluster else {}]
    return {rule for table in tables for rules in table.values() for rule in rules if rule.startswith("+")}


def _read(heading: str) -> dict[str, list[str]]:
    """A table of the page: the rules, up to what they stand instead of."""
    table = PAGE.read_text().split(f"{heading}\n|---|---|\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (.+) \| `(.+?)`.* \|$", table, re.MULTILINE)
    return {role: rules.replace("\\|", "|").split() for role, rules in rows}
