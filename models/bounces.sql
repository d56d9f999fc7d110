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

-- name: sent_as
-- The emails that a provider means by our Message-ID (what stands before the @) or by its own id, which stands in its reply to
-- the dot. Found by the recipients' addresses: delivery_mailbox, scheduled_email_user_sent, email_recipient_sent.
WITH mailbox AS MATERIALIZED (
    SELECT array_agg(duepost.mailbox_key(given.address)) AS keys FROM unnest(%(addresses)s::text[]) AS given (address)
)
SELECT DISTINCT told.email_id
FROM (
    SELECT d.email_id, d.message_id_header, d.reply
    FROM duepost.delivery AS d
    WHERE d.address IS NOT NULL AND duepost.mailbox_key(d.address) = ANY ((SELECT m.keys FROM mailbox AS m)::text[])
      AND d.finished_at > now() - make_interval(days => %(days)s) AND d.channel = 'email' AND d.outcome = 'sent'
    UNION ALL
    SELECT u.email_id, e.message_id_header, u.reply
    FROM duepost.scheduled_email_user AS u
    JOIN duepost.email AS e ON e.item_id = u.email_id
    WHERE u.outcome = 'sent' AND u.address IS NOT NULL
      AND duepost.mailbox_key(u.address) = ANY ((SELECT m.keys FROM mailbox AS m)::text[])
    UNION ALL
    SELECT r.email_id, e.message_id_header, r.reply
    FROM duepost.email_recipient AS r
    JOIN duepost.email AS e ON e.item_id = r.email_id
    WHERE r.outcome = 'sent' AND duepost.mailbox_key(r.address) = ANY ((SELECT m.keys FROM mailbox AS m)::text[])
) AS told
WHERE split_part(ltrim(told.message_id_header, '<'), '@', 1) = %(message_id)s::text
   OR (%(relay_id)s::text IS NOT NULL AND %(relay_id)s::text = ANY (regexp_split_to_array(told.reply, '[^A-Za-z0-9_-]+')))
LIMIT 2

-- name: use_token
SELECT duepost.use_webhook_token(%(source)s, %(token)s)

-- name: tell_webhook
SELECT duepost.tell_webhook(%(source)s, %(refused_because)s)

-- name: webhooks
-- When each provider's webhook was last taken, and last refused.
SELECT w.source, w.accepted_at, w.refused_at, w.refused_because
FROM duepost.webhook AS w
ORDER BY w.source

-- name: note
SELECT duepost.note_bounce(
    %(source)s, %(source_id)s, %(email_id)s, %(kind)s, %(address)s, %(event)s, %(effect)s, %(scope)s, %(enhanced_code)s,
    %(reply)s, %(token)s
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
