"""The documentation holds: links lead somewhere, names exist, settings are all there, the tables are the code's."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest

from actors.alerts import alerts
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.verdicts import judge, judge_failure
from actors.delivery.lanes import Lane
from actors.ruling import Pace, Phase, Ruling, Scope
from actors.settings import Settings
from models.database.connections import Connection
from models.words import Verdict

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md"), ROOT / "deploy" / "README.md"])
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
INVARIANTS = ROOT / "tests" / "e2e" / "test_invariants.py"

FOLDERS = "actors|models|duepost|tests|benchmarks|deploy|docs"
SETTINGS_HEADER = ("variable", "unit", "default", "what a bad one says")

#: What tells of the place where the pages were written, and nothing to a reader.
WORKPLACE = re.compile(
    r"\bhelpers?\b|\bhand-?offs?\b|(?:^|[\s`(\"'])/(?:work|root|home|tmp|workspace|mnt)/|\bfile://"
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
        assert f"def {test}(" in TESTS, test


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_names_that_are_said_to_be_in_a_file_are_there(page: Path) -> None:
    for path, name in re.findall(rf"`((?:{FOLDERS})/[\w./-]+\.(?:py|sql)):(\w+)`", read(page)):
        assert re.search(rf"\b{name}\b", read(ROOT / path)), f"{path}:{name}"


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


def test_every_setting_is_documented_and_no_other() -> None:
    settings = {str(field.validation_alias) for field in Settings.model_fields.values()}
    text = read(DOCS / "settings.md")
    assert sorted(re.findall(r"^\| `([A-Z_]+)`", text, re.MULTILINE)) == sorted(settings)
    assert set(re.findall(r"\b(?:DUEPOST|SENTRY)_[A-Z_]+\b", text)) == settings
    for page in PAGES:
        assert set(re.findall(r"\b(?:DUEPOST|SENTRY)_[A-Z_]+\b", read(page))) <= settings, named(page)


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


def test_every_event_that_sentry_gets_is_explained() -> None:
    sentences = re.findall(r'_report\(\s*"([^"]+)"', read(Path(alerts.__file__)))
    assert len(sentences) >= 5
    page = read(DOCS / "operations.md")
    for sentence in [*sentences, alerts.MONITOR]:
        assert sentence in page


def test_the_sql_of_the_page_does_what_it_says(connect: Callable[[], Connection]) -> None:
    connection = connect()
    connection.autocommit = True
    blocks = re.findall(r"^```sql (run|raises \w{5})\n(.*?)^```", read(DOCS / "sql.md"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 10
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
    assert len(functions) == 6
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
