-- The broker's messages, in dramatiq-pg's table. Delays stay in the table: a message is not read before its eta.

-- name: insert
-- A message that is sent again (a retry) takes its old row.
INSERT INTO dramatiq.queue (message_id, queue_name, state, mtime, message, eta)
VALUES (
    %(message_id)s, %(queue_name)s, 'queued', now(), %(message)s,
    now() + make_interval(secs => %(delay)s::double precision)
)
ON CONFLICT (message_id) DO UPDATE
SET queue_name = EXCLUDED.queue_name,
    state = 'queued',
    mtime = now(),
    message = EXCLUDED.message,
    eta = EXCLUDED.eta,
    worker_id = NULL

-- name: claim
-- queued → consumed, the oldest first; served by queue_claimable. The subquery is materialised because PostgreSQL
-- may run a LIMIT subquery more than once inside an UPDATE. The commit need not wait for the disk: a crash that loses
-- it leaves the messages queued, and hints may be doubled.
WITH unhurried AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), next AS MATERIALIZED (
    SELECT message_id
    FROM dramatiq.queue
    WHERE queue_name = %(queue_name)s AND state = 'queued' AND eta <= now()
    ORDER BY eta
    LIMIT %(size)s
    FOR UPDATE SKIP LOCKED
)
UPDATE dramatiq.queue AS message
SET state = 'consumed', worker_id = %(worker_id)s, mtime = now()
FROM next, unhurried
WHERE message.message_id = next.message_id
RETURNING message.eta, message.message

-- name: acknowledge
-- consumed → gone. A message that was sent again meanwhile is queued, and stays. The cast keeps the planner from
-- reading everything in this state through dramatiq-pg's own index.
DELETE FROM dramatiq.queue
WHERE message_id = ANY (%(message_ids)s::uuid[]) AND state::text = 'consumed' AND worker_id = %(worker_id)s

-- name: reject
-- consumed → rejected: a dead letter.
UPDATE dramatiq.queue
SET state = 'rejected', mtime = now(), worker_id = NULL
WHERE message_id = %(message_id)s AND state = 'consumed' AND worker_id = %(worker_id)s

-- name: give_back
-- consumed → queued: prefetched, but never begun.
UPDATE dramatiq.queue
SET state = 'queued', worker_id = NULL
WHERE message_id = ANY (%(message_ids)s::uuid[]) AND state = 'consumed' AND worker_id = %(worker_id)s

-- name: give_back_of_the_gone
-- consumed → queued for workers that are gone; served by queue_claimed.
UPDATE dramatiq.queue AS message
SET state = 'queued', worker_id = NULL
FROM duepost.worker AS worker
WHERE message.worker_id = worker.id AND message.state = 'consumed' AND worker.gone_at IS NOT NULL

-- name: lock_tick
SELECT pg_advisory_xact_lock(1148543345, 1)

-- name: waits
-- Whether a message for an actor is there to be read at once; served by queue_claimable.
SELECT EXISTS (
    SELECT
    FROM dramatiq.queue
    WHERE queue_name = %(queue_name)s
      AND state = 'queued'
      AND eta <= now()
      AND message ->> 'actor_name' = %(actor_name)s
)

-- name: purge
-- Dead letters and what stock dramatiq-pg left as done, after a while.
DELETE FROM dramatiq.queue
WHERE state IN ('done', 'rejected') AND mtime < now() - %(older_than)s::interval
