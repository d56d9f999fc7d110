-- Local times: an email may be due by the clock of its recipient, and a kind may have quiet hours there.
-- oldest worker: 0016

-- All at once, before anything takes long: who has read one of them, and wants the next, would wait for us, and we for it.
LOCK TABLE duepost.kind, duepost.item IN ACCESS EXCLUSIVE MODE;

CREATE TABLE duepost.zone (name text PRIMARY KEY);
COMMENT ON TABLE duepost.zone IS 'The names of the zones that PostgreSQL knows; filled by each `duepost migrate`.';

ALTER TABLE duepost.item ADD COLUMN scheduled_local timestamp;
COMMENT ON COLUMN duepost.item.scheduled_local IS
    'The local time that it is scheduled for, by the zone of its users: worked out again where that changes. NULL: scheduled_at says it.';

ALTER TABLE duepost.kind
    ADD COLUMN quiet_from time,
    ADD COLUMN quiet_to time,
    ADD COLUMN timezone text,
    ADD COLUMN priority text,
    ADD CONSTRAINT quiet_hours_have_both_ends CHECK ((quiet_from IS NULL) = (quiet_to IS NULL)),
    ADD CONSTRAINT priority_is_urgent_normal_or_bulk CHECK (priority IN ('urgent', 'normal', 'bulk'));
COMMENT ON COLUMN duepost.kind.quiet_from IS
    'From then on, by the recipient''s clock, nothing of this kind is sent until quiet_to: it is moved there. Equal: there are none.';
COMMENT ON COLUMN duepost.kind.timezone IS 'The zone of recipients who have none; NULL: UTC.';
COMMENT ON COLUMN duepost.kind.priority IS 'urgent: its quiet hours do not hold. NULL: normal.';

ALTER TABLE duepost.kind DROP COLUMN has_conditions;
ALTER TABLE duepost.kind ADD COLUMN has_conditions boolean GENERATED ALWAYS AS (
    guard IS NOT NULL OR quiet_from <> quiet_to IS TRUE
) STORED;
COMMENT ON COLUMN duepost.kind.has_conditions IS 'Whether something is asked before an item of this kind is sent.';

-- A user's new zone is followed at once where users are in our own table; a team's view has no such moment: there the claim looks.
-- What it does is in models/functions/zones.sql.
CREATE FUNCTION duepost.follow_zones() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END
$$;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_class AS c WHERE c.oid = to_regclass('duepost.recipient') AND c.relkind = 'r') THEN
        CREATE TRIGGER follow_zones AFTER UPDATE ON duepost.recipient
            REFERENCING OLD TABLE AS before NEW TABLE AS after
            FOR EACH STATEMENT EXECUTE FUNCTION duepost.follow_zones();
    END IF;
END
$$;
