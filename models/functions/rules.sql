-- What may be scheduled: each rule once.

CREATE OR REPLACE FUNCTION duepost.refuse(argument text, reason text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = argument || ': ' || reason;
END
$$;

-- What is wrong with a value, as `argument: what would be right`; NULL where nothing is. Expressions that PostgreSQL
-- puts in place of the call, as far as it can: they are asked for each email of a set.

CREATE OR REPLACE FUNCTION duepost.line_fault(argument text, value text, most integer) RETURNS text
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
CREATE OR REPLACE FUNCTION duepost.moment_fault(argument text, value timestamptz) RETURNS text
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
CREATE OR REPLACE FUNCTION duepost.is_address(value text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT octet_length(value) <= 254
       AND octet_length(split_part(value, '@', 1)) BETWEEN 1 AND 64
       AND value !~ '[\u0080-\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]'
       AND value ~ '^[^][:space:][:cntrl:]@.,:;<>()"\\[]+(\.[^][:space:][:cntrl:]@.,:;<>()"\\[]+)*@[^@]+$'
       AND split_part(value, '@', 2) ~ '^([[:alnum:]]|[^\x01-\x7f])+(-+([[:alnum:]]|[^\x01-\x7f])+)*(\.([[:alnum:]]|[^\x01-\x7f])+(-+([[:alnum:]]|[^\x01-\x7f])+)*)*$'
       AND (length(split_part(value, '@', 2)) <= 63 OR split_part(value, '@', 2) !~ '[^.]{64}')
$$;

CREATE OR REPLACE FUNCTION duepost.address_fault(argument text, value text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN duepost.is_address(value) IS NOT TRUE THEN coalesce(
            duepost.line_fault(argument, value, 1000), argument || ': must be one address such as ann@example.com'
        )
    END
$$;

-- The address of `Ann Example <ann@example.com>`, or of a bare one.
CREATE OR REPLACE FUNCTION duepost.mailbox_address(value text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(substring(value FROM '^[^<>]*<([^<>]*)> *$'), value)
$$;

-- A sender or Reply-To: without SMTPUTF8 a local part that is not ASCII can never be sent.
CREATE OR REPLACE FUNCTION duepost.mailbox_fault(argument text, value text) RETURNS text
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

CREATE OR REPLACE FUNCTION duepost.headers_fault(headers jsonb) RETURNS text
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

CREATE OR REPLACE FUNCTION duepost.users_fault(users text[]) RETURNS text
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

CREATE OR REPLACE FUNCTION duepost.template_fault(
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

CREATE OR REPLACE FUNCTION duepost.content_fault(context jsonb, subject text, body_text text, body_html text) RETURNS text
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

CREATE OR REPLACE FUNCTION duepost.email_fault(
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
CREATE OR REPLACE FUNCTION duepost.content_digest(
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
