-- Priorities: what is urgent leaves first, and what is bulk keeps nothing else waiting. What is due of a route lies in a line for each.
-- oldest worker: 0016

ALTER TABLE duepost.item
    ADD COLUMN priority smallint NOT NULL DEFAULT 0,
    ADD COLUMN own_priority smallint,
    ADD CONSTRAINT priority_is_urgent_normal_or_bulk CHECK (priority IN (-1, 0, 1) AND own_priority IN (-1, 0, 1));
COMMENT ON COLUMN duepost.item.priority IS
    'By which line of its route it leaves: -1 urgent, 0 normal, 1 bulk. Its own, or its kind''s.';
COMMENT ON COLUMN duepost.item.own_priority IS 'As it was scheduled with; NULL: its kind''s, and it follows where that changes.';
UPDATE duepost.item AS i
SET priority = CASE k.priority WHEN 'urgent' THEN -1 ELSE 1 END
FROM duepost.kind AS k
WHERE k.kind = i.kind AND k.priority IN ('urgent', 'bulk');

DROP INDEX duepost.item_due;
CREATE INDEX item_due ON duepost.item (route, priority, due_at, id) WHERE NOT is_held;
DROP INDEX duepost.item_message_due;
CREATE INDEX item_message_due ON duepost.item (priority, due_at, id) WHERE channel = 'message' AND NOT is_held;

COMMENT ON COLUMN duepost.kind.priority IS
    'urgent, normal or bulk: by which line of their route its items leave that have none of their own. NULL: normal. Of what is urgent '
    'the quiet hours do not hold. What is pending follows set_priority().';
