-- A kind may have a guard, which is asked before each of its items is sent, and whose no ends it as obsolete. Items whose kind
-- asks something are claimed one by one.
-- oldest worker: 0016

-- All at once, before anything takes long: who has read one of them, and wants the next, would wait for us, and we for it.
LOCK TABLE duepost.kind, duepost.delivery IN ACCESS EXCLUSIVE MODE;

ALTER TABLE duepost.kind ADD COLUMN guard text;
ALTER TABLE duepost.kind ADD COLUMN has_conditions boolean GENERATED ALWAYS AS (guard IS NOT NULL) STORED;
COMMENT ON COLUMN duepost.kind.guard IS
    'A function (id bigint, users text[], context jsonb) that returns boolean, with its schema: asked as an item of this kind is '
    'claimed, in that transaction. False: it is obsolete. An error, NULL, or more than 2 s: it is tried again later.';
COMMENT ON COLUMN duepost.kind.has_conditions IS 'Whether something is asked before an item of this kind is sent.';

-- What it does is in models/functions/conditions.sql.
CREATE FUNCTION duepost.check_kind() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NEW;
END
$$;
CREATE TRIGGER check_kind BEFORE INSERT OR UPDATE ON duepost.kind FOR EACH ROW EXECUTE FUNCTION duepost.check_kind();

-- Rows that are there have one of the outcomes of before: none is looked at.
ALTER TABLE duepost.delivery DROP CONSTRAINT outcome_is_known;
ALTER TABLE duepost.delivery ADD CONSTRAINT outcome_is_known CHECK (
    outcome IN ('sent', 'undeliverable', 'cleared', 'expired', 'suppressed', 'obsolete')
) NOT VALID;
