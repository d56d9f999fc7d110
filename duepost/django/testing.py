"""Duepost in the tests of a Django project."""

from functools import cached_property

from django.db import connections

from duepost.django.schema import alias
from duepost.testing import Kit


class DuepostTestMixin:
    """Gives a TestCase or TransactionTestCase `self.duepost`, a `Kit` on the test's own transaction.

    class Registering(DuepostTestMixin, TestCase):
        def test_who_registers_is_welcomed(self):
            self.client.post("/register", {"email": "ann@example.com"})
            self.duepost.assert_scheduled(kind="welcome", address="ann@example.com")

    What a TransactionTestCase commits is removed after the test, as Django does it with its own tables.
    """

    @cached_property
    def duepost(self) -> Kit:
        """The kit, with the cursor of Django's connection."""
        return Kit(connections[alias()].cursor())

    def _fixture_teardown(self) -> None:
        if not connections[alias()].in_atomic_block:
            Kit(connections[alias()].cursor()).clear()
        super()._fixture_teardown()  # type: ignore[misc]  # the test case's
