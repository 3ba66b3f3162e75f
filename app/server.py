"""The routes: a thin layer over `desk.py`, which the tests and the page drive alike."""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Cookie, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from app.desk import Side
from app.facts import gallery, gallery_plan, page_facts, reports
from app.jobs import Busy
from app.uploads import TooLarge, open_file, read_body, read_json
from app.visitors import Visitors
from configs.app_schema import AppConfig
from modules.editing import check_edits
from modules.errors import UserError
from modules.outputs import FILES, pose_array
from modules.session import settings_from
from modules.text import check_prompt

PAGE = Path(__file__).parent / "page"
_POLL_SECONDS, _TICK = 15.0, 0.03
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_MEDIA = {".json": "application/json", ".npy": "application/octet-stream", ".mp4": "video/mp4", ".gif": "image/gif",
          ".png": "image/png"}  # fmt: skip


def make_app(config: AppConfig) -> FastAPI:
    """The application.

    Raises:
        UserError: an export is missing, or exports that do not belong together.
    """
    visitors = Visitors(config)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.visitors = visitors
    app.state.stopping = lambda: False  # whether the server ends, and nobody should wait for news any more
    _guard(app, config)
    desk = _finder(visitors)
    _page_routes(app, visitors)
    _desk_routes(app, visitors, desk)
    _file_routes(app, desk)
    app.mount("/static", StaticFiles(directory=PAGE), name="static")
    return app


def _guard(app: FastAPI, config: AppConfig) -> None:
    """Headers, errors, and refusal of requests that other sites could make a browser send."""

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[..., Any]) -> Response:
        # A form of another site cannot set a header, and a script of it would have to ask first, which nobody grants.
        if request.method not in ("GET", "HEAD") and request.headers.get("x-desk") != "1":
            return JSONResponse({"error": "this request does not come from the page"}, 403, _HEADERS)
        response = await call_next(request)
        response.headers.update(_HEADERS)
        if request.url.path.startswith("/api"):
            response.headers["Cache-Control"] = "no-store"
        return response

    # Another name for this address could be an attacker's: a page of theirs would count as the same site.
    names = ["127.0.0.1", "localhost", "[::1]", "testserver", config.desk.host]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["*"] if config.desk.host == "0.0.0.0" else names)

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        status = 413 if isinstance(error, TooLarge) else 429 if isinstance(error, Busy) else 400
        return JSONResponse({"error": str(error)}, status)


SideName = Literal["a", "b"]


def _finder(visitors: Visitors) -> Callable[..., Side]:
    """The dependency that finds the side of the visitor's desk, and gives a cookie to those who have none."""

    def find(response: Response, side: SideName, desk: Annotated[str | None, Cookie()] = None) -> Side:
        token, sides = visitors.desk(desk)
        if token != desk:
            response.set_cookie("desk", token, httponly=True, samesite="strict", max_age=30 * 86400)
        return sides[side]

    return find


def _page_routes(app: FastAPI, visitors: Visitors) -> None:
    """What is the same for everybody."""

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/api/facts")
    async def facts() -> dict[str, Any]:
        return await run_in_threadpool(page_facts, visitors)

    @app.get("/api/reports")
    async def all_reports() -> list[dict[str, Any]]:
        return await run_in_threadpool(reports, visitors)

    @app.get("/api/gallery")
    async def examples() -> list[dict[str, str]]:
        return gallery()

    @app.get("/api/gallery/{name}.webp")
    async def example_picture(name: str) -> Response:
        known = {example["name"]: Path(example["picture"]) for example in gallery()}
        if name not in known:
            return JSONResponse({"error": "no such example"}, 404)
        return FileResponse(known[name], media_type="image/webp")


def _desk_routes(app: FastAPI, visitors: Visitors, find: Callable[..., Side]) -> None:
    """The state of a side, and what changes it."""
    @app.get("/api/{side}/state")
    async def state(desk: Annotated[Side, Depends(find)], since: int = 0) -> dict[str, Any]:
        """The state, as soon as it is newer than `since`, or after some seconds as it is."""
        until = time.monotonic() + _POLL_SECONDS
        while desk.revision == since and time.monotonic() < until and not app.state.stopping():
            await asyncio.sleep(_TICK)
        return await run_in_threadpool(desk.state)

    @app.post("/api/{side}/{action}")
    async def act(request: Request, desk: Annotated[Side, Depends(find)], action: str) -> dict[str, Any]:
        if action == "import":
            limit = int(visitors.limits.max_upload_mb * 2**20)
            body = await read_body(request, limit)
            query = request.query_params
            await run_in_threadpool(
                open_file, desk, query.get("name", ""), body, query.get("prompt", ""), query.get("render") != "0"
            )
        else:
            answer = await run_in_threadpool(perform, desk, visitors, action, await read_json(request))
            if answer is not None:
                return answer
        return await run_in_threadpool(desk.state)


def _file_routes(app: FastAPI, find: Callable[..., Side]) -> None:
    """What can be taken away."""
    @app.get("/api/{side}/dense/{version}")
    async def dense(desk: Annotated[Side, Depends(find)], version: int) -> Response:
        poses = pose_array(await run_in_threadpool(desk.dense, version))
        headers = {"X-Shape": ",".join(map(str, poses.shape)), "Cache-Control": "private, max-age=3600"}
        return Response(poses.astype("<f4").tobytes(), media_type="application/octet-stream", headers=headers)

    @app.get("/api/{side}/file/{name}")
    async def file(desk: Annotated[Side, Depends(find)], name: str) -> Response:
        if name == "session.json":
            content = await run_in_threadpool(lambda: JSONResponse(desk.session.to_dict()).body)
        elif name in FILES:
            content = await run_in_threadpool(desk.file, name)
        else:
            known = ", ".join((*FILES, "session.json"))
            return JSONResponse({"error": f"there is no such file; there are {known}"}, 404)
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=_MEDIA[Path(name).suffix], headers=headers)


def perform(desk: Side, visitors: Visitors, action: str, data: dict[str, Any]) -> dict[str, Any] | None:
    """What a button of the page does; gives an answer of its own, or None for the new state.

    Raises:
        UserError: an unknown action, or a request with wrong values.
    """
    render = data.get("render", True) is not False
    if action == "generate":
        settings = settings_from(data.get("settings"))
        check_prompt(settings.prompt)
        if settings.seconds is not None and settings.seconds > visitors.limits.max_seconds:
            raise UserError(f"{settings.seconds:g} s are asked for; allowed are {visitors.limits.max_seconds:g}")
        desk.generate(settings, render)
    elif action == "edit":
        desk.edit(check_edits(data.get("edits")), render)
    elif action in ("undo", "redo"):
        desk.move(-1 if action == "undo" else 1, render)
    elif action == "render":
        desk.render(settings_from({"guidance": data.get("guidance")}).guidance)
    elif action == "cancel":
        desk.cancel()
    elif action == "share":
        return {"link": f"?open={visitors.share(desk.session)}"}
    elif action == "open":
        desk.open(visitors.shared(data.get("token")), render)
    elif action == "example":
        name = data.get("name")
        desk.open_plan(gallery_plan(name), f"example: {name}", render)
    else:
        raise UserError(f"there is no action {re.sub(r'[^a-z]', '', action)[:20]!r}")
    return None


