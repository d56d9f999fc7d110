"""Templates: what they give, how they fail, and that no failure shows what was in the context."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.content.templates import Content, RenderError, Templates
from actors.liveness.time_limit import TimeLimit

SECRET = "ann@secret.example"

Write = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "templates"


@pytest.fixture
def templates(folder: Path) -> Templates:
    return Templates(folder, TimeLimit())


@pytest.fixture
def write(folder: Path) -> Write:
    def write(**files: str) -> None:
        for name, source in files.items():
            path = folder / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8", newline="")

    return write


@pytest.fixture
def failure(templates: Templates, write: Write) -> Callable[..., RenderError]:
    """Renders a text body that fails."""

    def failure(source: str, **context: object) -> RenderError:
        write(welcome_subject_txt="Hello", welcome_txt=source)
        with pytest.raises(RenderError) as raised:
            templates.render("welcome", context)
        return raised.value

    return failure


def test_a_template_gives_subject_text_and_html(templates: Templates, write: Write) -> None:
    write(
        welcome_subject_txt="Welcome, {{ recipient.name }}",
        welcome_txt="Dear {{ recipient.name }},\n",
        welcome_html="<p>Dear {{ recipient.name }},</p>\n",
    )
    assert templates.render("welcome", {"recipient": {"name": "Änne"}}) == Content(
        "Welcome, Änne", "Dear Änne,\n", "<p>Dear Änne,</p>\n"
    )


def test_a_template_without_html_gives_none(templates: Templates, write: Write) -> None:
    write(welcome_subject_txt="Hi", welcome_txt="Hello")
    assert templates.render("welcome", {}) == Content("Hi", "Hello", None)


def test_a_template_without_text_gives_none(templates: Templates, write: Write) -> None:
    write(welcome_subject_txt="Hi", welcome_html="<p>Hello</p>")
    assert templates.render("welcome", {}) == Content("Hi", None, "<p>Hello</p>")


def test_a_template_may_be_in_a_folder_of_the_folder(templates: Templates, write: Write) -> None:
    write(account__welcome_subject_txt="Hi", account__welcome_txt="Hello")
    assert templates.render("account/welcome", {}).text == "Hello"


def test_html_escapes_values(templates: Templates, write: Write) -> None:
    write(welcome_subject_txt="Hi", welcome_html="<p>{{ name }}</p>")
    assert templates.render("welcome", {"name": "<b>&"}).html == "<p>&lt;b&gt;&amp;</p>"


def test_text_and_subject_do_not_escape_values(templates: Templates, write: Write) -> None:
    write(welcome_subject_txt="{{ name }}", welcome_txt="{{ name }}")
    assert templates.render("welcome", {"name": "<b>&"}) == Content("<b>&", "<b>&", None)


@pytest.mark.parametrize("written", ["  Hi there \n", "\nHi\nthere\n\n", "Hi\r\nthere", "Hi\u2028there"])
def test_a_subject_is_one_line(templates: Templates, write: Write, written: str) -> None:
    write(welcome_subject_txt=written, welcome_txt="Hello")
    assert templates.render("welcome", {}).subject == "Hi there"


@pytest.mark.parametrize(
    "written", ["Hi{{ '\\0' }}there", "Hi{{ '\\x1b' }}there", "Hi\x01\x02there", "Hi{{ '\\x85' }}there"]
)
def test_a_subject_has_no_control_characters(templates: Templates, write: Write, written: str) -> None:
    write(welcome_subject_txt=written, welcome_txt="Hello")
    assert templates.render("welcome", {}).subject == "Hi there"


def test_files_may_begin_with_a_byte_order_mark(templates: Templates, write: Write) -> None:
    write(
        welcome_subject_txt="\ufeffHi {% include 'part.txt' %}",
        welcome_txt="\ufeffHello {% include 'part.txt' %}",
        welcome_html="\ufeff{% extends 'base.html' %}{% block body %}Hello{% endblock %}",
        base_html="\ufeff<p>{% block body %}{% endblock %}</p>",
        part_txt="\ufeffyou",
    )
    assert templates.render("welcome", {}) == Content("Hi you", "Hello you", "<p>Hello</p>")


BLANK = ["", " ", "\n\n", "{% if false %}x{% endif %}\n", "{{ '\\u00a0' }}", "\ufeff\n", "{# none #}"]


@pytest.mark.parametrize("blank", BLANK)
def test_a_part_that_renders_to_nothing_is_none(templates: Templates, write: Write, blank: str) -> None:
    write(welcome_subject_txt="Hi", welcome_txt=blank, welcome_html="<p>Hello</p>")
    assert templates.render("welcome", {}) == Content("Hi", None, "<p>Hello</p>")
    write(welcome_subject_txt="Hi", welcome_txt="Hello there", welcome_html=blank)
    assert templates.render("welcome", {}) == Content("Hi", "Hello there", None)


@pytest.mark.parametrize("blank", BLANK)
def test_an_email_that_renders_to_nothing_is_an_error(templates: Templates, write: Write, blank: str) -> None:
    write(welcome_subject_txt="Hi", welcome_txt=blank, welcome_html=blank)
    with pytest.raises(RenderError, match=r"^welcome\.txt: it gives nothing"):
        templates.render("welcome", {})


@pytest.mark.parametrize("blank", BLANK)
def test_a_subject_that_renders_to_nothing_is_an_error(templates: Templates, write: Write, blank: str) -> None:
    write(welcome_subject_txt=blank, welcome_txt="Hello")
    with pytest.raises(RenderError, match=r"^welcome\.subject\.txt: it gives nothing"):
        templates.render("welcome", {})


@pytest.mark.parametrize("file", ["welcome.subject.txt", "welcome.txt", "welcome.html", "part.txt", "base.html"])
def test_no_link_leads_out_of_the_folder(
    templates: Templates, write: Write, folder: Path, tmp_path: Path, file: str
) -> None:
    write(
        welcome_subject_txt="Hi {% include 'part.txt' %}",
        welcome_txt="Hello",
        welcome_html="{% extends 'base.html' %}",
        base_html="Hello",
        part_txt="you",
    )
    (tmp_path / "secret").write_text(SECRET)
    (folder / file).unlink()
    (folder / file).symlink_to(tmp_path / "secret")
    with pytest.raises(RenderError, match="a link leads out of the folder") as raised:
        templates.render("welcome", {})
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    assert any("a link leads out of the folder" in flaw for flaw in templates.check())


def test_links_within_the_folder_are_followed_as_a_mount_of_kubernetes_has_them(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "..2026_01").mkdir(parents=True)
    (volume / "..data").symlink_to("..2026_01")
    for file in ("welcome.subject.txt", "welcome.txt"):
        (volume / "..data" / file).write_text("Hello")
        (volume / file).symlink_to(Path("..data") / file)
    (tmp_path / "templates").symlink_to("volume")
    assert Templates(tmp_path / "templates", TimeLimit()).render("welcome", {}) == Content("Hello", "Hello", None)


def test_a_value_cannot_break_the_subject_into_lines(templates: Templates, write: Write) -> None:
    write(welcome_subject_txt="Hi {{ name }}", welcome_txt="Hello")
    subject = templates.render("welcome", {"name": "Ann\r\nBcc: eve@x.example"}).subject
    assert subject == "Hi Ann Bcc: eve@x.example"


def test_white_space_of_a_body_is_kept(templates: Templates, write: Write) -> None:
    write(welcome_subject_txt="Hi", welcome_txt="\n  a\n{% if true %}\n  b\n{% endif %}\n\n")
    assert templates.render("welcome", {}).text == "\n  a\n\n  b\n\n\n"


def test_templates_may_extend_and_include_others(templates: Templates, write: Write) -> None:
    write(
        welcome_subject_txt="Hi",
        layouts__base_html="<body>{% block body %}{% endblock %}{% include 'parts/foot.html' %}</body>",
        parts__foot_html="<i>{{ name }}</i>",
        welcome_html="{% extends 'layouts/base.html' %}{% block body %}Hello{% endblock %}",
    )
    assert templates.render("welcome", {"name": "&"}).html == "<body>Hello<i>&amp;</i></body>"


def test_a_changed_file_is_picked_up(templates: Templates, write: Write, folder: Path) -> None:
    write(welcome_subject_txt="Hi", welcome_txt="old")
    templates.render("welcome", {})
    write(welcome_txt="new")
    os.utime(folder / "welcome.txt", (1, 1))
    assert templates.render("welcome", {}).text == "new"


def test_a_folder_that_does_not_exist_is_an_error_when_rendering(templates: Templates) -> None:
    with pytest.raises(RenderError, match=r"welcome\.subject\.txt: TemplateNotFound: there is no such file"):
        templates.render("welcome", {})


def test_a_template_without_subject_is_an_error(templates: Templates, write: Write) -> None:
    write(welcome_txt="Hello")
    with pytest.raises(RenderError, match=r"^welcome\.subject\.txt: TemplateNotFound"):
        templates.render("welcome", {})


def test_a_template_without_bodies_is_an_error(templates: Templates, write: Write) -> None:
    write(welcome_subject_txt="Hi")
    with pytest.raises(RenderError, match=r"^welcome\.txt: .* neither it nor welcome\.html is there$"):
        templates.render("welcome", {})


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../welcome",
        "a/../welcome",
        "a/..",
        "..",
        "a//b",
        "a/",
        "wel come",
        "a\\b",
        "a\x00",
        "ä",
    ],
)
def test_a_name_cannot_lead_out_of_the_folder(templates: Templates, write: Write, name: str) -> None:
    write(welcome_subject_txt="Hi", welcome_txt="Hello")
    with pytest.raises(RenderError, match="name must be one such as welcome"):
        templates.render(name, {})


@pytest.mark.parametrize("tag", ["{% include '../secret.txt' %}", "{% import '../secret.txt' as secret %}"])
@pytest.mark.parametrize("path", ["../secret.txt", "{outside}/secret.txt", "a/../../secret.txt"])
def test_a_template_cannot_read_outside_the_folder(
    failure: Callable[..., RenderError], tmp_path: Path, tag: str, path: str
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    error = failure(tag.replace("../secret.txt", path.format(outside=tmp_path)))
    assert "TemplateNotFound" in str(error)


@pytest.mark.parametrize(
    "source",
    [
        "{{ name.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ name.format.__globals__ }}",
        "{{ '{0.__class__}'.format(name) }}",
        "{{ rows.append(1) }}",
        "{{ range(10000000) }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(failure: Callable[..., RenderError], source: str) -> None:
    error = failure(source, name=SECRET, rows=[])
    assert SECRET not in str(error)


def test_an_error_names_file_line_type_and_what_is_undefined(failure: Callable[..., RenderError]) -> None:
    assert str(failure("one\ntwo\n{{ first_name }}")) == (
        "welcome.txt line 3: UndefinedError: 'first_name' is undefined"
    )


def test_an_error_names_an_undefined_attribute(failure: Callable[..., RenderError]) -> None:
    error = failure("{{ recipient.nickname.first }}", recipient={"name": SECRET})
    assert str(error) == "welcome.txt line 1: UndefinedError: 'nickname' is undefined"


def test_an_error_names_the_file_in_a_folder_given_relatively(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(welcome_subject_txt="Hi", welcome_txt="\n{{ first_name }}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RenderError, match=r"^welcome\.txt line 2: "):
        Templates(Path("templates"), TimeLimit()).render("welcome", {})


def test_an_error_in_an_included_file_names_that_file(failure: Callable[..., RenderError], write: Write) -> None:
    write(parts__foot_txt="\n{{ foot }}")
    error = failure("{% include 'parts/foot.txt' %}")
    assert (error.template, error.line) == ("parts/foot.txt", 2)


def test_an_error_names_a_missing_include(failure: Callable[..., RenderError]) -> None:
    error = failure("\n{% include 'foot.txt' %}")
    assert str(error) == "welcome.txt line 2: TemplateNotFound: foot.txt is not there"


def test_an_error_explains_wrong_syntax(failure: Callable[..., RenderError]) -> None:
    error = failure("\n{% if name %}")
    assert (error.template, error.line) == ("welcome.txt", 2)
    assert error.reason.startswith("TemplateSyntaxError: Unexpected end of template.")


def test_an_error_names_an_unknown_filter(failure: Callable[..., RenderError]) -> None:
    assert "No filter named 'shout'" in str(failure("{{ name|shout }}", name=SECRET))


def test_a_file_that_is_not_utf8_is_an_error(templates: Templates, write: Write, folder: Path) -> None:
    write(welcome_subject_txt="Hi")
    (folder / "welcome.txt").write_bytes(b"\xff")
    with pytest.raises(RenderError, match=r"^welcome\.txt: UnicodeDecodeError$"):
        templates.render("welcome", {})


def test_endless_recursion_is_an_error(failure: Callable[..., RenderError]) -> None:
    assert failure("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").reason == "RecursionError"


def test_a_template_that_loops_for_ever_is_ended(folder: Path, write: Write) -> None:
    endless = "\n{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}"
    write(welcome_subject_txt="Hi", welcome_txt=endless, well_subject_txt="Hi", well_txt="Hello")
    templates = Templates(folder, TimeLimit(), timeout=0.3)
    with pytest.raises(RenderError) as caught:
        templates.render("welcome", {})
    assert str(caught.value) == "welcome.txt line 2: TookTooLong: an email may take at most 0.3 s"
    assert templates.render("well", {}).text == "Hello"


@pytest.mark.parametrize(("part", "most"), [("subject", "2,000"), ("txt", "10,485,760"), ("html", "10,485,760")])
def test_an_endless_part_is_ended_before_it_fills_the_memory(
    templates: Templates, write: Write, part: str, most: str
) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}lines and lines{% endfor %}{% endfor %}"
    parts = {"subject": "Hi", "txt": "Hello", "html": "Hello", part: endless}
    write(welcome_subject_txt=parts["subject"], welcome_txt=parts["txt"], welcome_html=parts["html"])
    with pytest.raises(RenderError, match=f"TooLong: at most {most} characters are allowed"):
        templates.render("welcome", {})


class Spiteful:
    """A value whose every use raises an exception that tells it."""

    def __str__(self) -> str:
        raise ValueError(f"invalid literal: {SECRET!r}")


LEAKS = [
    "{{ spiteful }}",
    "{{ numbers[value] }}",
    "{{ recipient[value] }}",
    "{{ recipient[value].more }}",
    "{{ recipient|attr(value) }}",
    "{% include value %}",
    "{% include [value, value] %}",
    "{% extends value %}",
    "{% import value as x %}",
    "{{ value + 1 }}",
    "{{ value() }}",
    "{{ value|map(value)|list }}",
    "{{ [1]|map(value)|list }}",
    "{{ [1]|select(value)|list }}",
    "{{ [recipient]|map(attribute=value)|list|join }}",
    "{{ value|format(1, 2) }}",
    "{{ '%d'|format(value) }}",
    "{{ dict(value) }}",
]


@pytest.mark.parametrize("source", LEAKS)
def test_an_error_never_shows_a_value(failure: Callable[..., RenderError], source: str) -> None:
    error = failure(source, value=SECRET, spiteful=Spiteful(), numbers={1: 1}, recipient={"name": SECRET})
    assert SECRET not in str(error) + repr(error) + "".join(traceback.format_exception(error))


@pytest.mark.parametrize("source", LEAKS)
def test_an_error_does_not_carry_the_original(failure: Callable[..., RenderError], source: str) -> None:
    error = failure(source, value=SECRET, spiteful=Spiteful(), numbers={1: 1}, recipient={"name": SECRET})
    assert (error.__cause__, error.__context__) == (None, None)


def test_an_error_without_a_line_names_file_and_reason() -> None:
    assert str(RenderError("welcome.txt", "OSError", None)) == "welcome.txt: OSError"


def test_a_check_finds_nothing_wrong_with_good_templates(templates: Templates, write: Write) -> None:
    write(welcome_subject_txt="Hi {{ name }}", welcome_txt="{{ undefined }}", notes_md="{% nonsense")
    assert templates.check() == []


def test_a_check_gives_a_line_for_each_broken_template(templates: Templates, write: Write) -> None:
    write(welcome_subject_txt="Hi", welcome_txt="{{", account__closed_html="\n{% if %}")
    assert [line.partition(": ")[0] for line in templates.check()] == [
        "account/closed.html line 2",
        "welcome.txt line 1",
    ]


def test_a_check_of_a_folder_that_does_not_exist_finds_nothing(templates: Templates) -> None:
    assert templates.check() == []
