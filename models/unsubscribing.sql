-- What recipients decide by a link in an email.

-- name: change
SELECT receipt, cleared
FROM duepost.change_subscription(%(kind)s, %(address)s, %(user_id)s, %(email_id)s, %(is_on)s)

-- name: secret
-- Of which links and return paths are made.
SELECT s.value FROM duepost.secret AS s WHERE s.name = 'tokens'

-- name: unsubscribable
-- Kinds whose emails carry a link to unsubscribe.
SELECT k.kind FROM duepost.kind AS k WHERE k.unsubscribe ORDER BY k.kind
