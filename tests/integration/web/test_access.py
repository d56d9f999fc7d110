"""Who is let in, and who is not."""

import logging
import re
import signal
import sys
import urllib.request
from pathlib import Path

import psycopg2
import pytest

from actors.settings import BadSettings, Settings
from duepost.web.access import Gate, Logins, Role, TooManyTries, line_of
from duepost.web.server import Address, gate_of
from models.database.read_only import ReadOnlyDatabase
from models.errors import DatabaseUnreachable
from tests.integration.web.site import ConsoleSite, Start
from tests.postgres import PostgresServer
from tests.processes import Process, duepost, environment
from tests.waiting import wait_until

PASSWORD = "correct horse battery"


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A file of logins with passwords."""
    path = tmp_path / "users"
    path.write_text("\n".join(["# who", *(line_of(name, role, PASSWORD) for name, role in
        (("vera", Role.VIEWER), ("sue", Role.SUPPORT), ("olga", Role.OPERATOR)))]) + "\n")  # fmt: skip
    path.chmod(0o600)
    return path


def gate(host: str, **env: object) -> Gate:
    return gate_of(Settings.model_validate(env), Address(host, 8025))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "console.example.com"])
def test_beyond_this_machine_it_does_not_start_without_a_login(host: str) -> None:
    with pytest.raises(BadSettings, match=r"^DUEPOST_WEB_USERS: must be set"):
        gate(host)


def test_with_a_url_that_others_reach_it_does_not_start_without_a_login() -> None:
    with pytest.raises(BadSettings, match=r"^DUEPOST_WEB_USERS: must be set"):
        gate("127.0.0.1", DUEPOST_WEB_URL="https://ops.example.com/duepost")


def test_beyond_this_machine_it_does_not_start_without_its_url(users: Path) -> None:
    with pytest.raises(BadSettings, match=r"^DUEPOST_WEB_URL: must say"):
        gate("0.0.0.0", DUEPOST_WEB_USERS=str(users))


@pytest.mark.parametrize("only", [{"DUEPOST_WEB_USER_HEADER": "X-User"}, {"DUEPOST_WEB_PROXIES": "10.0.0.0/8"}])
def test_a_header_is_believed_of_named_proxies_alone(users: Path, only: dict[str, str]) -> None:
    with pytest.raises(BadSettings, match=r"^DUEPOST_WEB_USER_HEADER: goes with"):
        gate("127.0.0.1", DUEPOST_WEB_USERS=str(users), **only)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_on_this_machine_nobody_has_to_log_in(host: str) -> None:
    assert gate(host).is_open


@pytest.mark.parametrize(
    "line", ["vera", "vera:viewer", "vera:king:-", "vera:viewer:plain", ":viewer:-", "v:viewer:-\nv:viewer:-", "# none"]
)
def test_a_wrong_line_of_the_file_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "users"
    path.write_text(line + "\n")
    with pytest.raises(BadSettings, match=r"^DUEPOST_WEB_USERS: "):
        Logins(path)


def test_a_file_that_everybody_may_write_to_lets_nobody_in(users: Path) -> None:
    users.chmod(0o666)
    with pytest.raises(BadSettings, match="everybody may write"):
        Logins(users)


def test_a_password_opens_a_session_that_ends_with_the_login(start: Start, users: Path) -> None:
    console = start(DUEPOST_WEB_USERS=str(users))
    browser = console.browser()
    asked = browser.get("/?a=b")
    assert asked.status == 303
    page = browser.follow(asked)
    assert 'name="password"' in page.text
    answer = browser.post("/login", {"name": "olga", "password": PASSWORD, "to": page.form("login")["to"]})
    assert (answer.status, answer.location) == (303, "/?a=b")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "olga (operator)" in browser.get("/").words
    users.write_text("".join(line for line in users.read_text().splitlines(keepends=True) if "olga" not in line))
    assert browser.get("/").status == 303


def test_logging_out_takes_the_session_away(start: Start, users: Path) -> None:
    browser = start(DUEPOST_WEB_USERS=str(users)).browser()
    browser.post("/login", {"name": "vera", "password": PASSWORD})
    assert browser.get("/").status == 200
    assert browser.post("/logout").status == 303
    assert browser.get("/").status == 303


def test_a_cookie_that_was_changed_is_none(start: Start, users: Path) -> None:
    browser = start(DUEPOST_WEB_USERS=str(users)).browser()
    browser.post("/login", {"name": "vera", "password": PASSWORD})
    whole = browser.cookies["duepost_session"]
    for changed in (whole.replace("vera", "olga"), whole[:-1], whole + "x", "vera", "", "..", "vera..", "\u00e9"):
        browser.cookies["duepost_session"] = changed.encode("ascii", "replace").decode()
        assert browser.get("/").status == 303, changed


def test_a_session_ends_by_itself(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(Logins(users))
    cookie = gate.log_in("vera", PASSWORD)
    assert gate.visitor("192.0.2.1", {}, cookie) is not None
    monkeypatch.setattr("duepost.web.access.SESSION", -1)
    assert gate.visitor("192.0.2.1", {}, cookie) is None


def test_wrong_passwords_are_counted_and_then_refused_unread(users: Path) -> None:
    times = [0.0]
    gate = Gate(Logins(users), clock=lambda: times[0])
    for name in ("vera", "nobody"):
        assert [gate.log_in(name, "wrong") for _ in range(5)] == [None] * 5
        with pytest.raises(TooManyTries):
            gate.log_in(name, PASSWORD)
    assert gate.log_in("olga", PASSWORD)
    times[0] += 15 * 60 + 1
    assert gate.log_in("vera", PASSWORD)


def test_too_many_tries_are_answered_with_a_time(start: Start, users: Path) -> None:
    browser = start(DUEPOST_WEB_USERS=str(users)).browser()
    statuses = [browser.post("/login", {"name": "vera", "password": f"wrong {n}"}).status for n in range(6)]
    assert statuses == [403] * 5 + [429]
    assert int(browser.post("/login", {"name": "vera", "password": PASSWORD}).headers["retry-after"]) > 800


@pytest.mark.parametrize(
    "to", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:1", "../..", "\tx"]
)
def test_logging_in_leads_to_no_other_site(start: Start, users: Path, to: str) -> None:
    answer = (
        start(DUEPOST_WEB_USERS=str(users)).browser().post("/login", {"name": "vera", "password": PASSWORD, "to": to})
    )
    assert (answer.status, answer.headers["location"]) == (303, "./")


def test_a_proxys_header_is_believed_of_the_proxy_alone(start: Start, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("vera:viewer:-\n")
    near = start(
        DUEPOST_WEB_USERS=str(users), DUEPOST_WEB_USER_HEADER="X-User", DUEPOST_WEB_PROXIES="10.0.0.0/8, 127.0.0.1"
    ).browser(X_User="vera")
    assert near.get("/").status == 200
    far = start(DUEPOST_WEB_PROXIES="10.0.0.0/8").browser(X_User="vera")
    assert far.get("/", X_Forwarded_For="10.0.0.1").status == 403


def test_whom_the_proxy_does_not_name_or_nobody_knows_is_not_let_in(with_logins: ConsoleSite) -> None:
    assert with_logins.browser().get("/").status == 403
    assert with_logins.named("eve").get("/").status == 403
    assert with_logins.named("vera").get("/").status == 200


def test_where_nobody_logs_in_nothing_comes_in_by_a_proxy(console: ConsoleSite) -> None:
    browser = console.browser()
    assert browser.get("/").status == 200
    for header in ("X_Forwarded_For", "Forwarded", "X_Real_IP", "Via"):
        assert browser.get("/", **{header: "192.0.2.1"}).status == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8025", "127.0.0.1.evil.example", "localhost.evil.example", "", "192.0.2.1"]
)
def test_another_host_is_refused(console: ConsoleSite, host: str) -> None:
    assert console.browser().get("/", Host=host).status in {400, 403}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8025", "127.0.0.1:1", "[::1]:8025"])
def test_this_machines_own_names_are_taken(console: ConsoleSite, host: str) -> None:
    assert console.browser().get("/", Host=host).status == 200


FOREIGN = [
    {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"},
    {"Origin": "https://evil.example", "Sec_Fetch_Site": ""},
    {"Origin": "null", "Sec_Fetch_Site": ""},
    {"Origin": "", "Sec_Fetch_Site": ""},
    {"Origin": "", "Sec_Fetch_Site": "cross-site"},
    {"Origin": "http://localhost:3000", "Sec_Fetch_Site": "same-site"},
    {"Origin": "http://127.0.0.1:1", "Sec_Fetch_Site": ""},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_form_of_another_site_is_refused(start: Start, users: Path, headers: dict[str, str]) -> None:
    browser = start(DUEPOST_WEB_USERS=str(users)).browser()
    answer = browser.post("/login", {"name": "vera", "password": PASSWORD}, **headers)
    assert answer.status == 403
    assert not browser.cookies


def test_behind_tls_cookies_are_secure_and_only_the_urls_own_origin_counts(start: Start, users: Path) -> None:
    console = start(DUEPOST_WEB_USERS=str(users), DUEPOST_WEB_URL="https://ops.example.com/due/post")
    browser = console.browser(Host="ops.example.com")
    fields = {"name": "vera", "password": PASSWORD}
    for origin in ("http://ops.example.com", "https://ops.example.com:8443", f"http://127.0.0.1:{console.port}"):
        assert browser.post("/login", fields, Origin=origin).status == 403
    answer = browser.post("/due/post/login", fields, Origin="https://ops.example.com")
    assert answer.status == 303
    assert "secure" in answer.headers["set-cookie"].lower()
    assert "path=/due/post/" in answer.headers["set-cookie"].lower()
    # Whether the proxy takes the prefix away or not, pages are the same.
    whole, stripped = browser.get("/due/post/"), browser.get("/")
    assert whole.status == stripped.status == 200
    assert whole.headers["etag"] == stripped.headers["etag"]
    assert browser.get("/due/post").location == "/due/post/"


def test_each_answer_has_a_strict_policy_and_pages_have_no_script_of_their_own(console: ConsoleSite) -> None:
    browser = console.browser()
    for path in ("/", "/no-such-page", "/static/console.js", "/health"):
        answer = browser.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
    page = browser.get("/").text
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|https?://(?!www\.w3\.org)", page)


def test_health_answers_by_any_name_and_tells_nothing(with_logins: ConsoleSite) -> None:
    answer = with_logins.browser().get("/health", Host="10.1.2.3:8025")
    assert (answer.status, answer.text) == (200, '{"status":"ok"}')


def test_a_form_is_bounded(start: Start, users: Path) -> None:
    browser = start(DUEPOST_WEB_USERS=str(users)).browser()
    assert browser.post("/login", {"name": "a" * 300_000}).status == 413
    assert browser.post("/login", {f"f{n}": "" for n in range(13_000)}).status in {400, 413}
    assert browser.post("/login", {}, Content_Type="multipart/form-data; boundary=x").status == 415


def test_a_night_without_trouble_is_silent(console: ConsoleSite, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        console.browser().get("/?address=ann@example.com")
    assert "ann" not in caplog.text


WRITES = [
    "UPDATE duepost.item SET due_at = now()",
    "INSERT INTO duepost.suppression (address) VALUES ('a@example.com')",
    "DELETE FROM duepost.scheduled_email",
    "SELECT duepost.schedule_email(kind => 'k', address => 'a@example.com', subject => 's', body_text => 'b')",
    "SELECT duepost.clear_scheduled_email(1)",
    "SELECT secret FROM duepost.endpoint",
]


@pytest.mark.parametrize("statement", WRITES)
def test_a_viewers_database_session_cannot_write_whatever_is_said_in_it(url: str, statement: str) -> None:
    reading = ReadOnlyDatabase(url)
    reading.execute("SELECT * FROM duepost.scheduled_email")
    with pytest.raises((psycopg2.errors.InsufficientPrivilege, DatabaseUnreachable)):
        reading.execute(statement)
    # Not even where the transaction could.
    with reading.transaction() as cursor:
        cursor.execute("SET LOCAL transaction_read_only = off")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(statement)
        cursor.execute("ROLLBACK")
    reading.close()


def test_a_login_for_viewers_that_may_write_is_refused(
    start: Start, users: Path, url: str, server: PostgresServer
) -> None:
    with pytest.raises(BadSettings, match="its login may write"):
        start(DUEPOST_WEB_USERS=str(users), DUEPOST_WEB_VIEWER_DATABASE_URL=url)
    server.execute("CREATE ROLE viewer_login LOGIN IN ROLE duepost_viewer")
    try:
        own = url.replace("postgres@", "viewer_login@", 1)
        browser = start(DUEPOST_WEB_USERS=str(users), DUEPOST_WEB_VIEWER_DATABASE_URL=own).browser()
        browser.post("/login", {"name": "vera", "password": PASSWORD})
        assert browser.get("/items").status == 200
    finally:
        server.execute("DROP ROLE viewer_login")


def test_a_viewers_pages_are_read_with_a_session_that_cannot_write(with_logins: ConsoleSite) -> None:
    with_logins.query("REVOKE SELECT ON duepost.worker FROM duepost_viewer")
    assert with_logins.named("vera").get("/").status == 500
    assert with_logins.named("sue").get("/").status == 200


def test_the_command_serves_until_it_is_stopped_and_refuses_what_would_be_open(url: str, tmp_path: Path) -> None:
    env = environment(url, "smtp://127.0.0.1:1")
    refused = duepost("web", "--host", "0.0.0.0", "--port", "0", env=env)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("duepost: DUEPOST_WEB_USERS: must be set")
    arguments = [sys.executable, "-m", "duepost", "web", "--port", "0"]
    with Process(arguments, env, tmp_path / "web.log") as process:
        wait_until(lambda: "The console is at http://" in process.output, timeout=60, state=lambda: process.output)
        found = re.search(r"http://127\.0\.0\.1:\d+/", process.output)
        assert found is not None
        with urllib.request.urlopen(f"{found[0]}items") as page:
            assert "Nothing here" in page.read().decode()
        taken = duepost("web", "--port", found[0].rstrip("/").rpartition(":")[2], env=env)
        assert (taken.returncode, len(taken.stderr.splitlines())) == (1, 1)
        assert "Address already in use" in taken.stderr
        process.signal(signal.SIGTERM)
        process.wait()
        assert len(process.output.splitlines()) == 1


def test_the_command_makes_a_login_that_works(tmp_path: Path) -> None:
    done = duepost(
        "web", "--password", "ann", "--role", "operator", env={"PATH": "/usr/bin:/bin"}, stdin=f"{PASSWORD}\n"
    )
    assert done.returncode == 0, done.stderr
    path = tmp_path / "users"
    path.write_text(done.stdout)
    gate = Gate(Logins(path))
    cookie = gate.log_in("ann", PASSWORD)
    visitor = gate.visitor("", {}, cookie)
    assert visitor is not None
    assert visitor.role is Role.OPERATOR
