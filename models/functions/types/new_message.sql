-- A message's arguments, each listed once: schedule_message() takes them in this order, schedule_messages() as keys.

-- It grows as the type of an email does: see new_email.sql.
DO $$
DECLARE
    argument record;
BEGIN
    IF to_regtype('duepost.new_message') IS NULL THEN
        CREATE TYPE duepost.new_message AS ();
    END IF;
    FOR argument IN
        SELECT listed.name, listed.type
        FROM (VALUES
            ('kind', 'text'),
            ('endpoint', 'text'),
            ('payload', 'jsonb'),
            ('scheduled_at', 'timestamptz'),
            ('users', 'text[]'),
            ('key', 'text'),
            ('expires_at', 'timestamptz')
        ) AS listed (name, type)
        WHERE listed.name NOT IN (
            SELECT a.attname
            FROM pg_attribute AS a
            JOIN pg_type AS t ON t.typrelid = a.attrelid
            WHERE t.oid = 'duepost.new_message'::regtype AND NOT a.attisdropped
        )
    LOOP
        LOCK TABLE duepost.migration IN ACCESS EXCLUSIVE MODE;
        EXECUTE format('ALTER TYPE duepost.new_message ADD ATTRIBUTE %I %s', argument.name, argument.type);
    END LOOP;
END
$$;
