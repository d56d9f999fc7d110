-- A scheduled email's life, in order. Each statement is titled with its transition and guarded on the state
-- that it expects, so that a late, lost or doubled message changes nothing.

-- name: due_page
-- The oldest due items of a route and a priority after a place in due order; served by item_due. Items that are queued or in hand are stepped over:
-- there is never much of it. What somebody wrote as due before there were years is due, at the first moment that a worker can
-- read.
SELECT i.id, greatest(i.due_at, '0002-01-01 00:00:00+00'), i.kind, i.due_at > now() - make_interval(secs => %(on_time)s) AS is_on_time,
       i.priority
FROM duepost.item AS i
WHERE i.route = %(route)s
  AND i.priority = %(priority)s
  AND NOT i.is_held
  AND i.due_at <= now()
  AND (i.due_at, i.id) > (%(after_due_at)s::timestamptz, %(after_id)s)
  AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
  AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id)
ORDER BY i.due_at, i.id
LIMIT %(size)s

-- name: newest_due
-- What has only just fallen due on a route in the line of normal priority: of the newest some of each kind in turn, so that a flood of
-- one kind hides no other; bulk may wait. Served by item_due.
SELECT next.id, next.due_at, next.kind, true AS is_on_time, 0::smallint
FROM (
    SELECT newest.id, newest.due_at, newest.kind,
           row_number() OVER (PARTITION BY newest.kind ORDER BY newest.due_at DESC, newest.id DESC) AS turn
    FROM (
        SELECT i.id, i.due_at, i.kind
        FROM duepost.item AS i
        WHERE i.route = %(route)s
          AND i.priority = 0
          AND NOT i.is_held
          AND i.due_at <= now()
          AND i.due_at > now() - make_interval(secs => %(on_time)s)
          AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
          AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id)
        ORDER BY i.due_at DESC, i.id DESC
        LIMIT %(depth)s
    ) AS newest
) AS next
ORDER BY next.turn, next.due_at DESC, next.id DESC
LIMIT %(size)s

-- name: due_now
-- What has fallen due within the last second on these routes and is not enqueued, urgent items first; on busy routes only those.
SELECT id, route, priority FROM duepost.due_now_v2(%(routes)s::text[], %(busy)s::text[])

-- name: oldest_due
-- A route's oldest due email that nobody has, an urgent one first, however long it has been due; nothing where nothing may be sent.
SELECT due.id
FROM duepost.control AS control
CROSS JOIN LATERAL duepost.lock_due(%(route)s, 1, '-infinity', 0) AS due
WHERE NOT control.paused AND NOT duepost.is_route_blocked(%(route)s)

-- name: are_enough_waiting
-- Counted no further than it matters, those that are carried beside the table too; served by queue_claimable.
SELECT count(*) >= %(enough)s
FROM (
    SELECT FROM dramatiq.queue
    WHERE queue_name = %(queue_name)s AND priority = ANY (%(priorities)s::integer[]) AND state = 'queued'
      AND eta <= now() + make_interval(secs => %(carried_for)s)
    LIMIT %(enough)s
) AS waiting

-- name: next_due_at
-- Seconds until something is to be done; below 0 if it has been to be done for some time. Of each route it is the next due
-- row, not before its way takes more, or the next probe while the circuit is open; either from the beginning, or among what
-- has been due for no longer than a few seconds. Nothing while a scheduler is at a long pass: another one beside it would
-- only be in its way; and nothing by a way for whose senders enough waits.
WITH way AS MATERIALIZED (
    SELECT w.route, w.way, w.opens_at, w.probe_at FROM duepost.ways() AS w
), full_way AS MATERIALIZED (
    SELECT each.way
    FROM (SELECT DISTINCT way.way FROM way WHERE way.way IS NOT NULL) AS each
    WHERE (
        SELECT count(*) FROM (
            SELECT FROM dramatiq.queue
            WHERE queue_name = %(queue_name)s || coalesce('_' || nullif(each.way, 'default'), '')
              AND priority = ANY (%(priorities)s::integer[]) AND state = 'queued'
              AND eta <= now() + make_interval(secs => %(carried_for)s)
            LIMIT %(enough)s
        ) AS waiting
    ) >= %(enough)s
)
SELECT extract(epoch FROM min(soonest.at) - now())::double precision
FROM (
    SELECT least(
        CASE WHEN way.opens_at IS NOT NULL AND (full_way.way IS NULL OR line.priority = -1)
            THEN greatest(next.due_at, way.opens_at, duepost.claimed_directly_until(way.route, way.way))
        END,
        CASE WHEN way.probe_at IS NOT NULL THEN greatest(next.due_at, way.probe_at) END
    ) AS at
    FROM way
    CROSS JOIN (VALUES (-1), (0), (1)) AS line (priority)
    CROSS JOIN LATERAL (
        SELECT i.due_at
        FROM duepost.item AS i
        WHERE i.route = way.route
          AND i.priority = line.priority
          AND NOT i.is_held
          AND i.due_at >= CASE WHEN %(full_scan)s THEN '-infinity'::timestamptz ELSE now() - interval '5 s' END
          AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
          AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id)
        ORDER BY i.due_at
        LIMIT 1
    ) AS next
    LEFT JOIN full_way ON full_way.way = way.way
    UNION ALL
    -- Of an endpoint's messages it is the next of those that may be queued at once.
    SELECT CASE
        WHEN r.circuit_open THEN greatest(next.due_at, least(r.probe_at, now() + make_interval(secs => r.probe_pause)))
        WHEN r.paused_until BETWEEN now() AND now() + make_interval(secs => 2 * r.pause)
            THEN greatest(next.due_at, r.paused_until)
        ELSE next.due_at
    END
    FROM duepost.route AS r
    JOIN duepost.endpoint AS e ON 'endpoint:' || e.name = r.name AND e.disabled_at IS NULL
    CROSS JOIN (VALUES (-1), (0), (1)) AS line (priority)
    CROSS JOIN LATERAL (
        SELECT min(due.due_at) AS due_at
        FROM (
            SELECT i.id, i.due_at
            FROM duepost.item AS i
            WHERE i.route = r.name AND i.priority = line.priority AND NOT i.is_held
            ORDER BY i.due_at, i.id
            LIMIT %(window)s
        ) AS due
        WHERE NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = due.id)
          AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = due.id)
    ) AS next
    WHERE r.channel = 'message' AND r.stopped_at IS NULL
) AS soonest
CROSS JOIN duepost.control AS control
WHERE NOT control.paused AND control.passing_until BETWEEN now() AND now() + interval '2 s' IS NOT TRUE

-- name: enqueue
-- scheduled → queued, with their messages; what has expired goes to the ledger.
SELECT duepost.enqueue_items_v2(
    %(email_ids)s::bigint[], %(message_ids)s::uuid[], %(contents)s::jsonb[], %(queue_name)s,
    %(priorities)s::integer[], %(probe)s, %(way)s, %(delay)s
)

-- name: lock_expired
-- An unfinished item past its expiry, locked. One that is being sent, or unknown, has not expired.
WITH item AS MATERIALIZED (
    SELECT id, kind, is_held, expires_at, scheduled_at FROM duepost.item WHERE id = %(id)s FOR UPDATE SKIP LOCKED
)
SELECT id
FROM item
WHERE NOT is_held AND (expires_at <= now() OR duepost.is_too_late(kind, scheduled_at)) AND NOT duepost.is_in_hand(id)

-- name: finish
-- → ledger, whole.
SELECT duepost.finish(%(id)s, %(outcome)s, %(reply)s)

-- name: claim
-- scheduled, queued → sending, each under a claim number of its own; gives the emails with the address, or the users, that are still
-- to get them. Several threads' claims share one statement and one commit.
SELECT id, claim, kind, attempts, unknowns, last_error, probe, message_id_header, date_seconds, sender, reply_to, headers,
       template, context, subject, body_text, body_html, mailbox_full_seconds, address, suppressed, users, extras,
       priority
FROM duepost.claim_emails_v3(%(ids)s::bigint[], %(worker_id)s, %(way)s)

-- name: claim_apart
-- The same for one whose conditions have been asked in this transaction.
SELECT id, claim, kind, attempts, unknowns, last_error, probe, message_id_header, date_seconds, sender, reply_to, headers,
       template, context, subject, body_text, body_html, mailbox_full_seconds, address, suppressed, users, extras,
       priority
FROM duepost.claim_emails_v3(ARRAY[%(id)s::bigint], %(worker_id)s, %(way)s, apart => true)

-- name: check_conditions
-- Asks what the kind of an item wants to be asked before it is sent.
SELECT answer, said, waits::text
FROM duepost.check_conditions_v1(%(id)s, %(kept_until)s::timestamptz, %(due_at)s::timestamptz, %(failure)s)

-- name: put_off
-- What was kept from others, and cannot be asked about now: due in a while, but no later than it expires.
UPDATE duepost.item AS i
SET due_at = least(now() + make_interval(secs => kept.seconds), i.expires_at)
FROM unnest(%(ids)s::bigint[], %(kept_until)s::timestamptz[], %(seconds)s::double precision[]) AS kept (id, kept_until, seconds)
WHERE i.id = ANY (%(ids)s::bigint[]) AND i.id = kept.id AND i.due_at = kept.kept_until

-- name: claim_due
-- scheduled → sending for a route's next due emails after a place in the line of each priority, and where the next claim goes on.
-- Places that somebody goes back from are earlier by `overlap` seconds. Served by item_due.
SELECT id, claim, kind, attempts, unknowns, last_error, probe, message_id_header, date_seconds, sender, reply_to, headers,
       template, context, subject, body_text, body_html, mailbox_full_seconds, address, suppressed, users, extras, priority, found,
       last_due_at, last_id
FROM duepost.claim_due_emails_v2(
    %(way)s, %(size)s, %(worker_id)s, %(after_due_at)s::timestamptz[], %(after_id)s::bigint[], %(overlap)s
)

-- name: claimed_since
-- What a worker has claimed without knowing it: claims later than all that it knew of then, but for those that it knows of now.
SELECT h.item_id, h.claim
FROM duepost.in_hand AS h
WHERE h.worker_id = %(worker_id)s AND h.claim > %(after_claim)s AND h.claim <> ALL (%(known)s::bigint[])

-- name: read_recipients
SELECT known::text, failures::text FROM duepost.recipient_rows_v2(%(users)s::text[])

-- name: claimed_unread
-- What a worker has claimed in an answer that it could not read: no more of it than it needs to give it back.
SELECT i.id, h.claim, i.kind, i.attempts, i.unknowns, i.last_error, i.probe AND i.route = h.route, e.message_id_header,
       e.address, duepost.users_to_go(i.id), duepost.email_extras(i.id), i.priority
FROM duepost.in_hand AS h
JOIN duepost.item AS i ON i.id = h.item_id
JOIN duepost.email AS e ON e.item_id = h.item_id
WHERE h.item_id = ANY (%(ids)s::bigint[])
  AND h.worker_id = %(worker_id)s
  AND h.claim <> ALL (%(held)s::bigint[])
ORDER BY i.id

-- name: read_claimed
-- The rest of it, for one.
SELECT extract(epoch FROM e.date_header)::double precision, e.sender, e.reply_to, e.headers::text, e.template,
       e.context::text, e.subject, e.body_text, e.body_html, 0::double precision, e.address,
       e.address IS NOT NULL AND EXISTS (
           SELECT FROM duepost.suppression AS s
           WHERE s.address = duepost.mailbox_key(e.address)
             AND (s.kind IS NULL OR s.kind = (SELECT i.kind FROM duepost.item AS i WHERE i.id = h.item_id))
             AND (s.until IS NULL OR s.until > now())
       )
FROM duepost.in_hand AS h
JOIN duepost.email AS e ON e.item_id = h.item_id
WHERE h.item_id = %(id)s AND h.claim = %(claim)s

-- name: release
-- queued → scheduled: nothing may be sent now, and that is no attempt. What was to be a probe is none any more.
UPDATE duepost.item AS i
SET probe = false
WHERE i.id = %(id)s AND i.probe AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)

-- name: is_claimable
-- Whether an item that gave nothing is only held by another transaction for the moment.
SELECT EXISTS (
    SELECT
    FROM duepost.item AS i, duepost.control AS control
    WHERE i.id = %(id)s
      AND duepost.is_way_of(coalesce(%(way)s, i.route), i.route)
      AND NOT i.is_held
      AND i.due_at <= now()
      AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
      AND NOT control.paused
      AND NOT duepost.is_kind_paused(i.kind)
      AND NOT duepost.is_stopped(coalesce(%(way)s, i.route), i.route)
      AND NOT EXISTS (
          SELECT FROM duepost.endpoint AS e WHERE 'endpoint:' || e.name = i.route AND e.disabled_at IS NOT NULL
      )
      AND ((i.probe AND i.route = coalesce(%(way)s, i.route)) OR NOT duepost.is_route_blocked(coalesce(%(way)s, i.route)))
)

-- name: return_unstarted
-- sending → scheduled: claimed, and not begun; that is no attempt.
WITH gone AS (
    DELETE FROM duepost.in_hand AS h
    USING unnest(%(ids)s::bigint[], %(claims)s::bigint[]) AS claimed (id, claim)
    WHERE h.item_id = ANY (%(ids)s::bigint[]) AND h.item_id = claimed.id AND h.claim = claimed.claim
    RETURNING h.item_id
), message AS (
    DELETE FROM dramatiq.queue AS m USING gone WHERE m.key = gone.item_id AND m.key = ANY (%(ids)s::bigint[])
), no_probe AS (
    UPDATE duepost.item AS i SET probe = false FROM gone
    WHERE i.id = ANY (%(ids)s::bigint[]) AND i.id = gone.item_id AND i.probe
)
SELECT item_id FROM gone

-- name: lock_claimed
-- The item of a claim, locked: nothing where the claim is no longer the item's, looked at once the item is locked.
WITH item AS MATERIALIZED (
    SELECT id FROM duepost.item WHERE id = %(id)s FOR UPDATE
)
SELECT item.id FROM item WHERE duepost.has_claim(item.id, %(claim)s)

-- name: was_concluded
-- Whether this very claim has been concluded by its own worker: a commit whose answer was lost.
SELECT EXISTS (
    SELECT FROM duepost.attempt WHERE email_id = %(id)s AND claim = %(claim)s AND phase <> 'lost'
)

-- name: journal
-- What the attempt came to, for each recipient.
INSERT INTO duepost.attempt (
    email_id, claim, worker_id, user_id, started_at, finished_at, phase, verdict, code, enhanced_code, reply, address
)
SELECT h.item_id, h.claim, h.worker_id, result.user_id, h.claimed_at, now(), result.phase, result.verdict,
       result.code, result.enhanced_code, result.reply, CASE WHEN result.place IS NOT NULL THEN result.address END
FROM duepost.in_hand AS h,
     jsonb_to_recordset(%(results)s) AS result (
         user_id text, address text, place integer, phase text, verdict text, code integer, enhanced_code text, reply text
     )
WHERE h.item_id = %(id)s AND h.claim = %(claim)s

-- name: record_outcomes
-- Users for whom the email is finished keep their outcome until it is finished for all. A copy that may have arrived may
-- have so whatever a later attempt came to.
WITH result AS MATERIALIZED (
    SELECT r.user_id, r.place, r.address, r.verdict, r.outcome, r.code, r.enhanced_code, r.reply
    FROM jsonb_to_recordset(%(results)s) AS r (
        user_id text, place integer, address text, verdict text, outcome text, code integer, enhanced_code text, reply text
    )
), seen_by AS (
    UPDATE duepost.email_recipient AS e
    SET outcome = result.outcome,
        unknown = e.unknown OR coalesce(result.verdict = 'unknown', false),
        code = result.code,
        enhanced_code = result.enhanced_code,
        reply = result.reply
    FROM result
    WHERE e.email_id = %(id)s AND e.place = result.place AND e.outcome IS NULL
)
UPDATE duepost.scheduled_email_user AS u
SET outcome = result.outcome,
    unknown = u.unknown OR coalesce(result.verdict = 'unknown', false),
    address = result.address,
    code = result.code,
    enhanced_code = result.enhanced_code,
    reply = result.reply
FROM result
WHERE u.email_id = %(id)s AND u.user_id = result.user_id AND u.outcome IS NULL

-- name: conclude_finished
-- sending → ledger, with the journal of the attempts: every recipient has an outcome, now or from an earlier attempt.
-- Several threads' conclusions share one statement and one commit, and their messages go with them.
SELECT duepost.conclude_emails(
    %(ids)s::bigint[], %(claims)s::bigint[], %(results)s::jsonb, %(message_ids)s::uuid[], %(message_claims)s::bigint[]
)

-- name: conclude_later
-- sending → scheduled: due again after a pause; never later than the expiry, which ends it on time.
WITH gone AS (
    DELETE FROM duepost.in_hand AS h WHERE h.item_id = %(id)s AND h.claim = %(claim)s RETURNING h.item_id
), message AS (
    DELETE FROM dramatiq.queue AS m USING gone WHERE m.key = %(id)s AND m.key = gone.item_id
)
UPDATE duepost.item AS i
SET due_at = CASE
        WHEN %(pause)s IS NULL THEN i.due_at
        ELSE least(now() + make_interval(secs => %(pause)s), i.expires_at)
    END,
    attempts = least(i.attempts, 2147483646) + %(counted)s::integer,
    last_error = %(error)s,
    mailbox_full_since = CASE WHEN %(mailbox_full)s THEN coalesce(i.mailbox_full_since, now()) END,
    probe = false
FROM gone
WHERE i.id = %(id)s AND i.id = gone.item_id
RETURNING i.id

-- name: conclude_unknown
-- sending → scheduled once more (the kind says resend, and it is the first time), or → unknown: a person decides.
WITH gone AS (
    DELETE FROM duepost.in_hand AS h WHERE h.item_id = %(id)s AND h.claim = %(claim)s RETURNING h.item_id
), message AS (
    DELETE FROM dramatiq.queue AS m USING gone WHERE m.key = %(id)s AND m.key = gone.item_id
)
UPDATE duepost.item AS i
SET is_held = i.unknowns > 0 OR coalesce(
        (SELECT k.on_unknown FROM duepost.kind AS k WHERE k.kind = i.kind), duepost.usual_on_unknown(i.id)
    ) <> 'resend',
    due_at = now(),
    attempts = least(i.attempts, 2147483646) + 1,
    unknowns = least(i.unknowns, 2147483646) + 1,
    last_error = %(error)s,
    probe = false
FROM gone
WHERE i.id = %(id)s AND i.id = gone.item_id
RETURNING CASE WHEN i.is_held THEN 'unknown' ELSE 'scheduled' END

-- name: suppress_dead
SELECT duepost.suppress_dead(%(address)s, %(enhanced_code)s, %(reply)s)

-- name: held_by_dead_workers
-- What workers have in hand that are gone.
SELECT h.item_id, h.claim, (SELECT i.kind FROM duepost.item AS i WHERE i.id = h.item_id), h.worker_id, h.route
FROM duepost.in_hand AS h
JOIN duepost.worker AS worker ON worker.id = h.worker_id
WHERE worker.gone_at IS NOT NULL
ORDER BY h.item_id

-- name: held_by_worker
-- What a worker has in hand for longer than a while, by claim.
SELECT h.item_id, h.claim, (SELECT i.kind FROM duepost.item AS i WHERE i.id = h.item_id), h.worker_id, h.route
FROM duepost.in_hand AS h
WHERE h.worker_id = %(worker_id)s AND h.claimed_at < now() - interval '60 s'
ORDER BY h.item_id

-- name: retry_now
-- An operator's hand: due at once. A Date that no attempt has used yet is not left in the future.
WITH item AS (
    UPDATE duepost.item AS i
    SET due_at = now()
    WHERE i.id = %(id)s
      AND NOT i.is_held
      AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
      AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id)
    RETURNING i.id, i.attempts
), date AS (
    UPDATE duepost.email AS e SET date_header = now() FROM item
    WHERE e.item_id = %(id)s AND e.item_id = item.id AND item.attempts = 0 AND e.date_header > now()
)
SELECT id FROM item
