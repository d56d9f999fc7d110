-- Who gets nothing: by address, for all emails or those of a kind. SECURITY DEFINER: members of duepost_operator call what
-- operators do, and each such call is a row of duepost.operator_action; workers call what relays and recipients say.

-- What is asked for each mailbox when an email to users is read; a claim asks the same beside its own rows.
CREATE OR REPLACE FUNCTION duepost.suppressed_kinds(mailbox text) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_agg(s.kind)
    FROM duepost.suppression AS s
    WHERE s.address = $1 AND (s.until IS NULL OR s.until > now())
$$;
COMMENT ON FUNCTION duepost.suppressed_kinds IS
    'The kinds of which a mailbox gets nothing now, as a list in JSON in which null stands for all; NULL: it gets everything.';

CREATE OR REPLACE FUNCTION duepost.suppression_error(
    address text, kind text, reason text, until timestamptz
) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        duepost.address_error('address', duepost.mailbox_address(address)),
        CASE WHEN kind IS NOT NULL THEN duepost.kind_error(kind) END,
        duepost.line_error('reason', reason, 1000),
        duepost.moment_error('until', until),
        CASE WHEN until <= now() THEN 'until: must be in the future' END
    )
$$;

-- Stores one, and weakens none that there is: what has no end keeps none, what ends is only put off. Gives whether it is new,
-- or goes on for longer.
CREATE OR REPLACE FUNCTION duepost.add_suppression(
    address text, kind text, source text, reason text, until timestamptz DEFAULT NULL, suppressed_at timestamptz DEFAULT NULL,
    enhanced_code text DEFAULT NULL, reply text DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    mailbox CONSTANT text := duepost.mailbox_key(duepost.mailbox_address(add_suppression.address));
BEGIN
    IF add_suppression.kind IS NULL THEN
        INSERT INTO duepost.suppression AS s (address, source, reason, until, suppressed_at, enhanced_code, reply)
        VALUES (
            mailbox, add_suppression.source, add_suppression.reason, add_suppression.until,
            coalesce(add_suppression.suppressed_at, now()), add_suppression.enhanced_code, add_suppression.reply
        )
        ON CONFLICT (address) DO UPDATE
        SET source = EXCLUDED.source, reason = EXCLUDED.reason, until = EXCLUDED.until,
            suppressed_at = EXCLUDED.suppressed_at, enhanced_code = EXCLUDED.enhanced_code, reply = EXCLUDED.reply
        WHERE s.until IS NOT NULL AND (EXCLUDED.until IS NULL OR EXCLUDED.until > s.until);
    ELSE
        INSERT INTO duepost.kind_suppression AS s (
            address, kind, source, reason, until, suppressed_at, enhanced_code, reply
        ) VALUES (
            mailbox, add_suppression.kind, add_suppression.source, add_suppression.reason, add_suppression.until,
            coalesce(add_suppression.suppressed_at, now()), add_suppression.enhanced_code, add_suppression.reply
        )
        ON CONFLICT (address, kind) DO UPDATE
        SET source = EXCLUDED.source, reason = EXCLUDED.reason, until = EXCLUDED.until,
            suppressed_at = EXCLUDED.suppressed_at, enhanced_code = EXCLUDED.enhanced_code, reply = EXCLUDED.reply
        WHERE s.until IS NOT NULL AND (EXCLUDED.until IS NULL OR EXCLUDED.until > s.until);
    END IF;
    RETURN FOUND;
END
$$;

CREATE OR REPLACE FUNCTION duepost.suppress_dead(address text, enhanced_code text, reply text) RETURNS boolean
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
    SELECT duepost.add_suppression($1, NULL, 'relay', NULL, enhanced_code => $2, reply => $3)
$$;
COMMENT ON FUNCTION duepost.suppress_dead IS
    'A relay has called an address dead: nothing goes to it any more. Whether it was not so already.';

CREATE OR REPLACE FUNCTION duepost.suppress(
    address text, by_whom text, via text, kind text DEFAULT NULL, reason text DEFAULT NULL, until timestamptz DEFAULT NULL,
    token text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    mailbox CONSTANT text := duepost.mailbox_address(suppress.address);
    error   text;
    action  record;
    was     record;
    said    text := 'suppressed';
BEGIN
    error := duepost.suppression_error(suppress.address, suppress.kind, suppress.reason, suppress.until);
    IF error IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = error;
    END IF;
    action := duepost.begin_action(
        'suppress', by_whom, via, reason,
        jsonb_strip_nulls(jsonb_build_object('address', mailbox, 'kind', suppress.kind, 'until', suppress.until)), token
    );
    IF NOT action.is_new THEN
        RETURN 'repeated';
    END IF;
    SELECT s.id, s.source, s.reason, s.until INTO was
    FROM duepost.suppression AS s
    WHERE s.address = duepost.mailbox_key(mailbox) AND s.kind IS NOT DISTINCT FROM suppress.kind
    FOR UPDATE;
    IF was.id IS NULL OR was.until <= now() THEN
        DELETE FROM duepost.suppression AS s WHERE s.id = was.id;
        PERFORM duepost.add_suppression(mailbox, suppress.kind, 'operator', suppress.reason, suppress.until);
    ELSIF (was.reason, was.until) IS DISTINCT FROM (suppress.reason, suppress.until) THEN
        -- What recipients have asked for stays theirs.
        UPDATE duepost.suppression AS s
        SET reason = suppress.reason, until = suppress.until,
            source = CASE WHEN s.source IN ('unsubscribe', 'complaint') THEN s.source ELSE 'operator' END
        WHERE s.id = was.id;
        said := 'changed';
    ELSE
        said := 'already';
    END IF;
    PERFORM duepost.end_action_with(action.id, (said <> 'already')::integer, 'already');
    RETURN said;
END
$$;
COMMENT ON FUNCTION duepost.suppress IS
    'Nothing goes to this address any more, of all emails or of a kind, until a time or for good: suppressed, changed (its reason or '
    'end was another), already (it was so) or repeated (its token is known). What is pending to it ends as suppressed when it is due.';

CREATE OR REPLACE FUNCTION duepost.unsuppress(
    address text, by_whom text, via text, kind text DEFAULT NULL, reason text DEFAULT NULL, token text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    mailbox CONSTANT text := duepost.mailbox_address(unsuppress.address);
    error   text;
    action  record;
    lifted  boolean;
BEGIN
    error := duepost.suppression_error(unsuppress.address, unsuppress.kind, unsuppress.reason, NULL);
    IF error IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = error;
    END IF;
    action := duepost.begin_action(
        'unsuppress', by_whom, via, reason,
        jsonb_strip_nulls(jsonb_build_object('address', mailbox, 'kind', unsuppress.kind)), token
    );
    IF NOT action.is_new THEN
        RETURN 'repeated';
    END IF;
    DELETE FROM duepost.suppression AS s
    WHERE s.address = duepost.mailbox_key(mailbox) AND s.kind IS NOT DISTINCT FROM unsuppress.kind;
    lifted := FOUND;
    PERFORM duepost.end_action_with(action.id, lifted::integer, 'not_suppressed');
    RETURN CASE WHEN lifted THEN 'lifted' ELSE 'not_suppressed' END;
END
$$;
COMMENT ON FUNCTION duepost.unsuppress IS
    'Lifts the suppression of an address: that of all emails, or, where a kind is named, that of the kind and no other. lifted, '
    'not_suppressed or repeated (its token is known).';

-- A time as text, in ISO 8601 with its zone; NULL where it is none.
CREATE OR REPLACE FUNCTION duepost.moment_of(value text) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN CASE WHEN duepost.has_zone(value) THEN value::timestamptz END;
EXCEPTION
    WHEN datetime_field_overflow OR invalid_datetime_format OR invalid_parameter_value THEN RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION duepost.import_suppressions(action_id bigint, suppressions jsonb)
RETURNS TABLE (place integer, receipt text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    given  record;
    number bigint := 0;
    others jsonb := '{}';
BEGIN
    PERFORM FROM duepost.operator_action AS a
    WHERE a.id = import_suppressions.action_id AND a.action = 'suppress' AND a.ended_at IS NULL;
    IF NOT FOUND THEN
        PERFORM duepost.raise_bad_argument('action_id', 'no such action is under way');
    END IF;
    IF jsonb_typeof(suppressions) IS DISTINCT FROM 'array' OR EXISTS (
        SELECT FROM jsonb_array_elements(CASE jsonb_typeof(suppressions) WHEN 'array' THEN suppressions ELSE '[]' END) AS s
        WHERE jsonb_typeof(s) <> 'object'
    ) THEN
        PERFORM duepost.raise_bad_argument('suppressions', 'must be an array of objects');
    END IF;
    IF jsonb_array_length(suppressions) > 1000 THEN
        PERFORM duepost.raise_bad_argument('suppressions', 'must be at most 1000 at once');
    END IF;
    -- In the order of the mailboxes, so that two imports wait for each other, and not in a circle.
    FOR given IN
        SELECT g.ordinality::integer - 1 AS place, g.address, nullif(g.kind, '') AS kind, nullif(g.reason, '') AS reason,
               nullif(g.source, '') AS source, g.until AS until_text, duepost.moment_of(g.until) AS until,
               g.suppressed_at AS since_text, duepost.moment_of(g.suppressed_at) AS since
        FROM (
            SELECT o.ordinality, o.object ->> 'address' AS address, o.object ->> 'kind' AS kind, o.object ->> 'reason' AS reason,
                   o.object ->> 'source' AS source, nullif(o.object ->> 'until', '') AS until,
                   nullif(o.object ->> 'suppressed_at', '') AS suppressed_at
            FROM jsonb_array_elements(import_suppressions.suppressions) WITH ORDINALITY AS o (object, ordinality)
        ) AS g
        ORDER BY left(g.address, 400), g.kind, g.ordinality
    LOOP
        place := given.place;
        receipt := coalesce(
            duepost.suppression_error(given.address, given.kind, given.reason, given.until),
            CASE
                WHEN given.until_text IS NOT NULL AND given.until IS NULL
                    THEN 'until: must be a time in ISO 8601 with its zone'
                WHEN given.since_text IS NOT NULL AND (
                    given.since IS NULL OR duepost.moment_error('suppressed_at', given.since) IS NOT NULL OR given.since > now()
                ) THEN 'suppressed_at: must be a time in the past in ISO 8601 with its zone'
                WHEN given.source NOT IN ('relay', 'bounce', 'complaint', 'unsubscribe', 'operator', 'import')
                    THEN 'source: must be relay, bounce, complaint, unsubscribe, operator or import'
            END,
            CASE
                WHEN duepost.add_suppression(
                    given.address, given.kind, coalesce(given.source, 'import'), given.reason, given.until, given.since
                ) THEN 'suppressed'
                ELSE 'already'
            END
        );
        IF receipt = 'suppressed' THEN
            number := number + 1;
        ELSE
            others := others || jsonb_build_object(
                CASE receipt WHEN 'already' THEN receipt ELSE 'refused' END,
                coalesce((others ->> CASE receipt WHEN 'already' THEN receipt ELSE 'refused' END)::bigint, 0) + 1
            );
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM duepost.add_to_action(action_id, number, others);
END
$$;
COMMENT ON FUNCTION duepost.import_suppressions IS
    'Stores suppressions for an action `suppress`, at most 1000 at once: a JSON array of objects with address, kind, reason, source, '
    'until and suppressed_at. A receipt for each, by its place from 0: suppressed, already, or what is wrong with it.';
