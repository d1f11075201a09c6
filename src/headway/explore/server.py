"""The web server of the explorer, which accepts requests only from this machine and its own page.

    GET /             the page, with its token and the id of the first trace
    GET /static/NAME  the files of the page
    GET /docs/lab/NAME/report.md   a report of the lab that the page refers to
    GET /trace/ID     a trace file, or a byte range of it
    POST /trace       a `TraceRequest` as JSON -> {"trace": ID}
    POST /export      the same, optionally with `address`, the part of the page's address after #
                      -> one HTML file

The page of a trace file (`serve_file`) has neither a token nor the POST requests.

Requests of other sites are refused (see `local`), and a POST needs the token, which only the page
can read.
"""

import asyncio
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType
from typing import Any, TypeVar, final

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from headway.explore import local, trace_file
from headway.explore.edits import Edit
from headway.explore.export import STATIC, page, shell
from headway.explore.tracers import Stop, Tracer, TraceRequest, never_stop
from headway.ladder.why import WHY

BODY = 64 * 2**10  # maximum bytes of a request
CHARACTERS = 100_000  # maximum length of a text
TEMPERATURE = 100  # the maximum; above it all tokens have almost the same probability
WAITING = 4  # maximum number of waiting requests
SECONDS = 60.0  # maximum time of one request
KEPT, BYTES = (
    8,
    2 * 2**30,
)  # trace files and their bytes; the first and the latest two are always kept

# The reports of the lab that the page refers to, by their paths; only a checkout has them.
_CHECKOUT = Path(__file__).parents[3]
REPORTS = {
    why.report: _CHECKOUT / why.report
    for why in WHY.values()
    if why.report and (_CHECKOUT / why.report).is_file()
}
FIELDS: dict[str, tuple[type, ...]] = {  # of a request, with their types in JSON
    "text": (str,),
    "edits": (list,),
    "write": (int,),
    "temperature": (float, int),
    "top_k": (int, NoneType),
    "seed": (int,),
    "other": (bool,),
}

_Result = TypeVar("_Result")


def serve(tracer: Tracer, first: TraceRequest, *, port: int, show: bool) -> None:
    """Serve the page until Ctrl-C, at this port or at the next free one.

    show: open the browser. Raises ValueError if `first` is invalid or no port is free.
    """
    with TemporaryDirectory(prefix="headway-") as folder:
        _serve(Traces(tracer, first, Path(folder)), port, show)  # first reports errors


def serve_file(path: Path, *, port: int, show: bool) -> None:
    """Serve the page of a trace file, which is read by ranges, until Ctrl-C; else as `serve`.

    Raises ValueError or OSError if the file cannot be shown: see `trace_file.opened`.
    """
    trace_file.opened(path)
    _serve(File(path), port, show)


def _serve(traces: "Traces | File", port: int, show: bool) -> None:
    queue = Queue()
    local.run(
        lambda port: app(traces, queue, port), port=port, show=show, stopping=queue.closing.set
    )


@final
class File:
    """One trace file of the user, under the id `first`. There is no model to ask."""

    first = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, name: str) -> Path | None:
        """Return the file for its id, if it still exists."""
        return self._path if name == self.first and self._path.is_file() else None


@final
class Traces:
    """The trace files, in a folder, of the first request (with the id `first`) and of the latest
    others.

    Raises ValueError if `first` is invalid.
    """

    def __init__(self, tracer: Tracer, first: TraceRequest, folder: Path) -> None:
        self._tracer, self._folder = tracer, folder
        self._kept: list[str] = []
        self.first = self.create(first).stem

    def find(self, request: TraceRequest | str) -> Path | None:
        """Return the file of a request, or of an id, if it exists."""
        name = request if isinstance(request, str) else _id(request)
        return self._path(name) if name in self._kept else None

    def create(self, request: TraceRequest, stop: Stop = never_stop) -> Path:
        """Return the file of a request; trace it if there is none. Not thread-safe.

        Raises ValueError for an invalid text.
        """
        existing = self.find(request)
        if existing:
            return existing
        if len(request.text) > CHARACTERS:
            raise ValueError(
                f"the text must have at most {CHARACTERS:,} characters (it has "
                f"{len(request.text):,})"
            )
        tensors, manifest = self._tracer.trace(request, stop)
        stop()
        path = self._path(_id(request))
        trace_file.save(path, tensors, manifest)
        self._kept.append(path.stem)
        while len(self._kept) > KEPT or (self._bytes() > BYTES and len(self._kept) > 3):
            self._path(self._kept.pop(1)).unlink()  # 0 is the first request
        return path

    def _bytes(self) -> int:
        return sum(self._path(name).stat().st_size for name in self._kept)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


@final
class Queue:
    """Runs one task at a time, in a thread; a few others wait.

    closing: set when the server stops, so that a running task stops too.
    """

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._turn = asyncio.Lock()
        self._inside = 0

    async def run(self, request: Request, work: Callable[[Stop], _Result]) -> _Result:
        """Call `work(stop)` in its turn, unless the client has disconnected, and return its result.

        Raises HTTPException: 503 if too many requests wait, 504 if it takes too long.
        """
        if self._inside > WAITING:
            raise HTTPException(503, "busy, try again")
        gone = threading.Event()
        scope = anyio.CancelScope()  # ends the waiting; running work continues until `stop`
        self._inside += 1
        watcher = asyncio.create_task(_watch(request, gone, scope))
        try:
            with scope:
                async with self._turn:
                    deadline = time.monotonic() + SECONDS

                    def stop() -> None:
                        if self.closing.is_set() or gone.is_set():
                            raise HTTPException(503, "the explorer was stopped or the page closed")
                        if time.monotonic() > deadline:
                            raise HTTPException(
                                504, f"no result within {SECONDS:g} seconds: give a shorter text"
                            )

                    stop()
                    return await anyio.to_thread.run_sync(work, stop)
        finally:
            watcher.cancel()
            self._inside -= 1
        raise HTTPException(503, "the page was closed")


async def _watch(request: Request, gone: threading.Event, scope: anyio.CancelScope) -> None:
    """Wait until the client disconnects; then set `gone` and cancel the scope."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()
    scope.cancel()


def app(traces: Traces | File, queue: Queue, port: int) -> Starlette:
    """Return the web application."""
    # Without a model there is no token, by which the page knows that it cannot ask.
    token = secrets.token_urlsafe() if isinstance(traces, Traces) else ""

    async def index(request: Request) -> Response:
        index = shell(REPORTS)
        for name, value in (("headway-token", token), ("headway-trace", traces.first)):
            index = index.replace(f'name="{name}" content=""', f'name="{name}" content="{value}"')
        return HTMLResponse(index)

    async def static(request: Request) -> Response:
        return local.static(STATIC, request.path_params["name"])

    async def report(request: Request) -> Response:
        file = REPORTS.get(request.url.path.removeprefix("/"))
        if not file:
            raise HTTPException(404, "report not found")
        return FileResponse(file, media_type="text/plain; charset=utf-8")

    async def trace(request: Request) -> Response:
        file = traces.find(request.path_params["id"])
        if not file:
            raise HTTPException(404, "trace not found; it may be too old, request it again")
        return FileResponse(file, media_type="application/octet-stream")

    return local.application(
        [
            Route("/", index),
            Route("/static/{name}", static),
            Route("/docs/{path:path}", report),
            Route("/trace/{id}", trace),
            *(_posts(traces, queue, token) if isinstance(traces, Traces) else ()),
        ],
        port,
    )


def _posts(traces: Traces, queue: Queue, token: str) -> list[Route]:
    async def new_trace(request: Request) -> Response:
        wanted = _trace_request(await _posted(request, token))
        file = traces.find(wanted)
        if not file:
            file = await queue.run(request, lambda stop: traces.create(wanted, stop))
        return JSONResponse({"trace": file.stem})

    async def export(request: Request) -> Response:
        posted = await _posted(request, token)
        address = posted.pop("address", "")
        if type(address) is not str:
            raise ValueError("`address` must be a string")
        wanted = _trace_request(posted)

        def export_page(stop: Stop) -> bytes:
            trace = trace_file.load(traces.create(wanted, stop))
            base = None
            if wanted.edits or "other" in trace[1]:
                original = replace(wanted, edits=(), other=not wanted.edits)
                base = trace_file.load(traces.create(original, stop))
            stop()
            return page(*trace, address, base).encode()

        attachment = {"Content-Disposition": 'attachment; filename="headway.html"'}
        return HTMLResponse(await queue.run(request, export_page), headers=attachment)

    return [
        Route("/trace", new_trace, methods=["POST"]),
        Route("/export", export, methods=["POST"]),
    ]


async def _posted(request: Request, token: str) -> dict[str, Any]:
    """Return the JSON object that the page sent. Raises HTTPException or ValueError if invalid."""
    given = request.headers.get("x-headway-token", "")
    if not secrets.compare_digest(given.encode(), token.encode()):
        raise HTTPException(403, "the explorer was restarted: reload the page")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "the request must be application/json")
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > BODY:  # counted, because Content-Length may be missing
                message = f"the request must have at most {BODY // 1024} KiB: give a shorter text"
                raise HTTPException(413, message, headers={"Connection": "close"})
    except ClientDisconnect:
        raise HTTPException(400, "the request is incomplete") from None
    try:
        posted = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request is not valid JSON: {error}") from None
    if not isinstance(posted, dict):
        raise ValueError("the request must be a JSON object")
    return posted


def _trace_request(posted: dict[str, Any]) -> TraceRequest:
    """Convert a JSON object, of which only `text` is required. Raises ValueError if invalid."""
    if "text" not in posted:
        raise ValueError("the request must have a `text`")
    for name, value in posted.items():
        if name not in FIELDS:
            raise ValueError(f"unknown field {name!r} in the request; known: {', '.join(FIELDS)}")
        if type(value) not in FIELDS[name]:
            raise ValueError(f"invalid type of {name}: {value!r:.40}")
    temperature = posted.get("temperature", TraceRequest.temperature)
    if not 0 <= temperature <= TEMPERATURE:  # also refuses NaN
        raise ValueError(f"temperature must be from 0 to {TEMPERATURE} (got {temperature!r:.40})")
    edits = tuple(map(Edit.from_json, posted.get("edits", ())))
    return TraceRequest(**{**posted, "edits": edits, "temperature": float(temperature)})


def _id(request: TraceRequest) -> str:
    return hashlib.sha256(json.dumps(asdict(request), sort_keys=True).encode()).hexdigest()
