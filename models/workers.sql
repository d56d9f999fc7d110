-- Worker processes. A worker's life is the session that it notes in its row.

-- name: register
-- Noted, named and locked in one statement: no row is seen whose session is not there. The lock is for workers of release
-- 0.1, which know each other by it.
INSERT INTO duepost.worker (
    host, pid, machine, started_at_tick, release, level, session_pid, session_role, session_started_at
)
SELECT %(host)s, %(pid)s, %(machine)s, %(started_at_tick)s, %(release)s, %(level)s, session.pid, session.usesysid,
       session.backend_start
FROM pg_stat_activity AS session
WHERE session.pid = pg_backend_pid()
RETURNING
    id,
    pg_try_advisory_lock(%(lock)s, id),
    set_config('application_name', 'duepost worker ' || id || ' session', false)

-- name: discard
-- A number whose lock somebody else holds is nobody's.
DELETE FROM duepost.worker WHERE id = %(worker_id)s

-- name: lock
SELECT pg_try_advisory_lock(%(lock)s, %(worker_id)s)

-- name: lock_holder
-- Who holds the lock of a worker, and whether it is the worker's own earlier session.
SELECT lock.pid, coalesce(role.rolname::text, '?'), lock.pid = (
    SELECT worker.session_pid
    FROM duepost.worker AS worker
    WHERE worker.id = %(worker_id)s AND worker.id IN (SELECT worker_id FROM duepost.present)
) IS TRUE
FROM pg_locks AS lock
LEFT JOIN pg_stat_activity AS session ON session.pid = lock.pid
LEFT JOIN pg_roles AS role ON role.oid = session.usesysid
WHERE lock.locktype = 'advisory'
  AND lock.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND lock.classid = %(lock)s AND lock.objid = %(worker_id)s::oid AND lock.objsubid = 2 AND lock.granted
  AND lock.pid <> pg_backend_pid()

-- name: end_session
-- A session of ours that the server has not yet seen end: a cut network leaves it half open.
SELECT pg_terminate_backend(%(pid)s)

-- name: attach
-- A worker that is back before it was called gone, in another session.
UPDATE duepost.worker AS worker
SET missing_since = NULL,
    server_started_at = pg_postmaster_start_time(),
    session_pid = session.pid,
    session_role = session.usesysid,
    session_started_at = session.backend_start
FROM pg_stat_activity AS session
WHERE worker.id = %(worker_id)s AND worker.gone_at IS NULL AND session.pid = pg_backend_pid()
RETURNING worker.id, set_config('application_name', 'duepost worker ' || worker.id || ' session', false)

-- name: heartbeat
SELECT 1

-- name: stamp
-- A worker says that it makes progress, or has nothing to do.
UPDATE duepost.worker SET progressed_at = now() WHERE id = %(worker_id)s

-- name: deregister
-- A worker that ends in order holds nothing any more.
UPDATE duepost.worker SET gone_at = now() WHERE id = %(worker_id)s AND gone_at IS NULL

-- name: mark_missing
-- Workers whose session is not there are missing from now on; those that are back are not. A time that is still to
-- come is from before the clock was set back.
WITH present AS MATERIALIZED (
    SELECT worker_id AS id FROM duepost.present WHERE worker_id IS NOT NULL
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

-- name: reap
-- Only while its session is not there. One that comes back at the same moment writes the same row: either it is no longer
-- missing here, or it finds there that it was called gone. Workers of release 0.1 come back under their lock instead.
-- The worker may have been at a long pass: another one need not wait until the note of that is over.
WITH gone AS (
    UPDATE duepost.worker
    SET gone_at = now()
    WHERE id = %(worker_id)s AND gone_at IS NULL AND missing_since IS NOT NULL
      AND NOT EXISTS (SELECT FROM duepost.present AS present WHERE present.worker_id = %(worker_id)s)
      AND (session_pid IS NOT NULL OR pg_try_advisory_xact_lock(%(lock)s, %(worker_id)s))
    RETURNING id
), free AS (
    UPDATE duepost.control SET passing_until = NULL WHERE passing_until IS NOT NULL AND EXISTS (SELECT FROM gone)
)
SELECT id FROM gone

-- name: note_journal
-- The name of the journal that a worker keeps on its machine.
UPDATE duepost.worker SET journal = %(journal)s WHERE id = %(worker_id)s AND gone_at IS NULL

-- name: gone_journals
-- The journals of workers that are gone; and whether one went so lately that its own machine comes first.
SELECT id, journal, gone_at BETWEEN now() - make_interval(secs => %(seconds)s) AND now()
FROM duepost.worker
WHERE gone_at IS NOT NULL AND journal IS NOT NULL

-- name: went_lately
SELECT EXISTS (SELECT FROM duepost.worker WHERE gone_at > now() - interval '1 min')

-- name: count
-- Served by worker_present.
SELECT count(*) FROM duepost.worker WHERE gone_at IS NULL

-- name: present
SELECT count(*) FROM duepost.present WHERE worker_id IS NOT NULL

-- name: of_host
-- The workers of a host, and for how many seconds each has not said that it makes progress.
SELECT pid, extract(epoch FROM now() - progressed_at)::double precision
FROM duepost.worker
WHERE host = %(host)s AND gone_at IS NULL
ORDER BY pid

-- name: stuck
-- Workers whose session is there, and that have said nothing of their progress for a number of seconds, the longest first.
SELECT w.host, w.pid, extract(epoch FROM now() - w.progressed_at)::double precision
FROM duepost.worker AS w
JOIN duepost.present AS p ON p.worker_id = w.id
WHERE w.gone_at IS NULL AND w.progressed_at < now() - make_interval(secs => %(seconds)s)
ORDER BY w.progressed_at, w.id

-- name: delete_old
-- Workers that are long gone and hold nothing.
DELETE FROM duepost.worker AS worker
WHERE worker.gone_at < now() - interval '1 day'
  AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.worker_id = worker.id)
  AND NOT EXISTS (
      SELECT FROM dramatiq.queue AS message WHERE message.worker_id = worker.id AND message.state = 'consumed'
  )
