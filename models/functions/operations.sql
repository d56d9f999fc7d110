-- What operators do: each action is a row of duepost.operator_action before anything is done, and there is no other way to do
-- it. SECURITY DEFINER: a member of duepost_operator calls these and touches no table. Items are locked one by one, by
-- ascending id; what one of them fails of is its own.

CREATE OR REPLACE FUNCTION duepost.begin_action(
    action text, by_whom text, via text, reason text DEFAULT NULL, asked jsonb DEFAULT '{}', token text DEFAULT NULL,
    OUT id bigint, OUT is_new boolean
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    error text;
BEGIN
    IF coalesce(action, '') NOT IN (
        'clear', 'reschedule', 'retry', 'resolve_sent', 'resolve_resend', 'resolve_drop', 'reopen', 'pause', 'resume', 'probe',
        'forget', 'after_restore', 'reveal', 'suppress', 'unsuppress', 'unsubscribe', 'resubscribe', 'send_test',
        'set_rate', 'remove_rate', 'set_priority'
    ) THEN
        PERFORM duepost.raise_bad_argument('action', 'there is no such action');
    END IF;
    IF coalesce(duepost.trimmed(by_whom), '') = '' THEN
        PERFORM duepost.raise_bad_argument('by_whom', 'must say who acts');
    END IF;
    error := coalesce(
        duepost.line_error('by_whom', by_whom, 200), duepost.line_error('via', via, 40),
        duepost.line_error('reason', reason, 1000), duepost.line_error('token', token, 200)
    );
    IF error IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = error;
    END IF;
    IF jsonb_typeof(asked) IS DISTINCT FROM 'object' OR octet_length(asked::text) > 1048576 THEN
        PERFORM duepost.raise_bad_argument('asked', 'must be a JSON object of at most 1 MiB');
    END IF;
    INSERT INTO duepost.operator_action AS a (action, by_whom, via, reason, asked, token)
    VALUES (
        begin_action.action, begin_action.by_whom, coalesce(begin_action.via, 'sql'), begin_action.reason, begin_action.asked,
        begin_action.token
    )
    ON CONFLICT ON CONSTRAINT operator_action_token_key DO NOTHING
    RETURNING a.id INTO id;
    is_new := id IS NOT NULL;
    IF NOT is_new THEN
        SELECT a.id INTO id FROM duepost.operator_action AS a WHERE a.token = begin_action.token;
    END IF;
END
$$;
COMMENT ON FUNCTION duepost.begin_action IS
    'Notes that an operator acts: who, where (command, console, sql), why, and on what. Gives the action''s id, which what is '
    'done is called with; of a token that is known the id of the action that it was given for, which is not new.';

-- Why nothing can be done to an item that is not as the action expects it.
CREATE OR REPLACE FUNCTION duepost.standing(id bigint) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = $1) THEN 'sending'
        WHEN EXISTS (SELECT FROM duepost.item AS i WHERE i.id = $1 AND i.is_held) THEN 'unknown'
        WHEN EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = $1) THEN 'queued'
        WHEN EXISTS (SELECT FROM duepost.item AS i WHERE i.id = $1 AND i.unknowns > 0) THEN 'may_have_arrived'
        WHEN EXISTS (SELECT FROM duepost.item AS i WHERE i.id = $1) THEN 'scheduled'
        WHEN EXISTS (SELECT FROM duepost.delivery AS d WHERE d.email_id = $1) THEN 'finished'
        ELSE 'not_found'
    END
$$;

-- Due at once. A Date that no attempt has used yet is not left in the future.
CREATE OR REPLACE FUNCTION duepost.retry_item(id bigint) RETURNS text
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM duepost.item AS i WHERE i.id = retry_item.id AND NOT i.is_held FOR UPDATE;
    IF NOT FOUND OR duepost.is_in_hand(retry_item.id)
        OR EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = retry_item.id)
    THEN
        RETURN duepost.standing(retry_item.id);
    END IF;
    UPDATE duepost.email AS e SET date_header = now()
    FROM duepost.item AS i
    WHERE e.item_id = retry_item.id AND i.id = retry_item.id AND i.attempts = 0 AND e.date_header > now();
    UPDATE duepost.item AS i SET due_at = now() WHERE i.id = retry_item.id;
    RETURN 'done';
END
$$;

-- What waits for a person, or is to be sent once more after nobody knew whether it arrived.
CREATE OR REPLACE FUNCTION duepost.resolve_item(id bigint, resolution text) RETURNS text
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    item     record;
    is_whole boolean;
    decided  CONSTANT text := CASE resolution WHEN 'sent' THEN 'sent' WHEN 'drop' THEN 'cleared' END;
    said     CONSTANT text := CASE resolution WHEN 'sent' THEN 'resolved by an operator' ELSE 'dropped by an operator' END;
BEGIN
    SELECT i.is_held, i.unknowns INTO item FROM duepost.item AS i WHERE i.id = resolve_item.id FOR UPDATE;
    IF NOT FOUND OR NOT (item.is_held OR (
        item.unknowns > 0 AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = resolve_item.id)
        AND NOT duepost.is_in_hand(resolve_item.id)
    )) THEN
        RETURN duepost.standing(resolve_item.id);
    END IF;
    IF decided IS NOT NULL THEN
        is_whole := EXISTS (SELECT FROM duepost.message AS m WHERE m.item_id = resolve_item.id)
            OR EXISTS (SELECT FROM duepost.email AS e WHERE e.item_id = resolve_item.id AND e.address IS NOT NULL);
        IF is_whole THEN
            PERFORM duepost.finish(resolve_item.id, decided, said);
            RETURN 'done';
        END IF;
        -- It arrived: for those of whom nobody knew. Nobody is to get it: for all who have no outcome yet.
        UPDATE duepost.scheduled_email_user AS u
        SET outcome = decided, unknown = false, reply = said,
            address = coalesce(u.address, CASE resolution WHEN 'sent' THEN duepost.address_of(u.user_id) END)
        WHERE u.email_id = resolve_item.id AND u.outcome IS NULL AND (
            resolution = 'drop' OR u.unknown OR NOT EXISTS (
                SELECT FROM duepost.scheduled_email_user AS other
                WHERE other.email_id = resolve_item.id AND other.unknown AND other.outcome IS NULL
            )
        );
        UPDATE duepost.email_recipient AS r
        SET outcome = decided, unknown = false, reply = said
        WHERE r.email_id = resolve_item.id AND r.outcome IS NULL AND NOT r.in_ledger AND (
            resolution = 'drop' OR r.unknown OR NOT EXISTS (
                SELECT FROM duepost.email_recipient AS other
                WHERE other.email_id = resolve_item.id AND other.unknown AND other.outcome IS NULL
            )
        );
        IF NOT EXISTS (
            SELECT FROM duepost.scheduled_email_user AS u WHERE u.email_id = resolve_item.id AND u.outcome IS NULL
        ) AND NOT EXISTS (
            SELECT FROM duepost.email_recipient AS r
            WHERE r.email_id = resolve_item.id AND r.outcome IS NULL AND NOT r.in_ledger
        ) THEN
            PERFORM duepost.finish(resolve_item.id, NULL, NULL);
            RETURN 'done';
        END IF;
    END IF;
    UPDATE duepost.item AS i SET is_held = false, due_at = now() WHERE i.id = resolve_item.id;
    RETURN 'done';
END
$$;

-- What duepost.recipient says; NULL where it fails: it may be a team's own view, and not ours to read.
CREATE OR REPLACE FUNCTION duepost.address_of(wanted text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT left(r.address::text, 2001) FROM duepost.recipient AS r WHERE r.user_id::text = wanted LIMIT 1);
EXCEPTION
    WHEN query_canceled THEN RAISE;
    WHEN OTHERS THEN RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION duepost.act_on_item(id bigint, action text, asked jsonb) RETURNS text
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    item_channel text;
    receipt      text;
BEGIN
    IF action = 'reopen' THEN
        receipt := duepost.reopen_email(act_on_item.id);
        RETURN CASE receipt WHEN 'reopened' THEN 'done' ELSE receipt END;
    END IF;
    SELECT i.channel INTO item_channel FROM duepost.item AS i WHERE i.id = act_on_item.id FOR UPDATE;
    IF NOT FOUND THEN
        RETURN duepost.standing(act_on_item.id);
    END IF;
    -- Somebody else's order was first, and what it led to is not in what this one was given for.
    IF asked ? 'as_of' AND EXISTS (
        SELECT FROM duepost.attempt AS a
        WHERE a.email_id = act_on_item.id AND a.finished_at > (asked ->> 'as_of')::timestamptz
    ) THEN
        RETURN 'tried_since';
    END IF;
    IF action = 'retry' THEN
        RETURN duepost.retry_item(act_on_item.id);
    ELSIF action LIKE 'resolve%' THEN
        RETURN duepost.resolve_item(act_on_item.id, substr(action, 9));
    ELSIF action = 'clear' THEN
        receipt := duepost.clear_item(act_on_item.id, item_channel, 'id');
    ELSE
        receipt := duepost.reschedule_item(
            act_on_item.id, (asked ->> 'scheduled_at')::timestamptz, item_channel, 'id'
        );
    END IF;
    RETURN CASE WHEN receipt = 'too_late' THEN duepost.standing(act_on_item.id) ELSE 'done' END;
END
$$;

CREATE OR REPLACE FUNCTION duepost.act_on_items(action_id bigint, ids bigint[]) RETURNS TABLE (id bigint, receipt text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    given  record;
    number bigint := 0;
    others jsonb := '{}';
BEGIN
    IF cardinality(ids) > 1000 THEN
        PERFORM duepost.raise_bad_argument('ids', 'must be at most 1000 at once');
    END IF;
    SELECT a.action, a.asked, a.skipped INTO given
    FROM duepost.operator_action AS a
    WHERE a.id = act_on_items.action_id AND a.ended_at IS NULL AND a.action IN (
        'clear', 'reschedule', 'retry', 'resolve_sent', 'resolve_resend', 'resolve_drop', 'reopen'
    );
    IF given.action IS NULL THEN
        PERFORM duepost.raise_bad_argument('action_id', 'no such action on items is under way');
    END IF;
    FOR id IN SELECT DISTINCT wanted FROM unnest(act_on_items.ids) AS wanted WHERE wanted IS NOT NULL ORDER BY wanted LOOP
        BEGIN
            receipt := duepost.act_on_item(id, given.action, given.asked);
        EXCEPTION
            WHEN query_canceled OR admin_shutdown THEN RAISE;
            WHEN lock_not_available THEN receipt := 'locked';
            WHEN invalid_parameter_value THEN receipt := 'refused';
            WHEN OTHERS THEN receipt := 'failed';
        END;
        IF receipt = 'done' THEN
            number := number + 1;
        ELSE
            others := others || jsonb_build_object(receipt, coalesce((others ->> receipt)::bigint, 0) + 1);
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM duepost.add_to_action(action_id, number, others);
END
$$;
COMMENT ON FUNCTION duepost.act_on_items IS
    'Does an action to these items, at most 1000 at once, in one transaction: locks them one by one by ascending id. A receipt '
    'for each: done, or why nothing was done to it (finished, sending, queued, scheduled, unknown, may_have_arrived, not_found, '
    'tried_since, locked, refused, failed; of reopen expired, not_kept, not_undeliverable, too_late).';

CREATE OR REPLACE FUNCTION duepost.add_to_action(action_id bigint, number bigint, others jsonb) RETURNS void
LANGUAGE sql AS $$
    UPDATE duepost.operator_action AS a
    SET done = a.done + $2,
        skipped = a.skipped || coalesce((
            SELECT jsonb_object_agg(o.key, o.value::bigint + coalesce((a.skipped ->> o.key)::bigint, 0))
            FROM jsonb_each_text($3) AS o
        ), '{}')
    WHERE a.id = $1
$$;

CREATE OR REPLACE FUNCTION duepost.end_action(action_id bigint, gone bigint DEFAULT 0) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    IF gone > 0 THEN
        PERFORM duepost.add_to_action(end_action.action_id, 0, jsonb_build_object('changed_since', gone));
    END IF;
    UPDATE duepost.operator_action AS a SET ended_at = now() WHERE a.id = end_action.action_id AND a.ended_at IS NULL;
END
$$;
COMMENT ON FUNCTION duepost.end_action IS
    'An action is over. `gone` is how many items fitted when somebody looked, and fitted no more when the action began.';

CREATE OR REPLACE FUNCTION duepost.end_action_with(action_id bigint, number bigint, otherwise text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM duepost.add_to_action(
        action_id, number, CASE number WHEN 0 THEN jsonb_build_object(otherwise, 1) ELSE '{}' END
    );
    PERFORM duepost.end_action(action_id);
END
$$;
COMMENT ON FUNCTION duepost.end_action_with IS
    'An action is over that was done to a number of things at once; where that is none, `otherwise` says why.';

-- Pauses ---------------------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION duepost.is_kind_paused(kind text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM duepost.kind AS k WHERE k.kind = is_kind_paused.kind AND k.paused_at IS NOT NULL);
END
$$;
COMMENT ON FUNCTION duepost.is_kind_paused IS 'Whether an operator has paused a kind: nothing of it is enqueued or claimed.';

CREATE OR REPLACE FUNCTION duepost.is_stopped(way text, route text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM duepost.route AS r WHERE r.name IN (is_stopped.way, is_stopped.route) AND r.stopped_at IS NOT NULL
    );
END
$$;
COMMENT ON FUNCTION duepost.is_stopped IS 'Whether an operator has paused the route of an item, or the way by which it would leave.';

-- What is due of a paused kind is moved off its route's line, so that the scheduler does not step over it with each pass; what
-- comes before its route's name says where it belongs. The lock of the kind's row keeps a resume waiting until it is done.
CREATE OR REPLACE FUNCTION duepost.park_paused(ids bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    paused text[];
BEGIN
    paused := ARRAY(
        SELECT locked.kind
        FROM (SELECT k.kind FROM duepost.kind AS k WHERE k.paused_at IS NOT NULL ORDER BY k.kind FOR SHARE) AS locked
    );
    IF paused = '{}' THEN
        RETURN;
    END IF;
    WITH item AS MATERIALIZED (
        SELECT i.id
        FROM duepost.item AS i
        WHERE i.id = ANY (park_paused.ids) AND i.kind = ANY (paused) AND NOT i.is_held AND strpos(i.route, 'paused:') <> 1
          AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
        ORDER BY i.id
        FOR UPDATE SKIP LOCKED
    )
    UPDATE duepost.item AS i SET route = 'paused:' || i.route, probe = false
    FROM item
    WHERE i.id = ANY (park_paused.ids) AND i.id = item.id;
END
$$;
COMMENT ON FUNCTION duepost.park_paused IS 'Moves those of these items off their routes whose kind is paused.';

CREATE OR REPLACE FUNCTION duepost.unpark(most integer DEFAULT 1000) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    parked record;
    number bigint;
BEGIN
    IF (most > 0) IS NOT TRUE THEN
        PERFORM duepost.raise_bad_argument('most', 'must be at least 1');
    END IF;
    FOR parked IN SELECT l.route, l.priority FROM duepost.pending_lines() AS l WHERE strpos(l.route, 'paused:') = 1 LOOP
        WITH item AS MATERIALIZED (
            SELECT i.id
            FROM duepost.item AS i
            WHERE i.route = parked.route AND i.priority = parked.priority AND NOT i.is_held
              AND NOT EXISTS (SELECT FROM duepost.kind AS k WHERE k.kind = i.kind AND k.paused_at IS NOT NULL)
            ORDER BY i.due_at, i.id
            LIMIT unpark.most
            FOR UPDATE SKIP LOCKED
        )
        UPDATE duepost.item AS i SET route = substr(i.route, 8)
        FROM item
        WHERE i.id = ANY (ARRAY(SELECT each.id FROM item AS each)) AND i.id = item.id;
        GET DIAGNOSTICS number = ROW_COUNT;
        IF number > 0 THEN
            RETURN number;
        END IF;
    END LOOP;
    RETURN 0;
END
$$;
COMMENT ON FUNCTION duepost.unpark IS
    'Moves items whose kind is not paused any more back to their routes, at most `most`; gives how many: call it until it gives 0.';

CREATE OR REPLACE FUNCTION duepost.set_pause(
    scope text, name text, is_on boolean, by_whom text, via text, reason text DEFAULT NULL, token text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    action  record;
    changed boolean;
BEGIN
    IF coalesce(scope, '') NOT IN ('all', 'kind', 'route') OR (scope = 'all') <> (name IS NULL) THEN
        PERFORM duepost.raise_bad_argument('scope', 'must be all, or kind or route with a name');
    END IF;
    IF is_on IS NULL THEN
        PERFORM duepost.raise_bad_argument('is_on', 'must be true or false');
    END IF;
    IF scope = 'route' AND NOT EXISTS (SELECT FROM duepost.route AS r WHERE r.name = set_pause.name) THEN
        PERFORM duepost.raise_bad_argument('name', 'there is no such route');
    END IF;
    IF scope = 'kind' AND (name = '' OR duepost.line_error('name', name, 255) IS NOT NULL) THEN
        PERFORM duepost.raise_bad_argument('name', 'must be a kind');
    END IF;
    action := duepost.begin_action(
        CASE WHEN is_on THEN 'pause' ELSE 'resume' END, by_whom, via, reason,
        CASE WHEN scope = 'all' THEN '{}'::jsonb ELSE jsonb_build_object(scope, name) END, token
    );
    IF NOT action.is_new THEN
        RETURN 'repeated';
    END IF;
    IF scope = 'all' THEN
        UPDATE duepost.control AS c
        SET paused = is_on, paused_at = CASE WHEN is_on THEN now() END, paused_by = CASE WHEN is_on THEN set_pause.by_whom END,
            pause_reason = CASE WHEN is_on THEN set_pause.reason END
        WHERE c.paused <> is_on;
    ELSIF scope = 'route' THEN
        UPDATE duepost.route AS r
        SET stopped_at = CASE WHEN is_on THEN now() END, stopped_by = CASE WHEN is_on THEN set_pause.by_whom END,
            stop_reason = CASE WHEN is_on THEN set_pause.reason END
        WHERE r.name = set_pause.name AND (r.stopped_at IS NOT NULL) <> is_on;
    ELSE
        IF is_on THEN
            INSERT INTO duepost.kind (kind) VALUES (set_pause.name) ON CONFLICT DO NOTHING;
        END IF;
        UPDATE duepost.kind AS k
        SET paused_at = CASE WHEN is_on THEN now() END, paused_by = CASE WHEN is_on THEN set_pause.by_whom END,
            pause_reason = CASE WHEN is_on THEN set_pause.reason END
        WHERE k.kind = set_pause.name AND (k.paused_at IS NOT NULL) <> is_on;
    END IF;
    changed := FOUND;
    PERFORM duepost.end_action_with(action.id, changed::integer, 'already');
    RETURN CASE WHEN NOT changed THEN 'already' WHEN is_on THEN 'paused' ELSE 'resumed' END;
END
$$;
COMMENT ON FUNCTION duepost.set_pause IS
    'Pauses everything (scope all), a kind or a route, or lets it go on: nothing is enqueued or claimed; scheduling and clearing '
    'go on, and what is being sent is finished. paused, resumed, already (it was so) or repeated (its token is known). After a '
    'kind''s resume call unpark() until it gives 0.';

CREATE OR REPLACE FUNCTION duepost.request_probe(
    route text, by_whom text, via text, reason text DEFAULT NULL, token text DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    action record;
    number integer;
BEGIN
    IF route IS NOT NULL AND NOT EXISTS (SELECT FROM duepost.route AS r WHERE r.name = request_probe.route) THEN
        PERFORM duepost.raise_bad_argument('route', 'there is no such route');
    END IF;
    action := duepost.begin_action(
        'probe', by_whom, via, reason, CASE WHEN route IS NULL THEN '{}'::jsonb ELSE jsonb_build_object('route', route) END, token
    );
    IF NOT action.is_new THEN
        RETURN 0;
    END IF;
    UPDATE duepost.route AS r
    SET probe_at = now()
    WHERE r.circuit_open AND (request_probe.route IS NULL OR r.name = request_probe.route);
    GET DIAGNOSTICS number = ROW_COUNT;
    PERFORM duepost.end_action_with(action.id, number, 'circuit_closed');
    RETURN number;
END
$$;
COMMENT ON FUNCTION duepost.request_probe IS
    'The next probe of an open circuit is due at once: of a route, or of all; gives of how many.';

-- Priorities ---------------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION duepost.set_priority(
    kind text, priority text, by_whom text, via text, reason text DEFAULT NULL, token text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    action  record;
    changed boolean;
BEGIN
    IF coalesce(set_priority.kind, '') = '' OR duepost.line_error('kind', set_priority.kind, 255) IS NOT NULL THEN
        PERFORM duepost.raise_bad_argument('kind', 'must be a kind');
    END IF;
    IF coalesce(set_priority.priority, '') NOT IN ('urgent', 'normal', 'bulk') THEN
        PERFORM duepost.raise_bad_argument('priority', 'must be urgent, normal or bulk');
    END IF;
    action := duepost.begin_action(
        'set_priority', by_whom, via, reason,
        jsonb_build_object('kind', set_priority.kind, 'priority', set_priority.priority), token
    );
    IF NOT action.is_new THEN
        RETURN 'repeated';
    END IF;
    INSERT INTO duepost.kind (kind) VALUES (set_priority.kind) ON CONFLICT DO NOTHING;
    UPDATE duepost.kind AS k SET priority = set_priority.priority
    WHERE k.kind = set_priority.kind AND coalesce(k.priority, 'normal') <> set_priority.priority;
    changed := FOUND;
    PERFORM duepost.end_action_with(action.id, changed::integer, 'already');
    RETURN CASE WHEN changed THEN 'set' ELSE 'already' END;
END
$$;
COMMENT ON FUNCTION duepost.set_priority IS
    'Sets the priority of a kind: set, already (it was so) or repeated (its token is known). What is scheduled from now on has it; for '
    'what is pending call follow_priority() until it gives NULL.';

-- A page of what is pending, by id: no index leads from a kind to its items, and this is asked once.
CREATE OR REPLACE FUNCTION duepost.follow_priority(
    kind text, after_id bigint DEFAULT 0, most integer DEFAULT 10000, OUT last_id bigint, OUT moved integer
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    wanted smallint;
    ids    bigint[];
BEGIN
    IF (most > 0) IS NOT TRUE THEN
        PERFORM duepost.raise_bad_argument('most', 'must be at least 1');
    END IF;
    wanted := coalesce((
        SELECT CASE k.priority WHEN 'urgent' THEN -1 WHEN 'bulk' THEN 1 ELSE 0 END
        FROM duepost.kind AS k WHERE k.kind = follow_priority.kind
    ), 0);
    SELECT max(page.id), array_agg(page.id ORDER BY page.id) FILTER (WHERE page.is_other)
    INTO last_id, ids
    FROM (
        SELECT i.id, i.kind = follow_priority.kind AND i.own_priority IS NULL AND i.priority <> wanted AS is_other
        FROM duepost.item AS i
        WHERE i.id > follow_priority.after_id
        ORDER BY i.id
        LIMIT most
    ) AS page;
    -- Who holds one is sending, or changing, it: it is not waited for.
    WITH item AS MATERIALIZED (
        SELECT i.id FROM duepost.item AS i WHERE i.id = ANY (ids) ORDER BY i.id FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE duepost.item AS i SET priority = wanted FROM item WHERE i.id = ANY (ids) AND i.id = item.id;
    GET DIAGNOSTICS moved = ROW_COUNT;
END
$$;
COMMENT ON FUNCTION duepost.follow_priority IS
    'Gives pending items of a kind that have no priority of their own that of their kind, among the next `most` items after an id; gives '
    'the last of these ids, NULL at the end, and how many were moved. What another transaction holds keeps its place.';
