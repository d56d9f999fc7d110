-- No drop is final at once: what was undeliverable is kept for some days, so that it can be reopened.

CREATE TABLE duepost.undeliverable_email (
    id          bigint PRIMARY KEY,
    kind        text NOT NULL,
    email       jsonb,
    finished_at timestamptz NOT NULL DEFAULT now(),
    kept_until  timestamptz NOT NULL
);
COMMENT ON TABLE duepost.undeliverable_email IS
    'Emails with recipients who could not be reached, as their rows were; kept for some days, so that they can be reopened.';
COMMENT ON COLUMN duepost.undeliverable_email.email IS
    'The row of scheduled_email, content included; NULL where content is not kept (DUEPOST_KEEP_UNDELIVERABLE_DAYS=0).';
-- What is over.
CREATE INDEX undeliverable_email_kept_until ON duepost.undeliverable_email (kept_until);

CREATE TABLE duepost.undeliverable_recipient (
    email_id    bigint NOT NULL REFERENCES duepost.undeliverable_email ON DELETE CASCADE,
    user_id     text,
    address     text,
    reply       text,
    refusal     text,
    finished_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN duepost.undeliverable_recipient.refusal IS
    'The relay''s code, and its words without addresses and numbers: alike for recipients who are refused for the same reason. '
    'NULL where the relay was not asked.';
CREATE UNIQUE INDEX undeliverable_recipient_once
    ON duepost.undeliverable_recipient (email_id, coalesce(user_id, ''));
-- Who was refused alike lately.
CREATE INDEX undeliverable_recipient_refusal ON duepost.undeliverable_recipient (md5(refusal), finished_at DESC)
    WHERE refusal IS NOT NULL;

ALTER TABLE duepost.control ADD COLUMN circuit_refusal text;
COMMENT ON COLUMN duepost.control.circuit_refusal IS
    'What so many recipients in a row were refused with that the circuit is open for it. A probe that is refused with '
    'the same has failed.';
