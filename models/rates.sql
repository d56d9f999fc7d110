-- Rates of routes, and of recipients' domains by them.

-- name: limits
-- What of a route is limited.
SELECT duepost.limits_in_json(%(route)s)

-- name: take_places
SELECT duepost.take_places(
    %(route)s, %(worker_id)s, %(domains)s::text[], %(held)s::integer[], %(speaking)s::integer[], %(wants)s::jsonb
)

-- name: give_turns
SELECT id, seconds
FROM duepost.give_turns(%(route)s, %(domains)s::text[], %(ids)s::bigint[], %(claims)s::bigint[], %(longest)s, %(why)s)

-- name: learn
SELECT per_second::double precision, is_new, domains FROM duepost.learn_rate(%(route)s, %(domain)s, %(seen)s, %(because)s)

-- name: set_rate
SELECT duepost.set_rate(
    %(route)s, %(domain)s, %(per_second)s::numeric, %(connections)s, %(reason)s, %(by)s, %(via)s, %(token)s
)

-- name: remove_rate
SELECT duepost.remove_rate(%(route)s, %(domain)s, %(reason)s, %(by)s, %(via)s, %(token)s)

-- name: states
-- All that is limited, for people: what operators allow, what was learnt, what is in use, and until when turns are given.
SELECT l.route, l.domain, r.per_second::double precision, r.connections, r.set_at, r.set_by, r.reason,
       l.per_second::double precision, l.learnt::double precision, d.learnt_at, l.because, u.held, u.speaking,
       CASE WHEN d.turns_until > now() THEN d.turns_until END
FROM (
    SELECT known.route, l.domain, l.per_second, l.learnt, l.because, l.seconds
    FROM (
        SELECT route FROM duepost.rate UNION SELECT route FROM duepost.destination WHERE learnt IS NOT NULL
    ) AS known
    CROSS JOIN LATERAL duepost.limits_of(known.route) AS l
) AS l
LEFT JOIN duepost.rate AS r ON r.route = l.route AND r.domain = l.domain
LEFT JOIN duepost.destination AS d ON d.route = l.route AND d.domain = l.domain
CROSS JOIN LATERAL duepost.places_in_use(l.route, l.domain, l.seconds) AS u
ORDER BY l.route <> 'default', l.route, l.domain
