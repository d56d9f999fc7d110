-- What an application calls for scheduled messages, inside its own transaction.
-- SECURITY DEFINER: a client may call these and touch nothing else; the search_path is fixed, so that nobody's table or
-- operator stands in for ours, and so is the way that backslashes are read, on which the patterns of the checks depend.

-- An endpoint that takes messages. It is not removed until the caller's transaction ends; anything else of it may change.
CREATE OR REPLACE FUNCTION duepost.open_endpoint(name text, OUT format text, OUT options jsonb, OUT error text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    found record;
BEGIN
    IF open_endpoint.name IS NULL THEN
        error := 'endpoint: must be given';
        RETURN;
    END IF;
    SELECT e.format, e.options, e.disabled_because INTO found
    FROM duepost.endpoint AS e
    WHERE e.name = open_endpoint.name
    FOR KEY SHARE;
    format := found.format;
    options := found.options;
    error := CASE
        WHEN found.format IS NULL THEN coalesce(
            duepost.line_error('endpoint', open_endpoint.name, 100),
            pg_catalog.format('endpoint: there is none called %s: an operator registers one with set_endpoint()', open_endpoint.name)
        )
        WHEN found.disabled_because IS NOT NULL
            THEN pg_catalog.format('endpoint: is disabled (%s)', found.disabled_because)
    END;
END
$$;

CREATE OR REPLACE FUNCTION duepost.message_error(message duepost.new_message, format text, options jsonb) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        CASE WHEN message.users IS NOT NULL THEN duepost.users_error(message.users) END,
        duepost.times_error(message.scheduled_at, message.expires_at),
        duepost.payload_error(message.payload, format, options),
        duepost.key_error(message.key)
    )
$$;

-- What a key stands for: all but the times, as of an email; one that has been added since counts only where it is given.
CREATE OR REPLACE FUNCTION duepost.message_digest(message duepost.new_message) RETURNS bytea
LANGUAGE sql STABLE AS $$
    SELECT sha256(convert_to((jsonb_build_object('channel', 'message') || (
        jsonb_strip_nulls(to_jsonb(message) - '{payload,users,key,scheduled_at,expires_at}'::text[])
    ) || jsonb_build_object(
        'payload', message.payload,
        'users', ARRAY(SELECT DISTINCT u FROM unnest(message.users) AS u ORDER BY u)
    ))::text, 'UTF8'))
$$;

-- Checks all, then stores all: returns their ids in their order. An error names the place of its message among many, from 0.
CREATE OR REPLACE FUNCTION duepost.store_messages(given duepost.new_message[], are_many boolean) RETURNS bigint[]
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
    message  duepost.new_message;
    endpoint record;
    last     text;
    error    text;
    ids      bigint[] := '{}';
    taken    bigint[];
BEGIN
    -- In the order of their names, before anything else is locked.
    PERFORM FROM duepost.endpoint AS e
    WHERE e.name = ANY (ARRAY(SELECT g.endpoint FROM unnest(given) AS g)) ORDER BY e.name FOR KEY SHARE;
    FOREACH message IN ARRAY given LOOP
        error := duepost.kind_error(message.kind);
        IF error IS NULL AND (last IS NULL OR message.endpoint IS DISTINCT FROM last) THEN
            endpoint := duepost.open_endpoint(message.endpoint);
            last := message.endpoint;
        END IF;
        IF error IS NULL THEN
            error := coalesce(endpoint.error, duepost.message_error(message, endpoint.format, endpoint.options));
        END IF;
        IF error IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = '22023',
                MESSAGE = CASE WHEN are_many THEN format('messages[%s]: ', cardinality(ids)) ELSE '' END || error;
        END IF;
        ids := ids || nextval('duepost.scheduled_email_id_seq');
    END LOOP;

    taken := ids;
    IF EXISTS (SELECT FROM unnest(given) AS g WHERE g.key IS NOT NULL) THEN
        taken := duepost.take_keys(
            ids,
            ARRAY(SELECT g.key FROM unnest(given) AS g),
            ARRAY(SELECT CASE WHEN g.key IS NOT NULL THEN duepost.message_digest(g) END FROM unnest(given) AS g),
            CASE WHEN are_many THEN 'messages' END
        );
    END IF;

    INSERT INTO duepost.item (id, channel, kind, route, scheduled_at, due_at, expires_at, key, priority)
    SELECT ids[g.ordinality], 'message', g.kind, 'endpoint:' || g.endpoint, moment.scheduled_at, moment.scheduled_at,
           duepost.expiry(g.expires_at, moment.scheduled_at, k.expire_after), g.key,
           CASE k.priority WHEN 'urgent' THEN -1 WHEN 'bulk' THEN 1 ELSE 0 END
    FROM unnest(given) WITH ORDINALITY AS g
    CROSS JOIN LATERAL coalesce(g.scheduled_at, now()) AS moment (scheduled_at)
    LEFT JOIN duepost.kind AS k ON k.kind = g.kind
    WHERE taken[g.ordinality] = ids[g.ordinality];

    INSERT INTO duepost.message (item_id, endpoint, wire_id, payload)
    SELECT ids[g.ordinality], g.endpoint, concat('msg_', c.installation, '_', ids[g.ordinality]), g.payload
    FROM duepost.control AS c
    CROSS JOIN unnest(given) WITH ORDINALITY AS g
    WHERE taken[g.ordinality] = ids[g.ordinality];

    INSERT INTO duepost.scheduled_email_user (email_id, user_id)
    SELECT DISTINCT ids[g.ordinality], u
    FROM unnest(given) WITH ORDINALITY AS g
    CROSS JOIN unnest(g.users) AS u
    WHERE taken[g.ordinality] = ids[g.ordinality]
    ORDER BY 1, 2;
    RETURN taken;
END
$$;

CREATE OR REPLACE FUNCTION duepost.schedule_message(
    kind         text,
    endpoint     text,
    payload      jsonb,
    scheduled_at timestamptz DEFAULT now(),
    users        text[] DEFAULT NULL,
    key          text DEFAULT NULL,
    expires_at   timestamptz DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    message duepost.new_message;
BEGIN
    -- Until this transaction ends, the type does not grow. Assigned, and not cast: it may have grown by now.
    LOCK TABLE duepost.migration IN ACCESS SHARE MODE;
    message := ROW(kind, endpoint, payload, scheduled_at, users, key, expires_at);
    RETURN (duepost.store_messages(ARRAY[message], are_many => false))[1];
END
$$;
COMMENT ON FUNCTION duepost.schedule_message IS
    'Schedules one message to an endpoint in the caller''s transaction and returns its id. A bad argument raises 22023 and '
    'stores nothing; a key that is used already returns the first id, or raises 23505 if the content differs (times are not '
    'content).';

CREATE OR REPLACE FUNCTION duepost.schedule_messages(messages jsonb) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    -- Until this transaction ends, the type does not grow.
    LOCK TABLE duepost.migration IN ACCESS SHARE MODE;
    PERFORM duepost.check_list('messages', messages, 'schedule_message');
    RETURN QUERY SELECT unnest(duepost.store_messages(
        ARRAY(SELECT message FROM jsonb_populate_recordset(NULL::duepost.new_message, messages) AS message),
        are_many => true
    ));
END
$$;
COMMENT ON FUNCTION duepost.schedule_messages IS
    'Schedules many messages, or none: a JSON array of objects with the arguments of schedule_message() as keys. Gives their '
    'ids in the order of the array. What is wrong raises 22023 or 23505, and is named with its place, from 0.';

-- The item's lock makes an edit that races the delivery either effective or too late, never half.
CREATE OR REPLACE FUNCTION duepost.edit_message(id bigint, payload jsonb) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    message record;
    error   text;
BEGIN
    PERFORM duepost.check_id('id', edit_message.id, 'message');
    -- What no format takes is wrong whatever became of the message.
    error := duepost.payload_error(edit_message.payload, 'function', '{}');
    IF error IS NULL THEN
        PERFORM FROM duepost.item AS i
        WHERE i.id = edit_message.id AND i.channel = 'message' AND NOT i.is_held AND i.unknowns = 0
        FOR UPDATE;
        IF NOT FOUND OR duepost.is_in_hand(edit_message.id) THEN
            RETURN 'too_late';
        END IF;
        SELECT m.may_have_arrived, e.format, e.options INTO message
        FROM duepost.message AS m
        LEFT JOIN duepost.endpoint AS e ON e.name = m.endpoint
        WHERE m.item_id = edit_message.id;
        IF message.may_have_arrived IS NOT FALSE THEN
            RETURN 'too_late';
        END IF;
        error := duepost.payload_error(edit_message.payload, coalesce(message.format, 'function'), message.options);
    END IF;
    IF error IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = error;
    END IF;
    -- Of a batch it is no more: what is added from now on is in another message.
    DELETE FROM duepost.batch AS b WHERE b.email_id = edit_message.id;
    UPDATE duepost.message AS m
    SET payload = edit_message.payload, edited_at = now(), batch = NULL
    WHERE m.item_id = edit_message.id;
    RETURN 'edited';
END
$$;
COMMENT ON FUNCTION duepost.edit_message IS
    'Gives a message another payload: edited, or too_late (it is being sent, may have arrived, is finished or unknown). A bad '
    'payload raises 22023.';

CREATE OR REPLACE FUNCTION duepost.clear_scheduled_messages(users text[], kind text DEFAULT NULL)
RETURNS TABLE (id bigint, receipt text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    RETURN QUERY SELECT c.id, c.receipt FROM duepost.clear_users(users, kind, 'message') AS c;
END
$$;
COMMENT ON FUNCTION duepost.clear_scheduled_messages IS
    'Takes these users off their scheduled messages (of one kind, or all), with a receipt for each, as '
    'clear_scheduled_emails() does. Locks rows by ascending id.';

CREATE OR REPLACE FUNCTION duepost.clear_scheduled_message(id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    RETURN duepost.clear_item(id, 'message', 'id');
END
$$;
COMMENT ON FUNCTION duepost.clear_scheduled_message IS
    'Clears one message: cleared (it is never sent), or too_late (it is being sent, finished or unknown, or may have arrived).';

CREATE OR REPLACE FUNCTION duepost.reschedule_message(id bigint, scheduled_at timestamptz) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    RETURN duepost.reschedule_item(id, scheduled_at, 'message', 'id');
END
$$;
COMMENT ON FUNCTION duepost.reschedule_message IS
    'Moves one message to another time: rescheduled, or too_late (it is being sent, finished or unknown).';

-- Of an item that has several recipients the outcome of the luckiest: sent, if one of them has it.
CREATE OR REPLACE FUNCTION duepost.find_status(wanted bigint, wanted_key text)
RETURNS TABLE (
    id bigint, channel text, kind text, state text, outcome text, scheduled_at timestamptz, due_at timestamptz,
    finished_at timestamptz, attempts integer
)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    IF (wanted IS NULL) = (wanted_key IS NULL) THEN
        PERFORM duepost.raise_bad_argument('id', 'give either id or key');
    END IF;
    IF wanted IS NULL THEN
        SELECT k.email_id INTO wanted FROM duepost.email_key AS k WHERE k.key = wanted_key;
    END IF;
    RETURN QUERY
    SELECT i.id, i.channel, i.kind,
           CASE
               WHEN EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id) THEN 'sending'
               WHEN i.is_held THEN 'unknown'
               WHEN EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id) THEN 'queued'
               ELSE 'scheduled'
           END,
           NULL::text, i.scheduled_at, i.due_at, NULL::timestamptz, i.attempts
    FROM duepost.item AS i
    WHERE i.id = wanted;
    IF NOT FOUND THEN
        RETURN QUERY
        SELECT d.email_id, d.channel, d.kind, 'finished'::text, d.outcome, d.scheduled_at, NULL::timestamptz, d.finished_at,
               d.attempts
        FROM duepost.delivery AS d
        WHERE d.email_id = wanted
        ORDER BY d.finished_at DESC, array_position(ARRAY['sent', 'undeliverable', 'expired', 'obsolete', 'cleared'], d.outcome)
        LIMIT 1;
    END IF;
END
$$;

-- In SQL, as there what is given and what is returned may have one name.
CREATE OR REPLACE FUNCTION duepost.status(id bigint DEFAULT NULL, key text DEFAULT NULL)
RETURNS TABLE (
    id bigint, channel text, kind text, state text, outcome text, scheduled_at timestamptz, due_at timestamptz,
    finished_at timestamptz, attempts integer
)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
    SELECT s.id, s.channel, s.kind, s.state, s.outcome, s.scheduled_at, s.due_at, s.finished_at, s.attempts
    FROM duepost.find_status($1, $2) AS s
$$;
COMMENT ON FUNCTION duepost.status IS
    'Where an email or a message stands, by its id or its key: one row, or none where nothing is known of it. Its state is '
    'scheduled, queued, sending, unknown or finished; a finished one has an outcome.';
