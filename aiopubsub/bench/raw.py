"""A bare connection: a blocking socket and hiredis, with nothing in between.

Lives here: address, connect, log in, send, read a reply. Must not live here: what is sent. The floor,
the source of messages and whoever looks at the server from outside call.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import hiredis

__all__ = ["Address", "RawConnection", "pack"]

_TIMEOUT_S = 30.0  # longer than anything that a healthy server is asked for here
_READ_BYTES = 65_536

pack: Callable[[tuple[str | bytes | int, ...]], bytes] = cast("Any", hiredis).pack_command
"""A command as it travels; hiredis' own stub knows one of a single word only."""


@dataclass(frozen=True)
class Address:
    """Where a server is, taken from a URL, and fit for JSON.

    Attributes:
        host: Name or number; unused if there is a path.
        port: Of the host.
        path: Of a Unix socket, or `None`.
        username: Or `None` for the default user.
        password: Or `None` for none.
        tls: `None` for none; else the `ssl_…` settings of redis-py's URLs.
    """

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: dict[str, str] | None = None


class RawConnection:
    """A blocking connection that speaks RESP3.

    Args:
        address: Where to.

    Raises:
        OSError: There is no connection.
        hiredis.ReplyError: The server refused the login.
    """

    def __init__(self, address: Address) -> None:
        self.socket: socket.socket = _open_socket(address)
        self.reader: Any = hiredis.Reader()  # Any: its stub leaves types open
        user, password = address.username or "default", address.password
        self.call("HELLO", 3, *(() if password is None else ("AUTH", user, password)))

    def send(self, *commands: bytes) -> None:
        """Send commands that are packed."""
        self.socket.sendall(b"".join(commands))

    def call(self, *command: str | bytes | int) -> Any:
        """Send one command, and return its reply.

        Raises:
            hiredis.ReplyError: The server refused.
        """
        self.send(pack(command))
        return self.reply()

    def reply(self) -> Any:
        """The next reply or push.

        Raises:
            hiredis.ReplyError: It is an error.
            OSError: The connection is gone.
        """
        while (reply := self.reader.gets()) is False:
            self.read()
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def read(self) -> None:
        """Feed the parser with what comes next.

        Raises:
            ConnectionError: The server has closed the connection.
        """
        chunk = self.socket.recv(_READ_BYTES)
        if not chunk:
            raise ConnectionError("the server closed the connection")
        self.reader.feed(chunk)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def _open_socket(address: Address) -> socket.socket:
    if address.path is not None:
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(_TIMEOUT_S)
        plain.connect(address.path)
        return plain
    plain = socket.create_connection((address.host, address.port), timeout=_TIMEOUT_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if address.tls is None:
        return plain
    context = ssl.create_default_context(cafile=address.tls.get("ssl_ca_certs"))
    if address.tls.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "ssl_certfile" in address.tls:
        context.load_cert_chain(address.tls["ssl_certfile"], address.tls.get("ssl_keyfile"))
    return context.wrap_socket(plain, server_hostname=address.host)
