-- Attachments: their content stands here once, by its hash, for as long as an email that is pending, or kept so that it can be
-- reopened, needs it.

CREATE TABLE duepost.attachment_content (
    hash       bytea PRIMARY KEY,
    content    bytea NOT NULL,
    stored_at  timestamptz NOT NULL DEFAULT now(),
    keep_until timestamptz NOT NULL,
    CONSTRAINT hash_is_sha256 CHECK (octet_length(hash) = 32)
);
-- Most files are compressed already, and a part of one is read without the rest.
ALTER TABLE duepost.attachment_content ALTER COLUMN content SET STORAGE EXTERNAL;
COMMENT ON TABLE duepost.attachment_content IS 'What attachments hold, each content once.';
COMMENT ON COLUMN duepost.attachment_content.hash IS 'SHA-256 of the content.';
COMMENT ON COLUMN duepost.attachment_content.keep_until IS
    'Until when it stays though no email needs it; until then a reference that duepost.attachment() gave can be used.';
CREATE INDEX attachment_content_keep_until ON duepost.attachment_content (keep_until);

CREATE TABLE duepost.email_attachment (
    email_id bigint NOT NULL,
    hash     bytea NOT NULL REFERENCES duepost.attachment_content (hash),
    PRIMARY KEY (email_id, hash)
);
COMMENT ON TABLE duepost.email_attachment IS
    'Which contents an email needs. What has a row here is not deleted; a row goes once its email is neither pending nor kept.';
CREATE INDEX email_attachment_hash ON duepost.email_attachment (hash);

ALTER TABLE duepost.email ADD COLUMN attachments jsonb;
COMMENT ON COLUMN duepost.email.attachments IS
    'What duepost.attachment() gave, in order: file names, types, hashes. NULL: there are none.';
