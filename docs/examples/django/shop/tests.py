"""Tests: `python manage.py test`."""

from datetime import timedelta
from unittest.mock import patch

from django.core.mail import send_mail
from django.test import TestCase, override_settings

from duepost.django.testing import DuepostTestMixin
from shop.models import Account


class Registering(DuepostTestMixin, TestCase):
    """Who registers."""

    def register(self) -> int:
        """Registers Ann."""
        return self.client.post("/register", {"email": "ann@example.com", "name": "Ann"}).json()["id"]

    def test_who_registers_is_welcomed_now_and_helped_tomorrow(self) -> None:
        """The emails are rendered as workers do it."""
        self.register()
        self.duepost.assert_scheduled(kind="first_steps", address="ann@example.com")
        [welcome] = self.duepost.drain()
        self.assertEqual(welcome["Subject"], "Welcome, Ann")
        [first_steps] = self.duepost.drain(advance=timedelta(days=1))
        self.assertIn("Ann", first_steps.get_content())

    def test_a_closed_account_gets_nothing_more(self) -> None:
        """What was scheduled is cleared."""
        pk = self.register()
        self.assertEqual(self.client.post(f"/accounts/{pk}/close").json(), {"cleared": ["cleared", "cleared"]})
        self.duepost.assert_not_scheduled()

    def test_an_account_that_is_not_made_is_not_welcomed(self) -> None:
        """The transaction is one."""
        with patch("duepost.schedule_email", side_effect=RuntimeError), self.assertRaises(RuntimeError):
            self.register()
        self.assertFalse(Account.objects.exists())
        self.duepost.assert_not_scheduled()

    # Django's tests replace the backend by one that keeps mail in memory.
    @override_settings(EMAIL_BACKEND="duepost.django.EmailBackend")
    def test_what_django_sends_is_scheduled(self) -> None:
        """By the backend."""
        send_mail("Hello", "World", None, ["ann@example.com"])
        self.duepost.assert_scheduled(kind="django", subject="Hello")
