"""What the page of templates shows: a layout, a digest, a translation."""

import re
from pathlib import Path

import pytest

from actors.content.templates import Templates
from actors.liveness.time_limit import TimeLimit

PAGE = Path(__file__).parents[2] / "docs" / "templates.md"


@pytest.fixture
def templates(tmp_path: Path) -> Templates:
    section = PAGE.read_text("utf-8").partition("## Layout, digest, translation")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n)+(?:\n(?:    .*\n)+)*", section, re.MULTILINE)
    files = "".join(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks)
    for name, source in re.findall(r"\{# ([\w.]+) #\}\n(.*?)(?=\n*\{# |\Z)", files, re.DOTALL):
        (tmp_path / name).write_text(source.partition("{% for item")[0])
    digest = re.search(r"\{% for item in items.*?\{% endfor %\}", files, re.DOTALL)
    assert digest is not None
    (tmp_path / "digest.txt").write_text(digest[0])
    for name in ("welcome", "digest"):
        (tmp_path / f"{name}.subject.txt").write_text("Subject")
    (tmp_path / "welcome.en.part.txt").write_text("Hello {{ name }}")
    (tmp_path / "welcome.de.part.txt").write_text("Hallo {{ name }}")
    return Templates(tmp_path, TimeLimit())


def test_the_layout_and_the_translations_of_the_page_work(templates: Templates) -> None:
    for locale, text in (("de_AT", "Hallo Ann"), (None, "Hello Ann"), ("fr", "Hello Ann")):
        content = templates.render("welcome", {"name": "Ann", "recipient": {"locale": locale}})
        assert (content.text or "").strip() == text
        assert content.html is not None
        assert "<h1>Welcome</h1><p>Hello Ann.</p>" in content.html


def test_the_digest_of_the_page_has_no_empty_lines(templates: Templates) -> None:
    items = [{"when": f"2026-11-2{n}", "text": f"news {n}"} for n in range(2)]
    content = templates.render("digest", {"items": items, "recipient": {"locale": "de"}})
    assert content.text == "20.11.26  news 0\n21.11.26  news 1\n"


@pytest.mark.parametrize(("is_on", "text"), [(False, "\n\na\n\nb\n\nend\n"), (True, "a\nb\nend\n")])
def test_lines_of_blocks_leave_no_empty_lines_where_that_is_asked_for(tmp_path: Path, is_on: bool, text: str) -> None:
    (tmp_path / "t.subject.txt").write_text("s")
    (tmp_path / "t.txt").write_text("{% set x = 1 %}\n{% for c in 'ab' %}\n{{ c }}\n  {% endfor %}\nend\n")
    rendered = Templates(tmp_path, TimeLimit(), trim_blocks=is_on).render("t", {})
    assert [line.strip() for line in (rendered.text or "").splitlines()] == text.splitlines()
