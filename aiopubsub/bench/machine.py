"""What the figures were taken on: enough to judge them, nothing that tells whose machine it is.

Lives here: model of the processor, versions. Must not live here: host names, paths. `run` calls.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import hiredis

from .raw import Address, RawConnection

__all__ = ["describe_machine", "describe_server", "library_versions"]

_DISTRIBUTIONS = ("aiopubsub-redis", "redis", "hiredis", "coredis", "valkey-glide", "uvloop")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, system and Python."""
    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def library_versions() -> dict[str, str]:
    """The versions of those that are installed."""
    versions: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_server(address: Address) -> str:
    """Its name and version, as far as it tells.

    Raises:
        OSError: There is no connection.
        hiredis.ReplyError: The server refused the login.
    """
    connection = RawConnection(address)
    try:
        text = connection.call("INFO", "server")
    except hiredis.ReplyError:
        return "unknown"
    finally:
        connection.close()
    told = dict(line.partition(":")[::2] for line in getattr(text, "data", text).decode().splitlines())
    if "valkey_version" in told:
        return f"Valkey {told['valkey_version']}"
    return f"Redis {told.get('redis_version', '(unknown)')}"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
