"""Makes the schema where it is missing, as `duepost migrate` does."""

from django.db import migrations

from duepost.django.schema import alias, install


def make_schema(_apps: object, schema_editor: object) -> None:
    """Makes it in the database that Duepost is in."""
    using = schema_editor.connection.alias  # type: ignore[attr-defined]
    if using == alias():
        install(using)


class Migration(migrations.Migration):  # type: ignore[misc]  # Django has no types
    """The schema is Duepost's own, and stays when this is undone: it holds what was sent."""

    initial = True
    #: The schema is made by a connection of its own.
    atomic = False
    operations = (migrations.RunPython(make_schema, migrations.RunPython.noop),)
