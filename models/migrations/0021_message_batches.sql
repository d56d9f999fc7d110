-- Batches of messages: many events gathered into one list, which is the message's payload once it is claimed.
-- oldest worker: 0016

ALTER TABLE duepost.message ADD COLUMN batch text;
COMMENT ON COLUMN duepost.message.batch IS
    'The batch whose items it gathers, or has gathered: once it was claimed they are its payload.';
COMMENT ON TABLE duepost.batch IS
    'Batches whose email or message is not claimed yet: what is added joins it. Written by whoever holds the lock of its item.';
COMMENT ON COLUMN duepost.batch.email_id IS 'The id of the email or the message.';
COMMENT ON COLUMN duepost.batch.users IS 'The users that the first call named, sorted; NULL where it named none.';
