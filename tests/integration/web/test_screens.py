"""What the screens show, and to whom."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest

from duepost.web.screens import framed
from tests.integration.web.site import Answer, Browser, ConsoleSite, Start

CORPUS = json.loads((Path(__file__).parents[2] / "corpus" / "hostile.json").read_text(encoding="utf-8"))

#: Markup in every place where a value may stand, with a mark that is looked for.
ATTACKS = [
    "<script>mark()</script>", "\"><img src=x onerror=mark()>", "'><svg onload=mark()>", "javascript:mark()",
    "</title><script>mark()</script>", "{{ 7 * 7 }}mark", "</textarea><script>mark()</script>",
    "<!--mark", "]]>mark<![CDATA[",
]  # fmt: skip

#: Elements that pages have, and attributes that lead somewhere.
TAGS = frozenset({
    "html", "head", "meta", "title", "link", "script", "body", "a", "header", "nav", "ul", "li", "div", "span",
    "form", "button", "main", "h1", "h2", "h3", "section", "p", "strong", "code", "dl", "dt", "dd", "figure",
    "figcaption", "svg", "rect", "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "footer", "label",
    "input", "select", "option", "br", "pre", "iframe", "datalist", "textarea",
})  # fmt: skip


class Markup(HTMLParser):
    """Finds what no page of ours has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TAGS:
            self.found.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name == "style":
                self.found.append(f"{tag} {name}")
            if name in {"href", "src", "action", "formaction"} and re.match(
                r"\s*[a-z]+:|//", value or "", re.IGNORECASE
            ):
                self.found.append(f"{tag} {name}={value}")
            if tag == "script" and name == "src" and not (value or "").endswith("static/console.js"):
                self.found.append(f"script {value}")

    def handle_comment(self, data: str) -> None:
        self.found.append(f"comment {data}")


def foreign_markup(answer: Answer) -> list[str]:
    markup = Markup()
    markup.feed(answer.text)
    markup.close()
    return markup.found


SCREENS = ["/", "/items", "/person", "/failures", "/forecast", "/kinds", "/routes", "/suppression", "/journal"]


def test_each_screen_of_an_empty_system_is_shown_to_each_role(with_logins: ConsoleSite) -> None:
    for name in ("vera", "sue", "olga"):
        for path in SCREENS:
            answer = with_logins.named(name).get(path)
            assert answer.status == 200, (name, path, answer.words)
            assert foreign_markup(answer) == []


def fill(console: ConsoleSite, text: str) -> list[int]:
    """Items with a text in every place that takes it: pending, unknown, failed, finished; what is too long is cut."""
    console.query(
        """
        INSERT INTO duepost.item (id, kind, scheduled_at, due_at, key, last_error, attempts, is_held)
        SELECT nextval('duepost.scheduled_email_id_seq'), %(t)s, now(), now(), %(t)s || n, %(t)s, 1, n = 2
        FROM generate_series(1, 3) AS n;
        INSERT INTO duepost.email (
            item_id, message_id_header, date_header, address, sender, subject, body_text, body_html
        )
        SELECT i.id, %(t)s, now(), CASE WHEN i.id %% 2 = 0 THEN %(t)s END, %(t)s, %(t)s, %(t)s, %(t)s
        FROM duepost.item AS i
        WHERE i.kind = %(t)s AND NOT EXISTS (SELECT FROM duepost.email AS e WHERE e.item_id = i.id);
        INSERT INTO duepost.scheduled_email_user (email_id, user_id, address, reply)
        SELECT e.item_id, %(t)s, %(t)s, %(t)s FROM duepost.email AS e WHERE e.address IS NULL ON CONFLICT DO NOTHING;
        INSERT INTO duepost.delivery (
            email_id, kind, outcome, user_id, address, code, enhanced_code, reply, attempts, unknowns, key,
            scheduled_at, message_id_header, route
        )
        SELECT nextval('duepost.scheduled_email_id_seq'), %(t)s, outcome, %(t)s, %(t)s, 550, %(t)s, %(t)s, 1, 0, %(t)s,
               now(), %(t)s, %(t)s
        FROM unnest(ARRAY['sent', 'undeliverable', 'cleared']) AS outcome;
        INSERT INTO duepost.attempt (email_id, claim, worker_id, user_id, started_at, phase, verdict, code, reply)
        SELECT i.id, 1, 1, %(t)s, now(), %(t)s, 'retry', 450, %(t)s FROM duepost.item AS i WHERE i.kind = %(t)s;
        INSERT INTO duepost.suppression (address, enhanced_code, reply) VALUES (lower(%(t)s), %(t)s, %(t)s)
        ON CONFLICT DO NOTHING;
        INSERT INTO duepost.kind (kind, on_unknown, paused_at, paused_by, pause_reason)
        VALUES (%(t)s, 'hold', now(), %(t)s, %(t)s) ON CONFLICT DO NOTHING;
        INSERT INTO duepost.operator_action (action, by_whom, via, reason, asked, skipped)
        VALUES ('retry', %(t)s, %(t)s, %(t)s, jsonb_build_object(%(t)s, %(t)s), jsonb_build_object(%(t)s, 3));
        """,
        t=text,
    )
    rows = console.query("SELECT id FROM duepost.item UNION SELECT email_id FROM duepost.delivery ORDER BY 1")
    return [int(str(row[0])) for row in rows]


def look_at_all(browser: Browser, ids: list[int], texts: list[str]) -> list[Answer]:
    """Each screen; each with each text looked for."""
    paths = [*SCREENS, *(f"/items/{each}" for each in ids), "/done/1"]
    for text in texts:
        paths += [f"/items?{urlencode({name: text})}" for name in ("kind", "key", "user", "reply", "route")]
        paths += [f"/confirm?{urlencode({'action': 'clear', 'scope': 'all', 'kind': text})}"]
        paths += [f"/person?{urlencode({'user': text})}", f"/journal?{urlencode({'by': text})}"]
    return [browser.get(path) for path in paths]


def test_hostile_text_in_every_field_is_text_on_every_screen(console: ConsoleSite) -> None:
    texts = [*ATTACKS, *CORPUS["shown"], *(each for each in CORPUS["fragments"] if "\0" not in each)]
    ids: list[int] = []
    for text in texts:
        if text.isprintable() or len(text) < 60:
            ids = fill(console, text or "-")
    answers = look_at_all(console.browser(), ids[:: max(len(ids) // 60, 1)], ATTACKS)
    for answer in answers:
        assert answer.status == 200, (answer.url, answer.words[:500])
        assert foreign_markup(answer) == [], answer.url
        assert "\u202e" not in answer.text, answer.url
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f]", answer.text), answer.url
    shown = console.browser().get("/items?" + urlencode({"kind": ATTACKS[0]}))
    assert ATTACKS[0] in shown.words


def test_rates_are_shown_with_what_waits_for_them(with_logins: ConsoleSite) -> None:
    with_logins.query("SELECT duepost.set_rate(domain => 'slow.example', per_second => 0.01, connections => 3)")
    with_logins.query(
        "INSERT INTO duepost.destination (route, domain, learnt, learnt_from, learnt_at, learnt_because)"
        " VALUES ('default', 'fast.example', 4, 64, now(), 'rcpt 421 4.7.28')"
    )
    with_logins.query(
        "SELECT duepost.schedule_email('welcome', 'a' || i || '@slow.example', subject => 's', body_text => 'b')"
        " FROM generate_series(1, 50) AS i"
    )
    with_logins.query("UPDATE duepost.item SET last_error = 'rate: waits for the rate of slow.example: one in 100 s'")
    viewer = with_logins.named("vera")
    words = viewer.get("/routes").words
    assert "slow.example default one in 100 s 3 no 0, 0 under way 50 " in words
    assert "fast.example default not limited not limited to 4 a second since " in words
    assert "(rcpt 421 4.7.28)" in words
    forecast = viewer.get("/forecast").words
    assert "At one in 100 s the 50 emails that are due from" in forecast
    assert "duepost rate set slow.example --per-second N" in forecast
    assert "the rate of slow.example, one in 100 s" not in viewer.get("/").words


WRONG = [
    "/items?id=x", "/items?id=0", "/items?id=99999999999999999999", "/items?state=x", "/items?outcome=%00",
    "/items?kind=%00", "/items?since=x", "/items?since=0001-01-01T00:00%2B23:00", "/items?until=99999-01-01",
    "/items?after=x~y~z", "/items?after=due~~-1", "/items/0", "/items/x", "/items/99999999999999999999",
    "/items/424242", "/items/1%00", "/items/%2e%2e/x", "/person?item=x", "/person?item=7", "/person?user=a&key=b",
    "/journal?before=x", "/suppression?after=x", "/suppression?after=~", "/items?channel=x", "/items?kind=%ff%fe",
    "/items?kind=%ed%a0%80", "/no/such/page", "/static/../console.py", "/static/%2e%2e/console.py",
]  # fmt: skip


def test_a_url_that_is_wrong_is_told_so(console: ConsoleSite) -> None:
    for path in WRONG:
        answer = console.browser().get(path)
        assert answer.status in {200, 400, 404}, (path, answer.words)
        assert "import" not in answer.text


ADDRESS = "secret.person@private-domain.example"


def fill_with_addresses(console: ConsoleSite) -> list[int]:
    """Addresses where they may be: of emails, users, in ids, keys, kinds, replies, contexts."""
    for number, text in enumerate(
        (ADDRESS, f"<{ADDRESS}>", f'"secret person"@private-domain.example {ADDRESS}:', ADDRESS.replace("@", "%40"))
    ):
        fill(console, f"{text} {number}" if number else text)
    console.query(
        "INSERT INTO duepost.recipient (user_id, address, name) VALUES ('u1', %(a)s, 'Secret Person')", a=ADDRESS
    )
    console.schedule(users=["u1"], subject=f"For {ADDRESS}", body_text=f"To {ADDRESS}", body_html=f"<p>{ADDRESS}</p>")
    rows = console.query("SELECT id FROM duepost.item UNION SELECT email_id FROM duepost.delivery ORDER BY 1")
    return [int(str(row[0])) for row in rows]


def test_a_viewer_sees_no_address_in_any_page_or_url(with_logins: ConsoleSite) -> None:
    ids = fill_with_addresses(with_logins)
    browser = with_logins.named("vera")
    seen = [browser.get(path) for path in SCREENS] + [browser.get(f"/items/{each}") for each in ids]
    seen += [browser.get(f"/person?item={each}") for each in ids] + [browser.get("/person?user=u1")]
    assert "***@***" in browser.get("/items").text
    for answer in seen:
        assert answer.status in {200, 403}, (answer.url, answer.words[:300])
        assert "private-domain" not in answer.text, (
            answer.url,
            re.findall(r".{60}private-domain.{20}", answer.text)[:2],
        )
        assert "Secret Person" not in answer.text
        assert "secret.person" not in answer.text, answer.url


def test_a_viewer_looks_for_no_address(with_logins: ConsoleSite) -> None:
    browser = with_logins.named("vera")
    for path in ("/items?address=", "/items?key=", "/items?user=", "/person?address=", "/person?user="):
        answer = browser.get(path + ADDRESS)
        assert answer.status == 403
        assert ADDRESS not in answer.text
    assert with_logins.named("sue").get(f"/items?address={ADDRESS}").status == 200


def test_an_operator_sees_addresses(with_logins: ConsoleSite) -> None:
    fill_with_addresses(with_logins)
    assert ADDRESS in with_logins.named("olga").get("/items").text


def test_what_an_item_says_is_in_a_frame_with_a_policy_of_its_own(console: ConsoleSite) -> None:
    item_id = console.schedule(body_html="<script>mark()</script><b>Hello</b>", scheduled_at="2100-01-01T00:00Z")
    page = console.browser().get(f"/items/{item_id}")
    assert re.search(r"<iframe [^>]*\bsandbox title=", page.text)
    frame = console.browser().get(f"/items/{item_id}/content")
    assert frame.text == "<script>mark()</script><b>Hello</b>"
    policy = frame.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "script" not in policy


def test_a_viewer_reads_nothing_of_what_items_say(with_logins: ConsoleSite) -> None:
    item_id = with_logins.schedule(
        body_html="<b>private</b>", subject="private", body_text="private", scheduled_at="2100-01-01T00:00Z"
    )
    for name in ("vera", "sue"):
        assert "private" not in with_logins.named(name).get(f"/items/{item_id}").words
        assert with_logins.named(name).get(f"/items/{item_id}/content").status == 403
    assert "private" in with_logins.named("olga").get(f"/items/{item_id}").words


def test_of_a_concluded_item_the_content_is_not_shown_again(console: ConsoleSite) -> None:
    item_id = console.schedule(scheduled_at="2100-01-01T00:00Z")
    console.query("SELECT duepost.clear_scheduled_email(%(id)s)", id=item_id)
    page = console.browser().get(f"/items/{item_id}")
    assert "cannot be shown once an item is concluded" in page.words
    assert console.browser().get(f"/items/{item_id}/content").status == 404


def test_rows_of_one_moment_are_paged_each_once_while_others_arrive(console: ConsoleSite) -> None:
    arrive = (
        "SELECT duepost.schedule_email('k', %(to)s, scheduled_at => '2100-01-01Z', subject => 's', body_text => 'b')"
        " FROM generate_series(1, %(number)s)"
    )
    console.query(arrive, to="a@example.com", number=500)
    browser, seen, path = console.browser(), list[str](), "/items?kind=k"
    for page in range(100):
        answer = browser.get(path)
        seen += re.findall(r'name="ids" value="(\d+)"', answer.text) or re.findall(
            r'href="\./items/(\d+)"', answer.text
        )
        if page < 10:
            console.query(arrive, to="b@example.com", number=5)
        following = re.search(r'<a rel="next" href="\./([^"]*)"', answer.text)
        if following is None:
            break
        path = "/" + following[1].replace("&amp;", "&")
    first = {str(row[0]) for row in console.query("SELECT item_id FROM duepost.email WHERE address = 'a@example.com'")}
    assert len(first) == 500
    assert len(seen) == len(set(seen))
    assert first <= set(seen)


def test_a_page_that_has_not_changed_is_not_sent_again(console: ConsoleSite) -> None:
    browser = console.browser()
    first = browser.get("/suppression")
    assert browser.get("/suppression", If_None_Match=first.headers["etag"]).status == 304
    console.query("INSERT INTO duepost.suppression (address) VALUES ('dead@example.com')")
    assert browser.get("/suppression", If_None_Match=first.headers["etag"]).status == 200


def test_every_time_that_is_shown_names_its_zone(console: ConsoleSite) -> None:
    fill(console, "k")
    for path in (*SCREENS, "/items/1", "/person?user=k"):
        for found in re.finditer(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?[^<]{0,5}", console.browser().get(path).words):
            assert "UTC" in found[0] or "T18:00" in found[0], (path, found[0])


def test_a_template_is_tried_with_a_context_and_nothing_is_sent(start: Start, tmp_path: Path) -> None:
    (tmp_path / "welcome.subject.txt").write_text("Hello {{ recipient.name }}")
    (tmp_path / "welcome.html").write_text("{% if true %}\n<p>{{ plan }}</p>{% endif %}")
    (tmp_path / "broken.subject.txt").write_text("{% if")
    browser = start(DUEPOST_TEMPLATES=str(tmp_path), DUEPOST_TRIM_BLOCKS="1").browser()
    plan = {"name": "welcome", "context": json.dumps({"plan": "<b>gold</b>"})}
    page = browser.get(f"/templates?{urlencode(plan)}")
    assert "Hello Ann Example" in page.words
    assert "broken.subject.txt" in page.words
    assert browser.get(f"/templates/html?{urlencode(plan)}").text == "<p>&lt;b&gt;gold&lt;/b&gt;</p>"
    assert "'plan' is undefined" in browser.get("/templates?name=welcome").words
    for wrong in ("no json", "[]", "[" * 5_000):
        assert "context" in browser.get(f"/templates?{urlencode({'name': 'welcome', 'context': wrong})}").words
    for name in (*CORPUS["template_names"], *ATTACKS):
        if "\0" not in name:
            assert browser.get(f"/templates?{urlencode({'name': name})}").status == 200, name


def test_what_a_pending_email_would_say_now_is_for_those_who_see_it_in_full(
    start: Start, with_logins: ConsoleSite, tmp_path: Path
) -> None:
    (tmp_path / "welcome.subject.txt").write_text("Hello {{ recipient.user_id }}")
    (tmp_path / "welcome.html").write_text("<p>{{ plan }}</p>")
    console = start(DUEPOST_TEMPLATES=str(tmp_path))
    console.query("INSERT INTO duepost.recipient (user_id, address) VALUES ('u1', 'u1@example.com')")
    [(item_id,)] = console.query(
        "SELECT duepost.schedule_email('k', users => ARRAY['u1'], scheduled_at => '2100-01-01Z', template => 'welcome',"
        ' context => \'{"plan": "gold"}\')'
    )
    olga = console.named("olga")
    found = re.search(r'href="\.\./(templates\?[^"]*)"', olga.get(f"/items/{item_id}").text)
    assert found is not None
    page = olga.get("/" + found[1].replace("&amp;", "&"))
    assert "Hello u1" in page.words
    frame = re.search(r'src="\./(templates/html[^"]*)"', page.text)
    assert frame is not None
    assert olga.get("/" + frame[1].replace("&amp;", "&")).text == "<p>gold</p>"
    sue = console.named("sue").get(f"/templates?name=welcome&item={item_id}")
    assert "gold" not in sue.text
    assert "may see it in full" in sue.words
    assert "Hello u1" not in console.named("sue").get("/templates?name=welcome&user=u1").words
    assert console.named("sue").get("/templates/html?name=welcome&user=u1").status == 403
    assert "no such user" in olga.get("/templates?name=welcome&user=nobody").words


def test_the_last_hour_is_read_once_for_many_tabs(console: ConsoleSite, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []

    def read(database: object) -> list[object]:
        reads.append(database)
        return []

    monkeypatch.setattr("duepost.web.charts.reports.last_hour", read)
    for _ in range(3):
        assert console.browser().get("/").status == 200
    assert len(reads) == 1


def test_what_would_lead_away_from_a_frame_has_another_name() -> None:
    html = '<LINK rel=preconnect href=x><a\nHREF = "x">a</a><svg><a xlink:href="x"/></svg><a id=""href=x><b>href</b>'
    html += '<iframe srcdoc="<link href=x>"></iframe>'
    tame = bytes(framed(html).body).decode()
    assert not re.search(r"<(?:link|iframe)|(?<!data-)(?:xlink:)?(?<![\w:-])href\s*=", tame, re.IGNORECASE), tame
    assert "<b>href</b>" in tame
