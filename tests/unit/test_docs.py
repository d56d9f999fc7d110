"""The documentation holds: links lead somewhere, names exist, settings are all there, the tables are the code's."""

import ast
import importlib
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psycopg2
import pytest

from actors.alerts import alerts, sentry
from actors.channels.http.request import Answer
from actors.channels.http.verdicts import judge as judge_answer
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.verdicts import judge, judge_failure
from actors.delivery import retry_policy
from actors.delivery.lanes import Lane
from actors.queue.broker import SESSION_LIMITS
from actors.ruling import Limit, Pace, Phase, Ruling, Scope
from actors.settings import Settings
from models import workers
from models.database import connections
from models.database.connections import KEEPALIVES, Connection, Limits
from models.words import Verdict

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "deploy/README.md")),
        *DOCS.rglob("*.md"),
    ]
)
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
INVARIANTS = ROOT / "tests" / "e2e" / "test_invariants.py"

FOLDERS = "actors|models|duepost|tests|benchmarks|deploy|docs"
SETTINGS_HEADER = ("variable", "unit", "default", "what a bad one says")

#: What tells of the place where the pages were written, and nothing to a reader.
WORKPLACE = re.compile(
    r"\bhelpers?\b|\bhand-?offs?\b|(?:^|[\s`(\"'])/(?:work|root|home|tmp|workspace|mnt)/|\bfile://(?!`|/srv/|/…|/`)"
    r"|\b(?:artifactory|nexus|index-url|devpi)\b|\bregistry\.|\bpypi\.",
    re.IGNORECASE | re.MULTILINE,
)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    kept = ("".join(c for c in title.lower() if unicodedata.category(c)[0] in "LN" or c in " -_") for title in titles)
    return {title.strip().replace(" ", "-") for title in kept}


def rows(page: Path, *header: str) -> list[list[str]]:
    """The cells of the table with this header."""
    found: list[list[str]] = []
    inside = False
    for line in read(page).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if cells == list(header):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not set(line) <= set("| -"):
            found.append([cell.strip(" |`") for cell in line[1:-1].split("|")])
    return found


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(page)):
        if not target.startswith("http"):
            goal = page.parent / target if target else page
            assert goal.exists(), target
            assert not anchor or anchor in anchors(goal), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    text = read(page)
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]*(?:\.\w+|/))[`:]", text):
        assert (ROOT / path).exists(), path
    for test in re.findall(r"\b(test_[a-z0-9_]+)\b(?!\.py)", text):
        if test.startswith("test_invariant_") and not INVARIANTS.exists():
            pytest.skip("tests/e2e/test_invariants.py is not there yet")
        # A page that shows tests of the reader's own has them itself.
        assert f"def {test}(" in TESTS or f"def {test}(" in text, test


@cache
def defined_in(path: str) -> frozenset[str]:
    """The names that a file defines: functions, classes, variables and attributes; tables, statements and the like."""
    text = read(ROOT / path)
    if path.endswith(".sql"):
        title = r"-- name: (\w+)"
        made = r"(?:FUNCTION|PROCEDURE|TABLE|TYPE|VIEW|SEQUENCE|INDEX|CONSTRAINT) (?:(?:duepost|dramatiq)\.)?(\w+)"
        return frozenset(name for pattern in (title, made) for name in re.findall(pattern, text))
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
    return frozenset(names)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_names_that_are_said_to_be_in_a_file_are_defined_there(page: Path) -> None:
    for path, name in re.findall(rf"`((?:{FOLDERS})/[\w./-]+\.(?:py|sql)):(\w+)`", read(page)):
        assert name in defined_in(path), f"{path}:{name}"


#: What a number of a page is counted in, as its constant has it: seconds, bytes, or pieces.
UNITS = {
    "ms": 0.001, "s": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "day": 86_400,
    "byte": 1, "KiB": 2**10, "MiB": 2**20,
}  # fmt: skip
NUMBER = rf"(?<![\w.,/×-])(\d[\d,]*(?:\.\d+)?)(?: ({'|'.join(UNITS)})s?\b)?(?![\w.]*\d)"
CONSTANT = r"`([\w/]+\.py):([A-Z][A-Z_]+)`"


def amount(number: str, unit: str) -> float:
    """A number of a page in the unit of its constant."""
    return float(number.replace(",", "")) * UNITS.get(unit, 1)


def constant(path: str, name: str) -> float | None:
    """A constant of the code; None where it is no number."""
    value = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    return float(value) if isinstance(value, int | float) else None


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_number_before_the_name_of_a_constant_is_the_codes(page: Path) -> None:
    text = prose(page)
    for group in re.finditer(rf"{CONSTANT}(?:,\s+{CONSTANT})*", text):
        names = re.findall(CONSTANT, group[0])
        values = [value for path, name in names if (value := constant(path, name)) is not None]
        paragraph = text[: group.start()].rpartition("\n\n")[2]
        said = [amount(number, unit) for number, unit in re.findall(NUMBER, re.sub(r"`[^`]*`", "", paragraph))]
        assert said[len(said) - len(values) :] == pytest.approx(values), names


#: Sentences of which the numbers are constants: each is in the pages at least once.
SENTENCES: dict[str, tuple[float, ...]] = {
    r"after <n> doubling to <n>; no other waits": (retry_policy.FIRST_PAUSE, retry_policy.LONGEST_PAUSE),
    r"[Pp]auses grow from <n> to <n>": (retry_policy.FIRST_PAUSE, retry_policy.LONGEST_PAUSE),
    r"(?:once a|one probe a) pause\W+<n>,? doubling to <n>": (retry_policy.FIRST_PROBE, retry_policy.LONGEST_PROBE),
    r"retried (?:by themselves, |after )<n>,? doubling to <n>": (
        retry_policy.SHORTEST[Pace.BROKEN],
        retry_policy.LONGEST_PAUSE,
    ),
    r"issing for (?:more than )?<n>": (workers.GRACE,),
    r"<n> if the server was restarted": (workers.GRACE_AFTER_RESTART,),
    r"server was restarted since[^.;]*? after <n>": (workers.GRACE_AFTER_RESTART,),
    r"when no proof has come for <n>": (SESSION_LIMITS.session,),
    r"hangs up,? <n> after the(?: statement's)? limit": (Limits().patience,),
    r"<n> for a statement, <n> for a lock, <n> idle": (Limits().statement, Limits().lock, Limits().idle),
    r"A lock is waited for <n> at most; a connection, <n>": (Limits().lock, connections.CONNECT_TIMEOUT),
    r"keepalives fail, after about <n>": (
        KEEPALIVES["keepalives_idle"] + KEEPALIVES["keepalives_count"] * KEEPALIVES["keepalives_interval"],
    ),
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_numbers_of_a_sentence_are_the_codes(sentence: str) -> None:
    pattern = re.sub("<n>", lambda _: NUMBER, sentence).replace(" ", r"\s+")
    found = [
        (named(page), [amount(*pair) for pair in zip(groups[::2], groups[1::2], strict=True)])
        for page in PAGES
        for groups in (match.groups("") for match in re.finditer(pattern, re.sub(r" \(?`[^`]*`\)?", "", prose(page))))
    ]
    assert found
    for page, said in found:
        assert said == pytest.approx(SENTENCES[sentence]), page


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_lines_are_readable_as_they_stand(page: Path) -> None:
    assert "\t" not in read(page)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_says_nothing_of_the_place_where_it_was_written(page: Path) -> None:
    found = WORKPLACE.search(read(page))
    assert found is None, found


def test_every_page_is_in_an_index() -> None:
    for page in DOCS.rglob("*.md"):
        index = page.parent / "README.md"
        if page != index:
            assert f"({page.name})" in read(index), named(page)
    assert "(docs/README.md)" in read(ROOT / "README.md")


def test_every_thread_of_a_worker_is_on_the_page_of_threads() -> None:
    code = "\n".join(read(path) for folder in ("actors", "models") for path in (ROOT / folder).rglob("*.py"))
    started = set(re.findall(r'name="(duepost-[\w-]+)"', code)) | set(re.findall(r'ThreadPool\("(duepost-\w+)"', code))
    lanes = {f"duepost-{lane.name.lower()}" for lane in Lane}
    assert set(re.findall(r"^\| `(duepost-[\w-]+)`", read(DOCS / "threads.md"), re.MULTILINE)) == started | lanes


#: Settings that have a relay's name behind theirs.
OF_A_RELAY = re.compile(r"\b(DUEPOST_SMTP_(?:URL|CONNECTIONS|FALLBACK))_(?:<NAME>|MARKETING\b)")


def named_settings(text: str) -> set[str]:
    """The variables that a text names; those of one more relay as the one without a name."""
    return set(re.findall(r"\b(?:DUEPOST|SENTRY)_[A-Z_]+\b", OF_A_RELAY.sub(r"\1", text)))


def test_every_setting_is_documented_and_no_other() -> None:
    settings = {str(field.validation_alias) for field in Settings.model_fields.values()}
    text = read(DOCS / "settings.md")
    assert sorted(re.findall(r"^\| `([A-Z_]+)`", text, re.MULTILINE)) == sorted(settings)
    assert named_settings(text) == settings
    # Django's settings, and what a test's database is named by, are no worker's.
    others = [ROOT / "duepost/testing/plugin.py", *(ROOT / "duepost/django").glob("*.py")]
    known = settings.union(*(named_settings(read(path)) for path in others))
    for page in PAGES:
        assert named_settings(read(page)) <= known, named(page)


def test_each_setting_that_may_have_a_relays_name_behind_it_is_documented_with_one() -> None:
    text = read(DOCS / "settings.md")
    assert set(OF_A_RELAY.findall(text)) == set(re.findall(r'_by_relay\("(\w+)"\)', read(ROOT / "actors/settings.py")))


def test_the_defaults_of_the_settings_are_those_of_the_code() -> None:
    defaults = {row[0]: row[2].strip("`") for row in rows(DOCS / "settings.md", *SETTINGS_HEADER)}
    for field in Settings.model_fields.values():
        said = defaults[str(field.validation_alias)]
        if field.default is None:
            assert said.startswith("none")
        else:
            number = f"{field.default:g}" if isinstance(field.default, int | float) else str(field.default)
            assert said.split("`")[0] == number


def test_there_is_a_page_and_a_test_for_each_promise() -> None:
    numbers = [f"{number:02}" for number in range(1, 14)]
    assert sorted(path.name[:2] for path in (DOCS / "promises").glob("[0-9]*.md")) == numbers
    if not INVARIANTS.exists():
        pytest.skip("tests/e2e/test_invariants.py is not there yet")
    tests = dict(re.findall(r"def (test_invariant_(\d\d)_\w+)", read(INVARIANTS)))
    assert sorted(set(tests.values())) == numbers
    for test, number in tests.items():
        [page] = (DOCS / "promises").glob(f"{number}-*.md")
        assert f"`{test}`" in read(page)


@pytest.mark.parametrize("page", sorted((DOCS / "promises").glob("[0-9]*.md")), ids=named)
def test_a_promise_says_how_what_shows_it_and_what_is_not_promised(page: Path) -> None:
    titles = re.findall(r"^## (.+)$", read(page), re.MULTILINE)
    assert titles == ["How it is kept", "What shows it", "What is not promised"]


def test_every_decision_has_context_decision_and_consequences() -> None:
    for page in (DOCS / "decisions").glob("0*.md"):
        assert re.findall(r"^\*\*(\w+)\.\*\*", read(page), re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_every_decision_has_a_date_and_a_status_and_the_index_has_them_too() -> None:
    index = {
        row[0][1:5]: row[2:] for row in rows(DOCS / "decisions" / "README.md", "decision", "title", "date", "status")
    }
    for page in (DOCS / "decisions").glob("0*.md"):
        found = re.search(
            r"^Date: (\d{4}-\d\d-\d\d) · Status: (accepted.*|superseded by .*)$", read(page), re.MULTILINE
        )
        assert found is not None, named(page)
        assert index[page.name[:4]] == list(found.groups()), named(page)


def told(ruling: Ruling) -> tuple[str, str, str, str]:
    """A ruling as the table tells it."""
    return (
        ruling.verdict,
        "" if ruling.verdict is Verdict.SENT else ruling.scope,
        ruling.pace if ruling.verdict is Verdict.RETRY else "",
        "yes" if ruling.suppress else "",
    )


def test_the_table_of_verdicts_is_the_codes() -> None:
    table = rows(DOCS / "verdicts.md", "phase", "reply", "verdict", "fault", "pace", "dead")
    assert {Phase(row[0]) for row in table} >= {Phase.AUTH, Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT}
    for phase, reply, *verdict in table:
        code, _, text = reply.partition(" ")
        assert told(judge(Phase(phase), Reply(int(code), (text,)))) == tuple(verdict), (phase, reply)
    assert {row[2] for row in table} == set(Verdict)
    assert {row[4] for row in table} - {""} == set(Pace) - {Pace.BROKEN}


def test_the_table_of_what_breaks_off_is_the_codes() -> None:
    table = rows(DOCS / "verdicts.md", "phase", "verdict", "fault")
    assert {Scope(row[2]) for row in table} == {Scope.RELAY, Scope.MESSAGE}
    for phase, verdict, fault in table:
        ruling = judge_failure(Phase(phase), "it broke off")
        assert (ruling.verdict, ruling.scope) == (verdict, fault), phase


def test_the_table_of_verdicts_over_http_is_the_codes() -> None:
    header = ("status", "verdict over HTTP", "fault", "pauses the endpoint", "endpoint is gone")
    table = rows(DOCS / "verdicts.md", *header)
    assert {row[1] for row in table} == set(Verdict) - {Verdict.UNKNOWN}
    for status, *expected in table:
        ruling = judge_answer(Answer(int(status), "", (), b"", is_whole=True, text="", received_at=0.0))
        fault = "" if ruling.verdict is Verdict.SENT else ruling.scope
        flags = ["yes" if flag else "" for flag in (Limit.RATE in ruling.limits, ruling.is_gone)]
        assert [ruling.verdict, fault, *flags] == expected, status


def test_every_event_that_sentry_gets_is_explained() -> None:
    sentences = re.findall(r'_report\(\s*"([^"]+)"', read(Path(alerts.__file__)))
    assert len(sentences) >= 5
    page = read(DOCS / "operations.md")
    for sentence in [*sentences, sentry.MONITOR]:
        assert sentence in page


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("batches.md", 9),
        ("sql.md", 9),
        ("messages.md", 9),
        ("recipients.md", 1),
        ("guards.md", 2),
        ("rates.md", 2),
        ("priorities.md", 3),
        ("caps.md", 1),
        ("catching-up.md", 1),
        ("suppression.md", 8),
        ("unsubscribing.md", 3),
        ("local-times.md", 3),
    ],
)
def test_the_sql_of_the_page_does_what_it_says(connect: Callable[[], Connection], name: str, least: int) -> None:
    connection = connect()
    connection.autocommit = True
    blocks = re.findall(r"^```sql (run|raises \w{5})\n(.*?)^```", read(DOCS / name), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= least
    for mark, statements in blocks:
        expected = re.match(r"-- gives: (.*)\n", statements)
        with connection.cursor() as cursor:
            if mark != "run":
                with pytest.raises(psycopg2.Error) as caught:
                    cursor.execute(statements)
                assert caught.value.pgcode == mark.removeprefix("raises "), statements
                continue
            cursor.execute(statements)
            if expected:
                given = "; ".join(", ".join(str(value) for value in row) for row in cursor.fetchall())
                assert given == expected[1], statements


def test_the_page_names_every_argument_of_the_functions(connect: Callable[[], Connection]) -> None:
    page = read(DOCS / "sql.md")
    with connect().cursor() as cursor:
        cursor.execute(
            "SELECT proname, proargnames FROM pg_proc WHERE pronamespace = 'duepost'::regnamespace"
            " AND has_function_privilege('duepost_client', oid, 'EXECUTE')"
        )
        functions: dict[str, list[str]] = dict(cursor.fetchall())
    assert len(functions) == 18
    for function, arguments in functions.items():
        assert f"`{function}" in page
        for argument in arguments:
            assert re.search(rf"\b{argument}\b", page), f"{function}({argument})"


def figures(text: str) -> set[str]:
    """The numbers of a text, as they are written."""
    return set(re.findall(r"(?<![\w.,/-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w-])", text))


def section(page: Path, title: str) -> str:
    """A page's section of the second level."""
    return read(page).split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_readme_gives_the_figures_that_were_measured() -> None:
    [header] = re.findall(r"^\| emails/s \| (.+) \|$", read(ROOT / "README.md"), re.MULTILINE)
    scenes = header.split(" | ")
    measured = {name: [cell.split()[0] for cell in cells] for name, *cells in rows(DOCS / "measured.md", "", *scenes)}
    given = {name: cells for name, *cells in rows(ROOT / "README.md", "emails/s", *scenes)}
    assert given
    assert given == measured
    # Also in its sentences; the broker's have a page of their own.
    assert figures(section(ROOT / "README.md", "Measured")) <= figures(
        read(DOCS / "measured.md") + section(DOCS / "broker.md", "Measured")
    )


def test_the_decision_on_pipelining_ahead_gives_the_rates_that_were_measured() -> None:
    [page] = (DOCS / "decisions").glob("0016-*.md")
    rates = re.search(r"(\d[\d,]*) emails a second, not (\d[\d,]*\d)", read(page))
    assert rates is not None
    assert set(rates.groups()) <= figures(section(DOCS / "measured.md", "Next to others"))
