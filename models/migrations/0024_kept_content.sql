-- What was sent can be kept for a while, for kinds that say so.
-- oldest worker: 0016

ALTER TABLE duepost.kind ADD COLUMN keep_content interval;
ALTER TABLE duepost.kind
    ADD CONSTRAINT keep_content_is_a_span CHECK (keep_content > interval '0' AND keep_content <= interval '10 years');
COMMENT ON COLUMN duepost.kind.keep_content IS
    'For how long what was sent is kept of an email of this kind, as it was sent; NULL: it is not kept.';

CREATE TABLE duepost.kept_content (
    email_id   bigint NOT NULL,
    user_id    text,
    address    text NOT NULL,
    content    bytea NOT NULL,
    sent_at    timestamptz NOT NULL DEFAULT now(),
    kept_until timestamptz NOT NULL
);
COMMENT ON TABLE duepost.kept_content IS
    'What was sent, of kinds with keep_content: a row for each recipient, the last time that the email was sent to them.';
COMMENT ON COLUMN duepost.kept_content.content IS 'The message as it was handed to the relay: headers and body.';
CREATE UNIQUE INDEX kept_content_once ON duepost.kept_content (email_id, coalesce(user_id, ''), address);
-- What is over; and whose it is, for who has it erased.
CREATE INDEX kept_content_until ON duepost.kept_content (kept_until);
CREATE INDEX kept_content_mailbox ON duepost.kept_content (duepost.mailbox_key(address));
CREATE INDEX kept_content_user ON duepost.kept_content (user_id) WHERE user_id IS NOT NULL;
