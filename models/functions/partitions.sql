-- The partitions of the ledger and of the journal.

-- Up to when the ledger may be dropped; NULL where nothing may. By the moment that a retention comes to, not by its parts:
-- years less and days more may make any number of days. Who is not the owner may ask for no less than the owner has set.
CREATE OR REPLACE FUNCTION duepost.kept_since(retention interval, is_owner boolean) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
DECLARE
    asked timestamptz;
    least timestamptz;
BEGIN
    IF retention IS NULL THEN
        RETURN NULL;
    END IF;
    BEGIN
        asked := now() - retention;
    EXCEPTION
        WHEN datetime_field_overflow OR interval_field_overflow THEN asked := NULL;
    END;
    IF asked IS NULL OR NOT isfinite(asked) OR asked > now() - interval '1 day' THEN
        PERFORM duepost.raise_bad_argument('retention', 'must be between one day and some thousand years');
    END IF;
    IF is_owner THEN
        RETURN asked;
    END IF;
    SELECT now() - make_interval(days => r.days) INTO least FROM duepost.retention AS r;
    RETURN CASE WHEN least IS NOT NULL THEN LEAST(asked, least) END;
END
$$;

-- Partitions by month, a few ahead, and none older than the retention: run by the scheduler, which owns no table.
-- Its dates are ISO ones: PostgreSQL before 18 does not read every zone's name as it writes it. Making and dropping one takes
-- a lock that everybody waits behind, so that it gives up where a long reader is in the way, and is to be tried again soon.
CREATE OR REPLACE FUNCTION duepost.maintain_partitions(retention interval DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET datestyle = 'ISO'
SET lock_timeout = '100ms' AS $$
DECLARE
    kept_since timestamptz;
    parent     text;
    month      timestamp;
    child      text;
BEGIN
    kept_since := duepost.kept_since(retention, pg_has_role(session_user, current_user, 'MEMBER'));
    PERFORM FROM duepost.turn AS t WHERE t.name = 'maintenance' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        -- Somebody else is at it.
        RETURN;
    END IF;
    FOREACH parent IN ARRAY ARRAY['delivery', 'attempt'] LOOP
        FOR ahead IN 0..2 LOOP
            month := date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead);
            child := format('%s_%s', parent, to_char(month, 'YYYY_MM'));
            CONTINUE WHEN to_regclass(format('duepost.%I', child)) IS NOT NULL;
            -- Rows that the default partition took for want of this month keep it out: they stay there.
            CONTINUE WHEN (SELECT count(*) > 0 FROM (
                SELECT FROM duepost.delivery_rest WHERE parent = 'delivery'
                    AND finished_at >= month AT TIME ZONE 'UTC'
                    AND finished_at < (month + interval '1 month') AT TIME ZONE 'UTC'
                UNION ALL
                SELECT FROM duepost.attempt_rest WHERE parent = 'attempt'
                    AND finished_at >= month AT TIME ZONE 'UTC'
                    AND finished_at < (month + interval '1 month') AT TIME ZONE 'UTC'
            ) AS rest);
            EXECUTE format(
                'CREATE TABLE duepost.%I PARTITION OF duepost.%I FOR VALUES FROM (%L) TO (%L)',
                child, parent, month AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC'
            );
        END LOOP;
        FOR child IN
            SELECT c.relname
            FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
            WHERE i.inhparent = format('duepost.%I', parent)::regclass
              AND c.relname ~ ('^' || parent || '_\d{4}_\d{2}$')
              AND (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' < kept_since
            ORDER BY c.relname
        LOOP
            EXECUTE format('DROP TABLE duepost.%I', child);
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.maintain_partitions IS
    'Makes the ledger''s partitions of this month and the next two, and drops those wholly older than the retention (22023 '
    'under a day; a caller who is not the owner drops nothing that duepost.retention keeps). Raises 55P03 where a long '
    'reader is in the way.';
