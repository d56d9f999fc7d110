"""Duepost's workers with a bug planted: `dramatiq tests.chaos.bugged`, and CHAOS_BUG says which."""

import os
import threading
from collections.abc import Sequence
from uuid import UUID

from actors import application
from actors.channels.smtp.connection import Connection, Envelope
from actors.channels.smtp.dialogue import Script
from actors.ruling import Phase, Ruling, Scope
from actors.scheduler import Scheduler
from actors.sender import message_for
from actors.settings import settings
from models import emails
from models.emails import DueEmail
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


def enqueue_outside_the_transaction() -> None:
    """Sends the message once the row is marked, in a transaction of its own."""

    def enqueue_each(_scheduler: Scheduler, due: Sequence[DueEmail]) -> None:
        for each in due:
            enqueue(each.id)

    def enqueue(email_id: int) -> None:
        message = message_for(email_id)
        with application.database.transaction() as cursor:
            marked = emails.enqueue(cursor, email_id, UUID(message.message_id))
            if not marked:
                emails.expire(cursor, email_id)
        if marked:
            application.broker.enqueue(message)

    Scheduler.enqueue_each = enqueue_each  # type: ignore[method-assign, assignment]


BUGS = {each.__name__: each for each in (conclude_before_the_dot, enqueue_outside_the_transaction)}

BUGS[os.environ["CHAOS_BUG"]]()
