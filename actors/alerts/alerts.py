"""What an operator should hear of, in ids, kinds and codes: a log line for each failure, and an event for Sentry.

The log has each failure, with or without Sentry; Sentry gets what is new, or final.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from actors.alerts.logs import fields_of
from actors.ruling import Ruling
from models.words import Verdict

if TYPE_CHECKING:
    from sentry_sdk.types import Event

logger = logging.getLogger(__name__)

#: Where there is no kind or no enhanced code.
NONE = "-"

#: A value of a log line that needs no quotation marks.
_BARE = re.compile(r"[\w./:@+-]+", re.ASCII)

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def start(dsn: str | None, *, environment: str, release: str) -> None:
    """Turns Sentry on, and imports it only then: that takes as long as all else of a command's start.

    Dramatiq's exceptions are reported by brokers that are built afterwards.

    Args:
        dsn: where to report; None or empty leaves Sentry off.
        environment: such as `production`.
        release: such as `duepost@1.0.0`.

    Raises:
        sentry_sdk.utils.BadDsn: the DSN is not one; a ValueError.
    """
    if dsn:
        from actors.alerts import sentry  # noqa: PLC0415 - see above

        sentry.start(dsn, environment=environment, release=release)


def capture(event: "Event") -> None:
    """Sends an event, if anybody has turned Sentry on in this process: who has, has imported it."""
    sentry = sys.modules.get("sentry_sdk")
    if sentry is not None:
        sentry.capture_event(event)


def undeliverable(email_id: int, kind: str, ruling: Ruling, route: str | None = None) -> None:
    """An email reached its end at a recipient who cannot be reached. The relay's text stays here.

    Args:
        email_id: its id.
        kind: its kind.
        ruling: why.
        route: what the route that it was sent by is called; None where there is only one.
    """
    _report(
        "An email was undeliverable",
        level="warning",
        kind=kind,
        verdict=Verdict.UNDELIVERABLE,
        tags={"email_id": email_id, "route": route, **_tags(ruling)},
    )


def unknown(email_id: int, kind: str, state: str | None = None) -> None:
    """Nobody knows whether the relay took an email (RFC 1047).

    Args:
        email_id: its id.
        kind: its kind.
        state: `scheduled` where it is sent once more, `unknown` where it waits for a person.
    """
    _report(
        "It is unknown whether an email was sent",
        level="error",
        kind=kind,
        verdict=Verdict.UNKNOWN,
        tags={"email_id": email_id, "state": state},
    )


def retried(email_id: int, kind: str, ruling: Ruling, route: str | None = None) -> None:
    """An attempt failed at a recipient, and is made again: for the log alone, as that is what relays do."""
    _log(
        "An attempt failed; the email is retried",
        level="info",
        tags={"kind": kind, "verdict": Verdict.RETRY, "email_id": email_id, "route": route, **_tags(ruling)},
    )


def render_error(email_id: int, kind: str, *, template: str, line: int | None, is_new: bool = True) -> None:
    """A template failed; the email waits for it to be mended. Sentry hears of what is new, the log of each time."""
    tags: dict[str, str | int | None] = {"email_id": email_id, "template": template, "line": line}
    if is_new:
        _report("An email could not be rendered", level="error", kind=kind, verdict=Verdict.RETRY, tags=tags)
    else:
        known: dict[str, str | int | None] = {"kind": kind, "verdict": Verdict.RETRY, **tags}
        _log("An email could not be rendered, again", level="warning", tags=known)


def bounced_about_us(email_id: int, kind: str, enhanced_code: str | None, route: str | None) -> None:
    """A server that a relay has passed an email on to refuses us: our network, sender or login, not the recipient.

    Args:
        email_id: the email that came back.
        kind: its kind.
        enhanced_code: what the server said (RFC 3463).
        route: by which it went; None: the default one.
    """
    _report(
        "A bounce says that the fault is ours",
        level="error",
        kind=kind,
        verdict=Verdict.RETRY,
        tags={"email_id": email_id, "route": route, "enhanced_code": enhanced_code},
    )


def circuit_opened(ruling: Ruling, route: str | None = None) -> None:
    """The relay or our settings are at fault: sending by that route stops until a probe succeeds.

    Args:
        ruling: how it failed.
        route: what the route is called; None where there is only one.
    """
    tags = {"route": route, **_tags(ruling)}
    if route is None:
        _report("The relay fails; sending is stopped", level="error", verdict=ruling.verdict, tags=tags)
    else:
        _report("A relay fails; sending through it is stopped", level="error", verdict=ruling.verdict, tags=tags)


def message_undeliverable(message_id: int, kind: str, ruling: Ruling, endpoint: str) -> None:
    """An endpoint has refused a message for what it says; arguments as above."""
    _report(
        "A message was undeliverable",
        level="warning",
        kind=kind,
        verdict=Verdict.UNDELIVERABLE,
        tags={"message_id": message_id, "endpoint": endpoint, **_tags(ruling)},
    )


def message_unknown(message_id: int, kind: str, state: str | None, endpoint: str) -> None:
    """Nobody knows whether an endpoint took a message; arguments as above."""
    _report(
        "It is unknown whether a message was delivered",
        level="error",
        kind=kind,
        verdict=Verdict.UNKNOWN,
        tags={"message_id": message_id, "endpoint": endpoint, "state": state},
    )


def message_retried(message_id: int, kind: str, ruling: Ruling, endpoint: str) -> None:
    """An attempt failed, and is made again: for the log alone; arguments as above."""
    tags: dict[str, str | int | None] = {"kind": kind, "verdict": Verdict.RETRY, "message_id": message_id}
    _log(
        "An attempt failed; the message is retried",
        level="info",
        tags={**tags, "endpoint": endpoint, **_tags(ruling)},
    )


def endpoint_failed(ruling: Ruling, endpoint: str) -> None:
    """An endpoint, or our settings for it, are at fault: its messages wait until a probe succeeds."""
    tags = {"endpoint": endpoint, **_tags(ruling)}
    _report("An endpoint fails; its messages wait", level="error", verdict=ruling.verdict, tags=tags)


def endpoint_disabled(ruling: Ruling, endpoint: str) -> None:
    """An endpoint says that it is gone, or has failed for five days: a person has to enable it."""
    tags = {"endpoint": endpoint, **_tags(ruling)}
    _report("An endpoint is disabled; its messages wait", level="error", verdict=ruling.verdict, tags=tags)


def lost_claim(email_id: int, kind: str) -> None:
    """A worker came back to an email that had been given to another: it may have been sent twice."""
    _report(
        "A worker concluded an email that was no longer its own",
        level="error",
        kind=kind,
        verdict="lost_claim",
        tags={"email_id": email_id},
        logged=f"Email {email_id} went to another worker; its conclusion here changes nothing",
    )


def check_in() -> None:
    """The scheduler is alive; Sentry calls somebody when this stops coming."""
    sentry = sys.modules.get("actors.alerts.sentry")
    if sentry is not None:
        sentry.check_in()


def _tags(ruling: Ruling) -> dict[str, str | int | None]:
    return {"phase": ruling.phase, "code": ruling.code, "enhanced_code": ruling.enhanced_code}


def _report(
    sentence: str,
    *,
    level: Literal["warning", "error"],
    verdict: str,
    kind: str = NONE,
    tags: Mapping[str, str | int | None],
    logged: str | None = None,
) -> None:
    """Writes one log line, in words of its own if it has some, and sends one event; tags that are None are left out."""
    given = {"kind": kind, "verdict": verdict, **tags}
    _log(logged or sentence, level=level, tags=given)
    route = tags.get("route") or tags.get("endpoint")
    event: Event = {
        "message": sentence,
        "level": level,
        "fingerprint": [kind, str(verdict), str(tags.get("enhanced_code") or NONE), *([str(route)] if route else [])],
        "tags": {name: str(value) for name, value in given.items() if value is not None},
    }
    capture(event)


def _log(sentence: str, *, level: Literal["info", "warning", "error"], tags: Mapping[str, str | int | None]) -> None:
    """Writes one log line: the sentence, then `name=value` for each tag that is not None."""
    told = " ".join(f"{name}={_bare(str(value))}" for name, value in tags.items() if value is not None)
    fields = {
        name: value if isinstance(value, int) else str(value) for name, value in tags.items() if value is not None
    }
    logger.log(_LEVELS[level], "%s: %s", sentence, told, extra=fields_of(sentence, fields))


def _bare(value: str) -> str:
    """A value as one word of a line: a kind may hold spaces, or what looks like a line of its own."""
    return value if _BARE.fullmatch(value) else json.dumps(value)
