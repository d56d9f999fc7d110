-- An email's arguments, each listed once: schedule_email() takes them in this order, schedule_emails() as keys.

-- A list and not CREATE TYPE: a database that has the type of an earlier release gets what was added since. Whoever
-- holds a value that was made before sees NULL in an added argument.
DO $$
DECLARE
    argument record;
BEGIN
    IF to_regtype('duepost.new_email') IS NULL THEN
        CREATE TYPE duepost.new_email AS ();
    END IF;
    FOR argument IN
        SELECT listed.name, listed.type
        FROM (VALUES
            ('kind', 'text'),
            ('address', 'text'),
            ('users', 'text[]'),
            ('scheduled_at', 'timestamptz'),
            ('template', 'text'),
            ('context', 'jsonb'),
            ('subject', 'text'),
            ('body_text', 'text'),
            ('body_html', 'text'),
            ('key', 'text'),
            ('expires_at', 'timestamptz'),
            ('sender', 'text'),
            ('reply_to', 'text'),
            ('headers', 'jsonb')
        ) AS listed (name, type)
        WHERE listed.name NOT IN (
            SELECT a.attname
            FROM pg_attribute AS a
            JOIN pg_type AS t ON t.typrelid = a.attrelid
            WHERE t.oid = 'duepost.new_email'::regtype AND NOT a.attisdropped
        )
    LOOP
        EXECUTE format('ALTER TYPE duepost.new_email ADD ATTRIBUTE %I %s', argument.name, argument.type);
    END LOOP;
END
$$;

-- The arguments as JSON has them: what form a value has, and how an error describes it.
CREATE OR REPLACE FUNCTION duepost.email_arguments() RETURNS TABLE (name text, place integer, form text, example text)
LANGUAGE sql STABLE AS $$
    SELECT a.attname::text, a.attnum::integer, known.form, known.example
    FROM pg_attribute AS a
    JOIN pg_type AS t ON t.typrelid = a.attrelid
    JOIN (VALUES
        ('text'::regtype, 'string', 'a string'),
        ('text[]'::regtype, 'list', 'a list of strings'),
        ('timestamptz'::regtype, 'time', 'a time such as 2026-01-31T09:00:00+01:00'),
        ('jsonb'::regtype, 'object', 'an object')
    ) AS known (type, form, example) ON known.type = a.atttypid
    WHERE t.oid = 'duepost.new_email'::regtype AND NOT a.attisdropped
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
