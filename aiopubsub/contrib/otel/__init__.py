"""OpenTelemetry: traces from publisher to subscriber, and metrics of clients and subscribers.

    telemetry = Telemetry()  # once, after OpenTelemetry was set up
    pub = telemetry.publisher(client)
    async for msg in sub:
        with telemetry.process(msg):
            ...

By the semantic conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/). The context of a trace
travels in the headers of messages. Who does not import this pays nothing: the library does not know of
it.

Lives here: what spans and instruments are called and told. Must not live here: exporting and sampling,
which are the application's.
"""

from aiopubsub.errors import MissingExtra

try:
    from .telemetry import Telemetry, TracedPublisher, context_of
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise MissingExtra("aiopubsub.contrib.otel", "otel") from _error

__all__ = ["Telemetry", "TracedPublisher", "context_of"]
