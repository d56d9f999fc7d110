-- Which code may work on this database: a level is the number of the newest migration that code knows.

-- name: floor
-- The oldest level that may.
SELECT max(oldest_worker) FROM duepost.migration

-- name: is_known
-- Whether this database has the column yet.
SELECT EXISTS (
    SELECT FROM pg_attribute
    WHERE attrelid = to_regclass('duepost.migration') AND attname = 'oldest_worker' AND NOT attisdropped
)

-- name: newest
SELECT number, oldest_worker FROM duepost.migration ORDER BY number DESC LIMIT 1

-- name: note
UPDATE duepost.migration SET oldest_worker = %(floor)s WHERE number = %(number)s

-- name: has_workers
SELECT to_regclass('duepost.worker') IS NOT NULL

-- name: lock_workers
-- Nobody becomes a worker until the transaction ends; whoever does afterwards finds the floor raised.
LOCK TABLE duepost.worker IN SHARE ROW EXCLUSIVE MODE

-- name: workers_below
-- Workers that are there and below a level: those of release 0.1 have none. As duepost.present has it, which an old
-- database does not have yet; nor does it have all columns, so that they are taken from the row's JSON.
SELECT worker.id, worker.host, worker.pid, worker.row ->> 'release', (worker.row ->> 'level')::integer
FROM (SELECT w.id, w.host, w.pid, to_jsonb(w) AS row FROM duepost.worker AS w WHERE w.gone_at IS NULL) AS worker
WHERE coalesce((worker.row ->> 'level')::integer, 0) < %(floor)s
  AND CASE
      WHEN worker.row ->> 'session_pid' IS NULL THEN worker.id IN (
          SELECT lock.objid::bigint
          FROM pg_locks AS lock
          WHERE lock.locktype = 'advisory'
            AND lock.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
            AND lock.classid = %(lock)s AND lock.objsubid = 2 AND lock.granted
      )
      ELSE EXISTS (
          SELECT FROM pg_stat_get_activity((worker.row ->> 'session_pid')::integer) AS session
          WHERE session.usesysid = (worker.row ->> 'session_role')::oid
            AND coalesce(
                session.backend_start = (worker.row ->> 'session_started_at')::timestamptz,
                session.application_name = 'duepost worker ' || worker.id || ' session'
            )
      )
  END
ORDER BY worker.id
