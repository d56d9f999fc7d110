"""Duepost's workers with a bug planted: `dramatiq tests.chaos.bugged`, and CHAOS_BUG says which."""

import os
import threading

from actors import application
from actors.channels.smtp.connection import Connection, Envelope
from actors.channels.smtp.dialogue import Script
from actors.ruling import Phase, Ruling, Scope
from actors.settings import settings
from models.words import Verdict


def conclude_before_the_dot() -> None:
    """Says `sent` at once, and delivers afterwards."""

    def say_sent(connection: Connection, envelope: Envelope, following: object) -> Script[dict[str, Ruling]]:
        later = Connection(settings().need_relay(), settings().timeouts)
        threading.Thread(target=later.deliver, args=(envelope,), daemon=True).start()
        yield from ()
        return {
            recipient: Ruling(Verdict.SENT, Scope.RECIPIENT, Phase.DOT, code=250) for recipient in envelope.recipients
        }

    # What a dispatcher delivers with; `deliver` goes another way, and stays as it is.
    Connection.submitting = say_sent  # type: ignore[method-assign, assignment]


def clear_what_is_being_sent() -> None:
    """A clear does not look whether a worker has the email in hand."""
    application.database.execute(
        "CREATE OR REPLACE FUNCTION duepost.is_in_hand(id bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false'"
    )


BUGS = {each.__name__: each for each in (conclude_before_the_dot, clear_what_is_being_sent)}

BUGS[os.environ["CHAOS_BUG"]]()
