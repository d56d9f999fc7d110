-- What was sent and is kept for a while.

-- name: kinds
SELECT k.kind FROM duepost.kind AS k WHERE k.keep_content IS NOT NULL

-- name: keep
SELECT duepost.keep_content(%(id)s, %(claim)s, %(users)s::text[], %(addresses)s::text[], %(contents)s::bytea[])

-- name: forget
SELECT duepost.forget_content()

-- name: copies
-- To whom an email was sent of which that is kept, a number of them; without what it said. Served by kept_content_once.
SELECT k.user_id, k.address, k.sent_at, k.kept_until
FROM duepost.kept_content AS k
WHERE k.email_id = %(id)s AND k.kept_until >= now()
ORDER BY coalesce(k.user_id, ''), k.address
LIMIT %(limit)s

-- name: content
-- Those who see each other have the same one.
SELECT k.content
FROM duepost.kept_content AS k
WHERE k.email_id = %(id)s AND coalesce(k.user_id, '') = %(user)s AND k.kept_until >= now()
ORDER BY k.sent_at DESC
LIMIT 1

-- name: of_person
-- All that is kept of what was sent to a mailbox or a user. Served by kept_content_mailbox and kept_content_user.
SELECT k.email_id, k.sent_at, k.kept_until, encode(k.content, 'escape')
FROM duepost.kept_content AS k
WHERE (%(user)s::text IS NOT NULL AND k.user_id = %(user)s::text)
   OR (%(address)s::text IS NOT NULL AND duepost.mailbox_key(k.address) = duepost.mailbox_key(%(address)s::text))
ORDER BY k.email_id
