-- Emails whose recipients see each other: one message, and one transaction with its relay, for all of them. Each has a row
-- here, which says what has become of it, until the email is finished for all. An address may have a name beside it.
-- oldest worker: 0016

-- All at once, before anything takes long: who has read one of them, and wants the next, would wait for us, and we for it.
LOCK TABLE duepost.email, duepost.attempt, duepost.undeliverable_recipient IN ACCESS EXCLUSIVE MODE;

CREATE TABLE duepost.email_recipient (
    email_id      bigint NOT NULL,
    place         integer NOT NULL,
    field         text NOT NULL,
    address       text NOT NULL,
    name          text,
    outcome       text,
    unknown       boolean NOT NULL DEFAULT false,
    code          integer,
    enhanced_code text,
    reply         text,
    in_ledger     boolean NOT NULL DEFAULT false,
    PRIMARY KEY (email_id, place),
    CONSTRAINT field_is_to_cc_or_bcc CHECK (field IN ('to', 'cc', 'bcc'))
);
COMMENT ON TABLE duepost.email_recipient IS
    'Who gets an email together with others who see it, and what has become of it for each. To, Cc and Bcc in their order; '
    'written and deleted under the lock of its item.';
COMMENT ON COLUMN duepost.email_recipient.place IS 'Its place in the email, from 1: no two are one mailbox.';
COMMENT ON COLUMN duepost.email_recipient.outcome IS 'NULL: still to go.';
COMMENT ON COLUMN duepost.email_recipient.in_ledger IS
    'It is finished, and in the ledger already: the row is kept for the header that the others get.';
-- Whose emails they are, as when they are cleared.
CREATE INDEX email_recipient_mailbox ON duepost.email_recipient (duepost.mailbox_key(address));

ALTER TABLE duepost.email
    ADD COLUMN address_name text,
    ADD COLUMN has_extras boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN duepost.email.address IS
    'The one recipient; NULL where users, or several recipients who see each other, get it (scheduled_email_user, email_recipient).';
COMMENT ON COLUMN duepost.email.address_name IS 'The name beside the address, as of Ann Example <ann@example.com>.';
COMMENT ON COLUMN duepost.email.has_extras IS
    'Whether email_extras() says more of it than its row: a claim asks for those only.';

ALTER TABLE duepost.attempt ADD COLUMN address text;
COMMENT ON COLUMN duepost.attempt.address IS 'Which recipient, of an email whose recipients see each other; else NULL.';

-- Of several, each is undeliverable by itself.
DROP INDEX duepost.undeliverable_recipient_once;
CREATE UNIQUE INDEX undeliverable_recipient_once
    ON duepost.undeliverable_recipient (email_id, coalesce(user_id, address, ''));
