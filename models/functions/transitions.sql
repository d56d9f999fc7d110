-- How an email's state changes: enqueue, claim, conclude, finish. Called by workers with their own rights, and by the
-- functions of an application with their owner's.
-- Statements are planned once in a session, by index, whatever a table looked like when they were, and never compiled:
-- planning costs as much as running them, and compiling a hundred times that.

-- Moves items to the ledger: their rows, their content, their users, what is in hand and the broker messages about them go.
-- The caller holds the items' locks. `results` are what an attempt, or a clear, has come to; users whose outcome was known
-- keep their outcomes. Each of them is a row of the ledger.
DO $$
BEGIN
    IF to_regtype('duepost.attempt_result') IS NULL THEN
        CREATE TYPE duepost.attempt_result AS (
            email_id      bigint,
            user_id       text,
            address       text,
            phase         text,
            verdict       text,
            outcome       text,
            code          integer,
            enhanced_code text,
            reply         text
        );
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION duepost.move_to_ledger(ids bigint[], results duepost.attempt_result[]) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    told record;
BEGIN
    WITH item AS (
        DELETE FROM duepost.item AS i
        WHERE i.id = ANY (move_to_ledger.ids)
        RETURNING i.id, i.channel, i.kind, i.attempts, i.unknowns, i.key, i.scheduled_at
    ), email AS (
        DELETE FROM duepost.email AS e
        WHERE e.item_id = ANY (move_to_ledger.ids)
        RETURNING e.item_id, e.address, e.message_id_header, e.batch
    ), scheduled_message AS (
        DELETE FROM duepost.message AS m WHERE m.item_id = ANY (move_to_ledger.ids) RETURNING m.item_id, m.endpoint, m.batch
    ), batch AS (
        DELETE FROM duepost.batch AS b
        USING (SELECT item_id, batch FROM email UNION ALL SELECT item_id, batch FROM scheduled_message) AS content
        WHERE content.batch IS NOT NULL AND b.email_id = content.item_id
    ), in_hand AS (
        DELETE FROM duepost.in_hand AS h WHERE h.item_id = ANY (move_to_ledger.ids) RETURNING h.item_id, h.route
    ), message AS (
        DELETE FROM dramatiq.queue AS m WHERE m.key = ANY (move_to_ledger.ids)
    ), app_user AS (
        DELETE FROM duepost.scheduled_email_user AS u
        WHERE u.email_id = ANY (move_to_ledger.ids)
        RETURNING u.email_id, u.user_id, u.address, u.outcome, u.code, u.enhanced_code, u.reply
    ), seen_by AS (
        DELETE FROM duepost.email_recipient AS r
        USING email
        WHERE email.address IS NULL AND r.email_id = email.item_id
        RETURNING r.email_id, r.address, r.outcome, r.code, r.enhanced_code, r.reply, r.in_ledger
    ), result AS MATERIALIZED (
        SELECT r.email_id, r.user_id, r.address, r.verdict, r.outcome, r.code, r.enhanced_code, r.reply
        FROM unnest(move_to_ledger.results) AS r
    ), finished AS (
        SELECT u.email_id, u.user_id, u.address, u.outcome, u.code, u.enhanced_code, u.reply
        FROM app_user AS u
        WHERE u.outcome IS NOT NULL
          AND NOT EXISTS (SELECT FROM result AS r WHERE r.email_id = u.email_id AND r.user_id = u.user_id)
        UNION ALL
        SELECT r.email_id, r.user_id, coalesce(r.address, CASE WHEN r.verdict IS NULL AND r.user_id IS NULL THEN email.address END),
               r.outcome, r.code, r.enhanced_code, r.reply
        FROM result AS r
        JOIN email ON email.item_id = r.email_id
        WHERE r.user_id IS NOT NULL OR r.address IS NOT NULL
           OR NOT EXISTS (SELECT FROM seen_by AS s WHERE s.email_id = r.email_id)
        UNION ALL
        -- Of several recipients who see each other: what each has come to before, or comes to now with all that are left.
        SELECT s.email_id, NULL, s.address, coalesce(s.outcome, r.outcome),
               CASE WHEN s.outcome IS NOT NULL THEN s.code ELSE r.code END,
               CASE WHEN s.outcome IS NOT NULL THEN s.enhanced_code ELSE r.enhanced_code END,
               CASE WHEN s.outcome IS NOT NULL THEN s.reply ELSE r.reply END
        FROM seen_by AS s
        LEFT JOIN result AS r ON r.email_id = s.email_id AND r.user_id IS NULL AND r.address IS NULL
        WHERE NOT s.in_ledger
          AND coalesce(s.outcome, r.outcome) IS NOT NULL
          AND NOT EXISTS (SELECT FROM result AS own WHERE own.email_id = s.email_id AND own.address = s.address)
        UNION ALL
        -- One message is for all of its users, and is in the ledger for each.
        SELECT r.email_id, u.user_id, NULL, r.outcome, r.code, r.enhanced_code, r.reply
        FROM result AS r
        JOIN scheduled_message ON scheduled_message.item_id = r.email_id
        LEFT JOIN app_user AS u ON u.email_id = r.email_id
    ), delivery AS (
        INSERT INTO duepost.delivery (
            email_id, channel, kind, outcome, user_id, address, code, enhanced_code, reply, attempts, unknowns, key,
            scheduled_at, message_id_header, route, endpoint
    )
        SELECT item.id, item.channel, item.kind, finished.outcome, finished.user_id, finished.address, finished.code, finished.enhanced_code,
               finished.reply,
               least(item.attempts, 2147483646) + (EXISTS (
                   SELECT FROM result AS r WHERE r.email_id = item.id AND r.verdict IS NOT NULL
               ))::integer,
               item.unknowns, item.key, item.scheduled_at, email.message_id_header, nullif(in_hand.route, 'default'),
               scheduled_message.endpoint
        FROM item
        LEFT JOIN email ON email.item_id = item.id
        LEFT JOIN scheduled_message ON scheduled_message.item_id = item.id
        LEFT JOIN in_hand ON in_hand.item_id = item.id
        JOIN finished ON finished.email_id = item.id
        RETURNING email_id, channel, kind, user_id, outcome
    )
    SELECT array_agg(d.email_id) AS ids, array_agg(d.channel) AS channels, array_agg(d.kind) AS kinds,
           array_agg(d.user_id) AS users, array_agg(d.outcome) AS outcomes
    INTO told
    FROM delivery AS d
    JOIN duepost.kind AS k ON k.kind = d.kind AND k.on_outcome IS NOT NULL;
    IF told.ids IS NOT NULL THEN
        PERFORM duepost.tell_outcomes(told.ids, told.channels, told.kinds, told.users, told.outcomes);
    END IF;
END
$$;
COMMENT ON FUNCTION duepost.move_to_ledger IS
    'Moves finished items to the ledger, a row for each recipient, with all that is stored of them. The caller holds their locks.';

-- The caller holds the item's lock. `outcome`, where it is given, is the email's own: for the users that were still to get
-- it, or for its address.
CREATE OR REPLACE FUNCTION duepost.finish(email_id bigint, outcome text, reply text) RETURNS void
LANGUAGE sql AS $$
    SELECT duepost.move_to_ledger(
        ARRAY[$1],
        CASE
            WHEN $2 IS NOT NULL
                THEN ARRAY[ROW($1, NULL, NULL, NULL, NULL, $2, NULL, NULL, $3)::duepost.attempt_result]
            ELSE '{}'
        END
    )
$$;

-- Whether an item is being sent, asked under its lock. A caller whose transaction has one snapshot for all its statements
-- does not see a claim that was committed since: there an attempt to claim it fails (40001), as any other late write would.
CREATE OR REPLACE FUNCTION duepost.is_in_hand(id bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        INSERT INTO duepost.in_hand (item_id, claim, worker_id, claimed_at)
        VALUES (is_in_hand.id, 0, 0, now())
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            RETURN true;
        END IF;
        DELETE FROM duepost.in_hand AS h WHERE h.item_id = is_in_hand.id AND h.claim = 0;
    END IF;
    RETURN EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = is_in_hand.id);
END
$$;
COMMENT ON FUNCTION duepost.is_in_hand IS 'Whether a worker is sending an item. The caller holds its lock.';

-- Whether it is being sent under this very claim, by the same snapshot.
CREATE OR REPLACE FUNCTION duepost.has_claim(id bigint, claim bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM duepost.in_hand AS h WHERE h.item_id = has_claim.id AND h.claim = has_claim.claim
    );
END
$$;
COMMENT ON FUNCTION duepost.has_claim IS 'Whether an item is being sent under this claim. The caller holds its lock.';

-- Whom an email still goes to. It is called under the lock of the email's row, and volatile, so that it has a snapshot of
-- its own: what a clear has committed since the calling statement began is in none of that statement's.
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

-- Whether it is too late for an item of a kind that is not to be delivered late.
CREATE OR REPLACE FUNCTION duepost.is_too_late(kind text, scheduled_at timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM duepost.kind AS k WHERE k.kind = $1 AND k.catch_up = 'expire' AND k.late_after < now() - $2
    )
$$;
COMMENT ON FUNCTION duepost.is_too_late IS
    'Whether an item that was scheduled for that time is later than its kind allows (late_after, where catch_up is expire).';

-- What a claim gives. Functions, here and below, so that a session plans their statements once and not with each call;
-- and by index, whatever a table looked like when it did. A plan that cannot do without a scan then seems so costly that
-- PostgreSQL would compile it, which takes a hundred times as long as the plan. Called by workers, with their own rights.
-- Nothing here reads duepost.recipient, which may be the team's own view: that is read afterwards, without a lock. JSON
-- is given as text: what a worker cannot read of one email is that email's failure.
CREATE OR REPLACE FUNCTION duepost.claim_emails_v3(
    ids bigint[], worker_id integer, way text, apart boolean DEFAULT false
)
RETURNS TABLE (
    id bigint, claim bigint, kind text, attempts integer, unknowns integer, last_error text, probe boolean,
    message_id_header text, date_seconds double precision, sender text, reply_to text, headers text, template text,
    context text, subject text, body_text text, body_html text, mailbox_full_seconds double precision,
    address text, suppressed boolean, users text[], date_header timestamptz, extras text, priority smallint
)
LANGUAGE plpgsql ROWS 10
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT i.id, i.kind, i.attempts, i.unknowns, i.last_error, i.mailbox_full_since, i.is_held, i.due_at, i.expires_at,
               i.scheduled_at, i.scheduled_local, i.route, i.probe AND i.route = claim_emails_v3.way AS probe, i.priority
        FROM duepost.item AS i
        WHERE i.id = ANY (claim_emails_v3.ids)
        ORDER BY i.id
        -- Not FOR KEY SHARE, which takes a row as it was when the statement began, whatever was committed since.
        FOR NO KEY UPDATE SKIP LOCKED
    ), eligible AS MATERIALIZED (
        SELECT item.id, item.kind, item.due_at, (coalesce(kind.has_conditions, false) OR item.scheduled_local IS NOT NULL) AND NOT claim_emails_v3.apart AS is_kept
        FROM item
        LEFT JOIN duepost.kind AS kind ON kind.kind = item.kind
        WHERE NOT item.is_held
          AND (item.due_at <= now() OR claim_emails_v3.apart)
          AND (item.expires_at IS NULL OR item.expires_at > now())
          AND (kind.catch_up = 'expire' AND kind.late_after < now() - item.scheduled_at) IS NOT TRUE
          AND NOT (SELECT control.paused FROM duepost.control AS control)
          AND kind.paused_at IS NULL
          AND NOT CASE
              WHEN item.route = claim_emails_v3.way
                  THEN (SELECT duepost.is_stopped(claim_emails_v3.way, claim_emails_v3.way))
              ELSE duepost.is_stopped(claim_emails_v3.way, item.route)
          END
          AND (item.route = claim_emails_v3.way OR duepost.is_way_of(claim_emails_v3.way, item.route))
          AND (item.probe OR NOT (SELECT duepost.is_route_blocked(claim_emails_v3.way)))
    ), taken AS (
        INSERT INTO duepost.in_hand (item_id, claim, worker_id, claimed_at, route)
        SELECT eligible.id, nextval('duepost.claim_number'), claim_emails_v3.worker_id, now(), claim_emails_v3.way
        FROM eligible
        WHERE NOT eligible.is_kept
        ON CONFLICT DO NOTHING
        RETURNING item_id, in_hand.claim
    ), kept AS (
        -- Nobody else is to find it while its conditions are asked; where nobody does, it is soon due again.
        UPDATE duepost.item AS i SET due_at = now() + interval '10 s'
        WHERE i.id = ANY (ARRAY(SELECT e.id FROM eligible AS e WHERE e.is_kept))
          AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
        RETURNING i.id, i.kind, jsonb_build_object(
            'kept_until', i.due_at, 'due_at', (SELECT e.due_at FROM eligible AS e WHERE e.id = i.id)
        )::text AS kept
    )
    SELECT item.id, taken.claim, item.kind, item.attempts, item.unknowns, item.last_error, item.probe,
           email.message_id_header,
           -- What has joined a batch since this statement began is read as it is now: the item's lock is held.
           extract(epoch FROM CASE
               WHEN email.batch IS NULL THEN email.date_header ELSE duepost.batch_date(item.id)
           END)::double precision,
           email.sender, email.reply_to, email.headers::text, email.template,
           CASE WHEN email.batch IS NULL THEN email.context::text ELSE duepost.close_batch(item.id) END,
           email.subject, email.body_text, email.body_html,
           coalesce(extract(epoch FROM now() - item.mailbox_full_since), 0)::double precision,
           email.address,
           email.address IS NOT NULL AND EXISTS (
               -- The key once, not for each of the tables that suppression consists of.
               SELECT
               FROM (SELECT duepost.mailbox_key(email.address) AS key OFFSET 0) AS mailbox
               JOIN duepost.suppression AS s ON s.address = mailbox.key
               WHERE (s.kind IS NULL OR s.kind = item.kind) AND (s.until IS NULL OR s.until > now())
           ),
           CASE WHEN email.address IS NULL THEN duepost.users_to_go(item.id) END,
           CASE WHEN email.batch IS NULL THEN email.date_header ELSE duepost.batch_date(item.id) END,
           CASE
               WHEN email.has_extras OR item.kind = ANY (ARRAY(SELECT k.kind FROM duepost.kind AS k WHERE k.unsubscribe))
                   THEN duepost.email_extras(item.id)
           END,
           item.priority
    FROM taken
    JOIN item ON item.id = taken.item_id
    JOIN duepost.email AS email ON email.item_id = taken.item_id AND email.item_id = ANY (claim_emails_v3.ids)
    UNION ALL
    SELECT kept.id, NULL, kept.kind, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
           NULL, NULL, NULL, NULL, kept.kept, NULL
    FROM kept
    ORDER BY 1;
END
$$;
COMMENT ON FUNCTION duepost.claim_emails_v3 IS
    'scheduled, queued → sending for those of these emails that nobody holds and that are still to be sent, by a way that is '
    'their route or its fallback: locks them by ascending id, takes them in hand, and gives them with the address, or the '
    'users, that are still to get them. One whose kind has conditions is not claimed, but kept from others for some seconds, and '
    'given without a claim: check_conditions_v1() asks them, and `apart` claims it then.';

-- Workers of 0.2.0 call this. What they do not know of is left to others.
CREATE OR REPLACE FUNCTION duepost.claim_emails_v2(ids bigint[], worker_id integer, way text)
RETURNS TABLE (
    id bigint, claim bigint, kind text, attempts integer, unknowns integer, last_error text, probe boolean,
    message_id_header text, date_seconds double precision, sender text, reply_to text, headers text, template text,
    context text, subject text, body_text text, body_html text, mailbox_full_seconds double precision,
    address text, suppressed boolean, users text[], date_header timestamptz
)
LANGUAGE sql ROWS 10 AS $$
    SELECT c.id, c.claim, c.kind, c.attempts, c.unknowns, c.last_error, c.probe, c.message_id_header, c.date_seconds,
           c.sender, c.reply_to, c.headers, c.template, c.context, c.subject, c.body_text, c.body_html,
           c.mailbox_full_seconds, c.address, c.suppressed, c.users, c.date_header
    FROM duepost.claim_emails_v3(
        ARRAY(
            SELECT e.item_id
            FROM duepost.email AS e
            JOIN duepost.item AS i ON i.id = e.item_id
            LEFT JOIN duepost.kind AS k ON k.kind = i.kind
            WHERE e.item_id = ANY ($1) AND NOT e.has_extras AND k.has_conditions IS NOT TRUE AND k.unsubscribe IS NOT TRUE
              AND i.scheduled_local IS NULL
            ORDER BY e.item_id
        ),
        $2, $3
    ) AS c
$$;

-- The beginning of a route's line of one priority, locked. Read in the index's order and no further than is asked for, whatever the
-- planner believes of a table that has just been filled: it would rather read and sort the whole line for each claim. Its callers set
-- that, as setting it takes as long as a look at an empty line.
CREATE OR REPLACE FUNCTION duepost.lock_line(
    way text, priority smallint, size integer, after_due_at timestamptz, after_id bigint,
    OUT ids bigint[], OUT moments timestamptz[], OUT expired bigint[]
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    SELECT coalesce(array_agg(due.id), '{}'), coalesce(array_agg(due.due_at), '{}'), coalesce(array_agg(due.id) FILTER (
               WHERE due.expires_at <= now() OR (k.catch_up = 'expire' AND k.late_after < now() - due.scheduled_at)
           ), '{}')
    INTO ids, moments, expired
    FROM (
        SELECT i.id, i.due_at, i.expires_at, i.kind, i.scheduled_at
        FROM duepost.item AS i
        WHERE i.route = lock_line.way
          AND i.priority = lock_line.priority
          AND NOT i.is_held
          AND i.due_at <= now()
          AND (i.due_at, i.id) > (lock_line.after_due_at, lock_line.after_id)
          AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
          AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id)
        ORDER BY i.due_at, i.id
        LIMIT lock_line.size
        FOR NO KEY UPDATE OF i SKIP LOCKED
    ) AS due
    LEFT JOIN duepost.kind AS k ON k.kind = due.kind;
END
$$;
COMMENT ON FUNCTION duepost.lock_line IS
    'The oldest due items of a route and a priority after a place in due order that nobody has, locked, at most size; when each was due, '
    'and which of them are past their time. Those that another transaction holds are passed over.';

-- The beginning of a route's line, its urgent ones first, locked. Workers of 0.2.0 call this, too.
CREATE OR REPLACE FUNCTION duepost.lock_due(way text, size integer, after_due_at timestamptz, after_id bigint)
RETURNS TABLE (id bigint, due_at timestamptz, expires_at timestamptz, kind text, scheduled_at timestamptz)
LANGUAGE plpgsql ROWS 32
SET enable_seqscan = off SET enable_sort = off SET enable_incremental_sort = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    line   smallint;
    found  bigint[];
    number integer := 0;
BEGIN
    FOREACH line IN ARRAY '{-1,0,1}'::smallint[] LOOP
        found := (
            SELECT l.ids
            FROM duepost.lock_line(lock_due.way, line, lock_due.size - number, lock_due.after_due_at, lock_due.after_id) AS l
        );
        number := number + cardinality(found);
        RETURN QUERY
        SELECT i.id, i.due_at, i.expires_at, i.kind, i.scheduled_at
        FROM duepost.item AS i
        WHERE i.id = ANY (found)
        ORDER BY i.due_at, i.id;
        EXIT WHEN number >= lock_due.size;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.lock_due IS
    'The oldest due items of a route after a place in due order that nobody has, what is urgent first and bulk last, locked, at most '
    'size; those that another transaction holds are passed over.';

-- The next of a route's lines, locked: what is urgent goes ahead of all else, and normal goes seven times as often as bulk where both
-- wait. A flood of what is urgent leaves an eighth to the others, so that nothing stands still. `after_due_at` and `after_id` are a place
-- in each line, urgent, normal, bulk; each is earlier by `overlap` seconds.
CREATE OR REPLACE FUNCTION duepost.lock_lines(
    way text, size integer, after_due_at timestamptz[], after_id bigint[], overlap double precision,
    OUT ids bigint[], OUT expired bigint[], OUT last_due_at timestamptz[], OUT last_id bigint[]
)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_sort = off SET enable_incremental_sort = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    back     CONSTANT interval := make_interval(secs => overlap);
    urgent   record;
    normal   record;
    bulk     record;
    room     integer;
    share    integer;
    number   integer;
    is_flood boolean;
BEGIN
    urgent := duepost.lock_line(way, -1::smallint, size + 1, after_due_at[1] - back, after_id[1]);
    is_flood := cardinality(urgent.ids) > size;
    room := CASE WHEN is_flood THEN floor(size / 8.0 + random())::integer ELSE size - cardinality(urgent.ids) END;
    share := floor(room / 8.0 + random())::integer;
    bulk := duepost.lock_line(way, 1::smallint, share, after_due_at[3] - back, after_id[3]);
    normal := duepost.lock_line(way, 0::smallint, room - cardinality(bulk.ids), after_due_at[2] - back, after_id[2]);
    IF cardinality(normal.ids) + share < room AND cardinality(bulk.ids) = share THEN
        bulk := duepost.lock_line(way, 1::smallint, room - cardinality(normal.ids), after_due_at[3] - back, after_id[3]);
    END IF;
    IF is_flood THEN
        number := size - cardinality(normal.ids) - cardinality(bulk.ids);
        urgent.ids := urgent.ids[:number];
        urgent.moments := urgent.moments[:number];
        urgent.expired := ARRAY(SELECT e FROM unnest(urgent.expired) AS e WHERE e = ANY (urgent.ids));
    END IF;
    ids := urgent.ids || normal.ids || bulk.ids;
    expired := urgent.expired || normal.expired || bulk.expired;
    IF cardinality(expired) > 1 THEN
        expired := ARRAY(SELECT e FROM unnest(expired) AS e ORDER BY e);
    END IF;
    last_due_at := ARRAY[
        urgent.moments[cardinality(urgent.moments)], normal.moments[cardinality(normal.moments)],
        bulk.moments[cardinality(bulk.moments)]
    ];
    last_id := ARRAY[
        urgent.ids[cardinality(urgent.ids)], normal.ids[cardinality(normal.ids)], bulk.ids[cardinality(bulk.ids)]
    ];
END
$$;
COMMENT ON FUNCTION duepost.lock_lines IS
    'The next due items of a route that nobody has, at most size, locked: urgent, then normal and bulk, seven to one; which of them are '
    'past their time; and how far this came in the line of each priority, NULL where nothing was found.';

-- Due emails claimed without a message: the scheduler need not lock, and the broker need not store, read and delete, what a sender takes
-- at once. The places are those of lock_lines(): where nothing else keeps a snapshot open they may be the beginnings. What is past its
-- time goes to the ledger. As long as there is more than asked for, the route is marked, and the scheduler leaves its lines to
-- the senders; a failure is for the scheduler to take apart.
CREATE OR REPLACE FUNCTION duepost.claim_due_emails_v2(
    way text, size integer, worker_id integer, after_due_at timestamptz[], after_id bigint[], overlap double precision DEFAULT 0
) RETURNS TABLE (
    id bigint, claim bigint, kind text, attempts integer, unknowns integer, last_error text, probe boolean,
    message_id_header text, date_seconds double precision, sender text, reply_to text, headers text, template text,
    context text, subject text, body_text text, body_html text, mailbox_full_seconds double precision,
    address text, suppressed boolean, users text[], found integer, last_due_at text[], last_id bigint[], extras text,
    priority smallint
)
LANGUAGE plpgsql ROWS 10
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    due        record;
    expired_id bigint;
BEGIN
    IF (SELECT c.paused FROM duepost.control AS c) OR duepost.is_route_blocked(claim_due_emails_v2.way) THEN
        RETURN;
    END IF;
    due := duepost.lock_lines(
        claim_due_emails_v2.way, claim_due_emails_v2.size, claim_due_emails_v2.after_due_at, claim_due_emails_v2.after_id,
        claim_due_emails_v2.overlap
    );
    IF EXISTS (SELECT FROM duepost.kind AS k WHERE k.paused_at IS NOT NULL) THEN
        PERFORM duepost.park_paused(due.ids);
    END IF;
    FOREACH expired_id IN ARRAY due.expired LOOP
        IF NOT duepost.is_in_hand(expired_id)
            AND NOT EXISTS (SELECT FROM duepost.item AS i WHERE i.id = expired_id AND strpos(i.route, 'paused:') = 1)
        THEN
            PERFORM duepost.finish(expired_id, 'expired', NULL);
        END IF;
    END LOOP;
    IF cardinality(due.ids) >= claim_due_emails_v2.size THEN
        UPDATE duepost.route AS r
        SET claimed_directly_until = now() + interval '3 s'
        WHERE r.name = (
            SELECT o.name
            FROM duepost.route AS o
            WHERE o.name = claim_due_emails_v2.way
              AND o.claimed_directly_until BETWEEN now() + interval '2 s' AND now() + interval '3 s' IS NOT TRUE
            FOR NO KEY UPDATE SKIP LOCKED
        );
    END IF;
    RETURN QUERY
    SELECT c.id, c.claim, c.kind, c.attempts, c.unknowns, c.last_error, c.probe, c.message_id_header, c.date_seconds,
           c.sender, c.reply_to, c.headers, c.template, c.context, c.subject, c.body_text, c.body_html,
           c.mailbox_full_seconds, c.address, c.suppressed, c.users, cardinality(due.ids),
           due.last_due_at::text[], due.last_id, c.extras, c.priority
    FROM (SELECT) AS always
    LEFT JOIN duepost.claim_emails_v3(due.ids, claim_due_emails_v2.worker_id, claim_due_emails_v2.way) AS c ON true;
END
$$;
COMMENT ON FUNCTION duepost.claim_due_emails_v2 IS
    'scheduled → sending for the next due emails of a route after a place in the line of each priority, at most size; in each row how '
    'many were found, and how far this came. One row without an id where none could be claimed; none where nothing may be sent.';

-- Workers of 0.2.0 call this. To them the line's emails come by messages, so that none is left by who does not know of it.
CREATE OR REPLACE FUNCTION duepost.claim_due_emails_v1(
    way text, size integer, worker_id integer, after_due_at timestamptz, after_id bigint
) RETURNS TABLE (
    id bigint, claim bigint, kind text, attempts integer, unknowns integer, last_error text, probe boolean,
    message_id_header text, date_seconds double precision, sender text, reply_to text, headers text, template text,
    context text, subject text, body_text text, body_html text, mailbox_full_seconds double precision,
    address text, suppressed boolean, users text[], found integer, last_due_at text, last_id bigint
)
LANGUAGE plpgsql ROWS 1 AS $$
BEGIN
    RETURN;
END
$$;

CREATE OR REPLACE FUNCTION duepost.claim_messages_v2(ids bigint[], worker_id integer, apart boolean DEFAULT false)
RETURNS TABLE (
    id bigint, claim bigint, kind text, attempts integer, unknowns integer, last_error text, probe boolean,
    endpoint text, wire_id text, payload text, format text, url text, secret text, former_secret text,
    function text, options text, allow_private boolean, is_failing boolean, users text[], kept text, priority smallint
)
LANGUAGE plpgsql ROWS 10
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT i.id, i.kind, i.attempts, i.unknowns, i.last_error, i.is_held, i.due_at, i.expires_at, i.scheduled_at, i.route,
               i.probe, i.priority
        FROM duepost.item AS i
        WHERE i.id = ANY (claim_messages_v2.ids)
        ORDER BY i.id
        -- Not FOR KEY SHARE, which takes a row as it was when the statement began, whatever was committed since.
        FOR NO KEY UPDATE SKIP LOCKED
    ), eligible AS MATERIALIZED (
        SELECT item.id, item.route, item.due_at, coalesce(kind.has_conditions, false) AND NOT claim_messages_v2.apart AS is_kept
        FROM item
        CROSS JOIN duepost.control AS control
        LEFT JOIN duepost.kind AS kind ON kind.kind = item.kind
        WHERE NOT item.is_held
          AND (item.due_at <= now() OR claim_messages_v2.apart)
          AND (item.expires_at IS NULL OR item.expires_at > now())
          AND NOT duepost.is_too_late(item.kind, item.scheduled_at)
          AND NOT control.paused
          AND NOT duepost.is_kind_paused(item.kind)
          AND NOT duepost.is_stopped(item.route, item.route)
          AND strpos(item.route, 'paused:') <> 1
          AND NOT EXISTS (
              SELECT FROM duepost.endpoint AS e WHERE 'endpoint:' || e.name = item.route AND e.disabled_at IS NOT NULL
          )
          AND (item.probe OR NOT duepost.is_route_blocked(item.route))
    ), taken AS (
        INSERT INTO duepost.in_hand (item_id, claim, worker_id, claimed_at, route)
        SELECT eligible.id, nextval('duepost.claim_number'), claim_messages_v2.worker_id, now(), eligible.route
        FROM eligible
        WHERE NOT eligible.is_kept
        ON CONFLICT DO NOTHING
        RETURNING item_id, in_hand.claim
    ), kept AS (
        UPDATE duepost.item AS i SET due_at = now() + interval '10 s'
        FROM eligible
        WHERE eligible.is_kept AND i.id = eligible.id AND i.id = ANY (claim_messages_v2.ids)
          AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
        RETURNING i.id, i.kind, jsonb_build_object('kept_until', i.due_at, 'due_at', eligible.due_at)::text AS kept
    )
    -- What was edited since this statement began is read as it is now: the item's lock is held.
    SELECT item.id, taken.claim, item.kind, item.attempts, item.unknowns, item.last_error, item.probe, content.endpoint,
           content.wire_id, content.payload, content.format, content.url, content.secret, content.former_secret,
           content.function, content.options, content.allow_private, content.is_failing, duepost.users_to_go(item.id), NULL,
           item.priority
    FROM taken
    JOIN item ON item.id = taken.item_id
    CROSS JOIN LATERAL duepost.message_content(taken.item_id) AS content
    UNION ALL
    SELECT kept.id, NULL, kept.kind, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
           NULL, kept.kept, NULL
    FROM kept
    ORDER BY 1;
END
$$;
COMMENT ON FUNCTION duepost.claim_messages_v2 IS
    'scheduled, queued → sending for those of these messages that nobody holds and that are still to be sent: locks them by '
    'ascending id, takes them in hand, and gives them with their endpoint; one whose kind has conditions as claim_emails_v3() does.';

-- Workers of 0.2.0 call this. What has conditions is left to others.
CREATE OR REPLACE FUNCTION duepost.claim_messages_v1(ids bigint[], worker_id integer)
RETURNS TABLE (
    id bigint, claim bigint, kind text, attempts integer, unknowns integer, last_error text, probe boolean,
    endpoint text, wire_id text, payload text, format text, url text, secret text, former_secret text,
    function text, options text, allow_private boolean, is_failing boolean, users text[]
)
LANGUAGE sql ROWS 10 AS $$
    SELECT c.id, c.claim, c.kind, c.attempts, c.unknowns, c.last_error, c.probe, c.endpoint, c.wire_id, c.payload, c.format,
           c.url, c.secret, c.former_secret, c.function, c.options, c.allow_private, c.is_failing, c.users
    FROM duepost.claim_messages_v2(
        ARRAY(
            SELECT i.id
            FROM duepost.item AS i
            LEFT JOIN duepost.kind AS k ON k.kind = i.kind
            WHERE i.id = ANY ($1) AND k.has_conditions IS NOT TRUE
            ORDER BY i.id
        ),
        $2
    ) AS c
$$;

-- Volatile, so that it has a snapshot of its own: an edit that was committed while its caller waited for the item is in none of
-- the calling statement's.
CREATE OR REPLACE FUNCTION duepost.message_content(
    id bigint, OUT endpoint text, OUT wire_id text, OUT payload text, OUT format text, OUT url text, OUT secret text,
    OUT former_secret text, OUT function text, OUT options text, OUT allow_private boolean, OUT is_failing boolean
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    SELECT m.endpoint, m.wire_id, CASE WHEN m.batch IS NULL THEN m.payload::text ELSE duepost.close_batch(m.item_id) END, e.format, e.url, e.secret,
           CASE WHEN e.previous_secret_until > now() THEN e.previous_secret END,
           e.function, e.options::text, coalesce(e.allow_private, false), e.failing_since IS NOT NULL
    INTO endpoint, wire_id, payload, format, url, secret, former_secret, function, options, allow_private, is_failing
    FROM duepost.message AS m
    LEFT JOIN duepost.endpoint AS e ON e.name = m.endpoint
    WHERE m.item_id = message_content.id;
END
$$;
COMMENT ON FUNCTION duepost.message_content IS
    'What a message says, and where it goes, as of this moment; the caller holds the item''s lock.';

-- What duepost.recipient says of one user; apart, so that whatever a team's own view fails of is one user's failure.
-- No join: a view may compute all of its rows for one.
CREATE OR REPLACE FUNCTION duepost.recipient_row_v2(wanted text) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT jsonb_agg(jsonb_build_array(
            r.user_id::text, r.active::text, left(r.address::text, 2001), left(r.name::text, 2001),
            left(r.locale::text, 2001), left(r.timezone::text, 2001),
            duepost.suppressed_kinds(duepost.mailbox_key(left(r.address::text, 2001)))
        ))
        FROM duepost.recipient AS r
        WHERE r.user_id::text = wanted
    );
END
$$;

-- What duepost.recipient says of these users: all in one statement, and each alone where that fails. A statement that
-- takes too long, or waits too long for a lock, is the caller's to take apart: its time is over.
CREATE OR REPLACE FUNCTION duepost.recipient_rows_v2(user_ids text[], OUT known jsonb, OUT failures jsonb)
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
            duepost.suppressed_kinds(duepost.mailbox_key(left(r.address::text, 2001)))
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
            known := known || coalesce(duepost.recipient_row_v2(wanted), '[]');
        EXCEPTION
            WHEN lock_not_available THEN RAISE;
            WHEN OTHERS THEN
                failures := failures || jsonb_build_array(jsonb_build_array(wanted, SQLSTATE, split_part(SQLERRM, E'\n', 1)));
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.recipient_rows_v2 IS
    'What duepost.recipient says of these users, and of which kinds they get nothing (null stands for all); and for which of them '
    'it fails, with what.';

-- Workers of 0.2.0 call this: an address gets something, or nothing at all.
CREATE OR REPLACE FUNCTION duepost.recipient_rows(user_ids text[], OUT known jsonb, OUT failures jsonb)
LANGUAGE sql STABLE AS $$
    SELECT (
               SELECT coalesce(jsonb_agg((r.fields - 6) || to_jsonb(r.fields -> 6 @> '[null]')), '[]')
               FROM jsonb_array_elements(found.known) AS r (fields)
           ),
           found.failures
    FROM duepost.recipient_rows_v2($1) AS found
$$;

-- Every recipient has an outcome, now or from an earlier attempt. Each email is named with its claim, and with the broker
-- message that it came by, if any, which goes with it. Locked by id alone, as in `enqueue`; a row that somebody else
-- holds just now is left out, so that it keeps nobody else waiting.
CREATE OR REPLACE FUNCTION duepost.conclude_emails(
    ids bigint[], claims bigint[], results jsonb, message_ids uuid[], message_claims bigint[]
) RETURNS SETOF bigint
LANGUAGE plpgsql ROWS 10
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    given  duepost.attempt_result[];
    locked bigint[];
    done   bigint[];
    -- Whether some of them have recipients who see each other.
    are_several CONSTANT boolean := conclude_emails.results @? '$[*].place';
BEGIN
    SELECT array_agg(r) INTO given FROM jsonb_populate_recordset(NULL::duepost.attempt_result, conclude_emails.results) AS r;
    locked := ARRAY(
        SELECT i.id FROM duepost.item AS i WHERE i.id = ANY (conclude_emails.ids) ORDER BY i.id FOR UPDATE SKIP LOCKED
    );
    -- In a statement of its own, once the rows are locked: whoever has taken a claim away has committed that by now.
    WITH claimed AS MATERIALIZED (
        SELECT h.item_id, h.claim, h.worker_id, h.claimed_at
        FROM unnest(conclude_emails.ids, conclude_emails.claims) AS c (item_id, claim)
        JOIN duepost.in_hand AS h ON h.item_id = c.item_id AND h.claim = c.claim AND h.item_id = ANY (locked)
    ), journal AS (
        INSERT INTO duepost.attempt (
            email_id, claim, worker_id, user_id, started_at, finished_at, phase, verdict, code, enhanced_code, reply, address
        )
        SELECT claimed.item_id, claimed.claim, claimed.worker_id, r.user_id, claimed.claimed_at, now(), r.phase, r.verdict,
               r.code, r.enhanced_code, r.reply,
               CASE
                   WHEN are_several AND EXISTS (
                       SELECT FROM duepost.email_recipient AS e WHERE e.email_id = claimed.item_id AND e.address = r.address
                   ) THEN r.address
               END
        FROM claimed
        JOIN unnest(given) AS r ON r.email_id = claimed.item_id
        WHERE r.verdict IS NOT NULL
    )
    SELECT array_agg(claimed.item_id) INTO done FROM claimed;
    IF done IS NULL THEN
        RETURN;
    END IF;
    IF done <> conclude_emails.ids THEN
        SELECT array_agg(r) INTO given FROM unnest(given) AS r WHERE r.email_id = ANY (done);
    END IF;
    PERFORM duepost.move_to_ledger(done, given);
    -- A message that is not the mark of its email, as one that somebody has sent by hand.
    DELETE FROM dramatiq.queue AS m
    USING unnest(conclude_emails.ids, conclude_emails.message_ids, conclude_emails.message_claims)
        AS hint (email_id, message_id, claim)
    WHERE m.message_id = ANY (conclude_emails.message_ids)
      AND m.message_id = hint.message_id AND m.claim = hint.claim AND hint.email_id = ANY (done);
    RETURN QUERY SELECT unnest(done);
END
$$;
COMMENT ON FUNCTION duepost.conclude_emails IS
    'sending → ledger, with the journal of the attempts and without their messages, for those of these emails whose claim '
    'is still the row''s and that nobody holds: locks them by ascending id, and gives their ids.';

-- The scheduler's page: a message for each item that is due and has none, in one statement; a failure is taken apart by the
-- caller. Items are locked one by one, by ascending id. What somebody else holds, or what may not be sent now, is passed
-- over; what is past its time goes to the ledger. The commit need not wait for the disk: a crash that loses it leaves the
-- items scheduled. `way` is the route whose queue it is; NULL: one queue of many routes, each item leaves by its own.
-- `is_probe` is for the one that looks whether the relay of an open circuit takes mail again: by its own route. The messages
-- are read here after `delay` seconds, where something else carries them meanwhile.
CREATE OR REPLACE FUNCTION duepost.enqueue_items_v2(
    ids bigint[], message_ids uuid[], contents jsonb[], queue_name text, priorities integer[], is_probe boolean, way text,
    delay double precision
) RETURNS SETOF uuid
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    expired record;
BEGIN
    PERFORM pg_catalog.set_config('synchronous_commit', 'off', true);
    IF EXISTS (SELECT FROM duepost.kind AS k WHERE k.paused_at IS NOT NULL) THEN
        PERFORM duepost.park_paused(enqueue_items_v2.ids);
    END IF;
    FOR expired IN
        SELECT i.id
        FROM duepost.item AS i
        LEFT JOIN duepost.kind AS k ON k.kind = i.kind
        WHERE i.id = ANY (enqueue_items_v2.ids)
          AND (i.expires_at <= now() OR (k.catch_up = 'expire' AND k.late_after < now() - i.scheduled_at))
          AND NOT i.is_held AND strpos(i.route, 'paused:') <> 1
        ORDER BY i.id
        FOR UPDATE OF i SKIP LOCKED
    LOOP
        IF NOT duepost.is_in_hand(expired.id) THEN
            PERFORM duepost.finish(expired.id, 'expired', NULL);
        END IF;
    END LOOP;
    IF is_probe THEN
        UPDATE duepost.item AS i SET probe = true
        FROM duepost.route AS r, duepost.control AS c
        WHERE i.id = ANY (enqueue_items_v2.ids) AND i.route = enqueue_items_v2.way AND r.name = enqueue_items_v2.way
          AND r.circuit_open AND r.stopped_at IS NULL AND NOT c.paused;
    END IF;
    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT i.id, i.is_held, i.due_at, i.expires_at, i.probe, i.route
        FROM duepost.item AS i
        WHERE i.id = ANY (enqueue_items_v2.ids)
        ORDER BY i.id
        FOR KEY SHARE SKIP LOCKED
    ), no_probe AS (
        -- What was one in an earlier circuit, and whose message was lost.
        UPDATE duepost.item AS i SET probe = false
        FROM item
        WHERE item.probe AND NOT enqueue_items_v2.is_probe AND i.id = item.id AND i.id = ANY (enqueue_items_v2.ids)
    )
    INSERT INTO dramatiq.queue AS m (message_id, queue_name, state, mtime, message, eta, priority, key)
    SELECT g.message_id, enqueue_items_v2.queue_name, 'queued', now(), g.content,
           clock_timestamp() + make_interval(secs => enqueue_items_v2.delay), g.priority, i.id
    FROM unnest(enqueue_items_v2.ids, enqueue_items_v2.message_ids, enqueue_items_v2.contents, enqueue_items_v2.priorities)
        WITH ORDINALITY AS g (id, message_id, content, priority, place)
    JOIN item AS i ON i.id = g.id
    CROSS JOIN duepost.control AS c
    WHERE NOT i.is_held
      AND i.due_at <= now()
      AND (i.expires_at IS NULL OR i.expires_at > now())
      AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
      AND NOT c.paused
      AND strpos(i.route, 'paused:') <> 1
      AND CASE
          WHEN enqueue_items_v2.way IS NULL THEN NOT duepost.is_route_blocked(i.route)
          ELSE (i.route = enqueue_items_v2.way OR duepost.is_way_of(enqueue_items_v2.way, i.route)) AND (
              (enqueue_items_v2.is_probe AND i.route = enqueue_items_v2.way)
              OR NOT (SELECT duepost.is_route_blocked(enqueue_items_v2.way))
          )
      END
    ORDER BY g.place
    ON CONFLICT DO NOTHING
    RETURNING m.message_id;
END
$$;
COMMENT ON FUNCTION duepost.enqueue_items_v2 IS
    'scheduled → queued for those of these items that are due: inserts their messages, and gives the ids of those inserted.';

-- What workers of release 0.2.0 call.
CREATE OR REPLACE FUNCTION duepost.enqueue_items(
    ids bigint[], message_ids uuid[], contents jsonb[], queue_name text, priorities integer[], is_probe boolean, way text
) RETURNS SETOF uuid
LANGUAGE sql AS $$
    SELECT duepost.enqueue_items_v2($1, $2, $3, $4, $5, $6, $7, 0)
$$;
COMMENT ON FUNCTION duepost.enqueue_items IS 'enqueue_items_v2, and the messages are read at once.';

-- Called with the rights of the worker's role, which an operator who registers a function has to grant EXECUTE to.
CREATE OR REPLACE FUNCTION duepost.call_message_function(function text, id bigint, payload jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    target text;
BEGIN
    SELECT format('%I.%I', n.nspname, p.proname) INTO target
    FROM pg_proc AS p
    JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE p.oid = to_regprocedure(call_message_function.function) AND p.prokind = 'f'
      AND oidvectortypes(p.proargtypes) = 'bigint, jsonb'
      -- Whoever owns it acts with the rights of those who call it.
      AND pg_has_role(p.proowner, (SELECT nspowner FROM pg_namespace WHERE nspname = 'duepost'), 'MEMBER');
    IF target IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '42883', MESSAGE = 'the endpoint''s function is gone, or takes other arguments';
    END IF;
    EXECUTE format('SELECT %s($1, $2)', target) USING call_message_function.id, call_message_function.payload;
END
$$;
COMMENT ON FUNCTION duepost.call_message_function IS
    'Calls an endpoint''s function for a message, in the caller''s transaction and with the caller''s rights.';

-- What follows where nobody knows whether an item arrived, and its kind does not say.
CREATE OR REPLACE FUNCTION duepost.usual_on_unknown(id bigint) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce((
        SELECT CASE WHEN e.format IN ('slack', 'mattermost', 'zulip') THEN 'hold' ELSE 'resend' END
        FROM duepost.message AS m
        JOIN duepost.endpoint AS e ON e.name = m.endpoint
        WHERE m.item_id = $1
    ), 'resend')
$$;
COMMENT ON FUNCTION duepost.usual_on_unknown IS
    'resend, or hold for formats whose receivers cannot tell a message that comes twice.';

-- Tells the application, in the transaction that concludes the item. What its function fails of undoes nothing of ours.
CREATE OR REPLACE FUNCTION duepost.tell_outcomes(ids bigint[], channels text[], kinds text[], users text[], outcomes text[])
RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    told   record;
    target text;
BEGIN
    FOR told IN
        SELECT g.id, g.channel, g.user_id, g.outcome, k.on_outcome
        FROM unnest(tell_outcomes.ids, tell_outcomes.channels, tell_outcomes.kinds, tell_outcomes.users, tell_outcomes.outcomes)
            AS g (id, channel, kind, user_id, outcome)
        JOIN duepost.kind AS k ON k.kind = g.kind AND k.on_outcome IS NOT NULL
        ORDER BY g.id, g.user_id
    LOOP
        BEGIN
            SELECT format('%I.%I', n.nspname, p.proname) INTO target
            FROM pg_proc AS p
            JOIN pg_namespace AS n ON n.oid = p.pronamespace
            WHERE p.oid = to_regprocedure(told.on_outcome || '(bigint, text, text, text)') AND p.prokind = 'f'
              -- Whoever owns it acts with the rights of those who call it.
              AND pg_has_role(p.proowner, (SELECT nspowner FROM pg_namespace WHERE nspname = 'duepost'), 'MEMBER');
            IF target IS NULL THEN
                RAISE EXCEPTION USING ERRCODE = '42883', MESSAGE = 'on_outcome: there is no such function';
            END IF;
            EXECUTE format('SELECT %s($1, $2, $3, $4)', target) USING told.id, told.channel, told.user_id, told.outcome;
        EXCEPTION
            WHEN query_canceled THEN RAISE;
            WHEN OTHERS THEN
                RAISE WARNING 'on_outcome of item % failed: %', told.id, SQLSTATE;
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.tell_outcomes IS
    'Calls the on_outcome function of each kind that has one, in a savepoint each, for what has just been concluded.';
