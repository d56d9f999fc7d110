"""django-post_office: batches of a thousand, recorded when all of a batch are sent; two processes of threads."""

import logging
import tempfile
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command
from turn import BODY, SENDER, Turn, begin, database

PROCESSES = 2
BATCH = 1000


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
            "BATCH_SIZE": BATCH,
            "THREADS_PER_PROCESS": turn.share(PROCESSES),
            "LOG_LEVEL": 0,
            "LOCK_FILE_NAME": str(Path(tempfile.mkdtemp()) / "lock"),
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
    call_command("migrate", verbosity=0)
    from post_office import mail

    emails = [{"recipients": [to], "sender": SENDER, "subject": "Benchmark", "message": BODY} for to in turn.addresses]
    for start in range(0, len(emails), BATCH):
        mail.send_many(emails[start : start + BATCH])
    begin()
    mail.send_queued_mail_until_done(processes=PROCESSES)


if __name__ == "__main__":
    main()
