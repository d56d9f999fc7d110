"""What everybody may ask for: the links in emails, and webhooks. It listens apart from the console.

Nobody logs in here: a link's token says what it is about, and a webhook's signature whose it is (`hooks.py`). Who only
looks changes nothing, whatever follows links before a person does. A change is a POST with the pair of RFC 8058, of a
mail client or of the button on the page; or a call of a provider.
"""

import logging
from base64 import b64encode
from email.parser import BytesParser
from email.policy import HTTP
from hashlib import sha256
from html import escape
from typing import Final
from urllib.parse import parse_qsl

import psycopg2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.content.tokens import Subscription, Tokens
from actors.delivery.seals import LINKS
from duepost.commands.output import visible
from duepost.web.answers import Refused, health, not_found, not_so, read_body
from duepost.web.hooks import HOOKS, Hooks
from models import unsubscribing
from models.database.connections import Database
from models.errors import DatabaseUnreachable

LOGGER = logging.getLogger("duepost.web")

#: What RFC 8058 section 3.1 has a mail client send.
PAIR: Final = ("list-unsubscribe", "one-click")

#: The field of the page's own button that takes it back.
UNDO: Final = "undo"

#: Bytes of a form.
LARGEST_FORM: Final = 16 * 1024

_STYLE: Final = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:3rem auto;padding:0 1rem}"
    "button{font:inherit;padding:.5rem 1rem}"
)

HEADERS: Final = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex, nofollow",
    # The URL is the key: no other site is told of it.
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def build_public(database: Database, tokens: Tokens, hooks: Hooks, prefix: str = "") -> ASGIApp:
    """The application that a server runs where everybody may ask.

    Args:
        database: where subscriptions change.
        tokens: makes and opens the links' tokens.
        hooks: answers providers.
        prefix: the path of DUEPOST_PUBLIC_URL; a proxy in front may take it away, or not.
    """
    links = Links(database, tokens)
    app = Starlette(
        routes=[
            Route("/health", health),
            Route(LINKS + "{token}", links.answer, methods=["GET", "POST"]),
            Route(HOOKS + "{provider}", hooks.answer, methods=["POST"]),
        ],
        exception_handlers={404: not_found, 405: not_so},
    )
    # A page that moved a slash is another page.
    app.router.redirect_slashes = False
    return _WithHeaders(app, prefix)


class _WithHeaders:
    """Gives each answer its headers, and takes the prefix away."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        if self._prefix and scope["path"].startswith(f"{self._prefix}/"):
            scope = {**scope, "path": scope["path"][len(self._prefix) :]}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *given]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Links:
    """Answers for the links in emails.

    Args:
        database: where subscriptions change.
        tokens: opens the links' tokens.
    """

    def __init__(self, database: Database, tokens: Tokens) -> None:
        self._database = database
        self._tokens = tokens

    async def answer(self, request: Request) -> Response:
        """One request. What is asked with GET or HEAD changes nothing."""
        about = self._tokens.subscription(str(request.path_params["token"]))
        if about is None:
            return PlainTextResponse("This link is not whole: copy all of it out of the email.\n", 404)
        if request.method != "POST":
            return _page(_asked(about))
        try:
            fields = await read_fields(request)
        except Refused as error:
            return PlainTextResponse(f"{error}\n", error.status)
        is_on = PAIR in fields
        if not is_on and not any(name == UNDO for name, _ in fields):
            return PlainTextResponse("Nothing was changed: the form says neither yes nor no.\n", 400)
        return await run_in_threadpool(self._change, about, is_on=is_on)

    def _change(self, about: Subscription, *, is_on: bool) -> Response:
        try:
            unsubscribing.change(
                self._database, kind=about.kind, address=about.address, user_id=about.user_id, email_id=about.email_id,
                is_on=is_on,
            )  # fmt: skip
        except (DatabaseUnreachable, psycopg2.Error) as error:
            code = error.pgcode if isinstance(error, psycopg2.Error) else None
            LOGGER.warning("a subscription could not be changed: %s %s", type(error).__name__, code or "")
            return PlainTextResponse("This does not work just now: please try again in a minute.\n", 503)
        return _page(_unsubscribed(about) if is_on else _subscribed(about))


async def read_fields(request: Request) -> frozenset[tuple[str, str]]:
    """The fields of a form in either encoding, in lower case.

    Raises:
        Refused: it is too large, or takes too long to come in.
    """
    body = await read_body(request, LARGEST_FORM)
    return fields_of(request.headers.get("content-type", ""), body)


def fields_of(content_type: str, body: bytes) -> frozenset[tuple[str, str]]:
    """The fields of a form, in lower case; none of what cannot be read.

    RFC 8058 section 3.2 has clients send multipart/form-data or application/x-www-form-urlencoded; what says neither is
    taken for the latter.
    """
    if content_type.strip().lower().startswith("multipart/form-data"):
        head = (
            b"Content-Type: "
            + content_type.encode("latin-1", "replace").replace(b"\r", b"").replace(b"\n", b"")
            + b"\r\n\r\n"
        )
        found = [
            (part.get_param("name", "", header="content-disposition"), (part.get_payload(decode=True) or b""))
            for part in BytesParser(policy=HTTP).parsebytes(head + body).walk()
            if not part.is_multipart()
        ]
        pairs = [
            (str(name), bytes(value).decode("utf-8", "replace")) for name, value in found if isinstance(value, bytes)
        ]
    else:
        try:
            pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=100)
        except ValueError:
            pairs = []
    return frozenset((name.strip().lower(), value.strip().lower()) for name, value in pairs)


# The page ------------------------------------------------------------------------------------------------------------


def _page(content: str) -> Response:
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Subscription</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><main>{content}</main></body></html>"
    )


def _asked(about: Subscription) -> str:
    return (
        f"<h1>Unsubscribe?</h1><p>{_whom(about)} gets no more emails of this sort: {_text(about.kind)}.</p>"
        f'<form method="post"><input type="hidden" name="List-Unsubscribe" value="One-Click">'
        "<button>Unsubscribe</button></form>"
    )


def _unsubscribed(about: Subscription) -> str:
    return (
        f"<h1>Unsubscribed</h1><p>{_whom(about)} gets no more emails of this sort: {_text(about.kind)}.</p>"
        f'<form method="post"><input type="hidden" name="{UNDO}" value="1"><button>Subscribe again</button></form>'
    )


def _subscribed(about: Subscription) -> str:
    return (
        f"<h1>Subscribed again</h1><p>{_whom(about)} gets emails of this sort as before: {_text(about.kind)}.</p>"
        '<form method="post"><input type="hidden" name="List-Unsubscribe" value="One-Click">'
        "<button>Unsubscribe</button></form>"
    )


def _whom(about: Subscription) -> str:
    """The address, without most of it: an email may be forwarded with its link."""
    local_part, _, domain = about.address.rpartition("@")
    return _text(f"{local_part[:1]}…@{domain}")


def _text(value: str) -> str:
    return escape(visible(value))
