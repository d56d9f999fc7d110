"""Logging in and out."""

import math

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from actors.settings import BadSettings
from duepost.web.access import SESSION, TooManyTries
from duepost.web.answers import Refused
from duepost.web.desk import COOKIE, Desk, Form, read_form, root_of


def routes(desk: Desk) -> list[Route]:
    """The URLs for it; none where people log in elsewhere, or nowhere."""
    if not desk.gate.has_login_page:
        return []

    def form(request: Request) -> Response:
        return _page(desk, request, to=request.query_params.get("to", ""))

    async def log_in(request: Request) -> Response:
        try:
            fields = await read_form(request)
        except Refused as refused:
            return PlainTextResponse(f"{refused}\n", refused.status)
        return await run_in_threadpool(_log_in, desk, request, fields)

    async def log_out(request: Request) -> Response:
        answer = RedirectResponse(f"{root_of(request)}login", 303)
        answer.delete_cookie(COOKIE, path=f"{desk.place.prefix}/", secure=desk.place.is_secure, httponly=True)
        return answer

    return [
        Route("/login", form, methods=["GET"]),
        Route("/login", log_in, methods=["POST"]),
        Route("/logout", log_out, methods=["POST"]),
    ]


def _log_in(desk: Desk, request: Request, form: Form) -> Response:
    name, password, to = (form.get(field, [""])[-1] for field in ("name", "password", "to"))
    try:
        cookie = desk.gate.log_in(name, password)
    except TooManyTries as tries:
        minutes = math.ceil(tries.seconds / 60)
        message = f"Too many wrong passwords for this name: try again in {minutes} min."
        return _page(desk, request, to=to, message=message, status=429, retry_after=math.ceil(tries.seconds))
    except BadSettings:
        return PlainTextResponse("Nobody can log in: see the console's log.\n", 503)
    if cookie is None:
        return _page(desk, request, to=to, message="Name or password is wrong.", status=403)
    answer = RedirectResponse(root_of(request) + _within(to), 303)
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=SESSION,
        path=f"{desk.place.prefix}/",
        secure=desk.place.is_secure,
        httponly=True,
        samesite="lax",
    )
    return answer


def _within(to: str) -> str:
    """Where somebody wanted to go, if that is a page of ours: never another site's."""
    is_ours = all(" " < each < "\x7f" and each != "\\" for each in to) and not to.startswith("/")
    return to if is_ours and ":" not in to.partition("?")[0] and ".." not in to else ""


def _page(
    desk: Desk, request: Request, *, to: str, message: str = "", status: int = 200, retry_after: int | None = None
) -> Response:
    body = desk.pages.render(
        "login.html", {"root": root_of(request), "to": to, "message": message, "visitor": None}, is_masked=False
    )
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Response(body, status, headers, media_type="text/html; charset=utf-8")
