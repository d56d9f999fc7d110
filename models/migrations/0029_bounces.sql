-- What came back after a relay had taken an email: bounces and complaints, each once.
-- oldest worker: 0016

CREATE TABLE duepost.bounce (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at   timestamptz NOT NULL DEFAULT now(),
    source        text NOT NULL,
    source_id     text,
    email_id      bigint,
    kind          text,
    address       text,
    event         text NOT NULL,
    effect        text NOT NULL,
    enhanced_code text,
    reply         text,
    CONSTRAINT source_is_a_word CHECK (source ~ '^[a-z]{1,20}$'),
    CONSTRAINT effect_is_known CHECK (effect IN ('suppressed', 'failed', 'about_us', 'nothing', 'unbelieved', 'unreadable'))
);
COMMENT ON TABLE duepost.bounce IS 'What came back after a relay had taken an email, and what followed. Append-only.';
COMMENT ON COLUMN duepost.bounce.source IS 'mailbox, or the provider whose webhook it was: ses, mailgun, sendgrid, postmark.';
COMMENT ON COLUMN duepost.bounce.source_id IS 'What it is called there: the same counts once.';
COMMENT ON COLUMN duepost.bounce.event IS 'What it says: failed, delayed, delivered, abuse, and others.';
COMMENT ON COLUMN duepost.bounce.effect IS
    'suppressed, failed (nothing is suppressed), about_us, nothing, unbelieved (without a token or signature of ours) or unreadable.';
-- One email and recipient is told of once, whatever comes again.
CREATE UNIQUE INDEX bounce_told ON duepost.bounce (email_id, duepost.mailbox_key(address), event)
    WHERE email_id IS NOT NULL AND address IS NOT NULL;
CREATE UNIQUE INDEX bounce_source ON duepost.bounce (source, source_id) WHERE source_id IS NOT NULL;
CREATE INDEX bounce_received ON duepost.bounce (received_at DESC, id DESC);
CREATE INDEX bounce_mailbox ON duepost.bounce (duepost.mailbox_key(address)) WHERE address IS NOT NULL;
