"""django-post_office: batches of a thousand, recorded when all of a batch are sent; two processes of threads.

At its defaults: batches of a hundred, one process, five threads.
"""

import logging
import tempfile
import time
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command
from turn import BODY, SENDER, Mode, Turn, begin, database

#: Emails of one statement that stores them.
STORED = 1000


def configure(turn: Turn) -> None:
    """Django with nothing but it."""
    settings.configure(
        DATABASES={"default": database(turn)},
        INSTALLED_APPS=["django.contrib.contenttypes", "post_office"],
        EMAIL_BACKEND="post_office.EmailBackend",
        EMAIL_HOST="127.0.0.1",
        EMAIL_PORT=turn.port,
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
        POST_OFFICE={
            **({"BATCH_SIZE": turn.batch} if turn.batch else {}),
            **({"THREADS_PER_PROCESS": turn.share(0), "LOG_LEVEL": 0} if turn.connections else {}),
        },
        LOGGING_CONFIG=None,
        USE_TZ=True,
    )
    logging.disable(logging.CRITICAL)
    django.setup()


def main() -> None:
    """A turn."""
    turn = Turn.given()
    configure(turn)
    from post_office import mail

    # One lock for each database: a run that resumes finds the lock of the one that was killed.
    lock = str(
        Path(tempfile.gettempdir()) / f"post_office_{Path(database(turn)['HOST']).name}_{database(turn)['NAME']}"
    )
    if turn.mode is Mode.DRAIN:
        call_command("migrate", verbosity=0)
        emails = [
            {"recipients": [to], "sender": SENDER, "subject": "Benchmark", "message": BODY} for to in turn.addresses
        ]
        for start in range(0, len(emails), STORED):
            mail.send_many(emails[start : start + STORED])
    begin()
    mail.send_queued_mail_until_done(lock, processes=turn.processes)
    while turn.mode is Mode.RESUME:
        time.sleep(1.0)  # Cron would run it again each minute.
        mail.send_queued_mail_until_done(lock, processes=turn.processes)


if __name__ == "__main__":
    main()
