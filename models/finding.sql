-- What operators look for: pending items and the ledger as one list, one person, causes. Conditions that may be absent are
-- written `%(x)s IS NULL OR ...`: the driver puts the values in before PostgreSQL plans, so that one that is absent costs
-- nothing, and a plan is made for those that are there.

-- name: pending_of
-- A page of what is not finished among the few that a source gives, held or not, by due time. Served by item_pkey,
-- scheduled_email_user_user, email_mailbox, email_recipient_mailbox, item_held, in_hand's key and queue_key.
WITH source AS (
    SELECT i.id FROM duepost.item AS i WHERE %(source)s::text = 'ids' AND i.id = ANY (%(ids)s::bigint[])
    UNION ALL
    SELECT u.email_id FROM duepost.scheduled_email_user AS u
    WHERE %(source)s::text = 'user' AND u.user_id = %(user)s::text
    UNION ALL
    SELECT e.item_id FROM duepost.email AS e
    WHERE %(source)s::text = 'address' AND e.address IS NOT NULL
      AND duepost.mailbox_key(e.address) = duepost.mailbox_key(%(address)s::text)
    UNION ALL
    SELECT r.email_id FROM duepost.email_recipient AS r
    WHERE %(source)s::text = 'address' AND duepost.mailbox_key(r.address) = duepost.mailbox_key(%(address)s::text)
    UNION ALL
    SELECT i.id FROM duepost.item AS i WHERE %(source)s::text = 'held' AND i.is_held
    UNION ALL
    SELECT i.id FROM duepost.item AS i WHERE %(source)s::text = 'failed' AND i.last_error IS NOT NULL AND NOT starts_with(i.last_error, 'rate: ')
    UNION ALL
    SELECT h.item_id FROM duepost.in_hand AS h WHERE %(source)s::text = 'sending'
    UNION ALL
    SELECT m.key FROM dramatiq.queue AS m WHERE %(source)s::text = 'queued' AND m.key IS NOT NULL
)
SELECT i.due_at, i.id
FROM source
JOIN duepost.item AS i ON i.id = source.id
WHERE i.is_held = %(held)s::boolean
  AND (i.due_at, i.id) > (%(after_at)s::timestamptz, %(after_id)s::bigint)
  AND i.id <= %(upto)s::bigint
  AND (%(ids)s::bigint[] IS NULL OR i.id = ANY (%(ids)s::bigint[]))
  AND (%(user)s::text IS NULL OR EXISTS (
      SELECT FROM duepost.scheduled_email_user AS u WHERE u.email_id = i.id AND u.user_id = %(user)s::text
  ))
  AND (%(address)s::text IS NULL OR EXISTS (
      SELECT FROM duepost.email AS e
      WHERE e.item_id = i.id AND duepost.mailbox_key(e.address) = duepost.mailbox_key(%(address)s::text)
  ) OR EXISTS (
      SELECT FROM duepost.email_recipient AS r
      WHERE r.email_id = i.id AND duepost.mailbox_key(r.address) = duepost.mailbox_key(%(address)s::text)
  ))
  AND (%(kind)s::text IS NULL OR i.kind = %(kind)s::text)
  AND (%(channel)s::text IS NULL OR i.channel = %(channel)s::text)
  AND (%(route)s::text IS NULL OR i.route IN (%(route)s::text, 'paused:' || %(route)s::text))
  AND (NOT %(failed)s::boolean OR (i.last_error IS NOT NULL AND NOT starts_with(i.last_error, 'rate: ')))
  AND (%(reply)s::text IS NULL OR strpos(lower(i.last_error), lower(%(reply)s::text)) > 0)
  AND (%(since)s::timestamptz IS NULL OR i.due_at >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR i.due_at < %(until)s::timestamptz)
  AND (%(state)s::text IS NULL OR %(state)s::text = 'unknown' OR %(state)s::text = CASE
      WHEN EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id) THEN 'sending'
      WHEN EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id) THEN 'queued'
      ELSE 'scheduled'
  END)
ORDER BY i.due_at, i.id
LIMIT %(limit)s

-- name: pending_by_time
-- A page of what is not held, by due time, each line's from its own part of item_due.
SELECT next.due_at, next.id
FROM duepost.pending_lines() AS pending
CROSS JOIN LATERAL (
    SELECT i.due_at, i.id
    FROM duepost.item AS i
    WHERE i.route = pending.route
      AND i.priority = pending.priority
      AND NOT i.is_held
      AND (i.due_at, i.id) > (%(after_at)s::timestamptz, %(after_id)s::bigint)
      AND i.id <= %(upto)s::bigint
      AND (%(since)s::timestamptz IS NULL OR i.due_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR i.due_at < %(until)s::timestamptz)
      AND (%(kind)s::text IS NULL OR i.kind = %(kind)s::text)
      AND (%(channel)s::text IS NULL OR i.channel = %(channel)s::text)
      AND (%(state)s::text IS NULL OR (
          NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
          AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id)
      ))
    ORDER BY i.due_at, i.id
    LIMIT %(limit)s
) AS next
WHERE %(route)s::text IS NULL OR pending.route IN (%(route)s::text, 'paused:' || %(route)s::text)
ORDER BY next.due_at, next.id
LIMIT %(limit)s

-- name: pending_cards
-- What a list shows of items that are not finished.
SELECT i.id, i.channel, i.kind,
       CASE
           WHEN EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id) THEN 'sending'
           WHEN i.is_held THEN 'unknown'
           WHEN EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id) THEN 'queued'
           ELSE 'scheduled'
       END,
       i.scheduled_at, i.due_at, i.expires_at, i.attempts, i.unknowns, i.key, i.route, m.endpoint, e.address,
       ARRAY(
           SELECT u.user_id FROM duepost.scheduled_email_user AS u WHERE u.email_id = i.id ORDER BY u.user_id LIMIT 3
       ),
       greatest((SELECT count(*) FROM duepost.scheduled_email_user AS u WHERE u.email_id = i.id), 1),
       i.last_error,
       EXISTS (SELECT FROM duepost.kind AS k WHERE k.kind = i.kind AND k.paused_at IS NOT NULL)
FROM duepost.item AS i
LEFT JOIN duepost.email AS e ON e.item_id = i.id AND e.item_id = ANY (%(ids)s::bigint[])
LEFT JOIN duepost.message AS m ON m.item_id = i.id AND m.item_id = ANY (%(ids)s::bigint[])
WHERE i.id = ANY (%(ids)s::bigint[])

-- name: ledger_horizon
-- How far back a page of the ledger looks, where nothing but its time leads to the rows; NULL: to its beginning. Served by
-- delivery_concluded.
SELECT d.finished_at
FROM duepost.delivery AS d
WHERE d.finished_at <= %(before_at)s::timestamptz
  AND (%(since)s::timestamptz IS NULL OR d.finished_at >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR d.finished_at < %(until)s::timestamptz)
ORDER BY d.finished_at DESC
OFFSET %(budget)s LIMIT 1

-- name: ledger_page
-- A page of what is finished, the newest first, an item once for each time that it was concluded. Served by delivery_email,
-- delivery_user, delivery_mailbox, delivery_failed or delivery_concluded, by what is asked for.
SELECT d.finished_at, d.email_id
FROM duepost.delivery AS d
WHERE d.finished_at <= %(before_at)s::timestamptz
  AND (d.finished_at, d.email_id) < (%(before_at)s::timestamptz, %(before_id)s::bigint)
  AND (%(horizon)s::timestamptz IS NULL OR d.finished_at >= %(horizon)s::timestamptz)
  AND (%(since)s::timestamptz IS NULL OR d.finished_at >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR d.finished_at < %(until)s::timestamptz)
  AND (%(ids)s::bigint[] IS NULL OR d.email_id = ANY (%(ids)s::bigint[]))
  AND (%(user)s::text IS NULL OR d.user_id = %(user)s::text)
  AND (%(address)s::text IS NULL OR (
      d.address IS NOT NULL AND duepost.mailbox_key(d.address) = duepost.mailbox_key(%(address)s::text)
  ))
  AND (%(kind)s::text IS NULL OR d.kind = %(kind)s::text)
  AND (%(channel)s::text IS NULL OR d.channel = %(channel)s::text)
  AND (%(outcome)s::text IS NULL OR d.outcome = %(outcome)s::text)
  AND (NOT %(failed)s::boolean OR d.outcome <> 'sent')
  AND (%(reply)s::text IS NULL OR strpos(lower(d.reply), lower(%(reply)s::text)) > 0)
  AND (%(route)s::text IS NULL OR %(route)s::text = coalesce('endpoint:' || d.endpoint, d.route, 'default'))
GROUP BY d.finished_at, d.email_id
ORDER BY d.finished_at DESC, d.email_id DESC
LIMIT %(limit)s

-- name: ledger_cards
-- What a list shows of finished items: each conclusion by itself. Served by delivery_email.
SELECT d.email_id, d.finished_at, min(d.channel), min(d.kind), min(d.scheduled_at), max(d.attempts), max(d.unknowns),
       min(d.key), min(coalesce('endpoint:' || d.endpoint, d.route, 'default')), min(d.endpoint), min(d.address),
       (array_agg(d.user_id ORDER BY d.user_id) FILTER (WHERE d.user_id IS NOT NULL))[1:3], count(*),
       (array_agg(coalesce(d.code || ' ', '') || d.reply ORDER BY d.outcome = 'sent') FILTER (WHERE d.reply IS NOT NULL))[1],
       count(*) FILTER (WHERE d.outcome = 'sent'), count(*) FILTER (WHERE d.outcome = 'undeliverable'),
       count(*) FILTER (WHERE d.outcome = 'cleared'), count(*) FILTER (WHERE d.outcome = 'expired'),
       count(*) FILTER (WHERE d.outcome = 'suppressed'), count(*) FILTER (WHERE d.outcome = 'obsolete')
FROM duepost.delivery AS d
WHERE d.email_id = ANY (%(ids)s::bigint[])
GROUP BY d.email_id, d.finished_at

-- name: id_of_key
-- Served by email_key's own key.
SELECT s.id FROM duepost.status(key => %(key)s) AS s

-- name: content
-- What an item that is not finished says.
SELECT e.template, e.context, e.subject, e.body_text, e.body_html, e.headers, e.sender, e.reply_to, e.message_id_header,
       NULL::jsonb AS payload
FROM duepost.email AS e
WHERE e.item_id = %(id)s
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, m.wire_id, m.payload FROM duepost.message AS m WHERE m.item_id = %(id)s

-- name: users_of
-- Of an item that is not finished, with what has become of it for each.
SELECT u.user_id, u.address, u.outcome, u.unknown, u.code, u.enhanced_code, u.reply
FROM duepost.scheduled_email_user AS u
WHERE u.email_id = %(id)s
ORDER BY u.user_id
LIMIT 1000

-- name: endings
-- How an item has ended, for each recipient.
SELECT d.finished_at, d.outcome, d.user_id, d.address, d.code, d.enhanced_code, d.reply,
       coalesce('endpoint:' || d.endpoint, d.route, 'default'), d.attempts, d.unknowns
FROM duepost.delivery AS d
WHERE d.email_id = %(id)s
ORDER BY d.finished_at, d.user_id
LIMIT 10000

-- name: tries
-- What each attempt at it came to, for each recipient.
SELECT a.claim, a.started_at, a.finished_at, a.worker_id, a.user_id, a.phase, a.verdict, a.code, a.enhanced_code, a.reply
FROM duepost.attempt AS a
WHERE a.email_id = %(id)s
ORDER BY a.claim, a.user_id
LIMIT 10000

-- name: actions_on
-- What operators have done to one item that they named by its id.
SELECT a.id, a.action, a.by_whom, a.via, a.login, a.reason, a.asked, a.began_at, a.ended_at, a.done, a.skipped
FROM duepost.operator_action AS a
WHERE a.asked -> 'ids' @> to_jsonb(%(id)s::bigint)
ORDER BY a.id DESC
LIMIT 50

-- name: users_with_address
-- Users who have had emails at this address lately, and those who have it in the table duepost.recipient. Served by
-- delivery_mailbox.
SELECT DISTINCT latest.user_id
FROM (
    SELECT d.user_id
    FROM duepost.delivery AS d
    WHERE d.address IS NOT NULL AND duepost.mailbox_key(d.address) = duepost.mailbox_key(%(address)s)
    ORDER BY d.finished_at DESC
    LIMIT 200
) AS latest
WHERE latest.user_id IS NOT NULL
ORDER BY latest.user_id
LIMIT 20

-- name: recipients_with_address
-- Served by recipient_address where that is our own table; a team's view may take its time.
SELECT r.user_id::text FROM duepost.recipient AS r WHERE lower(r.address) = lower(%(address)s) ORDER BY 1 LIMIT 20

-- name: recipient
-- What the team says of a user.
SELECT r.address::text, r.name::text, r.locale::text, r.timezone::text, r.active
FROM duepost.recipient AS r
WHERE r.user_id = %(user)s
LIMIT 1

-- name: failed_pending
-- What keeps items that are not finished, grouped by cause: the last error without addresses and numbers. Served by
-- item_failed; at most a number of them are looked at.
SELECT cause.channel, cause.kind, cause.route, cause.is_held, cause.words, count(*), min(cause.id), min(cause.scheduled_at),
       max(cause.attempts), min(cause.last_error)
FROM (
    SELECT i.channel, i.kind, i.route, i.is_held, i.id, i.scheduled_at, i.attempts, i.last_error,
           left(lower(btrim(regexp_replace(regexp_replace(
               regexp_replace(i.last_error, '<[^<>]*>', ' ', 'g'), '\S*[@0-9]\S*', ' ', 'g'
           ), '\s+', ' ', 'g'))), 300) AS words
    FROM duepost.item AS i
    WHERE i.last_error IS NOT NULL AND NOT starts_with(i.last_error, 'rate: ')
    LIMIT %(budget)s
) AS cause
GROUP BY cause.channel, cause.kind, cause.route, cause.is_held, cause.words
ORDER BY count(*) DESC, min(cause.id)
LIMIT %(limit)s

-- name: failed_finished
-- What was undeliverable or expired since then, grouped in the same way. Served by delivery_failed; at most a number of them are looked at.
SELECT cause.channel, cause.kind, cause.route, cause.outcome, cause.words, count(*), count(DISTINCT cause.email_id),
       min(cause.email_id), min(cause.finished_at), max(cause.finished_at), min(cause.reply)
FROM (
    SELECT d.channel, d.kind, coalesce('endpoint:' || d.endpoint, d.route, 'default') AS route, d.outcome, d.email_id,
           d.finished_at, coalesce(d.code || ' ', '') || d.reply AS reply,
           coalesce(d.code || ' ', '') || left(lower(btrim(regexp_replace(regexp_replace(
               regexp_replace(d.reply, '<[^<>]*>', ' ', 'g'), '\S*[@0-9]\S*', ' ', 'g'
           ), '\s+', ' ', 'g'))), 300) AS words
    FROM duepost.delivery AS d
    WHERE d.outcome <> 'sent' AND d.outcome NOT IN ('cleared', 'suppressed', 'obsolete') AND d.finished_at >= %(since)s
    ORDER BY d.finished_at DESC, d.email_id DESC
    LIMIT %(budget)s
) AS cause
GROUP BY cause.channel, cause.kind, cause.route, cause.outcome, cause.words
ORDER BY count(*) DESC, min(cause.email_id)
LIMIT %(limit)s

-- name: estimated_pending
-- How many items there are, as the planner has it; 0 where it does not know.
SELECT greatest(c.reltuples, 0)::bigint FROM pg_class AS c WHERE c.oid = 'duepost.item'::regclass

-- name: estimated_finished
SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = 'duepost.delivery'::regclass

-- name: highest_id
-- The newest item's, for who wants to leave alone what comes later.
SELECT greatest(coalesce((SELECT max(i.id) FROM duepost.item AS i), 0), (SELECT s.last_value FROM duepost.scheduled_email_id_seq AS s)), now()

-- name: journal
-- What operators have done, the newest first.
SELECT a.id, a.action, a.by_whom, a.via, a.login, a.reason, a.asked, a.began_at, a.ended_at, a.done, a.skipped
FROM duepost.operator_action AS a
WHERE a.id < %(before)s
  AND (%(action)s::text IS NULL OR a.action = %(action)s::text)
  AND (%(by_whom)s::text IS NULL OR a.by_whom = %(by_whom)s::text)
ORDER BY a.id DESC
LIMIT %(limit)s

-- name: forecast
-- What falls due in each hour of the next day, by kind: of each route from item_due; no more than a number of each route are counted.
SELECT date_trunc('hour', next.due_at, 'UTC'), next.kind, count(*)
FROM (
    SELECT CASE
               WHEN k.kind IS NULL THEN i.due_at
               ELSE duepost.after_quiet_hours(i.id, i.due_at, k.timezone, k.quiet_from, k.quiet_to)
           END AS due_at, i.kind
    FROM duepost.pending_lines() AS pending
    CROSS JOIN LATERAL (
        SELECT i.id, greatest(i.due_at, now()) AS due_at, i.kind, i.priority
        FROM duepost.item AS i
        WHERE i.route = pending.route AND i.priority = pending.priority AND NOT i.is_held AND i.due_at < now() + make_interval(hours => %(hours)s)
        ORDER BY i.due_at
        LIMIT %(budget)s
    ) AS i
    LEFT JOIN duepost.kind AS k ON k.kind = i.kind AND k.quiet_from <> k.quiet_to AND i.priority <> -1
) AS next
GROUP BY 1, 2
ORDER BY 1, 2

-- name: after_outage
-- What would be due in a while if nothing were sent until then, by priority and kind: how many would be sent, how many would be too
-- late, and since when the oldest has been due. Of each line from item_due, no more than a number of each; not what an operator has paused.
SELECT next.priority, next.kind, count(*) FILTER (WHERE NOT next.is_too_late), count(*) FILTER (WHERE next.is_too_late), min(next.due_at)
FROM (
    SELECT i.priority, i.kind, i.due_at,
           coalesce(i.expires_at <= now() + make_interval(secs => %(seconds)s), false)
           OR coalesce(k.catch_up = 'expire' AND k.late_after < now() + make_interval(secs => %(seconds)s) - i.scheduled_at, false)
               AS is_too_late
    FROM duepost.pending_lines() AS pending
    CROSS JOIN LATERAL (
        SELECT i.priority, i.kind, greatest(i.due_at, '0002-01-01 00:00:00+00') AS due_at, i.expires_at, i.scheduled_at
        FROM duepost.item AS i
        WHERE i.route = pending.route AND i.priority = pending.priority AND NOT i.is_held
          AND i.due_at <= now() + make_interval(secs => %(seconds)s)
        ORDER BY i.due_at
        LIMIT %(budget)s
    ) AS i
    LEFT JOIN duepost.kind AS k ON k.kind = i.kind
    WHERE pending.route NOT LIKE 'paused:%%' AND k.paused_at IS NULL
) AS next
GROUP BY next.priority, next.kind
ORDER BY next.priority, min(next.due_at), next.kind

-- name: sent_lately
-- How many items a second were sent in the busiest minute of the last hour in which any was; NULL where none was. Served by
-- delivery_concluded; at most a number of rows are looked at.
SELECT max(minute.sent) / 60.0::double precision
FROM (
    SELECT count(*) AS sent
    FROM (
        SELECT d.finished_at, d.outcome
        FROM duepost.delivery AS d
        WHERE d.finished_at > (
            SELECT last.finished_at FROM duepost.delivery AS last
            WHERE last.outcome = 'sent' ORDER BY last.finished_at DESC LIMIT 1
        ) - interval '1 h'
        ORDER BY d.finished_at DESC
        LIMIT %(budget)s
    ) AS latest
    WHERE latest.outcome = 'sent'
    GROUP BY date_trunc('minute', latest.finished_at)
) AS minute

-- name: paused_kinds
SELECT k.kind, k.paused_at, k.paused_by, k.pause_reason FROM duepost.kind AS k WHERE k.paused_at IS NOT NULL ORDER BY k.kind

-- name: stopped_routes
SELECT r.name, r.stopped_at, r.stopped_by, r.stop_reason FROM duepost.route AS r WHERE r.stopped_at IS NOT NULL ORDER BY r.name

-- name: kinds
-- Kinds that have a policy, or of which something is pending or has just been concluded.
SELECT known.kind, k.on_unknown, k.expire_after, k.route, k.late_after, k.catch_up, k.on_outcome, k.keep_content, k.priority, k.guard, k.quiet_from,
       k.quiet_to, k.timezone, k.unsubscribe, k.at_most_per_day, k.paused_at,
       k.paused_by, k.pause_reason
FROM (
    SELECT k.kind FROM duepost.kind AS k
    UNION
    SELECT i.kind FROM (
        SELECT next.kind
        FROM duepost.pending_lines() AS pending
        CROSS JOIN LATERAL (
            SELECT i.kind FROM duepost.item AS i
            WHERE i.route = pending.route AND i.priority = pending.priority AND NOT i.is_held ORDER BY i.due_at, i.id LIMIT 2000
        ) AS next
    ) AS i
    UNION
    SELECT d.kind FROM (
        SELECT d.kind FROM duepost.delivery AS d ORDER BY d.finished_at DESC LIMIT 5000
    ) AS d
) AS known
LEFT JOIN duepost.kind AS k ON k.kind = known.kind
ORDER BY known.kind
LIMIT 1000
