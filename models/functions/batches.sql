-- Many events gathered into one email or message. SECURITY DEFINER, search_path and backslashes as in schedule.sql, plans as in clear.sql.
-- Locks: a message's endpoint, the item, then the row of its batch, so that a claim or a clear, which hold the item, wait for
-- nobody here. One call waits for one item, or for one row that is being inserted, and holds nothing else meanwhile.

-- The largest batch: its items, and its context with all of them, in bytes of JSON in text.
CREATE OR REPLACE FUNCTION duepost.batch_limits(OUT items integer, OUT bytes integer, OUT item_bytes integer)
LANGUAGE sql IMMUTABLE AS $$
    SELECT 10000, 1048576, 65536
$$;

CREATE OR REPLACE FUNCTION duepost.window_error(argument text, value interval) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN NOT isfinite(value) OR value < interval '0' OR value > interval '366 days'
            THEN argument || ': must be between 0 and 366 days'
    END
$$;

-- What is wrong with what add_to_batch() takes beyond the arguments of an email or a message.
CREATE OR REPLACE FUNCTION duepost.batch_error(
    batch text, item jsonb, item_key text, wait interval, longest_wait interval
) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        CASE WHEN coalesce(batch, '') = '' THEN 'batch: must not be empty' END,
        duepost.line_error('batch', batch, 512),
        CASE
            WHEN item IS NULL OR jsonb_typeof(item) = 'null' THEN 'item: must be a JSON value that is not null'
            WHEN octet_length(item::text) > (SELECT item_bytes FROM duepost.batch_limits())
                THEN format('item: must be at most %s bytes, is %s', (SELECT item_bytes FROM duepost.batch_limits()), octet_length(item::text))
            -- Two levels less than a context or a payload: it lies in the list of its items.
            WHEN jsonb_path_exists(item, 'strict $.**{99}') THEN 'item: must be at most 98 levels deep'
            WHEN jsonb_path_exists(item, 'strict $.** ? (@.type() == "number" && (@ > 1e308 || @ < -1e308))')
                THEN 'item: a number must be between -1e308 and 1e308'
            WHEN item_key = '' THEN 'item_key: must not be empty'
        END,
        duepost.line_error('item_key', item_key, 512),
        CASE WHEN wait IS NULL THEN 'wait: must not be NULL' END,
        duepost.window_error('wait', wait),
        duepost.window_error('longest_wait', longest_wait),
        CASE WHEN longest_wait < wait THEN 'longest_wait: must not be shorter than wait' END
    )
$$;

-- What of an email cannot be one of a batch.
CREATE OR REPLACE FUNCTION duepost.batch_email_error(email duepost.new_email) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        CASE
            WHEN email.template IS NULL THEN 'template: must be given: it is what shows the items'
            WHEN jsonb_typeof(email.context) = 'object' AND email.context ? 'items'
                THEN 'context: must not have the key items, which is for those of the batch'
        END,
        duepost.email_error(email)
    )
$$;

-- What of a message cannot be one of a batch, whose payload is a list; `email` has what was given that only an email takes. The
-- endpoint is not removed until the caller's transaction ends.
CREATE OR REPLACE FUNCTION duepost.batch_message_error(message duepost.new_message, email duepost.new_email) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    endpoint record;
    error    text := duepost.kind_error(message.kind);
BEGIN
    error := coalesce(error, CASE
        WHEN email.address IS NOT NULL THEN 'address: give either address or endpoint, and not both'
        WHEN email.template IS NOT NULL THEN 'template: is for emails: the payload of a message is the list of its items'
        WHEN email.context <> '{}' THEN 'context: is for emails: the payload of a message is the list of its items'
        WHEN email.sender IS NOT NULL THEN 'sender: is for emails'
        WHEN email.reply_to IS NOT NULL THEN 'reply_to: is for emails'
        WHEN email.headers IS NOT NULL THEN 'headers: is for emails'
    END);
    IF error IS NULL THEN
        endpoint := duepost.open_endpoint(message.endpoint);
        error := coalesce(
            endpoint.error,
            CASE
                WHEN endpoint.format NOT IN ('webhook', 'function')
                    THEN format('endpoint: %s takes no list of items; webhook and function do', endpoint.format)
            END,
            duepost.message_error(message, endpoint.format, endpoint.options)
        );
    END IF;
    RETURN error;
END
$$;

-- Locks what a batch's items join, and gives its id; NULL where there is none.
CREATE OR REPLACE FUNCTION duepost.lock_batch(batch text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    found_id bigint;
    is_there boolean;
BEGIN
    LOOP
        SELECT b.email_id INTO found_id FROM duepost.batch AS b WHERE b.batch = lock_batch.batch;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        PERFORM FROM duepost.item AS i WHERE i.id = found_id FOR UPDATE;
        is_there := FOUND;
        -- Asked once the item is locked: a claim or a clear may have closed the batch until now.
        PERFORM FROM duepost.batch AS b WHERE b.batch = lock_batch.batch AND b.email_id = found_id FOR UPDATE;
        IF FOUND AND is_there THEN
            RETURN found_id;
        END IF;
        IF FOUND THEN
            -- Somebody has deleted the item by hand.
            DELETE FROM duepost.batch AS b WHERE b.batch = lock_batch.batch AND b.email_id = found_id;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.lock_batch IS
    'Locks the email or message that further items of a batch join, its item first, and gives its id; NULL where there is none.';

-- Opens a batch with what has just been scheduled for it; false where another transaction was faster: then nothing of it is left.
CREATE OR REPLACE FUNCTION duepost.open_batch(
    batch text, id bigint, users text[], opened_at timestamptz, longest_wait interval
) RETURNS boolean
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO duepost.batch (batch, email_id, users, opened_at, latest_at)
    VALUES (
        open_batch.batch, open_batch.id, duepost.sorted_users(open_batch.users), open_batch.opened_at,
        open_batch.opened_at + open_batch.longest_wait
    )
    ON CONFLICT ON CONSTRAINT batch_pkey DO NOTHING;
    IF NOT FOUND THEN
        DELETE FROM duepost.scheduled_email_user AS u WHERE u.email_id = open_batch.id;
        DELETE FROM duepost.email AS e WHERE e.item_id = open_batch.id;
        DELETE FROM duepost.message AS m WHERE m.item_id = open_batch.id;
        DELETE FROM duepost.item AS i WHERE i.id = open_batch.id;
        RETURN false;
    END IF;
    UPDATE duepost.email AS e SET batch = open_batch.batch WHERE e.item_id = open_batch.id;
    UPDATE duepost.message AS m SET batch = open_batch.batch WHERE m.item_id = open_batch.id;
    RETURN true;
END
$$;

CREATE OR REPLACE FUNCTION duepost.sorted_users(users text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN users IS NOT NULL THEN ARRAY(SELECT DISTINCT u FROM unnest(users) AS u ORDER BY u) END
$$;

-- What an item that joins has to have in common with those that are there: whom it is for, and what it is.
CREATE OR REPLACE FUNCTION duepost.join_error(id bigint, email duepost.new_email, endpoint text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN i.kind <> email.kind THEN format('kind: must be that of the %s which the batch has open', i.channel)
        WHEN m.endpoint IS DISTINCT FROM join_error.endpoint
            THEN format('endpoint: must be that of the %s which the batch has open', i.channel)
        WHEN m.endpoint IS NOT NULL AND b.users IS DISTINCT FROM duepost.sorted_users(email.users)
            THEN 'users: must be those of the message which the batch has open'
        WHEN e.address IS NOT NULL
            AND (email.address IS NULL OR duepost.mailbox_key(e.address) <> duepost.mailbox_key(duepost.mailbox_address(email.address)))
            THEN 'address: must be that of the email which the batch has open: give each recipient a batch'
        WHEN e.address IS NULL AND b.users IS DISTINCT FROM duepost.sorted_users(email.users)
            THEN 'users: must be those of the email which the batch has open: give each recipient a batch'
        WHEN e.template <> email.template THEN 'template: must be that of the email which the batch has open'
    END
    FROM duepost.batch AS b
    JOIN duepost.item AS i ON i.id = b.email_id
    LEFT JOIN duepost.email AS e ON e.item_id = b.email_id
    LEFT JOIN duepost.message AS m ON m.item_id = b.email_id
    WHERE b.email_id = $1
$$;

-- Puts an item into an open batch, in place of the one that has its key, if there is one. The caller holds the item's lock.
CREATE OR REPLACE FUNCTION duepost.put_item(email_id bigint, item jsonb, item_key text, context jsonb) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    open_one  record;
    most      record;
    email     record;
    old_bytes integer;
BEGIN
    SELECT l.items, l.bytes INTO most FROM duepost.batch_limits() AS l;
    SELECT octet_length(i.item::text) INTO old_bytes
    FROM duepost.batch_item AS i
    WHERE i.email_id = put_item.email_id AND i.item_key = put_item.item_key;
    -- Most calls give no context: then the email's row is left as it is.
    UPDATE duepost.email AS e SET context = e.context || put_item.context
    WHERE e.item_id = put_item.email_id AND e.context || put_item.context <> e.context;
    SELECT octet_length(e.context::text) AS context_bytes INTO email FROM duepost.email AS e WHERE e.item_id = put_item.email_id;

    UPDATE duepost.batch AS b
    SET items = b.items + (old_bytes IS NULL)::integer,
        bytes = b.bytes + octet_length(put_item.item::text) - coalesce(old_bytes, 0),
        last_place = b.last_place + (old_bytes IS NULL)::integer
    WHERE b.email_id = put_item.email_id
    -- Each item with a comma and a space, or the list's brackets.
    RETURNING b.items, b.bytes + 2 * b.items AS list_bytes, b.last_place INTO open_one;
    IF open_one.items > most.items THEN
        PERFORM duepost.raise_bad_argument('item', format('the batch has %s items already, the most that it takes', most.items));
    END IF;
    -- In a context the list has a name.
    IF open_one.list_bytes + 12 + email.context_bytes > most.bytes THEN
        PERFORM duepost.raise_bad_argument('item', format(
            'the context with all items must be at most %s bytes, would be %s',
            most.bytes, open_one.list_bytes + 12 + email.context_bytes
        ));
    END IF;
    IF email.context_bytes IS NULL AND open_one.list_bytes > duepost.largest_payload() THEN
        PERFORM duepost.raise_bad_argument('item', format(
            'the payload with all items must be at most %s bytes, would be %s', duepost.largest_payload(), open_one.list_bytes
        ));
    END IF;

    IF old_bytes IS NULL THEN
        INSERT INTO duepost.batch_item (email_id, place, item_key, item)
        VALUES (put_item.email_id, open_one.last_place, put_item.item_key, put_item.item);
    ELSE
        UPDATE duepost.batch_item AS i SET item = put_item.item
        WHERE i.email_id = put_item.email_id AND i.item_key = put_item.item_key;
    END IF;
END
$$;

-- A further item moves its email or message by `wait` from this moment; never beyond the latest moment of any of the calls.
CREATE OR REPLACE FUNCTION duepost.move_batch(email_id bigint, wait interval, longest_wait interval) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    new_time timestamptz;
    item     record;
BEGIN
    UPDATE duepost.batch AS b SET latest_at = least(b.latest_at, b.opened_at + move_batch.longest_wait)
    WHERE b.email_id = move_batch.email_id
    RETURNING least(clock_timestamp() + move_batch.wait, b.latest_at) INTO new_time;
    SELECT i.scheduled_at, i.expires_at INTO item FROM duepost.item AS i WHERE i.id = move_batch.email_id;
    PERFORM duepost.move_item(
        move_batch.email_id, new_time,
        -- Its time to live, if it has one, goes along.
        CASE
            WHEN item.expires_at IS NOT NULL
                THEN least(item.expires_at + (new_time - item.scheduled_at), '9999-12-31 00:00:00+00')
        END
    );
END
$$;

CREATE OR REPLACE FUNCTION duepost.add_to_batch(
    batch        text,
    item         jsonb,
    kind         text,
    address      text DEFAULT NULL,
    users        text[] DEFAULT NULL,
    template     text DEFAULT NULL,
    context      jsonb DEFAULT '{}',
    item_key     text DEFAULT NULL,
    wait         interval DEFAULT '2 minutes',
    longest_wait interval DEFAULT NULL,
    sender       text DEFAULT NULL,
    reply_to     text DEFAULT NULL,
    headers      jsonb DEFAULT NULL,
    endpoint     text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    email   duepost.new_email;
    message duepost.new_message;
    open_id bigint;
    error   text := duepost.batch_error(batch, item, item_key, wait, longest_wait);
    is_new  boolean := false;
BEGIN
    -- Until this transaction ends, the types do not grow.
    LOCK TABLE duepost.migration IN ACCESS SHARE MODE;
    email.kind := kind;
    email.address := address;
    email.users := users;
    email.template := template;
    email.context := coalesce(context, '{}');
    email.sender := sender;
    email.reply_to := reply_to;
    email.headers := headers;
    message.kind := kind;
    message.endpoint := endpoint;
    message.users := users;
    message.payload := '[]';
    IF error IS NULL THEN
        error := CASE
            WHEN endpoint IS NULL THEN duepost.batch_email_error(email) ELSE duepost.batch_message_error(message, email)
        END;
    END IF;
    IF error IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = error;
    END IF;

    LOOP
        open_id := duepost.lock_batch(batch);
        EXIT WHEN open_id IS NOT NULL;
        email.scheduled_at := clock_timestamp() + wait;
        message.scheduled_at := email.scheduled_at;
        open_id := CASE
            WHEN endpoint IS NULL THEN (duepost.store_emails(ARRAY[email], are_many => false))[1]
            ELSE (duepost.store_messages(ARRAY[message], are_many => false))[1]
        END;
        is_new := duepost.open_batch(batch, open_id, users, clock_timestamp(), longest_wait);
        EXIT WHEN is_new;
    END LOOP;
    IF NOT is_new THEN
        error := duepost.join_error(open_id, email, endpoint);
        IF error IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = error;
        END IF;
        PERFORM duepost.move_batch(open_id, wait, longest_wait);
    END IF;
    PERFORM duepost.put_item(open_id, item, item_key, email.context);
    RETURN open_id;
END
$$;
COMMENT ON FUNCTION duepost.add_to_batch IS
    'Gathers events into one email, or one message to an endpoint: while that of this batch is not claimed the item joins it, and '
    'moves it by `wait` from now, never beyond `longest_wait` after the first; else a new one is scheduled after `wait`. An item '
    'whose item_key is there takes the place of the earlier one. Returns its id. A bad argument raises 22023 and stores nothing.';

CREATE OR REPLACE FUNCTION duepost.remove_from_batch(batch text, item_key text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    open_id  bigint;
    bytes_   integer;
    is_empty boolean;
BEGIN
    IF coalesce(remove_from_batch.batch, '') = '' THEN
        PERFORM duepost.raise_bad_argument('batch', 'must not be empty');
    END IF;
    IF coalesce(remove_from_batch.item_key, '') = '' THEN
        PERFORM duepost.raise_bad_argument('item_key', 'must not be empty');
    END IF;
    open_id := duepost.lock_batch(remove_from_batch.batch);
    DELETE FROM duepost.batch_item AS i
    WHERE i.email_id = open_id AND i.item_key = remove_from_batch.item_key
    RETURNING octet_length(i.item::text) INTO bytes_;
    IF NOT FOUND THEN
        RETURN 'too_late';
    END IF;
    UPDATE duepost.batch AS b SET items = b.items - 1, bytes = b.bytes - bytes_
    WHERE b.email_id = open_id
    RETURNING b.items = 0 INTO is_empty;
    IF is_empty THEN
        PERFORM duepost.finish(open_id, 'cleared', NULL);
        RETURN 'cleared';
    END IF;
    RETURN 'removed';
END
$$;
COMMENT ON FUNCTION duepost.remove_from_batch IS
    'Takes an item out of its batch: removed, cleared (it was the last one: nothing is sent), or too_late (what has it was '
    'claimed, or is finished, or there was no such item).';

-- Read by the claim of such an email in a snapshot of its own, as its context is.
CREATE OR REPLACE FUNCTION duepost.batch_date(email_id bigint) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN (SELECT e.date_header FROM duepost.email AS e WHERE e.item_id = batch_date.email_id);
END
$$;

-- Called by the claim, which holds the item's lock; volatile, so that it has a snapshot of its own: an item that was committed
-- while the claim took its snapshot is in none of the claim's.
CREATE OR REPLACE FUNCTION duepost.close_batch(email_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    gathered jsonb;
    content  text;
BEGIN
    SELECT coalesce(jsonb_agg(i.item ORDER BY i.place), '[]') INTO gathered
    FROM duepost.batch_item AS i
    WHERE i.email_id = close_batch.email_id;
    DELETE FROM duepost.batch AS b WHERE b.email_id = close_batch.email_id;
    IF FOUND THEN
        UPDATE duepost.email AS e SET context = e.context || jsonb_build_object('items', gathered)
        WHERE e.item_id = close_batch.email_id;
        UPDATE duepost.message AS m SET payload = gathered WHERE m.item_id = close_batch.email_id;
    END IF;
    SELECT e.context::text INTO content FROM duepost.email AS e WHERE e.item_id = close_batch.email_id;
    IF NOT FOUND THEN
        SELECT m.payload::text INTO content FROM duepost.message AS m WHERE m.item_id = close_batch.email_id;
    END IF;
    RETURN content;
END
$$;
COMMENT ON FUNCTION duepost.close_batch IS
    'Puts the items of a batch into the email''s context, or makes them the message''s payload, in order; nothing joins it any '
    'more. Gives the context or the payload. The caller holds the item''s lock.';
