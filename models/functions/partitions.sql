-- The partitions of the ledger and of the journal.

-- Partitions by month, a few ahead, and none older than the retention: run by the scheduler, which owns no table.
-- Its dates are ISO ones: PostgreSQL before 18 does not read every zone's name as it writes it.
CREATE OR REPLACE FUNCTION duepost.maintain_partitions(retention interval DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET datestyle = 'ISO' AS $$
DECLARE
    parent text;
    month  timestamp;
    child  text;
BEGIN
    PERFORM pg_advisory_xact_lock(1148543344, 0);
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
        IF retention IS NOT NULL THEN
            FOR child IN
                SELECT c.relname
                FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
                WHERE i.inhparent = format('duepost.%I', parent)::regclass
                  AND c.relname ~ ('^' || parent || '_\d{4}_\d{2}$')
                  AND (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' < now() - retention
            LOOP
                EXECUTE format('DROP TABLE duepost.%I', child);
            END LOOP;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.maintain_partitions IS
    'Makes the ledger''s partitions of this month and the next two, and drops those wholly older than the retention.';
