"""The documentation holds: links lead somewhere, names exist, settings are all there."""

import re
from pathlib import Path

import pytest

from actors.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), ROOT / "deploy" / "README.md"]
)
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:actors|models|duepost|tests|benchmarks|deploy|docs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path
    for test in re.findall(r"`(test_[a-z0-9_]+)`", text):
        assert f"def {test}(" in TESTS, test


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_lines_are_readable_as_they_stand(page: Path) -> None:
    assert "\t" not in page.read_text(encoding="utf-8")


def test_every_setting_is_documented_and_no_other() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([A-Z_]+)`", page, re.MULTILINE)
    assert sorted(documented) == sorted(str(field.validation_alias) for field in Settings.model_fields.values())


def test_there_is_a_page_and_a_test_for_each_promise() -> None:
    pages = sorted(path.name[:2] for path in (ROOT / "docs" / "promises").glob("[0-9]*.md"))
    tests = sorted(set(re.findall(r"def test_invariant_(\d\d)_", TESTS)))
    assert pages == tests == [f"{number:02}" for number in range(1, 14)]


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs" / "decisions").glob("0*.md"):
        assert f"({path.name})" in index
