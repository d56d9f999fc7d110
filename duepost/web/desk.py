"""One request: who asks, what they may, with which database session; and what is shown where something fails."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

import psycopg2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from actors.alerts.redaction import private_traceback
from actors.settings import BadSettings
from duepost.commands.context import BadInput, explain
from duepost.web.access import Gate, Role, Visitor
from duepost.web.answers import Refused, read_body
from duepost.web.boundary import SAFE, Place, header_values
from duepost.web.charts import Minutes
from duepost.web.kept import ServerFindings
from duepost.web.pages import Pages, with_etag
from models.database.connections import Database
from models.errors import DatabaseUnreachable

LOGGER = logging.getLogger("duepost.web")

#: Bytes of a form.
LARGEST_FORM = 256 * 1024

COOKIE = "duepost_session"

Form = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, for whoever answers it.

    Attributes:
        visitor: who asks.
        database: the way to PostgreSQL: for a viewer one that can only read.
        query: the URL's arguments; of one that comes twice the last.
        form: the form's fields, each with its values.
        path: the variable parts of the URL's path.
        root: leads from this URL to the console's first page: links are relative.
        is_masked: whether addresses are masked, and content is not shown.
        request: the request itself.
        gate: gives and knows permits.
        pages: the templates.
        minutes: the last hour.
        server_findings: how the database itself stands.
    """

    visitor: Visitor
    database: Database
    query: Mapping[str, str]
    form: Form
    path: Mapping[str, object]
    root: str
    is_masked: bool
    request: Request
    gate: Gate = field(repr=False)
    pages: Pages = field(repr=False)
    minutes: Minutes = field(repr=False)
    server_findings: ServerFindings = field(repr=False)

    def page(self, template: str, *, status: int = 200, is_masked: bool | None = None, **facts: object) -> Response:
        """A page; 304 where the browser has it already."""
        body = self.pages.render(
            template,
            {**facts, "asked": self, "root": self.root, "visitor": self.visitor},
            is_masked=self.is_masked if is_masked is None else is_masked,
        )
        known = self.request.headers.get("if-none-match") if self.request.method in SAFE and status == 200 else None
        answer = with_etag(body, known)
        if status != 200:
            answer.status_code = status
        return answer

    def go(self, to: str) -> Response:
        """Leads to another page, from the console's root: what was sent is not sent again by a reload."""
        return RedirectResponse(self.root + to, 303)

    def value(self, name: str) -> str:
        """A field of the form; empty where there is none."""
        return self.form.get(name, [""])[-1]


Handler = Callable[[Asked], Response]


@dataclass(frozen=True, slots=True)
class Desk:
    """Answers requests.

    Args:
        gate: who asks.
        place: where browsers find the console.
        database: for what support and operators do.
        reading: for viewers: it can only read.
        pages: the templates.
        minutes: the last hour, for all who ask.
        server_findings: how the database itself stands, for all who ask.
    """

    gate: Gate
    place: Place
    database: Database
    reading: Database
    pages: Pages
    minutes: Minutes = field(default_factory=Minutes)
    server_findings: ServerFindings = field(default_factory=ServerFindings)

    def endpoint(self, handler: Handler, role: Role) -> Callable[[Request], Awaitable[Response]]:
        """What the server calls for a URL: the handler, for those who may."""

        async def answer(request: Request) -> Response:
            try:
                form = {} if request.method in SAFE else await read_form(request)
            except Refused as refused:
                return PlainTextResponse(f"{refused}\n", refused.status)
            return await run_in_threadpool(self._answer, handler, role, request, form)

        return answer

    def _answer(self, handler: Handler, role: Role, request: Request, form: Form) -> Response:
        try:
            visitor = self.visitor(request)
        except BadSettings as error:
            LOGGER.error("nobody can log in: %s", error)  # noqa: TRY400 - the message says it all
            return PlainTextResponse("Nobody can log in: see the console's log.\n", 503)
        if visitor is None:
            return self._unknown(request)
        asked = self.asked(request, visitor, form)
        try:
            _check(asked, role)
            return handler(asked)
        except Exception as error:  # noqa: BLE001 - one request's failure is that request's; others go on
            return self._failed(asked, error)

    def visitor(self, request: Request) -> Visitor | None:
        """Who asks; None where that is not known.

        Raises:
            BadSettings: the file of logins cannot be read.
        """
        peer = request.client.host if request.client is not None else ""
        return self.gate.visitor(peer, header_values(request.headers.items()), request.cookies.get(COOKIE))

    def asked(self, request: Request, visitor: Visitor, form: Form) -> Asked:
        """The request as handlers see it."""
        is_viewer = visitor.role < Role.SUPPORT
        return Asked(
            visitor=visitor,
            database=self.reading if is_viewer else self.database,
            query=dict(request.query_params),
            form=form,
            path=request.path_params,
            root=root_of(request),
            is_masked=visitor.role < Role.OPERATOR,
            request=request,
            gate=self.gate,
            pages=self.pages,
            minutes=self.minutes,
            server_findings=self.server_findings,
        )

    def _unknown(self, request: Request) -> Response:
        if not self.gate.has_login_page:
            return PlainTextResponse("The reverse proxy in front names nobody who has a login here.\n", 403)
        if request.method not in SAFE:
            return PlainTextResponse("You are not logged in, or no longer: nothing was done.\n", 401)
        goal = request.url.path.lstrip("/") + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"{root_of(request)}login?{urlencode({'to': goal})}", 303)

    def _failed(self, asked: Asked, error: Exception) -> Response:
        """What is shown instead: the error in a line; what nobody foresaw is logged, without any value."""
        if isinstance(error, Refused):
            status, message = error.status, str(error)
        elif isinstance(error, DatabaseUnreachable):
            LOGGER.warning("the database does not answer")
            status, message = 503, f"The database does not answer: {error}"
        elif isinstance(error, psycopg2.Error):
            LOGGER.info("a statement of %s failed: SQLSTATE %s", asked.request.url.path, error.pgcode)
            told = explain(error)
            status, message = (400 if isinstance(told, BadInput) else 500), f"{told}."
        else:
            # Not `exception`: its traceback would hold values.
            LOGGER.error("%s failed\n%s", asked.request.url.path, private_traceback(error))
            status, message = 500, f"Something failed here ({type(error).__name__}): see the console's log."
        return asked.page("failed.html", status=status, message=message)


def root_of(request: Request) -> str:
    """The relative URL of the console's first page, seen from this one."""
    depth = request.url.path.count("/") - 1
    return "../" * depth or "./"


async def read_form(request: Request) -> Form:
    """The fields of a form.

    Raises:
        Refused: it is none, too large, or takes too long to come in.
    """
    sort = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sort != "application/x-www-form-urlencoded":
        raise Refused(415, "Only forms are taken.")
    body = await read_body(request, LARGEST_FORM)
    found: dict[str, list[str]] = {}
    try:
        for name, value in parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=12_000):
            found.setdefault(name, []).append(value)
    except ValueError:
        raise Refused(400, "The form cannot be read.") from None
    return found


def _check(asked: Asked, role: Role) -> None:
    """Refuses who may not, and what PostgreSQL takes in no text."""
    if asked.visitor.role < role:
        raise Refused(403, f"This is for the role {role}, and you are {asked.visitor.role}.")
    values = [*asked.query.values(), *(value for each in asked.form.values() for value in each)]
    if any("\0" in value for value in values):
        raise Refused(400, "There is a NUL in what was asked for: no text has one.")
