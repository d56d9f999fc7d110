-- Erasing a person, and a restored backup. SECURITY DEFINER: members of duepost_operator call what is about a person; what is
-- about a restore is the owner's.

-- A batch of what is kept of a person; called until it gives nothing any more. What is pending to them alone is cleared first;
-- what is being sent, or waits for a person, is left until that is over. Rows of the ledger and of the journal stay, and count,
-- without whom they were about; so do keys, so that nothing is scheduled twice.
CREATE OR REPLACE FUNCTION duepost.forget_some(
    action_id bigint, address text DEFAULT NULL, user_id text DEFAULT NULL, most integer DEFAULT 1000
) RETURNS TABLE (what text, number bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    mailbox CONSTANT text := duepost.mailbox_key(duepost.mailbox_address(forget_some.address));
    total   bigint := 0;
BEGIN
    PERFORM FROM duepost.operator_action AS a
    WHERE a.id = forget_some.action_id AND a.action = 'forget' AND a.ended_at IS NULL;
    IF NOT FOUND THEN
        PERFORM duepost.raise_bad_argument('action_id', 'no such action is under way');
    END IF;
    IF (forget_some.most > 0) IS NOT TRUE THEN
        PERFORM duepost.raise_bad_argument('most', 'must be at least 1');
    END IF;
    IF (forget_some.address IS NULL) = (forget_some.user_id IS NULL) OR mailbox = '' THEN
        PERFORM duepost.raise_bad_argument('address', 'give either an address or a user_id');
    END IF;

    what := 'cleared';
    IF mailbox IS NULL THEN
        SELECT count(*) INTO number
        FROM duepost.clear_users(ARRAY[forget_some.user_id], NULL, NULL) AS c
        WHERE c.receipt <> 'too_late';
    ELSE
        SELECT count(*) INTO number
        FROM duepost.clear_scheduled_emails_to(forget_some.address) AS c
        WHERE c.receipt <> 'too_late';
    END IF;
    total := total + number;
    RETURN NEXT;

    what := 'ledger';
    WITH found AS MATERIALIZED (
        SELECT d.tableoid, d.ctid, d.email_id, d.user_id, d.address
        FROM duepost.delivery AS d
        WHERE mailbox IS NULL AND d.user_id = forget_some.user_id AND d.user_id IS NOT NULL
        UNION ALL
        SELECT d.tableoid, d.ctid, d.email_id, d.user_id, d.address
        FROM duepost.delivery AS d
        WHERE mailbox IS NOT NULL AND duepost.mailbox_key(d.address) = mailbox AND d.address IS NOT NULL
        LIMIT forget_some.most
    ), attempt AS (
        UPDATE duepost.attempt AS a
        SET user_id = NULL, address = NULL, reply = NULL
        FROM found
        WHERE a.email_id = ANY (ARRAY(SELECT f.email_id FROM found AS f)) AND a.email_id = found.email_id
          AND a.user_id IS NOT DISTINCT FROM found.user_id
          AND (a.address IS NULL OR mailbox IS NULL OR duepost.mailbox_key(a.address) = mailbox)
    ), bounce AS (
        UPDATE duepost.bounce AS b
        SET address = NULL, reply = NULL
        FROM found
        WHERE b.email_id = found.email_id AND duepost.mailbox_key(b.address) = duepost.mailbox_key(found.address)
    ), delivery AS (
        UPDATE duepost.delivery AS d
        SET user_id = NULL, address = NULL, reply = NULL
        FROM found
        WHERE d.email_id = ANY (ARRAY(SELECT f.email_id FROM found AS f))
          AND d.tableoid = found.tableoid AND d.ctid = found.ctid
        RETURNING d.email_id
    )
    SELECT count(*) INTO number FROM delivery;
    total := total + number;
    RETURN NEXT;

    -- What is kept so that it can be reopened: its content with it, once nobody else's is left.
    what := 'kept';
    WITH gone AS (
        DELETE FROM duepost.undeliverable_recipient AS r
        WHERE (mailbox IS NULL AND r.user_id = forget_some.user_id)
           OR (mailbox IS NOT NULL AND r.address IS NOT NULL AND duepost.mailbox_key(r.address) = mailbox)
        RETURNING r.email_id, r.user_id
    )
    DELETE FROM duepost.undeliverable_email AS k
    USING gone
    WHERE k.id = gone.email_id AND NOT EXISTS (
        SELECT FROM duepost.undeliverable_recipient AS r
        WHERE r.email_id = k.id AND NOT EXISTS (
            SELECT FROM gone AS g WHERE g.email_id = r.email_id AND g.user_id IS NOT DISTINCT FROM r.user_id
        )
    );
    GET DIAGNOSTICS number = ROW_COUNT;
    total := total + number;
    RETURN NEXT;

    -- What nobody else's email needs. Twice: what the first call has seen, the second deletes.
    PERFORM duepost.drop_attachments(forget_some.most) FROM generate_series(1, 2);

    -- What was sent to them, where their kinds have that kept.
    what := 'content';
    WITH theirs AS MATERIALIZED (
        SELECT k.email_id, k.user_id, k.address FROM duepost.kept_content AS k
        WHERE mailbox IS NULL AND k.user_id = forget_some.user_id AND k.user_id IS NOT NULL
        UNION ALL
        SELECT k.email_id, k.user_id, k.address FROM duepost.kept_content AS k
        WHERE mailbox IS NOT NULL AND duepost.mailbox_key(k.address) = mailbox
    )
    -- Where several see each other, all of their copies name each of them.
    DELETE FROM duepost.kept_content AS k
    USING theirs
    WHERE k.email_id = theirs.email_id AND coalesce(k.user_id, '') = coalesce(theirs.user_id, '')
      AND (k.user_id IS NULL OR k.address = theirs.address);
    GET DIAGNOSTICS number = ROW_COUNT;
    total := total + number;
    RETURN NEXT;

    what := 'suppression';
    DELETE FROM duepost.suppression AS s WHERE s.address = mailbox;
    GET DIAGNOSTICS number = ROW_COUNT;
    total := total + number;
    RETURN NEXT;

    -- Our own table only: a team's view is the team's.
    what := 'recipient';
    number := 0;
    IF EXISTS (SELECT FROM pg_class AS c WHERE c.oid = to_regclass('duepost.recipient') AND c.relkind = 'r') THEN
        DELETE FROM duepost.recipient AS r
        WHERE (mailbox IS NULL AND r.user_id = forget_some.user_id)
           OR (mailbox IS NOT NULL AND duepost.mailbox_key(r.address::text) = mailbox);
        GET DIAGNOSTICS number = ROW_COUNT;
    END IF;
    total := total + number;
    RETURN NEXT;

    -- Orders that named the person keep who, when and why, and not whom.
    what := 'orders';
    UPDATE duepost.operator_action AS a
    SET asked = (a.asked - 'user' - 'address') || '{"forgotten": true}'
    WHERE (a.asked ->> 'user' = forget_some.user_id AND mailbox IS NULL)
       OR (a.asked ? 'address' AND duepost.mailbox_key(a.asked ->> 'address') = mailbox);
    GET DIAGNOSTICS number = ROW_COUNT;
    total := total + number;
    RETURN NEXT;
    PERFORM duepost.add_to_action(action_id, total, '{}');

    what := 'left';
    SELECT count(*) INTO number FROM (
        SELECT u.email_id FROM duepost.scheduled_email_user AS u
        WHERE mailbox IS NULL AND u.user_id = forget_some.user_id
        UNION ALL
        SELECT e.item_id FROM duepost.email AS e
        WHERE mailbox IS NOT NULL AND e.address IS NOT NULL AND duepost.mailbox_key(e.address) = mailbox
        UNION ALL
        SELECT r.email_id FROM duepost.email_recipient AS r
        WHERE mailbox IS NOT NULL AND duepost.mailbox_key(r.address) = mailbox
    ) AS pending;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION duepost.forget_some IS
    'Erases a batch of what is kept of a mailbox or of a user, for an action `forget`: clears what is pending, takes address, user '
    'and replies out of ledger and journal, deletes what is kept for a reopening and of what was sent, the suppression, and the row of our own '
    'duepost.recipient. How many of each; call it until only `left` is above 0: what is being sent, or waits for a person.';

-- A restored database knows nothing of what was sent after its backup was made. What was due by then may have been: it is held for
-- a person. Numbers go on far beyond what was given since, so that no id, claim or webhook's id is given a second time.
CREATE OR REPLACE FUNCTION duepost.hold_after_restore(
    due_by timestamptz, by_whom text, reason text DEFAULT NULL, OUT action_id bigint, OUT held bigint, OUT kept bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    IF NOT isfinite(due_by) OR due_by > now() THEN
        PERFORM duepost.raise_bad_argument('due_by', 'must not be later than now');
    END IF;
    LOCK TABLE duepost.item, duepost.in_hand IN EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM duepost.present AS p WHERE p.worker_id IS NOT NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'P0001',
            MESSAGE = 'workers are running: what they send now cannot be held any more; stop them first';
    END IF;
    action_id := (duepost.begin_action(
        'after_restore', by_whom, 'command', reason, jsonb_build_object('due_by', coalesce(due_by, now()))
    )).id;
    UPDATE duepost.item AS i
    SET is_held = true, probe = false, due_at = now(),
        route = CASE WHEN strpos(i.route, 'paused:') = 1 THEN substr(i.route, 8) ELSE i.route END,
        last_error = 'restored from a backup: it may have been sent after that was made'
    WHERE NOT i.is_held AND (
        i.due_at <= coalesce(hold_after_restore.due_by, now())
        OR EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
        OR EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id)
    );
    GET DIAGNOSTICS held = ROW_COUNT;
    DELETE FROM dramatiq.queue AS m WHERE m.key IS NOT NULL;
    DELETE FROM duepost.in_hand;
    -- What has joined a batch is in what is held; what comes now opens another one.
    PERFORM duepost.close_batch(b.email_id)
    FROM duepost.batch AS b JOIN duepost.item AS i ON i.id = b.email_id
    WHERE i.is_held;
    UPDATE duepost.worker AS w SET gone_at = coalesce(w.gone_at, now()) WHERE w.gone_at IS NULL;
    PERFORM setval('duepost.scheduled_email_id_seq', (SELECT s.last_value FROM duepost.scheduled_email_id_seq AS s) + 100000000);
    PERFORM setval('duepost.claim_number', (SELECT s.last_value FROM duepost.claim_number AS s) + 100000000);
    PERFORM setval('dramatiq.claim_number', (SELECT s.last_value FROM dramatiq.claim_number AS s) + 100000000);
    -- Ids of webhooks are made of it.
    UPDATE duepost.control AS c SET installation = left(encode(sha256(uuid_send(gen_random_uuid())), 'hex'), 16);
    kept := (SELECT count(*) FROM duepost.item AS i WHERE NOT i.is_held);
    PERFORM duepost.add_to_action(action_id, held, '{}');
    PERFORM duepost.end_action(action_id);
END
$$;
COMMENT ON FUNCTION duepost.hold_after_restore IS
    'For a database that was restored from a backup, before any worker starts: what was due by then (now, where it is NULL), '
    'queued or being sent is held, for a person to decide. What is due later stays scheduled.';
