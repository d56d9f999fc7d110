"""Builds the console: what each URL shows, and who may see it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from actors.content.templates import Templates
from duepost.web import actions, doings, login, screens, sent, suppressing
from duepost.web.access import Gate, Role
from duepost.web.answers import health, not_found, not_so
from duepost.web.boundary import HEALTH, METRICS, Boundary, Place
from duepost.web.desk import Desk, Handler
from duepost.web.inbox import Inbox, InboxScreens
from duepost.web.metrics import Metrics
from duepost.web.pages import Pages
from duepost.web.trying import TemplateScreens
from models.database.connections import Database

STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True, slots=True)
class Screen:
    """A URL of the console.

    Attributes:
        path: from the console's root.
        show: answers a GET; None: only what is sent there is answered.
        role: who may see it.
        act: answers a POST; None: there is none.
        act_role: who may send it.
    """

    path: str
    show: Handler | None
    role: Role = Role.VIEWER
    act: Handler | None = None
    act_role: Role = Role.OPERATOR


SCREENS: Sequence[Screen] = (
    Screen("/", screens.now),
    Screen("/items", screens.items),
    Screen("/items/{id}", screens.item),
    Screen("/items/{id}/content", screens.content, Role.SUPPORT),
    Screen("/items/{id}/sent", sent.one, Role.SUPPORT),
    Screen("/items/{id}/sent/html", sent.html, Role.SUPPORT),
    Screen("/items/{id}/reveal", actions.ask_to_reveal, Role.SUPPORT, actions.reveal, Role.SUPPORT),
    Screen("/person", screens.person),
    Screen("/failures", screens.failures),
    Screen("/forecast", screens.forecast),
    Screen("/kinds", screens.kinds),
    Screen("/routes", screens.ways),
    Screen("/suppression", screens.suppression),
    Screen("/suppression/change", suppressing.ask, Role.OPERATOR, suppressing.change),
    Screen("/journal", screens.journal),
    Screen("/confirm", actions.confirm, Role.OPERATOR),
    Screen("/act", None, act=actions.act),
    Screen("/done/{id}", actions.done),
)


def build(
    *,
    gate: Gate,
    place: Place,
    database: Database,
    reading: Database,
    templates: Templates,
    mailbox: Path | None = None,
    metrics_token: str | None = None,
) -> ASGIApp:
    """The application that a server runs.

    Args:
        gate: who asks.
        place: where browsers find it.
        database: for what support and operators do.
        reading: for viewers: it can only read.
        templates: what emails are rendered from.
        mailbox: the mail catcher's folder, in `duepost up`.
        metrics_token: what somebody shows who scrapes metrics and does not log in.
    """
    pages = Pages(
        {
            "has_inbox": mailbox is not None,
            "has_login": gate.has_login_page,
            "action_words": doings.WORDS,
            "group_actions": doings.group_actions,
        }
    )
    desk = Desk(gate, place, database, reading, pages)
    metrics = Metrics(reading, metrics_token, lambda request: desk.visitor(request) is not None)
    routes: list[BaseRoute] = [
        Route(HEALTH, health),
        Route(METRICS, metrics.endpoint),
        *login.routes(desk),
        *(route for screen in (*SCREENS, *_tried(templates), *_inbox(mailbox)) for route in _routes(desk, screen)),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    app = Starlette(routes=routes, exception_handlers={404: not_found, 405: not_so})
    # A page that moved a slash is another page.
    app.router.redirect_slashes = False
    return Boundary(app, place, is_open=gate.is_open)


def _tried(templates: Templates) -> Sequence[Screen]:
    """The screens on which templates are tried."""
    screens = TemplateScreens(templates)
    return (
        Screen("/templates", screens.one, Role.SUPPORT),
        Screen("/templates/html", screens.html, Role.SUPPORT),
        Screen("/templates/send", screens.ask_to_send, Role.OPERATOR, screens.send),
    )


def _inbox(mailbox: Path | None) -> Sequence[Screen]:
    """The screens of what was caught; none where nothing is."""
    if mailbox is None:
        return ()
    screens = InboxScreens(Inbox(mailbox))
    return (
        Screen("/inbox", screens.listed, Role.OPERATOR),
        Screen("/inbox/wait", screens.waited, Role.OPERATOR),
        Screen("/inbox/{name}", screens.one, Role.OPERATOR),
        Screen("/inbox/{name}/html", screens.html, Role.OPERATOR),
        Screen("/inbox/{name}/source", screens.source, Role.OPERATOR),
        Screen("/inbox/{name}/attachments/{number}", screens.attachment, Role.OPERATOR),
    )


def _routes(desk: Desk, screen: Screen) -> list[Route]:
    found = []
    if screen.show is not None:
        found.append(Route(screen.path, desk.endpoint(screen.show, screen.role), methods=["GET"]))
    if screen.act is not None:
        found.append(Route(screen.path, desk.endpoint(screen.act, screen.act_role), methods=["POST"]))
    return found
