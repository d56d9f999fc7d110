"""Local times: what a clock shows where the recipient is, and quiet hours there."""

import psycopg2
import psycopg2.errors
import pytest

from tests.app_harness import Harness
from tests.postgres import Connection
from tests.relays import ScriptedRelay

PLAIN = "kind => 'k', subject => 's', body_text => 'b'"


def utc(application: Connection, statement: str, *values: object) -> str | None:
    """A moment, in UTC; None for none."""
    with application.cursor() as cursor:
        cursor.execute(f"SELECT ({statement}) AT TIME ZONE 'UTC'", values)
        [found] = cursor.fetchone() or (None,)
        return None if found is None else f"{found:%Y-%m-%d %H:%M:%S}"


def run(application: Connection, statement: str, *values: object) -> object:
    with application.cursor() as cursor:
        cursor.execute(statement, values)
        [found] = cursor.fetchone() or (None,)
        return found


def refused(application: Connection, arguments: str) -> str:
    """With what a call is refused."""
    with pytest.raises(psycopg2.errors.InvalidParameterValue) as raised:
        run(application, f"SELECT duepost.schedule_email({PLAIN}, {arguments})")
    application.rollback()
    return str(raised.value).partition("\n")[0]


@pytest.mark.parametrize(
    ("local", "zone", "moment"),
    [
        ("2026-03-08 02:30", "America/New_York", "2026-03-08 07:30:00"),
        ("2026-03-08 01:59:59", "America/New_York", "2026-03-08 06:59:59"),
        ("2026-03-08 03:00", "America/New_York", "2026-03-08 07:00:00"),
        ("2026-11-01 01:30", "America/New_York", "2026-11-01 05:30:00"),
        ("2026-11-01 00:59", "America/New_York", "2026-11-01 04:59:00"),
        ("2026-11-01 02:00", "America/New_York", "2026-11-01 07:00:00"),
        ("2026-10-04 02:15", "Australia/Lord_Howe", "2026-10-03 15:45:00"),
        ("2026-04-05 01:45", "Australia/Lord_Howe", "2026-04-04 14:45:00"),
        ("2011-12-30 10:00", "Pacific/Apia", "2011-12-30 20:00:00"),
        ("2026-10-25 02:30", "Europe/Dublin", "2026-10-25 02:30:00"),
        ("2026-10-25 01:30", "Europe/Dublin", "2026-10-25 00:30:00"),
        ("2026-07-01 09:00", "Asia/Kathmandu", "2026-07-01 03:15:00"),
        ("2026-07-01 09:00", "EST", "2026-07-01 14:00:00"),
        ("2026-07-01 09:00", "UTC", "2026-07-01 09:00:00"),
    ],
)
def test_a_local_time_means_one_moment(application: Connection, local: str, zone: str, moment: str) -> None:
    assert utc(application, "duepost.moment_at(%s::timestamp, %s)", local, zone) == moment
    email_id = run(
        application,
        f"SELECT duepost.schedule_email({PLAIN}, address => 'a@example.com', scheduled_local => %s, timezone => %s)",
        local,
        zone,
    )
    assert utc(application, "SELECT due_at FROM duepost.item WHERE id = %s", email_id) == moment


@pytest.mark.parametrize("zone", ["utc", "Europe/berlin", "UTC+2", "+02:00", "US/Nowhere", "", "Europe/Berlin "])
def test_only_names_that_are_listed_are_zones(application: Connection, zone: str) -> None:
    said = refused(application, f"address => 'a@example.com', scheduled_local => '2030-01-01', timezone => '{zone}'")
    assert said == "timezone: must be a name of pg_timezone_names, spelled as there, such as Europe/Berlin"


def test_what_does_not_go_together_is_refused(application: Connection) -> None:
    to_ann = "address => 'a@example.com'"
    local = "scheduled_local => '2030-01-01 09:00'"
    assert refused(application, f"{to_ann}, {local}").startswith("timezone: must be given with scheduled_local")
    assert refused(application, f"{to_ann}, timezone => 'UTC'") == "timezone: goes with scheduled_local only"
    both = f"{to_ann}, {local}, timezone => 'UTC', scheduled_at => now()"
    assert refused(application, both).startswith("scheduled_local: give either")
    late = f"{to_ann}, {local}, timezone => 'UTC', expires_at => '2029-01-01Z'"
    assert refused(application, late).startswith("expires_at: must be later")
    assert refused(application, f"{to_ann}, scheduled_local => 'infinity', timezone => 'UTC'").startswith("scheduled_l")
    assert refused(application, f"users => ARRAY['nobody'], {local}").startswith("timezone: must be given: duepost.rec")


def test_many_name_the_place_of_what_is_wrong(application: Connection) -> None:
    for value, said in (
        ('"2030-01-01T09:00:00+01:00"', "emails[0]: scheduled_local: must be a local time without a zone"),
        ('"nine"', "emails[0]: scheduled_local: must be a local time such as"),
        ("9", "emails[0]: scheduled_local: must be a local time such as"),
    ):
        with pytest.raises(psycopg2.errors.InvalidParameterValue, match=said.replace("[", r"\[")):
            run(
                application,
                "SELECT duepost.schedule_emails(%s::jsonb)",
                '[{"kind": "k", "address": "a@b.example", "subject": "s", "body_text": "b", "timezone": "UTC",'
                f' "scheduled_local": {value}}}]',
            )
        application.rollback()


@pytest.mark.parametrize(
    ("moment", "zone", "hours", "until"),
    [
        ("2026-06-01 21:00", "Europe/Berlin", ("22:00", "07:00"), "2026-06-02 05:00:00"),
        ("2026-06-01 22:30", "Europe/Berlin", ("22:00", "07:00"), "2026-06-02 05:00:00"),
        ("2026-06-02 04:59:59", "Europe/Berlin", ("22:00", "07:00"), "2026-06-02 05:00:00"),
        ("2026-06-02 05:00", "Europe/Berlin", ("22:00", "07:00"), None),
        ("2026-06-01 20:00", "Europe/Berlin", ("22:00", "07:00"), "2026-06-02 05:00:00"),
        ("2026-06-01 19:59:59", "Europe/Berlin", ("22:00", "07:00"), None),
        ("2026-06-01 21:00", "UTC", ("22:00", "22:00"), None),
        ("2026-06-01 21:00", "UTC", ("00:00", "08:00"), None),
        ("2026-06-01 00:00", "UTC", ("00:00", "08:00"), "2026-06-01 08:00:00"),
        # The end is left out by the clocks: it is the real one that comes next.
        ("2026-03-08 04:00", "America/New_York", ("22:00", "02:30"), "2026-03-08 07:30:00"),
        # It is shown twice: the first, and between the two the second.
        ("2026-11-01 04:30", "America/New_York", ("00:00", "01:30"), "2026-11-01 05:30:00"),
        ("2026-11-01 06:15", "America/New_York", ("00:00", "01:30"), "2026-11-01 06:30:00"),
        ("2026-11-01 06:30", "America/New_York", ("00:00", "01:30"), None),
    ],
)
def test_quiet_hours_end_at_the_next_real_end(
    application: Connection, moment: str, zone: str, hours: tuple[str, str], until: str | None
) -> None:
    found = utc(application, "duepost.quiet_until(%s::timestamptz, %s, %s::time, %s::time)", f"{moment}Z", zone, *hours)
    assert found == until


def quiet(harness: Harness, kind: str = "digest", *, now: bool = True, **more: str) -> None:
    """Gives a kind quiet hours, in UTC: two around this moment, or none of them."""
    sign = "-" if now else "+"
    harness.query(
        "INSERT INTO duepost.kind (kind, quiet_from, quiet_to, priority) SELECT %(kind)s,"
        f" (now() AT TIME ZONE 'UTC' {sign} interval '1 h')::time, (now() AT TIME ZONE 'UTC' + interval '2 h')::time,"
        " %(priority)s",
        kind=kind, priority=more.get("priority"),
    )  # fmt: skip


def test_what_is_due_in_quiet_hours_is_moved_to_their_end_and_sent_then(
    each_harness: Harness, relay: ScriptedRelay
) -> None:
    harness = each_harness
    quiet(harness)
    email_id = harness.schedule(kind="digest")
    harness.deliver()
    assert relay.messages == []
    assert 7_100 < harness.due_in(email_id) < 7_200 + 301
    assert (harness.row(email_id)["attempts"], harness.row(email_id)["last_error"]) == (0, None)
    harness.query("UPDATE duepost.kind SET quiet_from = quiet_to")
    harness.make_due()
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]


def test_outside_of_them_and_where_it_is_urgent_it_is_sent(harness: Harness) -> None:
    quiet(harness, now=False)
    quiet(harness, "reset", priority="urgent")
    ids = [harness.schedule(kind=kind) for kind in ("digest", "reset")]
    harness.deliver()
    assert [harness.ledger(each) for each in ids] == [["sent"], ["sent"]]


def test_what_expires_in_them_says_so_and_is_not_sent(harness: Harness, relay: ScriptedRelay) -> None:
    quiet(harness)
    [(expires_at,)] = harness.query("SELECT (now() + interval '1 h')::text")
    email_id = harness.schedule(kind="digest", expires_at=str(expires_at).replace(" ", "T") + ":00")
    harness.deliver()
    assert harness.ledger(email_id) == ["expired"]
    assert relay.messages == []


def test_a_zone_that_is_none_fails_that_user_only_and_is_named(harness: Harness, relay: ScriptedRelay) -> None:
    quiet(harness)
    for user, zone in (("awake", "Asia/Tokyo"), ("quiet", "UTC"), ("wrong", "Europe/berlin"), ("none", None)):
        harness.query(
            "INSERT INTO duepost.recipient (user_id, address, timezone) VALUES (%(u)s, %(u)s || '@example.com', %(z)s)",
            u=user, z=zone,
        )  # fmt: skip
    together = harness.schedule(kind="digest", users=["awake", "quiet", "wrong"])
    alone = harness.schedule(kind="digest", users=["wrong"])
    without = harness.schedule(kind="digest", users=["none"])
    harness.deliver()
    assert [each for message in relay.messages for each in message.recipients] == ["awake@example.com"]
    outcomes = "SELECT user_id, outcome FROM duepost.scheduled_email_user WHERE email_id = %(id)s ORDER BY 1"
    assert harness.query(outcomes, id=together) == [("awake", "sent"), ("quiet", None), ("wrong", None)]
    for email_id in (together, alone):
        assert "Europe/berlin is no name of pg_timezone_names" in str(harness.row(email_id)["last_error"])
        assert harness.due_in(email_id) < 20
    assert harness.due_in(without) > 7_000


def test_500_that_end_at_one_moment_are_spread(harness: Harness) -> None:
    [(spread, earliest)] = harness.query(
        "SELECT count(DISTINCT s), min(s) >= now() FROM"
        " (SELECT duepost.spread(now(), NULL) AS s FROM generate_series(1, 500)) AS each"
    )
    assert (int(str(spread)) > 400, earliest) == (True, True)


def test_the_forecast_shows_the_moved_time(harness: Harness) -> None:
    quiet(harness)
    harness.schedule(kind="digest")
    found = harness.query(
        "SELECT date_trunc('minute', duepost.after_quiet_hours(i.id, now(), k.timezone, k.quiet_from, k.quiet_to))"
        " = date_trunc('minute', now() + interval '2 h') FROM duepost.item AS i JOIN duepost.kind AS k USING (kind)"
    )
    assert found == [(True,)]


def local(harness: Harness, user: str = "ann", **more: object) -> int:
    """An email that is due at ten tomorrow, by the user's clock."""
    [(day,)] = harness.query("SELECT (now() AT TIME ZONE 'UTC')::date + 2")
    return harness.schedule(users=[user], scheduled_local=f"{day}T10:00:00", **more)


def hour(harness: Harness, email_id: int) -> object:
    """At which hour, in UTC, an email is due."""
    [(found,)] = harness.query(
        "SELECT to_char(due_at AT TIME ZONE 'UTC', 'HH24:MI') FROM duepost.item WHERE id = %(id)s", id=email_id
    )
    return found


def test_a_users_new_zone_is_followed(harness: Harness) -> None:
    harness.query("INSERT INTO duepost.recipient VALUES ('ann', 'ann@example.com', NULL, NULL, 'Asia/Tokyo')")
    followed, moved = local(harness), local(harness)
    assert hour(harness, followed) == "01:00"
    harness.query("SELECT duepost.reschedule_email(%(id)s, now() + interval '5 d')", id=moved)
    before = hour(harness, moved)
    harness.query("UPDATE duepost.recipient SET timezone = 'Asia/Kolkata'")
    assert (hour(harness, followed), hour(harness, moved)) == ("04:30", before)
    harness.query("UPDATE duepost.recipient SET timezone = 'nowhere', name = 'Ann'")
    assert hour(harness, followed) == "04:30"


def test_where_users_are_a_view_a_later_moment_is_found_by_the_claim(harness: Harness, relay: ScriptedRelay) -> None:
    harness.query("INSERT INTO duepost.recipient VALUES ('ann', 'ann@example.com', NULL, NULL, 'UTC')")
    harness.query("ALTER TABLE duepost.recipient RENAME TO people")
    harness.query("CREATE VIEW duepost.recipient AS SELECT * FROM duepost.people")
    harness.query("DROP TRIGGER follow_zones ON duepost.people")
    form = "YYYY-MM-DD HH24:MI:SS"
    [(now,)] = harness.query("SELECT to_char(now() AT TIME ZONE 'UTC' - interval '1 min', %(form)s)", form=form)
    later = harness.schedule(users=["ann"], scheduled_local=now)
    harness.query("UPDATE duepost.people SET timezone = 'America/New_York'")
    harness.deliver()
    assert relay.messages == []
    assert 3 * 3600 < harness.due_in(later) < 6 * 3600
    harness.query("UPDATE duepost.people SET timezone = 'UTC'")
    harness.make_due()
    harness.deliver()
    assert harness.ledger(later) == ["sent"]
