"""One grammar of addresses: what SQL takes the worker can send, and what the worker would refuse SQL refuses."""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import psycopg2
import pytest
from dramatiq_pg.schema import generate_init_sql
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.content.addresses import Mailbox, UndeliverableAddress, ascii_address, ascii_domain, parse_sender
from models.database.connections import Database
from models.database.migrate import migrate
from models.letters import DOMAIN_LETTERS, LOWER_CASE
from tests.postgres import Connection, PostgresServer

CORPUS = json.loads((Path(__file__).parent.parent / "corpus" / "addresses.json").read_text(encoding="utf-8"))

TURKISH = ["LOCALE 'tr_TR.UTF-8'", "LOCALE_PROVIDER icu ICU_LOCALE 'tr' LOCALE 'C.UTF-8'"]

Ask = Callable[[str, Sequence[str]], list[object]]


@pytest.fixture(scope="module")
def connection(each_server: PostgresServer) -> Iterator[Connection]:
    with each_server.fresh_database() as url:
        connection = psycopg2.connect(url)
        connection.autocommit = True
        yield connection
        connection.close()


@pytest.fixture
def ask(connection: Connection) -> Ask:
    """Asks an expression of `text` for each of some texts."""

    def ask(expression: str, texts: Sequence[str]) -> list[object]:
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {expression} FROM unnest(%s::text[]) WITH ORDINALITY AS each (text, place) ORDER BY place",
                (list(texts),),
            )
            return [row[0] for row in cursor.fetchall()]

    return ask


def different(texts: Sequence[str], sql: Sequence[object], worker: Sequence[object]) -> list[tuple[object, ...]]:
    return [
        (ascii(text), first, second) for text, first, second in zip(texts, sql, worker, strict=True) if first != second
    ]


def takes_address(text: str) -> bool:
    """Whether the worker does; one beyond ASCII is taken when it is scheduled."""
    try:
        ascii_address(text)
    except UndeliverableAddress as error:
        return "must be ASCII" in str(error)
    return True


def takes_sender(text: str) -> bool:
    try:
        return isinstance(parse_sender(text), Mailbox)
    except ValueError:
        return False


def test_sql_judges_the_corpus_as_it_is_written(ask: Ask) -> None:
    taken, refused = [*CORPUS["sendable"], *CORPUS["beyond_ascii"]], CORPUS["refused"]
    assert different(taken, ask("duepost.is_address(text)", taken), [True] * len(taken)) == []
    assert different(refused, ask("duepost.is_address(text)", refused), [False] * len(refused)) == []
    senders, no_senders = [*CORPUS["senders"]], CORPUS["refused_senders"]
    error = "duepost.mailbox_error('sender', text) IS NULL"
    assert different(senders, ask(error, senders), [True] * len(senders)) == []
    assert different(no_senders, ask(error, no_senders), [False] * len(no_senders)) == []


def test_every_spelling_of_a_mailbox_has_its_key(ask: Ask) -> None:
    for spellings in CORPUS["spellings"]:
        assert len(set(ask("duepost.mailbox_key(duepost.mailbox_address(text))", spellings))) == 1, spellings
    for spellings in CORPUS["apart"]:
        assert len(set(ask("duepost.mailbox_key(text)", spellings))) == len(spellings), spellings


def test_each_character_is_judged_alike_in_a_domain(ask: Ask) -> None:
    blocks = (range(1, 0x3100), range(0xA000, 0xAC00), range(0xF900, 0x10000), range(0x10000, 0x11000))
    codes = chain.from_iterable(blocks)
    domains = [f"a{chr(code)}a.example" for code in codes if not 0xD800 <= code < 0xE000]
    assert different(domains, ask("duepost.ascii_domain(text)", domains), [*map(ascii_domain, domains)]) == []


def test_lower_case_is_the_same_on_both_sides(ask: Ask) -> None:
    letters = [chr(code) for code in LOWER_CASE]
    assert ask("duepost.lower_case(text)", letters) == [letter.translate(LOWER_CASE) for letter in letters]


LETTER = st.sampled_from(range(len(DOMAIN_LETTERS))).flatmap(
    lambda place: st.integers(DOMAIN_LETTERS[place][0], DOMAIN_LETTERS[place][1] - 1).map(chr)
)
DOMAIN = st.one_of(
    st.text(LETTER | st.sampled_from("aZ9-.lßİıẞς\u0301\u00b7\u05d0\u0661\u3002"), min_size=1, max_size=70),
    st.text("abcdefghijklmnopqrstuvwxyz0123456789-", max_size=12).map(lambda text: f"xn--{text}.example"),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10),
    st.lists(st.text("aü", min_size=1, max_size=66), min_size=1, max_size=6).map(".".join),
)
LOCAL_PART = st.text(st.sampled_from('aZ9.!#+-_"@ é()中\u200b\xa0\t<'), max_size=70)
ADDRESS = st.one_of(
    st.tuples(LOCAL_PART | st.just("ann"), DOMAIN | st.just("x.example")).map("@".join),
    st.sampled_from([*CORPUS["sendable"], *CORPUS["refused"]]),
)
NAME = st.lists(
    st.sampled_from(
        ["Ann", '"A, B"', '"', "\\", "<", ">", " ", "\xa0", "(c)", "=?utf-8?q?x?=", "@", "Ünal", "\x85", '"<x>"']
    )
).map("".join)
SENDER = st.one_of(ADDRESS, st.tuples(NAME, ADDRESS, NAME).map(lambda parts: "{}<{}>{}".format(*parts)))

many = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(st.lists(ADDRESS, min_size=20, max_size=60))
def test_an_address_is_judged_alike_by_sql_and_worker(ask: Ask, addresses: list[str]) -> None:
    assert different(addresses, ask("duepost.is_address(text)", addresses), [*map(takes_address, addresses)]) == []


@many
@given(st.lists(DOMAIN, min_size=20, max_size=60))
def test_a_domain_is_written_alike_by_sql_and_worker(ask: Ask, domains: list[str]) -> None:
    assert different(domains, ask("duepost.ascii_domain(text)", domains), [*map(ascii_domain, domains)]) == []


@many
@given(st.lists(SENDER, min_size=20, max_size=60))
def test_a_sender_is_judged_alike_by_sql_and_worker(ask: Ask, senders: list[str]) -> None:
    error = "duepost.mailbox_error('sender', text) IS NULL"
    assert different(senders, ask(error, senders), [*map(takes_sender, senders)]) == []


@many
@given(st.lists(ADDRESS, min_size=20, max_size=60))
def test_the_key_is_that_of_what_goes_into_the_envelope(ask: Ask, addresses: list[str]) -> None:
    sendable = [address for address in addresses if takes_address(address) and address.partition("@")[0].isascii()]
    keys = ask("duepost.mailbox_key(text)", sendable)
    assert keys == [ascii_address(address).lower() for address in sendable]
    assert keys == ask("duepost.mailbox_key(upper(text))", [*map(ascii_address, sendable)])


@many
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=400))
def test_any_text_has_a_key(ask: Ask, text: str) -> None:
    [key] = ask("duepost.mailbox_key(text)", [text])
    assert ask("duepost.mailbox_key(text)", [str(key)]) == [key]


@pytest.fixture(params=TURKISH)
def turkish(each_server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A database where the lower case of I is another letter."""
    name = f"turkish_{uuid.uuid4().hex[:12]}"
    try:
        each_server.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' {request.param}")
    except psycopg2.Error as error:
        pytest.skip(f"this machine has no Turkish locale for it: {error}")
    database = Database(each_server.url(name))
    list(migrate(database, queue_schema=generate_init_sql()))
    connection = psycopg2.connect(each_server.url(name))
    yield connection
    connection.close()
    database.close()
    each_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_turkish_locale_changes_nothing(turkish: Connection) -> None:
    with turkish.cursor() as cursor:
        cursor.execute("SELECT lower('I')")
        assert cursor.fetchone() == ("ı",)
        cursor.execute(
            "SELECT duepost.schedule_email('k', address => 'IRIS@ISTANBUL.example', subject => 's', body_text => 'b')"
        )
        cursor.execute("SELECT receipt FROM duepost.clear_scheduled_emails_to('iris@istanbul.example')")
        assert cursor.fetchall() == [("cleared",)]
        for header in ("MIME-VERSION", "REPLY-TO", "DKIM-SIGNATURE"):
            cursor.execute("SELECT duepost.headers_error(jsonb_build_object(%s::text, 'x'))", (header,))
            assert cursor.fetchone() == (f"headers: {header} is set by Duepost and cannot be given",)
        cursor.execute(
            "SELECT bool_and(duepost.is_address(a)) FROM unnest(%s::text[]) AS a", (list(CORPUS["sendable"]),)
        )
        assert cursor.fetchone() == (True,)
        cursor.execute("SELECT bool_or(duepost.is_address(a)) FROM unnest(%s::text[]) AS a", (CORPUS["refused"],))
        assert cursor.fetchone() == (False,)
