-- What workers share about a route.

-- name: register
SELECT duepost.register_route(%(route)s, %(target)s, %(fallback)s, %(worker_id)s)

-- name: ways
-- And whether the route's own senders claim what is due by themselves.
SELECT route, way, is_probe_due, duepost.claimed_directly_until(route, way) IS NOT NULL FROM duepost.ways() ORDER BY route

-- name: take_connection
SELECT duepost.take_connection(%(route)s, %(worker_id)s, %(opened)s)

-- name: refuse_connection
SELECT duepost.refuse_connection(
    %(route)s, %(worker_id)s, %(opened)s, %(seconds)s, %(is_named)s, %(answered_ago)s, %(because)s
)

-- name: report_connections
SELECT duepost.report_connections(%(route)s, %(worker_id)s, %(connections)s, %(is_wanted)s, %(answered_ago)s)

-- name: look
-- What is known of a relay, this worker's share of the connections that it allows, and what of it is limited.
SELECT
    CASE WHEN r.connections IS NOT NULL THEN
        greatest(1, ceil(r.connections::numeric / (others.wanting + 1)))::integer
    END,
    coalesce(r.connections < others.wanting + 1, false),
    r.ahead_off_at IS NULL OR r.ahead_off_at < now() - make_interval(days => %(days)s),
    coalesce(r.paused_until > now() - make_interval(secs => %(slow_for)s), false),
    CASE
        WHEN r.paused_until BETWEEN now() AND now() + make_interval(secs => 2 * r.pause)
            THEN extract(epoch FROM r.paused_until - now())::double precision
        ELSE 0
    END,
    r.circuit_open,
    others.wanting + 1,
    duepost.limits_in_json(r.name)
FROM duepost.route AS r,
     duepost.other_connections(%(route)s, %(worker_id)s) AS others
WHERE r.name = %(route)s

-- name: stop_going_ahead
-- The first reason is kept, until it is long over.
INSERT INTO duepost.route AS r (name, ahead_off_at, ahead_off_because)
VALUES (%(route)s, now(), %(because)s)
ON CONFLICT (name) DO UPDATE
SET ahead_off_at = now(), ahead_off_because = excluded.ahead_off_because
WHERE r.ahead_off_at IS NULL OR r.ahead_off_at < now() - make_interval(days => %(days)s)
RETURNING name

-- name: slow_down
SELECT duepost.slow_route(%(route)s, %(jitter)s, %(because)s)

-- name: states
-- All that is known of each route, for people; and how many workers that live serve it, and have connections in use.
SELECT
    r.name, r.target, r.fallback, r.circuit_open, r.circuit_opened_at, r.circuit_reason, r.probe_at,
    serving.workers, serving.connections,
    r.connections, r.connections_at, r.connections_because,
    CASE WHEN r.paused_until BETWEEN now() AND now() + make_interval(secs => 2 * r.pause) THEN r.paused_until END,
    r.paused_because,
    CASE WHEN r.ahead_off_at > now() - make_interval(days => %(days)s) THEN r.ahead_off_at END,
    r.ahead_off_because
FROM duepost.route AS r
CROSS JOIN LATERAL (
    SELECT count(*) AS workers, coalesce(sum(w.connections), 0)::integer AS connections
    FROM duepost.route_worker AS w
    JOIN duepost.worker AS worker ON worker.id = w.worker_id
    WHERE w.route = r.name AND worker.gone_at IS NULL
) AS serving
-- Endpoints are registered by operators, and served by every worker.
WHERE r.channel = 'email'
ORDER BY r.name <> 'default', r.name

-- name: pause
SELECT duepost.pause_route(%(route)s, %(seconds)s, %(because)s)

-- name: end_direct_claims
-- The scheduler is to enqueue what is due, although there is a long line.
UPDATE duepost.route SET claimed_directly_until = NULL WHERE name = %(route)s AND claimed_directly_until IS NOT NULL

-- name: take_left_lines
-- Of these routes those whose line no sender goes on with: at its end, or because the worker is gone. Each is told once.
UPDATE duepost.route AS r SET claimed_directly_until = NULL
WHERE r.name IN (
    SELECT o.name
    FROM duepost.route AS o
    WHERE o.name = ANY (%(routes)s::text[])
      AND o.claimed_directly_until NOT BETWEEN now() AND now() + interval '3 s'
    FOR NO KEY UPDATE SKIP LOCKED
)
RETURNING r.name
