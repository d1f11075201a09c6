"""The web server of the guide, which accepts requests only from this machine and its own page.

GET /                       the page
GET /PACKAGE/static/NAME    the files of the page, of `learn` and of `explore`
GET /progress               the exercises and the last grade, as JSON
"""

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from headway.explore import local
from headway.explore.export import STATIC as EXPLORER
from headway.learn.page import STATIC, page

Progress = Callable[[], dict[str, Any]]


def serve(progress: Progress, *, port: int, show: bool, starting: Callable[[], None]) -> None:
    """Serve the page until Ctrl-C, at this port or at the next free one.

    progress: returns at once what `/progress` answers: `exercises`, a list with `number`, `name`,
        `title`, `state` ("locked", "open" or "passed"), `file` and `grade` of each, and `current`,
        the name of one. show: open the browser. starting: called when the address has been printed.
        Raises ValueError if no port is free.
    """
    local.run(lambda port: app(progress, port), port=port, show=show, starting=starting)


def app(progress: Progress, port: int) -> Starlette:
    """Return the web application."""
    html = page()

    async def index(request: Request) -> Response:
        return HTMLResponse(html)

    async def static(request: Request) -> Response:
        folders = {"explore": EXPLORER, "learn": STATIC}
        folder = folders.get(request.path_params["package"])
        if not folder:
            raise HTTPException(404, "file not found")
        return local.static(folder, request.path_params["name"])

    async def state(request: Request) -> Response:
        return JSONResponse(progress())

    routes = [
        Route("/", index),
        Route("/{package}/static/{name}", static),
        Route("/progress", state),
    ]
    return local.application(routes, port)
