-- Attachments by reference: what their files held when an email with them was last made.
-- oldest worker: 0016

CREATE TABLE duepost.email_file (
    email_id bigint PRIMARY KEY,
    hashes   bytea[] NOT NULL,
    CONSTRAINT hashes_are_given CHECK (cardinality(hashes) BETWEEN 1 AND 100)
);
COMMENT ON TABLE duepost.email_file IS
    'What the files held that an email names by URL, when it was last made. Once anybody may have it, only the same goes to the others.';
COMMENT ON COLUMN duepost.email_file.hashes IS 'SHA-256 of each, in the order of the email''s attachments.';
