"""Traces and metrics, as OpenTelemetry's own exporters get them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import aiopubsub as ps
from aiopubsub.contrib.otel import Telemetry, context_of
from aiopubsub.contrib.otel.figures import Figure
from aiopubsub.testing import Server

pytestmark = pytest.mark.anyio

KEPT = ps.Topic.text("kept", history=ps.History(size=10))


@dataclass
class Seen:
    """What was exported."""

    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)

    def __post_init__(self) -> None:
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meter_provider = MeterProvider([self.reader])
        self.telemetry = Telemetry(tracer_provider=self.tracer_provider, meter_provider=self.meter_provider)

    def span(self, name: str) -> ReadableSpan:
        """The one span of this name."""
        (span,) = [span for span in self.exporter.get_finished_spans() if span.name == name]
        return span

    def points(self, name: str) -> dict[tuple[str, ...], Any]:
        """The points of one metric, by the values of their attributes."""
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            tuple(point.attributes.values()): getattr(point, "value", getattr(point, "count", None))
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        }


@pytest.fixture
def seen() -> Iterator[Seen]:
    seen = Seen()
    yield seen
    seen.tracer_provider.shutdown()
    seen.meter_provider.shutdown()


@pytest.fixture(params=["memory", "valkey"])
def url(request: pytest.FixtureRequest) -> str:
    """Both kinds of places."""
    if request.param == "memory":
        return f"memory://{request.node.name}"
    server: Server = request.getfixturevalue("valkey")
    return server.url


async def test_a_trace_goes_with_the_message(seen: Seen, url: str) -> None:
    """The publisher's span is a PRODUCER; the consumer's has a link to it, and a trace of its own."""
    async with ps.Client(url) as client, ps.Subscriber(client, "c") as sub:
        pub = seen.telemetry.publisher(client)
        await pub.publish("c", b"hello", headers={"mine": "1"})
        message = await anext(sub)
        with seen.telemetry.process(message):
            pass
    sent, processed = seen.span("publish c"), seen.span("process c")
    assert (sent.kind, processed.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert sent.attributes == {
        "messaging.system": "redis",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "c",
        "aiopubsub.receivers": 1,
    }
    assert processed.attributes == {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "c",
        "messaging.message.body.size": 5,
    }
    (link,) = processed.links
    assert link.context.span_id == sent.context.span_id
    assert processed.parent is None
    assert processed.context.trace_id != sent.context.trace_id
    assert message.headers["mine"] == "1"


async def test_a_trace_can_go_on(seen: Seen, url: str) -> None:
    """With `continue_trace` the consumer's span is a child of the publisher's; `context_of` says whose."""
    async with ps.Client(url) as client, ps.Subscriber(client, ps.Pattern("c*")) as sub:
        await seen.telemetry.publisher(client).publish("c1", b"x")
        message = await anext(sub)
        with seen.telemetry.process(message, continue_trace=True):
            pass
    sent, processed = seen.span("publish c1"), seen.span("process c*")
    assert processed.parent is not None
    assert processed.parent.span_id == sent.context.span_id
    assert not processed.links
    assert processed.attributes is not None
    assert processed.attributes["messaging.destination.name"] == "c1"
    assert processed.attributes["messaging.destination.template"] == "c*"
    assert context_of(message)


async def test_a_history_tells_the_messages_id(seen: Seen, url: str) -> None:
    """Both spans have the position as `messaging.message.id`."""
    async with ps.Client(url) as client, ps.Subscriber(client, KEPT) as sub:
        receipt = await seen.telemetry.publisher(client).publish(KEPT, "x")
        with seen.telemetry.process(await anext(sub)):
            pass
    for name in ("publish kept", "process kept"):
        attributes = seen.span(name).attributes
        assert attributes is not None
        assert attributes["messaging.message.id"] == str(receipt.position)


async def test_many_messages_have_one_span(seen: Seen, url: str) -> None:
    """All of a `publish_many` carry the context of its span; with pairs that names no channel."""
    async with ps.Client(url) as client, ps.Subscriber(client, "a", "b") as sub:
        pub = seen.telemetry.publisher(client)
        await pub.publish_many("a", [b"1", b"2"])
        await pub.publish_many([("a", b"3"), ("b", b"4")], headers={"mine": "1"})
        messages = [await anext(sub) for _ in range(4)]
    assert [message.headers.get("mine") for message in messages] == [None, None, "1", "1"]
    parents = [message.headers["traceparent"].split("-")[2] for message in messages]
    spans = [format(seen.span(name).context.span_id, "016x") for name in ("publish a", "publish")]
    assert parents == [spans[0], spans[0], spans[1], spans[1]]
    counts = [
        (seen.span(name).attributes or {})["messaging.batch.message_count"]
        for name in ("publish a", "publish")
    ]
    assert counts == [2, 2]


async def test_failures_are_told(seen: Seen) -> None:
    """An exception in the body, and one in `publish`, are in the span and in its duration's attributes."""
    async with ps.Client("memory://") as client, ps.Subscriber(client, "c") as sub:
        pub = seen.telemetry.publisher(client)
        await pub.publish("c", b"x")
        with pytest.raises(KeyError), seen.telemetry.process(await anext(sub)):
            raise KeyError
        await pub.aclose()
        with pytest.raises(ps.Closed):
            await pub.publish("d", b"x")
    for name, error in (("process c", "KeyError"), ("publish d", "Closed")):
        span = seen.span(name)
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == error
    assert seen.points("messaging.process.duration") == {("redis", "process", "c", "KeyError"): 1}
    assert seen.points("messaging.client.operation.duration") == {
        ("redis", "publish", "c"): 1,
        ("redis", "publish", "d", "Closed"): 1,
    }
    assert seen.points("messaging.client.sent.messages") == {("redis", "publish", "c"): 1}


async def test_nobody_knows_of_a_trace(seen: Seen) -> None:
    """A message that was published without one is processed without a link."""
    async with ps.Client("memory://") as client, ps.Subscriber(client, "c") as sub:
        await ps.Publisher(client).publish("c", b"x")
        for continue_trace in (False, True):
            await ps.Publisher(client).publish("c", b"x", headers={"traceparent": "nonsense"})
            with seen.telemetry.process(await anext(sub), continue_trace=continue_trace):
                pass
    for span in seen.exporter.get_finished_spans():
        assert not span.links
        assert span.parent is None


async def test_nothing_is_carried_where_nothing_is_set_up(url: str) -> None:
    """Without a provider messages stay plain, so that other clients see the payload alone."""
    async with ps.Client(url) as client, ps.Subscriber(client, "c") as sub:
        telemetry = Telemetry()
        await telemetry.publisher(client).publish("c", b"x")
        message = await anext(sub)
        assert message.headers == {}
        with telemetry.process(message):
            pass


async def test_stats_are_metrics_while_they_are_watched(seen: Seen, url: str) -> None:
    """Each figure of `stats`, by name; what has ended stays in the counts and leaves the gauges."""
    async with ps.Client(url) as client, ps.Subscriber(client, "c", buffer=2) as sub:
        with seen.telemetry.watch("here", client, sub):
            await ps.Publisher(client).publish_many("c", [b"1", b"2", b"3"])
            while sub.stats.received < 3:
                await asyncio.sleep(0)
            assert seen.points("aiopubsub.subscriber.received") == {("here",): 3}
            assert seen.points("aiopubsub.subscriber.dropped") == {("here",): 1}
            assert seen.points("aiopubsub.subscriber.buffered") == {("here",): 2}
            assert seen.points("aiopubsub.subscriber.buffered.size") == {("here",): 258}
            assert seen.points("aiopubsub.client.live") == {("here", "commands"): 1, ("here", "listens"): 1}
            assert seen.points("aiopubsub.client.down") == {("here", "commands"): 0, ("here", "listens"): 0}
            assert seen.points("aiopubsub.client.in_flight") == {("here",): 0}
            async with ps.Subscriber(client, "c") as other:
                with seen.telemetry.watch("here", other):
                    await ps.Publisher(client).publish("c", b"4")
                    while other.stats.received < 1 or sub.stats.received < 4:
                        await asyncio.sleep(0)
                    assert seen.points("aiopubsub.subscriber.received") == {("here",): 5}
            assert seen.points("aiopubsub.subscriber.received") == {("here",): 5}
            assert seen.points("aiopubsub.subscriber.buffered") == {("here",): 2}
    assert seen.points("aiopubsub.subscriber.received") == {("here",): 5}
    assert seen.points("aiopubsub.subscriber.buffered") == {}
    assert seen.points("aiopubsub.client.live") == {}


async def test_metrics_are_collected_in_another_thread(seen: Seen) -> None:
    """As exporters do, while messages come and go; no look fails."""
    async with ps.Client("memory://") as client, ps.Subscriber(client, "c") as sub:
        with seen.telemetry.watch("here", client, sub):
            looks: list[dict[tuple[str, ...], Any]] = []
            is_over = threading.Event()

            def look() -> None:
                while not is_over.is_set() or not looks:
                    looks.append(seen.points("aiopubsub.client.in_flight"))

            watching = asyncio.create_task(asyncio.to_thread(look))
            pub = ps.Publisher(client)
            while len(looks) < 5:
                await asyncio.gather(*(pub.publish("c", b"x") for _ in range(100)))
            is_over.set()
            await watching
    assert all(set(points) == {("here",)} for points in looks)


def test_a_look_into_a_change_is_taken_again() -> None:
    """What Python says of a collection that another thread is changing reaches nobody."""
    errors = [RuntimeError("deque mutated during iteration"), RuntimeError("changed size during iteration")]

    def read(_: object) -> dict[str, float]:
        if errors:
            raise errors.pop()
        return {"": 1}

    assert Figure("f", "", "", "client", read).of(ps.Client("memory://")) == {"": 1}


def test_it_costs_nothing_where_it_is_not_used() -> None:
    """The library knows nothing of OpenTelemetry, and loads nothing of this helper."""
    code = "import sys; sys.modules['opentelemetry'] = None\n"
    code += "import aiopubsub; print('aiopubsub.contrib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_the_extra_is_named_where_it_is_missing() -> None:
    """Without OpenTelemetry the import says what to install."""
    code = "import sys; sys.modules['opentelemetry'] = None; import aiopubsub.contrib.otel"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("pip install 'aiopubsub-redis[otel]'")
