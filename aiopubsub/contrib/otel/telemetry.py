"""`Telemetry`: an application's spans and metrics; `TracedPublisher`, whose publishes are spans.

Lives here: spans, their attributes, durations, and when figures are looked at. Must not live here: which
figures there are (`figures`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation

from aiopubsub.client import Client, Source
from aiopubsub.message import Message, Receipt
from aiopubsub.publisher import BytesLike, Publisher
from aiopubsub.subscriber import Subscriber
from aiopubsub.topic import Pattern, Topic

from .figures import COUNTERS, GAUGES, Figure, Watched

__all__ = ["Telemetry", "TracedPublisher", "context_of"]

T = TypeVar("T")

_NAME = "aiopubsub"
_SCHEMA = "https://opentelemetry.io/schemas/1.27.0"  # the names of attributes are those of this version
_BUCKETS_S = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]


def context_of(message: Message[Any]) -> Context:
    """The context of the trace that a message was published in; an empty one if it tells of none.

    For spans of your own: `tracer.start_as_current_span("…", context=context_of(message))`.
    """
    return propagate.extract(message.headers, Context())


class Telemetry:
    """Traces and metrics of an application's clients, publishers and subscribers.

    Made once, after OpenTelemetry was set up. Exporting and sampling are the application's.

    Args:
        tracer_provider: Where spans go; `None` is the global one.
        meter_provider: Where metrics go; `None` is the global one.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_NAME, None, tracer_provider, _SCHEMA)
        meter = metrics.get_meter(_NAME, "", meter_provider, _SCHEMA)
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Messages that were published."
        )
        self._publishing_s = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "From a call of publish or publish_many to its receipts.",
            explicit_bucket_boundaries_advisory=_BUCKETS_S,
        )
        self._processing_s = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "Time spent in `with telemetry.process(message)`.",
            explicit_bucket_boundaries_advisory=_BUCKETS_S,
        )
        self._watched: list[tuple[str, Watched]] = []
        self._past: dict[str, dict[tuple[str, str], float]] = {counter.name: {} for counter in COUNTERS}
        for figure in COUNTERS:
            meter.create_observable_counter(figure.name, [self._observer(figure)], figure.unit, figure.text)
        for figure in GAUGES:
            meter.create_observable_gauge(figure.name, [self._observer(figure)], figure.unit, figure.text)

    def publisher(
        self,
        source_or_client: Source | Client,
        *,
        timeout: float = 5.0,
        max_in_flight: int = 10_000,
    ) -> TracedPublisher:
        """A publisher whose publishes are spans, and whose messages carry the context of the trace.

        The arguments are those of `Publisher`.
        """
        return TracedPublisher(self, source_or_client, timeout=timeout, max_in_flight=max_in_flight)

    @contextmanager
    def process(self, message: Message[Any], *, continue_trace: bool = False) -> Generator[trace.Span]:
        """A span for the work on one message; an exception marks it as failed and goes on.

        Args:
            message: What is worked on.
            continue_trace: Whether the span is a child of the publisher's, in its trace. By default it
                is linked to it, as the conventions have it: a message has many subscribers, and their
                work may be long after.
        """
        attributes = _attributes("process", "process", message.channel)
        attributes["messaging.message.body.size"] = len(message.payload)
        name = message.channel
        if isinstance(message.topic, Pattern):  # which are few, where channels may be many
            name = attributes["messaging.destination.template"] = message.topic.name
        if message.position is not None:
            attributes["messaging.message.id"] = str(message.position)
        origin = context_of(message)
        creation = trace.get_current_span(origin).get_span_context()
        is_told = creation.is_valid
        with self._span(
            f"process {name}",
            trace.SpanKind.CONSUMER,
            self._processing_s,
            attributes,
            context=origin if continue_trace and is_told else None,
            links=[trace.Link(creation)] if is_told and not continue_trace else [],
        ) as span:
            yield span

    @contextmanager
    def watch(self, name: str, *watched: Client | Subscriber[Any]) -> Generator[None]:
        """Export the `stats` of clients and subscribers while the body runs.

        They are looked at when metrics are collected, and at no other time, from whichever thread that
        is done. Those that are watched under one name are added up, so that the metrics stay few where
        subscribers are many. The counts of those that have ended stay in the sum.

        Args:
            name: What the metrics call them, in their attribute `client` or `subscriber`.
            *watched: Clients and subscribers, open or not.
        """
        entries = [(name, each) for each in watched]
        self._watched += entries
        try:
            yield
        finally:
            for entry in entries:
                self._watched.remove(entry)
                for counter in COUNTERS:
                    past = self._past[counter.name]
                    for part, count in counter.of(entry[1]).items():
                        past[name, part] = past.get((name, part), 0) + count

    # -- inside ------------------------------------------------------------------------------------

    @contextmanager
    def _span(
        self,
        name: str,
        kind: trace.SpanKind,
        duration_s: metrics.Histogram,
        attributes: dict[str, str | int],
        *,
        context: Context | None = None,
        links: list[trace.Link] | None = None,
    ) -> Generator[trace.Span]:
        """A span, current in the body, and its duration; both are told of an error."""
        told = _low(attributes)
        began_at = time.perf_counter()
        with self._tracer.start_as_current_span(name, context, kind, attributes, links) as span:
            try:
                yield span
            except BaseException as error:
                told["error.type"] = type(error).__qualname__
                span.set_attribute("error.type", type(error).__qualname__)
                raise
            finally:
                duration_s.record(time.perf_counter() - began_at, told)

    @contextmanager
    def _publishing(
        self, topic: str | None, headers: Mapping[str, str] | None
    ) -> Generator[tuple[trace.Span, Mapping[str, str]]]:
        """A span around publishing, and the headers with its context."""
        attributes = _attributes("publish", "send", topic)
        name = "publish" if topic is None else f"publish {topic}"
        with self._span(name, trace.SpanKind.PRODUCER, self._publishing_s, attributes) as span:
            carrier = dict(headers or {})
            propagate.inject(carrier)
            yield span, carrier

    def _count_sent(self, topic: str | None, count: int) -> None:
        self._sent.add(count, _low(_attributes("publish", "send", topic)))

    def _observer(self, figure: Figure) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> list[Observation]:
            sums: defaultdict[tuple[str, str], float] = defaultdict(int, self._past.get(figure.name, {}))
            for name, watched in list(self._watched):
                for part, value in figure.of(watched).items():
                    sums[name, part] += value
            return [
                Observation(value, {figure.owner: name, **({"link": part} if part else {})})
                for (name, part), value in sums.items()
            ]

        return observe


class TracedPublisher(Publisher):
    """A `Publisher` whose publishes are spans. `Telemetry.publisher` makes one.

    Messages carry the context of the trace in headers (`traceparent` and the like), so they are framed:
    subscribers of this library do not see that, other clients see one header line in front. Where
    OpenTelemetry is not set up there is nothing to carry, and messages stay as they are.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        source_or_client: Source | Client,
        *,
        timeout: float = 5.0,
        max_in_flight: int = 10_000,
    ) -> None:
        super().__init__(source_or_client, timeout=timeout, max_in_flight=max_in_flight)
        self._telemetry = telemetry

    @overload
    async def publish(
        self, topic: str | Topic[bytes], data: BytesLike, *, headers: Mapping[str, str] | None = None
    ) -> Receipt: ...

    @overload
    async def publish(
        self, topic: Topic[T], data: T, *, headers: Mapping[str, str] | None = None
    ) -> Receipt: ...

    async def publish(
        self, topic: str | Topic[Any], data: Any, *, headers: Mapping[str, str] | None = None
    ) -> Receipt:
        """As `Publisher.publish`, in a span of the kind PRODUCER, whose context the message carries."""
        name = _name_of(topic)
        with self._telemetry._publishing(name, headers) as (span, carrier):
            receipt = await super().publish(topic, data, headers=carrier)
            span.set_attribute("aiopubsub.receivers", receipt.receivers)
            if receipt.position is not None:
                span.set_attribute("messaging.message.id", str(receipt.position))
                span.set_attribute("aiopubsub.duplicate", receipt.duplicate)
        self._telemetry._count_sent(name, 1)
        return receipt

    @overload
    async def publish_many(
        self,
        topic: str | Topic[bytes],
        items: Iterable[BytesLike],
        /,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> list[Receipt]: ...

    @overload
    async def publish_many(
        self, topic: Topic[T], items: Iterable[T], /, *, headers: Mapping[str, str] | None = None
    ) -> list[Receipt]: ...

    @overload
    async def publish_many(
        self,
        pairs: Iterable[tuple[str | Topic[Any], Any]],
        /,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> list[Receipt]: ...

    async def publish_many(
        self,
        first: Any,
        items: Iterable[Any] | None = None,
        /,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> list[Receipt]:
        """As `Publisher.publish_many`, in one span, whose context all the messages carry."""
        name = None if items is None else _name_of(first)
        arguments = (first,) if items is None else (first, items)
        with self._telemetry._publishing(name, headers) as (span, carrier):
            receipts = await super().publish_many(*arguments, headers=carrier)
            span.set_attribute("messaging.batch.message_count", len(receipts))
        self._telemetry._count_sent(name, len(receipts))
        return receipts


def _name_of(topic: str | Topic[Any]) -> str | None:
    """The channel; what is no topic at all, `publish` itself refuses."""
    return topic.name if isinstance(topic, Topic) else str(topic)


def _attributes(name: str, kind: str, channel: str | None) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "messaging.system": "redis",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
    }
    if channel is not None:
        attributes["messaging.destination.name"] = channel
    return attributes


def _low(attributes: Mapping[str, str | int]) -> dict[str, str | int]:
    """Those that are few enough for metrics: a pattern instead of the channels that it matches."""
    low = {key: attributes[key] for key in ("messaging.system", "messaging.operation.name")}
    for key in ("messaging.destination.template", "messaging.destination.name"):
        if key in attributes:
            return low | {key: attributes[key]}
    return low
