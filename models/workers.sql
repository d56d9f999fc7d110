-- Worker processes. A worker's life is a session that holds the advisory lock (1148543344, id).

-- name: enrol
INSERT INTO duepost.worker (host, pid, machine, started_at_tick)
VALUES (%(host)s, %(pid)s, %(machine)s, %(started_at_tick)s)
RETURNING id

-- name: lock
SELECT pg_try_advisory_lock(1148543344, %(worker_id)s)

-- name: attach
-- A worker that is back before it was called gone.
UPDATE duepost.worker
SET missing_since = NULL, server_started_at = pg_postmaster_start_time()
WHERE id = %(worker_id)s AND gone_at IS NULL
RETURNING id

-- name: end_own_old_session
-- A session of ours that the server has not yet seen end: a cut network leaves it half open.
SELECT pg_terminate_backend(pid)
FROM pg_locks
WHERE locktype = 'advisory'
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid = 1148543344 AND objid = %(worker_id)s::oid AND objsubid = 2
  AND pid <> pg_backend_pid()

-- name: prove
SELECT 1

-- name: stamp
-- A worker says that it makes progress, or has nothing to do.
UPDATE duepost.worker SET progressed_at = now() WHERE id = %(worker_id)s

-- name: leave
-- A worker that ends in order holds nothing any more.
UPDATE duepost.worker SET gone_at = now() WHERE id = %(worker_id)s AND gone_at IS NULL

-- name: miss
-- Workers whose session is not there are missing from now on; those that are back are not. A time that is still to
-- come is from before the clock was put back.
WITH present AS (
    SELECT objid::bigint AS id
    FROM pg_locks
    WHERE locktype = 'advisory'
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND classid = 1148543344 AND objsubid = 2 AND granted
)
UPDATE duepost.worker AS worker
SET missing_since = CASE WHEN worker.id IN (SELECT id FROM present) THEN NULL ELSE now() END
WHERE worker.gone_at IS NULL
  AND ((worker.missing_since IS NULL) = (worker.id NOT IN (SELECT id FROM present)) OR worker.missing_since > now())

-- name: missing
-- Whether for longer than the grace: a short one where the session ended by itself, a longer one where the whole
-- server was restarted or failed over since, which proves nothing about the worker.
SELECT
    id,
    missing_since < now() - CASE
        WHEN server_started_at = pg_postmaster_start_time() THEN make_interval(secs => %(grace)s)
        ELSE make_interval(secs => %(grace_after_restart)s)
    END,
    host,
    pid,
    machine,
    started_at_tick
FROM duepost.worker
WHERE gone_at IS NULL AND missing_since IS NOT NULL
ORDER BY id

-- name: bury
-- Only while nobody holds the worker's lock, so that it cannot come back at the same moment. It may have been at a long
-- pass: another one need not wait until the note of that is over.
WITH gone AS (
    UPDATE duepost.worker
    SET gone_at = now()
    WHERE id = %(worker_id)s AND gone_at IS NULL AND missing_since IS NOT NULL
      AND pg_try_advisory_xact_lock(1148543344, %(worker_id)s)
    RETURNING id
), free AS (
    UPDATE duepost.control SET passing_until = NULL WHERE passing_until IS NOT NULL AND EXISTS (SELECT FROM gone)
)
SELECT id FROM gone

-- name: went_lately
SELECT EXISTS (SELECT FROM duepost.worker WHERE gone_at > now() - interval '1 min')

-- name: present
SELECT count(*) FROM duepost.worker WHERE gone_at IS NULL AND missing_since IS NULL

-- name: of_host
-- The workers of a host, and for how many seconds each has not said that it makes progress.
SELECT pid, extract(epoch FROM now() - progressed_at)::double precision
FROM duepost.worker
WHERE host = %(host)s AND gone_at IS NULL
ORDER BY pid

-- name: forget
-- Workers that are long gone and hold nothing.
DELETE FROM duepost.worker AS worker
WHERE worker.gone_at < now() - interval '1 day'
  AND NOT EXISTS (
      SELECT FROM duepost.scheduled_email AS row WHERE row.worker_id = worker.id AND row.state = 'sending'
  )
  AND NOT EXISTS (
      SELECT FROM dramatiq.queue AS message WHERE message.worker_id = worker.id AND message.state = 'consumed'
  )
