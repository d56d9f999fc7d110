-- The one row that all workers share: the operator's pause, and whose turn the rare work is. A timestamp too far ahead is from
-- before the clock was set back: it counts as past.

-- name: is_paused
SELECT paused FROM duepost.control

-- name: read_pause
-- Nothing where it is not paused. A pause of an older release has no time.
SELECT extract(epoch FROM now() - paused_at)::double precision, paused_by, pause_reason FROM duepost.control WHERE paused

-- name: begin_long_pass
-- One scheduler at a time goes through a long line of due emails. What a pass that dies leaves behind is over soon.
UPDATE duepost.control
SET passing_until = now() + interval '2 s'
WHERE passing_until BETWEEN now() AND now() + interval '2 s' IS NOT TRUE
RETURNING one

-- name: go_on_with_long_pass
UPDATE duepost.control SET passing_until = now() + interval '2 s'

-- name: end_long_pass
UPDATE duepost.control SET passing_until = NULL WHERE passing_until IS NOT NULL

-- name: take_check_in
UPDATE duepost.control
SET checked_in_at = now()
WHERE checked_in_at IS NULL OR checked_in_at NOT BETWEEN now() - interval '20 s' AND now()
RETURNING one

-- name: take_maintenance
-- For a minute at first: what does not come to its end is tried again then.
UPDATE duepost.control
SET maintained_at = now() - interval '6 h' + interval '1 min'
WHERE maintained_at IS NULL OR maintained_at NOT BETWEEN now() - interval '6 h' AND now()
RETURNING one

-- name: set_message_id_domain
UPDATE duepost.control
SET message_id_domain = %(domain)s
WHERE message_id_domain IS DISTINCT FROM %(domain)s

-- name: installation
SELECT installation FROM duepost.control

-- name: note_maintenance
UPDATE duepost.control SET maintained_at = now()

-- name: keeping
-- For how many days the ledger is kept at least, and whether this role may drop it before.
SELECT
    (SELECT days FROM duepost.retention),
    (SELECT pg_has_role(session_user, nspowner, 'MEMBER') FROM pg_namespace WHERE nspname = 'duepost')

-- name: maintain_partitions
SELECT duepost.maintain_partitions(make_interval(days => %(days)s))
