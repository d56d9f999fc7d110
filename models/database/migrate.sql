-- What has been applied to this database.

-- name: fix_names
-- Nothing that somebody else has made stands in for PostgreSQL's own, and backslashes are read as they were written: a
-- database's owner may have set both for everybody who comes.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL standard_conforming_strings = on

-- name: lock
-- By a table that clients have no rights on: an advisory lock may be taken by any login.
LOCK TABLE duepost.migration IN EXCLUSIVE MODE

-- name: create_record
-- Not IF NOT EXISTS: what has come since it was looked for is somebody else's.
CREATE TABLE duepost.migration (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)

-- name: queue_exists
SELECT to_regclass('dramatiq.queue') IS NOT NULL

-- name: record_exists
SELECT to_regclass('duepost.migration') IS NOT NULL

-- name: all_applied
SELECT number, checksum FROM duepost.migration

-- name: applied
SELECT checksum FROM duepost.migration WHERE number = %(number)s

-- name: record
INSERT INTO duepost.migration (number, name, checksum) VALUES (%(number)s, %(name)s, %(checksum)s)

-- name: missing_functions
-- Of these functions and views one that is not there.
SELECT wanted.name
FROM unnest(%(names)s::text[]) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'duepost'::regnamespace AND proname = wanted.name)
  AND NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = 'duepost'::regnamespace AND relname = wanted.name)
ORDER BY wanted.name
LIMIT 1

-- name: defer_checks_of_bodies
SET LOCAL check_function_bodies = off

-- Of a function that this transaction has made, its other signatures: left in place, a call that fits both would fail.
-- name: drop_old_signatures
DO $$
DECLARE
    old regprocedure;
BEGIN
    FOR old IN
        SELECT p.oid
        FROM pg_proc AS p
        WHERE p.pronamespace = 'duepost'::regnamespace
          AND p.xmin <> pg_current_xact_id()::xid
          AND EXISTS (
              SELECT FROM pg_proc AS made
              WHERE made.pronamespace = p.pronamespace
                AND made.proname = p.proname
                AND made.xmin = pg_current_xact_id()::xid
          )
    LOOP
        EXECUTE format('DROP ROUTINE %s', old);
    END LOOP;
END
$$

-- name: has_partitions
SELECT EXISTS (
    SELECT FROM pg_inherits
    WHERE inhparent = 'duepost.delivery'::regclass
      AND inhrelid <> 'duepost.delivery_rest'::regclass
)

-- name: make_partitions
SELECT duepost.maintain_partitions()

-- name: keep
INSERT INTO duepost.retention AS kept (days)
VALUES (%(days)s)
ON CONFLICT (one) DO UPDATE SET days = excluded.days, set_at = now() WHERE kept.days <> excluded.days
