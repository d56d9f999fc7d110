"""Emails whose content cannot be read or rendered: theirs is the failure, and nobody else's."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

#: Of what kind they are. Nobody waits for them, and they must never reach the relay.
KIND = "poison"

#: Contexts as they may lie in the table from before there was a check.
CONTEXTS: Mapping[str, str] = {
    "huge exponent": '{"n": 1e5000}',
    "deep nesting": '{"n": ' + "[" * 3000 + "]" * 3000 + "}",
    "many digits": '{"n": ' + "7" * 6000 + "}",
}

#: Templates by the name of what is wrong with them; the last one has no file.
TEMPLATES: Mapping[str, str] = {
    "endless template": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "failing template": "{{ 1 / 0 }}",
    "missing template": "",
}

Query = Callable[..., Sequence[tuple[object, ...]]]


def write_templates(folder: Path) -> None:
    """Writes the templates, and one that is right."""
    folder.mkdir(exist_ok=True)
    for name, text in {**TEMPLATES, "right": "World"}.items():
        if text:
            (folder / f"{_file(name)}.txt").write_text(text)
            (folder / f"{_file(name)}.subject.txt").write_text(KIND)


def schedule_poison(query: Query, how: str) -> None:
    """Schedules one that is due now, past every check."""
    template = how if how in TEMPLATES else "right"
    [(email_id,)] = query(
        "SELECT duepost.schedule_email(kind => %s, address => 'poison@example.com', template => %s,"
        " scheduled_at => now() + interval '1 h')",
        KIND, _file(template),
    )  # fmt: skip
    query(
        "UPDATE duepost.scheduled_email SET context = coalesce(%s::jsonb, context), due_at = now() WHERE id = %s",
        CONTEXTS.get(how), email_id,
    )  # fmt: skip


def _file(name: str) -> str:
    return name.replace(" ", "-")
