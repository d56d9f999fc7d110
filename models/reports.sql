-- What people look at.

-- name: pending
-- What is not finished, the next due first; served by scheduled_email_due where no state is asked for.
SELECT id, kind, state, scheduled_at, due_at, expires_at, attempts, unknowns, last_error, key
FROM duepost.scheduled_email
WHERE (%(state)s::text IS NULL OR state = %(state)s::text)
  AND (%(kind)s::text IS NULL OR kind = %(kind)s::text)
ORDER BY due_at, id
LIMIT %(limit)s

-- name: email
-- One email that is not finished, with its users; no content.
SELECT to_jsonb(row) - ARRAY['context', 'subject', 'body_text', 'body_html', 'headers'] || jsonb_build_object(
    'users', (
        SELECT jsonb_agg(to_jsonb(u) - 'email_id' ORDER BY u.user_id)
        FROM duepost.scheduled_email_user AS u
        WHERE u.email_id = row.id
    )
)
FROM duepost.scheduled_email AS row
WHERE row.id = %(id)s

-- name: deliveries
-- How one email ended, a row for each recipient.
SELECT to_jsonb(row) FROM duepost.delivery AS row WHERE row.email_id = %(id)s ORDER BY row.finished_at, row.user_id

-- name: attempts
-- Each attempt at one email, for each recipient.
SELECT jsonb_build_object(
    'when', row.started_at, 'until', row.finished_at, 'claim', row.claim, 'worker', row.worker_id,
    'user_id', row.user_id, 'phase', row.phase, 'verdict', row.verdict, 'code', row.code,
    'enhanced_code', row.enhanced_code, 'reply', row.reply
)
FROM duepost.attempt AS row
WHERE row.email_id = %(id)s
ORDER BY row.claim, row.user_id

-- name: pending_by_state
SELECT state, count(*) FROM duepost.scheduled_email GROUP BY state

-- name: outcomes
SELECT outcome, count(*) FROM duepost.delivery GROUP BY outcome

-- name: sent_lately
SELECT count(*) FILTER (WHERE finished_at > now() - interval '1 min'), count(*)
FROM duepost.delivery
WHERE outcome = 'sent' AND finished_at > now() - interval '1 h'

-- name: oldest_due
-- Seconds for which the oldest due email has been waiting; NULL where nothing is due.
SELECT extract(epoch FROM now() - min(due_at))::double precision
FROM duepost.scheduled_email
WHERE state IN ('scheduled', 'queued') AND due_at <= now()

-- name: dead_letters
SELECT count(*) FROM dramatiq.queue WHERE state = 'rejected'

-- name: server
-- Version, and seconds between the server's clock and ours.
SELECT current_setting('server_version'), current_setting('server_version_num')::integer,
       extract(epoch FROM clock_timestamp())::double precision

-- name: horizons
-- What keeps done rows from being removed, and for how many seconds: transactions of this database, prepared ones, and
-- slots that nobody reads from, whose time is not known. The longest first.
SELECT format(
    'session %%s of %%s (%%s, %%s)', pid, coalesce(usename, '?'), coalesce(nullif(application_name, ''), 'no name'), state
) AS holder, extract(epoch FROM now() - xact_start)::double precision AS seconds
FROM pg_stat_activity
WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
  AND datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
UNION ALL
SELECT format('prepared transaction %%s of %%s', gid, owner), extract(epoch FROM now() - prepared)::double precision
FROM pg_prepared_xacts
WHERE database = current_database()
UNION ALL
SELECT format(
    'replication slot %%s (nobody reads from it; it keeps %%s of WAL)',
    slot_name, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn))
), NULL
FROM pg_replication_slots
WHERE NOT active AND NOT pg_is_in_recovery()
ORDER BY seconds DESC NULLS FIRST

-- name: sees_all_sessions
SELECT pg_has_role('pg_read_all_stats', 'USAGE')

-- name: roles
-- Which of Duepost's roles exist, and may do their work.
SELECT rolname::text,
       CASE rolname
           WHEN 'duepost_client'
               THEN has_function_privilege(rolname, 'duepost.clear_scheduled_email(bigint)', 'EXECUTE')
           ELSE has_table_privilege(rolname, 'duepost.scheduled_email', 'UPDATE')
               AND has_table_privilege(rolname, 'duepost.recipient', 'SELECT')
       END
FROM pg_roles
WHERE rolname IN ('duepost_client', 'duepost_worker')
ORDER BY rolname

-- name: templates_wanted
SELECT EXISTS (SELECT FROM duepost.scheduled_email WHERE template IS NOT NULL)
