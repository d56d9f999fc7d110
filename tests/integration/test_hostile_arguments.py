"""Each argument of each function that an application or an operator may call, with hostile values: never a crash."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations, product
from typing import Final, NamedTuple

import psycopg2
import pytest

from tests.postgres import Connection, run

TIME: Final = "timestamp with time zone"

TEXTS: Final = (
    "", " ", "'", '"', "\\", "\\'; DROP TABLE duepost.item; --", "%", "%s %(x)s %1$s", "$1", "{}", "NULL", "null", "0",
    "\n", "a\r\nb", "\t", "\x01", "\x7f", "\x85", "\u2028", "\u202e", "\ufeff", "\ufffd", "\ue000", "\U0010ffff",
    "e\u0301",
    "İ" * 300, "ǅ", "😀", "ａ＠ｂ", "a@b@c", "a@" + "b." * 200, "@", "<", "a <b@c.de", "//", "http://[", "http://a:b@c:99999/",
    "env:", "file:", "env:A=B", "file:/dev/zero", "whsec_", "pg_catalog.pg_sleep", "x.y.z", '"".""', "x" * 1_000_000,
)  # fmt: skip

#: For each type of an argument what may be given for it, as PostgreSQL reads it. NULL goes with all.
VALUES: Final[Mapping[str, Sequence[str]]] = {
    "text": TEXTS,
    "bigint": ("0", "-1", "1", "9223372036854775807", "-9223372036854775808"),
    "integer": ("0", "-1", "1", "2147483647", "-2147483648"),
    "numeric": ("0", "-1", "1", "NaN", "Infinity", "-Infinity", "1e100", "0.0001"),
    "bigint[]": (
        "{}", "{NULL}", "{1,1}", "{{1,2},{3,4}}", "[0:1]={1,2}", "{" + ",".join(map(str, range(20_000))) + "}",
    ),
    "boolean": ("true", "false"),
    "bytea": ("", "\\x", "\\x00", "\\xff", "BEGIN:VCALENDAR\nMETHOD:\n", "\\x" + "25" * 1_000_000),
    TIME: (
        "infinity", "-infinity", "4713-01-01 00:00:00 BC", "0001-01-01", "1970-01-01", "9999-12-31 23:59:59.999999+00",
        "10000-01-01", "294276-12-31 23:59:59+00",
    ),
    "timestamp without time zone": (
        "infinity", "-infinity", "4713-01-01 00:00:00 BC", "0001-01-01", "1970-01-01", "9999-12-31 23:59:59.999999",
        "10000-01-01", "294276-12-31 23:59:59", "2026-03-29 02:30:00",
    ),
    "interval": (
        "0", "-1 us", "1 us", "-1 s", "1 s", "366 days", "367 days", "178000000 years", "-178000000 years",
        "2147483647 days -9223372036854 s", "-2147483648 days",
    ),
    "text[]": (
        "{}", "{NULL}", '{""}', "{a,NULL}", "{a,a}", "{{a,b},{c,d}}", "[0:1]={a,b}", "[-5:-4]={a,b}", '{"\'"}',
        '{"\\\\"}',
        "{" + ",".join(map(str, range(20_000))) + "}", '{"' + "x" * 100_000 + '"}', '{"\n"}', '{"\u202e"}',
    ),
    "jsonb": (
        "null", "true", "0", "-1e-400", "1e400", "1e131071", '""', '"x"', '"\\u0001"', '"\\ud83d\\ude00"', "[]",
        "[null]", "[[]]",
        "[[[1]]]", "{}", '{"": ""}', '{"a": null}', '{"a": {"b": []}}', '{"kind": 1}', '[{"kind": null}]', '[{"": 1}]',
        "[1]",
        '[{"kind": "k", "scheduled_at": "infinity"}]', '[{"kind": "k", "users": {}}]', '[{"kind": "k", "users": [1]}]',
        '[{"kind": "k", "scheduled_at": "2030-02-30T00:00:00Z"}]', '[{"kind": "k", "context": "x"}]', '{"items": 1}',
        '[{"kind": "k", "endpoint": 1}]', '[{"kind": "k", "payload": null, "endpoint": "hook"}]', '{"text": 1}',
        '[{"kind": "k", "key": {}}]', '[{"kind": "k", "scheduled_at": "x"}]', '[{"kind": ["\'"]}]', '{"X-A": 1}',
        '{"X\\n": "a"}',
        '{"Subject": "x"}', '{"user": []}', '{"room": "!"}', "[" * 1000 + "]" * 1000, '{"a":' * 1000 + "1" + "}" * 1000,
        '"' + "x" * 1_000_000 + '"', "[" + ",".join(["{}"] * 5_000) + "]",
    ),
}  # fmt: skip

#: For each function a call that is right, in SQL: of each argument but one it is what is given.
RIGHT: Final[Mapping[str, Mapping[str, str]]] = {
    "act_on_items": {"action_id": "1", "ids": "ARRAY[1]::bigint[]"},
    "add_to_batch": {"batch": "'b'", "item": "'1'", "kind": "'k'", "endpoint": "'hook'", "item_key": "'1'"},
    "attachment": {"filename": "'a.ics'", "content": "'METHOD:REQUEST'", "content_type": "'text/plain'"},
    "attachment_at": {"filename": "'a.pdf'", "url": "'s3://bucket/a.pdf'", "content_type": "'application/pdf'"},
    "begin_action": {"action": "'clear'", "by_whom": "'ann'", "via": "'sql'"},
    "clear_scheduled": {"users": "ARRAY['ann']"},
    "clear_scheduled_email": {"email_id": "1"},
    "clear_scheduled_emails": {"users": "ARRAY['ann']"},
    "clear_scheduled_emails_to": {"address": "'ann@example.com'"},
    "clear_scheduled_message": {"id": "2"},
    "clear_scheduled_messages": {"users": "ARRAY['ann']"},
    "disable_endpoint": {"name": "'hook'", "reason": "'moved'"},
    "edit_message": {"id": "2", "payload": "'{}'"},
    "end_action": {"action_id": "1"},
    "endpoints": {},
    "follow_priority": {"kind": "'k'"},
    "forget_some": {"action_id": "2", "user_id": "'ann'"},
    "import_suppressions": {
        "action_id": "3",
        "suppressions": '\'[{"address": "a@x.org", "until": "2100-01-01T00:00Z"}]\'',
    },
    "remove_endpoint": {"name": "'hook'"},
    "remove_rate": {"route": "'default'", "domain": "'example.com'", "by_whom": "'ann'"},
    "remove_from_batch": {"batch": "'b'", "item_key": "'1'"},
    "request_probe": {"route": "NULL", "by_whom": "'ann'", "via": "'sql'"},
    "reschedule_email": {"email_id": "1", "scheduled_at": "'2030-01-01Z'"},
    "reschedule_message": {"id": "2", "scheduled_at": "'2030-01-01Z'"},
    "schedule_email": {"kind": "'k'", "address": "'ann@example.com'", "template": "'t'"},
    "schedule_emails": {"emails": '\'[{"kind": "k", "users": ["ann"], "template": "t"}]\''},
    "schedule_message": {"kind": "'k'", "endpoint": "'hook'", "payload": "'{}'"},
    "schedule_messages": {"messages": '\'[{"kind": "k", "endpoint": "hook", "payload": {}}]\''},
    "set_endpoint": {"name": "'hook'", "format": "'webhook'", "url": "'https://hooks.example.com/'"},
    "set_pause": {"scope": "'kind'", "name": "'k'", "is_on": "true", "by_whom": "'ann'", "via": "'sql'"},
    "set_rate": {
        "route": "'default'",
        "domain": "'example.com'",
        "per_second": "5",
        "connections": "2",
        "by_whom": "'ann'",
    },
    "set_priority": {"kind": "'k'", "priority": "'bulk'", "by_whom": "'ann'", "via": "'sql'"},
    "status": {"id": "1"},
    "suppress": {"address": "'ann@example.com'", "by_whom": "'ann'", "via": "'sql'"},
    "unpark": {},
    "unsuppress": {"address": "'ann@example.com'", "by_whom": "'ann'", "via": "'sql'"},
}

#: Further calls of the same: other arguments go with them.
OTHERWISE: Final[Mapping[str, Sequence[Mapping[str, str]]]] = {
    "add_to_batch": [{"batch": "'c'", "item": "'1'", "kind": "'k'", "address": "'ann@example.com'", "template": "'t'"}],
    "attachment": [{"filename": "'a.png'", "content": "'x'", "cid": "'logo'"}],
    "attachment_at": [{"filename": "'a.png'", "url": "'file:///srv/a.png'", "cid": "'logo'"}],
    "schedule_email": [{"kind": "'k'", "users": "ARRAY['ann']", "subject": "'s'", "body_text": "'b'"}],
    "schedule_message": [
        {"kind": "'k'", "endpoint": f"'{name}'", "payload": payload}
        for name, payload in (
            ("slack", "'{\"text\": \"a\"}'"), ("mattermost", "'{\"text\": \"a\"}'"),
            ("zulip", "'{\"content\": \"a\", \"to\": \"b\"}'"), ("matrix", "'{\"body\": \"a\"}'"),
        )
    ],
    "forget_some": [{"action_id": "2", "address": "'ann@example.com'"}],
    "set_pause": [{"scope": "'all'", "name": "NULL", "is_on": "true", "by_whom": "'ann'", "via": "'sql'"}],
    "set_endpoint": [
        {"name": "'zulip'", "format": "'zulip'", "url": "'https://z.example'", "secret": "'k'",
         "options": "'{\"user\": \"bot@x.org\"}'"},
        {"name": "'f'", "format": "'function'", "function": "'public.post'"},
    ],
    "status": [{"key": "'x'"}],
}  # fmt: skip

SET_UP = """
    CREATE FUNCTION public.post(bigint, jsonb) RETURNS void LANGUAGE sql AS '';
    SELECT duepost.set_endpoint('hook', 'webhook', 'https://hooks.example.com/in'),
           duepost.set_endpoint('slack', 'slack', 'https://slack.example.com/services/T0/B0/x'),
           duepost.set_endpoint('mattermost', 'mattermost', 'https://chat.example.com/hooks/x'),
           duepost.set_endpoint('zulip', 'zulip', 'https://zulip.example', 'key', options => '{"user": "bot@x.org"}'),
           duepost.set_endpoint('matrix', 'matrix', 'https://matrix.example.com', 't', options => '{"room": "!a/b:x"}');
    INSERT INTO duepost.kind (kind, expire_after, late_after) VALUES ('k', '1000 years', '1000 years');
    SELECT setval('duepost.scheduled_email_id_seq', 1, false);
    SELECT duepost.schedule_email('k', users => ARRAY['ann', 'bob'], template => 't', key => 'x');
    SELECT duepost.schedule_message('k', 'hook', '{}', users => ARRAY['ann'], key => 'y');
    SELECT duepost.add_to_batch('b', '1', 'k', endpoint => 'hook', item_key => '1');
    SELECT setval('duepost.operator_action_id_seq', 1, false);
    SELECT duepost.begin_action('retry', 'ann', 'sql'), duepost.begin_action('forget', 'ann', 'sql'),
           duepost.begin_action('suppress', 'ann', 'sql');
"""

CALLABLE = """
    SELECT p.proname, (
        SELECT coalesce(jsonb_object_agg(p.proargnames[t.place], format_type(t.type, NULL)), '{}')
        FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS t (type, place)
    )
    FROM pg_proc AS p
    WHERE p.pronamespace = 'duepost'::regnamespace AND has_function_privilege(%s, p.oid, 'EXECUTE')
    ORDER BY p.proname
"""


class Function(NamedTuple):
    """A function that a role may call: its arguments' types by their names."""

    role: str
    name: str
    arguments: Mapping[str, str]


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    run(connection, "SAVEPOINT before")
    try:
        yield
    finally:
        run(connection, "ROLLBACK TO before")


@pytest.fixture
def functions(application: Connection) -> Sequence[Function]:
    run(application, SET_UP)
    found = [
        Function(role, str(name), arguments)
        for role in ("duepost_client", "duepost_operator")
        for name, arguments in run(application, CALLABLE, role)
        if isinstance(arguments, dict)
    ]
    assert {each.name for each in found} == set(RIGHT), "each function has a call here"
    return found


def outcome(connection: Connection, function: Function, given: Mapping[str, str], *values: str | None) -> str:
    """The SQLSTATE of a call, in which each `%s` stands for a value; and what it says."""
    named = ", ".join(f"{name} => {sql}" for name, sql in given.items())
    with savepoint(connection):
        run(connection, f"SET LOCAL ROLE {function.role}; SET LOCAL statement_timeout = '20s'")
        try:
            run(connection, f"SELECT * FROM duepost.{function.name}({named})", *values)
        except psycopg2.Error as error:
            return f"{error.pgcode} {str(error)[:200]}"
    return "00000"


def test_the_calls_are_right(application: Connection, functions: Sequence[Function]) -> None:
    for function in functions:
        for given in (RIGHT[function.name], *OTHERWISE.get(function.name, ())):
            assert outcome(application, function, given) == "00000", (function.name, given)


def attempts(function: Function) -> Iterator[tuple[Mapping[str, str], Sequence[str | None]]]:
    """Right calls with one hostile value, or with two that are times."""
    for right in (RIGHT[function.name], *OTHERWISE.get(function.name, ())):
        for argument, kind in function.arguments.items():
            for value in (None, *VALUES[kind]):
                yield {**right, argument: f"%s::{kind}"}, [value]
    times = {name: kind for name, kind in function.arguments.items() if kind in {"interval", TIME}}
    for (first, kind), (second, other) in combinations(times.items(), 2):
        # In the order of the arguments that are given: the first stands before the second.
        right = {name: sql for name, sql in RIGHT[function.name].items() if name not in times}
        for value, another in product(VALUES[kind], VALUES[other]):
            yield {**right, first: f"%s::{kind}", second: f"%s::{other}"}, [value, another]


def test_a_hostile_argument_is_answered_or_refused_by_its_name_and_breaks_nothing(
    application: Connection, functions: Sequence[Function]
) -> None:
    wrong = []
    tables = "SELECT count(*), max(id) FROM duepost.item"
    before = run(application, tables)
    seen: Counter[str] = Counter()
    for function in functions:
        for given, values in attempts(function):
            said = outcome(application, function, given, *values)
            seen[said[:5]] += 1
            if said[:5] not in {"00000", "22023"}:
                wrong.append(f"{function.name}({given}), {[(each or 'NULL')[:60] for each in values]}: {said}")
    assert wrong == [], "\n".join(wrong)
    assert run(application, tables) == before
    assert min(seen["00000"], seen["22023"]) > 100, "some are right, some are not"
