"""What each format writes, and what it reads in an answer."""

import base64
import hashlib
import hmac
import json
import time
from urllib.parse import parse_qs

import pytest
from standardwebhooks import Webhook as Judge

from actors.channels.http.request import Answer, Request
from actors.content.formats.format import Endpoint, Message, Unsendable
from actors.content.formats.registry import FORMATS
from actors.content.formats.webhook import secret_key
from actors.ruling import Limit, Pace, Phase, Ruling, Scope
from models.words import Verdict
from tests.unit.http.answers import answer

PAYLOAD = '{"b":1,"a":"ü","n":12345678901234567890.12,"s":"</script>\\u2028"}'
MESSAGE = Message(7, "msg_x1-7", PAYLOAD)
SENT = (Verdict.SENT, Scope.RECIPIENT)
OURS = (Verdict.RETRY, Scope.RELAY)
LATER = (Verdict.RETRY, Scope.MESSAGE)
REFUSED = (Verdict.UNDELIVERABLE, Scope.MESSAGE)
UNKNOWN = (Verdict.UNKNOWN, Scope.MESSAGE)


def secret_of(size: int = 32, first: int = 1) -> str:
    return "whsec_" + base64.b64encode(bytes(range(first, first + size))).decode()


def endpoint(form: str, url: str = "https://h.example/T0/SECRET?k=QS", *keys: str, **options: str) -> Endpoint:
    return Endpoint("orders", form, url, keys, options)


def made(target: Endpoint, message: Message = MESSAGE, now: float | None = None) -> Request:
    return FORMATS[target.format].request(target, message, time.time() if now is None else now)


def unsendable(target: Endpoint, payload: str = PAYLOAD) -> Ruling:
    with pytest.raises(Unsendable) as caught:
        made(target, Message(7, "msg_x1-7", payload))
    assert str(caught.value) == caught.value.ruling.reply
    return caught.value.ruling


def meaning(form: str, said: Answer) -> tuple[Verdict, Scope]:
    ruling = FORMATS[form].judge(said)
    return ruling.verdict, ruling.scope


def test_what_may_have_arrived_is_resent_where_receivers_deduplicate_and_held_where_they_do_not() -> None:
    assert {name: form.resends_unknown for name, form in FORMATS.items()} == {
        "webhook": True,
        "matrix": True,
        "slack": False,
        "mattermost": False,
        "zulip": False,
    }


def test_a_repr_shows_no_url_no_secret_and_no_payload() -> None:
    shown = repr(endpoint("webhook", "https://h.example/SECRET", "whsec_SECRET", user="SECRET"))
    shown += repr(Message(1, "msg_1", "SECRET")) + repr(made(endpoint("slack", "https://h.example/SECRET")))
    assert "SECRET" not in shown


# Webhook


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_webhook_is_signed_over_the_exact_bytes(size: int) -> None:
    secret = secret_of(size)
    request = made(endpoint("webhook", "https://h.example/a?b", secret))
    headers = dict(request.headers)
    assert (request.method, request.target_path) == ("POST", "/a?b")
    assert request.body == PAYLOAD.encode()
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == MESSAGE.wire_id
    Judge(secret).verify(request.body, headers)
    key = base64.b64decode(secret.removeprefix("whsec_"))
    by_hand = hmac.new(
        key, f"{MESSAGE.wire_id}.{headers['webhook-timestamp']}.".encode() + request.body, hashlib.sha256
    )
    assert headers["webhook-signature"] == "v1," + base64.b64encode(by_hand.digest()).decode()
    assert not any(c in value for value in headers.values() for c in "\r\n")


def test_each_attempt_has_a_new_time_and_signature_and_the_same_id_and_body() -> None:
    target = endpoint("webhook", "https://h.example/", secret_of())
    first, second = (made(target, now=now) for now in (1_700_000_000.9, 1_700_000_600.0))
    assert first.body == second.body
    one, two = dict(first.headers), dict(second.headers)
    assert one["webhook-id"] == two["webhook-id"]
    assert (one["webhook-timestamp"], two["webhook-timestamp"]) == ("1700000000", "1700000600")
    assert one["webhook-signature"] != two["webhook-signature"]


def test_while_a_secret_is_rotated_both_sign_the_current_one_first() -> None:
    old, new = secret_of(first=1), secret_of(first=2)
    request = made(endpoint("webhook", "https://h.example/", new, old))
    headers = dict(request.headers)
    for secret in (old, new):
        Judge(secret).verify(request.body, headers)
    first = headers["webhook-signature"].split(" ")[0]
    Judge(new).verify(request.body, {**headers, "webhook-signature": first})


@pytest.mark.parametrize(
    "secret",
    [
        *(
            "",
            "whsec_",
            "whsec_!!!",
            "plain",
            "whsec_" + base64.b64encode(b"x").decode(),
            secret_of(23),
            secret_of(65),
        ),
        "whsec_" + base64.urlsafe_b64encode(b"\xfb\xff" * 16).decode(),
        *(secret_of().removeprefix("whsec_"), secret_of() + "\n", "whsec_ " + secret_of()[6:], secret_of()[:-1]),
    ],
)
def test_a_secret_that_is_none_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match=r"^secret must be whsec_ and base64 of 24 to 64 bytes$"):
        secret_key(secret)
    ruling = unsendable(endpoint("webhook", "https://h.example/", secret))
    assert (ruling.verdict, ruling.scope, ruling.phase) == (*OURS, Phase.ENDPOINT)
    assert "orders" in ruling.reply
    assert not secret.strip().removeprefix("whsec_") or secret not in ruling.reply


def test_a_webhook_without_a_secret_waits() -> None:
    assert unsendable(endpoint("webhook")).reply == "endpoint orders: no secret is set"


@pytest.mark.parametrize("form", FORMATS)
def test_a_url_that_is_none_is_the_endpoints_fault(form: str) -> None:
    ruling = unsendable(endpoint(form, "http://127.0.0.1/SECRET", secret_of(), user="u@h", room="!r"))
    assert (ruling.verdict, ruling.scope) == OURS
    assert "orders: url leads to a loopback address" in ruling.reply
    assert "SECRET" not in ruling.reply


# Chats


@pytest.mark.parametrize("form", ["slack", "mattermost"])
def test_an_incoming_webhook_gets_the_payload_as_it_is(form: str) -> None:
    request = made(endpoint(form))
    assert request == Request("POST", "/T0/SECRET?k=QS", (("content-type", "application/json"),), PAYLOAD.encode())


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (answer(200, "ok"), SENT),
        (answer(200, "ok\n"), SENT),
        (answer(200, "<html>log in</html>"), OURS),
        (answer(200, ""), OURS),
        (answer(204), OURS),
        (answer(200, "o", is_whole=False), UNKNOWN),
        (answer(302), OURS),
        (answer(400, "invalid_blocks"), REFUSED),
        (answer(400, "no_text"), REFUSED),
        (answer(403, "invalid_token"), OURS),
        (answer(403, "action_prohibited"), OURS),
        (answer(404, "no_service"), OURS),
        (answer(404, "channel_not_found"), OURS),
        (answer(410, "channel_is_archived"), REFUSED),
        (answer(429, '{"retry_after":1}'), LATER),
        (answer(500, "rollup_error"), LATER),
    ],
)
def test_slack_s_answers(said: Answer, expected: tuple[Verdict, Scope]) -> None:
    assert meaning("slack", said) == expected


def test_slack_s_410_says_that_the_endpoint_is_gone_and_a_refusal_says_why() -> None:
    assert FORMATS["slack"].judge(answer(410, "channel_is_archived")).is_gone
    assert FORMATS["slack"].judge(answer(400, "invalid_blocks")).reply == "invalid_blocks"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (answer(429, '{"retry_after":3}'), 3),
        (answer(429, '{"retry_after":3}', ("retry-after", "5")), 5),
        (answer(429, '{"retry_after":1e9}'), 86_400),
        *(
            (answer(429, f'{{"retry_after":{value}}}'), None)
            for value in ("NaN", "Infinity", "1e400", "-1", '"3"', "true", "null", "[]", "9" * 5_000, "9" * 400)
        ),
        (answer(429, "[" * 100_000), None),
        (answer(429, b"\xff\xfe"), None),
    ],
)
def test_slack_s_429_pauses_the_endpoint(said: Answer, seconds: float | None) -> None:
    ruling = FORMATS["slack"].judge(said)
    assert (ruling.retry_after, ruling.limits) == (seconds, Limit.RATE)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (answer(200, "ok"), SENT),
        (answer(200, "<html>Mattermost</html>"), OURS),
        (answer(400, '{"id":"web.incoming_webhook.invalid.app_error","message":"Invalid webhook"}'), OURS),
        (answer(501, '{"id":"web.incoming_webhook.disabled.app_error"}'), OURS),
        (answer(400, '{"id":"web.incoming_webhook.text.app_error","message":"No text specified"}'), REFUSED),
        (answer(400, "[1]"), REFUSED),
        (answer(429), LATER),
        (answer(500, '{"id":{}}'), LATER),
    ],
)
def test_mattermost_s_answers(said: Answer, expected: tuple[Verdict, Scope]) -> None:
    assert meaning("mattermost", said) == expected


def zulip(**options: str) -> Endpoint:
    return endpoint("zulip", "https://chat.example", "KEY", **{"user": "bot@chat.example", **options})


@pytest.mark.parametrize(
    ("payload", "options", "form"),
    [
        (
            {"type": "stream", "to": "general", "topic": "x&y", "content": "ü = 1"},
            {},
            {"type": ["stream"], "to": ["general"], "topic": ["x&y"], "content": ["ü = 1"]},
        ),
        (
            {"content": "c"},
            {"to": "9", "topic": "t"},
            {"type": ["stream"], "to": ["9"], "topic": ["t"], "content": ["c"]},
        ),
        ({"to": 9, "content": "c"}, {}, {"type": ["stream"], "to": ["9"], "content": ["c"]}),
        (
            {"type": "private", "to": ["ann@chat.example", "bob@chat.example"], "content": "c"},
            {"topic": "t"},
            {"type": ["private"], "to": ['["ann@chat.example", "bob@chat.example"]'], "content": ["c"]},
        ),
        (
            {"type": "direct", "to": "ann@chat.example", "content": "c"},
            {},
            {"type": ["direct"], "to": ['["ann@chat.example"]'], "content": ["c"]},
        ),
        ({"type": "direct", "to": [7], "content": "c"}, {}, {"type": ["direct"], "to": ["[7]"], "content": ["c"]}),
    ],
)
def test_zulip_gets_a_form(payload: dict[str, object], options: dict[str, str], form: dict[str, list[str]]) -> None:
    request = made(zulip(**options), Message(7, "msg_7", json.dumps(payload)))
    assert (request.method, request.target_path) == ("POST", "/api/v1/messages")
    assert parse_qs(request.body.decode("ascii"), strict_parsing=True) == form
    headers = dict(request.headers)
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert base64.b64decode(headers["authorization"].removeprefix("Basic ")) == b"bot@chat.example:KEY"


@pytest.mark.parametrize("path", ["", "/", "/api/v1/messages"])
def test_zulip_s_url_may_be_the_organization_s_or_the_api_s(path: str) -> None:
    target = endpoint("zulip", f"https://chat.example{path}", "KEY", user="u@h", to="general")
    assert made(target, Message(7, "msg_7", '{"content":"c"}')).target_path == "/api/v1/messages"


@pytest.mark.parametrize(
    "payload",
    [
        *("[]", '"x"', "1", "null", "{", '{"content":""}', '{"content":1,"to":"x"}', '{"to":"x"}', "[" * 100_000),
        *(
            '{"content":"c","to":"x","other":1}',
            '{"content":"c"}',
            '{"content":"c","to":[]}',
            '{"content":"c","to":{}}',
        ),
        *(
            '{"content":"c","to":true}',
            '{"content":"c","to":"x","type":1}',
            '{"content":"c","to":1e5000,"type":"direct"}',
        ),
    ],
)
def test_what_zulip_cannot_take_waits_for_somebody_to_edit_it(payload: str) -> None:
    ruling = unsendable(zulip(), payload)
    assert (ruling.verdict, ruling.scope, ruling.phase, ruling.pace) == (*LATER, Phase.RENDER, Pace.BROKEN)
    assert ruling.reply.startswith("payload must ")


@pytest.mark.parametrize(
    ("options", "keys", "said"),
    [
        ({}, ("KEY",), "its option user is not set"),
        ({"user": "a:b"}, ("KEY",), "its option user is not an email address"),
        ({"user": "u@h"}, (), "no secret is set"),
        ({"user": "u@h"}, ("K\nEY",), "its secret is not one line of printable ASCII"),
        ({"user": "u@h"}, ("KÜY",), "its secret is not one line of printable ASCII"),
    ],
)
def test_an_endpoint_that_lacks_something_keeps_its_messages(
    options: dict[str, str], keys: tuple[str, ...], said: str
) -> None:
    ruling = unsendable(endpoint("zulip", "https://chat.example", *keys, **options), '{"content":"c","to":"x"}')
    assert (ruling.verdict, ruling.scope, ruling.reply) == (*OURS, f"endpoint orders: {said}")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (answer(200, '{"result":"success","msg":"","id":42}'), SENT),
        (answer(200, '{"result":"error","code":"BAD_REQUEST"}'), REFUSED),
        (answer(200, '{"result":"error","code":"USER_DEACTIVATED"}'), OURS),
        (answer(200, "{}"), REFUSED),
        (answer(200, "<html>"), OURS),
        (answer(200, '{"result":"succ', is_whole=False), UNKNOWN),
        (answer(400, '{"result":"error","code":"BAD_REQUEST","msg":"Invalid"}'), REFUSED),
        (answer(400, '{"result":"error","code":"STREAM_DOES_NOT_EXIST"}'), REFUSED),
        (answer(400, '{"result":"error","code":"INVALID_API_KEY"}'), OURS),
        (answer(401, '{"result":"error","code":"UNAUTHORIZED"}'), OURS),
        (answer(403, "<html>"), OURS),
        (answer(429, '{"result":"error","code":"RATE_LIMIT_HIT","retry-after":28.7}'), LATER),
        (answer(502, "<html>"), LATER),
    ],
)
def test_zulip_s_answers(said: Answer, expected: tuple[Verdict, Scope]) -> None:
    assert meaning("zulip", said) == expected


def test_zulip_s_429_pauses_the_endpoint() -> None:
    said = answer(429, '{"result":"error","code":"RATE_LIMIT_HIT","retry-after":28.7}')
    assert FORMATS["zulip"].judge(said).retry_after == 28.7


def test_matrix_gets_a_put_under_the_message_s_own_transaction() -> None:
    target = endpoint("matrix", "https://m.example/base/", "TOKEN", room="!a/b:example.org")
    first, second = (made(target, Message(7, "msg/7 ü", '{"msgtype":"m.text","body":"b"}'), now) for now in (1.0, 2.0))
    assert first == second
    assert first.method == "PUT"
    assert first.target_path == (
        "/base/_matrix/client/v3/rooms/%21a%2Fb%3Aexample.org/send/m.room.message/msg%2F7%20%C3%BC"
    )
    assert dict(first.headers)["authorization"] == "Bearer TOKEN"
    assert first.body == b'{"msgtype":"m.text","body":"b"}'


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (answer(200, '{"event_id":"$x"}'), SENT),
        (answer(200, "{}"), UNKNOWN),
        (answer(200, '{"event_id":1}'), UNKNOWN),
        (answer(200, "<html>"), UNKNOWN),
        (answer(200, '{"event', is_whole=False), UNKNOWN),
        (answer(400, '{"errcode":"M_BAD_JSON"}'), REFUSED),
        (answer(401, '{"errcode":"M_UNKNOWN_TOKEN"}'), OURS),
        (answer(403, '{"errcode":"M_FORBIDDEN"}'), OURS),
        (answer(413, '{"errcode":"M_TOO_LARGE"}'), REFUSED),
        (answer(429, '{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":2000}'), LATER),
    ],
)
def test_matrix_s_answers(said: Answer, expected: tuple[Verdict, Scope]) -> None:
    assert meaning("matrix", said) == expected


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (answer(429, '{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":2500}'), 2.5),
        (answer(429, '{"retry_after_ms":2500}', ("retry-after", "7")), 7),
        (answer(429, '{"retry_after_ms":' + "9" * 400 + "}"), None),
        (answer(429, "{}"), None),
    ],
)
def test_matrix_s_429_pauses_the_endpoint(said: Answer, seconds: float | None) -> None:
    assert FORMATS["matrix"].judge(said).retry_after == seconds


def test_of_an_error_its_code_is_shown_and_not_its_text() -> None:
    said = answer(403, '{"errcode":"M_FORBIDDEN","error":"SECRET"}', reason="Forbidden")
    assert FORMATS["matrix"].judge(said).reply == "M_FORBIDDEN"
    assert FORMATS["zulip"].judge(answer(400, '{"code":"BAD_REQUEST","msg":"SECRET"}')).reply == "BAD_REQUEST"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "body", [b"", b"\x00", b"\xff" * 100, b"[" * 100_000, b'{"a":' * 50_000, b"9" * 10_000, b"NaN"]
)
@pytest.mark.parametrize("status", [200, 299, 301, 400, 410, 429, 500, 999])
def test_no_answer_makes_a_format_raise(form: str, body: bytes, status: int) -> None:
    assert FORMATS[form].judge(answer(status, body)).code == status
