-- Who is there. A session counts only if it is the very one that was noted: the number of a back end is given again, and any
-- login may take an advisory lock. Its start is shown to its own role and to pg_read_all_stats; for others its name, which
-- sessions of that role alone could have, stands in for it. Workers of release 0.1 note no session: they are there as long
-- as anyone holds the advisory lock (1148543344, id).
CREATE OR REPLACE VIEW duepost.present AS
SELECT noted.what, noted.worker_id
FROM (
    SELECT 'worker ' || worker.id AS what, worker.id AS worker_id, worker.session_pid, worker.session_role,
           worker.session_started_at, worker.server_started_at
    FROM duepost.worker AS worker
    WHERE worker.gone_at IS NULL AND worker.session_pid IS NOT NULL
    UNION ALL
    SELECT turn.name, NULL, turn.session_pid, turn.session_role, turn.session_started_at, turn.server_started_at
    FROM duepost.turn AS turn
    WHERE turn.session_pid IS NOT NULL
) AS noted
CROSS JOIN LATERAL pg_stat_get_activity(noted.session_pid) AS session
WHERE noted.server_started_at = pg_postmaster_start_time()
  AND session.usesysid = noted.session_role
  AND session.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
  AND coalesce(
      session.backend_start = noted.session_started_at,
      session.application_name = 'duepost ' || noted.what || ' session'
  )
UNION ALL
SELECT 'worker ' || worker.id, worker.id
FROM duepost.worker AS worker
WHERE worker.gone_at IS NULL
  AND worker.session_pid IS NULL
  AND worker.id IN (
      SELECT lock.objid::bigint
      FROM pg_locks AS lock
      WHERE lock.locktype = 'advisory'
        AND lock.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
        AND lock.classid = 1148543344 AND lock.objsubid = 2 AND lock.granted
  );
COMMENT ON VIEW duepost.present IS
    'The workers and the watch whose session is there; workers that were called gone are not among them.';
