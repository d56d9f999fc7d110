-- An email's arguments, each listed once: schedule_email() takes them in this order, schedule_emails() as keys.

-- A list and not CREATE TYPE: a database that has the type of an earlier release gets what was added since. Whoever
-- holds a value that was made before would see other columns than the statements that PostgreSQL plans from now on, so
-- it grows while no call is under way: a call locks duepost.migration in ACCESS SHARE mode until its transaction ends.
-- In a transaction of its own, before the functions: what the schema's functions were, they go on with one column more.
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
            ('headers', 'jsonb'),
            ('addresses', 'text[]'),
            ('cc', 'text[]'),
            ('bcc', 'text[]'),
            ('scheduled_local', 'timestamp'),
            ('timezone', 'text'),
            ('attachments', 'jsonb'),
            ('priority', 'text')
        ) AS listed (name, type)
        WHERE listed.name NOT IN (
            SELECT a.attname
            FROM pg_attribute AS a
            JOIN pg_type AS t ON t.typrelid = a.attrelid
            WHERE t.oid = 'duepost.new_email'::regtype AND NOT a.attisdropped
        )
    LOOP
        LOCK TABLE duepost.migration IN ACCESS EXCLUSIVE MODE;
        EXECUTE format('ALTER TYPE duepost.new_email ADD ATTRIBUTE %I %s', argument.name, argument.type);
    END LOOP;
END
$$;
