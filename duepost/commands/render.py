"""`duepost render`: what a template makes of a context, before anything is sent."""

import json
import tempfile
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from actors.content.filters import LOCALE
from actors.content.templates import Content, RenderError, Templates
from actors.liveness.time_limit import TimeLimit
from actors.settings import settings
from duepost.commands.context import BadInput, Failed, Json, operator_database
from duepost.commands.output import print_json, say
from duepost.private import write_private
from models import reports
from models.numbers import Number
from models.reports import RecentContext

#: Who gets it where nobody is named.
ADDRESS = "ann@example.com"


def render(
    name: Annotated[str, typer.Argument(help="The template's name, such as welcome.")],
    context: Annotated[str, typer.Option(help="What it is rendered with: a JSON object.")] = "{}",
    user: Annotated[str | None, typer.Option(help="The user who gets it, as the database knows them.")] = None,
    email: Annotated[int | None, typer.Option(help="The id of a pending email, whose context it is.", min=1)] = None,
    locale: Annotated[str | None, typer.Option(help="The recipient's locale, such as de-AT.")] = None,
    html: Annotated[bool, typer.Option("--html", help="Print the HTML instead of the text.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the HTML, or the text, in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Renders a template as a worker would, and sends nothing.

    Examples: duepost render welcome --context '{"name": "Ann"}'; duepost render digest --user 42 --email 7 --open
    """
    given = _object(context)
    if email is not None:
        given = {**_context_of(email), **given}
    templates = Templates(
        settings().templates,
        TimeLimit(),
        settings().render_timeout,
        trim_blocks=settings().trim_blocks,
        preparer=settings().html_preparer(),
    )
    recipient = _recipient(user)
    if locale is not None:
        recipient = {**recipient, "locale": locale}
    content = templates.render(name, {**given, "recipient": recipient})
    if as_json:
        print_json({"subject": content.subject, "text": content.text, "html": content.html})
    elif open_:
        _open(content)
    else:
        body = content.html if html else content.text
        if body is None:
            raise Failed(f"{name}: has no {'HTML' if html else 'text; --html prints its HTML'}")
        for line in (f"Subject: {content.subject}", "", *body.splitlines()):
            say(line, to_copy=True)


def _object(text: str) -> Mapping[str, object]:
    try:
        found = json.loads(text, parse_float=Number)
    except (ValueError, OverflowError, RecursionError) as error:
        raise BadInput(f"--context: must be JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadInput("--context: must be a JSON object")
    return found


def _context_of(email_id: int) -> Mapping[str, object]:
    found = reports.context_of(operator_database(), email_id)
    if found is None:
        raise Failed(f"{email_id}: no email with a template that is not finished has this id")
    return _object(found)


def _recipient(user: str | None) -> Mapping[str, object]:
    """What the template sees of the recipient: a user's, or somebody's of whom nothing but the address is known."""
    if user is None:
        return dict.fromkeys(("user_id", "name", "locale", "timezone", "unsubscribe_url")) | {"address": ADDRESS}
    found = reports.recipient_of(operator_database(), user)
    if found is None:
        raise Failed(f"--user: duepost.recipient has no user {user}")
    return {**found, "unsubscribe_url": None}


def _open(content: Content) -> None:
    """Opens the body in a browser, out of a file that only this user may read."""
    ending, body = (".html", content.html) if content.html is not None else (".txt", content.text or "")
    file = Path(tempfile.mkdtemp(prefix="duepost-render-")) / f"email{ending}"
    write_private(file, body.encode())
    say(f"Subject: {content.subject}")
    say(f"{file}", to_copy=True)
    webbrowser.open(file.as_uri())


def trial(templates: Templates, recent: RecentContext) -> str | None:
    """Renders what an email gives its template, for a made-up recipient, in each language that there is.

    Returns:
        what is wrong first, with no value in it.
    """
    someone = {"user_id": "1", "name": "Ann", "locale": LOCALE, "timezone": "UTC"} if recent.to_users else {}
    recipient = {**_recipient(None), **someone}
    for locale in (recipient["locale"], *templates.languages(recent.template)):
        whom = {**recipient, "locale": locale}
        try:
            templates.render(recent.template, {**_object(recent.context or "{}"), "recipient": whom})
        except RenderError as error:
            return str(error)
    return None
