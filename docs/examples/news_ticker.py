"""A news ticker with server-sent events, in a few lines.

    pip install 'aiopubsub-redis[starlette]' uvicorn
    REDIS_URL=redis://localhost:6379 uvicorn news_ticker:app
    aiopubsub pub news "it rains" --history

Open http://localhost:8000 and publish. Close the lid of your laptop, publish more, and open it again: the
browser comes back with the last id that it was sent, and gets what it missed.
"""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

import aiopubsub as ps
from aiopubsub.contrib.starlette import EventStream, client_of, lifespan

NEWS = ps.Topic.text("news", history=ps.History(size=1000))

PAGE = """
<!doctype html>
<title>News</title>
<h1>News</h1>
<ul id="news"></ul>
<script>
  function add(text) {
    const line = document.createElement("li");
    line.textContent = text;
    document.getElementById("news").append(line);
  }
  let last = "";
  function listen() {
    const events = new EventSource(`events?last=${encodeURIComponent(last)}`);
    events.onmessage = (event) => { last = event.lastEventId; add(event.data); };
    events.addEventListener("gap", (event) => {
      last = event.lastEventId;
      add(`${JSON.parse(event.data).missed ?? "some"} are missing`);
    });
    events.onerror = () => {  // after a 503 it would not come back by itself
      if (events.readyState === EventSource.CLOSED) setTimeout(listen, 1000);
    };
  }
  listen();
</script>
"""


async def page(_: Request) -> HTMLResponse:
    """The page."""
    return HTMLResponse(PAGE)


async def events(request: Request) -> EventStream:
    """The news: all that is kept for who is new, what was missed for who comes back."""
    last = request.query_params.get("last")
    return EventStream(request, client_of(request), NEWS, since="beginning", last_event_id=last)


app = Starlette(
    routes=[Route("/", page), Route("/events", events)],
    lifespan=lifespan(os.environ.get("REDIS_URL", "redis://localhost:6379")),
)
