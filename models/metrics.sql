-- What is scraped. Nothing reads the ledger; of what is pending a million items are read at the most.

-- name: pending
-- Items that are not finished, by channel and state. What is in hand, queued or held is few, and found by in_hand's key,
-- queue_key and item_held; the total is read from the narrow table item, as far as the bound goes.
WITH total AS (
    SELECT first.channel, count(*) AS count
    FROM (SELECT i.channel FROM duepost.item AS i LIMIT %(most)s) AS first
    GROUP BY first.channel
), unknown AS (
    SELECT first.channel, count(*) AS count
    FROM (SELECT i.channel FROM duepost.item AS i WHERE i.is_held LIMIT %(most)s) AS first
    GROUP BY first.channel
), sending AS (
    SELECT i.channel, count(*) AS count
    FROM duepost.in_hand AS h
    JOIN duepost.item AS i ON i.id = h.item_id
    GROUP BY i.channel
), queued AS (
    SELECT i.channel, count(*) AS count
    FROM (SELECT m.key FROM dramatiq.queue AS m WHERE m.key IS NOT NULL LIMIT %(most)s) AS m
    JOIN duepost.item AS i ON i.id = m.key
    WHERE NOT i.is_held AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = m.key)
    GROUP BY i.channel
)
SELECT channel.name, state.name, state.count
FROM (VALUES ('email'), ('message')) AS channel (name)
LEFT JOIN total ON total.channel = channel.name
LEFT JOIN unknown ON unknown.channel = channel.name
LEFT JOIN sending ON sending.channel = channel.name
LEFT JOIN queued ON queued.channel = channel.name
CROSS JOIN LATERAL (VALUES
    ('scheduled', greatest(
        coalesce(total.count, 0) - coalesce(unknown.count, 0) - coalesce(sending.count, 0) - coalesce(queued.count, 0), 0
    )),
    ('queued', coalesce(queued.count, 0)),
    ('sending', coalesce(sending.count, 0)),
    ('unknown', coalesce(unknown.count, 0))
) AS state (name, count)
ORDER BY channel.name, state.name

-- name: oldest_due
-- Seconds for which the oldest due item of each channel has waited for a worker; served by item_due. What an operator has
-- paused is left out, and endpoints whose circuit is open, or that are disabled: they have a metric of their own.
SELECT channel.name, coalesce(extract(epoch FROM now() - min(oldest.due_at)), 0)::double precision
FROM (VALUES ('email'), ('message')) AS channel (name)
LEFT JOIN (
    SELECT CASE WHEN due.route LIKE 'endpoint:%%' THEN 'message' ELSE 'email' END AS channel, due.due_at
    FROM duepost.oldest_due() AS due
    LEFT JOIN duepost.route AS r ON r.name = due.route
    WHERE due.route NOT LIKE 'paused:%%'
      AND r.stopped_at IS NULL
      AND NOT (due.route LIKE 'endpoint:%%' AND coalesce(r.circuit_open, false))
) AS oldest ON oldest.channel = channel.name
GROUP BY channel.name
ORDER BY channel.name

-- name: circuits
-- Each relay; of endpoints those whose circuit is open, as far as the bound goes.
SELECT r.name, r.circuit_open
FROM duepost.route AS r
WHERE r.channel = 'email' OR r.circuit_open
ORDER BY r.channel <> 'email', NOT r.circuit_open, r.name
LIMIT %(most)s

-- name: came_back
-- What came back within a day, by where and what followed, as far as the bound goes; served by bounce_received.
SELECT lately.source, lately.effect, count(*)
FROM (
    SELECT b.source, b.effect
    FROM duepost.bounce AS b
    WHERE b.received_at > now() - interval '1 day'
    LIMIT %(most)s
) AS lately
GROUP BY lately.source, lately.effect
ORDER BY lately.source, lately.effect

-- name: alive
-- Worker processes whose session is there; served by worker_present. Seconds since the scheduler's last pass, NULL before the
-- first. Dead letters; served by queue_dead.
SELECT
    (SELECT count(*) FROM duepost.worker AS w WHERE w.gone_at IS NULL AND w.missing_since IS NULL),
    (
        SELECT greatest(extract(epoch FROM now() - c.checked_in_at), 0)::double precision
        FROM duepost.control AS c
        WHERE c.checked_in_at IS NOT NULL
    ),
    (
        SELECT count(*)
        FROM (SELECT FROM dramatiq.queue AS m WHERE m.state = 'rejected' LIMIT %(most)s) AS first
    ),
    (SELECT c.paused FROM duepost.control AS c)
