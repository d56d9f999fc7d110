-- The broker's messages, in dramatiq-pg's table. Delays stay in the table: a message is not read before its eta.

-- name: insert
-- A message that is sent again takes its old row.
INSERT INTO dramatiq.queue (message_id, queue_name, state, mtime, message, eta, priority)
VALUES (
    %(message_id)s, %(queue_name)s, 'queued', now(), %(content)s,
    now() + make_interval(secs => %(delay)s::double precision), %(priority)s
)
ON CONFLICT (message_id) DO UPDATE
SET queue_name = EXCLUDED.queue_name,
    state = 'queued',
    mtime = now(),
    message = EXCLUDED.message,
    eta = EXCLUDED.eta,
    priority = EXCLUDED.priority,
    worker_id = NULL,
    claim = NULL

-- name: insert_again
-- A message that may be there already, as the answer to its first insertion was lost.
INSERT INTO dramatiq.queue (message_id, queue_name, state, mtime, message, eta, priority)
VALUES (
    %(message_id)s, %(queue_name)s, 'queued', now(), %(content)s,
    now() + make_interval(secs => %(delay)s::double precision), %(priority)s
)
ON CONFLICT (message_id) DO NOTHING

-- name: store_retry
-- consumed → queued: a message in hand is to be run again. Nothing where the claim has passed to another worker.
UPDATE dramatiq.queue
SET queue_name = %(queue_name)s,
    state = 'queued',
    mtime = now(),
    message = %(content)s,
    eta = now() + make_interval(secs => %(delay)s::double precision),
    priority = %(priority)s,
    worker_id = NULL,
    claim = NULL
WHERE message_id = %(message_id)s AND claim = %(claim)s

-- name: store_retry_as_it_was
-- consumed → queued: a message in hand is to be run again, and what it has become cannot be stored.
UPDATE dramatiq.queue
SET state = 'queued',
    mtime = now(),
    message = message || jsonb_build_object(
        'options', coalesce(message -> 'options', '{}') || jsonb_build_object('retries', %(retries)s::bigint)
    ),
    eta = now() + make_interval(secs => %(delay)s::double precision),
    worker_id = NULL,
    claim = NULL
WHERE message_id = %(message_id)s AND claim = %(claim)s

-- name: claim
-- queued → consumed, the most urgent first, or the least urgent, then the oldest; served by queue_claimable. Either
-- from the beginning
-- (`from_the_beginning`): the priorities in use are then found one after the other, each with one look at the index, so that delayed
-- messages of one never hide the due ones of the next. Or from where the last claim of each priority ended: with a
-- snapshot held open, the beginning is where all lies that is done. Gives the time too, and the priorities that it has looked
-- at, also where there is nothing.
-- What is to be updated is materialised because PostgreSQL may run a LIMIT subquery more than once inside an UPDATE; and
-- it is an array, here and below, because a table in which all is done looks empty to the planner, which then joins by
-- reading its index from end to end. The commit need not wait for the disk: a crash that loses it leaves the messages
-- queued.
WITH RECURSIVE unhurried AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), in_use AS (
    SELECT (
        SELECT message.priority
        FROM dramatiq.queue AS message
        WHERE message.queue_name = %(queue_name)s AND message.state = 'queued'
        ORDER BY message.priority
        LIMIT 1
    ) AS priority
    WHERE %(from_the_beginning)s
    UNION ALL
    SELECT (
        SELECT message.priority
        FROM dramatiq.queue AS message
        WHERE message.queue_name = %(queue_name)s AND message.state = 'queued'
          AND message.priority > in_use.priority
        ORDER BY message.priority
        LIMIT 1
    )
    FROM in_use
    WHERE in_use.priority IS NOT NULL
), place AS (
    SELECT priority, '-infinity'::timestamptz AS eta FROM in_use WHERE priority IS NOT NULL
    UNION ALL
    SELECT priority, eta FROM unnest(%(priorities)s::integer[], %(etas)s::timestamptz[]) AS left_off (priority, eta)
), next AS MATERIALIZED (
    SELECT due.message_id
    FROM (
        SELECT priority, eta FROM place ORDER BY CASE WHEN %(least_urgent_first)s THEN -priority ELSE priority END
    ) AS place
    CROSS JOIN LATERAL (
        SELECT message.message_id
        FROM dramatiq.queue AS message
        WHERE message.queue_name = %(queue_name)s AND message.state = 'queued'
          AND message.priority = place.priority AND message.eta >= place.eta AND message.eta <= now()
        ORDER BY message.eta
        LIMIT %(size)s
        FOR UPDATE SKIP LOCKED
    ) AS due
    LIMIT %(size)s
), claimed AS (
    UPDATE dramatiq.queue AS message
    SET state = 'consumed', worker_id = %(worker_id)s, claim = nextval('dramatiq.claim_number'), mtime = now()
    FROM unhurried
    WHERE message.message_id = ANY (ARRAY(SELECT next.message_id FROM next))
    RETURNING message.message_id::text, message.claim, message.priority, message.eta, message.message::text AS content
)
SELECT now(), ARRAY(SELECT place.priority FROM place)::text, claimed.message_id, claimed.claim, claimed.priority, claimed.eta, claimed.content
FROM (SELECT) AS always
LEFT JOIN claimed ON true

-- name: acknowledge
-- consumed → gone, for those whose claim is still the same: what was sent again meanwhile stays.
DELETE FROM dramatiq.queue AS message
USING unnest(%(message_ids)s::uuid[], %(claims)s::bigint[]) AS done (message_id, claim)
WHERE message.message_id = ANY (%(message_ids)s::uuid[])
  AND message.message_id = done.message_id AND message.claim = done.claim

-- name: reject
-- consumed → rejected: a dead letter, with the type of what it failed of, if it is a message at all.
UPDATE dramatiq.queue
SET state = 'rejected', mtime = now(), worker_id = NULL, claim = NULL, key = NULL,
    message = CASE
        WHEN jsonb_typeof(message) = 'object' THEN message || jsonb_build_object(
            'options', coalesce(message -> 'options', '{}') || jsonb_build_object('failure', %(failure)s::text)
        )
        ELSE message
    END
WHERE message_id = %(message_id)s AND claim = %(claim)s

-- name: reject_as_it_is
UPDATE dramatiq.queue
SET state = 'rejected', mtime = now(), worker_id = NULL, claim = NULL, key = NULL
WHERE message_id = %(message_id)s AND claim = %(claim)s

-- name: return_unstarted
-- consumed → queued: prefetched, but never begun.
UPDATE dramatiq.queue AS message
SET state = 'queued', worker_id = NULL, claim = NULL
FROM unnest(%(message_ids)s::uuid[], %(claims)s::bigint[]) AS unstarted (message_id, claim)
WHERE message.message_id = ANY (%(message_ids)s::uuid[])
  AND message.message_id = unstarted.message_id AND message.claim = unstarted.claim

-- name: return_orphaned
-- consumed → queued for what a living worker was given in an answer that never arrived; served by queue_claimed.
UPDATE dramatiq.queue
SET state = 'queued', worker_id = NULL, claim = NULL
WHERE worker_id = %(worker_id)s AND queue_name = %(queue_name)s AND state = 'consumed'
  AND claim <> ALL (%(claims)s::bigint[])

-- name: return_from_dead
-- consumed → queued for workers that are gone; served by queue_claimed.
UPDATE dramatiq.queue AS message
SET state = 'queued', worker_id = NULL, claim = NULL
FROM duepost.worker AS worker
WHERE message.worker_id = worker.id AND message.state = 'consumed' AND worker.gone_at IS NOT NULL

-- name: clock
SELECT extract(epoch FROM clock_timestamp())::double precision

-- name: follow_clock_back
-- What was written before the clock was set back would wait until it has come round again.
UPDATE dramatiq.queue
SET eta = eta - (mtime - now()), mtime = now()
WHERE state = 'queued' AND mtime > now()

-- name: lock_tick
SELECT FROM duepost.turn WHERE name = 'tick' FOR UPDATE

-- name: waits
-- Whether a message for an actor is there to be read at once; served by queue_claimable. By the statement's time: the
-- transaction may have begun before the one that it has just waited for.
SELECT EXISTS (
    SELECT
    FROM dramatiq.queue
    WHERE queue_name = %(queue_name)s
      AND priority = %(priority)s
      AND state = 'queued'
      AND eta <= statement_timestamp()
      AND message ->> 'actor_name' = %(actor_name)s
)

-- name: overdue
-- Which of these queues have a message that has waited to be read for this many seconds; served by queue_claimable.
SELECT queue_name
FROM unnest(%(queue_names)s::text[]) AS queue_name
WHERE EXISTS (
    SELECT
    FROM dramatiq.queue AS message
    WHERE message.queue_name = queue_name.queue_name
      AND message.state = 'queued'
      AND message.eta < now() - make_interval(secs => %(seconds)s::double precision)
)

-- name: unfinished
-- Whether anything of a queue is waiting or in hand.
SELECT EXISTS (SELECT FROM dramatiq.queue WHERE queue_name = %(queue_name)s AND state IN ('queued', 'consumed'))

-- name: flush
DELETE FROM dramatiq.queue WHERE queue_name = ANY (%(queue_names)s)

-- name: dead_letters
-- The newest first; served by queue_dead.
SELECT message_id::text, queue_name, message ->> 'actor_name', mtime,
       message #>> '{options,failure}',
       CASE WHEN jsonb_typeof(message #> '{options,retries}') = 'number'
           THEN least(greatest((message #>> '{options,retries}')::numeric, 0), 2147483647)::integer
           ELSE 0
       END
FROM dramatiq.queue
WHERE state = 'rejected'
ORDER BY mtime DESC
LIMIT %(limit)s

-- name: requeue
-- rejected → queued: a dead letter is to be run once more, with its retries counted from zero.
UPDATE dramatiq.queue
SET state = 'queued', mtime = now(), eta = now(),
    message = message #- '{options,failure}' #- '{options,retries}' #- '{options,failures}'
WHERE message_id = %(message_id)s AND state = 'rejected' AND jsonb_typeof(message) = 'object'
RETURNING message_id

-- name: purge
-- Dead letters, after a while; served by queue_dead.
DELETE FROM dramatiq.queue
WHERE state = 'rejected' AND mtime < now() - make_interval(secs => %(seconds)s::double precision)

-- name: store_result
INSERT INTO dramatiq.result (message_key, result, expires_at)
VALUES (%(message_key)s, %(result)s, now() + make_interval(secs => %(seconds)s::double precision))
ON CONFLICT (message_key) DO UPDATE
SET result = EXCLUDED.result, expires_at = EXCLUDED.expires_at

-- name: result
SELECT result FROM dramatiq.result WHERE message_key = %(message_key)s AND expires_at > now()

-- name: purge_results
DELETE FROM dramatiq.result WHERE expires_at <= now()
