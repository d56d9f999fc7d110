"""HTML that mail clients show: styles on the elements, text beside it, preview text, language and direction."""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.content.html import BadHtml, HtmlPreparer, HtmlTookTooLong, with_language, with_preview
from actors.content.html_program import text_of, with_styles_inside
from actors.content.templates import Content, RenderError, RenderTimeout, Templates
from actors.liveness.time_limit import TimeLimit
from actors.settings import BadSettings, settings
from tests.waiting import wait_until

RED = "<style>p{color:red}</style>"
#: What each template of the field has somewhere.
OUTLOOK = "<!--[if mso]><table><tr><td><![endif]-->"
XHTML = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">'


@pytest.fixture(scope="module")
def preparer() -> Iterator[HtmlPreparer]:
    preparer = HtmlPreparer(20.0, 1_000_000)
    preparer.check()
    yield preparer
    preparer.close()


def prepared(preparer: HtmlPreparer, html: str, seconds: float = 60.0) -> tuple[str, str | None]:
    found = preparer.prepare(html, time.monotonic() + seconds, with_text=True)
    assert found is not None
    return found


def templates_of(folder: Path, preparer: HtmlPreparer | None, **files: str) -> Templates:
    for name, content in {"subject.txt": "Hi", **{key.replace("_", "."): each for key, each in files.items()}}.items():
        (folder / f"welcome.{name}").write_text(content, encoding="utf-8")
    return Templates(folder, TimeLimit(), preparer=preparer)


def html_of(templates: Templates, locale: str | None = None, **context: object) -> str:
    html = templates.render("welcome", {**context, "recipient": {"locale": locale}}).html
    assert html is not None
    return html


class TestStyles:
    def test_rules_stand_on_the_elements_and_stay_for_what_fits_none(self) -> None:
        styles = "p{color:red} p:hover{color:blue} @media (max-width:600px){p{color:green!important}}"
        html = f"<html><head><style>{styles}</style></head><body><p style='margin:0'>x</p></body></html>"
        inlined = with_styles_inside(html)
        assert f"<style>{styles}</style>" in inlined
        assert '<p style="color: red;margin:0">' in inlined.replace("margin: 0", "margin:0")

    def test_what_outlook_alone_reads_and_the_doctype_stay_as_they_were(self) -> None:
        hidden = '<!--[if mso]><style>td{color:blue}</style><v:rect fill="t"/><![endif]-->'
        shown = "<!--[if !mso]><!--><i>others</i><!--<![endif]-->"
        inlined = with_styles_inside(f"{XHTML}<html><head>{RED}</head><body>{hidden}{shown}</body></html>")
        assert inlined.startswith(f"{XHTML}<html>")
        assert hidden in inlined
        assert shown in inlined

    def test_what_is_shown_to_all_but_outlook_in_its_old_way_is_so_in_the_valid_one(self) -> None:
        inlined = with_styles_inside(f"{RED}<body><![if !mso]><p>x</p><![endif]></body>")
        assert '<!--[if !mso]><!--><p style="color: red;">x</p><!--<![endif]-->' in inlined

    def test_no_stylesheet_is_fetched_or_read(self, preparer: HtmlPreparer, tmp_path: Path) -> None:
        (tmp_path / "x.css").write_text("p{color:green}")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0)
            here, there = (tmp_path / "x.css").as_uri(), f"http://127.0.0.1:{listener.getsockname()[1]}/x.css"
            links = "".join(f'<link rel="stylesheet" href="{each}">' for each in (here, there, str(tmp_path / "x.css")))
            html, _ = prepared(preparer, f"{links}<style>@import url({there}); i{{color:red}}</style><p>x</p><i>y</i>")
            with pytest.raises(BlockingIOError):
                listener.accept()
        assert "<p>x</p>" in html
        assert '<i style="color: red;">y</i>' in html
        assert here in html

    def test_html_without_styles_keeps_each_character(self, preparer: HtmlPreparer) -> None:
        html = f"{OUTLOOK}<P Align=center>a &copy; <br/><!-- <style>x</style> -->"
        assert prepared(preparer, html)[0] == html
        assert preparer.prepare(html, 0.0, with_text=False) is None

    @pytest.mark.parametrize(
        "styles", ["p{color:red", "}}}{{{", "@media{", "p:not(:not(", "\0", "/*", "p{color:" + "(" * 9_999]
    )
    def test_styles_that_are_none_do_no_harm(self, styles: str) -> None:
        assert ">x</p>" in with_styles_inside(f"<style>{styles}</style><p>x</p>")


class TestHostile:
    """Each is that email's failure, in its time; the next one is another."""

    @pytest.mark.parametrize(
        "html",
        [
            pytest.param(RED + "<b>" * 4_000, id="nested too deeply to be read"),
            pytest.param(
                f"<style>p{{background:url({'a' * 400_000})}}</style>{'<p>x</p>' * 5_000}", id="grows to 2 GB"
            ),
            pytest.param(f"<style>p{{background:url({'a' * 2_000})}}</style>{'<p>x</p>' * 1_000}", id="grows too much"),
            pytest.param(f"{RED}<p>\ud800", id="half a character"),
        ],
    )
    def test_html_that_is_too_much_fails_alone(self, html: str, preparer: HtmlPreparer) -> None:
        with pytest.raises(BadHtml, match=r"^(?:its|it is|with styles) "):
            prepared(preparer, html)
        assert prepared(preparer, f"{RED}<p>next")[1] == "next\n"

    def test_what_would_take_for_ever_ends_with_its_time_whoever_still_waits(self) -> None:
        html = f"<style>{'div ' * 12}q{{color:red}}</style>{'<div>' * 9_000}"
        own = HtmlPreparer(1.0, 1_000_000)
        own.check()
        # One that nobody waits for any more; and one that is waited for.
        for seconds in (0.5, 60):
            with pytest.raises((HtmlTookTooLong, BadHtml)):
                prepared(own, html, seconds)

        def is_over() -> bool:
            """Whether who asks next has seen that it is over: it has ended, or on a fast machine has answered."""
            assert prepared(own, f"{RED}<p>next")[1] == "next\n"
            return not own._late

        wait_until(is_over, timeout=60)
        own.close()

    def test_what_is_not_even_told_in_time_is_given_up(self) -> None:
        own = HtmlPreparer(20.0, 10_000_000)
        own.check()
        # One that reads nothing: else, on a fast machine, it has the whole request in no time.
        os.kill(own._idle[0]._process.pid, signal.SIGSTOP)
        with pytest.raises(HtmlTookTooLong):
            prepared(own, f"{RED}{'<p>x</p>' * 500_000}", seconds=0.0)
        assert not own._late
        own.close()

    def test_an_answer_that_came_too_late_is_nobody_s(self) -> None:
        own = HtmlPreparer(20.0, 1_000_000)
        own.check()
        with pytest.raises(HtmlTookTooLong):
            prepared(own, RED + "<p>first " * 2_000, seconds=0.0001)
        assert prepared(own, f"{RED}<p>second")[1] == "second\n"
        own.close()

    def test_many_threads_get_each_their_own(self, preparer: HtmlPreparer) -> None:
        found: dict[int, str | None] = {}

        def ask(number: int) -> None:
            found[number] = prepared(preparer, f"{RED}<p>{number}")[1]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert found == {number: f"{number}\n" for number in range(6)}
        assert len(preparer._idle) <= 2

    def test_its_process_knows_no_secret_and_can_open_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DUEPOST_SMTP_URL", "smtp://user:hunter2@relay.example")
        own = HtmlPreparer(20.0, 1_000_000)
        own.check()
        [process] = own._idle
        folder = Path("/proc", str(process._process.pid))
        assert b"hunter2" not in (folder / "environ").read_bytes()
        if os.uname().sysname == "Linux":
            assert "Max open files            0 " in (folder / "limits").read_text()
        own.close()


class TestText:
    @pytest.mark.parametrize(
        ("html", "text"),
        [
            (
                '<p>Hi <a href="https://x.example/u?a=1&amp;b=2">unsubscribe</a>.</p>',
                "Hi unsubscribe <https://x.example/u?a=1&b=2>.",
            ),
            (
                '<a href="https://x.example/">x.example</a> <a href="mailto:a@x.example">a@x.example</a>',
                "x.example a@x.example",
            ),
            ('<a href="#top">up</a> <a href="javascript:x()">run</a> <a>none</a>', "up run none"),
            (
                '<a href="https://x.example/"><img src="cid:l" alt="Logo"></a><img src="t" alt=""><img src="t">',
                "Logo <https://x.example/>",
            ),
            (
                "<h1>A</h1><p>b<br>c &amp; &#228;&nbsp;&eacute;</p><ul><li>one<ul><li>two</li></ul></li></ul>",
                "A\n\nb\nc & ä é\n\n  * one\n      + two",
            ),
            ("<table><tr><th>Item<th>Price<tr><td>Tea<td>2 €</table>", "Item  Price\nTea   2 €"),
            ("<table><tr><td><table><tr><td>Tea<td>2 €</table><p>x</table>", "Tea  2 €\n\nx"),
            (f"<table><tr><td><table><tr><td>left {'x' * 60}</table><td>right</table>", f"left {'x' * 60}\nright"),
            (
                f'{RED}<style>.h{{display:none}}</style><title>t</title><p class="h">not shown'
                '<table><tr><td class="h">nor<td>x</table>',
                "x",
            ),
            ("<!--[if mso]>Outlook<![endif]--><script>x()</script><p>שלום עולם</p>", "שלום עולם"),
            ('<?xml version="1.0" encoding="latin-1"?><meta charset="latin-1"><p>ä\0b', "äb"),
            ("<b>" * 400 + "deep", "deep"),
        ],
    )
    def test_it_reads_as_the_html_does_with_its_links(self, html: str, text: str) -> None:
        assert text_of(with_styles_inside(html) if "<style" in html else html) == f"{text}\n"

    @pytest.mark.parametrize("html", ["", " ", "<!-- x -->", "<p>&nbsp;</p>", "<img src=x>", f"{RED}<p></p>", "\0"])
    def test_html_that_says_nothing_has_no_text(self, html: str) -> None:
        assert text_of(html) is None

    def test_a_template_with_a_text_of_its_own_keeps_it(self, preparer: HtmlPreparer, tmp_path: Path) -> None:
        templates = templates_of(tmp_path, preparer, txt="mine", html=f"{RED}<p>x</p>")
        content = templates.render("welcome", {})
        assert content.text == "mine"
        assert 'style="color: red;"' in (content.html or "")

    def test_a_template_with_html_alone_gets_one(self, preparer: HtmlPreparer, tmp_path: Path) -> None:
        templates = templates_of(tmp_path, preparer, html='<p>{{ who }} <a href="{{ url }}">off</a>')
        content = templates.render("welcome", {"who": "<i>", "url": "https://x.example/?a=1&b"})
        assert content.text == "<i> off <https://x.example/?a=1&b>\n"
        assert content.is_prepared


class TestPreview:
    FULL = "<!DOCTYPE html><html><head><!-- <body> --></head><body bgcolor='>'><p>x</p></body></html>"

    @pytest.mark.parametrize(
        ("html", "before"),
        [
            (FULL, FULL.partition("<p>")[0]),
            ("<html><head></head><p>x</p></html>", "<html><head></head>"),
            ("<!doctype html><html lang=de><p>x</p>", "<!doctype html><html lang=de>"),
            ("<!doctype html>\n<p>x</p>", "<!doctype html>"),
            ("<p>x</p>", ""),
        ],
    )
    def test_it_begins_the_body_and_is_hidden(self, html: str, before: str) -> None:
        shown = with_preview(html, "<b> & more")
        assert shown.startswith(f'{before}\n<div style="display:none;' if before else '<div style="display:none;')
        assert ">&lt;b&gt; &amp; more\n" in shown
        assert max(map(len, shown.splitlines())) <= 90

    def test_it_is_a_file_beside_the_others_and_not_in_the_text(self, preparer: HtmlPreparer, tmp_path: Path) -> None:
        templates = templates_of(tmp_path, preparer, preview_txt="For\n{{ who }}", html="<p>x</p>")
        content = templates.render("welcome", {"who": "<Ann>"})
        assert ">For &lt;Ann&gt;\n" in (content.html or "")
        assert content.text == "x\n"

    def test_without_preparing_it_is_there_too_and_nothing_else_is_changed(self, tmp_path: Path) -> None:
        templates = templates_of(tmp_path, None, preview_txt="{{ who }}", html=f"<html>{RED}<p>x</p>")
        assert templates.render("welcome", {"who": " "}) == Content("Hi", None, f"<html>{RED}<p>x</p>")
        html = html_of(templates, who="Ann")
        assert html.startswith('<html>\n<div style="display:none')
        assert html.endswith(f"{RED}<p>x</p>")

    def test_the_text_of_a_template_that_is_called_so_is_none(self, tmp_path: Path) -> None:
        templates = templates_of(tmp_path, None, preview_txt="x", preview_subject_txt="y", html="<p>x</p>")
        assert html_of(templates) == "<p>x</p>"

    def test_what_it_lacks_is_an_error_of_its_file(self, tmp_path: Path) -> None:
        templates = templates_of(tmp_path, None, preview_txt="{{ whom }}", html="<p>x</p>")
        with pytest.raises(RenderError, match=r"^welcome\.preview\.txt line 1: UndefinedError: 'whom' is undefined$"):
            templates.render("welcome", {})


class TestLanguage:
    @pytest.mark.parametrize(
        ("locale", "lang", "direction"),
        [
            ("ar", "ar", "rtl"),
            ("he_IL", "he-IL", "rtl"),
            ("fa", "fa", "rtl"),
            ("ur-PK", "ur-PK", "rtl"),
            ("de-AT", "de-AT", "ltr"),
        ],
    )
    def test_it_stands_on_html_and_the_direction_on_body_too(self, locale: str, lang: str, direction: str) -> None:
        said = with_language("<!-- <html> --><HTML\nclass='>'><body><p>x</p></body></HTML>", locale)
        assert said == (
            f'<!-- <html> --><HTML\nclass=\'>\' lang="{lang}" dir="{direction}">'
            f'<body dir="{direction}"><p>x</p></body></HTML>'
        )
        assert with_language("<p>x</p>", locale) == f'<div lang="{lang}" dir="{direction}">\n<p>x</p>\n</div>'

    @pytest.mark.parametrize(
        "html",
        ['<html lang="en" dir="ltr"><body>x', '<html lang="en"><body dir=auto>x', "<html xml:lang='en' dir = 'ltr'>x"],
    )
    def test_what_the_template_says_itself_stays(self, html: str) -> None:
        assert with_language(html, "ar") == html

    def test_it_is_that_of_the_file_and_none_where_the_file_is_everybody_s(
        self, preparer: HtmlPreparer, tmp_path: Path
    ) -> None:
        # English in Arabic's direction would be worse than nothing.
        templates = templates_of(
            tmp_path, preparer, txt="x", html="<html><body>Hello", ar_html="<html><body>مرحبا", ar_subject_txt="x"
        )
        assert html_of(templates, "ar-EG") == '<html lang="ar" dir="rtl"><body dir="rtl">مرحبا'
        assert html_of(templates, "he") == "<html><body>Hello"

    def test_a_template_can_say_it_of_the_recipient(self, tmp_path: Path) -> None:
        templates = templates_of(
            tmp_path,
            None,
            html='<html lang="{{ recipient.locale | language }}" dir="{{ recipient.locale | direction }}">x',
        )
        assert html_of(templates, "ur_PK.UTF-8") == '<html lang="ur-PK" dir="rtl">x'
        assert html_of(templates) == '<html lang="en" dir="ltr">x'


class TestTemplates:
    def test_the_same_email_has_the_same_bytes_in_another_process(self, preparer: HtmlPreparer, tmp_path: Path) -> None:
        rules = "".join(f".c{number}{{color:red;margin:{number}px}}" for number in range(40))
        html = f'<style>{rules}</style><p class="{" ".join(f"c{number}" for number in range(40))}">x</p>'
        other = HtmlPreparer(20.0, 1_000_000)
        assert html_of(templates_of(tmp_path, other, html=html)) == html_of(templates_of(tmp_path, preparer, html=html))
        other.close()

    def test_its_failures_are_those_of_its_file(self, preparer: HtmlPreparer, tmp_path: Path) -> None:
        templates = templates_of(tmp_path, preparer, html=RED + "<b>" * 4_000)
        with pytest.raises(RenderError, match=r"^welcome\.html: the HTML cannot be prepared: "):
            templates.render("welcome", {})
        with pytest.raises(RenderTimeout, match=r"TookTooLong: an email may take at most 10 s$"):
            templates_of(tmp_path, preparer, html=RED + "<p>x</p>" * 20_000).render("welcome", {}, seconds=0.01)

    def test_a_missing_library_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DUEPOST_PREPARE_HTML", "1")
        monkeypatch.setattr(
            "actors.content.libraries.find_spec", lambda name: None if name == "inscriptis" else object()
        )
        settings.cache_clear()
        try:
            with pytest.raises(BadSettings, match=r"^DUEPOST_PREPARE_HTML: needs inscriptis, .*'duepost\[html\]'$"):
                settings().html_preparer()
        finally:
            settings.cache_clear()

    def test_the_example_of_the_page_gives_what_it_says(self, preparer: HtmlPreparer, tmp_path: Path) -> None:
        page = (Path(__file__).parents[2] / "docs/html.md").read_text(encoding="utf-8")
        source, html, text = re.findall(r"^```(?:html|text)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[:3]
        content = templates_of(tmp_path, preparer, html=source).render("welcome", {"name": "Ann"})
        assert (content.html, content.text) == (html.removesuffix("\n"), text)
