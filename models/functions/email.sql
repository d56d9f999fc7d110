-- The keys of an email in JSON: what form a value has, and how an error describes it. They are those of schedule_email(),
-- and not of the type: that one has grown already when the functions are replaced.
CREATE OR REPLACE FUNCTION duepost.email_arguments() RETURNS TABLE (name text, place integer, form text, example text)
LANGUAGE sql STABLE AS $$
    SELECT argument.name, argument.place::integer, known.form, known.example
    FROM pg_proc AS p
    CROSS JOIN unnest(p.proargnames, p.proargtypes::oid[]) WITH ORDINALITY AS argument (name, type, place)
    JOIN (VALUES
        ('text'::regtype, 'string', 'a string'),
        ('text[]'::regtype, 'list', 'a list of strings'),
        ('timestamptz'::regtype, 'time', 'a time such as 2026-01-31T09:00:00+01:00'),
        ('jsonb'::regtype, 'object', 'an object')
    ) AS known (type, form, example) ON known.type = argument.type
    WHERE p.pronamespace = 'duepost'::regnamespace AND p.proname = 'schedule_email'
$$;

-- What is wrong with a member of an email in JSON, whose argument has this form; NULL where nothing is. One that has no
-- form is unknown.
CREATE OR REPLACE FUNCTION duepost.member_error(key text, value jsonb, form text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    moment   timestamptz;
    is_other boolean;
BEGIN
    IF form IS NULL THEN
        RETURN key || ': unknown; known are '
            || (SELECT string_agg(a.name, ', ' ORDER BY a.place) FROM duepost.email_arguments() AS a);
    END IF;
    IF jsonb_typeof(value) = 'null' THEN
        RETURN NULL;
    END IF;
    is_other := jsonb_typeof(value) <> (CASE form WHEN 'list' THEN 'array' WHEN 'time' THEN 'string' ELSE form END)
        OR (form = 'list' AND jsonb_path_exists(value, 'strict $[*] ? (@.type() != "string")'));
    IF form = 'time' AND NOT is_other THEN
        BEGIN
            moment := value #>> '{}';
        EXCEPTION
            WHEN data_exception THEN is_other := true;
        END;
    END IF;
    RETURN CASE
        WHEN is_other
            THEN key || ': must be ' || (SELECT a.example FROM duepost.email_arguments() AS a WHERE a.name = key)
        WHEN form = 'time' AND NOT duepost.has_zone(value #>> '{}')
            THEN key || ': must have its zone: ISO 8601, such as 2026-01-31T09:00:00+01:00'
    END;
END
$$;
