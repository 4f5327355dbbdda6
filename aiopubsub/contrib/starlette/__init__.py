"""Starlette, and FastAPI which is built on it: a client for the application, websockets, event streams.

    app = Starlette(routes=[...], lifespan=lifespan("redis://localhost"))

Lives here: what has to know both sides, such as that a browser has gone, or where one that comes back
stood. Must not live here: what Starlette or `sse-starlette` do. Applications call.
"""

from aiopubsub.errors import MissingExtra

try:
    from .application import client_of, lifespan, publisher_of
    from .event_stream import EventStream, EventStreamOptions, text_of
    from .websockets import Event, pump
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] not in ("starlette", "sse_starlette"):
        raise
    raise MissingExtra("aiopubsub.contrib.starlette", "starlette") from _error

__all__ = [
    "Event",
    "EventStream",
    "EventStreamOptions",
    "client_of",
    "lifespan",
    "publisher_of",
    "pump",
    "text_of",
]
