"""Templates with a context: how an email would look, before anything is sent."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import Response

from actors.content.templates import Content, RenderError, Templates
from duepost import operations
from duepost.commands.context import ask_for_pass
from duepost.operations import Order
from duepost.web.access import Role, fresh_key
from duepost.web.answers import Refused
from duepost.web.desk import Asked
from duepost.web.filters import number_of
from duepost.web.screens import framed, is_shown_in_full
from models import reports
from models.numbers import Number

#: Whom it is rendered for where the context names nobody.
SOMEBODY: Mapping[str, object] = {
    "user_id": "ann",
    "address": "ann@example.com",
    "name": "Ann Example",
    "locale": "en",
    "timezone": "UTC",
}


@dataclass(frozen=True, slots=True)
class TemplateScreens:
    """The screens on which templates are tried.

    Args:
        templates: what emails are rendered from.
    """

    templates: Templates

    def one(self, asked: Asked) -> Response:
        """A template with a context: subject, text, HTML; or what is wrong."""
        query = asked.query
        name, content, error = query.get("name", ""), None, ""
        if name:
            try:
                content = self._rendered(asked, query)
            except (RenderError, Refused) as flaw:
                error = str(flaw)
        html = content.html if content is not None else None
        return asked.page(
            "templates.html",
            names=self.templates.names(),
            flaws=self.templates.check(),
            name=name,
            context=query.get("context", ""),
            item=query.get("item", ""),
            user=query.get("user", ""),
            content=content,
            error=error,
            # Another one where a file has changed: the frame is then loaded again.
            of=None if html is None else hashlib.sha256(html.encode("utf-8", "backslashreplace")).hexdigest()[:16],
        )

    def html(self, asked: Asked) -> Response:
        """Its HTML, in a frame that runs nothing and loads nothing."""
        return framed(self._rendered_or_refused(asked, asked.query).html or "")

    def ask_to_send(self, asked: Asked) -> Response:
        """Asks to whom what is shown is to be sent. Looks only."""
        given = {name: asked.query.get(name, "") for name in ("name", "context", "user", "item")}
        self._rendered_or_refused(asked, given)
        return asked.page("send_test.html", given=given, token=fresh_key())

    def send(self, asked: Asked) -> Response:
        """Schedules it, once however often the form is sent, and leads to the email."""
        given = {name: asked.value(name) for name in ("name", "context", "user", "item")}
        token, address = asked.value("token"), asked.value("to").strip()
        if not 16 <= len(token) <= 100 or not address:
            raise Refused(400, "The form is not whole: begin again.")
        content = self._rendered_or_refused(asked, given)
        order = Order(by=asked.visitor.name, via="console", token=token)
        email_id = operations.send_test(
            asked.database, order,
            address=address, template=given["name"], subject=content.subject, text=content.text, html=content.html,
        )  # fmt: skip
        ask_for_pass(asked.database)
        return asked.go(f"items/{email_id}")

    def _rendered_or_refused(self, asked: Asked, given: Mapping[str, str]) -> Content:
        try:
            return self._rendered(asked, given)
        except RenderError as error:
            raise Refused(400, str(error)) from None

    def _rendered(self, asked: Asked, query: Mapping[str, str]) -> Content:
        context = dict(_object(query.get("context", "")))
        if query.get("item"):
            context = {**_context_of(asked, number_of(query["item"])), **context}
        user = query.get("user", "").strip()
        if user and asked.visitor.role < Role.OPERATOR:
            raise Refused(403, "user: what duepost.recipient says of somebody is shown to operators.")
        recipient = reports.recipient_of(asked.database, user) if user else SOMEBODY
        if recipient is None:
            raise Refused(400, "user: duepost.recipient has no such user.")
        return self.templates.render(query.get("name", ""), {"recipient": recipient, **context})


def _context_of(asked: Asked, item_id: int) -> Mapping[str, object]:
    """The context of an email that is not finished: for those who see it in full."""
    if not is_shown_in_full(asked, item_id):
        raise Refused(403, "item: what an item says is shown to those who may see it in full.")
    found = reports.context_of(asked.database, item_id)
    if found is None:
        raise Refused(400, "item: no email with a template that is not finished has this id.")
    return _object(found)


def _object(text: str) -> Mapping[str, object]:
    """A context, read as a worker reads it."""
    try:
        found = json.loads(text, parse_float=Number) if text.strip() else {}
    except (ValueError, OverflowError, RecursionError):
        raise Refused(400, "context: this is no JSON.") from None
    if not isinstance(found, dict):
        raise Refused(400, "context: must be a JSON object.")
    return found
