"""The console in a real browser: what is shown runs nothing and loads nothing; keyboard, no script, small screens."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from duepost.web.access import Role, line_of
from tests.integration.web.conftest import console, start, with_logins
from tests.integration.web.site import ConsoleSite, Start
from tests.integration.web.test_screens import ATTACKS, SCREENS, fill
from tests.servers.browsers import axe, chromium
from tests.servers.certificates import self_signed
from tests.servers.conftest import need
from tests.servers.install import installed
from tests.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

__all__ = ["console", "start", "with_logins"]

ROOT = Path(__file__).parents[2]

#: Phones; and a page that is magnified to 400 % on a screen of 1,280.
SMALL = (360, 320)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    need("chromium", "playwright", "npm")
    with tempfile.TemporaryDirectory(prefix="duepost-browser-") as folder, chromium(Path(folder)) as browser:
        yield browser


@pytest.fixture
def context(browser: "Browser") -> "Iterator[BrowserContext]":
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def page(context: "BrowserContext") -> "Page":
    return context.new_page()


def busy(console: ConsoleSite) -> None:
    """Something of each sort, with ordinary text."""
    console.query(
        """
        INSERT INTO duepost.recipient (user_id, address) VALUES ('ann', 'ann@example.com') ON CONFLICT DO NOTHING;
        INSERT INTO duepost.kind (kind, on_unknown) VALUES ('invoice', 'hold') ON CONFLICT DO NOTHING;
        SELECT duepost.schedule_email(kind => 'digest', users => ARRAY['ann'], subject => 's', body_text => 'b',
                                      scheduled_at => now() + n * interval '31 minutes')
        FROM generate_series(1, 40) AS n;
        INSERT INTO duepost.delivery (
            email_id, kind, outcome, user_id, address, code, enhanced_code, reply, attempts, unknowns, scheduled_at,
            finished_at, message_id_header
        )
        SELECT 1000 + n, (ARRAY['welcome', 'digest', 'invoice'])[n %% 3 + 1],
               CASE WHEN n %% 17 = 0 THEN 'undeliverable' ELSE 'sent' END, 'ann', 'ann@example.com',
               CASE WHEN n %% 17 = 0 THEN 550 ELSE 250 END, CASE WHEN n %% 17 = 0 THEN '5.1.1' ELSE '2.0.0' END,
               CASE WHEN n %% 17 = 0 THEN 'no such user here' ELSE 'queued' END, 1, 0,
               now() - n * interval '4 seconds' - (n %% 7) * interval '200 milliseconds',
               now() - n * interval '4 seconds',
               '<' || n || '@shop.example>'
        FROM generate_series(1, 800) AS n;
        UPDATE duepost.item SET is_held = true, kind = 'invoice', due_at = now() - interval '5 minutes',
                                scheduled_at = now() - interval '5 minutes', last_error = 'dot: the relay hung up',
                                attempts = 1
        WHERE id = (SELECT min(id) FROM duepost.item);
        INSERT INTO duepost.attempt (email_id, claim, worker_id, user_id, started_at, phase, verdict, reply)
        SELECT min(id), 1, 1, 'ann', now() - interval '5 minutes', 'dot', 'unknown', 'the relay hung up'
        FROM duepost.item;
        INSERT INTO duepost.suppression (address, enhanced_code, reply)
        VALUES ('gone@example.com', '5.1.1', 'no such user') ON CONFLICT DO NOTHING;
        UPDATE duepost.control SET checked_in_at = now();
        INSERT INTO duepost.worker (host, pid, release) VALUES ('mail-1', 4711, '0.2.0'), ('mail-2', 4712, '0.2.0');
        """
    )


def paths(console: ConsoleSite) -> list[str]:
    [(held,), (ended,)] = console.query(
        "(SELECT min(id) FROM duepost.item WHERE is_held) UNION ALL (SELECT max(email_id) FROM duepost.delivery)"
    )
    return [*SCREENS, f"/items/{held}", f"/items/{ended}", "/person?user=ann"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_judge_of_accessibility_finds_nothing(browser: "Browser", console: ConsoleSite, scheme: str) -> None:
    busy(console)
    context = browser.new_context(color_scheme=scheme)
    page, judge = context.new_page(), axe()
    for path in paths(console):
        page.goto(console.origin + path)
        page.evaluate(judge)
        found = page.evaluate("axe.run()")["violations"]
        told = [(each["id"], [node["html"][:200] for node in each["nodes"]][:3]) for each in found]
        assert told == [], path
    context.close()


def test_hostile_text_runs_nothing_and_no_page_breaks_its_policy(page: "Page", console: ConsoleSite) -> None:
    for text in ATTACKS:
        fill(console, text)
    ran, complaints = list[str](), list[str]()
    page.expose_function("mark", lambda: ran.append(page.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    ids = [row[0] for row in console.query("SELECT id FROM duepost.item ORDER BY id LIMIT 12")]
    for path in [*SCREENS, *(f"/items/{each}" for each in ids)]:
        page.goto(console.origin + path)
        page.wait_for_load_state("networkidle")
    assert ran == []
    # What a frame holds is refused there, and said so.
    assert [each for each in complaints if "sandbox" not in each and "Content Security Policy" not in each] == []


class Listener:
    """Counts who connects to it."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.heard: list[bytes] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(1)
                try:
                    self.heard.append(connection.recv(200))
                except OSError:
                    self.heard.append(b"")

    def close(self) -> None:
        self._socket.close()


def test_of_what_an_email_says_no_request_leaves_and_nothing_leads_away(page: "Page", console: ConsoleSite) -> None:
    listener = Listener()
    away = f"http://127.0.0.1:{listener.port}"
    html = f"""
        <base href="{away}/"><meta http-equiv="refresh" content="0; url={away}/refresh">
        <link rel="stylesheet" href="{away}/style"><link rel="prefetch" href="{away}/prefetch">
        <link rel="dns-prefetch" href="{away}"><link rel="preconnect" href="{away}">
        <style>@import "{away}/import"; body {{ background: url({away}/background) }}
        @font-face {{ font-family: f; src: url({away}/font) }} p {{ font-family: f }}</style>
        <script>fetch("{away}/script"); top.location = "{away}/top"</script><img src="{away}/image">
        <img src="x" srcset="{away}/srcset 1x" onerror="fetch('{away}/onerror')"><iframe src="{away}/frame"></iframe>
        <object data="{away}/object"></object><embed src="{away}/embed"><video src="{away}/video" autoplay></video>
        <audio src="{away}/audio" autoplay></audio><svg><image href="{away}/svg"/></svg>
        <input type="image" src="{away}/input">
        <form action="{away}/form"><button id="send">Send</button></form>
        <p><a id="top" target="_top" href="{away}/link">top</a> <a id="here" href="{away}/here">here</a>
        <a id="new" target="_blank" href="{away}/new" ping="{away}/ping">new</a></p>"""
    item_id = console.schedule(body_html=html, scheduled_at="2100-01-01T00:00Z")
    asked_for: list[str] = []
    page.on("request", lambda request: asked_for.append(request.url))
    page.goto(f"{console.origin}/items/{item_id}")
    frame = page.frame_locator("iframe.content")
    for name in ("send", "top", "here", "new"):
        frame.locator(f"#{name}").click(timeout=10_000)
        page.wait_for_load_state("networkidle")
        page.goto(f"{console.origin}/items/{item_id}")
    # The listener hears what is sent to it: it is not deaf.
    socket.create_connection(("127.0.0.1", listener.port)).close()
    wait_until(lambda: listener.heard == [b""], state=lambda: str(listener.heard))
    assert page.url == f"{console.origin}/items/{item_id}"
    assert len(page.context.pages) == 1
    listener.close()


def test_all_works_without_a_script(browser: "Browser", console: ConsoleSite) -> None:
    busy(console)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(console.origin)
    page.get_by_role("link", name="Items", exact=True).click()
    page.get_by_label("Kind").fill("invoice")
    page.get_by_role("button", name="Show").click()
    assert "kind=invoice" in page.url
    page.get_by_role("rowheader").first.get_by_role("link").click()
    assert "it waits for a person" in page.inner_text("main")
    context.close()


@pytest.mark.parametrize("width", SMALL)
def test_on_a_small_screen_only_tables_are_scrolled_sideways(
    browser: "Browser", console: ConsoleSite, width: int
) -> None:
    busy(console)
    context = browser.new_context(viewport={"width": width, "height": 640})
    page = context.new_page()
    for path in paths(console):
        page.goto(console.origin + path)
        widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1], (path, widths)
    context.close()


def test_while_a_page_refreshes_ticks_typed_text_focus_and_scroll_stay_in_seven_tabs(
    context: "BrowserContext", console: ConsoleSite
) -> None:
    busy(console)
    tabs = [context.new_page() for _ in range(7)]
    for tab in tabs:
        tab.set_viewport_size({"width": 900, "height": 500})
        tab.goto(f"{console.origin}/items")
    tab = tabs[0]
    tab.bring_to_front()
    first = tab.locator("input[name=ids]").nth(3)
    ticked = first.get_attribute("value")
    first.check()
    tab.get_by_label("Key").fill("half of a wo")
    tab.evaluate("scrollTo(0, 400)")
    tab.locator("input[name=ids]").nth(5).focus()
    focused = tab.evaluate("document.activeElement.value")
    before = tab.locator("[data-part=rows]").inner_html()
    console.query(
        "SELECT duepost.schedule_email(kind => 'flood', address => 'a@example.com', subject => 's', body_text => 'b')"
        " FROM generate_series(1, 30)"
    )
    tab.wait_for_function("before => document.querySelector('[data-part=rows]').innerHTML !== before", arg=before)
    tab.wait_for_function("() => document.querySelector('[data-part=rows]').textContent.includes('flood')")
    assert tab.locator(f"input[name=ids][value='{ticked}']").is_checked()
    assert tab.get_by_label("Key").input_value() == "half of a wo"
    assert tab.evaluate("document.activeElement.value") == focused
    assert tab.evaluate("scrollY") > 300


def test_pages_say_the_same_in_each_zone(browser: "Browser", console: ConsoleSite) -> None:
    busy(console)
    seen = []
    for zone in ("UTC", "Asia/Kathmandu", "America/St_Johns", "Europe/Berlin"):
        context = browser.new_context(timezone_id=zone, locale="ne-NP")
        page = context.new_page()
        page.goto(f"{console.origin}/suppression")
        seen.append(page.inner_text("main"))
        context.close()
    assert len(set(seen)) == 1
    assert re.search(r"\d\d:\d\d:\d\d UTC", seen[0])


#: The pictures of the documentation, and where each is taken.
PICTURES = {"console": "/", "console-items": "/items", "console-item": "/items/{held}", "console-failures": "/failures"}

#: Where they are put, for `make pictures`; else they are thrown away.
PICTURES_FOLDER = os.environ.get("PICTURES")


@pytest.mark.parametrize("name", PICTURES)
def test_the_screens_are_pictured_for_the_documentation(
    browser: "Browser", console: ConsoleSite, tmp_path: Path, name: str
) -> None:
    busy(console)
    [(held,)] = console.query("SELECT min(id) FROM duepost.item WHERE is_held")
    context = browser.new_context(viewport={"width": 1160, "height": 760})
    page = context.new_page()
    page.goto(console.origin + PICTURES[name].format(held=held))
    picture = Path(PICTURES_FOLDER or tmp_path) / f"{name}.png"
    page.screenshot(path=picture)
    assert 20_000 < picture.stat().st_size < 150_000
    context.close()


def test_every_picture_of_the_console_is_in_the_documentation() -> None:
    assert {path.stem for path in (ROOT / "docs").glob("console*.png")} == set(PICTURES)
    for name in PICTURES:
        assert any(f"{name}.png)" in page.read_text() for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])


def tab_to(page: "Page", wanted: str, key: str = "Tab") -> None:
    """Goes there with the keyboard: `wanted` is a condition on the element that has the focus."""
    for _ in range(300):
        page.keyboard.press(key)
        if page.evaluate(f"(e => {wanted})(document.activeElement)"):
            return
    raise AssertionError(f"no element where {wanted}")


def test_with_the_keyboard_alone_an_item_is_found_and_retried(page: "Page", console: ConsoleSite) -> None:
    busy(console)
    console.query("UPDATE duepost.item SET last_error = 'rcpt: 450', attempts = 1 WHERE NOT is_held")
    page.goto(console.origin)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    tab_to(page, "e.textContent === 'Items'")
    page.keyboard.press("Enter")
    page.wait_for_url("**/items")
    tab_to(page, "e.name === 'kind'")
    page.keyboard.type("digest")
    page.keyboard.press("Enter")
    page.wait_for_url("**kind=digest**")
    tab_to(page, "e.name === 'ids'")
    page.keyboard.press("Space")
    tab_to(page, "e.textContent.startsWith('Go on')", "Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/confirm?**")
    assert "Retry now: 1 item" in page.inner_text("h1")
    page.keyboard.type("the relay is well again")
    page.keyboard.press("Enter")
    page.wait_for_url("**/done/*")
    assert "1 item done" in page.inner_text("h1")
    page.reload()
    page.go_back()
    page.go_forward()
    [(number,)] = console.query("SELECT count(*) FROM duepost.operator_action")
    assert number == 1


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    server {{
        listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
        location {location} {{
            proxy_pass http://127.0.0.1:{console}{target};
            proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
        }}
    }}
}}
"""


@pytest.mark.parametrize(("location", "target"), [("/ops/due/", "/"), ("/ops/due", "")], ids=["stripped", "whole"])
def test_behind_nginx_with_tls_below_a_prefix_people_log_in_and_act(
    browser: "Browser", start: Start, location: str, target: str, tmp_path: Path
) -> None:
    need("nginx")
    folder = Path(tempfile.mkdtemp(prefix="duepost-nginx-", dir="/tmp"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    users = tmp_path / "users"
    users.write_text(line_of("olga", Role.OPERATOR, "correct horse") + "\n")
    console = start(DUEPOST_WEB_USERS=str(users), DUEPOST_WEB_URL=f"https://localhost:{port}/ops/due")
    console.query("UPDATE duepost.control SET checked_in_at = now()")
    item_id = console.schedule(scheduled_at="2100-01-01T00:00Z", body_html="<b>Hello</b>")
    certificate = folder / "certificate.pem"
    certificate.write_text(self_signed("localhost"))
    configuration = folder / "nginx.conf"
    configuration.write_text(
        NGINX.format(
            folder=folder,
            port=port,
            certificate=certificate,
            key=certificate,
            location=location,
            console=console.port,
            target=target,
        )
    )
    program = installed("nginx") / "usr/sbin/nginx"
    nginx = subprocess.Popen([program, "-c", configuration, "-p", folder])
    context = browser.new_context(ignore_https_errors=True)
    try:
        wait_until(lambda: listens(port), what="nginx")
        page = context.new_page()
        page.goto(f"https://localhost:{port}/ops/due")
        page.get_by_label("Name").fill("olga")
        page.get_by_label("Password").fill("correct horse")
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"https://localhost:{port}/ops/due/")
        page.get_by_role("link", name="Items", exact=True).click()
        page.get_by_role("link", name=str(item_id), exact=True).click()
        assert page.frame_locator("iframe.content").locator("b").inner_text() == "Hello"
        page.get_by_role("link", name="Clear", exact=True).click()
        page.get_by_role("button", name="Clear").click()
        page.wait_for_url(f"https://localhost:{port}/ops/due/done/*")
        assert "1 item done" in page.inner_text("h1")
        [cookie] = context.cookies()
        assert (cookie["secure"], cookie["httpOnly"], cookie["path"]) == (True, True, "/ops/due/")
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url(f"https://localhost:{port}/ops/due/login")
    finally:
        context.close()
        nginx.terminate()
        nginx.wait()
        shutil.rmtree(folder, ignore_errors=True)
