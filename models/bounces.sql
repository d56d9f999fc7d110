-- What came back after a relay had taken an email.

-- name: sent
-- Whom an email went to lately, as far as a relay took it: out of the ledger, or while others are still to get it. Served by
-- delivery_email.
SELECT told.email_id, told.kind, told.address, told.route, duepost.is_unsubscribable(told.kind)
FROM (
    SELECT d.email_id, d.kind, d.address, d.route
    FROM duepost.delivery AS d
    WHERE d.email_id = %(id)s AND d.channel = 'email' AND d.outcome = 'sent' AND d.address IS NOT NULL
      AND d.finished_at > now() - make_interval(days => %(days)s)
    UNION
    SELECT i.id, i.kind, u.address, i.route
    FROM duepost.item AS i
    JOIN duepost.scheduled_email_user AS u ON u.email_id = i.id AND (u.outcome = 'sent' OR u.unknown) AND u.address IS NOT NULL
    WHERE i.id = %(id)s AND i.channel = 'email'
    UNION
    SELECT i.id, i.kind, r.address, i.route
    FROM duepost.item AS i
    JOIN duepost.email_recipient AS r ON r.email_id = i.id AND (r.outcome = 'sent' OR r.unknown)
    WHERE i.id = %(id)s
    UNION
    SELECT i.id, i.kind, e.address, i.route
    FROM duepost.item AS i
    JOIN duepost.email AS e ON e.item_id = i.id AND e.address IS NOT NULL
    WHERE i.id = %(id)s AND i.unknowns > 0
) AS told

-- name: note
SELECT duepost.note_bounce(
    %(source)s, %(source_id)s, %(email_id)s, %(kind)s, %(address)s, %(event)s, %(effect)s, %(scope)s, %(enhanced_code)s,
    %(reply)s
)

-- name: newest
SELECT b.received_at, b.source, b.event, b.effect, b.email_id, b.kind, b.address, b.enhanced_code, b.reply
FROM duepost.bounce AS b
ORDER BY b.received_at DESC, b.id DESC
LIMIT %(limit)s

-- name: of_email
SELECT b.received_at, b.source, b.event, b.effect, b.email_id, b.kind, b.address, b.enhanced_code, b.reply
FROM duepost.bounce AS b
WHERE b.email_id = %(id)s
ORDER BY b.received_at
LIMIT 100

-- name: lately
-- What of the last day an operator has to look at: by effect, how many.
SELECT b.effect, count(*)
FROM duepost.bounce AS b
WHERE b.received_at > now() - interval '1 day'
GROUP BY b.effect
