"""The ledger's partitions: made ahead, dropped when they are older than the retention."""

from models.database import Database

PARTITIONS = (
    "SELECT count(*) FROM pg_inherits WHERE inhparent = 'duepost.delivery'::regclass"
    " AND inhrelid::regclass::text ~ '_[0-9]{4}_'"
)
OLD = (
    "CREATE TABLE duepost.delivery_2020_01 PARTITION OF duepost.delivery"
    " FOR VALUES FROM ('2020-01-01') TO ('2020-02-01')"
)


def test_there_are_partitions_for_this_month_and_the_next_two(database: Database) -> None:
    assert database.execute(PARTITIONS) == [(3,)]


def test_making_them_again_changes_nothing(database: Database) -> None:
    database.execute("SELECT duepost.maintain_partitions()")
    assert database.execute(PARTITIONS) == [(3,)]


def test_those_wholly_older_than_the_retention_are_dropped(database: Database) -> None:
    database.execute(OLD)
    database.execute("SELECT duepost.maintain_partitions('1 year')")
    assert database.execute("SELECT to_regclass('duepost.delivery_2020_01')") == [(None,)]
    assert database.execute(PARTITIONS) == [(3,)]


def test_without_a_retention_nothing_is_dropped(database: Database) -> None:
    database.execute(OLD)
    database.execute("SELECT duepost.maintain_partitions()")
    assert database.execute(PARTITIONS) == [(4,)]


def test_a_row_of_a_month_without_a_partition_is_kept_and_does_no_harm(database: Database) -> None:
    database.execute(
        "ALTER TABLE duepost.delivery DETACH PARTITION duepost.delivery_rest;"
        "DROP TABLE duepost.delivery_rest;"
        "CREATE TABLE duepost.delivery_rest PARTITION OF duepost.delivery DEFAULT"
    )
    next_month = "date_trunc('month', now()) + interval '1 month 3 days'"
    database.execute(
        "DO $$ BEGIN EXECUTE 'DROP TABLE duepost.delivery_' || to_char(now() + interval '1 month', 'YYYY_MM'); END $$"
    )
    database.execute(
        "INSERT INTO duepost.delivery (email_id, kind, outcome, attempts, unknowns, scheduled_at, finished_at,"
        f" message_id_header) VALUES (1, 'k', 'sent', 1, 0, now(), {next_month}, '<x@y>')"
    )
    database.execute("SELECT duepost.maintain_partitions()")
    assert database.execute("SELECT count(*) FROM duepost.delivery_rest") == [(1,)]
