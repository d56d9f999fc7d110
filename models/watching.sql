-- Of several watches on one database one acts: the one whose session is noted.

-- name: lead
-- Takes the turn, unless the session that has it is still there. Of two that see it free, the one that comes second finds
-- another session noted than it has seen.
WITH free AS MATERIALIZED (
    SELECT turn.session_pid, turn.session_started_at
    FROM duepost.turn AS turn
    WHERE turn.name = 'watch' AND NOT EXISTS (SELECT FROM duepost.present AS present WHERE present.what = 'watch')
)
UPDATE duepost.turn AS turn
SET session_pid = session.pid,
    session_role = session.usesysid,
    session_started_at = session.backend_start,
    server_started_at = pg_postmaster_start_time()
FROM free, pg_stat_activity AS session
WHERE turn.name = 'watch' AND session.pid = pg_backend_pid()
  AND turn.session_pid IS NOT DISTINCT FROM free.session_pid
  AND turn.session_started_at IS NOT DISTINCT FROM free.session_started_at
RETURNING set_config('application_name', 'duepost watch session', false)

-- name: lock
-- For watches of release 0.1: one that does not get it stands by. No matter whether somebody else has it.
SELECT pg_try_advisory_lock(%(role)s, %(watch)s)

-- name: heartbeat
SELECT 1
