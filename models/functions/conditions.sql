-- What is asked before an item is sent whose kind has conditions. Called by workers, with their own rights, for one item in a
-- transaction of its own: what one kind's function takes long for, or fails of, is that item's alone.

-- A row of duepost.kind is written by hand: what no worker could use is refused there. Raises 22023.
CREATE OR REPLACE FUNCTION duepost.check_kind() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    IF NEW.guard IS NOT NULL AND (TG_OP = 'INSERT' OR NEW.guard IS DISTINCT FROM OLD.guard) THEN
        PERFORM duepost.checked_function('guard', NEW.guard, 'bigint, text[], jsonb', 'boolean', 'app.still_wanted');
    END IF;
    IF NEW.timezone IS NOT NULL AND NOT duepost.is_zone(NEW.timezone) THEN
        PERFORM duepost.raise_bad_argument('timezone', 'must be a name of pg_timezone_names, spelled as there, such as Europe/Berlin');
    END IF;
    RETURN NEW;
END
$$;

-- Called with the rights of the worker's role, which whoever registers a guard has to grant EXECUTE to.
CREATE OR REPLACE FUNCTION duepost.ask_guard(guard text, id bigint, users text[], context jsonb) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    target    text;
    is_wanted boolean;
BEGIN
    SELECT format('%I.%I', n.nspname, p.proname) INTO target
    FROM pg_proc AS p
    JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE p.oid = to_regprocedure(
            CASE WHEN ask_guard.guard ~ '[)]\s*$' THEN ask_guard.guard ELSE ask_guard.guard || '(bigint, text[], jsonb)' END
        )
      AND p.prokind = 'f' AND oidvectortypes(p.proargtypes) = 'bigint, text[], jsonb'
      AND p.prorettype = 'boolean'::regtype AND NOT p.proretset
      -- Whoever owns it acts with the rights of those who call it.
      AND pg_has_role(p.proowner, (SELECT nspowner FROM pg_namespace WHERE nspname = 'duepost'), 'MEMBER');
    IF target IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '42883', MESSAGE = 'it is gone, or takes or returns something else';
    END IF;
    EXECUTE format('SELECT %s($1, $2, $3)', target) INTO is_wanted USING ask_guard.id, ask_guard.users, ask_guard.context;
    IF is_wanted IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22004', MESSAGE = 'it gave NULL, and not true or false';
    END IF;
    RETURN is_wanted;
END
$$;
COMMENT ON FUNCTION duepost.ask_guard IS
    'Asks a kind''s guard whether an item is still wanted, with the caller''s rights; raises what it fails of.';

-- What an item says: an email's context, with the items of its batch, or a message's payload.
CREATE OR REPLACE FUNCTION duepost.context_of(id bigint) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    content  jsonb;
    is_open  boolean := EXISTS (SELECT FROM duepost.batch AS b WHERE b.email_id = context_of.id);
    gathered jsonb;
BEGIN
    IF is_open THEN
        SELECT coalesce(jsonb_agg(i.item ORDER BY i.place), '[]') INTO gathered
        FROM duepost.batch_item AS i
        WHERE i.email_id = context_of.id;
    END IF;
    SELECT coalesce(e.context, '{}') || CASE WHEN is_open THEN jsonb_build_object('items', gathered) ELSE '{}' END INTO content
    FROM duepost.email AS e
    WHERE e.item_id = context_of.id;
    IF NOT FOUND THEN
        SELECT CASE WHEN is_open THEN gathered ELSE m.payload END INTO content
        FROM duepost.message AS m
        WHERE m.item_id = context_of.id;
    END IF;
    RETURN content;
END
$$;

-- An item that a claim has kept from others, until `kept_until`, so that its conditions can be asked: locked, if it is still kept so
-- and nobody holds it.
CREATE OR REPLACE FUNCTION duepost.lock_kept(
    id bigint, kept_until timestamptz, OUT kind text, OUT guard text, OUT scheduled_at timestamptz, OUT expires_at timestamptz,
    OUT scheduled_local timestamp, OUT has_quiet_hours boolean, OUT quiet_from time, OUT quiet_to time, OUT timezone text,
    OUT priority smallint, OUT at_most_per_day integer
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    SELECT i.kind, i.scheduled_at, i.expires_at, CASE WHEN i.attempts = 0 AND i.unknowns = 0 THEN i.scheduled_local END, i.priority
    INTO kind, scheduled_at, expires_at, scheduled_local, priority
    FROM duepost.item AS i
    WHERE i.id = lock_kept.id AND i.due_at = lock_kept.kept_until AND NOT i.is_held
    FOR NO KEY UPDATE SKIP LOCKED;
    IF kind IS NULL OR duepost.is_in_hand(lock_kept.id) THEN
        kind := NULL;
        RETURN;
    END IF;
    SELECT k.guard, k.quiet_from <> k.quiet_to AND lock_kept.priority <> -1, k.quiet_from, k.quiet_to, k.timezone,
           k.at_most_per_day
    INTO guard, has_quiet_hours, quiet_from, quiet_to, timezone, at_most_per_day
    FROM duepost.kind AS k
    WHERE k.kind = lock_kept.kind;
END
$$;

-- Moves an item to a later time, or ends it where it expires before.
CREATE OR REPLACE FUNCTION duepost.move_on(id bigint, moment timestamptz, expires_at timestamptz, because text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    IF expires_at <= moment THEN
        PERFORM duepost.finish(move_on.id, 'expired', because);
        RETURN 'expired';
    END IF;
    PERFORM duepost.move_item(move_on.id, moment, move_on.expires_at);
    RETURN 'moved';
END
$$;

-- What ends at one moment for many is spread over some minutes after it, and does not expire meanwhile.
CREATE OR REPLACE FUNCTION duepost.spread(moment timestamptz, expires_at timestamptz) RETURNS timestamptz
LANGUAGE sql VOLATILE AS $$
    SELECT moment + random() * least(interval '5 min', (expires_at - moment) / 2)
$$;

-- How many emails of a kind a person, a user or a mailbox, has had within 24 hours, or is being sent now, but for one; counted no further
-- than `most`. Volatile: it sees what was committed while its caller waited for the person's turn.
CREATE OR REPLACE FUNCTION duepost.had_of_kind(kind text, user_id text, mailbox text, but_for bigint, most integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    IF had_of_kind.user_id IS NOT NULL THEN
        RETURN (
            SELECT count(*)
            FROM (
                (
                    SELECT FROM duepost.delivery AS d
                    WHERE d.user_id = had_of_kind.user_id AND d.finished_at > now() - interval '24 h'
                      AND d.kind = had_of_kind.kind AND d.channel = 'email' AND d.outcome = 'sent'
                    LIMIT most
                )
                UNION ALL
                (
                    SELECT FROM duepost.scheduled_email_user AS u
                    JOIN duepost.item AS i ON i.id = u.email_id AND i.kind = had_of_kind.kind AND i.channel = 'email'
                    WHERE u.user_id = had_of_kind.user_id AND u.email_id <> but_for AND (
                        u.outcome = 'sent'
                        OR (u.outcome IS NULL AND EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = u.email_id))
                    )
                    LIMIT most
                )
            ) AS had
        );
    END IF;
    RETURN (
        SELECT count(*)
        FROM (
            (
                SELECT FROM duepost.delivery AS d
                WHERE d.address IS NOT NULL AND duepost.mailbox_key(d.address) = had_of_kind.mailbox
                  AND d.finished_at > now() - interval '24 h' AND d.user_id IS NULL
                  AND d.kind = had_of_kind.kind AND d.channel = 'email' AND d.outcome = 'sent'
                LIMIT most
            )
            UNION ALL
            (
                SELECT FROM duepost.in_hand AS h
                JOIN duepost.item AS i ON i.id = h.item_id AND i.kind = had_of_kind.kind
                JOIN duepost.email AS e ON e.item_id = h.item_id
                WHERE h.item_id <> but_for AND duepost.mailbox_key(e.address) = had_of_kind.mailbox
                LIMIT most
            )
        ) AS had
    );
END
$$;

-- Drops those recipients of an email who have had enough of its kind; gives whether somebody is left. What several see together,
-- and a message, is for nobody alone: there is no cap. The turns of the persons are taken in one order, and kept until the caller's
-- transaction, which claims the email, ends.
CREATE OR REPLACE FUNCTION duepost.drop_beyond_cap(id bigint, kind text, users text[], most integer, because text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    mailbox text;
    beyond  text[];
BEGIN
    SELECT duepost.mailbox_key(e.address) INTO mailbox FROM duepost.email AS e WHERE e.item_id = drop_beyond_cap.id;
    IF NOT FOUND OR (users = '{}' AND mailbox IS NULL) THEN
        RETURN true;
    END IF;
    PERFORM FROM duepost.person_turn AS t
    WHERE t.number = ANY (ARRAY(
        SELECT (hashtext(drop_beyond_cap.kind || ' ' || p.person) & 255)::smallint
        FROM unnest(CASE WHEN users = '{}' THEN ARRAY[mailbox] ELSE users END) AS p (person)
    ))
    ORDER BY t.number
    FOR NO KEY UPDATE;
    IF users = '{}' THEN
        RETURN duepost.had_of_kind(drop_beyond_cap.kind, NULL, mailbox, drop_beyond_cap.id, most) < most;
    END IF;
    beyond := ARRAY(
        SELECT u.user_id FROM unnest(users) AS u (user_id)
        WHERE duepost.had_of_kind(drop_beyond_cap.kind, u.user_id, NULL, drop_beyond_cap.id, most) >= most
    );
    UPDATE duepost.scheduled_email_user AS u SET outcome = 'obsolete', reply = because
    WHERE u.email_id = drop_beyond_cap.id AND u.user_id = ANY (beyond) AND u.outcome IS NULL;
    RETURN cardinality(beyond) < cardinality(users);
END
$$;

-- No settings of its own for the planner: a guard's statements are planned as elsewhere.
CREATE OR REPLACE FUNCTION duepost.check_conditions_v1(
    id bigint, kept_until timestamptz, due_at timestamptz, failure text, OUT answer text, OUT said text, OUT waits jsonb
)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    item   record;
    users  text[];
    moment timestamptz;
    quiet   record;
    because text;
BEGIN
    item := duepost.lock_kept(check_conditions_v1.id, check_conditions_v1.kept_until);
    IF item.kind IS NULL THEN
        answer := 'gone';
        RETURN;
    END IF;
    users := duepost.users_to_go(check_conditions_v1.id);
    answer := CASE WHEN check_conditions_v1.failure IS NULL THEN 'send' ELSE 'failed' END;
    said := coalesce(item.guard || ': ', '') || check_conditions_v1.failure;

    IF answer = 'send' AND item.scheduled_local IS NOT NULL THEN
        moment := duepost.moment_for(users, item.scheduled_local);
        IF moment > now() AND moment <> item.scheduled_at THEN
            answer := duepost.move_on(
                check_conditions_v1.id, moment, item.expires_at, 'its user''s new time zone makes it due after its expires_at'
            );
            RETURN;
        END IF;
    END IF;

    IF answer = 'send' AND item.has_quiet_hours THEN
        quiet := duepost.quiet_users(users, now(), item.timezone, item.quiet_from, item.quiet_to);
        IF quiet.awake = 0 AND quiet.ends_at IS NOT NULL THEN
            answer := duepost.move_on(
                check_conditions_v1.id, duepost.spread(quiet.ends_at, nullif(item.expires_at, least(item.expires_at, quiet.ends_at))),
                item.expires_at, 'the quiet hours of its kind end after its expires_at'
            );
            RETURN;
        ELSIF quiet.awake = 0 THEN
            answer := 'failed';
            said := quiet.error;
        ELSE
            waits := quiet.waits;
        END IF;
    END IF;

    IF answer = 'send' AND item.guard IS NOT NULL THEN
        BEGIN
            IF NOT duepost.ask_guard(item.guard, check_conditions_v1.id, users, duepost.context_of(check_conditions_v1.id)) THEN
                answer := 'obsolete';
            END IF;
        EXCEPTION
            WHEN query_canceled OR admin_shutdown THEN RAISE;
            WHEN OTHERS THEN
                answer := 'failed';
                said := format('%s: SQLSTATE %s: %s', item.guard, SQLSTATE, split_part(SQLERRM, E'\n', 1));
        END;
        IF answer = 'obsolete' THEN
            PERFORM duepost.finish(check_conditions_v1.id, 'obsolete', format('the guard %s said no', item.guard));
            RETURN;
        END IF;
    END IF;

    IF answer = 'send' AND item.at_most_per_day IS NOT NULL THEN
        because := format('at most %s a day of the kind %s', item.at_most_per_day, item.kind);
        IF NOT duepost.drop_beyond_cap(check_conditions_v1.id, item.kind, users, item.at_most_per_day, because) THEN
            -- Users have their outcomes.
            PERFORM duepost.finish(check_conditions_v1.id, CASE WHEN users = '{}' THEN 'obsolete' END, because);
            answer := 'obsolete';
            RETURN;
        END IF;
    END IF;
    UPDATE duepost.item AS i SET due_at = check_conditions_v1.due_at WHERE i.id = check_conditions_v1.id;
END
$$;
COMMENT ON FUNCTION duepost.check_conditions_v1 IS
    'Asks what an item''s kind wants to be asked before it is sent: send (the caller is to claim it in this transaction; `waits` are '
    'users who are to get nothing now), failed (so, too, and what it failed of: it is to be tried again), moved, obsolete or expired '
    '(it is in the ledger), or gone (somebody else has it, or it has changed). `failure` is what an earlier try has failed of: then '
    'nothing is asked.';
