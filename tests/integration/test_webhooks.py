"""What providers tell by webhook: only what is theirs, only about emails of ours, only once, and as the table says."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.ruling import Phase
from actors.settings import BadSettings, Settings, settings
from duepost.web.server import Server, build_public_links, listen, providers_of
from models import bounces
from tests import webhooks
from tests.app_harness import Harness
from tests.integration.commands.shell import Shell
from tests.integration.test_bounces import suppressed
from tests.relays import ScriptedRelay, reply
from tests.webhooks import (
    CERTIFICATE,
    MAILGUN_KEY,
    POSTMARK_LOGIN,
    TOPIC,
    SendGridKey,
    Sns,
    basic,
    call,
    mailgun,
    mailgun_failed,
    postmark,
    sendgrid,
    ses_bounce,
)  # fmt: skip

SES_ID = "010201930a1b2c3d-0a1b2c3d-1111-2222-3333-444455556666-000000"
KEY, AMAZON = SendGridKey(), Sns()

SECRETS = {
    "DUEPOST_SES_TOPICS": TOPIC, "DUEPOST_MAILGUN_SIGNING_KEY": MAILGUN_KEY,
    "DUEPOST_SENDGRID_PUBLIC_KEY": KEY.public, "DUEPOST_POSTMARK_LOGIN": POSTMARK_LOGIN,
    "DUEPOST_PUBLIC_URL": "https://mail.example.com", "DUEPOST_BOUNCE_ADDRESS": "bounces@example.com",
}  # fmt: skip


@dataclass
class Sent:
    """An email that a relay has taken, as it can be named."""

    id: int
    address: str
    message_id: str
    path: str

    @property
    def bare_id(self) -> str:
        return self.message_id.strip("<>")


class Hooks:
    """A public server that takes all providers' calls, and workers whose emails they are about."""

    def __init__(self, harness: Harness, relay: ScriptedRelay, port: int) -> None:
        self.harness, self.relay, self.port = harness, relay, port
        self.relay.on(Phase.DOT, reply(f"250 Ok {SES_ID}"))

    def send(self, address: str = "ann@example.com", **arguments: object) -> Sent:
        email_id = self.harness.schedule(address=address, **arguments)
        self.harness.deliver()
        [(message_id,)] = self.harness.query(
            "SELECT message_id_header FROM duepost.delivery WHERE email_id = %(id)s", id=email_id
        )
        return Sent(email_id, address, str(message_id), self.relay.messages[-1].sender)

    def ses(self, body: object) -> int:
        return call(self.port, "ses", body, {"Content-Type": "text/plain; charset=UTF-8"})

    def mailgun(self, body: object) -> int:
        return call(self.port, "mailgun", body)

    def sendgrid(self, *events: object) -> int:
        body = json.dumps(events).encode()
        return call(self.port, "sendgrid", body, KEY.headers(body))

    def postmark(self, body: object) -> int:
        return call(self.port, "postmark", body, basic())

    def suppressed(self) -> list[tuple[object, ...]]:
        return suppressed(self.harness)

    def effects(self) -> list[tuple[object, ...]]:
        return self.harness.query("SELECT source, event, effect FROM duepost.bounce ORDER BY id")


@pytest.fixture
def hooks(harness: Harness, relay: ScriptedRelay, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooks]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    harness.restart()
    AMAZON.asked.clear()
    server = Server(build_public_links(Settings(), url, AMAZON.fetch), listen("127.0.0.1", 0))
    server.start()
    yield Hooks(harness, relay, server.address[1])
    server.stop()


ANN = ("ann@example.com", None, "bounce")


# What follows --------------------------------------------------------------------------------------------------------


def test_a_dead_address_is_suppressed_once_whoever_tells_it(hooks: Hooks) -> None:
    tellers: list[Callable[[Sent], int]] = [
        lambda sent: hooks.ses(AMAZON.message(ses_bounce(sent.address, SES_ID), "1")),
        lambda sent: hooks.ses(AMAZON.message(ses_bounce(sent.address.upper(), source=sent.path), "2")),
        lambda sent: hooks.sendgrid(
            sendgrid("bounce", sent.address, status="5.1.1", reason="550 5.1.1 unknown", **{"smtp-id": sent.message_id})
        ),
        lambda sent: hooks.sendgrid(
            sendgrid("bounce", sent.address, type="bounce", status="5.1.1", sg_message_id=f"{SES_ID}.recvd-1.2")
        ),
        lambda sent: hooks.mailgun(mailgun(mailgun_failed(sent.address, sent.bare_id))),
        lambda sent: hooks.mailgun(mailgun(mailgun_failed(sent.address, "1@x", envelope={"sender": sent.path}))),
        lambda sent: hooks.postmark(
            postmark("Bounce", sent.address, Type="HardBounce", Details="smtp;550 5.1.1 x", MessageID=SES_ID)
        ),
    ]  # fmt: skip
    for number, tell in enumerate(tellers):
        sent = hooks.send(f"ann{number}@example.com")
        assert (tell(sent), tell(sent)) == (200, 200), number
        assert (sent.address, None, "bounce") in hooks.suppressed(), number
        hooks.harness.query("DELETE FROM duepost.suppression")
        assert tell(sent) == 200
        assert hooks.suppressed() == [], "what is told again changes nothing"
    assert len(hooks.effects()) == len(tellers)


def test_postmark_tells_our_message_id_that_it_replaces(hooks: Hooks) -> None:
    sent = hooks.send()
    [mark] = [line for line in hooks.relay.messages[0].content.split(b"\r\n") if line.startswith(b"X-PM-")]
    name, _, value = mark.decode().partition(": ")
    told = postmark(
        "Bounce", sent.address, Type="HardBounce", Description="unknown user", MessageID="x",
        Metadata={name.removeprefix("X-PM-Metadata-"): value},
    )  # fmt: skip
    assert hooks.postmark(told) == 200
    assert hooks.suppressed() == [ANN]


SES_BOUNCES = [
    ("Permanent", "General", "5.1.1", "smtp; 550 5.1.1 user unknown", "suppressed"),
    ("Permanent", "NoEmail", "", "", "suppressed"),
    ("Permanent", "General", "5.7.1", "smtp; 554 5.7.1 blocked using zen.spamhaus.org", "about_us"),
    ("Permanent", "General", "5.2.2", "smtp; 552 5.2.2 mailbox full", "failed"),
    ("Permanent", "Suppressed", "5.1.1", "Amazon SES has suppressed sending", "failed"),
    ("Transient", "General", "5.1.1", "smtp; 550 5.1.1 user unknown", "failed"),
    ("Undetermined", "Undetermined", "", "", "failed"),
]


def test_of_what_ses_calls_a_bounce_the_table_decides_what_is_dead(hooks: Hooks) -> None:
    for number, (sort, subtype, code, said, _) in enumerate(SES_BOUNCES):
        sent = hooks.send(f"ann{number}@example.com")
        told = ses_bounce(sent.address, SES_ID, sort=sort, subtype=subtype, code=code, said=said)
        assert hooks.ses(AMAZON.message(told)) == 200
    assert [each[2] for each in hooks.effects()] == [each[-1] for each in SES_BOUNCES]


def test_what_is_not_for_good_suppresses_nobody(hooks: Hooks) -> None:
    sent = hooks.send()
    ours = {"smtp-id": sent.message_id}
    assert hooks.mailgun(mailgun(mailgun_failed(sent.address, sent.bare_id, severity="temporary"))) == 200
    assert hooks.mailgun(mailgun(mailgun_failed(sent.address, sent.bare_id, reason="suppress-bounce"))) == 200
    assert hooks.postmark(
        postmark("Bounce", sent.address, Type="SoftBounce", Details="550 5.1.1 no", MessageID=SES_ID)
    ) == 200  # fmt: skip
    assert hooks.postmark(postmark("Bounce", sent.address, Type="AutoResponder", MessageID=SES_ID)) == 200
    assert hooks.sendgrid(
        sendgrid("deferred", sent.address, response="450 4.1.1 later", **ours),
        sendgrid("bounce", sent.address, type="blocked", status="5.1.1", reason="550 5.1.1 no", **ours),
        sendgrid("dropped", sent.address, reason="Bounced Address", **ours),
        sendgrid("delivered", sent.address, **ours),
        sendgrid("open", sent.address, **ours),
        sendgrid("an event of next year", sent.address, **ours),
    ) == 200  # fmt: skip
    assert hooks.mailgun(mailgun({"event": "clicked", "recipient": sent.address})) == 200
    assert hooks.ses(AMAZON.message({"eventType": "Delivery", "mail": {}})) == 200
    assert hooks.ses(AMAZON.message("Successfully validated SNS topic for Amazon SES event publishing.")) == 200
    assert hooks.suppressed() == []
    assert {each[2] for each in hooks.effects()} == {"failed"}


def test_a_complaint_is_of_the_kind_where_one_can_unsubscribe_from_it(hooks: Hooks) -> None:
    hooks.harness.query("INSERT INTO duepost.kind (kind, unsubscribe) VALUES ('digest', true)")
    ann, bob = hooks.send(kind="digest"), hooks.send("bob@example.com", kind="reset")
    cem, dan = hooks.send("cem@example.com", kind="digest"), hooks.send("dan@example.com", kind="digest")
    for sort, who in (("not-spam", dan), ("abuse", ann)):
        told = {
            "notificationType": "Complaint", "mail": {"messageId": SES_ID, "destination": [who.address]},
            "complaint": {"complainedRecipients": [{"emailAddress": who.address}], "complaintFeedbackType": sort},
        }  # fmt: skip
        assert hooks.ses(AMAZON.message(told)) == 200
    assert hooks.sendgrid(sendgrid("spamreport", bob.address, **{"smtp-id": bob.message_id})) == 200
    unsubscribed = {**mailgun_failed(cem.address, cem.bare_id), "event": "unsubscribed"}
    assert hooks.mailgun(mailgun(unsubscribed)) == 200
    assert sorted(hooks.suppressed(), key=str) == [
        ("ann@example.com", "digest", "complaint"), ("bob@example.com", None, "complaint"),
        ("cem@example.com", "digest", "complaint"),
    ]  # fmt: skip


def test_of_several_who_see_each_other_the_one_that_is_named_is_meant(hooks: Hooks) -> None:
    hooks.relay.on(Phase.RCPT, reply("250 ok"))
    hooks.harness.schedule(address=None, addresses=["ann@example.com", "bob@example.com"])
    hooks.harness.deliver()
    [(message_id,), _] = hooks.harness.query("SELECT message_id_header FROM duepost.delivery")
    assert hooks.sendgrid(
        sendgrid("bounce", "bob@example.com", status="5.1.1", **{"smtp-id": message_id}),
        sendgrid("spamreport", "ann@example.com", **{"smtp-id": message_id}),
    ) == 200  # fmt: skip
    assert sorted(hooks.suppressed()) == [("ann@example.com", None, "complaint"), ("bob@example.com", None, "bounce")]


def test_where_ses_names_several_nobody_knows_who_has_complained(hooks: Hooks) -> None:
    """AWS: "complainedRecipients: recipients that may have been responsible for the complaint"."""
    hooks.relay.on(Phase.DOT, reply(f"250 Ok {SES_ID}"))
    hooks.harness.schedule(address=None, addresses=["ann@example.com", "bob@example.com"])
    hooks.harness.deliver()

    def complaint(*addresses: str) -> dict[str, object]:
        return {
            "notificationType": "Complaint",
            "mail": {"messageId": SES_ID, "destination": ["ann@example.com", "bob@example.com"]},
            "complaint": {
                "complainedRecipients": [{"emailAddress": each} for each in addresses],
                "complaintFeedbackType": "abuse",
            },
        }

    assert hooks.ses(AMAZON.message(complaint("ann@example.com", "bob@example.com"))) == 200
    assert (hooks.suppressed(), hooks.effects()) == ([], [])
    assert hooks.ses(AMAZON.message(complaint("Ann@example.com", "eve@example.com"))) == 200
    assert hooks.suppressed() == [("ann@example.com", None, "complaint")]


def test_what_lacks_a_field_is_unreadable_and_is_not_called_again(hooks: Hooks) -> None:
    whole = postmark("Bounce", "ann@example.com", Type="HardBounce", MessageID=SES_ID)
    assert isinstance(whole, dict)
    for name in ("Email", "Type"):
        assert hooks.postmark({key: value for key, value in whole.items() if key != name}) == 200
    assert [each[2] for each in hooks.effects()] == ["unreadable", "unreadable"]
    assert hooks.suppressed() == []


def test_what_is_about_no_email_of_ours_has_no_effect(hooks: Hooks) -> None:
    sent = hooks.send()
    other = hooks.send("bob@example.com")
    assert hooks.mailgun(mailgun(mailgun_failed(sent.address, "1234@example.com"))) == 200
    assert hooks.sendgrid(sendgrid("bounce", sent.address, status="5.1.1", **{"smtp-id": other.message_id})) == 200
    assert hooks.ses(AMAZON.message(ses_bounce(sent.address, SES_ID[:20]))) == 200
    hooks.harness.query("UPDATE duepost.delivery SET finished_at = now() - interval '31 days'")
    assert hooks.mailgun(mailgun(mailgun_failed(sent.address, sent.bare_id))) == 200
    assert hooks.suppressed() == []
    assert {each[2] for each in hooks.effects()} == {"unbelieved"}
    # However many emails there are: what went to an address is found by it.
    with hooks.harness.database.transaction() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        asked = {"addresses": ["ann@example.com"], "days": 30, "message_id": "x", "relay_id": None}
        cursor.execute(f"EXPLAIN {bounces.SQL['sent_as']}", asked)
        plan = "\n".join(str(row[0]) for row in cursor.fetchall())
    assert "Seq Scan" not in plan, plan
    for index in ("mailbox_key_finished_at_idx", "scheduled_email_user_sent", "email_recipient_sent"):
        assert index in plan, plan


# Whose it is ---------------------------------------------------------------------------------------------------------


def changed(message: dict[str, object], **changes: object) -> dict[str, object]:
    """A message of which something is other than was signed."""
    return {**message, **changes}


def test_of_sns_nothing_counts_that_amazon_has_not_signed_for_a_topic_of_ours(hooks: Hooks) -> None:
    told = ses_bounce(hooks.send().address, SES_ID)
    right = AMAZON.message(told)
    forged = [
        {}, [], "x", 7, b"", b"\xff", b"[" * 100_000,
        changed(right, Signature="AAAA"), changed(right, Signature=None), changed(right, SignatureVersion="3"),
        changed(right, SignatureVersion=[]), changed(right, Type={}),

        changed(right, SignatureVersion="1"), changed(right, Message=json.dumps(told) + " "),
        changed(right, Subject="more"), changed(right, Message="\ud800"),
        AMAZON.message(told, TopicArn="arn:aws:sns:eu-west-1:666666666666:bounces"),
        AMAZON.message(told, Type="Other"), changed(right, TopicArn=[TOPIC]),
    ]  # fmt: skip
    assert [hooks.ses(each) for each in forged] == [403] * len(forged)
    before = len(AMAZON.asked)
    elsewhere = [
        "https://s3.amazonaws.com/x/SimpleNotificationService-1.pem", "https://sns.evil.example/SimpleNotificationService-1.pem",
        CERTIFICATE.replace("https", "http"), CERTIFICATE.replace("/Simple", "/x/Simple"), CERTIFICATE + "?x=1",
        CERTIFICATE.replace(".com/", ".com.evil.example/"), CERTIFICATE.replace(".com/", ".com:444/"),
        CERTIFICATE.replace("//sns", "//u@sns"), CERTIFICATE.replace("eu-west-1", "x/../eu-west-1"), CERTIFICATE + "\n",
        "file:///etc/passwd", "https://sns.eu-west-1.amazonaws.com.cn/SimpleNotificationService-1.pem", "", "\ud800",
    ]  # fmt: skip
    for url in elsewhere:
        assert hooks.ses(AMAZON.message(told, SigningCertURL=url)) == 403, url
    assert len(AMAZON.asked) == before, "nothing is asked for elsewhere"
    assert hooks.ses(AMAZON.message(told, SigningCertURL=CERTIFICATE.replace("0123", "9999"))) == 503
    assert (hooks.suppressed(), hooks.effects()) == ([], [])


def test_a_subscription_is_confirmed_at_amazon_and_to_a_topic_of_ours(hooks: Hooks) -> None:
    own = webhooks.CONFIRMATION
    elsewhere = [
        "http://169.254.169.254/latest/meta-data/", own.replace("https", "http"), own.replace("sns.", "sns2."),
        own.replace(TOPIC, "arn:aws:sns:eu-west-1:666666666666:bounces"), own.replace("Confirm", "Un"),
        own.replace(".com/", ".com/x"), "",
    ]  # fmt: skip
    for url in elsewhere:
        assert hooks.ses(AMAZON.subscription(SubscribeURL=url)) == 403, url
    foreign = "arn:aws:sns:eu-west-1:666666666666:bounces"
    assert hooks.ses(AMAZON.subscription(TopicArn=foreign, SubscribeURL=own.replace(TOPIC, foreign))) == 403
    assert set(AMAZON.asked) <= {CERTIFICATE}
    assert hooks.ses(changed(AMAZON.subscription(), Token="x")) == 403
    assert hooks.ses(AMAZON.subscription()) == 200
    assert AMAZON.asked.count(own) == 1
    assert hooks.ses({**AMAZON.subscription(Type="UnsubscribeConfirmation")}) == 200
    assert AMAZON.asked.count(own) == 1


def test_of_mailgun_a_token_counts_once_and_for_two_days_whatever_body_it_comes_with(hooks: Hooks) -> None:
    sent = hooks.send()
    told = mailgun_failed(sent.address, sent.bare_id)
    used = mailgun({"event": "delivered", "recipient": sent.address})
    assert hooks.mailgun(used) == 200
    assert hooks.mailgun({**used, "event-data": told}) == 200
    assert hooks.suppressed() == [], "a used token with another body around it has no effect"
    right = mailgun(told)
    forged = [
        changed(right, signature=None), {"event-data": told}, b"x", b"{}", [], mailgun(told, key="another-key-012345"),
        changed(right, signature={**right["signature"], "token": "x" * 32}),  # type: ignore[dict-item]
        changed(right, signature={**right["signature"], "signature": "ü"}),  # type: ignore[dict-item]
        mailgun(told, age=3 * 86_400), mailgun(told, age=-3_600),
    ]  # fmt: skip
    assert [hooks.mailgun(each) for each in forged] == [403] * len(forged)
    assert hooks.suppressed() == []
    # Their retries come for eight hours; what is written again has other blanks.
    late = json.dumps(mailgun(told, age=600), indent=3).encode()
    assert (hooks.mailgun(late), hooks.mailgun(late)) == (200, 200)
    assert hooks.suppressed() == [ANN]
    assert len(hooks.harness.query("SELECT token FROM duepost.webhook_token")) == 2


def test_of_sendgrid_the_raw_bytes_are_signed(hooks: Hooks) -> None:
    sent = hooks.send()
    body = json.dumps([sendgrid("bounce", sent.address, status="5.1.1", **{"smtp-id": sent.message_id})]).encode()
    right = KEY.headers(body)
    written_again = json.dumps(json.loads(body), separators=(",", ":")).encode()
    stamp = "X-Twilio-Email-Event-Webhook-Timestamp"
    forged = [
        (body, {}), (body + b" ", right), (written_again, right), (body, {**right, stamp: "1"}),
        (body, SendGridKey().headers(body)),
        (body, {**right, "X-Twilio-Email-Event-Webhook-Signature": "no base64"}), (body, KEY.headers(body, 3 * 86_400)),
        (b"", KEY.headers(body)),
    ]  # fmt: skip
    assert [call(hooks.port, "sendgrid", each, headers) for each, headers in forged] == [403] * len(forged)
    assert hooks.suppressed() == []
    assert call(hooks.port, "sendgrid", body, KEY.headers(body, 600)) == 200
    assert hooks.suppressed() == [ANN]


def test_of_postmark_the_login_is_all_that_there_is(hooks: Hooks) -> None:
    sent = hooks.send()
    told = postmark("Bounce", sent.address, Type="HardBounce", Details="550 5.1.1 no", MessageID=SES_ID)
    user, _, password = POSTMARK_LOGIN.partition(":")
    wrong = [
        {}, basic("x:y"), basic(f"{user}:{password}x"), basic(user), basic(""), {"Authorization": POSTMARK_LOGIN},
        {"Authorization": "Basic é"}, {"Authorization": f"Bearer {base64.b64encode(POSTMARK_LOGIN.encode()).decode()}"},
    ]  # fmt: skip
    assert [call(hooks.port, "postmark", told, headers) for headers in wrong] == [403] * len(wrong)
    assert hooks.suppressed() == []


# Batches, sizes, trouble ---------------------------------------------------------------------------------------------


def test_of_five_hundred_events_a_broken_one_fails_alone(hooks: Hooks) -> None:
    sent, bob = hooks.send(), hooks.send("bob@example.com")
    events: list[object] = [sendgrid("delivered", f"user{number}@example.com") for number in range(490)]
    events[3] = sendgrid("bounce", sent.address, status="5.1.1", **{"smtp-id": sent.message_id})
    broken: list[object] = [
        None, 7, [], {}, sendgrid("bounce", ""), {"event": {"a": 1}}, {"event": "bounce", "email": ["x"]},
        sendgrid("bounce", "a\0b@example.com", status="5.1.1", **{"smtp-id": "<\ud800\0@x>"}),
        sendgrid("bounce", "x" * 100_000, status="\0", reason="\ud800"),
    ]  # fmt: skip
    last = sendgrid("bounce", bob.address, reason="550 5.1.1 \0no\ud800", **{"smtp-id": bob.message_id})
    assert hooks.sendgrid(*events, *broken, last) == 200
    assert sorted(hooks.suppressed()) == [ANN, ("bob@example.com", None, "bounce")]
    assert {each[2] for each in hooks.effects()} == {"suppressed", "unreadable", "unbelieved"}
    assert "email is missing" in Shell(hooks.harness.application.url).run("bounces", "--list")


def test_without_a_database_it_is_told_again_and_then_counts(hooks: Hooks) -> None:
    sent = hooks.send()
    told = mailgun(mailgun_failed(sent.address, sent.bare_id))
    hooks.harness.query("ALTER FUNCTION duepost.note_bounce RENAME TO gone")
    assert hooks.mailgun(told) == 503
    hooks.harness.query("ALTER FUNCTION duepost.gone RENAME TO note_bounce")
    assert hooks.mailgun(told) == 200
    assert hooks.suppressed() == [ANN]


def test_what_is_too_large_or_not_posted_or_nobodys_is_refused(hooks: Hooks) -> None:
    assert call(hooks.port, "postmark", b"x" * (1024 * 1024 + 1), basic()) == 413
    assert call(hooks.port, "postmark", b"", basic(), "GET") == 405
    assert call(hooks.port, "mandrill", b"{}") == 404


def test_without_a_secret_nobody_may_call_and_the_doctor_says_so(
    harness: Harness, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUEPOST_PUBLIC_URL", "https://mail.example.com")
    server = Server(build_public_links(Settings(), url, AMAZON.fetch), listen("127.0.0.1", 0))
    server.start()
    shell = Shell(url)
    try:
        calls: dict[str, tuple[object, dict[str, str]]] = {
            "ses": (AMAZON.message("x"), {}), "mailgun": (mailgun({}), {}),
            "postmark": (postmark("Bounce", "a@b.c"), basic("")), "sendgrid": ([sendgrid("open", "a@b.c")], {}),
        }  # fmt: skip
        assert [call(server.address[1], name, b"scanner") for name in calls] == [403] * 4
        assert shell.findings(status=None)["webhooks"] == ("ok", "none has been called lately")
        assert [call(server.address[1], name, *given) for name, given in calls.items()] == [403] * 4
    finally:
        server.stop()
    health, said = shell.findings(status=1)["webhooks"]
    assert health == "failed"
    for name in ("SES_TOPICS", "MAILGUN_SIGNING_KEY", "SENDGRID_PUBLIC_KEY", "POSTMARK_LOGIN"):
        assert f"DUEPOST_{name} is not set" in said
    assert AMAZON.asked == [] or set(AMAZON.asked) <= {CERTIFICATE, webhooks.CONFIRMATION}


def test_what_is_refused_beside_what_is_taken_is_a_warning(hooks: Hooks) -> None:
    shell = Shell(hooks.harness.application.url)
    assert hooks.mailgun(mailgun({"event": "opened"})) == 200
    assert shell.findings(status=None)["webhooks"] == ("ok", "calls of mailgun are taken")
    assert hooks.mailgun(mailgun({}, key="another-key-012345")) == 403
    health, said = shell.findings(status=None)["webhooks"]
    assert (health, said.partition(";")[0]) == ("warning", "a call of mailgun was refused: the signature is wrong")


def test_what_the_page_has_to_copy_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    for name, value in re.findall(r"\b(DUEPOST_[A-Z_]+)=([^\s`]+)", page):
        monkeypatch.setenv(name, value.replace("user:password", "postmark:0123456789abcdef"))
    assert {each.name for each in providers_of(Settings())} == {"ses", "mailgun", "postmark"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SES_TOPICS", "ours"), ("SES_TOPICS", "arn:aws:sqs:eu-west-1:123456789012:x"),
        ("MAILGUN_SIGNING_KEY", "short"), ("SENDGRID_PUBLIC_KEY", "-----BEGIN PUBLIC KEY-----"),
        ("POSTMARK_LOGIN", "nobody"), ("POSTMARK_LOGIN", "a:short"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"DUEPOST_{name}", value)
    settings.cache_clear()
    with pytest.raises(BadSettings, match=rf"^DUEPOST_{name}: must be") as error:
        settings()
    assert value not in str(error.value)
    settings.cache_clear()
