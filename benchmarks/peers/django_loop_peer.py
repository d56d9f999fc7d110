"""A Django loop, one process, one row a transaction: lock, send, delete."""

import time

import django
from django.conf import settings
from turn import BODY, SENDER, Mode, Turn, begin, database


def configure(turn: Turn) -> None:
    """Django with nothing but models."""
    settings.configure(
        DATABASES={"default": database(turn)},
        INSTALLED_APPS=["django.contrib.contenttypes"],
        EMAIL_BACKEND="django.core.mail.backends.smtp.EmailBackend",
        EMAIL_HOST="127.0.0.1",
        EMAIL_PORT=turn.port,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()


def main() -> None:
    """A turn."""
    turn = Turn.given()
    configure(turn)
    from django.core.mail import EmailMultiAlternatives, get_connection
    from django.db import connection, models, transaction
    from django.utils.timezone import now

    class Person(models.Model):
        address = models.TextField()

        class Meta:
            app_label = "contenttypes"

    class ScheduledEmail(models.Model):
        due_at = models.DateTimeField(db_index=True, default=now)
        people = models.ManyToManyField(Person)
        subject = models.TextField()
        body = models.TextField()

        class Meta:
            app_label = "contenttypes"

    if turn.mode is Mode.DRAIN:
        with connection.schema_editor() as editor:
            editor.create_model(Person)
            editor.create_model(ScheduledEmail)
        people = Person.objects.bulk_create(Person(address=to) for to in turn.addresses)
        emails = ScheduledEmail.objects.bulk_create(ScheduledEmail(subject="Benchmark", body=BODY) for _ in people)
        ScheduledEmail.people.through.objects.bulk_create(
            ScheduledEmail.people.through(scheduledemail_id=email.id, person_id=person.id)
            for email, person in zip(emails, people, strict=True)
        )
    begin()
    relay = get_connection()
    relay.open()
    while True:
        with transaction.atomic(durable=True):
            email = (
                ScheduledEmail.objects.filter(due_at__lte=now())
                .prefetch_related("people")
                .select_for_update(skip_locked=True)
                .order_by("due_at")
                .first()
            )
            if email is not None:
                to = [person.address for person in email.people.all()]
                relay.send_messages([EmailMultiAlternatives(email.subject, email.body, SENDER, to)])
                email.delete()
        if email is None:
            if turn.mode is Mode.DRAIN:
                break
            time.sleep(0.1)
    relay.close()


if __name__ == "__main__":
    main()
