"""The app."""

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.db.models.signals import post_migrate

from duepost.django.schema import bring_up_to_date, check_database


class DuepostConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """`duepost.django` in INSTALLED_APPS."""

    name = "duepost.django"
    label = "duepost"
    verbose_name = "Duepost"

    def ready(self) -> None:
        """Has `check` look at the database, and `migrate` bring the schema to this release each time."""
        register(check_database, Tags.database)
        post_migrate.connect(bring_up_to_date, sender=self)
