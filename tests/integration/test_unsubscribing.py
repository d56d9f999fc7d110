"""One-click unsubscribing (RFC 8058): headers, link, and what a request changes, or does not."""

import http.client
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes, policy
from email.message import EmailMessage
from urllib.parse import urlsplit

import psycopg2
import pytest

from actors.content.tokens import LONGEST_TOKEN, Subscription, Tokens
from actors.settings import BadSettings, Settings, settings
from duepost.web.public import fields_of
from duepost.web.server import Server, build_public_links, listen
from tests.app_harness import Harness
from tests.integration.commands.shell import Shell
from tests.processes import duepost
from tests.relays import ScriptedRelay

PUBLIC = "https://mail.example.com/box"
PAIR = "List-Unsubscribe=One-Click"
FORM = "application/x-www-form-urlencoded"
MULTIPART = (
    "multipart/form-data; boundary=X",
    '--X\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--X--\r\n',
)
SECRET = bytes(range(32))
ABOUT = Subscription(7, "digest", "ann@example.com", "42")


def make_unsubscribable(harness: Harness, kind: str = "digest") -> None:
    harness.query("INSERT INTO duepost.kind (kind, unsubscribe) VALUES (%(kind)s, true)", kind=kind)


@pytest.fixture
def linked(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """Workers that know where recipients reach the links; the kind `digest` has them."""
    monkeypatch.setenv("DUEPOST_PUBLIC_URL", PUBLIC)
    harness.restart()
    make_unsubscribable(harness)
    return harness


def received(relay: ScriptedRelay) -> list[EmailMessage]:
    found = [message_from_bytes(each.content, policy=policy.default) for each in relay.messages]
    assert all(isinstance(each, EmailMessage) for each in found)
    return found


def link_in(message: EmailMessage) -> str:
    [value] = message.get_all("List-Unsubscribe", [])
    found = re.fullmatch(r"<(https://[!-~]+)>", "".join(str(value).split()))
    assert found is not None, value
    return found[1]


@pytest.fixture
def site(linked: Harness, url: str) -> Iterator["Site"]:
    listener = listen("127.0.0.1", 0)
    server = Server(build_public_links(Settings(), url), listener)
    server.start()
    yield Site(listener.getsockname()[1])
    server.stop()


class Site:
    """Asks as a mail client, a scanner or a browser does."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: str | None = None, sort: str = FORM) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"Host": "mail.example.com"} | ({"Content-Type": sort} if sort and body is not None else {})
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            assert answer.getheader("Set-Cookie") is None
            assert answer.getheader("Location") is None
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def suppressed(harness: Harness) -> list[tuple[object, ...]]:
    return harness.query("SELECT address, kind, source FROM duepost.suppression")


def sent_link(harness: Harness, relay: ScriptedRelay, **arguments: object) -> str:
    """The path of a link as it arrived."""
    harness.schedule(kind="digest", **arguments)
    harness.deliver()
    return urlsplit(link_in(received(relay)[-1])).path


# The email -----------------------------------------------------------------------------------------------------------


def test_an_email_of_such_a_kind_has_both_headers_and_the_link_for_its_body(
    linked: Harness, relay: ScriptedRelay
) -> None:
    linked.template("digest", subject="News", text="Hello\n{{ recipient.unsubscribe_url }}")
    linked.recipient("ann", "ann@example.com")
    linked.schedule(kind="digest", users=["ann"], template="digest")
    linked.deliver()
    [message] = received(relay)
    assert message.get_all("List-Unsubscribe-Post") == [PAIR]
    assert link_in(message).startswith(f"{PUBLIC}/u/")
    assert link_in(message) in message.get_content()
    [raw] = [each.content for each in relay.messages]
    assert b"=?" not in raw.partition(b"\r\n\r\n")[0]
    assert max(map(len, raw.splitlines())) <= 998
    assert b"ann" not in link_in(message).encode(), "no address in clear"


def test_other_kinds_have_none_of_it(linked: Harness, relay: ScriptedRelay) -> None:
    linked.template("reset", subject="s", text="{% if recipient.unsubscribe_url %}link{% else %}none{% endif %}")
    linked.schedule(kind="reset", template="reset")
    linked.schedule(kind="reset")
    linked.deliver()
    assert [message["List-Unsubscribe"] for message in received(relay)] == [None, None]
    assert sorted(message.get_content().strip() for message in received(relay)) == ["World", "none"]


def test_each_user_has_a_link_of_their_own_and_a_copy_that_is_resent_has_the_same(
    linked: Harness, relay: ScriptedRelay
) -> None:
    for user in ("ann", "bob"):
        linked.recipient(user, f"{user}@example.com")
    linked.schedule(kind="digest", users=["ann", "bob"])
    linked.deliver()
    first, second = map(link_in, received(relay))
    assert first != second
    tokens = Tokens(bytes(linked.query("SELECT value FROM duepost.secret")[0][0]))  # type: ignore[call-overload]
    found = [tokens.subscription(link.rpartition("/")[2]) for link in (first, second)]
    assert [(each.address, each.user_id, each.kind) for each in found if each] == [
        ("ann@example.com", "ann", "digest"), ("bob@example.com", "bob", "digest"),
    ]  # fmt: skip
    assert found[0] is not None
    assert tokens.link(found[0]) == first.rpartition("/")[2]


def test_what_was_scheduled_before_its_kind_had_links_has_one_when_it_is_sent(
    harness: Harness, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.schedule(kind="digest")
    monkeypatch.setenv("DUEPOST_PUBLIC_URL", PUBLIC)
    harness.restart()
    make_unsubscribable(harness)
    harness.deliver()
    assert link_in(received(relay)[0])


def test_without_a_public_url_it_waits_and_says_why(harness: Harness, relay: ScriptedRelay) -> None:
    make_unsubscribable(harness)
    email_id = harness.schedule(kind="digest")
    other = harness.schedule(kind="reset")
    harness.deliver()
    assert "DUEPOST_PUBLIC_URL" in str(harness.row(email_id)["last_error"])
    assert harness.ledger(other) == ["sent"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("addresses => ARRAY['ann@example.com']", "addresses: "),
        ("address => 'ann@example.com', cc => ARRAY['bob@example.com']", "cc: "),
        ("address => 'ann@example.com', bcc => ARRAY['bob@example.com']", "bcc: "),
        ("address => 'ann@example.com', headers => '{\"list-unsubscribe\": \"<https://x.example>\"}'", "headers: "),
        ("users => ARRAY['ann'], headers => '{\"List-Unsubscribe-Post\": \"x\"}'", "headers: "),
    ],
)
def test_such_a_kind_has_one_recipient_an_email_and_its_own_headers(linked: Harness, arguments: str, said: str) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=f"^{said}"):
        linked.query(f"SELECT duepost.schedule_email('digest', {arguments}, subject => 's', body_text => 'b')")


# The request ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [(FORM, PAIR), MULTIPART, ("", PAIR), (FORM, "a=b&list-unsubscribe=one-click&c")])
def test_the_post_of_a_mail_client_unsubscribes_at_once(
    linked: Harness, relay: ScriptedRelay, site: Site, form: tuple[str, str]
) -> None:
    path = sent_link(linked, relay)
    sort, body = form
    assert site.ask("POST", path, body, sort)[0] == 200
    assert suppressed(linked) == [("ann@example.com", "digest", "unsubscribe")]
    assert site.ask("POST", path, body, sort)[0] == 200
    after = [linked.schedule(kind="digest"), linked.schedule(kind="reset")]
    linked.deliver()
    assert [linked.ledger(each) for each in after] == [["suppressed"], ["sent"]]
    journal = linked.query("SELECT action, by_whom, via, asked ->> 'kind' FROM duepost.operator_action")
    assert journal == [("unsubscribe", "the recipient", "link", "digest")]


def test_what_is_pending_of_the_kind_is_cleared_with_it_and_nothing_else(
    linked: Harness, relay: ScriptedRelay, site: Site
) -> None:
    for user in ("ann", "bob"):
        linked.recipient(user, f"{user}@example.com")
    path = sent_link(linked, relay, users=["ann"])
    later = {"scheduled_at": "2100-01-01T00:00Z"}
    gone = [
        linked.schedule(kind="digest", users=["ann"], **later),
        linked.schedule(kind="digest", address="ANN@example.com", **later),
    ]
    shared = linked.schedule(kind="digest", users=["ann", "bob"], **later)
    kept = [
        linked.schedule(kind="reset", users=["ann"], **later),
        linked.schedule(kind="digest", users=["bob"], **later),
    ]
    assert site.ask("POST", path, PAIR)[0] == 200
    assert [linked.ledger(each) for each in gone] == [["cleared"], ["cleared"]]
    pending = linked.query("SELECT email_id, user_id FROM duepost.scheduled_email_user ORDER BY 1, 2")
    assert pending == sorted([(shared, "bob"), (kept[0], "ann"), (kept[1], "bob")])
    assert linked.query("SELECT done FROM duepost.operator_action") == [(3,)]


def test_twenty_at_once_are_one(linked: Harness, relay: ScriptedRelay, site: Site) -> None:
    path = sent_link(linked, relay)
    for _ in range(5):
        linked.schedule(kind="digest", scheduled_at="2100-01-01T00:00Z")
    start = threading.Barrier(20)

    def click(_: int) -> int:
        start.wait()
        return site.ask("POST", path, PAIR)[0]

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(click, range(20))) == [200] * 20
    assert suppressed(linked) == [("ann@example.com", "digest", "unsubscribe")]
    assert linked.query("SELECT count(*), sum(done) FROM duepost.operator_action") == [(1, 5)]


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [
        ("GET", None, 200), ("HEAD", None, 200), ("OPTIONS", None, 405), ("PUT", PAIR, 405), ("POST", "", 400),
        ("POST", None, 400), ("POST", "List-Unsubscribe=Yes", 400), ("POST", "x" * 20_000, 413), ("GET", PAIR, 200),
    ],
)  # fmt: skip
def test_who_only_looks_changes_nothing(
    linked: Harness, relay: ScriptedRelay, site: Site, method: str, body: str | None, status: int
) -> None:
    path = sent_link(linked, relay)
    assert site.ask(method, path, body)[0] == status
    assert site.ask(method, f"{path}?{PAIR}", body)[0] == status
    assert suppressed(linked) == []


def test_the_page_has_a_button_that_needs_no_script_and_a_way_back(
    linked: Harness, relay: ScriptedRelay, site: Site
) -> None:
    path = sent_link(linked, relay)
    page = site.ask("GET", path)[1]
    assert "<script" not in page
    assert "a…@example.com" in page
    assert "ann@" not in page
    assert re.findall(r'<form method="post"><input type="hidden" name="([^"]+)" value="([^"]+)">', page) == [
        ("List-Unsubscribe", "One-Click")
    ]
    done = site.ask("POST", path, PAIR)[1]
    assert re.findall(r'name="([^"]+)" value="([^"]+)"><button>', done) == [("undo", "1")]
    assert site.ask("POST", path, "undo=1")[0] == 200
    assert suppressed(linked) == []
    assert [each[0] for each in linked.query("SELECT action FROM duepost.operator_action ORDER BY id")] == [
        "unsubscribe", "resubscribe",
    ]  # fmt: skip


def test_what_an_operator_has_suppressed_is_not_lifted_by_a_link(
    linked: Harness, relay: ScriptedRelay, site: Site
) -> None:
    path = sent_link(linked, relay)
    linked.query("SELECT duepost.suppress('ann@example.com', 'ann', 'sql', kind => 'digest')")
    assert site.ask("POST", path, "undo=1")[0] == 200
    assert suppressed(linked) == [("ann@example.com", "digest", "operator")]


@pytest.mark.parametrize("token", ["x", "a" * 100, "A" * 5_000, "%00", "..%2f", "%C3%A9", "a" * 22])
def test_a_token_that_was_not_made_here_is_none(linked: Harness, site: Site, token: str) -> None:
    assert site.ask("POST", f"/u/{token}", PAIR)[0] == 404
    assert suppressed(linked) == []


def test_the_prefix_may_be_taken_away_or_not_and_there_is_nothing_else(
    linked: Harness, relay: ScriptedRelay, site: Site
) -> None:
    path = sent_link(linked, relay)
    assert path.startswith("/box/u/")
    assert site.ask("GET", path)[0] == site.ask("GET", path.removeprefix("/box"))[0] == 200
    assert [site.ask("GET", each)[0] for each in ("/", "/items", "/metrics", "/login", "/u/", "/static/x")] == [404] * 6
    assert site.ask("GET", "/health")[0] == 200


def test_without_a_database_it_says_to_try_again(linked: Harness, relay: ScriptedRelay, site: Site) -> None:
    path = sent_link(linked, relay)
    linked.query("ALTER FUNCTION duepost.change_subscription RENAME TO gone")
    assert site.ask("POST", path, PAIR)[0] == 503


# Tokens, forms, settings ---------------------------------------------------------------------------------------------


def test_a_token_opens_to_what_it_was_made_of_and_hides_it() -> None:
    tokens = Tokens(SECRET)
    for about in (ABOUT, ABOUT._replace(user_id=None), ABOUT._replace(kind="kınd ✓", address="jörg@münchen.example")):
        token = tokens.link(about)
        assert tokens.subscription(token) == about
        assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
    assert Tokens(bytes(32)).subscription(tokens.link(ABOUT)) is None


def test_a_token_of_which_a_character_is_changed_is_none() -> None:
    tokens, token = Tokens(SECRET), Tokens(SECRET).link(ABOUT)
    for place in range(len(token)):
        other = "A" if token[place] != "A" else "B"
        assert tokens.subscription(token[:place] + other + token[place + 1 :]) is None, place
    for changed in (token[:-1], token + "A", token + "=", token[:22], ""):
        assert tokens.subscription(changed) is None


def test_the_longest_link_fits_a_line() -> None:
    about = Subscription(2**63 - 1, "k" * 100, "a" * 64 + "@" + "b" * 189, "u" * 255)
    token = Tokens(SECRET).link(about)
    assert len(token) <= LONGEST_TOKEN
    longest = Tokens(SECRET).link(about._replace(user_id="ü" * 127))
    assert len(longest) <= LONGEST_TOKEN
    assert len("List-Unsubscribe: <>") + 100 + len("/u/") + LONGEST_TOKEN <= 998


@pytest.mark.parametrize(
    ("sort", "body"),
    [
        ("multipart/form-data; boundary=X", b"nonsense"), ("multipart/form-data", b"--X\r\n"), (FORM, b"\xff\xfe"),
        ("multipart/form-data; boundary=" + "x" * 10_000, b""), (FORM, b"&" * 10_000), ("text/plain\r\nX: y", b"a"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_read_says_nothing(sort: str, body: bytes) -> None:
    assert ("list-unsubscribe", "one-click") not in fields_of(sort, body)


@pytest.mark.parametrize(
    "value",
    [
        "http://mail.example.com", "ftp://mail.example.com", "mail.example.com", "https://", "https://u:p@mail.example.com",
        "https://mail.example.com/?a=b", "https://mail.example.com/#a", "https://mail.example.com/a b",
        "https://mäil.example.com", "https://mail.example.com/" + "a" * 100, "http://localhost.example.com",
    ],
)  # fmt: skip
def test_a_public_url_that_is_not_by_tls_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUEPOST_PUBLIC_URL", value)
    settings.cache_clear()
    with pytest.raises(BadSettings, match=r"^DUEPOST_PUBLIC_URL: must be"):
        settings()
    settings.cache_clear()


@pytest.mark.parametrize("value", ["https://mail.example.com/", "http://127.0.0.1:8026", "http://localhost:1/a"])
def test_this_machine_may_be_without_tls(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUEPOST_PUBLIC_URL", value)
    assert Settings().public_url == value.rstrip("/")


@pytest.mark.parametrize(
    ("public_url", "listen_on", "said"),
    [
        ("http://mail.example.com", "127.0.0.1:0", "DUEPOST_PUBLIC_URL: must be"),
        ("", "127.0.0.1:0", "DUEPOST_PUBLIC_URL: must be set"),
        ("https://mail.example.com", "8026", "--public-listen: must be"),
    ],
)
def test_the_command_refuses_a_bad_setting_with_status_2(url: str, public_url: str, listen_on: str, said: str) -> None:
    env = Shell(url, DUEPOST_PUBLIC_URL=public_url).env
    done = duepost("web", "--port", "0", "--public-listen", listen_on, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"duepost: {said}")
