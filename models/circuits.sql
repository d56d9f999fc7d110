-- Each route's circuit. A route that has no row is closed. A time too far ahead is from before the clock was set back: it
-- counts as past.

-- name: open
-- closed → open; nothing where it is open already.
INSERT INTO duepost.route AS r (
    name, channel, circuit_open, circuit_opened_at, circuit_reason, circuit_refusal, probe_pause, probe_at
)
VALUES (
    %(route)s, CASE WHEN strpos(%(route)s, 'endpoint:') = 1 THEN 'message' ELSE 'email' END, true, now(), %(reason)s, %(refusal)s, %(pause)s, now() + make_interval(secs => %(pause)s)
)
ON CONFLICT (name) DO UPDATE
SET circuit_open = true,
    circuit_opened_at = now(),
    circuit_reason = excluded.circuit_reason,
    circuit_refusal = excluded.circuit_refusal,
    probe_pause = excluded.probe_pause,
    probe_at = excluded.probe_at
WHERE NOT r.circuit_open
RETURNING name

-- name: put_off_probe
-- open → open: the probe failed, the next one waits longer.
UPDATE duepost.route
SET probe_pause = least(probe_pause * 2, %(longest)s),
    probe_at = now() + make_interval(secs => least(probe_pause * 2, %(longest)s)),
    circuit_reason = coalesce(%(reason)s, circuit_reason)
WHERE name = %(route)s AND circuit_open
RETURNING probe_pause

-- name: take_probe
-- One scheduler may enqueue one probe in each pause.
UPDATE duepost.route
SET probe_at = now() + make_interval(secs => probe_pause)
WHERE name = %(route)s AND circuit_open AND stopped_at IS NULL
  AND probe_at NOT BETWEEN now() AND now() + make_interval(secs => probe_pause)
  AND EXISTS (SELECT FROM duepost.control WHERE NOT paused)
RETURNING name

-- name: probe_now
-- The next probe of an open circuit is due at once; its pause stays.
UPDATE duepost.route
SET probe_at = now()
WHERE circuit_open AND name = %(route)s
RETURNING name

-- name: close
-- open → closed.
UPDATE duepost.route
SET circuit_open = false, circuit_opened_at = NULL, circuit_reason = NULL, circuit_refusal = NULL, probe_at = NULL, probe_pause = 0
WHERE name = %(route)s AND circuit_open
RETURNING name
