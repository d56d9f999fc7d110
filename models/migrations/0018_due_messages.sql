-- What has just fallen due, whatever the endpoint: workers look for it many times a second.
-- oldest worker: 0016

CREATE INDEX item_message_due ON duepost.item (due_at, id) WHERE channel = 'message' AND NOT is_held;
