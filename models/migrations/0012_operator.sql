-- Who has paused everything, when and why; and the emails that have failed before, found without reading all others.

ALTER TABLE duepost.control
    ADD COLUMN IF NOT EXISTS paused_at timestamptz,
    ADD COLUMN IF NOT EXISTS paused_by text,
    ADD COLUMN IF NOT EXISTS pause_reason text;
COMMENT ON COLUMN duepost.control.pause_reason IS 'What the operator said; NULL where nothing was said, or while not paused.';

-- Few of many: what an operator looks at. Rows enter it with their first failure only.
CREATE INDEX IF NOT EXISTS scheduled_email_failed ON duepost.scheduled_email (id) WHERE last_error IS NOT NULL;
