-- What workers share about a relay.

-- name: take_connection
SELECT duepost.take_connection(%(route)s, %(worker_id)s, %(opened)s)

-- name: refuse_connection
SELECT duepost.refuse_connection(
    %(route)s, %(worker_id)s, %(opened)s, %(seconds)s, %(is_named)s, %(answered_ago)s, %(because)s
)

-- name: report_connections
SELECT duepost.report_connections(%(route)s, %(worker_id)s, %(connections)s, %(is_wanted)s, %(answered_ago)s)

-- name: look
-- What is known of a relay, and this worker's share of the connections that it allows.
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
    control.circuit_open
FROM duepost.route AS r,
     duepost.control AS control,
     duepost.other_connections(%(route)s, %(worker_id)s) AS others
WHERE r.route = %(route)s

-- name: stop_going_ahead
-- The first reason is kept, until it is long over.
INSERT INTO duepost.route AS r (route, ahead_off_at, ahead_off_because)
VALUES (%(route)s, now(), %(because)s)
ON CONFLICT (route) DO UPDATE
SET ahead_off_at = now(), ahead_off_because = excluded.ahead_off_because
WHERE r.ahead_off_at IS NULL OR r.ahead_off_at < now() - make_interval(days => %(days)s)
RETURNING route

-- name: slow_down
SELECT duepost.slow_route(%(route)s, %(jitter)s, %(because)s)

-- name: known
-- What a relay has shown of itself, for people.
SELECT
    r.route, r.connections, r.connections_at, r.connections_because,
    CASE WHEN r.paused_until BETWEEN now() AND now() + make_interval(secs => 2 * r.pause) THEN r.paused_until END,
    r.paused_because,
    CASE WHEN r.ahead_off_at > now() - make_interval(days => %(days)s) THEN r.ahead_off_at END,
    r.ahead_off_because
FROM duepost.route AS r
WHERE r.connections IS NOT NULL OR r.paused_until > now() OR r.ahead_off_at IS NOT NULL
ORDER BY r.route
