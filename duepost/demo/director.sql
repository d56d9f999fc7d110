-- What the demo looks at, in the tables that anyone may read.

-- name: progress
SELECT
    (SELECT count(*) FROM duepost.scheduled_email WHERE id = ANY (%(ids)s) AND state = 'scheduled'),
    (SELECT count(*) FROM duepost.scheduled_email WHERE id = ANY (%(ids)s) AND state = 'queued'),
    (SELECT count(*) FROM duepost.scheduled_email WHERE id = ANY (%(ids)s) AND state = 'sending'),
    (SELECT count(*) FROM duepost.scheduled_email WHERE id = ANY (%(ids)s) AND state = 'unknown'),
    (SELECT count(DISTINCT email_id) FROM duepost.delivery WHERE email_id = ANY (%(ids)s))

-- name: standing
SELECT state, attempts, coalesce(last_error, '') FROM duepost.scheduled_email WHERE id = %(id)s

-- name: outcomes
SELECT email_id, outcome, count(*) FROM duepost.delivery WHERE email_id = ANY (%(ids)s) GROUP BY email_id, outcome

-- name: introduce
-- The demo's users, where this database does not know them.
INSERT INTO duepost.recipient (user_id, address, name)
SELECT user_id, user_id || '@demo.example', initcap(replace(user_id, '-', ' '))
FROM unnest(%(users)s::text[]) AS user_id
ON CONFLICT (user_id) DO NOTHING
