"""A web server that accepts requests only from this machine and its own page.

Other sites in the same browser could send requests too. They are refused, because Host and Origin
must be those of this server.
"""

import errno
import socket
import threading
import traceback
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import final

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The table of the operating system may be wrong for scripts.
MEDIA = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}
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


def application(routes: list[Route], port: int) -> Starlette:
    """Return a web application whose routes are guarded. port: where it will be served."""
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, port=port)],
        exception_handlers={HTTPException: _http_error, ValueError: _bad_request},
    )


def run(
    app: Callable[[int], Starlette],
    *,
    port: int,
    show: bool,
    starting: Callable[[], None] = lambda: None,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve an application until Ctrl-C, at this port or at the next free one.

    app: makes the application for a port. show: open the browser. starting: called when the address
    has been printed. stopping: called at Ctrl-C.
    Raises ValueError if no port is free.
    """
    with listener(port) as listening, suppress(KeyboardInterrupt):
        port = listening.getsockname()[1]
        config = uvicorn.Config(
            app(port),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            server_header=False,
            timeout_graceful_shutdown=3,  # a stalled download does not delay the exit
        )
        address = f"http://127.0.0.1:{port}/"
        print(f"{address}  (stop with Ctrl-C)", flush=True)
        starting()
        if show:  # in a thread, because a text browser blocks until it is closed
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
        _Server(config, stopping).run([listening])


def listener(port: int) -> socket.socket:
    """Return a socket that accepts only this machine. Raises ValueError if no port is free."""
    for free in range(port, min(port + 100, 2**16)):
        try:
            return socket.create_server(("127.0.0.1", free))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise ValueError(f"no free port from {port} to {port + 99}: give another --port")


def static(folder: Path, name: str) -> FileResponse:
    """Return a file of a page. Raises HTTPException if there is none with this name."""
    # A lookup among the existing names, so that no name leads to another folder.
    files = {file.name: file for file in folder.iterdir() if file.suffix in MEDIA}
    file = files.get(name)
    if not file:
        raise HTTPException(404, "file not found")
    return FileResponse(file, media_type=MEDIA[file.suffix])


@final
class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop without an error; uvicorn's method would raise the signal again."""
        self._stopping()
        self.should_exit = True


@final
class _Guard:
    """Wraps all routes: checks the sender, adds headers, and handles unexpected errors."""

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
        response = self._app if trusted else _error(403, "the page can be used in its own tab only")
        try:
            await response(scope, receive, with_headers)
        except Exception:
            traceback.print_exc()
            if begun:
                raise  # closes the connection
            failed = _error(500, "internal error; see the terminal of the server")
            await failed(scope, receive, with_headers)

    def _trusts(self, headers: Headers) -> bool:
        return (
            headers.get("host") in self._hosts
            and self._origins.issuperset(headers.getlist("origin"))
            and headers.get("sec-fetch-site") != "cross-site"
        )


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, error.headers)


async def _bad_request(request: Request, error: Exception) -> Response:
    return _error(400, str(error))
