"""Templates with a context: how an email would look, before anything is sent."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import Response

from actors.content.templates import Content, RenderError, Templates
from duepost.web.desk import Asked, Refused
from duepost.web.screens import framed

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
        name, text = asked.query.get("name", ""), asked.query.get("context", "")
        content, error = None, ""
        if name:
            try:
                content = self._rendered(name, text)
            except (RenderError, Refused) as flaw:
                error = str(flaw)
        html = content.html if content is not None else None
        return asked.page(
            "templates.html",
            names=self.templates.names(),
            flaws=self.templates.check(),
            name=name,
            context=text,
            content=content,
            error=error,
            # Another one where a file has changed: the frame is then loaded again.
            of=None if html is None else hashlib.sha256(html.encode("utf-8", "backslashreplace")).hexdigest()[:16],
        )

    def html(self, asked: Asked) -> Response:
        """Its HTML, in a frame that runs nothing and loads nothing."""
        try:
            content = self._rendered(asked.query.get("name", ""), asked.query.get("context", ""))
        except RenderError as error:
            raise Refused(400, str(error)) from None
        return framed(content.html or "")

    def _rendered(self, name: str, text: str) -> Content:
        try:
            context = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            raise Refused(400, "context: this is no JSON.") from None
        if not isinstance(context, dict):
            raise Refused(400, "context: must be a JSON object.")
        return self.templates.render(name, {"recipient": SOMEBODY, **context})
