-- Scheduled messages: what is theirs alone of an item's life. All else is models/emails.sql, whose verbs are all items'.

-- name: claim
-- scheduled, queued → sending, each under a claim number of its own; with what it says and where it goes.
SELECT c.id, c.claim, c.kind, c.attempts, c.unknowns, c.last_error, c.probe, c.endpoint, c.wire_id, c.payload, c.format, c.url,
       c.secret, c.former_secret, c.function, c.options, c.allow_private, c.is_failing, c.users,
       (
           SELECT extract(epoch FROM now() - greatest(i.scheduled_at, i.created_at))::double precision
           FROM duepost.item AS i
           WHERE i.id = c.id
       ), c.priority, c.kept
FROM duepost.claim_messages_v2(%(ids)s::bigint[], %(worker_id)s) AS c

-- name: claim_apart
-- The same for one whose conditions have been asked in this transaction.
SELECT c.id, c.claim, c.kind, c.attempts, c.unknowns, c.last_error, c.probe, c.endpoint, c.wire_id, c.payload, c.format, c.url,
       c.secret, c.former_secret, c.function, c.options, c.allow_private, c.is_failing, c.users,
       (
           SELECT extract(epoch FROM now() - greatest(i.scheduled_at, i.created_at))::double precision
           FROM duepost.item AS i
           WHERE i.id = c.id
       ), c.priority
FROM duepost.claim_messages_v2(ARRAY[%(id)s::bigint], %(worker_id)s, apart => true) AS c

-- name: claimed_unread
-- What a worker has claimed in an answer that it could not read.
SELECT i.id, h.claim, i.kind, i.attempts, i.unknowns, i.last_error, i.probe AND i.route = h.route, content.endpoint,
       content.wire_id, content.payload, content.format, content.url, content.secret, content.former_secret,
       content.function, content.options, content.allow_private, content.is_failing, duepost.users_to_go(i.id),
       extract(epoch FROM now() - greatest(i.scheduled_at, i.created_at))::double precision, i.priority
FROM duepost.in_hand AS h
JOIN duepost.item AS i ON i.id = h.item_id AND i.channel = 'message'
CROSS JOIN LATERAL duepost.message_content(i.id) AS content
WHERE h.item_id = ANY (%(ids)s::bigint[])
  AND h.worker_id = %(worker_id)s
  AND h.claim <> ALL (%(held)s::bigint[])
ORDER BY i.id

-- name: routes_of
SELECT id, route FROM duepost.item WHERE id = ANY (%(ids)s::bigint[])

-- name: due_page
-- Of each endpoint that takes messages now those of its oldest due ones that are neither queued nor in hand, what is urgent first: no
-- more than a window of each priority is looked at, so that one endpoint's long line costs the others nothing; served by item_due.
SELECT due.id, due.due_at, due.kind, due.due_at > now() - make_interval(secs => %(on_time)s) AS is_on_time, due.priority
FROM duepost.route AS r
JOIN duepost.endpoint AS e ON 'endpoint:' || e.name = r.name
CROSS JOIN (VALUES (-1), (0), (1)) AS line (priority)
CROSS JOIN LATERAL (
    SELECT i.id, greatest(i.due_at, '0002-01-01 00:00:00+00') AS due_at, i.kind, i.priority
    FROM duepost.item AS i
    WHERE i.route = r.name AND i.priority = line.priority AND NOT i.is_held AND i.due_at <= now()
    ORDER BY i.due_at, i.id
    LIMIT %(window)s
) AS due
CROSS JOIN duepost.control AS control
WHERE r.channel = 'message'
  AND e.disabled_at IS NULL
  AND NOT control.paused
  AND NOT duepost.is_route_blocked(r.name)
  AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = due.id)
  AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = due.id)
ORDER BY due.priority, due.due_at, due.id
LIMIT %(size)s

-- name: probes_due
-- Endpoints whose circuit is open, and of which it is time to look whether they take messages again.
SELECT r.name
FROM duepost.route AS r
JOIN duepost.endpoint AS e ON 'endpoint:' || e.name = r.name
CROSS JOIN duepost.control AS control
WHERE r.channel = 'message' AND r.circuit_open AND r.stopped_at IS NULL AND e.disabled_at IS NULL AND NOT control.paused
  AND r.probe_at NOT BETWEEN now() AND now() + make_interval(secs => r.probe_pause)

-- name: note_arrival
-- Some request of it may have arrived: from now on it is not edited.
UPDATE duepost.message SET may_have_arrived = true WHERE item_id = %(id)s AND NOT may_have_arrived

-- name: note_failing
-- The endpoint has failed; one that has done so for as long as it may is disabled.
UPDATE duepost.endpoint AS e
SET failing_since = coalesce(e.failing_since, now()),
    disabled_at = CASE WHEN e.failing_since < now() - make_interval(secs => %(longest)s) THEN now() END,
    disabled_because = CASE WHEN e.failing_since < now() - make_interval(secs => %(longest)s) THEN %(because)s END
WHERE e.name = %(endpoint)s AND e.disabled_at IS NULL
  AND (e.failing_since IS NULL OR e.failing_since < now() - make_interval(secs => %(longest)s))
RETURNING e.disabled_at IS NOT NULL

-- name: note_working
UPDATE duepost.endpoint SET failing_since = NULL WHERE name = %(endpoint)s AND failing_since IS NOT NULL

-- name: disable
UPDATE duepost.endpoint
SET disabled_at = now(), disabled_because = %(because)s
WHERE name = %(endpoint)s AND disabled_at IS NULL
RETURNING name

-- name: call_function
-- An application's own function, named by an operator; quoted by PostgreSQL itself as it is looked up.
SELECT duepost.call_message_function(%(function)s, %(id)s, %(payload)s::jsonb)

-- name: check_constraints
-- What would be checked at the commit is checked now.
SET CONSTRAINTS ALL IMMEDIATE

-- name: trial
-- An endpoint as a claimed message has it, for one that is no item; the payload as PostgreSQL spells it.
SELECT 0, 0, 'duepost.test', 0, 0, NULL, false, e.name, %(wire_id)s, coalesce(%(payload)s::jsonb, '{}')::text, e.format, e.url,
       e.secret, CASE WHEN e.previous_secret_until > now() THEN e.previous_secret END, e.function, e.options::text,
       e.allow_private, e.failing_since IS NOT NULL, NULL, NULL, 0
FROM duepost.endpoint AS e
WHERE e.name = %(endpoint)s

-- name: call_function_and_conclude
-- Both in one round trip: the function takes the message, and then this moves to the ledger, unless somebody holds the item or it
-- is no longer under this claim; gives whether it did.
SELECT duepost.call_message_function(%(function)s, %(id)s, %(payload)s::jsonb);
SELECT EXISTS (
    SELECT FROM duepost.conclude_emails(
        ARRAY[%(id)s::bigint], ARRAY[%(claim)s::bigint], %(results)s::jsonb, ARRAY[NULL]::uuid[], ARRAY[NULL]::bigint[]
    )
)

-- name: try_lock_claimed
-- The item of a claim, locked if nobody holds it: nothing where somebody does, or the claim is no longer the item's.
WITH item AS MATERIALIZED (
    SELECT id FROM duepost.item WHERE id = %(id)s FOR UPDATE SKIP LOCKED
)
SELECT h.claim = %(claim)s FROM item LEFT JOIN duepost.in_hand AS h ON h.item_id = item.id

-- name: endpoint_states
-- Endpoints of which an operator is to know something: disabled, or with an open circuit; and for how long their oldest due
-- message has been waiting, in seconds. Of those that work only one whose messages are late.
SELECT e.name, e.disabled_because, CASE WHEN r.circuit_open THEN r.circuit_reason END,
       CASE WHEN r.circuit_open THEN extract(epoch FROM r.probe_at - now())::double precision END,
       CASE
           WHEN r.paused_until BETWEEN now() AND now() + make_interval(secs => 2 * r.pause)
               THEN extract(epoch FROM r.paused_until - now())::double precision
       END,
       extract(epoch FROM now() - oldest.due_at)::double precision
FROM duepost.endpoint AS e
LEFT JOIN duepost.route AS r ON r.name = 'endpoint:' || e.name
LEFT JOIN duepost.oldest_due() AS oldest ON oldest.route = 'endpoint:' || e.name
WHERE e.disabled_at IS NOT NULL OR r.circuit_open OR oldest.due_at < now() - make_interval(secs => %(late)s)
ORDER BY e.name
