"""Pages out of templates: every value is text, made visible, and masked where the visitor is a viewer."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import escape
from starlette.responses import Response

from actors.delivery.rates import pace
from duepost.commands.output import visible
from duepost.commands.wording import count, moment, span
from duepost.web.masking import masked

FOLDER = Path(__file__).parent / "templates"

#: Seconds from now within which a moment is told as a span of time, too.
SOON = 86_400

#: The screens, as every page leads to them.
SCREENS = (
    ("", "Now"),
    ("items", "Items"),
    ("person", "Person"),
    ("failures", "Failures"),
    ("forecast", "Forecast"),
    ("kinds", "Kinds and templates"),
    ("routes", "Routes and workers"),
    ("suppression", "Suppression"),
    ("journal", "Journal"),
)


class Pages:
    """The templates, in full and masked. Safe to share between threads.

    Args:
        facts: what every page may use.
    """

    def __init__(self, facts: Mapping[str, object]) -> None:
        self._full = _environment(_shown, facts)
        self._masked = _environment(_masked, facts)

    def render(self, template: str, facts: Mapping[str, object], *, is_masked: bool) -> str:
        """One page."""
        environment = self._masked if is_masked else self._full
        return environment.get_template(template).render(**facts, is_masked=is_masked)


def _environment(finalize: Callable[[object], object], facts: Mapping[str, object]) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"moment": moment, "span": _span, "counted": count, "number": _number, "ago": ago, "pace": pace}
    # These make markup, which is not changed again: they do it themselves.
    change = masked if finalize is _masked else str
    filters |= {
        "lines": lambda value: escape(lines(change(str(value)))),
        "exact": lambda value: escape(change(str(value))),
    }
    environment.filters.update(filters)
    environment.globals.update(link=link, screens=SCREENS, **facts)
    return environment


def _masked(value: object) -> object:
    return _shown(value, masked)


def _shown(value: object, change: Callable[[str], str] = str) -> object:
    """A value as a page shows it; what is markup already is made of such values."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return visible(change(str(value)))
    return value


def _span(seconds: object) -> str:
    return span(seconds) if isinstance(seconds, int | float) else ""


def ago(then: object, at: datetime) -> str:
    """How long ago a moment was, or how soon it is."""
    if not isinstance(then, datetime):
        return ""
    seconds = (then - at).total_seconds()
    if abs(seconds) > SOON:
        return ""
    return f"in {span(seconds)}" if seconds > 0 else f"{span(-seconds)} ago"


def lines(value: object) -> str:
    """A text whose lines stay lines: each is made visible by itself."""
    return "\n".join(visible(line) for line in str(value).splitlines())


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def link(path: str, **query: object) -> str:
    """A relative URL; what is None or empty is left out."""
    given = {name: str(value) for name, value in query.items() if value not in {None, ""}}
    return f"{path}?{urlencode(given)}" if given else path


def with_etag(body: str, known: str | None) -> Response:
    """A page; 304 and nothing where the browser has the same one."""
    content = body.encode("utf-8", "backslashreplace")
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    if known == etag:
        return Response(status_code=304, headers={"ETag": etag})
    return Response(content, media_type="text/html; charset=utf-8", headers={"ETag": etag})
