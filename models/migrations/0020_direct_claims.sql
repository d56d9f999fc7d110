-- A route whose senders claim what is due by themselves needs no messages meanwhile.
-- oldest worker: 0016

ALTER TABLE duepost.route ADD COLUMN claimed_directly_until timestamptz;
COMMENT ON COLUMN duepost.route.claimed_directly_until IS
    'Until then its senders claim what is due by themselves, and its scheduler makes no messages for them. No more than 3 s ahead.';
