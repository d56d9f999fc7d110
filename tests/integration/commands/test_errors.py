"""Every error is one line on stderr, with an exit status that says whose turn it is."""

import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.commands.shell import BYTECODE, PLAIN, Shell, at_once
from tests.postgres import PostgresServer
from tests.processes import ROOT, duepost, environment

NOWHERE = "postgresql://nobody:hushhush@127.0.0.1:1/nothing"


def failing(
    *arguments: str,
    url: str = NOWHERE,
    cwd: Path | None = None,
    more: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> tuple[int, str]:
    """Runs a command that fails; gives its status and its one line."""
    env = environment(url, "smtp://user:topsecret@127.0.0.1:1", **BYTECODE, **(more or {}))
    done = duepost(
        *arguments, env={name: value for name, value in env.items() if value or name in BYTECODE}, cwd=cwd, stdin=stdin
    )
    assert done.returncode != 0, done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("duepost: ")
    for secret in ("hushhush", "topsecret", "Traceback", "\x1b"):
        assert secret not in done.stderr + done.stdout
    return done.returncode, done.stderr


BAD_USAGE: list[tuple[list[str], str]] = [
    (["nonsense"], "nonsense"),
    (["list", "--nonsense"], "--nonsense"),
    (["dead-letters", "--nonsense"], "(see `duepost dead-letters --help`)"),
    (["--nonsense"], "(see `duepost --help`)"),
    (["list", "--state", "asleep"], "--state': 'asleep' is not one of"),
    (["show"], "email_id"),
    (["show", "seven"], "email_id"),
    (["show", "0"], "email_id"),
    (["show", str(2**63)], "email_id"),
    (["resolve", "1", "perhaps"], "perhaps"),
    (["schedule", "--address", "a@b.c"], "--kind"),
    (["schedule", "--kind", "k", "--context", "{"], "--context: not JSON"),
    (["schedule", "--kind", "k", "--at", "tomorrow"], "--at: must be a time with its zone"),
    (
        ["schedule", "--kind", "k", "--expires-at", "2030-01-01T00:00:00"],
        "--expires-at: must be a time with its zone",
    ),
    (["schedule", "--kind", "k", "--header", "nonsense"], "--header: must be 'Name: value'"),
    (["schedule", "--file", "missing.jsonl"], "missing.jsonl: No such file"),
    (["schedule", "--file", "x.jsonl", "--kind", "k"], "--file: goes without kind"),
    (["reschedule", "1", "soon"], "AT: must be a time with its zone"),
    (["clear"], "clear: give either ids, or --user, --address or --kind"),
    (["clear", "1", "--user", "ann"], "clear: give one of an id, --user or --address"),
    (["schedule", "--kind", "k", "--context", "[" * 100_000], "--context: not JSON"),
    (["worker", "--nonsense"], "no such option: --nonsense (see `duepost worker --help`)"),
    (["worker", "--processes", "0"], "no whole number of at least 1"),
    (["worker", "--threads", "many"], "no whole number of at least 1"),
    (["worker", "--queues", "duepost_nonsense"], "invalid choice: 'duepost_nonsense'"),
    (["worker", "--log-file", "/nowhere/worker.log"], "/nowhere/worker.log: No such file"),
    (["demo", "missing.jsonl"], "missing.jsonl: No such file"),
]

BAD_SETTINGS = [
    ("DUEPOST_DATABASE_URL", "mysql://x", "a libpq URL"),
    ("DUEPOST_SMTP_URL", "http://x", "smtp"),
    ("DUEPOST_SMTP_HELO", "my host", "must be a domain"),
    ("DUEPOST_SMTP_HELO", "[1.2.3]", "must be a domain"),
    ("DUEPOST_SMTP_CA", "/nowhere.pem", "cannot be read: No such file"),
    ("DUEPOST_SMTP_CA", "/dev/null", "holds no certificate"),
    ("DUEPOST_FROM", "nobody", "noreply@example.com"),
    ("DUEPOST_DKIM_HEADERS", "To, Subject", "From among them"),
    ("DUEPOST_DKIM_HEADERS", "From, DKIM-Signature", "From among them"),
    ("DUEPOST_DKIM_HEADERS", "From, from", "each once"),
    ("DUEPOST_DISABLED", "maybe", "0 or 1"),
    ("DUEPOST_SMTP_TIMEOUT", "-1", "greater than 0"),
    ("DUEPOST_SMTP_TIMEOUT", "soon", "DUEPOST_SMTP_TIMEOUT: must be a valid number\n"),
    ("DUEPOST_DATABASE_URL", "'postgresql://ann:hushhush@localhost/x'", "quotation marks"),
    ("DUEPOST_RETENTION_DAYS", "''", "must be a valid integer; the value has quotation marks around it"),
    ("DUEPOST_FROM", "'Example <noreply@example.com>'", "quotation marks"),
    ("DUEPOST_RETENTION_DAYS", "0", "greater than or equal to 1"),
    ("DUEPOST_RENDER_TIMEOUT", "0", "greater than 0"),
    ("DUEPOST_MEMORY_LIMIT", "-1", "greater than or equal to 0"),
    ("DUEPOST_DEAD_LETTER_DAYS", "none", "valid integer"),
    ("DUEPOST_STATEMENT_TIMEOUT", "0", "greater than or equal to 1"),
    ("DUEPOST_STALL_TIMEOUT", "0", "greater than or equal to 1"),
    ("DUEPOST_BUSY_TIMEOUT", "0", "greater than or equal to 1"),
    ("DUEPOST_SESSION_DATABASE_URL", "localhost", "must be a libpq URL"),
    ("SENTRY_DSN", "nonsense", "a Sentry DSN"),
]

#: What libpq cannot read, or would read as something else, and quote.
BAD_URLS = [
    "postgresql://ann:hushhush%ZZ@127.0.0.1/x",
    "postgresql://ann:hushhush/x@127.0.0.1/x",
    "postgresql://ann:x@hushhush@127.0.0.1/x",
    "postgresql://ann:hushhush@[::1/x",
    "mysql://ann:hushhush@127.0.0.1/x?y=z",
    "host=127.0.0.1 password=x hushhush",
]


@pytest.fixture(scope="module")
def bad_usage() -> dict[str, tuple[int, str]]:
    """What comes of each bad command line."""
    found = at_once(lambda case: failing(*case[0]), BAD_USAGE)
    return {str(case[0]): result for case, result in zip(BAD_USAGE, found, strict=True)}


@pytest.mark.parametrize(
    ("arguments", "named"), BAD_USAGE, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_bad_usage_is_named_and_status_2(
    bad_usage: dict[str, tuple[int, str]], arguments: list[str], named: str
) -> None:
    status, line = bad_usage[str(arguments)]
    assert status == 2
    assert named in line


@pytest.fixture(scope="module")
def bad_settings() -> dict[tuple[str, str], tuple[int, str]]:
    """What comes of each bad setting."""
    found = at_once(lambda case: failing("stats", more={case[0]: case[1]}), BAD_SETTINGS)
    return {case[:2]: result for case, result in zip(BAD_SETTINGS, found, strict=True)}


@pytest.mark.parametrize(("variable", "value", "right"), BAD_SETTINGS)
def test_a_bad_setting_is_named_and_status_2(
    bad_settings: dict[tuple[str, str], tuple[int, str]], variable: str, value: str, right: str
) -> None:
    status, line = bad_settings[variable, value]
    assert status == 2
    assert line.startswith(f"duepost: {variable}: ")
    assert right.lower() in line.lower()


def test_a_database_url_that_libpq_cannot_read_is_status_2_and_not_shown() -> None:
    for status, line in at_once(lambda url: failing("list", url=url), BAD_URLS):
        assert status == 2
        assert line.startswith("duepost: DUEPOST_DATABASE_URL: must be a libpq URL")


def test_duepost_up_does_not_show_an_unreadable_database_url_either(tmp_path: Path) -> None:
    status, line = failing("up", "--port", "0", url=BAD_URLS[0], cwd=tmp_path)
    assert status == 2
    assert "DUEPOST_DATABASE_URL" in line


@pytest.mark.parametrize("smtp_url", ["smtp://user:top/secret@127.0.0.1", "smtp://user:topsecret@[::1"])
def test_a_bad_relay_url_is_not_shown(smtp_url: str) -> None:
    status, line = failing("list", more={"DUEPOST_SMTP_URL": smtp_url})
    assert status == 2
    assert "DUEPOST_SMTP_URL: bad relay URL" in line
    assert "secret" not in line


def test_a_missing_database_setting_names_duepost_up(tmp_path: Path) -> None:
    status, line = failing("list", url="", cwd=tmp_path)
    assert status == 2
    assert "DUEPOST_DATABASE_URL" in line
    assert "duepost up" in line


def test_an_unreachable_database_is_status_1() -> None:
    commands = [["list"], ["migrate"], ["trigger"], ["worker"], ["schedule", "--kind", "k"]]
    assert [status for status, _ in at_once(lambda command: failing(*command), commands)] == [1] * 5


def test_a_missing_schema_says_what_to_run(server: PostgresServer) -> None:
    commands = [["list"], ["trigger"], ["worker"], ["clear", "1"], ["stats", "--json"]]
    with server.fresh_database(migrated=False) as url:
        for status, line in at_once(lambda command: failing(*command, url=url), commands):
            assert status == 1
            assert "run `duepost migrate`" in line


@pytest.fixture
def only_client(server: PostgresServer, url: str) -> Iterator[Shell]:
    """A shell whose role is a member of duepost_client and nothing else."""
    role = f"only_client_{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE ROLE {role} LOGIN IN ROLE duepost_client")
    yield Shell(url.replace("postgres@", f"{role}@", 1))
    server.execute(f"DROP ROLE {role}")


def test_a_client_may_not_look_and_is_told_so(only_client: Shell) -> None:
    status, line = failing("list", url=only_client.url)
    assert status == 1
    assert "needs to be a member of duepost_worker" in line


def test_a_role_without_any_grant_is_told_which_one_it_needs(server: PostgresServer, url: str) -> None:
    role = f"stranger_{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE ROLE {role} LOGIN")
    status, line = failing("clear", "1", url=url.replace("postgres@", f"{role}@", 1))
    server.execute(f"DROP ROLE {role}")
    assert status == 1
    assert "a member of duepost_client" in line


def test_a_client_may_schedule_reschedule_and_clear(only_client: Shell) -> None:
    assert only_client.run("schedule", *PLAIN, "--address", "ann@example.com") == "1\n"
    assert only_client.run("reschedule", "1", "2030-01-01T00:00:00Z") == "rescheduled\n"
    assert only_client.run("clear", "1") == "1 cleared\n"


def test_what_the_database_refuses_is_bad_input(url: str) -> None:
    template = ("schedule", "--kind", "k", "--address", "ann@example.com", "--template", "t")
    not_utf_8 = b"\xff".decode(errors="surrogateescape")
    cases: list[tuple[list[str], str]] = [
        (["schedule", *PLAIN, "--address", "nobody"], "address: must be one address"),
        ([*template, "--context", r'{"a": "\u0000"}'], "--context: must not contain NUL"),
        ([*template, "--context", '{"a": 1e200000}'], "--context: "),
        ([*template, "--context", r'{"a": "\ud800"}'], ""),
        ([*template, "--context", "[1]"], "context: must be a JSON object"),
        ([*template, "--context", "NaN"], "json"),
        ([*template, "--context", "1e999"], "context: "),
        (["schedule", *PLAIN, "--address", "a@b.c", "--expires-at", "2001-01-01T00:00:00Z"], "expires_at: "),
        (["schedule", *PLAIN, "--user", not_utf_8], "not UTF-8"),
        (["clear", "--user", not_utf_8], "not UTF-8"),
        (["list", "--kind", not_utf_8], "not UTF-8"),
    ]
    for (arguments, named), (status, line) in zip(
        cases, at_once(lambda case: failing(*case[0], url=url), cases), strict=True
    ):
        assert status == 2, (arguments, line)
        assert named in line, (arguments, line)
    assert Shell(url).query("SELECT count(*) FROM duepost.scheduled_email") == [(0,)]


def test_a_reader_that_goes_away_is_no_traceback(url: str) -> None:
    shell = Shell(url)
    with subprocess.Popen(
        [sys.executable, "-m", "duepost", "stats", "--json"],
        env=shell.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_output_that_cannot_be_written_is_one_line(url: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "duepost", "stats", "--json"],
            env=Shell(url).env, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "duepost: No space left on device\n"


BAD_LINES = [
    ('{"kind": }', "not JSON: Expecting value at column 10"),
    ('{"kind": "k", "adress": "a@b.c"}', "adress: unknown"),
    ('{"kind": "k", "address": ["a@b.c"]}', "address: must be a string"),
    ('{"kind": "k", "kind": "l"}', "kind: given twice"),
    ('{"kind": "k", "scheduled_at": "2030-01-01T00:00:00"}', "scheduled_at: must be a time with its zone"),
    (r'{"kind": "k\u0000"}', "kind: must not contain NUL"),
    (r'{"kind": "k\ud800"}', "kind: must not contain NUL or a lone surrogate"),
    ('{"kind": "k", "address": "nobody", "subject": "s", "body_text": "b"}', "address: must be one address"),
    ('{"kind": "k", "address": "a@b.c", "subject": "s"}', "body_text: a subject needs a body"),
    (r'{"kind": "k", "a\nb": 1}', "a b: unknown"),
    (
        '{"kind": "k", "address": "a@b.c", "template": "t", "context": {"a": ' + "[" * 20_000 + "]" * 20_000 + "}}",
        "",
    ),
    ('{"kind": "k", "address": "a@b.c", "subject": "other", "body_text": "b", "key": "taken"}', ""),
    ('{"kind": "k", "address": "a@b.c", "subject": "s", "body_text": "b", "key": "' + "x" * 10_000 + '"}', "key"),
]
GOOD_LINE = '{"kind": "k", "address": "a@b.c", "subject": "s", "body_text": "b"}'
TAKEN = GOOD_LINE.replace("}", ', "key": "taken"}')


@pytest.fixture(scope="module")
def bad_lines(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, list[str]]]:
    """A database that refused a file for each bad line, and what was said of each."""
    folder = tmp_path_factory.mktemp("lines")

    def refused(number: int) -> str:
        file = folder / f"{number}.jsonl"
        file.write_text(f"{TAKEN}\n\n{BAD_LINES[number][0]}\n{GOOD_LINE}\n")
        status, line = failing("schedule", "--file", str(file), url=url)
        assert status == 2, line
        return line

    with server.fresh_database() as url:
        yield Shell(url), at_once(refused, range(len(BAD_LINES)))


@pytest.mark.parametrize("number", range(len(BAD_LINES)), ids=[line[:70] for line, _ in BAD_LINES])
def test_a_bad_line_of_a_file_names_number_and_field(bad_lines: tuple[Shell, list[str]], number: int) -> None:
    assert f"{number}.jsonl: line 3: {BAD_LINES[number][1]}" in bad_lines[1][number]


def test_of_a_file_with_a_bad_line_nothing_is_scheduled(bad_lines: tuple[Shell, list[str]]) -> None:
    assert bad_lines[0].query("SELECT count(*) FROM duepost.scheduled_email") == [(0,)]


def test_a_file_that_is_not_utf_8_is_named_also_from_stdin(url: str, tmp_path: Path) -> None:
    (tmp_path / "emails.jsonl").write_bytes(b'{"kind": "\xff"}\n')
    assert (
        "emails.jsonl: line 1: not UTF-8" in failing("schedule", "--file", str(tmp_path / "emails.jsonl"), url=url)[1]
    )
    with (tmp_path / "emails.jsonl").open("rb") as stdin:
        done = subprocess.run(
            [sys.executable, "-m", "duepost", "schedule", "--file", "-"],
            env=Shell(url, LC_ALL="C", PYTHONUTF8="0").env, cwd=ROOT, stdin=stdin, capture_output=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(b"duepost: stdin: line 1: not UTF-8")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "Is a directory" in failing("schedule", "--file", str(tmp_path))[1]
