-- What providers tell by webhook: whether calls come in and are taken, and which signatures have been used.
-- oldest worker: 0016

-- All at once, before anything takes long: who has read one of them, and wants the next, would wait for us, and we for it.
LOCK TABLE duepost.scheduled_email_user, duepost.email_recipient IN SHARE MODE;

CREATE TABLE duepost.webhook (
    source          text PRIMARY KEY,
    accepted_at     timestamptz,
    refused_at      timestamptz,
    refused_because text,
    CONSTRAINT source_is_a_word CHECK (source ~ '^[a-z]{1,20}$')
);
COMMENT ON TABLE duepost.webhook IS 'When a provider''s webhook was last taken, and last refused, and why: a row for each provider.';

CREATE TABLE duepost.webhook_token (
    source  text NOT NULL,
    token   text NOT NULL,
    used_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, token),
    CONSTRAINT token_is_short CHECK (length(token) <= 200)
);
COMMENT ON TABLE duepost.webhook_token IS
    'Of providers that sign a token and not what they say: each counts once, as long as its time is believed.';
CREATE INDEX webhook_token_used ON duepost.webhook_token (used_at);

-- Who has an email already that others are still to get: a provider tells of it by their address.
CREATE INDEX scheduled_email_user_sent ON duepost.scheduled_email_user (duepost.mailbox_key(address))
    WHERE outcome = 'sent' AND address IS NOT NULL;
CREATE INDEX email_recipient_sent ON duepost.email_recipient (duepost.mailbox_key(address)) WHERE outcome = 'sent';

-- It has one argument more.
DROP FUNCTION IF EXISTS duepost.note_bounce(text, text, bigint, text, text, text, text, text, text, text);
