-- Erasing a person, and what follows a restored backup.

-- name: forget_some
SELECT what, number FROM duepost.forget_some(%(action_id)s, %(address)s, %(user)s)

-- name: hold_after_restore
SELECT action_id, held, kept FROM duepost.hold_after_restore(%(due_by)s, %(by)s, %(reason)s)

-- name: kept_for_reopening
-- What is kept of undeliverable items of a person, content included: a few days, read from end to end.
SELECT k.id, k.finished_at, k.kept_until, k.email
FROM duepost.undeliverable_email AS k
WHERE EXISTS (
    SELECT FROM duepost.undeliverable_recipient AS r
    WHERE r.email_id = k.id
      AND (%(user)s::text IS NULL OR r.user_id = %(user)s::text)
      AND (%(address)s::text IS NULL OR (
          r.address IS NOT NULL AND duepost.mailbox_key(r.address) = duepost.mailbox_key(%(address)s::text)
      ))
)
ORDER BY k.id
