-- Rates of routes, and of recipients' domains by them. An endpoint is a route, endpoint:NAME; its rate is kept by its name as the domain of
-- a route endpoint:.

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

-- name: follow_clock_back
-- Turns from before the clock was set back are too far ahead; served by item_failed. Whoever comes second finds none. Nothing is due
-- before the time that it is scheduled for.
UPDATE duepost.item AS i
SET due_at = greatest(
    least(i.due_at - make_interval(secs => %(back)s), now() + make_interval(secs => %(longest)s)), now(), i.scheduled_at
)
WHERE i.id IN (
    SELECT w.id
    FROM duepost.item AS w
    WHERE w.last_error IS NOT NULL AND starts_with(w.last_error, 'rate: ')
      AND w.due_at > greatest(now(), w.scheduled_at) + make_interval(secs => %(longest)s + 60)
    ORDER BY w.id
    LIMIT %(page)s
    FOR NO KEY UPDATE SKIP LOCKED
)
RETURNING i.id

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
SELECT CASE l.route WHEN 'endpoint:' THEN l.route || l.domain ELSE l.route END,
       CASE l.route WHEN 'endpoint:' THEN '' ELSE l.domain END,
       r.per_second::double precision, r.connections, r.set_at, r.set_by, r.reason,
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

-- name: waiting
-- How many emails wait for a place of each destination, and for how many seconds the first of them is late: those whose reason says so,
-- served by item_failed, of which a number is read at the most; and of a route that is limited itself what is due by it, served by
-- item_due.
SELECT told.route, told.domain, count(*), greatest(max(told.late), 0)::double precision
FROM (
    SELECT CASE WHEN words.for_route THEN words.destination ELSE i.route END AS route,
           CASE WHEN words.for_route THEN '' ELSE words.destination END AS domain,
           extract(epoch FROM now() - i.scheduled_at) AS late
    FROM (
        SELECT i.id, i.route, i.scheduled_at, i.due_at, i.last_error
        FROM duepost.item AS i
        WHERE i.last_error IS NOT NULL
        LIMIT %(most)s
    ) AS i
    CROSS JOIN LATERAL (
        SELECT starts_with(said.words, 'the route ') AS for_route,
               substring(said.words FROM '^(?:the route )?((?:endpoint:)?[^ :]+)') AS destination
        FROM (
            SELECT regexp_replace(i.last_error, '^rate: waits for the (?:rate of|connections to) ', '') AS words
        ) AS said
    ) AS words
    WHERE starts_with(i.last_error, 'rate: waits for the ')
      AND NOT (words.for_route AND i.due_at <= now())
      AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
    UNION ALL
    SELECT due.route, '', extract(epoch FROM now() - due.due_at)
    FROM unnest(%(routes)s::text[]) AS asked (route)
    CROSS JOIN (VALUES (-1), (0), (1)) AS line (priority)
    CROSS JOIN LATERAL (
        SELECT i.id, i.route, i.due_at
        FROM duepost.item AS i
        WHERE i.route = asked.route AND i.priority = line.priority AND NOT i.is_held AND i.due_at <= now()
        ORDER BY i.due_at
        LIMIT %(most)s
    ) AS due
    WHERE NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = due.id)
) AS told
GROUP BY told.route, told.domain

-- name: due_by_hour
-- What falls due in each hour by a route, or to a domain by it, and of how many that was counted: of each line from item_due, no more than
-- a number of each. Whose address is a user's counts for no domain: it is known when it is sent.
SELECT asked.route, asked.domain, date_trunc('hour', next.due_at, 'UTC'), count(*) FILTER (WHERE next.goes_there), count(*)
FROM unnest(%(routes)s::text[], %(domains)s::text[]) AS asked (route, domain)
CROSS JOIN (VALUES (-1), (0), (1)) AS line (priority)
CROSS JOIN LATERAL (
    SELECT greatest(i.due_at, now()) AS due_at,
           asked.domain = '' OR coalesce((
               SELECT lower(split_part(e.address, '@', -1)) = asked.domain FROM duepost.email AS e WHERE e.item_id = i.id
           ), false) AS goes_there
    FROM duepost.item AS i
    WHERE i.route = asked.route AND i.priority = line.priority AND NOT i.is_held
      AND i.due_at < now() + make_interval(hours => %(hours)s)
    ORDER BY i.due_at
    LIMIT CASE asked.domain WHEN '' THEN %(most)s ELSE %(most_addresses)s END
) AS next
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3
