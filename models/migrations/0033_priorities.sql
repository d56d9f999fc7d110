-- Priorities: what is urgent leaves first, and what is bulk keeps nothing else waiting. What is due of a route lies in a line for each.
-- Caps: of a kind a person gets a number a day at the most.
-- oldest worker: 0016

-- All at once, before anything takes long: who has read one of them, and wants the next, would wait for us, and we for it.
LOCK TABLE duepost.kind, duepost.item IN ACCESS EXCLUSIVE MODE;

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

ALTER TABLE duepost.kind
    ADD COLUMN at_most_per_day integer,
    ADD CONSTRAINT at_most_per_day_is_positive CHECK (at_most_per_day > 0);
COMMENT ON COLUMN duepost.kind.at_most_per_day IS
    'How many emails of this kind a person gets within 24 hours; what there is more ends as obsolete. NULL: as many as there are.';
ALTER TABLE duepost.kind DROP COLUMN has_conditions;
ALTER TABLE duepost.kind ADD COLUMN has_conditions boolean GENERATED ALWAYS AS (
    guard IS NOT NULL OR quiet_from <> quiet_to IS TRUE OR at_most_per_day IS NOT NULL
) STORED;
COMMENT ON COLUMN duepost.kind.has_conditions IS 'Whether something is asked before an item of this kind is sent.';

-- Of two workers that are at the same person one waits for the other: both lock one of these rows, chosen by the person.
CREATE TABLE duepost.person_turn (number smallint PRIMARY KEY);
INSERT INTO duepost.person_turn (number) SELECT n FROM generate_series(0, 255) AS n;
COMMENT ON TABLE duepost.person_turn IS 'Rows that are locked while somebody counts what a person has had of a kind; never changed.';
