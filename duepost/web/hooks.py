"""Webhooks of providers: what they tell of emails that a relay had taken.

Nobody logs in: a signature says whose a call is, and a provider without a secret takes none at all. What is taken is
concluded before it is answered: where the database is away, the answer is 503, and the provider sends it again.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

import psycopg2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from actors.content.tokens import Tokens
from duepost.bounces.conclusions import BELIEVED_FOR, Conclusions
from duepost.bounces.providers.mailgun import Mailgun
from duepost.bounces.providers.postmark import Postmark
from duepost.bounces.providers.sendgrid import SendGrid
from duepost.bounces.providers.ses import Ses
from duepost.bounces.providers.shape import BrokenEvent, Call, Event, Provider, Refused, Unavailable, Verified, id_of
from duepost.bounces.reader import only_path, sent
from duepost.commands.output import visible
from duepost.web import answers
from models import bounces
from models.bounces import Sent
from models.database.connections import Database
from models.errors import DatabaseUnreachable, DuepostError

LOGGER = logging.getLogger("duepost.web")

#: The path that a provider's name is appended to.
HOOKS: Final = "/hooks/"

#: Bytes of a call: SendGrid's batches have 768 KB at the most, and others less.
LARGEST_CALL: Final = 1024 * 1024

#: The providers, each with the setting that says who may call.
VARIABLES: Final[Mapping[type[Ses] | type[Mailgun] | type[SendGrid] | type[Postmark], str]] = {
    Ses: "DUEPOST_SES_TOPICS",
    Mailgun: "DUEPOST_MAILGUN_SIGNING_KEY",
    SendGrid: "DUEPOST_SENDGRID_PUBLIC_KEY",
    Postmark: "DUEPOST_POSTMARK_LOGIN",
}

#: Seconds between two notes of the same: however many calls come, the database is told seldom.
SELDOM: Final = 10.0


class Hooks:
    """Answers providers.

    Args:
        database: where emails, recipients and suppressions are.
        tokens: opens the tokens of return paths.
        bounce_address: DUEPOST_BOUNCE_ADDRESS; None: emails have no return path of ours.
        providers: those that may call.
    """

    def __init__(
        self, database: Database, tokens: Tokens, bounce_address: str | None, providers: Sequence[Provider]
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._bounce_address = bounce_address
        self._providers = {each.name: each for each in providers}
        self._told: dict[tuple[str, str | None], float] = {}
        self._telling = threading.Lock()

    async def answer(self, request: Request) -> Response:
        """One call."""
        name = str(request.path_params["provider"])
        sort = next((each for each in VARIABLES if each.name == name), None)
        if sort is None:
            return answers.not_found(request, LookupError())
        try:
            body = await answers.read_body(request, LARGEST_CALL)
        except answers.Refused as error:
            return PlainTextResponse(f"{error}\n", error.status)
        call = Call(body, {key.lower(): value for key, value in request.headers.items()})
        return await run_in_threadpool(self._answered, name, call, self._providers.get(name))

    def _answered(self, name: str, call: Call, provider: Provider | None) -> Response:
        try:
            if provider is None:
                [(sort, variable)] = [(each, value) for each, value in VARIABLES.items() if each.name == name]
                # Whoever tries URLs is no reason to look.
                if sort.is_alike(call):
                    self._tell(name, f"{variable} is not set")
                return PlainTextResponse("Nobody may call this.\n", 403)
            self._take(provider, provider.verified(call))
            self._tell(name, None)
        except Refused as error:
            self._tell(name, str(error))
            return PlainTextResponse("The call is not the provider's.\n", 403)
        except (Unavailable, DuepostError, psycopg2.Error) as error:
            reason = str(error) if isinstance(error, Unavailable) else type(error).__name__
            LOGGER.warning("webhook %s: not taken now: %s", name, reason)
            return PlainTextResponse("This does not work just now: try again.\n", 503)
        return PlainTextResponse("Taken.\n")

    def _take(self, provider: Provider, verified: Verified) -> None:
        """Concludes each event by itself: what one holds keeps no other.

        Raises:
            DuepostError: the database is away; what was concluded until then is known when it comes again.
            psycopg2.Error: the same.
        """
        conclusions = Conclusions(self._database, provider.name)
        for raw in verified.events:
            try:
                self._conclude(conclusions, provider.read(raw), verified.token)
            except (BrokenEvent, psycopg2.DataError) as error:
                reason = str(error) if isinstance(error, BrokenEvent) else type(error).__name__
                _note_unreadable(conclusions, provider, raw, verified, reason)
            except (DuepostError, psycopg2.Error):
                raise
            except Exception as error:  # noqa: BLE001 - whatever one event holds, the others are concluded
                _note_unreadable(conclusions, provider, raw, verified, type(error).__name__)

    def _conclude(self, conclusions: Conclusions, events: Sequence[Event], token: str | None) -> None:
        if not events and token is not None:
            conclusions.nothing(token)
        for event in events:
            if event.status is None and not event.complaint:
                continue
            known = self._known(event)
            if not known:
                word = event.status.action if event.status else event.complaint
                conclusions.unbelieved(word, event.id, token)
            elif event.status is not None:
                conclusions.status(event.status, known, event.id, token)
            else:
                conclusions.complaint(event.complaint, known, event.who, event.id, token)

    def _known(self, event: Event) -> Sequence[Sent]:
        """Whom the email of an event went to: by its return path, by our Message-ID, or by the relay's reply."""
        about = event.about
        if self._bounce_address is not None:
            path = only_path(self._tokens, self._bounce_address, about.paths)
            if path is not None:
                return sent(self._database, path)
        ours = (about.message_id or "").strip().lstrip("<").partition("@")[0] or None
        if not about.addresses or (ours is None and about.relay_id is None):
            return ()
        emails = bounces.sent_as(
            self._database, about.addresses, BELIEVED_FOR, message_id=ours, relay_id=about.relay_id
        )  # fmt: skip
        return bounces.sent(self._database, emails[0], BELIEVED_FOR) if len(emails) == 1 else ()

    def _tell(self, name: str, refused_because: str | None) -> None:
        """Notes and logs, now and then, that calls are taken or refused."""
        now = time.monotonic()
        with self._telling:
            if now - self._told.get((name, refused_because), -SELDOM) < SELDOM:
                return
            self._told[name, refused_because] = now
        if refused_because is not None:
            LOGGER.warning("webhook %s: refused: %s", name, refused_because)
        try:
            bounces.tell_webhook(self._database, name, refused_because)
        except (DatabaseUnreachable, psycopg2.Error) as error:
            LOGGER.warning("webhook %s: cannot be noted: %s", name, type(error).__name__)


def _note_unreadable(
    conclusions: Conclusions, provider: Provider, raw: object, verified: Verified, reason: str
) -> None:
    """One event that is not as its provider writes them: operators see that there was one, and why."""
    LOGGER.warning("webhook %s: an event cannot be read: %s", provider.name, visible(reason))
    conclusions.unreadable(id_of(raw, ""), reason, verified.token)
