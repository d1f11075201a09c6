"""The explorer's web server: for this machine alone, and for the page that it serves alone.

    GET /             the page, with its token and the id of the first trace
    GET /static/NAME  the page's files
    GET /trace/ID     a trace file; byte ranges may be asked for
    POST /trace       a question as JSON (see `_ask`) -> {"trace": ID}
    POST /export      a question and perhaps `address`, what the page has after # -> one HTML file

Another site that is open in the same browser can send requests here. What keeps it out: the Host
and the Origin must be this server's, and a POST needs the token, which only the page can read.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import secrets
import socket
import threading
import time
import traceback
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType, NoneType
from typing import Any, TypeVar, final

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headway.explore import trace_file
from headway.explore.edits import Edit
from headway.explore.subjects import Ask, Stop, Subject, go_on

BODY = 64 * 2**10  # bytes of a question
CHARACTERS = 100_000  # of a text
TEMPERATURE = 100  # above it all tokens are as likely anyway
WAITING = 4  # questions in line behind the one at work
SECONDS = 60.0  # of work for one question
KEPT, BYTES = 8, 2 * 2**30  # trace files and their bytes; the first and the latest always stay

STATIC = Path(__file__).parent / "static"
# The system's own table may call a script what no browser runs.
MEDIA = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FIELDS: dict[str, tuple[type, ...]] = {  # of a question, and the types that JSON gives them
    "text": (str,),
    "edits": (list,),
    "write": (int,),
    "temperature": (float, int),
    "top_k": (int, NoneType),
    "seed": (int,),
}

_Answer = TypeVar("_Answer")


def serve(subject: Subject, first: Ask, *, port: int, show: bool) -> None:
    """Serve the page until Ctrl-C, at this port or at the next free one.

    show: open the browser. Raises ValueError when `first` cannot be answered or no port is free.
    """
    with TemporaryDirectory(prefix="headway-") as folder:
        traces = Traces(subject, first, Path(folder))  # what is wrong with it is said before all
        with _listener(port) as listener, suppress(KeyboardInterrupt):
            port = listener.getsockname()[1]
            line = Line()
            config = uvicorn.Config(
                _app(traces, line, port),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                server_header=False,
                timeout_graceful_shutdown=3,  # a download that stands still holds nobody up
            )
            address = f"http://127.0.0.1:{port}/"
            print(f"{address}  (Ctrl-C ends it)", flush=True)
            if show:  # in a thread: a browser in the terminal does not come back until it is left
                threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
            _Server(config, line).run([listener])


def app(subject: Subject, first: Ask, *, port: int, folder: Path) -> Starlette:
    """The pages of a subject, opened on `first`.

    folder: for the trace files. Raises ValueError when `first` cannot be answered.
    """
    return _app(Traces(subject, first, folder), Line(), port)


@final
class Traces:
    """The trace files: that of the first question, and of the latest others."""

    def __init__(self, subject: Subject, first: Ask, folder: Path) -> None:
        self._subject, self._folder = subject, folder
        self._kept: list[str] = []
        self.first = self.made(first)

    def file(self, ask: Ask | str) -> Path | None:
        """The file of a question, or of an id, if there is one."""
        name = ask if isinstance(ask, str) else _id(ask)
        return self._path(name) if name in self._kept else None

    def made(self, ask: Ask, stop: Stop = go_on) -> Path:
        """The file of a question, made if there is none. Not to be called twice at a time.

        Raises ValueError for a text that is too long or that the subject cannot read.
        """
        found = self.file(ask)
        if found:
            return found
        if len(ask.text) > CHARACTERS:
            raise ValueError(
                f"the text has {len(ask.text):,} characters, the explorer takes {CHARACTERS:,}: "
                "give a shorter one"
            )
        tensors, manifest = self._subject.trace(ask, stop)
        stop()
        path = self._path(_id(ask))
        trace_file.save(path, tensors, manifest)
        self._kept.append(path.stem)
        while len(self._kept) > KEPT or (self._bytes() > BYTES and len(self._kept) > 2):
            self._path(self._kept.pop(1)).unlink()  # 0 is the first question's
        return path

    def _bytes(self) -> int:
        return sum(self._path(name).stat().st_size for name in self._kept)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


@final
class Line:
    """One piece of work at a time, in a thread; a few wait for their turn.

    closing: set when the server ends, so that work ends too.
    """

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._turn = asyncio.Lock()
        self._inside = 0

    async def answer(self, request: Request, work: Callable[[Stop], _Answer]) -> _Answer:
        """What the work gives back. It is called with `stop`, and never when nobody waits for it.

        Raises HTTPException: 503 when too many wait, 504 when it took too long.
        """
        if self._inside > WAITING:
            raise HTTPException(503, "busy, try again")
        gone = threading.Event()
        scope = anyio.CancelScope()  # leaves the line; work at its turn runs on, until `stop`
        self._inside += 1
        leaving = asyncio.create_task(_leaving(request, gone, scope))
        try:
            with scope:
                async with self._turn:
                    deadline = time.monotonic() + SECONDS

                    def stop() -> None:
                        if self.closing.is_set() or gone.is_set():
                            raise HTTPException(503, "the explorer was ended, or you left")
                        if time.monotonic() > deadline:
                            raise HTTPException(
                                504, f"no answer within {SECONDS:g} seconds: give a shorter text"
                            )

                    stop()
                    return await anyio.to_thread.run_sync(work, stop)
        finally:
            leaving.cancel()
            self._inside -= 1
        raise HTTPException(503, "you left")


async def _leaving(request: Request, gone: threading.Event, scope: anyio.CancelScope) -> None:
    """Wait until the client has left, and say so."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()
    scope.cancel()


@final
class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, line: Line) -> None:
        super().__init__(config)
        self._line = line

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ctrl-C is the way to end it, no error: uvicorn's own would raise the signal again."""
        self._line.closing.set()
        self.should_exit = True


@final
class _Guard:
    """Around all routes: who may ask, the headers of every answer, and errors nobody foresaw."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        trusted = self._trusts(Headers(scope=scope))
        answer = self._app if trusted else _error(403, "this page is for its own browser tab only")
        try:
            await answer(scope, receive, with_headers)
        except Exception:
            traceback.print_exc()
            if begun:
                raise  # the connection is cut
            failed = _error(500, "that went wrong; the terminal of the explorer says how")
            await failed(scope, receive, with_headers)

    def _trusts(self, headers: Headers) -> bool:
        return (
            headers.get("host") in self._hosts
            and self._origins.issuperset(headers.getlist("origin"))
            and headers.get("sec-fetch-site") != "cross-site"
        )


def _app(traces: Traces, line: Line, port: int) -> Starlette:
    token = secrets.token_urlsafe()

    async def index(request: Request) -> Response:
        page = (STATIC / "index.html").read_text(encoding="utf-8")
        for name, value in (("headway-token", token), ("headway-trace", traces.first.stem)):
            page = page.replace(f'name="{name}" content=""', f'name="{name}" content="{value}"')
        return HTMLResponse(page)

    async def static(request: Request) -> Response:
        # A name is looked up among those that there are, so that no name leads elsewhere.
        files = {file.name: file for file in STATIC.iterdir() if file.suffix in MEDIA}
        file = files.get(request.path_params["name"])
        if not file:
            raise HTTPException(404, "no such file")
        return FileResponse(file, media_type=MEDIA[file.suffix])

    async def trace(request: Request) -> Response:
        file = traces.file(request.path_params["id"])
        if not file:
            raise HTTPException(404, "no such trace: it may be too old, ask again")
        return FileResponse(file, media_type="application/octet-stream")

    async def new_trace(request: Request) -> Response:
        ask = _ask(await _posted(request, token))
        found = traces.file(ask)
        if not found:
            found = await line.answer(request, lambda stop: traces.made(ask, stop))
        return JSONResponse({"trace": found.stem})

    async def export(request: Request) -> Response:
        posted = await _posted(request, token)
        address = posted.pop("address", "")
        if type(address) is not str:
            raise ValueError("`address` is a text: what the page has after #")
        ask = _ask(posted)

        def whole(stop: Stop) -> bytes:
            from headway.explore.export import page  # late: only those who save a page need it

            tensors, manifest = trace_file.load(traces.made(ask, stop))
            stop()
            return page(tensors, manifest, address).encode()

        attachment = {"Content-Disposition": 'attachment; filename="headway.html"'}
        return HTMLResponse(await line.answer(request, whole), headers=attachment)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/static/{name}", static),
            Route("/trace/{id}", trace),
            Route("/trace", new_trace, methods=["POST"]),
            Route("/export", export, methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, port=port)],
        exception_handlers={HTTPException: _refused, ValueError: _mistaken},
    )


async def _posted(request: Request, token: str) -> dict[str, Any]:
    """The JSON object that the page sent. Raises HTTPException or ValueError for anything else."""
    given = request.headers.get("x-headway-token", "")
    if not secrets.compare_digest(given.encode(), token.encode()):
        raise HTTPException(403, "the explorer was started anew: load the page again")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "a question is application/json")
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > BODY:  # counted, for a Content-Length may be missing
                much = f"a question has at most {BODY // 1024} KiB: give a shorter text"
                raise HTTPException(413, much, headers={"Connection": "close"})
    except ClientDisconnect:
        raise HTTPException(400, "the question was cut off") from None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the question is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("a question is a JSON object")
    return found


def _ask(found: dict[str, Any]) -> Ask:
    """A question as the page sends it: `text`, and what else an Ask has. Raises ValueError."""
    if "text" not in found:
        raise ValueError("a question has a `text`")
    for name, value in found.items():
        if name not in FIELDS:
            raise ValueError(f"a question has {', '.join(FIELDS)}: {name!r} is none of them")
        if type(value) not in FIELDS[name]:
            raise ValueError(f"{name} cannot be {value!r:.40}")
    temperature = found.get("temperature", Ask.temperature)
    if not 0 <= temperature <= TEMPERATURE:  # nor is it NaN
        raise ValueError(f"a temperature is from 0 to {TEMPERATURE}: {temperature!r:.40} is not")
    edits = tuple(map(Edit.from_json, found.get("edits", ())))
    return Ask(**{**found, "edits": edits, "temperature": float(temperature)})


def _id(ask: Ask) -> str:
    return hashlib.sha256(json.dumps(asdict(ask), sort_keys=True).encode()).hexdigest()


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(message.split())}, status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _error(error.status_code, error.detail)
    answer.headers.update(error.headers or {})
    return answer


async def _mistaken(request: Request, error: Exception) -> Response:
    return _error(400, str(error))


def _listener(port: int) -> socket.socket:
    """A socket that listens on this machine alone. Raises ValueError when no port is free."""
    if not 1024 <= port < 2**16:
        raise ValueError(f"a port is from 1024 to {2**16 - 1}: {port} is not")
    for free in range(port, min(port + 100, 2**16)):
        try:
            return socket.create_server(("127.0.0.1", free))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise ValueError(f"no port is free from {port} on: give another --port")
