-- Batches: many events gathered into one email. While it is open, an email's batch has a row here, and each of its items;
-- the claim puts them into the email's context, and closes it.
-- oldest worker: 0016

CREATE TABLE duepost.batch (
    batch      text PRIMARY KEY,
    email_id   bigint NOT NULL,
    users      text[],
    items      integer NOT NULL DEFAULT 0,
    bytes      bigint NOT NULL DEFAULT 0,
    last_place bigint NOT NULL DEFAULT 0,
    opened_at  timestamptz NOT NULL,
    latest_at  timestamptz,
    CONSTRAINT batch_email UNIQUE (email_id),
    CONSTRAINT items_and_bytes_are_no_less_than_none CHECK (items >= 0 AND bytes >= 0)
);
COMMENT ON TABLE duepost.batch IS
    'Batches whose email is not claimed yet: what is added joins it. Written by whoever holds the lock of that email''s item.';
COMMENT ON COLUMN duepost.batch.users IS 'The users that the first call named, sorted; NULL for an email to an address.';
COMMENT ON COLUMN duepost.batch.bytes IS 'Of all items together, as JSON in text.';
COMMENT ON COLUMN duepost.batch.last_place IS 'The place of the item that joined last; places only grow.';
COMMENT ON COLUMN duepost.batch.opened_at IS 'When the first item joined.';
COMMENT ON COLUMN duepost.batch.latest_at IS 'No further item moves the email beyond this; NULL: there is no such moment.';

CREATE TABLE duepost.batch_item (
    email_id bigint NOT NULL REFERENCES duepost.batch (email_id) ON DELETE CASCADE,
    place    bigint NOT NULL,
    item_key text,
    item     jsonb NOT NULL,
    PRIMARY KEY (email_id, place)
);
COMMENT ON TABLE duepost.batch_item IS 'The items of open batches, in the order of joining.';
CREATE UNIQUE INDEX batch_item_key ON duepost.batch_item (email_id, item_key) WHERE item_key IS NOT NULL;

ALTER TABLE duepost.email ADD COLUMN batch text;
COMMENT ON COLUMN duepost.email.batch IS
    'The batch whose items it gathers, or has gathered: once it was claimed they are in its context, as items.';
