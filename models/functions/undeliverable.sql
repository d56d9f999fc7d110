-- What was undeliverable, and how it is brought back. SECURITY DEFINER: a worker reaches the tables through these only.

-- A relay's reply in lower case, without addresses, numbers and the words that hold them, such as queue ids.
CREATE OR REPLACE FUNCTION duepost.refusal_of(reply text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
    SELECT lower(btrim(regexp_replace(regexp_replace(
        regexp_replace(reply, '<[^<>]*>', ' ', 'g'),
        '\S*[@0-9]\S*', ' ', 'g'
    ), '\s+', ' ', 'g')))
$$;

-- Whatever columns a table has: what is kept is what the row was, so that no list of them is to be kept in step. A column that
-- is younger than what is kept has its default.
CREATE OR REPLACE FUNCTION duepost.restore_row(target regclass, kept jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    names text;
BEGIN
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO names
    FROM pg_attribute AS a
    WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
      AND jsonb_typeof(kept -> a.attname) <> 'null';
    EXECUTE format('INSERT INTO %1$s (%2$s) SELECT %2$s FROM jsonb_populate_record(NULL::%1$s, $1)', target, names)
    USING kept;
END
$$;
COMMENT ON FUNCTION duepost.restore_row IS 'Puts a row into a table again, from JSON with its columns as keys.';

COMMENT ON COLUMN duepost.undeliverable_email.email IS
    'The rows of item and email, or message, as one object; NULL where content is not kept '
    '(DUEPOST_KEEP_UNDELIVERABLE_DAYS=0).';

-- Called before the row goes, in the same transaction. `results` are an attempt's, as in the journal; of an email with
-- several users, those of earlier attempts are kept already.
CREATE OR REPLACE FUNCTION duepost.keep_undeliverable(
    email_id bigint, claim bigint, results jsonb, days integer
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    INSERT INTO duepost.undeliverable_email (id, channel, kind, email, kept_until)
    SELECT i.id, i.channel, i.kind,
           CASE
               WHEN keep_undeliverable.days > 0 AND i.channel = 'email' THEN to_jsonb(i) || to_jsonb(e) || CASE
                   WHEN e.has_extras THEN jsonb_build_object('recipients', (
                       SELECT jsonb_agg(r ORDER BY r.place) FROM duepost.email_recipient AS r WHERE r.email_id = i.id
                   ))
                   ELSE '{}'
               END
               -- A message goes to all of its users at once.
               WHEN keep_undeliverable.days > 0
                   THEN to_jsonb(i) || to_jsonb(m) || jsonb_build_object('users', duepost.users_to_go(i.id))
           END,
           now() + make_interval(days => least(greatest(keep_undeliverable.days, 1), 3650))
    FROM duepost.in_hand AS h
    JOIN duepost.item AS i ON i.id = h.item_id
    LEFT JOIN duepost.email AS e ON e.item_id = h.item_id
    LEFT JOIN duepost.message AS m ON m.item_id = h.item_id
    WHERE h.item_id = keep_undeliverable.email_id AND h.claim = keep_undeliverable.claim
    ON CONFLICT ON CONSTRAINT undeliverable_email_pkey DO UPDATE
    SET kept_until = EXCLUDED.kept_until, finished_at = EXCLUDED.finished_at;

    INSERT INTO duepost.undeliverable_recipient (email_id, user_id, address, reply, refusal, route)
    SELECT k.id, result.user_id, result.address, result.reply,
           CASE WHEN result.code IS NOT NULL THEN concat(result.code, ' ', duepost.refusal_of(result.reply)) END,
           (SELECT nullif(h.route, 'default') FROM duepost.in_hand AS h WHERE h.item_id = k.id)
    FROM duepost.undeliverable_email AS k, jsonb_to_recordset(keep_undeliverable.results) AS result (
        user_id text, address text, outcome text, code integer, reply text
    )
    WHERE k.id = keep_undeliverable.email_id AND result.outcome = 'undeliverable'
      AND (result.user_id IS NULL OR EXISTS (
          SELECT FROM duepost.scheduled_email_user AS u WHERE u.email_id = k.id AND u.user_id = result.user_id
      ))
    ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION duepost.keep_undeliverable IS
    'Keeps an email that is being sent, for its recipients who could not be reached, for some days; 0 keeps no content.';

-- What several reopenings in one transaction touch, in the order of everything else: by ascending id, of each its item, then
-- what is kept of it.
CREATE OR REPLACE FUNCTION duepost.lock_undeliverable(ids bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    wanted bigint;
BEGIN
    FOR wanted IN SELECT DISTINCT u.id FROM unnest(lock_undeliverable.ids) AS u (id) ORDER BY u.id LOOP
        PERFORM FROM duepost.item AS i WHERE i.id = wanted FOR UPDATE;
        PERFORM FROM duepost.undeliverable_email AS k WHERE k.id = wanted FOR UPDATE;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.lock_undeliverable IS
    'Locks what reopening these emails touches, by ascending id, until the transaction ends.';

-- Locks in the same order.
CREATE OR REPLACE FUNCTION duepost.reopen_email(email_id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    kept       record;
    is_pending boolean;
BEGIN
    IF reopen_email.email_id IS NULL THEN
        PERFORM duepost.raise_bad_argument('email_id', 'must not be NULL');
    END IF;
    PERFORM FROM duepost.item AS i WHERE i.id = reopen_email.email_id FOR UPDATE;
    is_pending := FOUND;
    -- Asked once the row is locked: a claim may have had it until now.
    IF is_pending AND duepost.is_in_hand(reopen_email.email_id) THEN
        RETURN 'too_late';
    END IF;
    SELECT k.id, k.channel, k.email INTO kept FROM duepost.undeliverable_email AS k WHERE k.id = reopen_email.email_id FOR UPDATE;
    IF kept.id IS NULL THEN
        RETURN CASE
            WHEN EXISTS (
                SELECT FROM duepost.delivery AS d
                WHERE d.email_id = reopen_email.email_id AND d.outcome = 'undeliverable'
            ) AND NOT is_pending THEN 'not_kept'
            ELSE 'not_undeliverable'
        END;
    END IF;
    IF kept.email IS NULL THEN
        RETURN 'not_kept';
    END IF;
    IF (kept.email ->> 'expires_at')::timestamptz <= now() THEN
        RETURN 'expired';
    END IF;

    IF NOT is_pending THEN
        PERFORM duepost.restore_row('duepost.item', kept.email || jsonb_build_object(
            'due_at', now(), 'attempts', greatest((kept.email ->> 'attempts')::integer, 1), 'last_error', NULL,
            'mailbox_full_since', NULL, 'is_held', false, 'probe', false
        ));
        IF kept.channel = 'email' THEN
            PERFORM duepost.restore_row('duepost.email', kept.email || jsonb_build_object('item_id', kept.id));
            -- The others stand in the header: the same bytes go to those who are to get it now.
            PERFORM duepost.restore_row('duepost.email_recipient', r || '{"in_ledger": true}')
            FROM jsonb_array_elements(nullif(kept.email -> 'recipients', 'null')) AS r;
        ELSE
            PERFORM duepost.restore_row('duepost.message', kept.email || jsonb_build_object('item_id', kept.id));
            INSERT INTO duepost.scheduled_email_user (email_id, user_id)
            SELECT kept.id, u FROM jsonb_array_elements_text(kept.email -> 'users') AS u ORDER BY u;
        END IF;
    END IF;
    INSERT INTO duepost.scheduled_email_user AS u (email_id, user_id)
    SELECT r.email_id, r.user_id
    FROM duepost.undeliverable_recipient AS r
    WHERE r.email_id = kept.id AND r.user_id IS NOT NULL
    ORDER BY r.user_id
    ON CONFLICT ON CONSTRAINT scheduled_email_user_pkey DO UPDATE
    SET outcome = NULL, unknown = false, address = NULL, code = NULL, enhanced_code = NULL, reply = NULL
    WHERE u.outcome = 'undeliverable';
    UPDATE duepost.email_recipient AS e
    SET outcome = NULL, unknown = false, code = NULL, enhanced_code = NULL, reply = NULL, in_ledger = false
    FROM duepost.undeliverable_recipient AS r
    WHERE e.email_id = kept.id AND r.email_id = kept.id AND r.user_id IS NULL AND r.address = e.address;
    DELETE FROM duepost.suppression AS s
    USING duepost.undeliverable_recipient AS r
    WHERE r.email_id = kept.id AND s.address = duepost.mailbox_key(r.address)
      -- What somebody has asked for stays.
      AND s.kind IS NULL AND s.source IN ('relay', 'bounce');
    DELETE FROM duepost.undeliverable_email AS k WHERE k.id = kept.id;
    RETURN 'reopened';
END
$$;
COMMENT ON FUNCTION duepost.reopen_email IS
    'Schedules an undeliverable email once more, due now, for those who could not be reached, with the same Message-ID, '
    'Date and key, and lifts what a relay has said of their addresses: reopened, expired, not_kept, not_undeliverable or '
    'too_late.';

-- The safety net for refusals that no table of verdicts knows. In a row: that route's relay has accepted nothing since. What
-- another relay refuses or accepts says nothing of it.
CREATE OR REPLACE FUNCTION duepost.refused_alike(refused_id bigint, most integer)
RETURNS TABLE (email_id bigint, address text, refusal text)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 10
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    newest  record;
    since   timestamptz;
    sent_at timestamptz;
BEGIN
    SELECT r.refusal, r.route INTO newest
    FROM duepost.undeliverable_recipient AS r
    WHERE r.email_id = refused_alike.refused_id AND r.refusal IS NOT NULL
    ORDER BY r.finished_at DESC
    LIMIT 1;
    IF newest.refusal IS NULL THEN
        RETURN;
    END IF;
    SELECT min(alike.finished_at) INTO since FROM (
        SELECT r.finished_at
        FROM duepost.undeliverable_recipient AS r
        WHERE md5(r.refusal) = md5(newest.refusal) AND r.refusal IS NOT NULL AND r.route IS NOT DISTINCT FROM newest.route
        ORDER BY r.finished_at DESC
        LIMIT refused_alike.most
    ) AS alike;
    IF newest.route IS NULL THEN
        SELECT d.finished_at INTO sent_at
        FROM duepost.delivery AS d
        WHERE d.finished_at >= since AND d.outcome = 'sent' AND d.route IS NULL
        ORDER BY d.finished_at DESC
        LIMIT 1;
    ELSE
        SELECT d.finished_at INTO sent_at
        FROM duepost.delivery AS d
        WHERE d.finished_at >= since AND d.outcome = 'sent' AND d.route = newest.route AND d.route IS NOT NULL
        ORDER BY d.finished_at DESC
        LIMIT 1;
    END IF;
    RETURN QUERY
    -- A message's recipient is its endpoint: each message counts as one of the same domain.
    SELECT r.email_id, coalesce(r.address, r.email_id || '@endpoint'), r.refusal
    FROM duepost.undeliverable_recipient AS r
    WHERE md5(r.refusal) = md5(newest.refusal) AND r.refusal IS NOT NULL AND r.route IS NOT DISTINCT FROM newest.route
      AND r.finished_at >= since AND (sent_at IS NULL OR r.finished_at > sent_at)
    ORDER BY r.finished_at DESC
    LIMIT refused_alike.most;
END
$$;
COMMENT ON FUNCTION duepost.refused_alike IS
    'The recipients whom the same route has refused last with the same reply as one of this email, accepting nobody since.';

CREATE OR REPLACE FUNCTION duepost.forget_undeliverable(most integer DEFAULT 1000) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    gone bigint;
BEGIN
    WITH over AS MATERIALIZED (
        SELECT k.id
        FROM duepost.undeliverable_email AS k
        WHERE k.kept_until < now()
        ORDER BY k.kept_until
        LIMIT forget_undeliverable.most
        FOR UPDATE SKIP LOCKED
    )
    DELETE FROM duepost.undeliverable_email AS k USING over WHERE k.id = over.id;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;
COMMENT ON FUNCTION duepost.forget_undeliverable IS
    'Removes what has been kept for its time, at most `most` emails; gives how many.';
