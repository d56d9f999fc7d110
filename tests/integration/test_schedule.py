"""schedule_email(): everything that can be checked is checked at once, in the caller's own transaction."""

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.content.addresses import Mailbox
from actors.content.mime import RESERVED, build_message
from actors.content.templates import Content
from tests.postgres import Connection
from tests.waiting import wait_until

PLAIN = {"kind": "welcome", "address": "ann@example.com", "subject": "Hello", "body_text": "World"}
TEMPLATED = {"kind": "welcome", "address": "ann@example.com", "template": "welcome"}

#: SQL types of the arguments that are not text.
TYPES = {
    "users": "text[]",
    "context": "jsonb",
    "headers": "jsonb",
    "scheduled_at": "timestamptz",
    "expires_at": "timestamptz",
}

Arguments = Mapping[str, object]


def schedule(connection: Connection, **arguments: object) -> int:
    named = ", ".join(f"{name} => %({name})s::{TYPES.get(name, 'text')}" for name in arguments)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT duepost.schedule_email({named})", arguments)
        return int((cursor.fetchone() or (0,))[0])


def one(connection: Connection, statement: str, *parameters: object) -> tuple[object, ...]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        row: tuple[object, ...] = (cursor.fetchone() or ()) if cursor.description else ()
        return row


def stored(connection: Connection, email_id: int, columns: str) -> tuple[object, ...]:
    return one(connection, f"SELECT {columns} FROM duepost.scheduled_email WHERE id = %s", email_id)


def counts(connection: Connection) -> tuple[object, ...]:
    """How many emails, users and keys there are."""
    return one(
        connection,
        "SELECT (SELECT count(*) FROM duepost.scheduled_email), (SELECT count(*) FROM duepost.scheduled_email_user),"
        " (SELECT count(*) FROM duepost.email_key)",
    )


def without(arguments: Arguments, *names: str, **more: object) -> dict[str, object]:
    return {**{name: value for name, value in arguments.items() if name not in names}, **more}


# Bad input -----------------------------------------------------------------------------------------------------------

BAD_ADDRESSES = [
    "nobody", "@example.com", "ann@", "ann@@example.com", "ann@b@example.com", "ann @example.com", "ann@exa mple.com",
    " ann@example.com", "ann@example.com ", ".ann@example.com", "ann.@example.com", "a..b@example.com",
    "ann@-example.com", "ann@example-.com", "ann@example..com", "ann@.com", "ann@example.com.", "ann@exam_ple.com",
    "ann@exam!ple.com", "ann@[127.0.0.1]", "Ann <ann@example.com", "<ann@example>.com>", '"ann"@example.com',
    "ann@example.com, bob@example.com", "ann@example.com;bob@example.com", "ann,bob@example.com", "a:b@example.com",
    "a(b)@example.com", "a[b@example.com", "a\\b@example.com", "ann@example.com>", "mailto:ann@example.com", "", " ",
    "ann\u00a0b@example.com", "ann@exa\u00a0mple.com", "ann@exa\u2028mple.com", "a\u3000nn@example.com",
    "ann@\u200bexample.com", "a\u200bnn@example.com", "ann@\ufeffexample.com", "ann@exa\u202emple.com",
]  # fmt: skip

BAD_MAILBOXES = [
    "", "nobody", "Ann", "Ann <nobody>", "Ann <>", "Ann ann@example.com", "Ann <ann@example.com", "ann@example.com>",
    "Ann <ann@example.com> b", "<<ann@example.com>>", "Ann <ann@example.com>, Bob <bob@example.com>",
    "ann@example.com, bob@example.com", "ann@exa mple.com", "Ann <jörg@example.com>", "jörg@example.com",
    "Ann <ann@example.com>" + " " * 1000,
]  # fmt: skip

BAD_TEMPLATES = [
    "", " ", "..", "../x", "/etc/passwd", "a//b", "a/../b", "a/..", "a/./b", "a b", "a\\b", "..\\x", ".hidden", "a/.b",
    "a/", "~root", "a%2e%2e", "a:b", "wëlcome", "-x",
]  # fmt: skip

BAD_CONTEXTS = ["[1]", '"text"', "1", "true", "null"]

BAD_HEADERS: list[object] = [
    None, [], "text", 1, {"X-A": 1}, {"X-A": None}, {"X-A": True}, {"X-A": ["b"]}, {"X-A": {"b": "c"}}, {"": "b"},
    {" X-A": "b"}, {"X A": "b"}, {"X:A": "b"}, {"X-A:": "b"}, {"Ü": "b"}, {"X\u2028A": "b"}, {"X-A": "b", "X B": "c"},
    {"From": "b"}, {"fROM": "b"}, {"Sender": "b"}, {"To": "b"}, {"CC": "b"}, {"bcc": "b"}, {"Reply-To": "b"},
    {"subject": "b"}, {"Date": "b"}, {"Message-ID": "b"}, {"Return-Path": "b"}, {"Received": "b"},
    {"Auto-Submitted": "no"}, {"MIME-Version": "2"}, {"Content-Type": "b"}, {"content-transfer-encoding": "b"},
    {"DKIM-Signature": "b"}, {"Resent-To": "b"},
]  # fmt: skip

#: In these an encoded word means nothing, and no line may be longer than 998 characters.
BAD_LISTS: list[object] = [
    {"List-Unsubscribe": "<https://example.com/u?" + "a" * 1000 + ">"},
    {"list-unsubscribe": "<mailto:u@example.com>, <https://example.com/u?" + "a" * 1000 + ">"},
    {"List-Unsubscribe": "<https://example.com/ü>"}, {"References": "<ü@example.com>"}, {"In-Reply-To": "ü"},
    {"X-Original-Message-ID": "<" + "a" * 990 + "@example.com>"},
    {"X-Links": "<https://example.com/" + "a" * 990 + ">"},
    {"X-Auto-Response-Suppress": "Älle"}, {"Feedback-ID": "é:1"}, {"List-Id": "Ünser Brief"},
    {"Precedence": "b" * 1000},
]  # fmt: skip

GOOD_LISTS: list[dict[str, str]] = [
    {"List-Unsubscribe": "<https://example.com/u?" + "a" * 900 + ">,<mailto:u@example.com>"},
    {"List-Unsubscribe": ", ".join(f"<https://example.com/{n}/{'a' * 300}>" for n in range(20))},
    {"References": "".join(f"<{n}{'b' * 150}@example.com>" for n in range(20))},
    {"References": " \t ".join(f"<{n}@example.com>" for n in range(200))},
    {"List-Id": "Ünser Brief für alle <brief.example.com>"}, {"List-Unsubscribe-Post": "List-Unsubscribe=One-Click"},
    {"X-Long": "y" * 1200}, {"X-Note": "Grüße " * 200}, {"X-Empty": ""}, {"List-Help": ""},
]  # fmt: skip

#: Where something that may not be in a line can hide; %s is its place.
LINES: list[tuple[str, Arguments]] = [
    ("address", without(PLAIN, address="an%sn@example.com")),
    ("address", without(PLAIN, address="ann@exa%smple.com")),
    ("address", without(PLAIN, address="ann@example.com%s")),
    ("users", without(PLAIN, "address", users=["ann", "b%sob"])),
    ("sender", without(PLAIN, sender="A%snn <ann@example.com>")),
    ("sender", without(PLAIN, sender="Ann <ann@example.com>%s")),
    ("reply_to", without(PLAIN, reply_to="A%snn <ann@example.com>")),
    ("reply_to", without(PLAIN, reply_to="ann@example.com%s")),
    ("subject", without(PLAIN, subject="Hello%sWorld")),
    ("subject", without(PLAIN, subject="Hello%s")),
    ("kind", without(PLAIN, kind="wel%scome")),
    ("kind", without(PLAIN, kind="welcome%s")),
    ("key", without(PLAIN, key="a%sb")),
    ("key", without(PLAIN, key="a%s")),
    ("template", without(TEMPLATED, template="wel%scome")),
    ("template", without(TEMPLATED, template="welcome%s")),
    ("headers", without(PLAIN, headers={"X-%sA": "b"})),
    ("headers", without(PLAIN, headers={"X-A%s": "b"})),
    ("headers", without(PLAIN, headers={"X-A": "b%sc"})),
    ("headers", without(PLAIN, headers={"X-A": "b%s"})),
]

#: Line ends, and what Unicode calls a control character.
NOT_IN_A_LINE = ["\r\n", "\n", "\r", "\x01", "\x0b", "\x1b", "\x7f", "\x85", "\x9b"]


def put(mark: str, arguments: Arguments) -> dict[str, object]:
    """The arguments with `mark` in place of %s; headers as JSON."""

    def filled(value: object) -> object:
        if isinstance(value, dict):
            return json.dumps({key.replace("%s", mark): text.replace("%s", mark) for key, text in value.items()})
        if isinstance(value, list):
            return [text.replace("%s", mark) for text in value]
        return str(value).replace("%s", mark)

    return {name: filled(value) for name, value in arguments.items()}


BLANK = ["", " ", " \n ", "\r\n\t", "\u00a0", "\u3000", "\u2003 ", "\ufeff", "\u200b"]

BAD: list[tuple[str, Arguments]] = [
    *[("address", without(PLAIN, address=address)) for address in BAD_ADDRESSES],
    ("address", without(PLAIN, "address")),
    ("address", without(PLAIN, users=["ann"])),
    ("users", without(PLAIN, "address", users=[])),
    ("users", without(PLAIN, "address", users=["ann", None])),
    ("users", without(PLAIN, "address", users=["ann", ""])),
    ("kind", without(PLAIN, kind="")),
    ("kind", without(PLAIN, kind=None)),
    ("key", without(PLAIN, key="")),
    *[("sender", without(PLAIN, sender=mailbox)) for mailbox in BAD_MAILBOXES],
    *[("reply_to", without(PLAIN, reply_to=mailbox)) for mailbox in BAD_MAILBOXES],
    ("template", without(PLAIN, "subject", "body_text")),
    ("template", without(PLAIN, "subject")),
    ("template", without(PLAIN, template="welcome")),
    ("template", without(TEMPLATED, subject="Hello")),
    ("template", without(TEMPLATED, body_text="World")),
    ("template", without(TEMPLATED, body_html="World")),
    *[("template", without(TEMPLATED, template=name)) for name in BAD_TEMPLATES],
    *[("context", without(TEMPLATED, context=context)) for context in BAD_CONTEXTS],
    ("context", without(PLAIN, context="{}")),
    *[("subject", without(PLAIN, subject=subject)) for subject in ("", "   ", "\t", " \t ", "\u00a0")],
    ("body_text", without(PLAIN, "body_text")),
    ("body_text", without(PLAIN, body_text="")),
    ("body_text", without(PLAIN, "body_text", body_html="")),
    *[("body_text", without(PLAIN, body_text=blank, body_html=blank)) for blank in BLANK],
    *[("subject", without(PLAIN, subject=blank)) for blank in BLANK if not {*blank} & {*"\r\n\t"}],
    *[
        ("scheduled_at", without(PLAIN, scheduled_at=moment))
        for moment in ("infinity", "-infinity", "0044-03-15 BC", "1969-12-31T23:59Z", "10000-01-01", "294276-12-31")
    ],
    *[
        ("expires_at", without(PLAIN, expires_at=moment))
        for moment in ("infinity", "-infinity", "0044-03-15 BC", "2000-01-01", "10000-01-01", "294276-12-31")
    ],
    ("expires_at", without(PLAIN, scheduled_at="2030-01-02T00:00Z", expires_at="2030-01-01T23:59:59.999999Z")),
    ("expires_at", without(PLAIN, scheduled_at="2030-01-02T00:00Z", expires_at="2030-01-02T00:00Z")),
    *[("headers", without(PLAIN, headers=json.dumps(headers))) for headers in [*BAD_HEADERS, *BAD_LISTS]],
    *[(argument, put(mark, arguments)) for argument, arguments in LINES for mark in NOT_IN_A_LINE],
    *[(argument, put("\t", line)) for argument, line in LINES if argument != "subject" and "X-A" not in str(line)],
]


@pytest.mark.parametrize(("argument", "arguments"), BAD, ids=[f"{argument}-{n}" for n, (argument, _) in enumerate(BAD)])
def test_a_bad_argument_is_named_and_nothing_is_stored(
    application: Connection, argument: str, arguments: Arguments
) -> None:
    one(application, "SAVEPOINT before")
    with pytest.raises(psycopg2.Error) as caught:
        schedule(application, **arguments)
    one(application, "ROLLBACK TO before")
    assert (caught.value.pgcode, (caught.value.diag.message_primary or "").partition(":")[0]) == ("22023", argument)
    assert counts(application) == (0, 0, 0)


@pytest.mark.parametrize(
    ("argument", "arguments"), LINES, ids=[f"{argument}-{n}" for n, (argument, _) in enumerate(LINES)]
)
def test_nul_is_refused_by_the_driver_or_the_server_and_nothing_is_stored(
    application: Connection, argument: str, arguments: Arguments
) -> None:
    one(application, "SAVEPOINT before")
    with pytest.raises((ValueError, psycopg2.DataError)):
        schedule(application, **put("\x00", arguments))
    one(application, "ROLLBACK TO before")
    assert counts(application) == (0, 0, 0)


def nested(size: int) -> str:
    """A context whose JSON has this many bytes."""
    return json.dumps({"a": "x" * (size - len('{"a": ""}'))})


def many_headers(size: int) -> str:
    """Headers whose JSON has this many bytes."""
    headers = {f"X-{n}": "x" * 8192 for n in range(7)}
    return json.dumps({**headers, "X-7": "x" * (size - len(json.dumps({**headers, "X-7": ""})))})


#: Argument, what fills it up, and how much of that is the most.
LIMITS: list[tuple[str, Callable[[int], Arguments], int]] = [
    ("address", lambda size: without(PLAIN, address="a" * size + "@example.com"), 64),
    ("address", lambda size: without(PLAIN, address="ann@" + "a" * size + ".com"), 63),
    ("address", lambda size: without(PLAIN, address="a" * 64 + "@" + ("b." * 127)[: size - 66] + "c"), 254),
    ("users", lambda size: without(PLAIN, "address", users=["u" * size]), 255),
    ("users", lambda size: without(PLAIN, "address", users=[str(n) for n in range(size)]), 1000),
    ("kind", lambda size: without(PLAIN, kind="k" * size), 100),
    ("kind", lambda size: without(PLAIN, kind="ü" * (size // 2) + "k" * (size % 2)), 100),
    ("key", lambda size: without(PLAIN, key="k" * size), 512),
    ("template", lambda size: without(TEMPLATED, template="t" * size), 200),
    ("context", lambda size: without(TEMPLATED, context=nested(size)), 256 * 1024),
    ("subject", lambda size: without(PLAIN, subject="s" * size), 4096),
    ("body_text", lambda size: without(PLAIN, body_text="b" * size), 1024 * 1024),
    ("body_text", lambda size: without(PLAIN, body_text="ü" * (size // 2) + "b" * (size % 2)), 1024 * 1024),
    ("body_html", lambda size: without(PLAIN, body_html="b" * size), 1024 * 1024),
    ("headers", lambda size: without(PLAIN, headers=json.dumps({"X" * size: "b"})), 76),
    ("headers", lambda size: without(PLAIN, headers=json.dumps({"X-A": "b" * size})), 8192),
    ("headers", lambda size: without(PLAIN, headers=many_headers(size)), 64 * 1024),
]
each_limit = pytest.mark.parametrize(
    ("argument", "fill", "most"), LIMITS, ids=[f"{argument}-{n}" for n, (argument, _, _) in enumerate(LIMITS)]
)


@each_limit
def test_what_is_at_the_limit_is_taken(
    application: Connection, argument: str, fill: Callable[[int], Arguments], most: int
) -> None:
    schedule(application, **fill(most))
    assert counts(application)[0] == 1


@each_limit
def test_what_is_one_beyond_the_limit_is_refused(
    application: Connection, argument: str, fill: Callable[[int], Arguments], most: int
) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=f"^{argument}: "):
        schedule(application, **fill(most + 1))


def texts(base: Arguments, **more: object) -> Arguments:
    return without(base, *(("address",) if "users" in more else ()), **more)


#: Every place for text; %s is the whole of it.
TEXTS: list[tuple[str, Arguments]] = [
    *[(name, texts(PLAIN, **{name: "%s"})) for name in ("kind", "address", "subject", "body_text", "body_html", "key")],
    *[(name, texts(PLAIN, **{name: "%s"})) for name in ("sender", "reply_to")],
    ("template", texts(TEMPLATED, template="%s")),
    ("users", texts(PLAIN, users=["%s"])),
    ("header name", texts(PLAIN, headers={"%s": "b"})),
    ("header value", texts(PLAIN, headers={"X-A": "%s"})),
]
NEARLY_AN_ADDRESS = st.text(alphabet='ab@.-+<>()[]"\\,;: \t\r\n\x85\u00a0\u2028\u200bé中', max_size=12).flatmap(
    lambda text: st.sampled_from([text, f"{text}@example.com", f"ann@{text}.com", f"{text}<ann@example.com>"])
)


@pytest.mark.parametrize(("argument", "arguments"), TEXTS, ids=[argument for argument, _ in TEXTS])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=80), NEARLY_AN_ADDRESS))
def test_any_text_is_stored_as_one_email_or_refused(
    application: Connection, argument: str, arguments: Arguments, text: str
) -> None:
    application.rollback()
    try:
        email_id = schedule(application, **put(text, arguments))
    except (ValueError, psycopg2.DataError) as error:
        if getattr(error, "pgcode", None) != "22023":
            assert "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text)
    else:
        assert counts(application)[0] == 1
        (message_id,) = stored(application, email_id, "message_id_header")
        assert re.fullmatch(r"<[0-9a-f-]{36}@[A-Za-z0-9.-]+>", str(message_id))


# Good input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        PLAIN,
        TEMPLATED,
        without(PLAIN, "body_text", body_html="<p>World</p>"),
        without(PLAIN, body_text="", body_html="<p>World</p>"),
        without(PLAIN, body_text="any \x01 line\r\nand more\n"),
        without(PLAIN, subject="Grüße\taus 東京"),
        without(PLAIN, address="ünï@exämple.de"),
        without(PLAIN, address="用户@例子.广告"),
        without(PLAIN, address="a+b/c=d!#$%&'*-_{|}~^?`@sub.example.co"),
        without(PLAIN, address="root@localhost"),
        without(PLAIN, address="1@2.example"),
        without(TEMPLATED, template="account/welcome.v2"),
        without(TEMPLATED, context='{"n": [1, {"deep": null}]}'),
        without(PLAIN, sender="Ann Example <ann@example.com>", reply_to="help@example.com"),
        without(PLAIN, sender='"Ann, B." <ann@exämple.de>', reply_to="Jörg <help@example.com> "),
        without(PLAIN, headers='{"List-Unsubscribe": "<https://example.com/u>", "X-Campaign": "Grüße"}'),
        without(PLAIN, headers='{"X-Empty": "", "X-Tab": "a\\tb", "In-Reply-To": "<1@example.com>"}'),
        without(PLAIN, headers="{}"),
        without(PLAIN, "address", users=["1", "ünï", "with space"]),
        without(PLAIN, scheduled_at="1970-01-01T00:00Z"),
        without(PLAIN, scheduled_at="9999-12-30T00:00Z"),
        without(PLAIN, kind="Any kind of email"),
    ],
    ids=range(22),
)
def test_good_arguments_are_stored(application: Connection, arguments: Arguments) -> None:
    email_id = schedule(application, **arguments)
    assert stored(application, email_id, "state, attempts, unknowns, due_at = scheduled_at") == (
        "scheduled", 0, 0, True,
    )  # fmt: skip


def test_named_arguments_in_plain_sql_are_all_it_takes(application: Connection) -> None:
    (email_id,) = one(
        application,
        "SELECT duepost.schedule_email(users => ARRAY['ann'], kind => 'welcome', template => 'welcome',"
        " context => '{\"a\": 1}', scheduled_at => '2030-01-01T00:00Z')",
    )
    assert isinstance(email_id, int)
    assert stored(application, email_id, "kind, template, context, address") == ("welcome", "welcome", {"a": 1}, None)


@pytest.mark.parametrize(("given", "context"), [(PLAIN, None), (TEMPLATED, {})], ids=["subject", "template"])
def test_what_is_not_given_has_its_default(application: Connection, given: Arguments, context: object) -> None:
    email_id = schedule(application, **given)
    columns = "scheduled_at = now(), expires_at, sender, reply_to, headers, key, body_html, context"
    assert stored(application, email_id, columns) == (True, None, None, None, None, None, None, context)


def test_an_explicit_null_for_the_time_means_now(application: Connection) -> None:
    email_id = schedule(application, **PLAIN, scheduled_at=None)
    assert stored(application, email_id, "scheduled_at = now()") == (True,)


def test_users_are_taken_once(application: Connection) -> None:
    schedule(application, **without(PLAIN, "address", users=["b", "a", "b"]))
    found = one(application, "SELECT array_agg(user_id ORDER BY user_id) FROM duepost.scheduled_email_user")
    assert found == (["a", "b"],)


@pytest.mark.parametrize("blank", BLANK)
def test_a_blank_body_is_none(application: Connection, blank: str) -> None:
    only_html = schedule(application, **without(PLAIN, body_text=blank, body_html="<p>Hi"))
    only_text = schedule(application, **without(PLAIN, body_text="Hi", body_html=blank))
    assert stored(application, only_html, "body_text, body_html") == (None, "<p>Hi")
    assert stored(application, only_text, "body_text, body_html") == ("Hi", None)
    assert schedule(application, **without(TEMPLATED, body_text=blank))


@pytest.mark.parametrize("headers", GOOD_LISTS, ids=range(len(GOOD_LISTS)))
def test_headers_that_can_be_sent_are_taken(application: Connection, headers: dict[str, str]) -> None:
    schedule(application, **without(PLAIN, headers=json.dumps(headers)))
    message = build_message(
        content=Content("s", "b", None),
        sender=Mailbox("", "a@example.com"),
        recipients=[Mailbox("", "a@example.com")],
        message_id="<1@example.com>",
        date=datetime.now(UTC),
        reply_to=None,
        headers=headers,
    )
    assert max(map(len, message.split(b"\r\n"))) <= 998
    [(name, value)] = headers.items()
    assert name.startswith("X-") or not value.isascii() or b"=?" not in message


def test_reserved_headers_are_the_same_for_sql_and_worker(application: Connection) -> None:
    for name in RESERVED | {"content-type", "resent-to"}:
        for spelling in (name, name.upper(), name.title()):
            fault = one(application, "SELECT duepost.headers_error(jsonb_build_object(%s::text, 'x'))", spelling)
            assert "is set by Duepost" in str(fault), spelling


def test_a_user_needs_no_row_when_the_email_is_scheduled(application: Connection) -> None:
    assert one(application, "SELECT count(*) FROM duepost.recipient") == (0,)
    assert schedule(application, **without(PLAIN, "address", users=["nobody yet"]))


def test_each_email_has_a_message_id_of_its_own(application: Connection) -> None:
    for _ in range(20):
        schedule(application, **PLAIN)
    assert one(application, "SELECT count(DISTINCT message_id_header) FROM duepost.scheduled_email") == (20,)


@pytest.mark.parametrize(
    ("sender", "domain"),
    [
        ("ann@mail.example.org", "mail.example.org"),
        ("Ann <ann@mail.example.org>", "mail.example.org"),
        ("Ann <ann@mail.example.org>  ", "mail.example.org"),
        ('"Ann @ home" <ann@mail.example.org>', "mail.example.org"),
        ("Jörg <jorg@mail.example.org>", "mail.example.org"),
        ("Jörg <jorg@exämple.org>", "workers.example"),
        (None, "workers.example"),
    ],
    ids=[
        "bare",
        "named",
        "padded",
        "an @ in the name",
        "a name that is not ASCII",
        "a domain that is not ASCII",
        "none",
    ],
)
def test_a_message_id_is_of_the_senders_domain_or_else_of_the_workers(
    application: Connection, sender: str | None, domain: str
) -> None:
    one(application, "UPDATE duepost.control SET message_id_domain = 'workers.example'")
    (message_id,) = stored(application, schedule(application, **PLAIN, sender=sender), "message_id_header")
    assert re.fullmatch(rf"<[0-9a-f-]{{36}}@{re.escape(domain)}>", str(message_id))


@pytest.mark.parametrize(
    ("scheduled_at", "date"),
    [("2030-01-01T00:00Z", "'2030-01-01T00:00Z'"), ("2001-01-01T00:00Z", "now()"), (None, "now()")],
    ids=["later", "past", "now"],
)
def test_the_date_is_that_of_the_schedule_but_never_past(
    application: Connection, scheduled_at: str | None, date: str
) -> None:
    email_id = schedule(application, **PLAIN, scheduled_at=scheduled_at)
    assert stored(application, email_id, f"date_header = {date}") == (True,)


def test_a_kind_can_set_the_expiry(application: Connection) -> None:
    one(application, "INSERT INTO duepost.email_kind (kind, expire_after) VALUES ('digest', '1 day')")
    email_id = schedule(application, **without(PLAIN, kind="digest", scheduled_at="2030-01-01T00:00Z"))
    assert stored(application, email_id, "expires_at = '2030-01-02T00:00Z'") == (True,)


@pytest.mark.parametrize("expire_after", ["0 s", "-1 day", "1000 years 1 day", "170000000 years"])
def test_a_kinds_expiry_that_no_email_could_have_is_refused(application: Connection, expire_after: str) -> None:
    one(application, "SAVEPOINT before")
    with pytest.raises(psycopg2.errors.CheckViolation, match="expire_after_is"):
        one(application, "INSERT INTO duepost.email_kind (kind, expire_after) VALUES ('digest', %s)", expire_after)
    one(application, "ROLLBACK TO before")


def test_an_expiry_that_is_given_goes_before_the_kinds(application: Connection) -> None:
    one(application, "INSERT INTO duepost.email_kind (kind, expire_after) VALUES ('digest', '1 day')")
    email_id = schedule(application, **without(PLAIN, kind="digest", expires_at="2040-01-01T00:00Z"))
    assert stored(application, email_id, "expires_at = '2040-01-01T00:00Z'") == (True,)


@pytest.mark.parametrize("policy", [None, "NULL"], ids=["no row", "no expiry"])
def test_a_kind_without_a_policy_never_expires(application: Connection, policy: str | None) -> None:
    if policy:
        one(application, f"INSERT INTO duepost.email_kind (kind, expire_after) VALUES ('welcome', {policy})")
    assert stored(application, schedule(application, **PLAIN), "expires_at") == (None,)


# Inside the caller's transaction -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_rollback_leaves_nothing(application: Connection, level: str) -> None:
    one(application, f"SET TRANSACTION ISOLATION LEVEL {level}")
    schedule(application, **without(PLAIN, "address", key="k", users=["ann"]))
    assert counts(application) == (1, 1, 1)
    application.rollback()
    assert counts(application) == (0, 0, 0)


def test_others_see_it_when_it_is_committed(connect: Callable[[], Connection]) -> None:
    application, other = connect(), connect()
    schedule(application, **without(PLAIN, "address", key="k", users=["ann"]))
    assert counts(other) == (0, 0, 0)
    application.commit()
    other.rollback()
    assert counts(other) == (1, 1, 1)


def test_a_savepoint_takes_back_one_email(application: Connection) -> None:
    schedule(application, **PLAIN, key="kept")
    one(application, "SAVEPOINT before")
    schedule(application, **PLAIN, key="taken back")
    one(application, "ROLLBACK TO before")
    assert one(application, "SELECT array_agg(key) FROM duepost.scheduled_email") == (["kept"],)
    assert counts(application) == (1, 0, 1)


# Keys ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        PLAIN,
        without(TEMPLATED, context='{"b": 1, "a": 2}', headers='{"X-B": "1", "X-A": "2"}'),
        without(PLAIN, "address", users=["b", "a"]),
    ],
    ids=["plain", "JSON", "users"],
)
def test_the_same_key_and_content_are_the_same_email(application: Connection, arguments: Arguments) -> None:
    first = schedule(application, **arguments, key="k")
    assert schedule(application, **arguments, key="k") == first
    assert one(application, "SELECT count(*) FROM duepost.scheduled_email") == (1,)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (without(PLAIN, "address", users=["b", "a"]), without(PLAIN, "address", users=["a", "b", "a"])),
        (without(TEMPLATED, context='{"b": 1, "a": 2}'), without(TEMPLATED, context='{"a":2,"b":1}')),
        (without(PLAIN, scheduled_at="2030-01-01T00:00Z"), without(PLAIN, scheduled_at="2031-01-01T00:00Z")),
        (PLAIN, without(PLAIN, expires_at="2040-01-01T00:00Z")),
    ],
    ids=["the order of users", "the order of a context", "the time", "the expiry"],
)
def test_it_is_no_content(application: Connection, first: Arguments, second: Arguments) -> None:
    assert schedule(application, **first, key="k") == schedule(application, **second, key="k")


def test_no_context_and_an_empty_one_are_the_same_content(application: Connection) -> None:
    first = schedule(application, **without(TEMPLATED, key="k"))
    assert schedule(application, **without(TEMPLATED, key="k", context="{}")) == first


def test_the_second_call_does_not_move_the_email(application: Connection) -> None:
    email_id = schedule(application, **PLAIN, key="k", scheduled_at="2030-01-01T00:00Z")
    schedule(application, **PLAIN, key="k", scheduled_at="2031-01-01T00:00Z")
    assert stored(application, email_id, "due_at = '2030-01-01T00:00Z'") == (True,)


def test_a_key_is_kept_when_its_email_is_finished(application: Connection) -> None:
    first = schedule(application, **PLAIN, key="k")
    assert one(application, "SELECT duepost.clear_scheduled_email(%s)", first) == ("cleared",)
    assert schedule(application, **PLAIN, key="k") == first
    assert counts(application) == (0, 0, 1)


OTHER: list[Arguments] = [
    without(PLAIN, kind="other"),
    without(PLAIN, address="bob@example.com"),
    without(PLAIN, address="Ann@example.com"),
    without(PLAIN, "address", users=["ann"]),
    without(PLAIN, subject="Other"),
    without(PLAIN, body_text="Other"),
    without(PLAIN, body_html="World"),
    without(PLAIN, "body_text", body_html="World"),
    without(PLAIN, sender="b@example.com"),
    without(PLAIN, reply_to="b@example.com"),
    without(PLAIN, headers='{"X-A": "b"}'),
    TEMPLATED,
]


@pytest.mark.parametrize("other", OTHER, ids=range(len(OTHER)))
def test_the_same_key_with_another_content_is_refused_and_a_savepoint_saves_the_rest(
    application: Connection, other: Arguments
) -> None:
    schedule(application, **PLAIN, key="k")
    one(application, "SAVEPOINT before")
    with pytest.raises(psycopg2.errors.UniqueViolation, match="key: already used for another content"):
        schedule(application, **other, key="k")
    one(application, "ROLLBACK TO before")
    schedule(application, **other, key="another")
    assert counts(application)[0] == 2


def raced(first: Connection, second: Connection, ending: str, arguments: Arguments = PLAIN) -> tuple[int, int]:
    """Two sessions use one key; the second is seen waiting before the first ends. Gives both ids."""
    first_id = schedule(first, **PLAIN, key="k")
    pid = second.get_backend_pid()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(schedule, second, **arguments, key="k")
        wait_until(lambda: one(first, "SELECT pg_blocking_pids(%s)", pid) != ([],), what="the second to wait")
        getattr(first, ending)()
        return first_id, waiting.result(timeout=30)


def test_of_two_that_race_on_a_key_both_get_the_same_email(connect: Callable[[], Connection]) -> None:
    first, second = connect(), connect()
    first_id, second_id = raced(first, second, "commit")
    second.commit()
    assert first_id == second_id
    assert counts(second) == (1, 0, 1)


def test_of_two_that_race_on_a_key_the_second_gets_its_own_where_the_first_rolls_back(
    connect: Callable[[], Connection],
) -> None:
    first, second = connect(), connect()
    first_id, second_id = raced(first, second, "rollback")
    second.commit()
    assert first_id != second_id
    assert one(second, "SELECT array_agg(id) FROM duepost.scheduled_email") == ([second_id],)


def test_of_two_that_race_on_a_key_with_other_contents_the_second_is_refused(connect: Callable[[], Connection]) -> None:
    with pytest.raises(psycopg2.errors.UniqueViolation, match="key: already used"):
        raced(connect(), connect(), "commit", without(PLAIN, subject="Other"))


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_of_two_that_race_on_a_key_in_a_snapshot_the_second_is_told_to_start_again(
    connect: Callable[[], Connection], level: str
) -> None:
    first, second = connect(), connect()
    one(second, f"SET TRANSACTION ISOLATION LEVEL {level}")
    with pytest.raises(psycopg2.errors.SerializationFailure):
        raced(first, second, "commit")
    second.rollback()
    assert counts(second) == (1, 0, 1)


def test_of_many_that_race_on_a_key_one_email_comes(connect: Callable[[], Connection]) -> None:
    def race(connection: Connection) -> int:
        with connection:
            return schedule(connection, **PLAIN, key="k")

    connections = [connect() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(race, connections))) == 1
    assert counts(connect()) == (1, 0, 1)
