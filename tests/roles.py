"""The permissions of each role, as docs/how-to/security.md has them."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs/how-to/security.md"


def read_roles() -> dict[str, list[str]]:
    """The rules by role."""
    table = PAGE.read_text().split("| role | rules |\n|---|---|\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (.+) \| `(.+)` \|$", table, re.MULTILINE)
    return {role: rules.replace("\\|", "|").split() for role, rules in rows}


def all_commands() -> list[str]:
    """What a user needs who has every role."""
    return sorted({rule for rules in read_roles().values() for rule in rules if rule.startswith("+")})
