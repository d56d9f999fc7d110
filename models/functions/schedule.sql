-- What an application calls to schedule, inside its own transaction.
-- SECURITY DEFINER: a client may call these and touch nothing else; the search_path is fixed, so that nobody's table or
-- operator stands in for ours, and so is the way that backslashes are read, on which the patterns of the checks depend.

-- The arguments of schedule_email(), in their order.
DO $$
BEGIN
    IF to_regtype('duepost.new_email') IS NULL THEN
        CREATE TYPE duepost.new_email AS (
            kind         text,
            address      text,
            users        text[],
            scheduled_at timestamptz,
            template     text,
            context      jsonb,
            subject      text,
            body_text    text,
            body_html    text,
            key          text,
            expires_at   timestamptz,
            sender       text,
            reply_to     text,
            headers      jsonb
        );
    END IF;
END
$$;

-- Checks all, then stores all: gives their ids in their order. What is wrong is named with its place among many, from 0.
CREATE OR REPLACE FUNCTION duepost.store_emails(given duepost.new_email[], are_many boolean) RETURNS bigint[]
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE
    email     duepost.new_email;
    fault     text;
    ids       bigint[] := '{}';
    is_new    boolean[];
    has_keys  boolean := false;
    has_users boolean := false;
    wrong     record;
BEGIN
    FOREACH email IN ARRAY given LOOP
        fault := duepost.email_fault(
            email.kind, email.address, email.users, email.scheduled_at, email.template, email.context, email.subject,
            email.body_text, email.body_html, email.key, email.expires_at, email.sender, email.reply_to, email.headers
        );
        IF fault IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = '22023',
                MESSAGE = CASE WHEN are_many THEN format('emails[%s]: ', cardinality(ids)) ELSE '' END || fault;
        END IF;
        ids := ids || nextval('duepost.scheduled_email_id_seq');
        has_keys := has_keys OR email.key IS NOT NULL;
        has_users := has_users OR email.users IS NOT NULL;
    END LOOP;

    IF has_keys THEN
        -- In the order of the keys, so that two sets with the same ones wait for each other, and not in a circle.
        INSERT INTO duepost.email_key (key, email_id, digest)
        SELECT DISTINCT ON (g.key) g.key, ids[g.place], duepost.content_digest(
            g.kind, g.address, g.users, g.template, g.context, g.subject, g.body_text, g.body_html, g.sender,
            g.reply_to, g.headers
        )
        FROM unnest(given) WITH ORDINALITY AS g (
            kind, address, users, scheduled_at, template, context, subject, body_text, body_html, key, expires_at,
            sender, reply_to, headers, place
        )
        WHERE g.key IS NOT NULL
        ORDER BY g.key, g.place
        ON CONFLICT (key) DO NOTHING;

        SELECT g.place, k.email_id INTO wrong
        FROM unnest(given) WITH ORDINALITY AS g (
            kind, address, users, scheduled_at, template, context, subject, body_text, body_html, key, expires_at,
            sender, reply_to, headers, place
        )
        JOIN duepost.email_key AS k ON k.key = g.key
        WHERE k.digest <> duepost.content_digest(
            g.kind, g.address, g.users, g.template, g.context, g.subject, g.body_text, g.body_html, g.sender,
            g.reply_to, g.headers
        )
        ORDER BY g.place
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = '23505', MESSAGE =
                CASE WHEN are_many THEN format('emails[%s]: ', wrong.place - 1) ELSE '' END
                || format('key: already used for another content, by email %s', wrong.email_id);
        END IF;

        SELECT array_agg(coalesce(k.email_id, ids[g.place]) ORDER BY g.place),
               array_agg(k.email_id IS NULL OR k.email_id = ids[g.place] ORDER BY g.place)
        INTO ids, is_new
        FROM unnest(given) WITH ORDINALITY AS g (
            kind, address, users, scheduled_at, template, context, subject, body_text, body_html, key, expires_at,
            sender, reply_to, headers, place
        )
        LEFT JOIN duepost.email_key AS k ON k.key = g.key;
    END IF;

    INSERT INTO duepost.scheduled_email (
        id, kind, scheduled_at, due_at, expires_at, key, message_id_header, date_header, address, sender, reply_to,
        headers, template, context, subject, body_text, body_html
    )
    SELECT g.id, g.kind, coalesce(g.scheduled_at, now()), coalesce(g.scheduled_at, now()),
           CASE
               WHEN g.expires_at IS NULL AND k.expire_after IS NOT NULL
                   THEN least(coalesce(g.scheduled_at, now()) + k.expire_after, '9999-12-31 00:00:00+00')
               ELSE g.expires_at
           END,
           g.key,
           -- A Message-ID is ASCII; a sender's domain need not be.
           '<' || gen_random_uuid() || '@' || coalesce(
               substring(duepost.mailbox_address(g.sender) FROM '@([\x01-\x7f]+)$'),
               c.message_id_domain, 'duepost.invalid'
           ) || '>',
           greatest(coalesce(g.scheduled_at, now()), now()), g.address, g.sender, g.reply_to, g.headers, g.template,
           CASE WHEN g.template IS NOT NULL THEN coalesce(g.context, '{}') END,
           g.subject,
           CASE WHEN NOT duepost.is_blank(g.body_text) THEN g.body_text END,
           CASE WHEN NOT duepost.is_blank(g.body_html) THEN g.body_html END
    FROM duepost.control AS c
    CROSS JOIN unnest(given, ids, is_new) AS g (
        kind, address, users, scheduled_at, template, context, subject, body_text, body_html, key, expires_at, sender,
        reply_to, headers, id, is_new
    )
    LEFT JOIN duepost.email_kind AS k ON k.kind = g.kind
    WHERE g.is_new IS NOT FALSE;

    IF has_users THEN
        INSERT INTO duepost.scheduled_email_user (email_id, user_id)
        SELECT DISTINCT g.id, u
        FROM unnest(given, ids, is_new) AS g (
            kind, address, users, scheduled_at, template, context, subject, body_text, body_html, key, expires_at,
            sender, reply_to, headers, id, is_new
        )
        CROSS JOIN unnest(g.users) AS u
        WHERE g.is_new IS NOT FALSE
        ORDER BY g.id, u;
    END IF;
    RETURN ids;
END
$$;

CREATE OR REPLACE FUNCTION duepost.schedule_email(
    kind         text,
    address      text DEFAULT NULL,
    users        text[] DEFAULT NULL,
    scheduled_at timestamptz DEFAULT now(),
    template     text DEFAULT NULL,
    context      jsonb DEFAULT NULL,
    subject      text DEFAULT NULL,
    body_text    text DEFAULT NULL,
    body_html    text DEFAULT NULL,
    key          text DEFAULT NULL,
    expires_at   timestamptz DEFAULT NULL,
    sender       text DEFAULT NULL,
    reply_to     text DEFAULT NULL,
    headers      jsonb DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    RETURN (duepost.store_emails(
        ARRAY[ROW(
            kind, address, users, scheduled_at, template, context, subject, body_text, body_html, key, expires_at,
            sender, reply_to, headers
        )::duepost.new_email],
        are_many => false
    ))[1];
END
$$;
COMMENT ON FUNCTION duepost.schedule_email IS
    'Schedules one email in the caller''s transaction and returns its id. A bad argument raises 22023 and stores nothing; '
    'a key that is used already returns the first id, or raises 23505 if the content differs (times are not content).';

-- What is wrong with the form of an email in JSON: its type, its keys, the types of its values. NULL where nothing is.
CREATE OR REPLACE FUNCTION duepost.form_fault(email jsonb) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    member record;
    moment timestamptz;
BEGIN
    IF jsonb_typeof(email) <> 'object' THEN
        RETURN 'must be an object such as {"kind": "welcome", "address": "ann@example.com"}';
    END IF;
    FOR member IN
        SELECT m.key, m.value, known.type, known.example
        FROM jsonb_each(email) AS m
        LEFT JOIN (VALUES
            ('kind', 'string', 'a string'), ('address', 'string', 'a string'), ('users', 'array', 'a list of strings'),
            ('scheduled_at', 'string', 'a time such as 2026-01-31T09:00:00+01:00'), ('template', 'string', 'a string'),
            ('context', 'object', 'an object'), ('subject', 'string', 'a string'), ('body_text', 'string', 'a string'),
            ('body_html', 'string', 'a string'), ('key', 'string', 'a string'),
            ('expires_at', 'string', 'a time such as 2026-01-31T09:00:00+01:00'), ('sender', 'string', 'a string'),
            ('reply_to', 'string', 'a string'), ('headers', 'object', 'an object')
        ) AS known (key, type, example) ON known.key = m.key
    LOOP
        IF member.type IS NULL THEN
            RETURN member.key || ': unknown; known are kind, address, users, scheduled_at, template, context, subject, '
                'body_text, body_html, key, expires_at, sender, reply_to, headers';
        END IF;
        CONTINUE WHEN jsonb_typeof(member.value) = 'null';
        IF jsonb_typeof(member.value) <> member.type
            OR (member.type = 'array' AND jsonb_path_exists(member.value, 'strict $[*] ? (@.type() != "string")'))
        THEN
            RETURN member.key || ': must be ' || member.example;
        END IF;
        IF member.key IN ('scheduled_at', 'expires_at') THEN
            BEGIN
                moment := member.value #>> '{}';
            EXCEPTION
                WHEN data_exception THEN RETURN member.key || ': must be ' || member.example;
            END;
            IF NOT duepost.has_zone(member.value #>> '{}') THEN
                RETURN member.key || ': must have its zone: ISO 8601, such as 2026-01-31T09:00:00+01:00';
            END IF;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Whether an email in JSON has nothing in it that form_fault() would have to be asked about: the common case, in one
-- expression.
CREATE OR REPLACE FUNCTION duepost.is_plain(email jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_typeof(email) = 'object'
       AND email - '{kind,address,template,context,subject,body_text,body_html,key,sender,reply_to,headers}'::text[] = '{}'
       AND jsonb_typeof(email -> 'kind') = 'string'
       AND coalesce(jsonb_typeof(email -> 'address'), 'string') = 'string'
       AND coalesce(jsonb_typeof(email -> 'template'), 'string') = 'string'
       AND coalesce(jsonb_typeof(email -> 'context'), 'object') = 'object'
       AND coalesce(jsonb_typeof(email -> 'subject'), 'string') = 'string'
       AND coalesce(jsonb_typeof(email -> 'body_text'), 'string') = 'string'
       AND coalesce(jsonb_typeof(email -> 'body_html'), 'string') = 'string'
       AND coalesce(jsonb_typeof(email -> 'key'), 'string') = 'string'
       AND coalesce(jsonb_typeof(email -> 'sender'), 'string') = 'string'
       AND coalesce(jsonb_typeof(email -> 'reply_to'), 'string') = 'string'
       AND coalesce(jsonb_typeof(email -> 'headers'), 'object') = 'object'
$$;

CREATE OR REPLACE FUNCTION duepost.schedule_emails(emails jsonb) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    wrong record;
BEGIN
    IF emails IS NULL OR jsonb_typeof(emails) <> 'array' THEN
        PERFORM duepost.refuse('emails', 'must be a JSON array of objects, with the arguments of schedule_email as keys');
    END IF;
    SELECT each.place, duepost.form_fault(each.email) AS fault INTO wrong
    FROM jsonb_array_elements(emails) WITH ORDINALITY AS each (email, place)
    WHERE NOT duepost.is_plain(each.email) AND duepost.form_fault(each.email) IS NOT NULL
    ORDER BY each.place
    LIMIT 1;
    IF FOUND THEN
        PERFORM duepost.refuse(format('emails[%s]', wrong.place - 1), wrong.fault);
    END IF;
    RETURN QUERY SELECT unnest(duepost.store_emails(
        ARRAY(
            SELECT ROW(
                each.kind, each.address, each.users, each.scheduled_at, each.template, each.context, each.subject,
                each.body_text, each.body_html, each.key, each.expires_at, each.sender, each.reply_to, each.headers
            )::duepost.new_email
            FROM ROWS FROM (jsonb_to_recordset(emails) AS (
                kind text, address text, users text[], scheduled_at timestamptz, template text, context jsonb,
                subject text, body_text text, body_html text, key text, expires_at timestamptz, sender text,
                reply_to text, headers jsonb
            )) WITH ORDINALITY AS each (
                kind, address, users, scheduled_at, template, context, subject, body_text, body_html, key, expires_at,
                sender, reply_to, headers, place
            )
            ORDER BY each.place
        ),
        are_many => true
    ));
END
$$;
COMMENT ON FUNCTION duepost.schedule_emails IS
    'Schedules many emails, or none: a JSON array of objects with the arguments of schedule_email() as keys. Gives their '
    'ids in the order of the array. What is wrong raises 22023 or 23505, and is named with its place, from 0.';
