-- What an application calls, inside its own transaction. SECURITY DEFINER: a client may call these and touch
-- nothing else; the search_path is fixed, so that nobody's table or operator stands in for ours, and so is the way
-- that backslashes are read, on which the patterns of the checks depend.

CREATE FUNCTION duepost.refuse(argument text, reason text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = argument || ': ' || reason;
END
$$;

CREATE FUNCTION duepost.check_line(argument text, value text, most integer) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF value ~ '[\r\n]' THEN
        PERFORM duepost.refuse(argument, 'must be one line: CR and LF are not allowed');
    END IF;
    IF value ~ '[\u0001-\u001f\u007f-\u009f]' THEN
        PERFORM duepost.refuse(argument, 'must not contain control characters');
    END IF;
    IF octet_length(value) > most THEN
        PERFORM duepost.refuse(argument, format('must be at most %s bytes, is %s', most, octet_length(value)));
    END IF;
END
$$;

-- A moment that every worker and driver can read: the years of RFC 5322 and of most languages.
CREATE FUNCTION duepost.check_moment(argument text, value timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT isfinite(value) THEN
        PERFORM duepost.refuse(argument, 'must be a finite time');
    END IF;
    IF value < '1970-01-01 00:00:00+00' OR value >= '9999-12-31 00:00:00+00' THEN
        PERFORM duepost.refuse(argument, 'must be between the years 1970 and 9999');
    END IF;
END
$$;

-- RFC 5321 section 4.1.2 (dot-string) with UTF-8 (RFC 6531); sizes of section 4.5.3.1. No white space and nothing
-- invisible, of whatever script.
CREATE FUNCTION duepost.is_address(value text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT octet_length(value) <= 254
       AND octet_length(split_part(value, '@', 1)) BETWEEN 1 AND 64
       AND value !~ '[\u0080-\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]'
       AND value ~ '^[^][:space:][:cntrl:]@.,:;<>()"\\[]+(\.[^][:space:][:cntrl:]@.,:;<>()"\\[]+)*@[^@]+$'
       AND split_part(value, '@', 2) ~
           '^([[:alnum:]]|[^\x01-\x7f])(([[:alnum:]-]|[^\x01-\x7f]){0,61}([[:alnum:]]|[^\x01-\x7f]))?(\.([[:alnum:]]|[^\x01-\x7f])(([[:alnum:]-]|[^\x01-\x7f]){0,61}([[:alnum:]]|[^\x01-\x7f]))?)*$'
$$;

CREATE FUNCTION duepost.check_address(argument text, value text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM duepost.check_line(argument, value, 1000);
    IF duepost.is_address(value) IS NOT TRUE THEN
        PERFORM duepost.refuse(argument, 'must be one address such as ann@example.com');
    END IF;
END
$$;

-- The address of `Ann Example <ann@example.com>`, or of a bare one.
CREATE FUNCTION duepost.mailbox_address(value text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(substring(value FROM '^[^<>]*<([^<>]*)> *$'), value)
$$;

-- A sender or Reply-To: without SMTPUTF8 a local part that is not ASCII can never be sent.
CREATE FUNCTION duepost.check_mailbox(argument text, value text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM duepost.check_line(argument, value, 1000);
    IF duepost.is_address(duepost.mailbox_address(value)) IS NOT TRUE THEN
        PERFORM duepost.refuse(argument, 'must be an address such as ann@example.com or Ann <ann@example.com>');
    END IF;
    IF split_part(duepost.mailbox_address(value), '@', 1) ~ '[^\x01-\x7f]' THEN
        PERFORM duepost.refuse(argument, 'the part of the address before the @ must be ASCII');
    END IF;
END
$$;

CREATE FUNCTION duepost.check_headers(headers jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    header record;
BEGIN
    IF jsonb_typeof(headers) <> 'object' THEN
        PERFORM duepost.refuse('headers', 'must be a JSON object of header names and strings');
    END IF;
    IF octet_length(headers::text) > 65536 THEN
        PERFORM duepost.refuse('headers', format('must be at most 65536 bytes, are %s', octet_length(headers::text)));
    END IF;
    FOR header IN SELECT h.key AS name, h.value FROM jsonb_each(headers) AS h LOOP
        IF header.name !~ '^[!-9;-~]{1,76}$' THEN
            PERFORM duepost.refuse('headers', 'a header''s name must be 1 to 76 printable ASCII characters without a colon');
        END IF;
        IF lower(header.name) ~ '^(from|sender|to|cc|bcc|reply-to|subject|date|message-id|return-path|received|auto-submitted|mime-version|content-.*|dkim-signature|resent-.*)$' THEN
            PERFORM duepost.refuse('headers', format('%s is set by Duepost and cannot be given', header.name));
        END IF;
        IF jsonb_typeof(header.value) <> 'string' THEN
            PERFORM duepost.refuse('headers', format('%s must be a string', header.name));
        END IF;
        -- A tab is white space here (RFC 5322 section 2.2), as in a subject.
        PERFORM duepost.check_line(format('headers: %s', header.name), translate(header.value #>> '{}', E'\t', ' '), 8192);
    END LOOP;
END
$$;

CREATE FUNCTION duepost.check_users(users text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    user_id text;
BEGIN
    IF cardinality(users) = 0 THEN
        PERFORM duepost.refuse('users', 'must name at least one user');
    END IF;
    IF cardinality(users) > 1000 THEN
        PERFORM duepost.refuse('users', format('must be at most 1000, are %s', cardinality(users)));
    END IF;
    FOREACH user_id IN ARRAY users LOOP
        IF user_id IS NULL OR user_id = '' THEN
            PERFORM duepost.refuse('users', 'must not contain NULL or an empty user id');
        END IF;
        PERFORM duepost.check_line('users', user_id, 255);
    END LOOP;
END
$$;

CREATE FUNCTION duepost.check_content(
    template text, context jsonb, subject text, body_text text, body_html text
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF template IS NOT NULL THEN
        IF subject IS NOT NULL OR body_text IS NOT NULL OR body_html IS NOT NULL THEN
            PERFORM duepost.refuse('template', 'give either a template or a subject with a body, not both');
        END IF;
        IF template !~ '^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$' OR length(template) > 200 THEN
            PERFORM duepost.refuse('template', 'must be a name such as welcome or account/welcome');
        END IF;
        IF jsonb_typeof(context) <> 'object' THEN
            PERFORM duepost.refuse('context', 'must be a JSON object');
        END IF;
        IF octet_length(context::text) > 262144 THEN
            PERFORM duepost.refuse('context', format('must be at most 262144 bytes (256 KiB), is %s', octet_length(context::text)));
        END IF;
        RETURN;
    END IF;
    IF context IS NOT NULL THEN
        PERFORM duepost.refuse('context', 'goes with a template only');
    END IF;
    IF subject IS NULL THEN
        PERFORM duepost.refuse('template', 'give either a template or a subject with a body');
    END IF;
    IF subject ~ '^[[:space:]\u00a0]*$' THEN
        PERFORM duepost.refuse('subject', 'must not be empty');
    END IF;
    PERFORM duepost.check_line('subject', translate(subject, E'\t', ' '), 4096);
    IF coalesce(body_text, '') = '' AND coalesce(body_html, '') = '' THEN
        PERFORM duepost.refuse('body_text', 'a subject needs a body: give body_text, body_html or both');
    END IF;
    IF octet_length(body_text) > 1048576 THEN
        PERFORM duepost.refuse('body_text', format('must be at most 1048576 bytes (1 MiB), is %s', octet_length(body_text)));
    END IF;
    IF octet_length(body_html) > 1048576 THEN
        PERFORM duepost.refuse('body_html', format('must be at most 1048576 bytes (1 MiB), is %s', octet_length(body_html)));
    END IF;
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
#variable_conflict use_column
DECLARE
    email_id   bigint;
    due        timestamptz := coalesce(schedule_email.scheduled_at, now());
    expiry     timestamptz := schedule_email.expires_at;
    recipients text[];
    domain     text;
    content    bytea;
    used       record;
BEGIN
    IF coalesce(schedule_email.kind, '') = '' THEN
        PERFORM duepost.refuse('kind', 'must not be empty');
    END IF;
    PERFORM duepost.check_line('kind', schedule_email.kind, 100);
    IF (schedule_email.address IS NULL) = (schedule_email.users IS NULL) THEN
        PERFORM duepost.refuse('address', 'give either address or users, and not both');
    END IF;
    IF schedule_email.address IS NOT NULL THEN
        PERFORM duepost.check_address('address', schedule_email.address);
    ELSE
        PERFORM duepost.check_users(schedule_email.users);
        recipients := ARRAY(SELECT DISTINCT u FROM unnest(schedule_email.users) AS u ORDER BY u);
    END IF;
    PERFORM duepost.check_moment('scheduled_at', due);
    IF expiry IS NULL THEN
        SELECT least(due + k.expire_after, '9999-12-31 00:00:00+00') INTO expiry
        FROM duepost.email_kind AS k WHERE k.kind = schedule_email.kind AND k.expire_after IS NOT NULL;
    ELSE
        PERFORM duepost.check_moment('expires_at', expiry);
        IF expiry <= due THEN
            PERFORM duepost.refuse('expires_at', 'must be later than scheduled_at');
        END IF;
    END IF;
    PERFORM duepost.check_content(
        schedule_email.template, schedule_email.context, schedule_email.subject,
        schedule_email.body_text, schedule_email.body_html
    );
    IF schedule_email.sender IS NOT NULL THEN
        PERFORM duepost.check_mailbox('sender', schedule_email.sender);
        -- A Message-ID is ASCII; a sender's domain need not be.
        domain := substring(duepost.mailbox_address(schedule_email.sender) FROM '@([\x01-\x7f]+)$');
    END IF;
    IF schedule_email.reply_to IS NOT NULL THEN
        PERFORM duepost.check_mailbox('reply_to', schedule_email.reply_to);
    END IF;
    IF schedule_email.headers IS NOT NULL THEN
        PERFORM duepost.check_headers(schedule_email.headers);
    END IF;

    email_id := nextval('duepost.scheduled_email_id_seq');
    IF schedule_email.key IS NOT NULL THEN
        IF schedule_email.key = '' THEN
            PERFORM duepost.refuse('key', 'must not be empty');
        END IF;
        PERFORM duepost.check_line('key', schedule_email.key, 512);
        -- Times are not content: a job that is run again computes them anew and means the same email.
        content := sha256(convert_to(jsonb_build_array(
            schedule_email.kind, schedule_email.address, to_jsonb(recipients), schedule_email.template,
            CASE WHEN schedule_email.template IS NOT NULL THEN coalesce(schedule_email.context, '{}') END,
            schedule_email.subject, schedule_email.body_text, schedule_email.body_html,
            schedule_email.sender, schedule_email.reply_to, schedule_email.headers
        )::text, 'UTF8'));
        INSERT INTO duepost.email_key (key, email_id, digest)
        VALUES (schedule_email.key, email_id, content)
        ON CONFLICT (key) DO NOTHING;
        IF NOT FOUND THEN
            SELECT k.email_id, k.digest INTO used FROM duepost.email_key AS k WHERE k.key = schedule_email.key;
            IF used.digest = content THEN
                RETURN used.email_id;
            END IF;
            RAISE EXCEPTION USING ERRCODE = '23505',
                MESSAGE = format('key: already used for another content, by email %s', used.email_id);
        END IF;
    END IF;

    INSERT INTO duepost.scheduled_email (
        id, kind, scheduled_at, due_at, expires_at, key, message_id_header, date_header, address, sender, reply_to,
        headers, template, context, subject, body_text, body_html
    )
    SELECT email_id, schedule_email.kind, due, due, expiry, schedule_email.key,
           format('<%s@%s>', gen_random_uuid(), coalesce(domain, c.message_id_domain, 'duepost.invalid')),
           greatest(due, now()), schedule_email.address, schedule_email.sender, schedule_email.reply_to,
           schedule_email.headers, schedule_email.template,
           CASE WHEN schedule_email.template IS NOT NULL THEN coalesce(schedule_email.context, '{}') END,
           schedule_email.subject, schedule_email.body_text, schedule_email.body_html
    FROM duepost.control AS c;
    IF recipients IS NOT NULL THEN
        INSERT INTO duepost.scheduled_email_user (email_id, user_id)
        SELECT email_id, u FROM unnest(recipients) AS u;
    END IF;
    RETURN email_id;
END
$$;
COMMENT ON FUNCTION duepost.schedule_email IS
    'Schedules one email in the caller''s transaction and returns its id. A bad argument raises 22023 and stores nothing; '
    'a key that is used already returns the first id, or raises 23505 if the content differs (times are not content).';

-- The caller holds the row's lock. Users that are settled keep their outcomes; `outcome`, where it is given, is the
-- email's own: for the users that were still to get it, or for its address.
CREATE FUNCTION duepost.finish(email_id bigint, outcome text, reply text) RETURNS void
LANGUAGE sql AS $$
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
    FROM email, settled
$$;

CREATE FUNCTION duepost.clear_scheduled_emails(users text[], kind text DEFAULT NULL)
RETURNS TABLE (email_id bigint, receipt text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
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
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
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
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
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
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    email record;
BEGIN
    IF reschedule_email.scheduled_at IS NULL THEN
        PERFORM duepost.refuse('scheduled_at', 'must be a finite time');
    END IF;
    PERFORM duepost.check_moment('scheduled_at', reschedule_email.scheduled_at);
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
    email duepost.scheduled_email.id%TYPE;
BEGIN
    enqueued := '{}';
    FOR i IN 1 .. coalesce(cardinality(email_ids), 0) LOOP
        PERFORM pg_catalog.set_config('synchronous_commit', 'off', true);
        PERFORM pg_catalog.set_config('lock_timeout', '10s', true);
        WITH due AS MATERIALIZED (
            SELECT e.id, e.state, e.due_at, e.expires_at
            FROM duepost.scheduled_email AS e
            WHERE e.id = email_ids[i]
            FOR UPDATE SKIP LOCKED
        ), marked AS (
            UPDATE duepost.scheduled_email AS row
            SET state = 'queued', message_id = message_ids[i], probe = false
            FROM due, duepost.control AS control
            WHERE row.id = email_ids[i]
              AND row.id = due.id
              AND due.state = 'scheduled'
              AND due.due_at <= now()
              AND (due.expires_at IS NULL OR due.expires_at > now())
              AND NOT control.paused
              AND NOT control.circuit_open
            RETURNING row.id
        )
        INSERT INTO dramatiq.queue (message_id, queue_name, state, mtime, message, eta, priority)
        SELECT message_ids[i], enqueue_emails.queue_name, 'queued', now(), contents[i], now(), priorities[i]
        FROM marked;
        IF FOUND THEN
            enqueued := enqueued || message_ids[i];
        ELSE
            SELECT e.id INTO email
            FROM duepost.scheduled_email AS e
            WHERE e.id = email_ids[i] AND e.state IN ('scheduled', 'queued') AND e.expires_at <= now()
            FOR UPDATE SKIP LOCKED;
            IF FOUND THEN
                PERFORM duepost.finish(email, 'expired', NULL);
            END IF;
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
