"""What is done from the console: once, by those who may, to what was agreed to."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from tests.integration.web.site import Answer, Browser, ConsoleSite

LATER = "2100-01-01T00:00Z"


def failed(console: ConsoleSite, number: int, kind: str = "digest") -> list[int]:
    """Emails that have failed and wait for their next attempt."""
    ids = [console.schedule(kind=kind, scheduled_at=LATER) for _ in range(min(number, 5))]
    if number > 5:
        rows = console.query(
            "SELECT duepost.schedule_email(%(kind)s, 'ann@example.com', scheduled_at => '2100-01-01Z', subject => 's',"
            " body_text => 'b') FROM generate_series(1, %(number)s)",
            kind=kind, number=number - 5,
        )  # fmt: skip
        ids += [int(str(row[0])) for row in rows]
    console.query("UPDATE duepost.item SET last_error = 'rcpt: 450', attempts = 1 WHERE kind = %(kind)s", kind=kind)
    return ids


def due_now(console: ConsoleSite) -> set[int]:
    return {int(str(row[0])) for row in console.query("SELECT id FROM duepost.item WHERE due_at <= now()")}


def journal(console: ConsoleSite) -> list[tuple[object, ...]]:
    return console.query("SELECT action, by_whom, done, skipped FROM duepost.operator_action ORDER BY id")


def agree(browser: Browser, dialog: Answer, **more: object) -> Answer:
    """Sends the dialog's form."""
    assert dialog.status == 200, dialog.words
    return browser.post("/act", {**dialog.form("act"), "reason": "because", **more})


def test_the_dialog_names_filter_and_number_and_what_was_done_is_told(with_logins: ConsoleSite) -> None:
    failed(with_logins, 3)
    browser = with_logins.named("olga")
    dialog = browser.get("/confirm?action=retry&scope=all&kind=digest")
    assert "Retry now: 3 items" in dialog.words
    assert "kind digest" in dialog.words
    assert due_now(with_logins) == set()
    told = browser.follow(agree(browser, dialog))
    assert "3 items done" in told.words
    assert "because" in told.words
    assert len(due_now(with_logins)) == 3
    assert journal(with_logins) == [("retry", "olga", 3, {})]
    assert "olga" in browser.get("/journal").words


def test_one_item_is_cleared_rescheduled_and_resolved_from_its_page(console: ConsoleSite) -> None:
    browser = console.browser()
    cleared, moved, held = (console.schedule(scheduled_at=LATER) for _ in range(3))
    console.query("UPDATE duepost.item SET is_held = true WHERE id = %(id)s", id=held)
    for item_id, action, more in (
        (cleared, "clear", {}),
        (moved, "reschedule", {"at": "2090-01-01T00:00"}),
        (held, "resolve_sent", {}),
    ):
        page = browser.get(f"/items/{item_id}")
        found = re.search(rf'href="([^"]*action={action}&[^"]*)"', page.text)
        assert found is not None, page.words
        dialog = browser.get("/" + found[1].replace("&amp;", "&").removeprefix("../"))
        assert "1 item done" in browser.follow(agree(browser, dialog, **more)).words
    assert console.query("SELECT outcome FROM duepost.delivery WHERE email_id = %(id)s", id=cleared) == [("cleared",)]
    assert console.query("SELECT outcome FROM duepost.delivery WHERE email_id = %(id)s", id=held) == [("sent",)]
    [(at,)] = console.query("SELECT due_at::text FROM duepost.item WHERE id = %(id)s", id=moved)
    assert str(at).startswith("2090-01-01 00:00")


def test_a_form_that_is_sent_twice_at_once_or_again_is_done_once(console: ConsoleSite) -> None:
    [item_id] = failed(console, 1)
    browser = console.browser()
    dialog = browser.get(f"/confirm?action=retry&scope=ticked&ids={item_id}")
    gate = threading.Barrier(2)

    def send(_number: int) -> str:
        gate.wait(30)
        return agree(console.browser(), dialog).location

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(send, range(2))
    assert first == second == agree(browser, dialog).location
    assert len(journal(console)) == 1


def test_of_300_items_20_finish_and_5_arrive_meanwhile(console: ConsoleSite) -> None:
    ids = failed(console, 300)
    browser = console.browser()
    dialog = browser.get("/confirm?action=retry&scope=all&kind=digest")
    assert "300 items" in dialog.words
    console.query("SELECT duepost.clear_scheduled_email(id) FROM unnest(%(ids)s) AS id", ids=ids[::15])
    late = {console.schedule(kind="digest", scheduled_at=LATER) for _ in range(5)}
    console.query("UPDATE duepost.item SET last_error = 'x', attempts = 1 WHERE id = ANY (%(ids)s)", ids=list(late))
    told = browser.follow(agree(browser, dialog))
    assert "280 items done" in told.words
    assert re.search(r"Skipped 20: ", told.words), told.words
    assert due_now(console) == set(ids) - set(ids[::15])
    assert [row[:3] for row in journal(console)] == [("retry", console_name(console), 280)]


def console_name(console: ConsoleSite) -> object:
    [(name,)] = console.query("SELECT by_whom FROM duepost.operator_action ORDER BY id DESC LIMIT 1")
    return name


def test_kinds_routes_and_everything_are_paused_and_resumed(console: ConsoleSite) -> None:
    console.query("INSERT INTO duepost.kind (kind) VALUES ('digest')")
    browser = console.browser()
    for query, page in (
        ("scope=all", "/"),
        ("scope=kind&kind=digest", "/kinds"),
        ("scope=route&route=default", "/routes"),
    ):
        told = browser.follow(agree(browser, browser.get(f"/confirm?action=pause&{query}")))
        assert told.url == page
        assert "paused" in told.words.lower()
        assert "because" in browser.get("/").words
        agree(browser, browser.get(f"/confirm?action=resume&{query}"))
        assert "because" not in browser.get("/").words


def test_an_open_circuit_is_probed_at_once(console: ConsoleSite) -> None:
    console.query(
        "UPDATE duepost.route SET circuit_open = true, circuit_opened_at = now(), circuit_reason = 'auth: 535',"
        " probe_at = now() + interval '10 minutes'"
    )
    browser = console.browser()
    found = re.search(r'href="\./(confirm\?action=probe[^"]*)"', browser.get("/").text)
    assert found is not None
    told = browser.follow(agree(browser, browser.get("/" + found[1].replace("&amp;", "&"))))
    assert told.url == "/routes"
    assert console.query("SELECT probe_at <= now() FROM duepost.route WHERE circuit_open") == [(True,)]
    assert [row[0] for row in journal(console)] == ["probe"]


@pytest.mark.parametrize("name", ["vera", "sue"])
def test_who_is_no_operator_replays_an_operators_form_in_vain(with_logins: ConsoleSite, name: str) -> None:
    [item_id] = failed(with_logins, 1)
    operator, other = with_logins.named("olga"), with_logins.named(name)
    for action in (
        "retry",
        "clear",
        "reschedule",
        "resolve_sent",
        "resolve_resend",
        "resolve_drop",
        "reopen",
        "pause",
        "resume",
    ):
        query = f"action={action}&scope=" + ("all" if action in {"pause", "resume"} else f"ticked&ids={item_id}")
        fields = operator.get(f"/confirm?{query}").form("act")
        assert other.get(f"/confirm?{query}").status == 403
        assert other.post("/act", {**fields, "at": "2090-01-01T00:00Z"}).status == 403, action
    assert journal(with_logins) == []
    if name == "vera":
        assert other.post("/items/1/reveal", {"reason": "r", "token": "t" * 20}).status == 403


def test_foreign_forms_gets_of_actions_and_forms_that_are_not_whole_do_nothing(console: ConsoleSite) -> None:
    [item_id] = failed(console, 1)
    browser = console.browser()
    fields = browser.get(f"/confirm?action=clear&scope=ticked&ids={item_id}").form("act")
    for headers in ({"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}, {"Origin": "null"}):
        assert browser.post("/act", fields, **headers).status == 403
    assert browser.post("/act", fields, Host="evil.example").status == 403
    for query in ("", "?" + "&".join(f"{name}={quote(value)}" for name, value in fields.items())):
        assert browser.get(f"/act{query}").status == 405
    for missing in ("token", "number", "as_of", "upto", "action"):
        assert browser.post("/act", {name: value for name, value in fields.items() if name != missing}).status == 400
    assert browser.get("/confirm?action=clear&scope=all").status == 400
    assert browser.get("/confirm?action=clear&scope=ticked").status == 400
    assert browser.get("/confirm?action=drop_table&scope=all&kind=digest").status == 400
    assert journal(console) == []
    assert console.query("SELECT count(*) FROM duepost.item") == [(1,)]


def test_support_sees_one_item_in_full_for_a_while_and_it_is_written_down(with_logins: ConsoleSite) -> None:
    ids = [
        with_logins.schedule(address="ann@example.com", body_html="<b>private</b>", scheduled_at=LATER) for _ in "ab"
    ]
    browser = with_logins.named("sue")
    page = browser.get(f"/items/{ids[0]}")
    assert "ann@example.com" not in page.text
    assert "private" not in page.text
    dialog = browser.get(f"/items/{ids[0]}/reveal")
    assert browser.post(f"/items/{ids[0]}/reveal", {**dialog.form("reveal"), "reason": " "}).status == 400
    answer = browser.post(f"/items/{ids[0]}/reveal", {**dialog.form("reveal"), "reason": "she called"})
    shown = browser.follow(answer)
    assert "ann@example.com" in shown.text
    found = re.search(r'src="\.\./(items/\d+/content[^"]*)"', shown.text)
    assert found is not None
    assert "private" in browser.get("/" + found[1].replace("&amp;", "&")).text
    permit = answer.location.partition("?")[2]
    assert "ann@example.com" not in browser.get(f"/items/{ids[1]}?{permit}").text
    assert "ann@example.com" not in with_logins.named("vera").get(f"/items/{ids[0]}?{permit}").text
    assert "ann@example.com" not in browser.get(f"/items/{ids[0]}").text
    assert [row[:2] for row in journal(with_logins)] == [("reveal", "sue")]
    assert "she called" in browser.get("/journal").words


def suppressions(console: ConsoleSite) -> list[tuple[object, ...]]:
    return console.query("SELECT address, kind, reason, until IS NOT NULL FROM duepost.suppression ORDER BY 1, 2")


def test_an_address_is_suppressed_changed_and_lifted_by_an_operator_alone(with_logins: ConsoleSite) -> None:
    browser = with_logins.named("olga")
    asked = browser.get("/suppression/change").form("suppression/change")
    sent = {**asked, "address": "Ann@example.com", "kind": "digest", "until": "", "reason": "asked by phone"}
    assert "asked by phone" in browser.follow(browser.post("/suppression/change", sent)).words
    browser.post("/suppression/change", sent)
    assert suppressions(with_logins) == [("ann@example.com", "digest", "asked by phone", False)]
    [(number,)] = with_logins.query("SELECT id FROM duepost.suppression")
    page = browser.get(f"/suppression/change?id={number}")
    again = {**page.form("suppression/change"), "address": "ann@example.com", "kind": "digest"}
    assert browser.post("/suppression/change", {**again, "until": "soon"}).status == 400
    browser.post("/suppression/change", {**again, "until": "2100-01-01T00:00", "reason": "b"})
    assert suppressions(with_logins) == [("ann@example.com", "digest", "b", True)]
    lift = browser.get(f"/suppression/change?id={number}&lift=1").form("suppression/change")
    assert [with_logins.named(name).post("/suppression/change", lift).status for name in ("vera", "sue")] == [403, 403]
    browser.post("/suppression/change", lift)
    assert suppressions(with_logins) == []
    assert browser.get(f"/suppression/change?id={number}").status == 404
    assert [row[:3] for row in journal(with_logins)] == [
        ("suppress", "olga", 1), ("suppress", "olga", 1), ("unsuppress", "olga", 1),
    ]  # fmt: skip


def test_a_viewer_sees_who_is_suppressed_without_the_address(with_logins: ConsoleSite) -> None:
    with_logins.query("SELECT duepost.suppress('ann@example.com', 'ann', 'sql', reason => 'of ann@example.com')")
    shown = with_logins.named("vera").get("/suppression").words
    assert "a***@***" in shown
    assert "ann@example.com" not in shown
    assert "Lift" not in shown
