-- How an email's state changes: enqueue, claim, conclude, finish. Called by workers with their own rights, and by the
-- functions of an application with their owner's.
-- Statements are planned once in a session, by index, whatever a table looked like when they were, and never compiled:
-- planning costs as much as running them, and compiling a hundred times that.

-- The caller holds the row's lock. Users that are settled keep their outcomes; `outcome`, where it is given, is the
-- email's own: for the users that were still to get it, or for its address.
CREATE OR REPLACE FUNCTION duepost.finish(email_id bigint, outcome text, reply text) RETURNS void
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

-- Whom an email still goes to. It is called under the lock of the email's row, and volatile, so that it has a snapshot of
-- its own: what a clear has committed since the calling statement began is in none of that statement's.
CREATE OR REPLACE FUNCTION duepost.recipients_to_go(id bigint) RETURNS jsonb
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
            'suppressed', EXISTS (SELECT FROM duepost.suppression AS s WHERE s.address = duepost.mailbox_key(r.address))
        ) ORDER BY u.user_id)
        FROM duepost.scheduled_email_user AS u
        LEFT JOIN duepost.recipient AS r ON r.user_id = u.user_id
        WHERE u.email_id = recipients_to_go.id AND u.outcome IS NULL
    );
END
$$;
COMMENT ON FUNCTION duepost.recipients_to_go IS
    'The users that an email is still to be sent to, as JSON, as of this moment; the caller holds the row''s lock.';

-- The users that an email still goes to, by the same snapshot.
CREATE OR REPLACE FUNCTION duepost.users_to_go(id bigint) RETURNS text[]
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN ARRAY(
        SELECT u.user_id FROM duepost.scheduled_email_user AS u
        WHERE u.email_id = users_to_go.id AND u.outcome IS NULL
        ORDER BY u.user_id
    );
END
$$;
COMMENT ON FUNCTION duepost.users_to_go IS
    'The ids of the users that an email is still to be sent to, as of this moment; the caller holds the row''s lock.';

-- What a claim gives. Functions, here and below, so that a session plans their statements once and not with each call;
-- and by index, whatever a table looked like when it did. A plan that cannot do without a scan then seems so dear that
-- PostgreSQL would compile it, which takes a hundred times as long as the plan. Called by workers, with their own rights.
-- Nothing here reads duepost.recipient, which may be the team's own view: that is read afterwards, without a lock. JSON
-- is given as text: what a worker cannot read of one email is that email's failure.
CREATE OR REPLACE FUNCTION duepost.claim_emails_v2(ids bigint[], worker_id integer)
RETURNS TABLE (
    id bigint, claim bigint, kind text, attempts integer, unknowns integer, last_error text, probe boolean,
    message_id_header text, date_seconds double precision, sender text, reply_to text, headers text, template text,
    context text, subject text, body_text text, body_html text, mailbox_full_seconds double precision,
    address text, suppressed boolean, users text[], date_header timestamptz
)
LANGUAGE plpgsql ROWS 10
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH email AS MATERIALIZED (
        SELECT e.id, e.state, e.due_at, e.expires_at
        FROM duepost.scheduled_email AS e
        WHERE e.id = ANY (claim_emails_v2.ids)
        ORDER BY e.id
        FOR UPDATE SKIP LOCKED
    )
    UPDATE duepost.scheduled_email AS row
    SET state = 'sending',
        claim = nextval('duepost.claim_number'),
        worker_id = claim_emails_v2.worker_id,
        claimed_at = now(),
        message_id = NULL
    FROM email, duepost.control AS control
    WHERE row.id = ANY (claim_emails_v2.ids)
      AND row.id = email.id
      AND email.state = 'queued'
      AND email.due_at <= now()
      AND (email.expires_at IS NULL OR email.expires_at > now())
      AND NOT control.paused
      AND (row.probe OR NOT (control.circuit_open OR (SELECT duepost.is_route_paused())))
    RETURNING
        row.id, row.claim, row.kind, row.attempts, row.unknowns, row.last_error, row.probe, row.message_id_header,
        extract(epoch FROM row.date_header)::double precision, row.sender, row.reply_to, row.headers::text, row.template,
        row.context::text, row.subject, row.body_text, row.body_html,
        coalesce(extract(epoch FROM now() - row.mailbox_full_since), 0)::double precision,
        row.address,
        row.address IS NOT NULL AND EXISTS (
            SELECT FROM duepost.suppression AS s WHERE s.address = duepost.mailbox_key(row.address)
        ),
        CASE WHEN row.address IS NULL THEN duepost.users_to_go(row.id) END,
        row.date_header;
END
$$;
COMMENT ON FUNCTION duepost.claim_emails_v2 IS
    'queued → sending for those of these emails that nobody holds and that are still to be sent: locks them by ascending '
    'id, and gives them with the address, or the users, that are still to get them.';

-- For workers of release 0.1.
CREATE OR REPLACE FUNCTION duepost.claim_emails(ids bigint[], worker_id integer)
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
    SELECT c.id, c.claim, c.kind, c.attempts, c.unknowns, c.last_error, c.probe, c.message_id_header, c.date_header,
           c.sender, c.reply_to, c.headers::jsonb, c.template, c.context::jsonb, c.subject, c.body_text, c.body_html,
           c.mailbox_full_seconds,
           CASE
               WHEN c.address IS NULL THEN duepost.recipients_to_go(c.id)
               ELSE jsonb_build_array(jsonb_build_object(
                   'user_id', NULL, 'address', c.address, 'suppressed', c.suppressed
               ))
           END
    FROM duepost.claim_emails_v2(claim_emails.ids, claim_emails.worker_id) AS c;
END
$$;
COMMENT ON FUNCTION duepost.claim_emails IS 'As claim_emails_v2, in the form of release 0.1, with all recipients read.';

-- What duepost.recipient says of one user; apart, so that whatever a team's own view fails of is one user's failure.
-- No join: a view may compute all of its rows for one.
CREATE OR REPLACE FUNCTION duepost.recipient_row(wanted text) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT jsonb_agg(jsonb_build_array(
            r.user_id::text, r.active::text, left(r.address::text, 2001), left(r.name::text, 2001),
            left(r.locale::text, 2001), left(r.timezone::text, 2001),
            EXISTS (SELECT FROM duepost.suppression AS s WHERE s.address = duepost.mailbox_key(left(r.address::text, 2001)))
        ))
        FROM duepost.recipient AS r
        WHERE r.user_id::text = wanted
    );
END
$$;

-- What duepost.recipient says of these users: all in one statement, and each alone where that fails. A statement that
-- takes too long, or waits too long for a lock, is the caller's to take apart: its time is over.
CREATE OR REPLACE FUNCTION duepost.recipient_rows(user_ids text[], OUT known jsonb, OUT failures jsonb)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    wanted text;
BEGIN
    known := '[]';
    failures := '[]';
    BEGIN
        SELECT coalesce(jsonb_agg(jsonb_build_array(
            r.user_id::text, r.active::text, left(r.address::text, 2001), left(r.name::text, 2001),
            left(r.locale::text, 2001), left(r.timezone::text, 2001),
            EXISTS (SELECT FROM duepost.suppression AS s WHERE s.address = duepost.mailbox_key(left(r.address::text, 2001)))
        )), '[]') INTO known
        FROM unnest(user_ids) AS u (user_id)
        JOIN duepost.recipient AS r ON r.user_id::text = u.user_id;
        RETURN;
    EXCEPTION
        WHEN lock_not_available THEN RAISE;
        WHEN OTHERS THEN known := '[]';
    END;
    FOREACH wanted IN ARRAY user_ids LOOP
        BEGIN
            known := known || coalesce(duepost.recipient_row(wanted), '[]');
        EXCEPTION
            WHEN lock_not_available THEN RAISE;
            WHEN OTHERS THEN
                failures := failures || jsonb_build_array(jsonb_build_array(wanted, SQLSTATE, split_part(SQLERRM, E'\n', 1)));
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.recipient_rows IS
    'What duepost.recipient says of these users, and for which of them it fails, with what.';

-- Every recipient has an outcome, now or from an earlier attempt. Each email is named with its claim, and with the broker
-- message that it came by, if any, which goes with it. Locked by id alone, as in `enqueue`; a row that somebody else
-- holds just now is left out, so that it keeps nobody else waiting.
CREATE OR REPLACE FUNCTION duepost.conclude_emails(
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
CREATE OR REPLACE PROCEDURE duepost.enqueue_emails(
    email_ids bigint[], message_ids uuid[], contents jsonb[], queue_name text, priorities integer[],
    INOUT enqueued uuid[]
)
LANGUAGE plpgsql AS $$
DECLARE
    email      record;
    setting text;
BEGIN
    enqueued := '{}';
    -- Whatever the role's or the database's default is, each statement is to have a snapshot of its own: the row is looked
    -- at once it is locked. The call itself has begun a transaction, in which it is too late to say so.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    FOR i IN 1 .. coalesce(cardinality(email_ids), 0) LOOP
        -- Assigned, as that is no statement of its own.
        setting := pg_catalog.set_config('synchronous_commit', 'off', true);
        setting := pg_catalog.set_config('lock_timeout', '10s', true);
        -- One statement each for the lock, the row and the message: a third less than one for all, whose plan is large.
        SELECT e.id, e.state, e.due_at, e.expires_at,
               control.paused OR control.circuit_open OR EXISTS (
                   SELECT FROM duepost.route AS r
                   WHERE r.paused_until BETWEEN now() AND now() + make_interval(secs => 2 * r.pause)
               ) AS is_halted
        INTO email
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
        COMMIT AND CHAIN;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE duepost.enqueue_emails IS
    'Locks due emails one by one and enqueues each in a transaction of its own; gives the messages that were inserted.';
