-- Many items as a JSON array of objects, whose keys are the arguments of the function that schedules one.

-- The keys of an item in JSON: what form a value has, and how an error describes it. They are those of the function that
-- schedules one, and not of its type: that one has grown already when the functions are replaced.
CREATE OR REPLACE FUNCTION duepost.arguments_of(function text)
RETURNS TABLE (name text, place integer, form text, example text)
LANGUAGE sql STABLE AS $$
    SELECT argument.name, argument.place::integer, CASE WHEN argument.name IN ('payload', 'attachments') THEN 'json' ELSE known.form END,
           known.example
    FROM pg_proc AS p
    CROSS JOIN unnest(p.proargnames, p.proargtypes::oid[]) WITH ORDINALITY AS argument (name, type, place)
    JOIN (VALUES
        ('text'::regtype, 'string', 'a string'),
        ('text[]'::regtype, 'list', 'a list of strings'),
        ('timestamptz'::regtype, 'time', 'a time such as 2026-01-31T09:00:00+01:00'),
        ('timestamp'::regtype, 'local time', 'a local time such as 2026-01-31T09:00:00'),
        ('jsonb'::regtype, 'object', 'an object')
    ) AS known (type, form, example) ON known.type = argument.type
    WHERE p.pronamespace = 'duepost'::regnamespace AND p.proname = $1
$$;

-- What is wrong with a member of an item in JSON, whose argument has this form; NULL where nothing is. One that has no
-- form is unknown.
CREATE OR REPLACE FUNCTION duepost.member_error(function text, key text, value jsonb, form text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    moment   timestamptz;
    is_other boolean;
BEGIN
    IF form IS NULL THEN
        RETURN key || ': unknown; known are '
            || (SELECT string_agg(a.name, ', ' ORDER BY a.place) FROM duepost.arguments_of(function) AS a);
    END IF;
    IF form = 'json' OR jsonb_typeof(value) = 'null' THEN
        RETURN NULL;
    END IF;
    is_other := jsonb_typeof(value) <> (
            CASE form WHEN 'list' THEN 'array' WHEN 'time' THEN 'string' WHEN 'local time' THEN 'string' ELSE form END
        )
        OR (form = 'list' AND jsonb_path_exists(value, 'strict $[*] ? (@.type() != "string")'));
    IF form IN ('time', 'local time') AND NOT is_other THEN
        BEGIN
            moment := value #>> '{}';
        EXCEPTION
            WHEN data_exception THEN is_other := true;
        END;
    END IF;
    RETURN CASE
        WHEN is_other
            THEN key || ': must be ' || (SELECT a.example FROM duepost.arguments_of(function) AS a WHERE a.name = key)
        WHEN form = 'local time' AND NOT duepost.is_local_time(value #>> '{}')
            THEN key || ': must be a local time without a zone: ISO 8601, such as 2026-01-31T09:00:00'
        WHEN form = 'time' AND NOT duepost.has_zone(value #>> '{}')
            THEN key || ': must have its zone: ISO 8601, such as 2026-01-31T09:00:00+01:00'
    END;
END
$$;

-- What is wrong with a list of items, named with its place, from 0: raises 22023.
CREATE OR REPLACE FUNCTION duepost.check_list(list text, items jsonb, function text) RETURNS void
LANGUAGE plpgsql STABLE AS $$
DECLARE
    forms jsonb;
    wrong record;
BEGIN
    IF items IS NULL OR jsonb_typeof(items) <> 'array' THEN
        PERFORM duepost.raise_bad_argument(
            list, format('must be a JSON array of objects, with the arguments of %s as keys', function)
        );
    END IF;
    -- Most values are strings and objects where those are known: nothing more is asked of them.
    forms := (SELECT jsonb_object_agg(known.name, known.form) FROM duepost.arguments_of(function) AS known);
    SELECT found.place, found.error INTO wrong
    FROM (
        SELECT each.place, member.place AS member_place, CASE
            WHEN jsonb_typeof(each.item) <> 'object'
                THEN CASE function
                    WHEN 'schedule_email' THEN 'must be an object such as {"kind": "welcome", "address": "ann@example.com"}'
                    ELSE 'must be an object such as {"kind": "news", "endpoint": "team", "payload": {"text": "Hello"}}'
                END
            ELSE duepost.member_error(function, member.key, member.value, forms ->> member.key)
        END AS error
        FROM jsonb_array_elements(items) WITH ORDINALITY AS each (item, place)
        LEFT JOIN LATERAL jsonb_each(
            CASE WHEN jsonb_typeof(each.item) = 'object' THEN each.item END
        ) WITH ORDINALITY AS member (key, value, place) ON true
        WHERE jsonb_typeof(each.item) <> 'object' OR forms ->> member.key IS DISTINCT FROM jsonb_typeof(member.value)
    ) AS found
    WHERE found.error IS NOT NULL
    ORDER BY found.place, found.member_place
    LIMIT 1;
    IF FOUND THEN
        PERFORM duepost.raise_bad_argument(format('%s[%s]', list, wrong.place - 1), wrong.error);
    END IF;
END
$$;
