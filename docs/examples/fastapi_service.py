"""A FastAPI service with typed messages: orders go in by POST, and come out where they are wanted.

    pip install 'aiopubsub-redis[starlette]' fastapi uvicorn
    REDIS_URL=redis://localhost:6379 uvicorn fastapi_service:app --workers 2

* `POST /orders` publishes an order, and answers when the server has it.
* `GET /orders` is a stream of server-sent events: a browser that was away gets what it missed.
* `GET /totals` is answered from memory: each process keeps its own count, from all orders of all processes.
* `GET /ready` says whether the connections are up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

import aiopubsub as ps
from aiopubsub.contrib.starlette import EventStream, client_of, lifespan, publisher_of

URL = os.environ.get("REDIS_URL", "redis://localhost:6379")


class Order(BaseModel):
    """What a customer wants."""

    item: str = Field(min_length=1, max_length=100)
    quantity: int = Field(gt=0, le=1000)


def encode_order(order: Order) -> bytes:
    return order.model_dump_json().encode()


ORDERS = ps.Topic(
    "shop.orders",
    encode=encode_order,
    decode=Order.model_validate_json,
    history=ps.History(size=10_000),
)

ClientOf = Annotated[ps.Client, Depends(client_of)]
PublisherOf = Annotated[ps.Publisher, Depends(publisher_of)]


async def count(orders: ps.Subscriber[Order], totals: Counter[str]) -> None:
    """Count all orders that there are, then each that comes."""
    async for message in orders:
        totals[message.data.item] += message.data.quantity


@contextlib.asynccontextmanager
async def life(app: FastAPI) -> AsyncGenerator[None]:
    """The client, and a task that counts while the application runs."""
    totals = app.state.totals = Counter[str]()
    async with (
        lifespan(URL)(app),
        ps.Subscriber(app.state.pubsub, ORDERS, since="beginning") as orders,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(count(orders, totals))
        yield
        await orders.aclose()  # ends the task


app = FastAPI(lifespan=life)


@app.post("/orders", status_code=201)
async def order(order: Order, publisher: PublisherOf) -> dict[str, str]:
    """Publish an order."""
    try:
        receipt = await publisher.publish(ORDERS, order)
    except ps.NotSent as error:
        raise HTTPException(503, "not stored, safe to try again") from error
    return {"position": str(receipt.position)}


@app.get("/orders")
async def orders(request: Request, client: ClientOf, since: str | None = None) -> EventStream:
    """All orders from a position on, or from now on, for as long as the browser stays."""
    return EventStream(request, client, ORDERS, since=since)


@app.get("/totals")
async def totals(request: Request) -> dict[str, int]:
    """How many of each item were ordered."""
    return dict(request.app.state.totals)


@app.get("/ready")
async def ready(client: ClientOf) -> dict[str, str]:
    """For the load balancer: 503 while a connection is down."""
    links = {role: link.state for role, link in client.stats.links.items()}
    if set(links.values()) != {"live"}:
        raise HTTPException(503, str(links))
    return links
