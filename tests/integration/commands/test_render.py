"""`duepost render`, and what `duepost doctor` says of templates: both before anything is sent."""

from pathlib import Path

import pytest

from tests.integration.commands.shell import Shell
from tests.processes import duepost

SUBJECT, TEXT = "{{ count }} news for {{ recipient.name or 'you' }}", "At {{ '2026-11-25T18:30:00Z' | time }}\n"


@pytest.fixture
def shell(url: str, tmp_path: Path) -> Shell:
    (tmp_path / "digest.subject.txt").write_text(SUBJECT)
    (tmp_path / "digest.txt").write_text(TEXT)
    (tmp_path / "digest.html").write_text("<p>{{ count }} & {{ recipient.address }}</p>\n")
    shell = Shell(url, DUEPOST_TEMPLATES=str(tmp_path))
    shell.query(
        "INSERT INTO duepost.recipient (user_id, address, name, locale, timezone)"
        " VALUES ('42', 'eve@example.com', 'Eve', 'de', 'Europe/Berlin')"
    )
    return shell


def schedule(shell: Shell, context: str, *more: str) -> str:
    arguments = ["--kind", "digest", "--template", "digest", "--context", context, *(more or ("--user", "42"))]
    return shell.run("schedule", *arguments).strip()


def test_a_template_is_rendered_with_a_context_and_nothing_is_sent(shell: Shell) -> None:
    assert shell.run("render", "digest", "--context", '{"count": 1.50}') == (
        "Subject: 1.50 news for you\n\nAt 6:30\u202fPM\n"
    )
    assert shell.run("list", "--json").strip() in {"[]", ""}


def test_it_is_rendered_for_a_user_as_the_database_knows_them_and_with_a_pending_email_s_context(shell: Shell) -> None:
    email_id = schedule(shell, '{"count": 3}')
    assert "Subject: 3 news for Eve\n\nAt 19:30\n" in shell.run("render", "digest", "--user", "42", "--email", email_id)
    assert "<p>3 & eve@example.com</p>" in shell.run("render", "digest", "--user", "42", "--email", email_id, "--html")


def test_it_is_rendered_for_somebody_of_a_locale(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "digest.de.subject.txt").write_text("{{ count }} Neuigkeiten")
    (tmp_path / "digest.de.txt").write_text("{{ 34.5 | number }}, {{ recipient.name }}\n")
    context = ("--context", '{"count": 3}')
    assert shell.run("render", "digest", *context, "--locale", "de-AT") == "Subject: 3 Neuigkeiten\n\n34,5, None\n"
    assert shell.run("render", "digest", *context, "--locale", "xx").startswith("Subject: 3 news for you\n")
    # Of a user the rest stays.
    assert "At 19:30\n" in shell.run("render", "digest", *context, "--user", "42", "--locale", "fr")


def test_what_is_wrong_is_one_line(shell: Shell) -> None:
    for arguments, said in (
        (["digest"], "digest.subject.txt line 1: UndefinedError: 'count' is undefined"),
        (["none"], "none.subject.txt: TemplateNotFound: there is no such file"),
        (["../secret"], "a template's name must be one such as welcome"),
        (["digest", "--user", "43"], "--user: duepost.recipient has no user 43"),
        (["digest", "--email", "9"], "9: no email with a template that is not finished has this id"),
        (["digest", "--context", "[]"], "--context: must be a JSON object"),
        (["digest", "--context", "{"], "--context: must be JSON: "),
    ):
        done = duepost("render", *arguments, env=shell.env)
        assert done.returncode in {1, 2}
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_doctor_names_what_a_kind_s_newest_contexts_lack(shell: Shell) -> None:
    schedule(shell, '{"count": 3}')
    assert shell.findings(status=None)["templates"][0] == "ok"
    schedule(shell, '{"cuont": 3}')
    health, said = shell.findings(status=None)["templates"]
    assert health == "failed"
    assert "digest: digest.subject.txt line 1: UndefinedError: 'count' is undefined; duepost render tries it" in said
