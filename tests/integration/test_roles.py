"""Who may do what, and what a hostile client cannot."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from dramatiq_pg.schema import generate_init_sql

from models.database.connections import Database
from models.database.migrate import migrate
from models.database.statements import statements
from tests.postgres import Connection, PostgresServer, run

MODELS = Path(__file__).parents[2] / "models"
ROLES = ("duepost_client", "duepost_worker", "duepost_operator", "duepost_viewer")
FUNCTIONS = [
    "add_to_batch",
    "attachment",
    "attachment_at",
    "clear_scheduled",
    "clear_scheduled_email",
    "clear_scheduled_emails",
    "clear_scheduled_emails_to",
    "clear_scheduled_message",
    "clear_scheduled_messages",
    "edit_message",
    "remove_from_batch",
    "reschedule_email",
    "reschedule_message",
    "schedule_email",
    "schedule_emails",
    "schedule_message",
    "schedule_messages",
    "status",
]

#: What a worker may call.
WORKERS_FUNCTIONS = [
    *FUNCTIONS,
    "pin_files",
    "after_quiet_hours",
    "act_on_items",
    "begin_action",
    "change_subscription",
    "end_action",
    "is_unsubscribable",
    "note_bounce",
    "use_webhook_token",
    "tell_webhook",
    "import_suppressions",
    "suppress",
    "suppress_dead",
    "suppressed_kinds",
    "unsuppress",
    "is_kind_paused",
    "is_stopped",
    "park_paused",
    "remove_rate",
    "request_probe",
    "set_pause",
    "set_rate",
    "unpark",
    "ask_guard",
    "batch_date",
    "call_message_function",
    "check_conditions_v1",
    "claim_due_emails_v1",
    "claim_due_emails_v2",
    "claim_emails_v2",
    "claim_emails_v3",
    "claim_messages_v1",
    "claim_messages_v2",
    "claimed_directly_until",
    "close_batch",
    "conclude_emails",
    "context_of",
    "domain_in_ascii",
    "drop_beyond_cap",
    "had_of_kind",
    "drop_attachments",
    "due_now",
    "due_now_v2",
    "follow_priority",
    "lock_line",
    "lock_lines",
    "oldest_due",
    "pending_lines",
    "set_priority",
    "email_extras",
    "endpoints",
    "enqueue_items",
    "enqueue_items_v2",
    "finish",
    "forget_content",
    "forget_undeliverable",
    "has_claim",
    "is_in_hand",
    "is_route_blocked",
    "is_too_late",
    "is_way_of",
    "keep_content",
    "keep_undeliverable",
    "lock_due",
    "lock_kept",
    "lock_undeliverable",
    "lower_case",
    "mailbox_key",
    "mailbox_key_beyond_ascii",
    "maintain_partitions",
    "mapped_domain",
    "message_content",
    "move_to_ledger",
    "give_turns",
    "learn_rate",
    "limits_in_json",
    "limits_of",
    "lock_destinations",
    "other_connections",
    "places_in_use",
    "take_places",
    "pause_route",
    "pending_routes",
    "punycode",
    "recipient_row_v2",
    "recipient_rows",
    "recipient_rows_v2",
    "refuse_connection",
    "refused_alike",
    "register_route",
    "reopen_email",
    "report_connections",
    "slow_route",
    "take_connection",
    "tell_outcomes",
    "trimmed",
    "users_to_go",
    "usual_on_unknown",
    "ways",
    "is_zone",
    "moment_for",
    "moment_at",
    "move_item",
    "move_on",
    "quiet_until",
    "quiet_users",
    "spread",
    "zone_of",
]

#: What an operator may call.
OPERATIONS = [
    "act_on_items",
    "begin_action",
    "disable_endpoint",
    "end_action",
    "endpoints",
    "follow_priority",
    "forget_some",
    "import_suppressions",
    "remove_endpoint",
    "remove_rate",
    "request_probe",
    "set_endpoint",
    "set_pause",
    "set_priority",
    "set_rate",
    "status",
    "suppress",
    "unpark",
    "unsuppress",
]

SCHEDULE = "SELECT duepost.schedule_email(kind => 'k', users => ARRAY['ann'], subject => 's', body_text => 'b')"
OBJECTS = "('duepost'::regnamespace, 'dramatiq'::regnamespace)"


#: Logins that are members of one role each, and nothing else.
CLIENT, WORKER, OPERATOR = "login_client", "login_worker", "login_operator"


@pytest.fixture(scope="module")
def shared_url(each_server: PostgresServer) -> Iterator[str]:
    """One database for all that is rolled back, on a server with the logins."""
    with each_server.fresh_database() as url:
        each_server.execute(f"CREATE ROLE {CLIENT} LOGIN IN ROLE duepost_client")
        each_server.execute(f"CREATE ROLE {WORKER} LOGIN IN ROLE duepost_worker")
        each_server.execute(f"CREATE ROLE {OPERATOR} LOGIN IN ROLE duepost_operator")
        yield url
    each_server.execute(f"DROP ROLE {OPERATOR}")
    each_server.execute(f"DROP ROLE {CLIENT}")
    each_server.execute(f"DROP ROLE {WORKER}")


def login(url: str, user: str) -> Connection:
    return psycopg2.connect(url.replace("postgres@", f"{user}@", 1))


@pytest.fixture
def admin(shared_url: str) -> Iterator[Connection]:
    with closing(login(shared_url, "postgres")) as connection:
        yield connection


@pytest.fixture
def client(shared_url: str) -> Iterator[Connection]:
    with closing(login(shared_url, CLIENT)) as connection:
        yield connection


@pytest.fixture
def worker(shared_url: str) -> Iterator[Connection]:
    with closing(login(shared_url, WORKER)) as connection:
        yield connection


@pytest.fixture
def session(shared_url: str, each_url: str) -> Iterator[Callable[[str], Connection]]:
    """Logs users in to a database of the test's own; each statement is committed."""
    with ExitStack() as stack:

        def session(user: str) -> Connection:
            connection = stack.enter_context(closing(login(each_url, user)))
            connection.autocommit = True
            return connection

        yield session


def executable(connection: Connection, role: str) -> list[str]:
    """The functions that a role may execute, by name."""
    found = run(
        connection,
        "SELECT proname FROM pg_proc WHERE pronamespace = 'duepost'::regnamespace"
        f" AND has_function_privilege('{role}', oid, 'EXECUTE') ORDER BY proname",
    )
    return [str(name) for (name,) in found]


# Clients -------------------------------------------------------------------------------------------------------------


def test_a_client_may_call_the_functions(client: Connection) -> None:
    [(email_id,)] = run(client, SCHEDULE)
    assert run(client, f"SELECT duepost.reschedule_email({email_id}, now() + interval '1 h')") == [("rescheduled",)]
    assert run(client, "SELECT receipt FROM duepost.clear_scheduled_emails(ARRAY['ann'])") == [("cleared",)]
    assert run(client, "SELECT receipt FROM duepost.clear_scheduled_emails_to('ann@example.com')") == []
    assert run(client, f"SELECT duepost.clear_scheduled_email({email_id})") == [("too_late",)]


def test_a_client_may_execute_those_functions_and_no_other(admin: Connection) -> None:
    assert executable(admin, "duepost_client") == FUNCTIONS


def test_a_client_may_touch_no_table_and_no_sequence(admin: Connection) -> None:
    assert run(
        admin,
        f"SELECT oid::regclass FROM pg_class WHERE relnamespace IN {OBJECTS} AND CASE WHEN relkind = 'S'"
        " THEN has_sequence_privilege('duepost_client', oid, 'USAGE, SELECT, UPDATE')"
        " WHEN relkind IN ('r', 'p', 'v')"
        " THEN has_table_privilege('duepost_client', oid,"
        " 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')"
        " OR has_any_column_privilege('duepost_client', oid, 'SELECT, INSERT, UPDATE, REFERENCES') END",
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM duepost.scheduled_email",
        "SELECT * FROM duepost.scheduled_email_user",
        "SELECT * FROM duepost.recipient",
        "SELECT * FROM duepost.email_key",
        "SELECT * FROM duepost.batch_item",
        "DELETE FROM duepost.batch",
        "SELECT duepost.close_batch(1)",
        "SELECT * FROM duepost.endpoint",
        "SELECT * FROM duepost.message",
        "SELECT * FROM duepost.scheduled_message",
        "SELECT * FROM duepost.endpoints()",
        "SELECT duepost.set_endpoint('e', 'slack', 'https://example.com/')",
        "SELECT duepost.disable_endpoint('e')",
        "SELECT duepost.remove_endpoint('e')",
        "SELECT duepost.new_secret()",
        "SELECT duepost.clear_users(ARRAY['ann'], NULL, NULL)",
        "SELECT duepost.store_messages('{}', false)",
        "INSERT INTO duepost.email_kind (kind) VALUES ('k')",
        "UPDATE duepost.control SET paused = true",
        "DELETE FROM duepost.delivery",
        "SELECT nextval('duepost.claim_number')",
        "SELECT * FROM dramatiq.queue",
        "CREATE TABLE duepost.mine (a int)",
        "CREATE FUNCTION duepost.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz'",
        "SELECT duepost.finish(1, 'sent', NULL)",
        "SELECT duepost.maintain_partitions('1 day')",
        "SELECT duepost.line_error('a', 'b', 1)",
        "SELECT duepost.users_error(ARRAY['ann'])",
        "SELECT duepost.store_emails('{}', false)",
        "SELECT duepost.is_address('ann@example.com')",
        "SELECT duepost.raise_bad_argument('a', 'b')",
        "ALTER FUNCTION duepost.schedule_email RESET search_path",
        "SET ROLE duepost_worker",
    ],
)
def test_what_a_client_may_not_do_is_refused(client: Connection, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(client, statement)


# Operators -----------------------------------------------------------------------------------------------------------


def test_an_operator_may_execute_those_functions_and_no_other(admin: Connection) -> None:
    assert executable(admin, "duepost_operator") == OPERATIONS


def test_an_operator_registers_endpoints_and_reads_no_secret(session: Callable[[str], Connection]) -> None:
    operator = session(OPERATOR)
    [(secret,)] = run(operator, "SELECT duepost.set_endpoint('e', 'webhook', 'https://example.com/in/TOKEN?k=QS')")
    run(session(CLIENT), "SELECT duepost.schedule_message('k', 'e', '{}')")
    [shown] = run(operator, "SELECT e::text FROM duepost.endpoints() AS e")
    assert "https://example.com," in str(shown)
    assert not any(word in str(shown) for word in ("TOKEN", "QS", str(secret)))
    run(operator, "SELECT duepost.disable_endpoint('e', 'on holiday')")
    assert run(session(WORKER), "SELECT disabled_because FROM duepost.endpoint") == [("on holiday",)]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM duepost.endpoint",
        "SELECT secret FROM duepost.endpoint",
        "UPDATE duepost.endpoint SET allow_private = true",
        "SELECT * FROM duepost.scheduled_message",
        "SELECT duepost.schedule_message('k', 'e', '{}')",
        "SELECT duepost.registered_function('a.b')",
        "SET ROLE duepost_worker",
    ],
)
def test_what_an_operator_may_not_do_is_refused(session: Callable[[str], Connection], statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(session(OPERATOR), statement)


# Workers -------------------------------------------------------------------------------------------------------------


class Nulls(dict[str, object]):
    """A value for every parameter: NULL."""

    def __missing__(self, name: str) -> None:
        return None


@pytest.mark.parametrize(
    "module",
    [
        "attachments",
        "circuits",
        "control",
        "emails",
        "finding",
        "messages",
        "operations",
        "reports",
        "routes",
        "watching",
        "workers",
    ],
)
def test_a_worker_has_the_rights_that_each_statement_needs(worker: Connection, module: str) -> None:
    run(worker, "SET jit = off")
    for name, statement in statements(str(MODELS / f"{module}.py")).items():
        with worker.cursor() as cursor:
            planned = cursor.mogrify(re.sub(r"= ANY \(%\((\w+)\)s", r"= ANY (%(\1)s::text[]", statement), Nulls())
            try:
                cursor.execute(b"EXPLAIN " + planned)
            except psycopg2.errors.InsufficientPrivilege as error:
                pytest.fail(f"{module}.{name}: {error}")


def test_a_worker_has_the_rights_that_enqueueing_needs(session: Callable[[str], Connection]) -> None:
    worker = session(WORKER)
    schedule = (
        "SELECT duepost.schedule_email(kind => 'k', address => 'a@example.com', subject => 's', body_text => 'b'{})"
    )
    ids = [run(worker, schedule.format(extra))[0][0] for extra in ("", ", expires_at => now() + interval '0.1 s'")]
    run(session("postgres"), "UPDATE duepost.scheduled_email SET expires_at = now() WHERE expires_at IS NOT NULL")
    enqueued = run(
        worker,
        f"SELECT duepost.enqueue_items(ARRAY{ids}::bigint[], ARRAY[gen_random_uuid(), gen_random_uuid()],"
        " ARRAY['{}', '{}']::jsonb[], 'q', ARRAY[0, 0], false, 'default')",
    )
    assert len(enqueued) == 1, "one message"
    assert run(worker, "SELECT outcome FROM duepost.delivery") == [("expired",)]


def test_a_worker_can_maintain_the_partitions_that_it_does_not_own(worker: Connection) -> None:
    run(worker, "SELECT duepost.maintain_partitions('1 year')")


def test_a_worker_may_execute_no_more_than_it_needs(admin: Connection) -> None:
    assert executable(admin, "duepost_worker") == sorted(WORKERS_FUNCTIONS)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE duepost.delivery",
        "ALTER TABLE duepost.item ADD COLUMN a int",
        "CREATE INDEX ON duepost.item (kind)",
        "CREATE TABLE duepost.mine (a int)",
        "CREATE TABLE dramatiq.mine (a int)",
        "DROP FUNCTION duepost.raise_bad_argument",
        "TRUNCATE duepost.item",
        "INSERT INTO duepost.scheduled_email (kind) VALUES ('k')",
        "UPDATE duepost.scheduled_email SET state = 'scheduled'",
        "DELETE FROM duepost.scheduled_email",
        "INSERT INTO duepost.item (id, kind, scheduled_at, due_at) VALUES (1, 'k', now(), now())",
        "INSERT INTO duepost.email (item_id) VALUES (1)",
        "INSERT INTO duepost.undeliverable_email SELECT",
        "DELETE FROM duepost.undeliverable_recipient",
        "UPDATE duepost.retention SET days = 1",
        "UPDATE duepost.suppression SET address = 'eve@example.com'",
        "INSERT INTO duepost.suppression (address, kind) VALUES ('eve@example.com', 'digest')",
        "DELETE FROM duepost.suppression",
        "DELETE FROM duepost.delivery",
        "UPDATE duepost.delivery SET outcome = 'sent'",
        "DELETE FROM duepost.attempt",
        "SELECT * FROM duepost.email_key",
        "DELETE FROM duepost.email_key",
        "INSERT INTO duepost.batch (batch, email_id) VALUES ('b', 1)",
        "UPDATE duepost.batch_item SET item = '1'",
        "DELETE FROM duepost.batch_item",
        "UPDATE duepost.recipient SET address = 'eve@example.com'",
        "UPDATE duepost.email_kind SET on_unknown = 'hold'",
        "UPDATE duepost.kind SET route = 'marketing'",
        "UPDATE duepost.endpoint SET url = 'https://eve.example.com/'",
        "UPDATE duepost.endpoint SET secret = 'x'",
        "INSERT INTO duepost.endpoint (name, format, url) VALUES ('e', 'slack', 'https://eve.example.com/')",
        "DELETE FROM duepost.endpoint",
        "SELECT duepost.set_endpoint('e', 'slack', 'https://eve.example.com/')",
        "INSERT INTO duepost.message (item_id, endpoint, wire_id, payload) VALUES (1, 'e', 'm', '{}')",
        "INSERT INTO duepost.migration VALUES (99, 'x', 'x')",
        "SET ROLE duepost_client",
    ],
)
def test_what_a_worker_may_not_do_is_refused(worker: Connection, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(worker, statement)


def test_what_a_worker_schedules_is_checked_like_anybodys(worker: Connection) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^address: "):
        run(worker, "SELECT duepost.schedule_email(kind => 'k', address => 'x', subject => 's', body_text => 'b')")


def test_neither_role_owns_anything_or_can_log_in(admin: Connection) -> None:
    assert run(admin, "SELECT relname FROM pg_class WHERE relowner::regrole::text LIKE 'duepost_%'") == []
    assert run(admin, "SELECT proname FROM pg_proc WHERE proowner::regrole::text LIKE 'duepost_%'") == []
    assert run(admin, "SELECT nspname FROM pg_namespace WHERE nspowner::regrole::text LIKE 'duepost_%'") == []
    assert run(
        admin,
        "SELECT rolname FROM pg_roles WHERE rolname LIKE 'duepost_%'"
        " AND (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls)",
    ) == []  # fmt: skip


def test_everybody_else_may_do_nothing(admin: Connection) -> None:
    assert executable(admin, "public") == []
    assert run(admin, f"SELECT nspname FROM pg_namespace WHERE oid IN {OBJECTS}"
                      " AND has_schema_privilege('public', oid, 'USAGE, CREATE')") == []  # fmt: skip


# Hostile clients -----------------------------------------------------------------------------------------------------


def test_functions_that_act_as_the_owner_fix_their_search_path_and_their_backslashes(admin: Connection) -> None:
    fixed = "ARRAY['search_path=pg_catalog, pg_temp', 'standard_conforming_strings=on']"
    assert run(
        admin,
        "SELECT proname FROM pg_proc WHERE pronamespace = 'duepost'::regnamespace AND prosecdef"
        f" AND NOT coalesce(proconfig @> {fixed}, false)",
    ) == []  # fmt: skip


TRAP = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;"
TRAPS = f"""
    CREATE FUNCTION trap.now() RETURNS timestamptz {TRAP}
    CREATE FUNCTION trap.lower(text) RETURNS text {TRAP}
    CREATE FUNCTION trap.format(text, VARIADIC text[]) RETURNS text {TRAP}
    CREATE FUNCTION trap.isfinite(timestamptz) RETURNS boolean {TRAP}
    CREATE FUNCTION trap.nextval(text) RETURNS bigint {TRAP}
    CREATE FUNCTION trap.gen_random_uuid() RETURNS uuid {TRAP}
    CREATE FUNCTION trap.same(text, text) RETURNS boolean {TRAP}
    CREATE FUNCTION trap.less(timestamptz, timestamptz) RETURNS boolean {TRAP}
    CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.same);
    CREATE OPERATOR trap.~ (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.same);
    CREATE OPERATOR trap.!~ (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.same);
    CREATE OPERATOR trap.< (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = trap.less);
    CREATE OPERATOR trap.<= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = trap.less);
    CREATE DOMAIN trap.text AS pg_catalog.text CHECK (false);
    CREATE TABLE trap.control (message_id_domain pg_catalog.text);
    CREATE TABLE trap.scheduled_email (id int);
    CREATE TEMP TABLE scheduled_email (id int);
    CREATE TEMP TABLE scheduled_email_user (email_id int);
    CREATE TEMP TABLE recipient (user_id int);
    CREATE FUNCTION trap.jsonb_path_exists(jsonb, jsonpath) RETURNS boolean {TRAP}
    CREATE FUNCTION trap.octet_length(text) RETURNS integer {TRAP}
    CREATE FUNCTION trap.concat(VARIADIC text[]) RETURNS text {TRAP}
    CREATE TEMP TABLE endpoint (name text, format text, disabled_because text);
    CREATE TEMP TABLE message (item_id int);
    CREATE TEMP TABLE batch (batch int);
    CREATE TEMP TABLE batch_item (item int);
    CREATE FUNCTION trap.clock_timestamp() RETURNS timestamptz {TRAP}
    SET search_path = trap, pg_temp, pg_catalog, duepost;
"""


def test_a_clients_own_functions_operators_and_tables_do_not_stand_in_for_ours(
    session: Callable[[str], Connection],
) -> None:
    admin, client = session("postgres"), session(CLIENT)
    run(admin, f"CREATE SCHEMA trap AUTHORIZATION {CLIENT}")
    run(client, TRAPS)
    [(email_id,)] = run(
        client,
        "SELECT schedule_email(kind => 'k', users => ARRAY['ann', 'bob']::pg_catalog.text[], subject => 's',"
        " body_text => 'b', key => 'k', sender => 'a@example.com', headers => '{\"X-A\": \"b\"}',"
        " expires_at => '2040-01-01')",
    )
    assert run(client, f"SELECT reschedule_email({email_id}, '2030-01-01')") == [("rescheduled",)]
    assert run(client, "SELECT receipt FROM clear_scheduled_emails(ARRAY['ann']::pg_catalog.text[])") == [
        ("user_removed",)
    ]
    assert run(client, f"SELECT clear_scheduled_email({email_id})") == [("cleared",)]
    assert run(client, "SELECT * FROM clear_scheduled_emails_to('ann@example.com')") == []
    assert run(admin, "SELECT outcome FROM duepost.delivery") == [("cleared",)]
    batch = "kind => 'k', address => 'ann@example.com', template => 't', headers => '{\"X-A\": \"b\"}', wait => '1 h'"
    ids = [run(client, f"SELECT add_to_batch('b', '{n}', {batch}, item_key => '{n}')") for n in (1, 2)]
    assert ids[0] == ids[1]
    assert run(client, "SELECT remove_from_batch('b', '1'), remove_from_batch('b', '2')") == [("removed", "cleared")]
    run(admin, "SELECT duepost.set_endpoint('e', 'webhook', 'https://example.com/')")
    [(message_id,)] = run(
        client,
        "SELECT schedule_message('k', 'e', '{\"a\": 1}', users => ARRAY['ann']::pg_catalog.text[], key => 'l',"
        " expires_at => '2040-01-01')",
    )
    assert run(client, f"SELECT edit_message({message_id}, '[1]')") == [("edited",)]
    assert run(client, f"SELECT reschedule_message({message_id}, '2030-01-01')") == [("rescheduled",)]
    assert run(client, "SELECT id, state FROM status(key => 'l')") == [(message_id, "scheduled")]
    assert run(client, 'SELECT schedule_messages(\'[{"kind": "k", "endpoint": "e", "payload": [1.5e3]}]\')')


SETTINGS = [
    "standard_conforming_strings = off",
    "transform_null_equals = on",
    "quote_all_identifiers = on",
    "DateStyle = 'German'",
    "IntervalStyle = 'sql_standard'",
    "TimeZone = 'Pacific/Kiritimati'",
    "extra_float_digits = 0",
    "bytea_output = 'escape'",
    "plpgsql.extra_errors = 'all'",
]


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.partition(" ")[0] for setting in SETTINGS])
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("address", "ann bob@example.com"),
        ("address", "ann@exa mple.com"),
        ("address", "a,b@example.com"),
        ("sender", "Ann <ann@example.com>sss"),
        ("template", "../x"),
        ("subject", "a\\nb\nc"),
    ],
)
def test_a_clients_settings_loosen_no_check(client: Connection, setting: str, argument: str, value: str) -> None:
    run(client, f"SET escape_string_warning = off; SET {setting}")
    given = {"address": "ann@example.com", argument: value}
    if argument != "template":
        given = {"subject": "s", "body_text": "b", **given}
    named = ", ".join(f"{name} => %({name})s" for name in given)
    with client.cursor() as cursor, pytest.raises(psycopg2.errors.InvalidParameterValue, match=rf"^{argument}: "):
        cursor.execute(f"SELECT duepost.schedule_email(kind => 'k', {named})", given)


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.partition(" ")[0] for setting in SETTINGS])
def test_a_clients_settings_do_not_change_what_a_key_means(client: Connection, setting: str) -> None:
    schedule = (
        "SELECT duepost.schedule_email(kind => 'k', address => 'ann@example.com', template => 't', key => 'k',"
        ' context => \'{"n": 1.50, "t": "é"}\')'
    )
    before = run(client, schedule)
    run(client, f"SET {setting}")
    assert run(client, schedule) == before


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.partition(" ")[0] for setting in SETTINGS])
@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("batch", {"batch": "a\nb"}),
        ("item", {"item": '{"n": 1e309}'}),
        ("item_key", {"item_key": "a\tb"}),
        ("address", {"address": "ann@exa mple.com"}),
        ("context", {"context": '{"items": 1}'}),
        ("wait", {"wait": "-1 hour"}),
        ("longest_wait", {"longest_wait": "1 minute"}),
    ],
)
def test_a_clients_settings_loosen_no_check_of_a_batch(
    client: Connection, setting: str, argument: str, given: dict[str, object]
) -> None:
    run(client, f"SET escape_string_warning = off; SET {setting}")
    plain = {"batch": "b", "item": "1", "kind": "k", "address": "ann@example.com", "template": "t"}
    arguments = {**plain, **given}
    named = ", ".join(f"{name} => %({name})s" for name in arguments)
    with client.cursor() as cursor, pytest.raises(psycopg2.errors.InvalidParameterValue, match=rf"^{argument}: "):
        cursor.execute(f"SELECT duepost.add_to_batch({named})", arguments)


def test_a_worker_claims_what_a_client_has_gathered(session: Callable[[str], Connection]) -> None:
    batch = "kind => 'k', address => 'ann@example.com', template => 't', wait => '0'"
    [(email_id,)] = run(session(CLIENT), f"SELECT duepost.add_to_batch('b', '1', {batch})")
    worker = session(WORKER)
    claimed = "SELECT context FROM duepost.claim_emails_v2(ARRAY[%s]::bigint[], 1, 'default')"
    assert run(worker, claimed, email_id) == [('{"items": [1]}',)]
    run(worker, "SELECT duepost.finish(%s, 'sent', NULL)", email_id)
    assert run(session("postgres"), "SELECT FROM duepost.batch UNION ALL SELECT FROM duepost.batch_item") == []


# Roles that come and go ----------------------------------------------------------------------------------------------


@contextmanager
def roles_hidden(server: PostgresServer) -> Iterator[None]:
    """As if the roles had never been made: other databases of the server still need them."""
    for role in ROLES:
        server.execute(f"ALTER ROLE {role} RENAME TO hidden_{role}")
    try:
        yield
    finally:
        for role in ROLES:
            server.execute(f"ALTER ROLE hidden_{role} RENAME TO {role}")


@pytest.fixture
def plain_owner(each_server: PostgresServer, shared_url: str) -> Iterator[Database]:
    """A database whose owner may create no roles; not migrated yet."""
    each_server.execute("CREATE ROLE owner_without_createrole LOGIN")
    with each_server.fresh_database(migrated=False) as url:
        name = url.partition("@/")[2].partition("?")[0]
        each_server.execute(f"ALTER DATABASE {name} OWNER TO owner_without_createrole")
        database = Database(url.replace("postgres@", "owner_without_createrole@", 1))
        yield database
        database.close()
    each_server.execute("DROP ROLE owner_without_createrole")


def apply(database: Database) -> list[str]:
    return list(migrate(database, queue_schema=generate_init_sql()))


def test_an_owner_who_may_create_no_roles_migrates_without_them_and_nobody_gets_a_right(
    each_server: PostgresServer, plain_owner: Database
) -> None:
    with roles_hidden(each_server):
        assert apply(plain_owner)
        assert plain_owner.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'duepost_%'") == [(0,)]
        assert plain_owner.execute(SCHEDULE) == [(1,)]
    assert plain_owner.execute(f"SELECT nspname FROM pg_namespace WHERE oid IN {OBJECTS}"
                               " AND has_schema_privilege('duepost_client', oid, 'USAGE')") == []  # fmt: skip


def test_roles_that_come_later_get_their_rights_from_the_next_migrate(
    each_server: PostgresServer, plain_owner: Database
) -> None:
    with roles_hidden(each_server):
        apply(plain_owner)
    assert apply(plain_owner) == []
    made = {"duepost_client": FUNCTIONS, "duepost_worker": WORKERS_FUNCTIONS, "duepost_operator": OPERATIONS}
    for role, functions in made.items():
        assert plain_owner.execute(
            "SELECT count(*) FROM pg_proc WHERE pronamespace = 'duepost'::regnamespace"
            f" AND has_schema_privilege('{role}', pronamespace, 'USAGE')"
            f" AND has_function_privilege('{role}', oid, 'EXECUTE')"
        ) == [(len(functions),)]  # fmt: skip


# A team's own users --------------------------------------------------------------------------------------------------

VIEW = """
    CREATE TABLE public.app_user (id int, email text, full_name text, deleted boolean);
    INSERT INTO public.app_user VALUES (7, 'seven@example.com', 'Seven', false);
    DROP TABLE duepost.recipient;
    CREATE VIEW duepost.recipient AS
    SELECT id::text AS user_id, email AS address, full_name AS name, 'en'::text AS locale, 'UTC'::text AS timezone,
           NOT deleted AS active
    FROM public.app_user
"""


def test_with_a_view_of_a_teams_own_users_scheduling_and_clearing_go_on(session: Callable[[str], Connection]) -> None:
    admin, client = session("postgres"), session(CLIENT)
    run(admin, VIEW)
    run(client, SCHEDULE)
    assert run(client, "SELECT receipt FROM duepost.clear_scheduled_emails(ARRAY['ann'])") == [("cleared",)]


def test_the_next_migrate_lets_workers_read_the_view_and_leaves_it_alone(
    session: Callable[[str], Connection], each_url: str
) -> None:
    admin, worker = session("postgres"), session(WORKER)
    run(admin, VIEW)
    database = Database(each_url)
    assert apply(database) == []
    database.close()
    assert run(worker, "SELECT user_id, address FROM duepost.recipient") == [("7", "seven@example.com")]


def test_a_view_that_belongs_to_somebody_else_does_not_stop_a_migrate(
    plain_owner: Database,
) -> None:
    apply(plain_owner)
    plain_owner.execute("DROP TABLE duepost.recipient")
    with closing(
        psycopg2.connect(plain_owner.url.replace("owner_without_createrole@", "postgres@", 1))
    ) as somebody_else:
        run(somebody_else, "CREATE VIEW duepost.recipient AS SELECT 'a'::text AS user_id")
        somebody_else.commit()
    assert apply(plain_owner) == []


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.partition(" ")[0] for setting in SETTINGS])
@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("kind", {"kind": "a\nb"}),
        ("endpoint", {"endpoint": "e\\n"}),
        ("payload", {"payload": '{"n": 1e309}'}),
        ("users", {"users": ["a\nb"]}),
        ("key", {"key": "a\tb"}),
        ("expires_at", {"expires_at": "2001-01-01T00:00:00Z"}),
    ],
)
def test_a_clients_settings_loosen_no_check_of_a_message(
    session: Callable[[str], Connection], setting: str, argument: str, given: dict[str, object]
) -> None:
    run(session("postgres"), "SELECT duepost.set_endpoint('e', 'webhook', 'https://example.com/')")
    client = session(CLIENT)
    run(client, f"SET escape_string_warning = off; SET {setting}")
    arguments = {"kind": "k", "endpoint": "e", "payload": "{}", **given}
    named = ", ".join(f"{name} => %({name})s" for name in arguments)
    with client.cursor() as cursor, pytest.raises(psycopg2.errors.InvalidParameterValue, match=rf"^{argument}: "):
        cursor.execute(f"SELECT duepost.schedule_message({named})", arguments)
