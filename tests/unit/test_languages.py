"""Templates by language: the file that is nearest to a recipient's locale, and catalogues of gettext."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo

from actors.content.languages import tags_of
from actors.content.templates import RenderError, Templates
from actors.liveness.time_limit import TimeLimit

Write = Callable[[str, str], None]
Translate = Callable[[str, Mapping[str, str | tuple[str, ...]]], None]


@pytest.fixture
def templates(tmp_path: Path) -> Templates:
    return Templates(tmp_path, TimeLimit())


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> None:
        for ending in ("subject.txt", "txt"):
            file = tmp_path / f"{name}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")

    return write


@pytest.fixture
def translate(tmp_path: Path) -> Translate:
    def translate(language: str, texts: Mapping[str, str | tuple[str, ...]]) -> None:
        catalog = Catalog(locale=language.replace("-", "_"))
        for text, translation in texts.items():
            several = (text, f"{text}s") if isinstance(translation, tuple) else text
            catalog.add(several, translation)
        file = tmp_path / "locale" / language / "LC_MESSAGES" / "messages.mo"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            write_mo(opened, catalog)

    return translate


def rendered(templates: Templates, locale: str | None, name: str = "welcome", **context: object) -> str | None:
    return templates.render(name, {**context, "recipient": {"locale": locale}}).text


@pytest.mark.parametrize(
    ("locale", "text"),
    [
        ("de-AT", "Servus"), ("de_AT", "Servus"), ("DE_at", "Servus"), ("de_AT.UTF-8", "Servus"),
        ("de-AT-1901", "Servus"),
        ("de-CH", "Hallo"), ("de", "Hallo"), ("fr", "Hello"), ("", "Hello"), (None, "Hello"), ("../de", "Hello"),
        ("zh-Hant-TW", "您好"), ("zh_hant_tw", "您好"), ("zh", "Hello"), ("pt-br", "Olá"), ("deutsch", "Hello"),
    ],
)  # fmt: skip
def test_a_recipient_gets_the_nearest_language(
    templates: Templates, write: Write, locale: str | None, text: str
) -> None:
    greetings = {".de": "Hallo", ".de-AT": "Servus", ".zh-Hant": "您好", ".pt_BR": "Olá", "": "Hello"}
    for language, greeting in greetings.items():
        write(f"welcome{language}", greeting)
    assert rendered(templates, locale) == text


def test_a_language_in_a_folder_is_found_and_one_that_comes_later_too(templates: Templates, write: Write) -> None:
    write("account/welcome", "Hello")
    assert rendered(templates, "de", "account/welcome") == "Hello"
    write("account/welcome.de", "Hallo")
    assert rendered(templates, "de", "account/welcome") == "Hallo"


def test_a_folder_that_did_not_change_for_long_is_not_read_again(
    templates: Templates, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("welcome", "Hello")
    os.utime(tmp_path, (1_000_000, 1_000_000))
    assert rendered(templates, "de") == "Hello"
    monkeypatch.setattr(Path, "iterdir", lambda _: pytest.fail("it was read"))
    assert rendered(templates, "de") == "Hello"


def test_a_language_that_is_incomplete_is_an_error_that_names_the_file(
    templates: Templates, write: Write, tmp_path: Path
) -> None:
    write("welcome", "Hello")
    (tmp_path / "welcome.de.txt").write_text("Hallo")
    with pytest.raises(RenderError, match=r"^welcome\.de\.subject\.txt: "):
        rendered(templates, "de")


def test_texts_are_translated_by_catalogues_and_what_a_dialect_lacks_by_its_language(
    templates: Templates, write: Write, translate: Translate
) -> None:
    write("welcome", "{{ _('Hello') }}, {{ gettext('Goodbye') }}")
    translate("de", {"Hello": "Hallo", "Goodbye": "Tschüss"})
    translate("de-AT", {"Hello": "Servus"})
    assert rendered(templates, "de_AT") == "Servus, Tschüss"
    assert rendered(templates, "de") == "Hallo, Tschüss"
    assert rendered(templates, "fr") == "Hello, Goodbye"
    assert rendered(templates, None) == "Hello, Goodbye"


def test_a_block_of_text_has_its_variables_and_its_plural(
    templates: Templates, write: Write, translate: Translate
) -> None:
    write("welcome", "{% trans count=n %}{{ count }} file{% pluralize %}{{ count }} files{% endtrans %}")
    translate("de", {"%(count)s file": ("%(count)s Datei", "%(count)s Dateien")})
    assert [rendered(templates, "de", n=number) for number in (1, 2)] == ["1 Datei", "2 Dateien"]
    assert [rendered(templates, "en", n=number) for number in (1, 2)] == ["1 file", "2 files"]


def test_variables_of_a_translated_text_are_escaped_in_html(
    templates: Templates, write: Write, translate: Translate, tmp_path: Path
) -> None:
    write("welcome", "Hello")
    (tmp_path / "welcome.html").write_text("{% trans %}<b>Hello</b> {{ name }}{% endtrans %}")
    translate("de", {"<b>Hello</b> %(name)s": "<b>Hallo</b> %(name)s"})
    content = templates.render("welcome", {"name": "<i>", "recipient": {"locale": "de"}})
    assert content.html == "<b>Hallo</b> &lt;i&gt;"


def test_a_catalogue_that_cannot_be_read_is_named(templates: Templates, write: Write, tmp_path: Path) -> None:
    write("welcome", "{{ _('Hello') }}")
    file = tmp_path / "locale" / "de" / "LC_MESSAGES" / "messages.mo"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no catalogue at all, but long enough")
    with pytest.raises(RenderError, match=r"locale/de/LC_MESSAGES/messages\.mo cannot be read"):
        rendered(templates, "de-AT")
    assert rendered(templates, "fr") == "Hello"
    [flaw] = templates.check()
    assert flaw.startswith("locale/de/LC_MESSAGES/messages.mo cannot be read: ")


def test_the_languages_of_a_template_are_known(templates: Templates, write: Write, translate: Translate) -> None:
    for name in ("welcome", "welcome.de", "welcome.zh-Hant", "welcome.draft", "welcomes.fr"):
        write(name, "x")
    translate("it", {"Hello": "Ciao"})
    assert templates.languages("welcome") == ["de", "it", "zh-Hant"]


@pytest.mark.parametrize("locale", ["x", "de AT", "*", "de/../..", "a" * 9, "-", "de-", "\0"])
def test_what_is_no_locale_has_no_names(locale: str) -> None:
    assert tags_of(locale) == ()
