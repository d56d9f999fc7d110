"""Duepost's workers with a bug planted: `dramatiq tests.chaos.bugged`, and CHAOS_BUG says which."""

import os
import threading

from actors import application
from actors.channels.channel import Dialogue, Rulings, converse
from actors.channels.smtp.envelope import Envelope
from actors.channels.smtp.session import SmtpSession
from actors.ruling import Phase, Ruling, Scope
from actors.settings import settings
from models.words import Verdict
from tests.smtp_client import Client


def conclude_before_the_dot() -> None:
    """Says `sent` at once, and delivers afterwards."""
    deliver = SmtpSession.deliver

    def wait_for(session: SmtpSession, envelope: Envelope) -> Rulings | None:
        return converse(deliver(session, envelope), session.fileno)

    def say_sent(_session: SmtpSession, envelope: Envelope) -> Dialogue[Rulings | None]:
        later = Client(settings().need_relay(), settings().timeouts, deliver=wait_for)
        threading.Thread(target=later.deliver, args=(envelope,), daemon=True).start()
        yield from ()
        return {
            recipient: Ruling(Verdict.SENT, Scope.RECIPIENT, Phase.DOT, code=250) for recipient in envelope.recipients
        }

    SmtpSession.deliver = say_sent  # type: ignore[method-assign, assignment]


def clear_what_is_being_sent() -> None:
    """A clear does not look whether a worker has the email in hand."""
    application.database.execute(
        "CREATE OR REPLACE FUNCTION duepost.is_in_hand(id bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false'"
    )


BUGS = {each.__name__: each for each in (conclude_before_the_dot, clear_what_is_being_sent)}

BUGS[os.environ["CHAOS_BUG"]]()
