"""What each outcome of a request means: the one place that decides it, but for what a format reads in a body."""

import re
from typing import Final

from actors.channels.http.request import Answer
from actors.channels.http.retry_after import RetryAfter, retry_after
from actors.ruling import Limit, Phase, Ruling, Scope, one_line
from models.words import Verdict

#: It says that the URL, the secret or something on the way is wrong; so does each 3xx, as none is followed.
_ABOUT_US: Final = frozenset({401, 403, 404, 405, 407, 411, 421, 426, 451, 511})

#: It may be different soon; so may each 5xx, and what no standard knows (600 and up).
_LATER: Final = frozenset({408, 425, 429})

#: It is said of all requests: for as long as is asked none is made.
_PAUSES: Final = frozenset({429, 503})

_GONE: Final = 410

_LOCATION: Final = re.compile(
    r"(?:https?:)?//(?:[^/?#]*@)?(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?:[:/?#].*)?", re.IGNORECASE
)


def judge(answer: Answer) -> Ruling:
    """Says what an answer means, whatever its body says."""
    verdict, scope = _meaning(answer.status)
    pauses = answer.status in _PAUSES
    ruling = Ruling(
        verdict,
        scope,
        Phase.RESPONSE,
        code=answer.status,
        reply=_text(answer),
        limits=Limit.RATE if pauses else Limit.NONE,
        is_gone=answer.status == _GONE,
    )
    return paused(ruling, retry_after(answer.values("retry-after"), answer.received_at)) if pauses else ruling


def paused(ruling: Ruling, pause: RetryAfter | None) -> Ruling:
    """The same, with the pause that the whole endpoint is asked to be given."""
    if pause is None:
        return ruling
    note = " (asks for a longer pause than 24 h, and gets 24 h)" if pause.is_capped else ""
    return ruling._replace(retry_after=pause.seconds, reply=one_line(ruling.reply + note))


def at_fault(ruling: Ruling, what: str) -> Ruling:
    """The same answer where a format knows that the endpoint is at fault: retried, nothing is dropped."""
    return ruling._replace(verdict=Verdict.RETRY, scope=Scope.RELAY, reply=one_line(what))


def judge_failure(phase: Phase, what: str) -> Ruling:
    """Says what it means that no answer came.

    Args:
        phase: what was being done; `Phase.RESPONSE` once the request's last byte was written.
        what: what happened, for people: of the URL it says no more than the host.
    """
    if phase is Phase.RESPONSE:
        return Ruling(Verdict.UNKNOWN, Scope.MESSAGE, phase, reply=one_line(what))
    return Ruling(Verdict.RETRY, Scope.RELAY, phase, reply=one_line(what))


def _meaning(status: int) -> tuple[Verdict, Scope]:
    if status // 100 == 2:
        return Verdict.SENT, Scope.RECIPIENT
    if status // 100 == 3 or status in _ABOUT_US:
        return Verdict.RETRY, Scope.RELAY
    if status in _LATER or status >= 500:
        return Verdict.RETRY, Scope.MESSAGE
    return Verdict.UNDELIVERABLE, Scope.MESSAGE


def _text(answer: Answer) -> str:
    said = ": ".join(each for each in (answer.reason, answer.text) if each)
    return one_line(_redirect(answer) if answer.status // 100 == 3 else said)


def _redirect(answer: Answer) -> str:
    """Where it redirects to: the host alone, as a path may be a secret."""
    [location] = answer.values("location")[:1] or [""]
    if found := _LOCATION.fullmatch(location):
        return f"redirects to {found['host'].lower()}: it is not followed, set the endpoint's new URL"
    where = "to another path of the same host" if location.startswith("/") else "nowhere that is known"
    return f"redirects {where}: it is not followed"
