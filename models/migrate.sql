-- What has been applied to this database.

-- name: lock
SELECT pg_advisory_xact_lock(1148543345, 0)

-- name: create_record
CREATE SCHEMA IF NOT EXISTS duepost;
CREATE TABLE IF NOT EXISTS duepost.migration (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)

-- name: queue_exists
SELECT to_regclass('dramatiq.queue') IS NOT NULL

-- name: record_exists
SELECT to_regclass('duepost.migration') IS NOT NULL

-- name: applied
SELECT checksum FROM duepost.migration WHERE number = %(number)s

-- name: record
INSERT INTO duepost.migration (number, name, checksum) VALUES (%(number)s, %(name)s, %(checksum)s)

-- name: latest
SELECT max(number) FROM duepost.migration
