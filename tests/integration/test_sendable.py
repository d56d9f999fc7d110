"""What is accepted can be sent: whatever SQL takes, the worker makes a message of."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from email import message_from_bytes, policy
from pathlib import Path

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.content.addresses import Mailbox, UndeliverableAddress, ascii_address, parse_sender
from actors.content.mime import build_message
from actors.content.templates import Content
from tests.postgres import Connection, PostgresServer

CORPUS = json.loads((Path(__file__).parent.parent / "corpus" / "addresses.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def connection(server: PostgresServer) -> Iterator[Connection]:
    with server.fresh_database() as url:
        connection = psycopg2.connect(url)
        yield connection
        connection.close()


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=120)
HEADER_NAME = st.sampled_from(
    [
        "X-Note",
        "List-Unsubscribe",
        "List-Id",
        "References",
        "X-Message-ID",
        "Auto-Response",
        "From",
        "Content-Type",
        "Ü",
        "A:",
    ]
) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=80)
HEADER = st.one_of(
    LINE,
    st.text("a<>, \t=?@é", max_size=40),
    st.lists(st.integers(1, 1100).map(lambda size: f"<{'a' * size}>"), max_size=4).map(",".join),
    st.integers(900, 1100).map(lambda size: "y" * size),
)
MAILBOX = st.sampled_from([*CORPUS["senders"], *CORPUS["refused_senders"]]) | st.tuples(
    LINE, st.sampled_from([*CORPUS["sendable"], *CORPUS["refused"]])
).map(lambda parts: f"{parts[0]} <{parts[1]}>")
EMAIL = st.fixed_dictionaries(
    {
        "kind": st.just("k") | LINE,
        "address": st.sampled_from([*CORPUS["sendable"], *CORPUS["beyond_ascii"], *CORPUS["refused"][:20]]),
        "subject": LINE | TEXT,
        "body_text": TEXT | st.sampled_from([" ", "a" * 1200, "é" * 1200]),
    },
    optional={
        "body_html": TEXT,
        "key": LINE,
        "sender": MAILBOX,
        "reply_to": MAILBOX,
        "headers": st.dictionaries(HEADER_NAME, HEADER, max_size=3),
    },
)


def stored(connection: Connection, email: Mapping[str, object]) -> dict[str, object] | None:
    """The row of an email, or None where SQL refuses it by argument; nothing is left of either."""
    refusal = ""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT duepost.schedule_emails(%s::jsonb)", (json.dumps([email]),))
            [email_id] = cursor.fetchone() or ()
            cursor.execute("SELECT to_jsonb(e) FROM duepost.scheduled_email AS e WHERE e.id = %s", (email_id,))
            [row] = cursor.fetchone() or ()
            return dict(row)
    except psycopg2.errors.InvalidParameterValue as error:
        refusal = error.diag.message_primary or ""
    finally:
        connection.rollback()
    assert re.match(r"emails\[0\]: [a-z_]+: ", refusal)
    return None


def message_of(row: Mapping[str, object], name: str = "") -> bytes:
    """As the sender makes it."""
    return build_message(
        content=Content(str(row["subject"]), row["body_text"], row["body_html"]),  # type: ignore[arg-type]
        sender=parse_sender(str(row["sender"] or "noreply@example.com")),
        recipients=[Mailbox(name, ascii_address(str(row["address"])))],
        message_id=str(row["message_id_header"]),
        date=datetime.fromisoformat(str(row["date_header"])),
        reply_to=row["reply_to"],  # type: ignore[arg-type]
        headers=row["headers"] or {},  # type: ignore[arg-type]
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EMAIL, TEXT)
def test_of_whatever_is_scheduled_a_message_can_be_made(
    connection: Connection, email: Mapping[str, object], name: str
) -> None:
    row = stored(connection, email)
    if row is None:
        return
    with suppress(UndeliverableAddress):
        message = message_of(row, name)
        assert message.isascii()
        assert re.search(rb"\r(?!\n)|(?<!\r)\n|\0", message) is None
        assert max(map(len, message.split(b"\r\n"))) <= 998
        parsed = message_from_bytes(message, policy=policy.SMTP)
        assert [part.defects for part in parsed.walk()] == [[] for _ in parsed.walk()]
        return
    assert not str(email["address"]).partition("@")[0].isascii(), "nothing else is only known when it is sent"
