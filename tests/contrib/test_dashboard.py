"""The dashboard and the page about Prometheus name metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import REGISTRY

import aiopubsub as ps
from aiopubsub.contrib.otel import Telemetry

DOCS = Path(__file__).parent.parent.parent / "docs"
METRIC = re.compile(r"\b(?:aiopubsub|messaging)_(?:client|subscriber|process)_\w+")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def names_in(text: str) -> set[str]:
    """The series of an answer to Prometheus, our own."""
    return set(METRIC.findall(re.sub("^#.*$", "", text, flags=re.MULTILINE)))


@pytest.fixture
async def exported() -> set[str]:
    """What the exporter for Prometheus makes of our instruments."""
    reader = PrometheusMetricReader()
    provider = MeterProvider([reader])
    telemetry = Telemetry(meter_provider=provider)
    async with ps.Client("memory://") as client, ps.Subscriber(client, "c") as sub:
        with telemetry.watch("web", client, sub):
            await telemetry.publisher(client).publish("c", b"x")
            with telemetry.process(await anext(sub)):
                pass
            text = generate_latest(REGISTRY).decode()
    provider.shutdown()
    return names_in(text)


async def test_the_dashboard_shows_every_metric(exported: set[str]) -> None:
    """Each query asks for metrics that are exported; each figure of `stats` is on it."""
    dashboard: dict[str, Any] = json.loads((DOCS / "examples/grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in METRIC.findall(query)}
    assert asked <= exported
    assert {name for name in exported if name.startswith("aiopubsub_")} <= asked
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


async def test_the_pages_collector_says_the_same(exported: set[str]) -> None:
    """The collector of the how-to page has the names of the exporter, so the dashboard fits both."""
    page = (DOCS / "how-to/prometheus.md").read_text()
    scope: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], scope)
    collector, registry = scope["PubSubCollector"](), CollectorRegistry()
    registry.register(collector)
    async with ps.Client("memory://") as client, ps.Subscriber(client, "c") as sub:
        collector.clients["web"], collector.subscribers["c"] = client, sub
        said = names_in(generate_latest(registry).decode())
    assert said == {name for name in exported if name.startswith("aiopubsub_")}
