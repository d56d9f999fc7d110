"""Filters of templates: times, numbers and money as the recipient's zone and language write them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from actors.content.templates import RenderError, Templates
from actors.liveness.time_limit import TimeLimit
from models.numbers import Number

WHEN = "2026-11-25T18:30:00Z"
BERLIN = {"locale": "de_DE", "timezone": "Europe/Berlin"}
KATHMANDU = {"locale": "ne", "timezone": "Asia/Kathmandu"}
NOBODY = {"locale": None, "timezone": None}


@pytest.fixture
def show(tmp_path: Path) -> "Show":
    return Show(tmp_path)


class Show:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.templates = Templates(folder, TimeLimit())
        (folder / "t.subject.txt").write_text("s")

    def __call__(self, source: str, recipient: Mapping[str, str | None], **context: object) -> str:
        """What a template makes of a context, with the spaces that are not breaking as usual ones."""
        (self.folder / "t.txt").write_text(source)
        text = self.templates.render("t", {**context, "recipient": recipient}).text
        assert text is not None
        return text.replace("\u00a0", " ").replace("\u202f", " ")


@pytest.mark.parametrize(
    ("source", "recipient", "expected"),
    [
        ("{{ when | datetime }}", BERLIN, "25.11.2026, 19:30:00 MEZ"),
        ("{{ when | datetime }}", NOBODY, "Nov 25, 2026, 6:30:00 PM UTC"),
        ("{{ when | datetime(zone='America/St_Johns', locale='en_CA') }}", BERLIN, "Nov 25, 2026, 3:00:00 p.m. NST"),
        ("{{ when | datetime('EEEE, HH:mm') }}", BERLIN, "Mittwoch, 19:30"),
        ("{{ when | date }}", BERLIN, "25. November 2026"),
        ("{{ when | date('short') }}", KATHMANDU, "26/11/26"),
        ("{{ '2026-12-24' | date }}", {**BERLIN, "locale": "fr"}, "24 décembre 2026"),
        ("{{ when | time }}", BERLIN, "19:30"),
        ("{{ when | time }}", {"locale": "tlh", "timezone": "Nowhere/None"}, "6:30 PM"),
        ("{{ 1764095400 | time }}", BERLIN, "19:30"),
        ("{{ count | number }}", BERLIN, "1.234.567,891"),
        ("{{ count | number('#,##0.0') }}", NOBODY, "1,234,567.9"),
        ("{{ '0.25' | percent }}", BERLIN, "25 %"),
        ("{{ price | money('EUR') }}", BERLIN, "12,50 €"),
        ("{{ 1250 | money('JPY', locale='ja') }}", BERLIN, "￥1,250"),
        ("{{ price | money('EUR') }}", {"locale": "de-AT", "timezone": None}, "€ 12,50"),
    ],
)
def test_values_are_shown_as_the_recipient_writes_them(
    show: Show, source: str, recipient: Mapping[str, str | None], expected: str
) -> None:
    assert show(source, recipient, when=WHEN, count=Number("1234567.891"), price="12.50") == expected


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ '2026-11-25T18:30:00' | datetime }}", "must be a time with its zone"),
        ("{{ secret | datetime }}", "must be a time such as"),
        ("{{ 1e300 | time }}", "must be a time such as"),
        ("{{ secret | number }}", "must be a number"),
        ("{{ true | money('EUR') }}", "must be a number"),
        ("{{ 'NaN' | percent }}", "must be a number"),
        ("{{ when | time(zone='Mars/Base') }}", "the zone must be one such as Europe/Berlin"),
    ],
)
def test_what_is_none_fails_with_its_line_and_without_its_value(show: Show, source: str, said: str) -> None:
    with pytest.raises(RenderError) as caught:
        show(f"\n{source}", BERLIN, when=WHEN, secret="ann@secret.example")
    assert str(caught.value).startswith("t.txt line 2: BadValue: ")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
