-- What the demo does with messages.

-- name: make_board
-- An application's own function, which keeps what it is given.
CREATE SCHEMA IF NOT EXISTS duepost_demo;
CREATE TABLE IF NOT EXISTS duepost_demo.board (message_id bigint NOT NULL, payload jsonb NOT NULL);
CREATE OR REPLACE FUNCTION duepost_demo.post(message_id bigint, payload jsonb) RETURNS void
LANGUAGE sql AS 'INSERT INTO duepost_demo.board VALUES ($1, $2)'

-- name: schedule
SELECT duepost.schedule_message(
    kind => 'demo', endpoint => %(endpoint)s, payload => %(payload)s::jsonb,
    scheduled_at => now() + make_interval(secs => %(seconds)s)
)

-- name: posted
SELECT message_id FROM duepost_demo.board WHERE message_id = ANY (%(ids)s::bigint[])
