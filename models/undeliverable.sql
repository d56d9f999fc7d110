-- What was undeliverable and is kept for some days.

-- name: keep
SELECT duepost.keep_undeliverable(%(id)s, %(claim)s, %(results)s::jsonb, %(days)s)

-- name: refused_alike
SELECT email_id, address, refusal FROM duepost.refused_alike(%(id)s, %(most)s)

-- name: is_refused_as_the_circuit_says
-- Whether a recipient of this email was refused with what the circuit of the route that refused it is open for.
SELECT EXISTS (
    SELECT
    FROM duepost.route AS route
    JOIN duepost.undeliverable_recipient AS r
        ON r.refusal = route.circuit_refusal AND coalesce(r.route, 'default') = route.name
    WHERE route.circuit_open AND r.email_id = %(id)s
)

-- name: lock
SELECT duepost.lock_undeliverable(%(ids)s::bigint[])

-- name: reopen
SELECT duepost.reopen_email(%(id)s)

-- name: kept_until
SELECT kept_until FROM duepost.undeliverable_email WHERE id = %(id)s AND email IS NOT NULL AND kept_until >= now()

-- name: forget
SELECT duepost.forget_undeliverable()
