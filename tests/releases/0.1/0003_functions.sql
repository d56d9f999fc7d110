-- What an application calls, inside its own transaction. SECURITY DEFINER: a client may call these and touch
-- nothing else; the search_path is fixed, so that nobody's table or operator stands in for ours, and so is the way
-- that backslashes are read, on which the patterns of the checks depend.

CREATE FUNCTION duepost.refuse(argument text, reason text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = argument || ': ' || reason;
END
$$;

-- What is wrong with a value, as `argument: what would be right`; NULL where nothing is. Expressions that PostgreSQL
-- puts in place of the call, as far as it can: they are asked for each email of a set.

CREATE FUNCTION duepost.line_fault(argument text, value text, most integer) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN value ~ '[\u0001-\u001f\u007f-\u009f]' THEN argument || CASE
            WHEN value ~ '[\r\n]' THEN ': must be one line: CR and LF are not allowed'
            ELSE ': must not contain control characters'
        END
        WHEN octet_length(value) > most
            THEN format('%s: must be at most %s bytes, is %s', argument, most, octet_length(value))
    END
$$;

-- A moment that every worker and driver can read: the years of RFC 5322 and of most languages.
CREATE FUNCTION duepost.moment_fault(argument text, value timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN NOT isfinite(value) THEN argument || ': must be a finite time'
        WHEN value < '1970-01-01 00:00:00+00' OR value >= '9999-12-31 00:00:00+00'
            THEN argument || ': must be between the years 1970 and 9999'
    END
$$;

-- RFC 5321 section 4.1.2 (dot-string) with UTF-8 (RFC 6531); sizes of section 4.5.3.1. No white space and nothing
-- invisible, of whatever script. A label of the domain is at most 63 long: with that in its pattern, `{0,61}`, PostgreSQL
-- took ten times as long.
CREATE FUNCTION duepost.is_address(value text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT octet_length(value) <= 254
       AND octet_length(split_part(value, '@', 1)) BETWEEN 1 AND 64
       AND value !~ '[\u0080-\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]'
       AND value ~ '^[^][:space:][:cntrl:]@.,:;<>()"\\[]+(\.[^][:space:][:cntrl:]@.,:;<>()"\\[]+)*@[^@]+$'
       AND split_part(value, '@', 2) ~ '^([[:alnum:]]|[^\x01-\x7f])+(-+([[:alnum:]]|[^\x01-\x7f])+)*(\.([[:alnum:]]|[^\x01-\x7f])+(-+([[:alnum:]]|[^\x01-\x7f])+)*)*$'
       AND (length(split_part(value, '@', 2)) <= 63 OR split_part(value, '@', 2) !~ '[^.]{64}')
$$;

CREATE FUNCTION duepost.address_fault(argument text, value text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN duepost.is_address(value) IS NOT TRUE THEN coalesce(
            duepost.line_fault(argument, value, 1000), argument || ': must be one address such as ann@example.com'
        )
    END
$$;

-- The address of `Ann Example <ann@example.com>`, or of a bare one.
CREATE FUNCTION duepost.mailbox_address(value text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(substring(value FROM '^[^<>]*<([^<>]*)> *$'), value)
$$;

-- A sender or Reply-To: without SMTPUTF8 a local part that is not ASCII can never be sent.
CREATE FUNCTION duepost.mailbox_fault(argument text, value text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        duepost.line_fault(argument, value, 1000),
        CASE
            WHEN duepost.is_address(duepost.mailbox_address(value)) IS NOT TRUE
                THEN argument || ': must be an address such as ann@example.com or Ann <ann@example.com>'
            WHEN split_part(duepost.mailbox_address(value), '@', 1) ~ '[^\x01-\x7f]'
                THEN argument || ': the part of the address before the @ must be ASCII'
        END
    )
$$;

CREATE FUNCTION duepost.headers_fault(headers jsonb) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    header record;
    fault  text;
BEGIN
    IF jsonb_typeof(headers) <> 'object' THEN
        RETURN 'headers: must be a JSON object of header names and strings';
    END IF;
    IF octet_length(headers::text) > 65536 THEN
        RETURN format('headers: must be at most 65536 bytes, are %s', octet_length(headers::text));
    END IF;
    FOR header IN SELECT h.key AS name, h.value FROM jsonb_each(headers) AS h LOOP
        IF header.name !~ '^[!-9;-~]{1,76}$' THEN
            RETURN 'headers: a header''s name must be 1 to 76 printable ASCII characters without a colon';
        END IF;
        IF lower(header.name) ~ '^(from|sender|to|cc|bcc|reply-to|subject|date|message-id|return-path|received|auto-submitted|mime-version|content-.*|dkim-signature|resent-.*)$' THEN
            RETURN format('headers: %s is set by Duepost and cannot be given', header.name);
        END IF;
        IF jsonb_typeof(header.value) <> 'string' THEN
            RETURN format('headers: %s must be a string', header.name);
        END IF;
        -- A tab is white space here (RFC 5322 section 2.2), as in a subject.
        fault := duepost.line_fault(
            format('headers: %s', header.name), translate(header.value #>> '{}', E'\t', ' '), 8192
        );
        IF fault IS NOT NULL THEN
            RETURN fault;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION duepost.users_fault(users text[]) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    user_id text;
    fault   text;
BEGIN
    IF cardinality(users) = 0 THEN
        RETURN 'users: must name at least one user';
    END IF;
    IF cardinality(users) > 1000 THEN
        RETURN format('users: must be at most 1000, are %s', cardinality(users));
    END IF;
    FOREACH user_id IN ARRAY users LOOP
        IF user_id IS NULL OR user_id = '' THEN
            RETURN 'users: must not contain NULL or an empty user id';
        END IF;
        fault := duepost.line_fault('users', user_id, 255);
        IF fault IS NOT NULL THEN
            RETURN fault;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION duepost.template_fault(
    template text, context jsonb, subject text, body_text text, body_html text
) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN subject IS NOT NULL OR body_text IS NOT NULL OR body_html IS NOT NULL
            THEN 'template: give either a template or a subject with a body, not both'
        WHEN template !~ '^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$' OR length(template) > 200
            THEN 'template: must be a name such as welcome or account/welcome'
        WHEN jsonb_typeof(context) <> 'object' THEN 'context: must be a JSON object'
        WHEN octet_length(context::text) > 262144
            THEN format('context: must be at most 262144 bytes (256 KiB), is %s', octet_length(context::text))
    END
$$;

CREATE FUNCTION duepost.content_fault(context jsonb, subject text, body_text text, body_html text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        CASE
            WHEN context IS NOT NULL THEN 'context: goes with a template only'
            WHEN subject IS NULL THEN 'template: give either a template or a subject with a body'
            WHEN subject ~ '^[[:space:]\u00a0]*$' THEN 'subject: must not be empty'
        END,
        duepost.line_fault('subject', translate(subject, E'\t', ' '), 4096),
        CASE
            WHEN coalesce(body_text, '') = '' AND coalesce(body_html, '') = ''
                THEN 'body_text: a subject needs a body: give body_text, body_html or both'
            WHEN octet_length(body_text) > 1048576
                THEN format('body_text: must be at most 1048576 bytes (1 MiB), is %s', octet_length(body_text))
            WHEN octet_length(body_html) > 1048576
                THEN format('body_html: must be at most 1048576 bytes (1 MiB), is %s', octet_length(body_html))
        END
    )
$$;

CREATE FUNCTION duepost.email_fault(
    kind text, address text, users text[], scheduled_at timestamptz, template text, context jsonb, subject text,
    body_text text, body_html text, key text, expires_at timestamptz, sender text, reply_to text, headers jsonb
) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        CASE WHEN coalesce(kind, '') = '' THEN 'kind: must not be empty' END,
        duepost.line_fault('kind', kind, 100),
        CASE
            WHEN (address IS NULL) = (users IS NULL) THEN 'address: give either address or users, and not both'
            WHEN address IS NOT NULL THEN duepost.address_fault('address', address)
            ELSE duepost.users_fault(users)
        END,
        duepost.moment_fault('scheduled_at', scheduled_at),
        duepost.moment_fault('expires_at', expires_at),
        CASE
            WHEN expires_at <= coalesce(scheduled_at, now()) THEN 'expires_at: must be later than scheduled_at'
        END,
        CASE
            WHEN template IS NOT NULL THEN duepost.template_fault(template, context, subject, body_text, body_html)
            ELSE duepost.content_fault(context, subject, body_text, body_html)
        END,
        CASE WHEN sender IS NOT NULL THEN duepost.mailbox_fault('sender', sender) END,
        CASE WHEN reply_to IS NOT NULL THEN duepost.mailbox_fault('reply_to', reply_to) END,
        CASE WHEN headers IS NOT NULL THEN duepost.headers_fault(headers) END,
        CASE WHEN key = '' THEN 'key: must not be empty' END,
        duepost.line_fault('key', key, 512)
    )
$$;

-- What a key stands for. Times are not content: a job that is run again computes them anew and means the same email.
CREATE FUNCTION duepost.content_digest(
    kind text, address text, users text[], template text, context jsonb, subject text, body_text text, body_html text,
    sender text, reply_to text, headers jsonb
) RETURNS bytea
LANGUAGE sql STABLE AS $$
    SELECT sha256(convert_to(jsonb_build_array(
        kind, address,
        CASE WHEN users IS NOT NULL THEN to_jsonb(ARRAY(SELECT DISTINCT u FROM unnest(users) AS u ORDER BY u)) END,
        template, CASE WHEN template IS NOT NULL THEN coalesce(context, '{}') END, subject, body_text, body_html,
        sender, reply_to, headers
    )::text, 'UTF8'))
$$;

-- The arguments of schedule_email(), in their order.
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

-- Checks all, then stores all: gives their ids in their order. What is wrong is named with its place among many, from 0.
CREATE FUNCTION duepost.store_emails(given duepost.new_email[], are_many boolean) RETURNS bigint[]
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
           g.subject, g.body_text, g.body_html
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

CREATE FUNCTION duepost.schedule_email(
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
CREATE FUNCTION duepost.form_fault(email jsonb) RETURNS text
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
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Whether an email in JSON has nothing in it that form_fault() would have to be asked about: the common case, in one
-- expression.
CREATE FUNCTION duepost.is_plain(email jsonb) RETURNS boolean
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

CREATE FUNCTION duepost.schedule_emails(emails jsonb) RETURNS SETOF bigint
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

-- From here on statements are planned once in a session, by index, whatever a table looked like when they were, and never
-- compiled: planning costs as much as running them, and compiling a hundred times that.

-- The caller holds the row's lock. Users that are settled keep their outcomes; `outcome`, where it is given, is the
-- email's own: for the users that were still to get it, or for its address.
CREATE FUNCTION duepost.finish(email_id bigint, outcome text, reply text) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    WITH email AS (
        DELETE FROM duepost.scheduled_email AS e WHERE e.id = finish.email_id RETURNING e.*
    ), settled AS (
        SELECT u.user_id, u.outcome, u.address, u.code, u.enhanced_code, u.reply
        FROM duepost.scheduled_email_user AS u
        WHERE u.email_id = finish.email_id AND u.outcome IS NOT NULL
        UNION ALL
        SELECT NULL, finish.outcome, email.address, NULL, NULL, finish.reply
        FROM email WHERE finish.outcome IS NOT NULL
    )
    INSERT INTO duepost.delivery (
        email_id, kind, outcome, user_id, address, code, enhanced_code, reply, attempts, unknowns, key, scheduled_at,
        message_id_header
    )
    SELECT email.id, email.kind, settled.outcome, settled.user_id, settled.address, settled.code,
           settled.enhanced_code, settled.reply, email.attempts, email.unknowns, email.key, email.scheduled_at,
           email.message_id_header
    FROM email, settled;
END
$$;

CREATE FUNCTION duepost.clear_scheduled_emails(users text[], kind text DEFAULT NULL)
RETURNS TABLE (email_id bigint, receipt text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    email   record;
    removed integer;
    late    boolean;
BEGIN
    IF clear_scheduled_emails.users IS NULL THEN
        PERFORM duepost.refuse('users', 'must be an array of user ids');
    END IF;
    FOR email IN
        SELECT e.id, e.state, e.unknowns
        FROM duepost.scheduled_email AS e
        WHERE e.id IN (
            SELECT u.email_id FROM duepost.scheduled_email_user AS u
            WHERE u.user_id = ANY (clear_scheduled_emails.users)
        )
          AND (clear_scheduled_emails.kind IS NULL OR e.kind = clear_scheduled_emails.kind)
        ORDER BY e.id
        FOR UPDATE
    LOOP
        -- Another clear may have taken these users off while this one waited for the row.
        CONTINUE WHEN NOT EXISTS (
            SELECT FROM duepost.scheduled_email_user AS u
            WHERE u.email_id = email.id AND u.user_id = ANY (clear_scheduled_emails.users)
        );
        email_id := email.id;
        receipt := 'too_late';
        -- What may have arrived already cannot be promised never to be sent.
        IF email.state IN ('scheduled', 'queued') AND email.unknowns = 0 THEN
            PERFORM FROM duepost.scheduled_email_user AS u
            WHERE u.email_id = email.id ORDER BY u.user_id FOR UPDATE;
            late := EXISTS (
                SELECT FROM duepost.scheduled_email_user AS u
                WHERE u.email_id = email.id AND u.user_id = ANY (clear_scheduled_emails.users)
                  AND u.outcome IS NOT NULL
            );
            DELETE FROM duepost.scheduled_email_user AS u
            WHERE u.email_id = email.id AND u.user_id = ANY (clear_scheduled_emails.users) AND u.outcome IS NULL;
            GET DIAGNOSTICS removed = ROW_COUNT;
            IF NOT EXISTS (SELECT FROM duepost.scheduled_email_user AS u WHERE u.email_id = email.id) THEN
                PERFORM duepost.finish(email.id, 'cleared', NULL);
                receipt := 'cleared';
            ELSIF removed > 0 THEN
                IF NOT EXISTS (
                    SELECT FROM duepost.scheduled_email_user AS u WHERE u.email_id = email.id AND u.outcome IS NULL
                ) THEN
                    PERFORM duepost.finish(email.id, NULL, NULL);
                END IF;
                receipt := 'user_removed';
                -- Of these users some are off, and some have it already: both is said.
                IF late THEN
                    RETURN NEXT;
                    receipt := 'too_late';
                END IF;
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.clear_scheduled_emails IS
    'Takes these users off their scheduled emails (of one kind, or all). A receipt for each email: cleared (it had no '
    'other user and is never sent), user_removed, or too_late (it is being sent, or may have been sent); the last two '
    'where some of these users have it and others are taken off. Locks rows by ascending id.';

CREATE FUNCTION duepost.clear_scheduled_email(email_id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    partly boolean;
BEGIN
    PERFORM FROM duepost.scheduled_email AS e
    WHERE e.id = clear_scheduled_email.email_id AND e.state IN ('scheduled', 'queued') AND e.unknowns = 0
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'too_late';
    END IF;
    partly := EXISTS (
        SELECT FROM duepost.scheduled_email_user AS u
        WHERE u.email_id = clear_scheduled_email.email_id AND u.outcome IS NOT NULL
    );
    PERFORM duepost.finish(clear_scheduled_email.email_id, 'cleared', NULL);
    RETURN CASE WHEN partly THEN 'user_removed' ELSE 'cleared' END;
END
$$;
COMMENT ON FUNCTION duepost.clear_scheduled_email IS
    'Clears one email whole: cleared (it is never sent), user_removed (some of its users have it already, the others '
    'never get it), or too_late (it is being sent, finished or unknown).';

CREATE FUNCTION duepost.clear_scheduled_emails_to(address text, kind text DEFAULT NULL)
RETURNS TABLE (email_id bigint, receipt text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    email record;
BEGIN
    IF clear_scheduled_emails_to.address IS NULL THEN
        PERFORM duepost.refuse('address', 'must be one address such as ann@example.com');
    END IF;
    FOR email IN
        SELECT e.id
        FROM duepost.scheduled_email AS e
        WHERE lower(e.address) = lower(clear_scheduled_emails_to.address)
          AND e.address IS NOT NULL
          AND (clear_scheduled_emails_to.kind IS NULL OR e.kind = clear_scheduled_emails_to.kind)
        ORDER BY e.id
        FOR UPDATE
    LOOP
        email_id := email.id;
        receipt := duepost.clear_scheduled_email(email.id);
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.clear_scheduled_emails_to IS
    'Clears the emails scheduled to this address (letter case does not matter), of one kind or all.';

CREATE FUNCTION duepost.reschedule_email(email_id bigint, scheduled_at timestamptz) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    email record;
    fault text;
BEGIN
    IF reschedule_email.scheduled_at IS NULL THEN
        PERFORM duepost.refuse('scheduled_at', 'must be a finite time');
    END IF;
    fault := duepost.moment_fault('scheduled_at', reschedule_email.scheduled_at);
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = fault;
    END IF;
    SELECT e.expires_at INTO email
    FROM duepost.scheduled_email AS e
    WHERE e.id = reschedule_email.email_id AND e.state IN ('scheduled', 'queued')
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'too_late';
    END IF;
    IF email.expires_at <= reschedule_email.scheduled_at THEN
        PERFORM duepost.refuse('scheduled_at', 'must be earlier than the email''s expires_at');
    END IF;
    -- Message-ID and Date are fixed by the first attempt.
    UPDATE duepost.scheduled_email AS e
    SET state = 'scheduled',
        scheduled_at = reschedule_email.scheduled_at,
        due_at = reschedule_email.scheduled_at,
        date_header = CASE
            WHEN e.attempts = 0 THEN greatest(reschedule_email.scheduled_at, now()) ELSE e.date_header
        END,
        message_id = NULL,
        probe = false
    WHERE e.id = reschedule_email.email_id;
    RETURN 'rescheduled';
END
$$;
COMMENT ON FUNCTION duepost.reschedule_email IS
    'Moves one email to another time: rescheduled, or too_late (it is being sent, finished or unknown).';

-- Whom an email still goes to. It is called under the lock of the email's row, and volatile, so that it has a snapshot of
-- its own: what a clear has committed since the calling statement began is in none of that statement's.
CREATE FUNCTION duepost.recipients_to_go(id bigint) RETURNS jsonb
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (
        SELECT jsonb_agg(jsonb_build_object(
            'user_id', u.user_id,
            'known', r.user_id IS NOT NULL,
            'active', coalesce(r.active, true),
            'address', r.address,
            'name', r.name,
            'locale', r.locale,
            'timezone', r.timezone,
            'suppressed', EXISTS (SELECT FROM duepost.suppression AS s WHERE s.address = lower(r.address))
        ) ORDER BY u.user_id)
        FROM duepost.scheduled_email_user AS u
        LEFT JOIN duepost.recipient AS r ON r.user_id = u.user_id
        WHERE u.email_id = recipients_to_go.id AND u.outcome IS NULL
    );
END
$$;
COMMENT ON FUNCTION duepost.recipients_to_go IS
    'The users that an email is still to be sent to, as JSON, as of this moment; the caller holds the row''s lock.';

-- What a claim gives. Functions, here and below, so that a session plans their statements once and not with each call;
-- and by index, whatever a table looked like when it did. A plan that cannot do without a scan then seems so dear that
-- PostgreSQL would compile it, which takes a hundred times as long as the plan. Called by workers, with their own rights.
CREATE FUNCTION duepost.claim_emails(ids bigint[], worker_id integer)
RETURNS TABLE (
    id bigint, claim bigint, kind text, attempts integer, unknowns integer, last_error text, probe boolean,
    message_id_header text, date_header timestamptz, sender text, reply_to text, headers jsonb, template text,
    context jsonb, subject text, body_text text, body_html text, mailbox_full_seconds double precision, recipients jsonb
)
LANGUAGE plpgsql ROWS 10
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH email AS MATERIALIZED (
        SELECT e.id, e.state, e.due_at, e.expires_at
        FROM duepost.scheduled_email AS e
        WHERE e.id = ANY (claim_emails.ids)
        ORDER BY e.id
        FOR UPDATE SKIP LOCKED
    )
    UPDATE duepost.scheduled_email AS row
    SET state = 'sending',
        claim = nextval('duepost.claim_number'),
        worker_id = claim_emails.worker_id,
        claimed_at = now(),
        message_id = NULL
    FROM email, duepost.control AS control
    WHERE row.id = ANY (claim_emails.ids)
      AND row.id = email.id
      AND email.state = 'queued'
      AND email.due_at <= now()
      AND (email.expires_at IS NULL OR email.expires_at > now())
      AND NOT control.paused
      AND (NOT control.circuit_open OR row.probe)
    RETURNING
        row.id, row.claim, row.kind, row.attempts, row.unknowns, row.last_error, row.probe, row.message_id_header,
        row.date_header, row.sender, row.reply_to, row.headers, row.template, row.context, row.subject, row.body_text,
        row.body_html,
        coalesce(extract(epoch FROM now() - row.mailbox_full_since), 0)::double precision,
        CASE
            WHEN row.address IS NULL THEN duepost.recipients_to_go(row.id)
            ELSE jsonb_build_array(jsonb_build_object(
                'user_id', NULL,
                'address', row.address,
                'suppressed', EXISTS (
                    SELECT FROM duepost.suppression AS s WHERE s.address = lower(row.address)
                )
            ))
        END;
END
$$;
COMMENT ON FUNCTION duepost.claim_emails IS
    'queued → sending for those of these emails that nobody holds and that are still to be sent: locks them by ascending '
    'id, and gives them with the recipients that are still to get them.';

-- Every recipient has an outcome, now or from an earlier attempt. Each email is named with its claim, and with the broker
-- message that it came by, if any, which goes with it. Locked by id alone, as in `enqueue`; a row that somebody else
-- holds just now is left out, so that it keeps nobody else waiting.
CREATE FUNCTION duepost.conclude_emails(
    ids bigint[], claims bigint[], results jsonb, message_ids uuid[], message_claims bigint[]
) RETURNS SETOF bigint
LANGUAGE plpgsql ROWS 10
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH held AS MATERIALIZED (
        SELECT e.id, e.claim, e.state
        FROM duepost.scheduled_email AS e
        WHERE e.id = ANY (conclude_emails.ids)
        ORDER BY e.id
        FOR UPDATE SKIP LOCKED
    ), email AS (
        DELETE FROM duepost.scheduled_email AS row
        USING held, unnest(conclude_emails.ids, conclude_emails.claims) AS claimed (id, claim)
        WHERE row.id = ANY (conclude_emails.ids) AND row.id = held.id AND held.state = 'sending'
          AND held.id = claimed.id AND held.claim = claimed.claim
        RETURNING row.*
    ), result AS MATERIALIZED (
        SELECT *
        FROM jsonb_to_recordset(conclude_emails.results) AS result (
            email_id bigint, user_id text, address text, phase text, verdict text, outcome text, code integer,
            enhanced_code text, reply text
        )
    ), journal AS (
        INSERT INTO duepost.attempt (
            email_id, claim, worker_id, user_id, started_at, finished_at, phase, verdict, code, enhanced_code, reply
        )
        SELECT email.id, email.claim, email.worker_id, result.user_id, email.claimed_at, now(), result.phase,
               result.verdict, result.code, result.enhanced_code, result.reply
        FROM email
        JOIN result ON result.email_id = email.id
        WHERE result.verdict IS NOT NULL
    ), settled AS (
        SELECT u.email_id, u.user_id, u.address, u.outcome, u.code, u.enhanced_code, u.reply
        FROM duepost.scheduled_email_user AS u
        WHERE u.email_id = ANY (conclude_emails.ids) AND u.outcome IS NOT NULL
          AND NOT EXISTS (SELECT FROM result WHERE result.email_id = u.email_id AND result.user_id = u.user_id)
        UNION ALL
        SELECT result.email_id, result.user_id, result.address, result.outcome, result.code, result.enhanced_code,
               result.reply
        FROM result
    ), ledger AS (
        INSERT INTO duepost.delivery (
            email_id, kind, outcome, user_id, address, code, enhanced_code, reply, attempts, unknowns, key,
            scheduled_at, message_id_header
        )
        SELECT email.id, email.kind, settled.outcome, settled.user_id, settled.address, settled.code,
               settled.enhanced_code, settled.reply,
               email.attempts + (EXISTS (
                   SELECT FROM result WHERE result.email_id = email.id AND result.verdict IS NOT NULL
               ))::integer,
               email.unknowns, email.key, email.scheduled_at, email.message_id_header
        FROM email
        JOIN settled ON settled.email_id = email.id
    ), acknowledged AS (
        DELETE FROM dramatiq.queue AS message
        USING email, unnest(conclude_emails.ids, conclude_emails.message_ids, conclude_emails.message_claims)
            AS hint (email_id, message_id, claim)
        WHERE message.message_id = ANY (conclude_emails.message_ids)
          AND message.message_id = hint.message_id AND message.claim = hint.claim AND hint.email_id = email.id
    )
    SELECT email.id FROM email;
END
$$;
COMMENT ON FUNCTION duepost.conclude_emails IS
    'sending → ledger, with the journal of the attempts and without their messages, for those of these emails whose claim '
    'is still the row''s and that nobody holds: locks them by ascending id, and gives their ids.';

-- The scheduler's page, row by row: each is locked, looked at and marked, and its message inserted, in a transaction of
-- its own, which need not wait for the disk: a crash that loses it leaves the row scheduled, and without a message.
-- All of it in one round trip. A row that another transaction holds, or that may not be sent now, is passed over; one
-- whose time is over goes to the ledger. Called by workers, with their own rights.
CREATE PROCEDURE duepost.enqueue_emails(
    email_ids bigint[], message_ids uuid[], contents jsonb[], queue_name text, priorities integer[],
    INOUT enqueued uuid[]
)
LANGUAGE plpgsql AS $$
DECLARE
    email      record;
    setting text;
BEGIN
    enqueued := '{}';
    FOR i IN 1 .. coalesce(cardinality(email_ids), 0) LOOP
        -- Assigned, as that is no statement of its own.
        setting := pg_catalog.set_config('synchronous_commit', 'off', true);
        setting := pg_catalog.set_config('lock_timeout', '10s', true);
        -- One statement each for the lock, the row and the message: a third less than one for all, whose plan is large.
        SELECT e.id, e.state, e.due_at, e.expires_at, control.paused OR control.circuit_open AS is_halted INTO email
        FROM duepost.scheduled_email AS e, duepost.control AS control
        WHERE e.id = email_ids[i]
        FOR UPDATE OF e SKIP LOCKED;
        IF email.state IN ('scheduled', 'queued') AND email.expires_at <= now() THEN
            PERFORM duepost.finish(email.id, 'expired', NULL);
        ELSIF email.state = 'scheduled' AND email.due_at <= now() AND NOT email.is_halted THEN
            UPDATE duepost.scheduled_email AS row
            SET state = 'queued', message_id = message_ids[i], probe = false
            WHERE row.id = email_ids[i];
            INSERT INTO dramatiq.queue (message_id, queue_name, state, mtime, message, eta, priority)
            VALUES (
                message_ids[i], enqueue_emails.queue_name, 'queued', now(), contents[i], now(), priorities[i]
            );
            enqueued := enqueued || message_ids[i];
        END IF;
        COMMIT;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE duepost.enqueue_emails IS
    'Locks due emails one by one and enqueues each in a transaction of its own; gives the messages that were inserted.';

-- Partitions by month, a few ahead, and none older than the retention: run by the scheduler, which owns no table.
-- Its dates are ISO ones: PostgreSQL before 18 does not read every zone's name as it writes it.
CREATE FUNCTION duepost.maintain_partitions(retention interval DEFAULT NULL) RETURNS void
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

SELECT duepost.maintain_partitions();
