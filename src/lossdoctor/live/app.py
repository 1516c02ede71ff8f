"""The pages over HTTP: six addresses, all of them only read. Needs the extra `serve`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from importlib import resources

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lossdoctor.live.guard import Guard
from lossdoctor.live.hub import LIST, Hub
from lossdoctor.live.pages import COMPARED, compare_page, list_page, run_page
from lossdoctor.messages import languages
from lossdoctor.report.page.shell import charts, style

SCRIPTS = ("page", "connection", "curves", "place", "run", "compare", "list", "start")
"""The files of `script/`, in order: what the later ones use comes first."""

STREAMS = 100
"""Pages open at once."""

CURVES = 64
"""Curves in one answer at most."""


def application(hub: Hub, root: str, *, lang: str, hosts: Iterable[str], token: str | None, cookie: str) -> Guard:
    """The whole server behind its guard."""
    assets = {
        "live.css": ("text/css", style() + "\n" + _own("live.css")),
        "charts.js": ("text/javascript", charts()),
        "live.js": ("text/javascript", _script()),
        "early.js": ("text/javascript", _own("early.js")),
    }
    version = hashlib.sha256("".join(told for _, told in assets.values()).encode()).hexdigest()[:12]

    def spoken(request: Request) -> str:
        asked = request.query_params.get("lang", lang)
        return asked if asked in languages() else lang

    async def runs(request: Request) -> Response:
        return _page(list_page(root, spoken(request), version))

    async def run(request: Request) -> Response:
        name = request.query_params.get("run", "")
        if not name:
            return PlainTextResponse("run=?\n", 400)
        return _page(run_page(name, spoken(request), version), BackgroundTask(hub.expect, [name]))

    async def compare(request: Request) -> Response:
        names = list(dict.fromkeys(filter(None, request.query_params.getlist("run"))))
        if not 1 <= len(names) <= COMPARED:
            return PlainTextResponse(f"1 to {COMPARED} runs: run=A&run=B\n", 400)
        return _page(compare_page(names, spoken(request), version), BackgroundTask(hub.expect, names))

    async def stream(request: Request) -> Response:
        names = list(dict.fromkeys(filter(None, request.query_params.getlist("run")))) or [LIST]
        if len(names) > COMPARED:
            return PlainTextResponse(f"at most {COMPARED} runs\n", 400)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        if len(hub.subscribers) >= STREAMS or hub.stopping:
            return PlainTextResponse("too many pages are open\n", 503)
        return _Events(hub, names, request.headers.get("last-event-id") or request.query_params.get("last", ""))

    async def curves(request: Request) -> Response:
        name, opened = (request.query_params.get(asked, "") for asked in ("run", "opened"))
        places = [int(at) for at in request.query_params.getlist("at") if at.isdecimal() and len(at) < 9][:CURVES]
        told = await asyncio.to_thread(hub.curves, name, opened, places)
        if told is None:
            return PlainTextResponse("not this run, or not any more\n", 404)
        kept = {"content-encoding": "gzip", "cache-control": "no-store"}
        return Response(told, media_type="application/octet-stream", headers=kept)

    async def asset(request: Request) -> Response:
        found = assets.get(request.path_params["name"])
        if found is None:
            return PlainTextResponse("not found\n", 404)
        kept = "max-age=31536000, immutable" if request.query_params.get("v") == version else "no-cache"
        return Response(found[1], media_type=found[0], headers={"cache-control": kept})

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        working = asyncio.create_task(hub.run())
        yield
        hub.stop()
        await working

    pages = [
        Route("/", runs),
        Route("/run", run),
        Route("/compare", compare),
        Route("/stream", stream),
        Route("/curves", curves),
        Route("/assets/{name}", asset),
    ]
    return Guard(Starlette(routes=pages, lifespan=lifespan), hosts=hosts, token=token, cookie=cookie)


class _Events(Response):
    """A stream of server-sent events, as long as the page is open and the server runs."""

    def __init__(self, hub: Hub, topics: Sequence[str], last: str) -> None:
        self._hub, self._topics, self._last = hub, topics, last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        one = self._hub.subscribe(self._topics, self._last)

        async def closed() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            one.gone = True
            one.wake.set()

        watching = asyncio.create_task(closed())
        headers = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}
        told = [(name.encode(), value.encode()) for name, value in headers.items()]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": told})
            async with contextlib.aclosing(self._hub.stream(one)) as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            watching.cancel()
            self._hub.unsubscribe(one)


def _page(told: str, meanwhile: BackgroundTask | None = None) -> Response:
    kept = {"cache-control": "no-store"}
    return HTMLResponse(told.encode("utf-8", "replace"), headers=kept, background=meanwhile)


def _script() -> str:
    return '"use strict";\n(() => {\n' + "\n".join(_own(f"script/{name}.js") for name in SCRIPTS) + "})();\n"


def _own(name: str) -> str:
    return resources.files("lossdoctor.live").joinpath(name).read_text(encoding="utf-8")
