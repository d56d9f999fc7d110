-- Who gets nothing. What operators do calls functions that a member of duepost_operator may call.

-- name: suppress
SELECT duepost.suppress(%(address)s, %(by)s, %(via)s, %(kind)s, %(reason)s, %(until)s::timestamptz, %(token)s)

-- name: unsuppress
SELECT duepost.unsuppress(%(address)s, %(by)s, %(via)s, %(kind)s, %(reason)s, %(token)s)

-- name: take_in
SELECT place, receipt FROM duepost.import_suppressions(%(action_id)s, %(suppressions)s::jsonb)

-- name: of_addresses
-- Those of some addresses that hold now. Served by suppression_pkey and kind_suppression_pkey.
SELECT s.id, s.address, s.kind, s.source, s.reason, s.until, s.suppressed_at, s.enhanced_code, s.reply
FROM duepost.suppression AS s
WHERE s.address = ANY (ARRAY(SELECT duepost.mailbox_key(a) FROM unnest(%(addresses)s::text[]) AS a))
  AND (s.until IS NULL OR s.until > now())
ORDER BY s.address, s.kind NULLS FIRST

-- name: newest
-- A page, the newest first. Served by suppression_newest.
SELECT s.id, s.address, s.kind, s.source, s.reason, s.until, s.suppressed_at, s.enhanced_code, s.reply
FROM duepost.suppression AS s
WHERE (%(at)s::timestamptz IS NULL OR (s.suppressed_at, s.id) < (%(at)s::timestamptz, %(id)s::bigint))
  AND (s.until IS NULL OR s.until > now())
ORDER BY s.suppressed_at DESC, s.id DESC
LIMIT %(limit)s

-- name: in_order
-- A page in the order in which they were stored.
SELECT s.id, s.address, s.kind, s.source, s.reason, s.until, s.suppressed_at, s.enhanced_code, s.reply
FROM duepost.suppression AS s
WHERE s.id > %(after_id)s AND (s.until IS NULL OR s.until > now())
ORDER BY s.id
LIMIT %(limit)s

-- name: one
SELECT s.id, s.address, s.kind, s.source, s.reason, s.until, s.suppressed_at, s.enhanced_code, s.reply
FROM duepost.suppression AS s
WHERE s.id = %(id)s

-- name: number
-- How many hold now: of all emails, and of a kind.
SELECT count(*) FILTER (WHERE s.kind IS NULL), count(*) FILTER (WHERE s.kind IS NOT NULL)
FROM duepost.suppression AS s
WHERE s.until IS NULL OR s.until > now()
