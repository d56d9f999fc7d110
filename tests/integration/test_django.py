"""`duepost.django` in a Django project: real Django, its own test runner, a real PostgreSQL."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from tests.postgres import PostgresServer, run

SETTINGS = """
import os
from urllib.parse import parse_qs, urlsplit

SECRET_KEY = "of a test"
USE_TZ = True
INSTALLED_APPS = ["duepost.django", "shop"]
EMAIL_BACKEND = "duepost.django.EmailBackend"
DEFAULT_FROM_EMAIL = "Shop <shop@example.com>"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
url = urlsplit(os.environ["SHOP_URL"])
postgres = {
    "ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:], "USER": url.username,
    "HOST": parse_qs(url.query)["host"][0], "PORT": parse_qs(url.query)["port"][0],
    "TEST": {"NAME": url.path[1:] + "_test"},
}
lite = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
DATABASES = {
    "postgres": {"default": postgres},
    "sqlite": {"default": lite},
    "second": {"default": lite, "mail": postgres},
}[os.environ.get("SHOP_DATABASES", "postgres")]
if "mail" in DATABASES:
    DUEPOST_DATABASE = "mail"
"""

MODELS = """
from django.db import models


class Account(models.Model):
    email = models.EmailField()
"""

TESTS = """
from datetime import timedelta

from django.core import mail
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase, override_settings

import duepost
from duepost.django.testing import DuepostTestMixin
from shop.models import Account


def register(address):
    with transaction.atomic(), connection.cursor() as cursor:
        account = Account.objects.create(email=address)
        duepost.schedule_email(cursor, kind="welcome", address=address, subject="Hello", body_text="World",
                               context=None, key=f"welcome-{account.pk}")
    return account


class InATransaction(DuepostTestMixin, TestCase):
    def test_what_is_scheduled_is_seen(self):
        register("ann@example.com")
        item = self.duepost.assert_scheduled(kind="welcome", address="ann@example.com")
        self.assertEqual(item.subject, "Hello")
        [email] = self.duepost.drain()
        self.assertEqual(email["To"], "ann@example.com")

    def test_each_begins_with_nothing(self):
        self.duepost.assert_not_scheduled()
        self.assertEqual(self.duepost.drain(timedelta(days=1)), [])

    def test_what_is_rolled_back_is_not_scheduled(self):
        try:
            with transaction.atomic():
                register("ann@example.com")
                raise RuntimeError
        except RuntimeError:
            pass
        self.duepost.assert_not_scheduled()

    @override_settings(EMAIL_BACKEND="duepost.django.EmailBackend")
    def test_send_mail_schedules(self):
        self.assertEqual(mail.send_mail("Hi", "Text", None, ["ann@example.com", "Bob <bob@example.com>"]), 1)
        self.duepost.assert_scheduled(address="ann@example.com", sender="Shop <shop@example.com>", count=1)
        self.duepost.assert_scheduled(address="bob@example.com", count=1)
        [email] = self.duepost.drain()
        self.assertEqual(email["To"], "ann@example.com, Bob <bob@example.com>")

    @override_settings(EMAIL_BACKEND="duepost.django.EmailBackend")
    def test_what_fails_silently_leaves_the_transaction_as_it_was(self):
        account = Account.objects.create(email="a@example.com")
        self.assertEqual(mail.send_mail("Hi", "Text", None, ["nobody"], fail_silently=True), 0)
        self.assertEqual(Account.objects.get(pk=account.pk).email, "a@example.com")
        with self.assertRaisesRegex(Exception, "addresses.1.: must be one address"):
            mail.send_mail("Hi", "Text", None, ["ann@example.com", "nobody"])
        self.assertEqual(Account.objects.count(), 1)
        self.duepost.assert_not_scheduled()


class Committed(DuepostTestMixin, TransactionTestCase):
    def test_one(self):
        register("ann@example.com")
        self.duepost.assert_scheduled(count=1)

    def test_two(self):
        self.duepost.assert_not_scheduled()
        register("ann@example.com")
        self.duepost.assert_scheduled(count=1)
"""


@pytest.fixture(scope="module")
def empty_url(server: PostgresServer) -> Iterator[str]:
    """A database without Duepost's schema."""
    with server.fresh_database(migrated=False) as url:
        yield url


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Django project."""
    folder = tmp_path_factory.mktemp("django")
    (folder / "settings.py").write_text(SETTINGS)
    shop = folder / "shop"
    (shop / "migrations").mkdir(parents=True)
    for path in (shop / "__init__.py", shop / "migrations" / "__init__.py"):
        path.write_text("")
    (shop / "models.py").write_text(MODELS)
    (shop / "tests.py").write_text(TESTS)
    return folder


Manage = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def manage(project: Path, empty_url: str) -> Manage:
    """Runs `manage.py`, or a script in the project."""

    def manage(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        own = {name: value for name, value in os.environ.items() if not name.startswith("DUEPOST_")}
        # Another Django, or another driver, may be in front.
        path = os.pathsep.join([str(project), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.run(
            [sys.executable, "-m", "django", *arguments],
            cwd=project,
            env=own | {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": path, "SHOP_URL": empty_url, **env},
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    return manage


@pytest.fixture(scope="module")
def migrated(manage: Manage) -> Manage:
    for arguments in (("makemigrations", "shop"), ("migrate",)):
        done = manage(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    return manage


@pytest.fixture
def mail(migrated: Manage, empty_url: str) -> Iterator[Callable[[str], list[tuple[object, ...]]]]:
    """Sends mail by Django's own functions, in a process of its own; gives what is scheduled."""
    connection = psycopg2.connect(empty_url)
    connection.autocommit = True

    def mail(code: str) -> list[tuple[object, ...]]:
        run(connection, "DELETE FROM duepost.scheduled_email")
        script = (
            "from django.core.mail import *\nfrom django.core import mail\nfrom django.db import transaction\n"
            "from django.utils.translation import gettext_lazy\n" + code
        )
        done = migrated("shell", "-c", script)
        assert done.returncode == 0, done.stdout + done.stderr
        return run(
            connection,
            "SELECT kind, address, subject, body_text, body_html, sender, reply_to, headers, key"
            " FROM duepost.scheduled_email ORDER BY id",
        )

    yield mail
    connection.close()


SHOP = "Shop <shop@example.com>"


def test_migrate_installs_the_schema_and_can_be_repeated(migrated: Manage, empty_url: str) -> None:
    done = migrated("migrate")
    assert done.returncode == 0, done.stdout + done.stderr
    connection = psycopg2.connect(empty_url)
    assert run(connection, "SELECT count(*) > 10 FROM duepost.migration") == [(True,)]
    connection.close()
    assert migrated("makemigrations", "--check", "--dry-run", "duepost").returncode == 0
    assert migrated("check", "--database", "default").returncode == 0


def test_the_projects_tests_run_by_its_own_runner(migrated: Manage) -> None:
    done = migrated("test", "shop")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 7 tests" in done.stderr


Mail = Callable[[str], list[tuple[object, ...]]]


def test_a_message_with_text_html_name_and_headers_is_one_email(mail: Mail) -> None:
    assert mail(
        "message = EmailMultiAlternatives(gettext_lazy('Grüße'), 'Text', 'Ann <ann@example.com>', ['bob@example.com'],"
        " reply_to=['Help <help@example.com>'], headers={'X-A': 'b', 'X-Duepost-Kind': 'welcome',"
        " 'X-Duepost-Key': 'k-1', 'X-Duepost-Scheduled-At': '2030-01-01T00:00Z'})\n"
        "message.attach_alternative('<p>HTML</p>', 'text/html')\n"
        "assert message.send() == 1"
    ) == [
        ("welcome", "bob@example.com", "Grüße", "Text", "<p>HTML</p>", "Ann <ann@example.com>",
         "Help <help@example.com>", {"X-A": "b"}, "k-1")
    ]  # fmt: skip


def test_recipients_in_to_cc_and_bcc_see_one_email_together(mail: Mail, empty_url: str) -> None:
    assert mail(
        "assert EmailMessage('Hi', 'Text', to=['\"Doe, Ann\" <ann@example.com>', 'bob@example.com'],"
        " cc=['eve@example.com'], bcc=['boss@example.com', 'bob@example.com'],"
        " headers={'X-Duepost-Key': 'k-2'}).send() == 1"
    ) == [("django", None, "Hi", "Text", None, SHOP, None, {}, "k-2")]
    assert seen_by(empty_url) == [
        ("to", "ann@example.com", "Doe, Ann"),
        ("to", "bob@example.com", None),
        ("cc", "eve@example.com", None),
        ("bcc", "boss@example.com", None),
    ]


def test_a_header_that_names_others_than_the_recipients_goes_along_and_names_none_of_them(
    mail: Mail, empty_url: str
) -> None:
    assert mail(
        "assert EmailMessage('Hi', 'Text', to=['ann@example.com', 'bob@example.com'],"
        " headers={'To': 'list@example.com'}).send() == 1\n"
        "assert EmailMessage('Hi', 'Text', to=['Ann <ann@example.com>']).send() == 1"
    ) == [
        ("django", None, "Hi", "Text", None, SHOP, None, {"X-Original-To": "list@example.com"}, None),
        ("django", "ann@example.com", "Hi", "Text", None, SHOP, None, {}, None),
    ]
    assert seen_by(empty_url) == [("bcc", "ann@example.com", None), ("bcc", "bob@example.com", None)]


def seen_by(url: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    try:
        return run(connection, "SELECT field, address, name FROM duepost.email_recipient ORDER BY email_id, place")
    finally:
        connection.close()


def attached(url: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT a.value ->> 'filename', a.value ->> 'content_type', a.value ->> 'cid', c.content"
            " FROM duepost.email AS e CROSS JOIN LATERAL jsonb_array_elements(e.attachments) AS a (value)"
            " JOIN duepost.attachment_content AS c ON encode(c.hash, 'hex') = a.value ->> 'sha256'"
        )
        return [(*named, bytes(content)) for *named, content in cursor.fetchall()]


def test_files_pictures_and_an_invitation_of_a_message_are_attached(mail: Mail, empty_url: str) -> None:
    calendar = b"BEGIN:VCALENDAR\nMETHOD:REQUEST\nUID:1\nEND:VCALENDAR\n"
    sent = mail(
        "from email.mime.image import MIMEImage\n"
        "message = EmailMultiAlternatives('Hi', 'Text', to=['ann@example.com'])\n"
        "message.attach_alternative('<img src=\"cid:logo\">', 'text/html')\n"
        f"message.attach_alternative({calendar!r}, 'text/calendar; method=REQUEST')\n"
        "message.attach('ä.csv', 'a;ü', 'text/csv')\n"
        "message.attach('a.bin', b'\\xff', None)\n"
        "picture = MIMEImage(b'\\x89PNG', 'png')\n"
        "picture.add_header('Content-ID', '<logo>')\n"
        "message.attach(picture)\n"
        "message.attach('a.eml', EmailMessage('inner', 'b', to=['b@example.com']), 'message/rfc822')\n"
        "assert message.send() == 1"
    )
    assert [row[3:5] for row in sent] == [("Text", '<img src="cid:logo">')]
    *files, inner, invitation = attached(empty_url)
    assert files == [
        ("ä.csv", "text/csv; charset=utf-8", None, "a;ü".encode()),
        ("a.bin", "application/octet-stream", None, b"\xff"),
        ("attachment.png", "image/png", "logo", b"\x89PNG"),
    ]
    assert inner[:2] == ("a.eml", "message/rfc822")
    assert b"Subject: inner" in inner[3]  # type: ignore[operator]
    assert invitation == ("invite.ics", "text/calendar; charset=utf-8; method=REQUEST", None, calendar)


def test_html_alone_headers_that_override_and_nobody_at_all(mail: Mail) -> None:
    assert mail(
        "message = EmailMessage('Hi', '<b>HTML</b>', to=['ann@example.com'],"
        " headers={'From': 'Boss <boss@example.com>', 'Reply-To': 'r@example.com', 'To': 'list@example.com'})\n"
        "message.content_subtype = 'html'\n"
        "assert message.send() == 1\n"
        "assert EmailMessage('Hi', 'Text', to=[]).send() == 0\n"
        "assert mail.get_connection().send_messages([]) == 0\n"
        "assert mail.get_connection().send_messages(None) == 0\n"
    ) == [
        ("django", "ann@example.com", "Hi", None, "<b>HTML</b>", "Boss <boss@example.com>", "r@example.com",
         {"X-Original-To": "list@example.com"}, None)
    ]  # fmt: skip


def test_many_messages_are_counted_and_rolled_back_with_the_transaction(mail: Mail) -> None:
    assert (
        mail(
            "try:\n"
            "    with transaction.atomic():\n"
            "        messages = [(subject, 'b', None, [f'{subject}@example.com']) for subject in ('x', 'y')]\n"
            "        assert send_mass_mail(messages) == 2\n"
            "        raise RuntimeError\n"
            "except RuntimeError: pass\n"
        )
        == []
    )


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("EmailMessage('s', 'b', to=['a@example.com'], attachments=[('a.txt', 'x', 'multipart/x')])", "content_type: "),
        ("EmailMessage('s', 'b', to=['a@example.com'], reply_to=['a@example.com', 'b@example.com'])", "reply_to: "),
        ("EmailMessage('s\\nBcc: x@example.com', 'b', to=['a@example.com'])", "subject: "),
        ("EmailMessage('s', 'b', to=['a@example.com'], headers={'X-A': 'b\\nBcc: x@example.com'})", "headers: "),
        ("EmailMessage('s', 'b', to=['a@example.com'], headers={'Message-ID': '<1@example.com>'})", "headers: "),
        ("EmailMessage('s', 'b', to=['a@example.com, b@example.com'])", "address: "),
        ("EmailMessage('s', 'b', to=[f'a{n}@example.com' for n in range(101)])", "addresses: "),
        ("EmailMessage('s', '', to=['a@example.com'])", "body_text"),
        ("EmailMessage('s', 'b', to=['a@example.com'], headers={'X-Duepost-Key': 'a\\nb'})", "key: "),
        ("EmailMessage('s', 'b', to=['a@b.example'], headers={'X-Duepost-Expires-At': '2030'})", "expires_at: "),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused_with_its_name_unless_it_may_fail_silently(
    mail: Mail, message: str, said: str
) -> None:
    assert (
        mail(
            f"message = {message}\n"
            "try:\n    message.send()\n"
            f"except Exception as error:\n    assert {said!r} in str(error), error\n"
            "else:\n    raise AssertionError('it was taken')\n"
            "assert mail.get_connection(fail_silently=True).send_messages([message]) == 0\n"
        )
        == []
    )


def test_on_sqlite_it_says_what_it_needs(manage: Manage) -> None:
    for arguments in (("migrate",), ("check", "--database", "default")):
        done = manage(*arguments, SHOP_DATABASES="sqlite")
        assert done.returncode
        assert "Duepost needs PostgreSQL, and the database 'default' is on sqlite" in done.stderr
    done = manage(
        "shell", "-c", "from django.core.mail import send_mail; send_mail('a', 'b', None, ['a@example.com'])",
        SHOP_DATABASES="sqlite",
    )  # fmt: skip
    assert "Duepost needs PostgreSQL, and the database 'default' is on sqlite" in done.stderr
    done = manage(
        "shell", "-c", "import duepost; from django.db import connection; duepost.status(connection.cursor(), 1)",
        SHOP_DATABASES="sqlite",
    )  # fmt: skip
    assert "Duepost needs PostgreSQL, and this CursorWrapper is on sqlite" in done.stderr


def test_it_may_be_in_another_database_than_the_default_one(migrated: Manage, empty_url: str) -> None:
    for arguments in (
        ("migrate",), ("migrate", "--database", "mail"),
        ("shell", "-c", "from django.core.mail import send_mail; send_mail('second', 'b', None, ['a@example.com'])"),
    ):  # fmt: skip
        done = migrated(*arguments, SHOP_DATABASES="second")
        assert done.returncode == 0, done.stdout + done.stderr
    connection = psycopg2.connect(empty_url)
    assert run(connection, "SELECT address FROM duepost.scheduled_email WHERE subject = 'second'") == [
        ("a@example.com",)
    ]
    connection.close()
