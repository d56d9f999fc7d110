-- What the demo looks at, in the tables that anyone may read.

-- name: progress
-- Emails and messages: one sequence numbers both.
SELECT
    count(*) FILTER (WHERE pending.state = 'scheduled'),
    count(*) FILTER (WHERE pending.state = 'queued'),
    count(*) FILTER (WHERE pending.state = 'sending'),
    count(*) FILTER (WHERE pending.state = 'unknown'),
    (SELECT count(DISTINCT email_id) FROM duepost.delivery WHERE email_id = ANY (%(ids)s))
FROM (
    SELECT id, state FROM duepost.scheduled_email WHERE id = ANY (%(ids)s)
    UNION ALL
    SELECT id, state FROM duepost.scheduled_message WHERE id = ANY (%(ids)s)
) AS pending

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
