-- What people look at.

-- name: pending
-- What is not finished: what waits for a person first, then the next due. Each state from where its rows are few, so that
-- nothing reads all that is pending; served by item_held, item_due, in_hand's key and queue_key.
WITH chosen AS (
    (
        SELECT i.id, i.is_held, i.due_at
        FROM duepost.item AS i
        WHERE i.is_held
          AND (%(state)s::text IS NULL OR %(state)s::text = 'unknown')
          AND (%(kind)s::text IS NULL OR i.kind = %(kind)s::text)
        ORDER BY i.due_at, i.id
        LIMIT %(limit)s
    )
    UNION ALL
    (
        SELECT next.id, next.is_held, next.due_at
        FROM duepost.pending_lines() AS pending
        CROSS JOIN LATERAL (
            SELECT i.id, i.is_held, i.due_at
            FROM duepost.item AS i
            WHERE i.route = pending.route
              AND i.priority = pending.priority
              AND NOT i.is_held
              AND (
                  %(state)s::text IS NULL
                  OR (
                      %(state)s::text = 'scheduled'
                      AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
                      AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id)
                  )
              )
              AND (%(kind)s::text IS NULL OR i.kind = %(kind)s::text)
            ORDER BY i.due_at, i.id
            LIMIT %(limit)s
        ) AS next
    )
    UNION ALL
    SELECT i.id, i.is_held, i.due_at
    FROM duepost.in_hand AS h
    JOIN duepost.item AS i ON i.id = h.item_id
    WHERE %(state)s::text = 'sending' AND (%(kind)s::text IS NULL OR i.kind = %(kind)s::text)
    UNION ALL
    SELECT i.id, i.is_held, i.due_at
    FROM dramatiq.queue AS m
    JOIN duepost.item AS i ON i.id = m.key
    WHERE %(state)s::text = 'queued' AND m.key IS NOT NULL
      AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
      AND (%(kind)s::text IS NULL OR i.kind = %(kind)s::text)
), page AS MATERIALIZED (
    SELECT chosen.id, chosen.is_held, chosen.due_at
    FROM chosen
    ORDER BY chosen.is_held DESC, chosen.due_at, chosen.id
    LIMIT %(limit)s
)
SELECT row.id, row.kind, row.state, row.scheduled_at, row.due_at, row.expires_at, row.attempts, row.unknowns, row.last_error,
       row.key, extract(epoch FROM row.due_at - now())::double precision, row.endpoint
FROM page
CROSS JOIN LATERAL (
    SELECT e.id, e.kind, e.state, e.scheduled_at, e.due_at, e.expires_at, e.attempts, e.unknowns, e.last_error, e.key,
           NULL AS endpoint
    FROM duepost.scheduled_email AS e
    WHERE e.id = page.id
    UNION ALL
    SELECT m.id, m.kind, m.state, m.scheduled_at, m.due_at, m.expires_at, m.attempts, m.unknowns, m.last_error, m.key,
           m.endpoint
    FROM duepost.scheduled_message AS m
    WHERE m.id = page.id
) AS row
ORDER BY page.is_held DESC, page.due_at, page.id

-- name: count_pending
SELECT CASE
    WHEN %(state)s::text = 'unknown' THEN (
        SELECT count(*) FROM duepost.item AS i
        WHERE i.is_held AND (%(kind)s::text IS NULL OR i.kind = %(kind)s::text)
    )
    WHEN %(state)s::text = 'sending' THEN (
        SELECT count(*) FROM duepost.in_hand AS h JOIN duepost.item AS i ON i.id = h.item_id
        WHERE %(kind)s::text IS NULL OR i.kind = %(kind)s::text
    )
    WHEN %(state)s::text IS NULL THEN (
        SELECT count(*) FROM duepost.item AS i WHERE %(kind)s::text IS NULL OR i.kind = %(kind)s::text
    )
    ELSE (
        SELECT count(*)
        FROM (
            SELECT e.state, e.kind FROM duepost.scheduled_email AS e
            UNION ALL
            SELECT m.state, m.kind FROM duepost.scheduled_message AS m
        ) AS row
        WHERE row.state = %(state)s::text AND (%(kind)s::text IS NULL OR row.kind = %(kind)s::text)
    )
END

-- name: channels
-- What these ids stand for, finished or not.
SELECT i.id, i.channel FROM duepost.item AS i WHERE i.id = ANY (%(ids)s::bigint[])
UNION
SELECT d.email_id, d.channel FROM duepost.delivery AS d WHERE d.email_id = ANY (%(ids)s::bigint[])

-- name: email
-- One email or message that is not finished, with its users; of its content only what a batch gathers.
SELECT row.facts || jsonb_build_object('users', (
    SELECT jsonb_agg(to_jsonb(u) - 'email_id' ORDER BY u.user_id)
    FROM duepost.scheduled_email_user AS u
    WHERE u.email_id = %(id)s
)) || coalesce((
    SELECT jsonb_build_object('batch', gathering.batch, 'items', coalesce(
        (
            SELECT jsonb_agg(jsonb_build_object('item_key', i.item_key, 'item', i.item) ORDER BY i.place)
            FROM duepost.batch_item AS i
            WHERE i.email_id = %(id)s
        ),
        -- Once it was claimed, they are in its context, or are its payload.
        (
            SELECT jsonb_agg(jsonb_build_object('item_key', NULL, 'item', i.item) ORDER BY i.place)
            FROM jsonb_path_query(gathering.items, '$[*]') WITH ORDINALITY AS i (item, place)
        )
    ))
    FROM (
        SELECT e.batch, e.context -> 'items' AS items FROM duepost.email AS e WHERE e.item_id = %(id)s
        UNION ALL
        SELECT m.batch, m.payload FROM duepost.message AS m WHERE m.item_id = %(id)s
    ) AS gathering
    WHERE gathering.batch IS NOT NULL
), '{}')
FROM (
    SELECT to_jsonb(e) - ARRAY['context', 'subject', 'body_text', 'body_html', 'headers'] AS facts
    FROM duepost.scheduled_email AS e
    WHERE e.id = %(id)s
    UNION ALL
    SELECT to_jsonb(m) - 'payload' FROM duepost.scheduled_message AS m WHERE m.id = %(id)s
) AS row

-- name: deliveries
-- How one email or message ended, a row for each recipient.
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
-- What is neither held, in hand nor about to be is scheduled.
WITH counted AS MATERIALIZED (
    SELECT (SELECT count(*) FROM duepost.item) AS total,
           (SELECT count(*) FROM duepost.item WHERE is_held) AS unknown,
           (SELECT count(*) FROM duepost.in_hand) AS sending,
           (
               SELECT count(*)
               FROM dramatiq.queue AS m
               JOIN duepost.item AS i ON i.id = m.key
               WHERE m.key IS NOT NULL AND NOT i.is_held
                 AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = m.key)
           ) AS queued
)
SELECT state.name, state.count
FROM counted
CROSS JOIN LATERAL (VALUES
    ('scheduled', greatest(counted.total - counted.unknown - counted.sending - counted.queued, 0)),
    ('queued', counted.queued), ('sending', counted.sending), ('unknown', counted.unknown)
) AS state (name, count)
WHERE state.count > 0

-- name: outcomes
SELECT outcome, count(*) FROM duepost.delivery GROUP BY outcome

-- name: sent_lately
SELECT count(*) FILTER (WHERE finished_at > now() - interval '1 min'), count(*)
FROM duepost.delivery
WHERE outcome = 'sent' AND finished_at > now() - interval '1 h'

-- name: last_hour
-- What ended in each minute of the last hour, and how late what was sent was. Reads the hour's rows of the ledger.
SELECT recent.ago, count(*) FILTER (WHERE recent.is_sent), count(*) FILTER (WHERE NOT recent.is_sent),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY recent.late) FILTER (WHERE recent.is_sent),
       percentile_cont(0.95) WITHIN GROUP (ORDER BY recent.late) FILTER (WHERE recent.is_sent)
FROM (
    SELECT least(greatest(floor(extract(epoch FROM now() - d.finished_at) / 60), 0), 59)::integer AS ago,
           d.outcome = 'sent' AS is_sent,
           extract(epoch FROM d.finished_at - d.scheduled_at)::double precision AS late
    FROM duepost.delivery AS d
    WHERE d.finished_at > now() - interval '1 h'
) AS recent
GROUP BY recent.ago
ORDER BY recent.ago

-- name: workers
-- The worker processes that are not gone, with what each has in hand.
SELECT w.id, w.host, w.pid, w.release, w.started_at, w.missing_since IS NOT NULL, coalesce(hand.items, 0),
       hand.oldest, coalesce(hand.kinds, '{}'), hand.item_id
FROM duepost.worker AS w
LEFT JOIN (
    SELECT h.worker_id, count(*) AS items, extract(epoch FROM now() - min(h.claimed_at))::double precision AS oldest,
           array_agg(DISTINCT i.kind ORDER BY i.kind) AS kinds, min(h.item_id) AS item_id
    FROM duepost.in_hand AS h
    LEFT JOIN duepost.item AS i ON i.id = h.item_id
    GROUP BY h.worker_id
) AS hand ON hand.worker_id = w.id
WHERE w.gone_at IS NULL
ORDER BY w.id

-- name: oldest_due
-- Seconds for which the oldest due email has been waiting; NULL where nothing is due. Served by item_due.
SELECT extract(epoch FROM now() - min(pending.due_at))::double precision
FROM duepost.oldest_due() AS pending
WHERE pending.route NOT LIKE 'endpoint:%%' AND pending.route NOT LIKE 'paused:%%'

-- name: held_back
-- Seconds for which the oldest due item has been waiting that somebody has paused: everything, its kind or its route; NULL where
-- none is. Served by item_due.
SELECT extract(epoch FROM now() - min(pending.due_at))::double precision
FROM duepost.oldest_due() AS pending
WHERE pending.route LIKE 'paused:%%'
   OR EXISTS (SELECT FROM duepost.control AS c WHERE c.paused)
   OR EXISTS (SELECT FROM duepost.route AS r WHERE r.name = pending.route AND r.stopped_at IS NOT NULL)

-- name: expired_lately
-- Items that have expired within the last hour, and the newest of them; of what was not sent the last hundred thousand rows are
-- looked at. Served by delivery_failed.
SELECT count(DISTINCT latest.email_id), max(latest.email_id)
FROM (
    SELECT d.email_id, d.outcome
    FROM duepost.delivery AS d
    WHERE d.outcome <> 'sent' AND d.finished_at > now() - interval '1 h'
    ORDER BY d.finished_at DESC, d.email_id DESC
    LIMIT 100000
) AS latest
WHERE latest.outcome = 'expired'

-- name: due_count
-- Emails that are due and not yet being sent. Served by item_due.
SELECT coalesce(sum(due.count), 0)::bigint
FROM duepost.pending_lines() AS pending
CROSS JOIN LATERAL (
    SELECT count(*) AS count
    FROM duepost.item AS i
    WHERE i.route = pending.route AND i.priority = pending.priority AND NOT i.is_held AND i.due_at <= now()
      AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
) AS due
WHERE pending.route NOT LIKE 'endpoint:%%' AND pending.route NOT LIKE 'paused:%%'

-- name: unserved_routes
-- Routes that no living worker serves, of which something is due or a kind makes use, with how many emails are due.
SELECT used.route, (
    SELECT count(*)
    FROM (VALUES (-1), (0), (1)) AS line (priority)
    JOIN duepost.item AS i ON i.route = used.route AND i.priority = line.priority AND NOT i.is_held AND i.due_at <= now()
), ARRAY(SELECT k.kind FROM duepost.kind AS k WHERE k.route = used.route ORDER BY k.kind)
FROM (
    SELECT pending.route
    FROM duepost.pending_lines() AS pending
    -- Endpoints are served by every worker.
    WHERE pending.route NOT LIKE 'endpoint:%%' AND pending.route NOT LIKE 'paused:%%'
      AND EXISTS (
          SELECT FROM duepost.item AS i
          WHERE i.route = pending.route AND i.priority = pending.priority AND NOT i.is_held AND i.due_at <= now()
      )
    UNION
    SELECT k.route FROM duepost.kind AS k WHERE k.route IS NOT NULL
) AS used
WHERE NOT EXISTS (
    SELECT
    FROM duepost.route_worker AS w
    JOIN duepost.worker AS worker ON worker.id = w.worker_id
    WHERE w.route = used.route AND worker.gone_at IS NULL
)
ORDER BY used.route

-- name: troubles
-- What has failed before and is not finished; served by item_failed. An email that is unknown was made due
-- when it became so.
SELECT count(*) FILTER (WHERE NOT is_held AND attempts > 0),
       coalesce(max(attempts) FILTER (WHERE NOT is_held), 0),
       extract(epoch FROM now() - min(scheduled_at) FILTER (WHERE NOT is_held AND attempts > 0))::double precision,
       count(*) FILTER (WHERE NOT is_held AND last_error ~ '(^|; )render: (?!recipient: )'),
       count(*) FILTER (WHERE NOT is_held AND last_error ~ '(^|; )render: recipient: '),
       (SELECT count(*) FROM duepost.item WHERE is_held),
       (SELECT extract(epoch FROM now() - min(due_at))::double precision FROM duepost.item WHERE is_held),
       (SELECT min(id) FROM duepost.item WHERE is_held)
FROM duepost.item
WHERE last_error IS NOT NULL

-- name: template_failures
-- What templates fail of, the most frequent first, each with one email; served by item_failed.
SELECT substring(last_error FROM '(?:^|; )render: ((?!recipient: )[^;]*)') AS reason, count(*) AS emails, min(id)
FROM duepost.item
WHERE last_error IS NOT NULL AND last_error ~ '(^|; )render: (?!recipient: )' AND NOT is_held
GROUP BY reason
ORDER BY emails DESC, reason
LIMIT %(limit)s

-- name: recipient_failures
-- What duepost.recipient fails of, the most frequent first, each with one email; served by item_failed. A message of
-- PostgreSQL's, behind the SQLSTATE, may hold values of a row: it is left out.
SELECT substring(last_error FROM '(?:^|; )render: recipient: ([^:;]*)') AS reason, count(*) AS emails, min(id)
FROM duepost.item
WHERE last_error IS NOT NULL AND last_error ~ '(^|; )render: recipient: ' AND NOT is_held
GROUP BY reason
ORDER BY emails DESC, reason
LIMIT %(limit)s

-- name: has_recipients
-- Whether duepost.recipient is there: a team may have dropped it, to put its own view there.
SELECT to_regclass('duepost.recipient') IS NOT NULL

-- name: last_pass
-- Seconds since the scheduler's last pass checked in, to twenty seconds; NULL where there was none yet.
SELECT CASE WHEN checked_in_at IS NOT NULL THEN greatest(extract(epoch FROM now() - checked_in_at), 0)::double precision END
FROM duepost.control

-- name: killed_workers
-- Workers of the last day that have not left in order: asked for where none is alive.
SELECT count(*) FROM duepost.worker WHERE missing_since IS NOT NULL OR gone_at IS NULL

-- name: queue_depth
-- The broker's messages that wait, or are in hand.
SELECT count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE state = 'consumed') FROM dramatiq.queue

-- name: sending
-- What is being sent, and for how long the oldest.
SELECT count(*), extract(epoch FROM now() - min(claimed_at))::double precision
FROM duepost.in_hand

-- name: failing_messages
-- What the broker's messages that are tried again have failed of, of the first ten thousand messages.
SELECT failure.key, count(*)
FROM (SELECT message FROM dramatiq.queue WHERE state IN ('queued', 'consumed') LIMIT 10000) AS first,
     jsonb_each(CASE jsonb_typeof(first.message -> 'options' -> 'failures')
         WHEN 'object' THEN first.message -> 'options' -> 'failures' ELSE '{}'
     END) AS failure
GROUP BY failure.key
ORDER BY 2 DESC, 1

-- name: message_id_domain
SELECT message_id_domain FROM duepost.control

-- name: dead_letters
SELECT count(*) FROM dramatiq.queue WHERE state = 'rejected'

-- name: server
-- Its version, its clock, and whether it takes writes.
SELECT current_setting('server_version'), current_setting('server_version_num')::integer,
       extract(epoch FROM clock_timestamp())::double precision,
       pg_is_in_recovery(),
       current_setting('transaction_read_only') = 'on'

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

-- name: lacking_rights
-- What roles need for their work: whether each is there, and what it lacks; or, of this very role, what it lacks of a worker's.
WITH needed (place, role, sort, name, privilege) AS (
    SELECT row_number() OVER (), 'duepost_worker', sort, name, privilege
    FROM (VALUES
        ('table', 'duepost.item', 'SELECT'), ('table', 'duepost.item', 'UPDATE'), ('table', 'duepost.item', 'DELETE'),
        ('table', 'duepost.scheduled_email_user', 'SELECT'), ('table', 'duepost.scheduled_email_user', 'UPDATE'),
        ('table', 'duepost.recipient', 'SELECT'), ('table', 'duepost.delivery', 'INSERT'),
        ('table', 'duepost.attempt', 'INSERT'), ('table', 'duepost.control', 'SELECT'),
        ('table', 'duepost.control', 'UPDATE'), ('table', 'duepost.worker', 'SELECT'),
        ('table', 'duepost.suppression', 'SELECT'), ('table', 'duepost.kind', 'SELECT'),
        ('table', 'dramatiq.queue', 'SELECT'), ('table', 'dramatiq.queue', 'INSERT'),
        ('table', 'dramatiq.queue', 'UPDATE'), ('table', 'dramatiq.queue', 'DELETE'),
        ('sequence', 'duepost.claim_number', 'USAGE'), ('sequence', 'dramatiq.claim_number', 'USAGE'),
        ('routine', 'duepost.claim_emails_v3', 'EXECUTE'), ('routine', 'duepost.conclude_emails', 'EXECUTE'),
        ('routine', 'duepost.enqueue_items_v2', 'EXECUTE'), ('routine', 'duepost.finish', 'EXECUTE'),
        ('table', 'duepost.email', 'SELECT'), ('table', 'duepost.email', 'DELETE'),
        ('table', 'duepost.in_hand', 'INSERT'), ('table', 'duepost.in_hand', 'DELETE'),
        ('table', 'duepost.attachment_content', 'SELECT'), ('routine', 'duepost.drop_attachments', 'EXECUTE'),
        ('routine', 'duepost.pin_files', 'EXECUTE'),
        ('table', 'duepost.scheduled_email', 'SELECT'), ('table', 'duepost.batch', 'DELETE'),
        ('table', 'duepost.message', 'SELECT'), ('table', 'duepost.message', 'UPDATE'),
        ('table', 'duepost.message', 'DELETE'), ('table', 'duepost.scheduled_message', 'SELECT'),
        ('table', 'duepost.endpoint', 'SELECT'), ('column', 'duepost.endpoint', 'UPDATE'),
        ('routine', 'duepost.claim_messages_v1', 'EXECUTE'), ('routine', 'duepost.message_content', 'EXECUTE'),
        ('routine', 'duepost.call_message_function', 'EXECUTE'), ('routine', 'duepost.endpoints', 'EXECUTE'),
        ('routine', 'duepost.claim_messages_v2', 'EXECUTE'), ('routine', 'duepost.check_conditions_v1', 'EXECUTE'),
        ('routine', 'duepost.due_now_v2', 'EXECUTE'), ('routine', 'duepost.lock_lines', 'EXECUTE'),
        ('routine', 'duepost.keep_content', 'EXECUTE'), ('routine', 'duepost.forget_content', 'EXECUTE')
    ) AS worker (sort, name, privilege)
    UNION ALL
    SELECT 1000 + row_number() OVER (), functions.role, 'routine', 'duepost.' || name, 'EXECUTE'
    FROM (VALUES
        ('duepost_client',
         '{attachment,attachment_at,schedule_email,schedule_emails,clear_scheduled_emails,clear_scheduled_emails_to,clear_scheduled_email,reschedule_email,add_to_batch,remove_from_batch,
           schedule_message,schedule_messages,edit_message,clear_scheduled_messages,clear_scheduled_message,reschedule_message,clear_scheduled,status}'::text[]),
        ('duepost_operator', '{set_endpoint,disable_endpoint,remove_endpoint,endpoints,status,begin_action,act_on_items,end_action,set_pause,unpark,set_priority,follow_priority,'
            'request_probe,forget_some,suppress,unsuppress,import_suppressions,set_rate,remove_rate}')
    ) AS functions (role, names)
    CROSS JOIN LATERAL unnest(functions.names) AS name
    UNION ALL
    SELECT 0, role, 'schema', 'duepost', 'USAGE'
    FROM unnest('{duepost_client,duepost_worker,duepost_operator}'::text[]) AS role
)
SELECT coalesce(role.rolname::text, needed.role), role.oid IS NOT NULL,
       coalesce(array_agg(needed.privilege || ' on ' || needed.name ORDER BY needed.place) FILTER (
           WHERE NOT CASE needed.sort
               WHEN 'schema' THEN has_schema_privilege(role.oid, needed.name, needed.privilege)
               WHEN 'sequence' THEN has_sequence_privilege(role.oid, needed.name, needed.privilege)
               WHEN 'table' THEN coalesce(has_table_privilege(role.oid, to_regclass(needed.name), needed.privilege), true)
               WHEN 'column' THEN has_any_column_privilege(role.oid, needed.name, needed.privilege)
               ELSE coalesce((
                   SELECT bool_and(has_function_privilege(role.oid, f.oid, needed.privilege))
                   FROM pg_proc AS f
                   WHERE f.pronamespace = 'duepost'::regnamespace AND 'duepost.' || f.proname = needed.name
               ), true)
           END
       ), '{}')
FROM needed
LEFT JOIN pg_roles AS role ON role.rolname = CASE WHEN %(own)s THEN current_user ELSE needed.role END
WHERE needed.role = 'duepost_worker' OR NOT %(own)s
GROUP BY needed.role, role.rolname, role.oid
ORDER BY needed.role

-- name: templates_wanted
SELECT EXISTS (SELECT FROM duepost.email WHERE template IS NOT NULL)

-- What the newest emails that are not finished give their templates: one of each kind and template. Of a batch that is still
-- open, the items are in no context yet.
-- name: recent_contexts
SELECT DISTINCT ON (i.kind, e.template) i.kind, e.template, e.context::text, e.address IS NULL AS to_users
FROM (
    SELECT id, kind FROM duepost.item WHERE channel = 'email' ORDER BY id DESC LIMIT %(limit)s
) AS i
JOIN duepost.email AS e ON e.item_id = i.id
WHERE e.template IS NOT NULL AND e.batch IS NULL
ORDER BY i.kind, e.template, i.id DESC

-- name: context_of
SELECT e.context::text FROM duepost.email AS e WHERE e.item_id = %(id)s AND e.template IS NOT NULL

-- name: recipient_of
SELECT r.user_id, r.address, r.name, r.locale, r.timezone FROM duepost.recipient AS r WHERE r.user_id = %(user)s
