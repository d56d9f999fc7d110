-- What an application calls to clear and to reschedule, inside its own transaction.
-- SECURITY DEFINER: a client may call these and touch nothing else; the search_path is fixed, so that nobody's table or
-- operator stands in for ours, and so is the way that backslashes are read, on which the patterns of the checks depend.

-- Statements are planned once in a session, by index, whatever a table looked like when they were, and never compiled:
-- planning costs as much as running them, and compiling a hundred times that.

-- Whether a request of a message has been answered with anything but that it is taken: nobody knows what was done about it. An
-- email's refusal is a definite no. Volatile, so that it has a snapshot of its own: the caller holds the item's lock.
CREATE OR REPLACE FUNCTION duepost.may_have_arrived(id bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN EXISTS (SELECT FROM duepost.message AS m WHERE m.item_id = may_have_arrived.id AND m.may_have_arrived);
END
$$;
COMMENT ON FUNCTION duepost.may_have_arrived IS
    'Whether some request of a message may have arrived. The caller holds the item''s lock.';

-- Takes users off the items of one channel, or of both.
CREATE OR REPLACE FUNCTION duepost.clear_users(users text[], kind text, channel text)
RETURNS TABLE (id bigint, item_channel text, receipt text)
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    item    record;
    removed integer;
    late    boolean;
BEGIN
    IF clear_users.users IS NULL THEN
        PERFORM duepost.raise_bad_argument('users', 'must be an array of user ids');
    END IF;
    IF EXISTS (SELECT FROM unnest(clear_users.users) AS u WHERE u IS NULL) THEN
        PERFORM duepost.raise_bad_argument('users', 'must not contain NULL');
    END IF;
    FOR item IN
        SELECT i.id, i.channel, i.is_held, i.unknowns
        FROM duepost.item AS i
        WHERE i.id IN (
            SELECT u.email_id FROM duepost.scheduled_email_user AS u
            WHERE u.user_id = ANY (clear_users.users)
        )
          AND (clear_users.kind IS NULL OR i.kind = clear_users.kind)
          AND (clear_users.channel IS NULL OR i.channel = clear_users.channel)
        ORDER BY i.id
        FOR UPDATE
    LOOP
        -- Another clear may have taken these users off while this one waited for the row.
        CONTINUE WHEN NOT EXISTS (
            SELECT FROM duepost.scheduled_email_user AS u
            WHERE u.email_id = item.id AND u.user_id = ANY (clear_users.users)
        );
        id := item.id;
        item_channel := item.channel;
        receipt := 'too_late';
        -- What may have arrived already cannot be promised never to be sent.
        IF NOT item.is_held AND item.unknowns = 0 AND NOT duepost.is_in_hand(item.id)
            AND NOT duepost.may_have_arrived(item.id)
        THEN
            PERFORM FROM duepost.scheduled_email_user AS u
            WHERE u.email_id = item.id ORDER BY u.user_id FOR UPDATE;
            late := EXISTS (
                SELECT FROM duepost.scheduled_email_user AS u
                WHERE u.email_id = item.id AND u.user_id = ANY (clear_users.users)
                  AND u.outcome IS NOT NULL
            );
            DELETE FROM duepost.scheduled_email_user AS u
            WHERE u.email_id = item.id AND u.user_id = ANY (clear_users.users) AND u.outcome IS NULL;
            GET DIAGNOSTICS removed = ROW_COUNT;
            IF NOT EXISTS (SELECT FROM duepost.scheduled_email_user AS u WHERE u.email_id = item.id) THEN
                PERFORM duepost.finish(item.id, 'cleared', NULL);
                receipt := 'cleared';
            ELSIF removed > 0 THEN
                IF NOT EXISTS (
                    SELECT FROM duepost.scheduled_email_user AS u WHERE u.email_id = item.id AND u.outcome IS NULL
                ) THEN
                    PERFORM duepost.finish(item.id, NULL, NULL);
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

CREATE OR REPLACE FUNCTION duepost.clear_scheduled_emails(users text[], kind text DEFAULT NULL)
RETURNS TABLE (email_id bigint, receipt text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    RETURN QUERY SELECT c.id, c.receipt FROM duepost.clear_users(users, kind, 'email') AS c;
END
$$;
COMMENT ON FUNCTION duepost.clear_scheduled_emails IS
    'Takes these users off their scheduled emails (of one kind, or all). A receipt for each email: cleared (it had no '
    'other user and is never sent), user_removed, or too_late (it is being sent, or may have been sent); the last two '
    'where some of these users have it and others are taken off. Locks rows by ascending id.';

CREATE OR REPLACE FUNCTION duepost.clear_scheduled(users text[], kind text DEFAULT NULL)
RETURNS TABLE (id bigint, channel text, receipt text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    RETURN QUERY SELECT c.id, c.item_channel, c.receipt FROM duepost.clear_users(users, kind, NULL) AS c;
END
$$;
COMMENT ON FUNCTION duepost.clear_scheduled IS
    'Takes these users off their scheduled emails and messages at once (of one kind, or all), as when an account is closed: a '
    'receipt for each, as clear_scheduled_emails() gives them. Locks rows by ascending id.';

-- One item, whole; `argument` is what its id is called by the caller.
CREATE OR REPLACE FUNCTION duepost.clear_item(id bigint, channel text, argument text) RETURNS text
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    partly boolean;
BEGIN
    PERFORM duepost.check_id(argument, clear_item.id, clear_item.channel);
    PERFORM FROM duepost.item AS i
    WHERE i.id = clear_item.id AND i.channel = clear_item.channel AND NOT i.is_held AND i.unknowns = 0
    FOR UPDATE;
    IF NOT FOUND OR duepost.is_in_hand(clear_item.id) OR duepost.may_have_arrived(clear_item.id) THEN
        RETURN 'too_late';
    END IF;
    partly := EXISTS (
        SELECT FROM duepost.scheduled_email_user AS u WHERE u.email_id = clear_item.id AND u.outcome IS NOT NULL
    ) OR EXISTS (
        SELECT FROM duepost.email_recipient AS r WHERE r.email_id = clear_item.id AND (r.outcome IS NOT NULL OR r.in_ledger)
    );
    PERFORM duepost.finish(clear_item.id, 'cleared', NULL);
    RETURN CASE WHEN partly THEN 'user_removed' ELSE 'cleared' END;
END
$$;

CREATE OR REPLACE FUNCTION duepost.check_id(argument text, id bigint, channel text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF id IS NULL THEN
        PERFORM duepost.raise_bad_argument(
            argument, 'must be the id of ' || CASE channel WHEN 'email' THEN 'an email' ELSE 'a message' END
        );
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION duepost.clear_scheduled_email(email_id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    RETURN duepost.clear_item(email_id, 'email', 'email_id');
END
$$;
COMMENT ON FUNCTION duepost.clear_scheduled_email IS
    'Clears one email whole: cleared (it is never sent), user_removed (some of its users have it already, the others '
    'never get it), or too_late (it is being sent, finished or unknown).';

-- Takes a mailbox off an email whose recipients see each other; NULL where it is not one of them. The caller holds the item's lock.
CREATE OR REPLACE FUNCTION duepost.clear_recipient(id bigint, mailbox text) RETURNS text
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    own record;
BEGIN
    SELECT r.place, r.outcome, r.in_ledger INTO own
    FROM duepost.email_recipient AS r
    WHERE r.email_id = clear_recipient.id AND duepost.mailbox_key(r.address) = clear_recipient.mailbox;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM FROM duepost.item AS i WHERE i.id = clear_recipient.id AND NOT i.is_held AND i.unknowns = 0;
    IF NOT FOUND OR own.outcome IS NOT NULL OR own.in_ledger OR duepost.is_in_hand(clear_recipient.id) THEN
        RETURN 'too_late';
    END IF;
    IF NOT EXISTS (
        SELECT FROM duepost.email_recipient AS r WHERE r.email_id = clear_recipient.id AND r.place <> own.place
    ) THEN
        PERFORM duepost.finish(clear_recipient.id, 'cleared', NULL);
        RETURN 'cleared';
    END IF;
    IF EXISTS (
        SELECT FROM duepost.email_recipient AS r
        WHERE r.email_id = clear_recipient.id AND (r.outcome IS NOT NULL OR r.in_ledger)
    ) THEN
        -- Some have it already: the others get the same bytes, in whose header this one stands.
        UPDATE duepost.email_recipient AS r SET outcome = 'cleared'
        WHERE r.email_id = clear_recipient.id AND r.place = own.place;
        IF NOT EXISTS (
            SELECT FROM duepost.email_recipient AS r
            WHERE r.email_id = clear_recipient.id AND r.outcome IS NULL AND NOT r.in_ledger
        ) THEN
            PERFORM duepost.finish(clear_recipient.id, NULL, NULL);
        END IF;
    ELSE
        DELETE FROM duepost.email_recipient AS r WHERE r.email_id = clear_recipient.id AND r.place = own.place;
    END IF;
    RETURN 'user_removed';
END
$$;

CREATE OR REPLACE FUNCTION duepost.clear_scheduled_emails_to(address text, kind text DEFAULT NULL)
RETURNS TABLE (email_id bigint, receipt text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    email   record;
    mailbox CONSTANT text := duepost.mailbox_address(clear_scheduled_emails_to.address);
BEGIN
    IF duepost.is_address(mailbox) IS NOT TRUE THEN
        PERFORM duepost.raise_bad_argument('address', 'must be one address such as ann@example.com');
    END IF;
    FOR email IN
        SELECT i.id
        FROM duepost.item AS i
        WHERE i.id IN (
            SELECT e.item_id FROM duepost.email AS e
            WHERE duepost.mailbox_key(e.address) = duepost.mailbox_key(mailbox) AND e.address IS NOT NULL
            UNION ALL
            SELECT r.email_id FROM duepost.email_recipient AS r
            WHERE duepost.mailbox_key(r.address) = duepost.mailbox_key(mailbox)
        )
          AND (clear_scheduled_emails_to.kind IS NULL OR i.kind = clear_scheduled_emails_to.kind)
        ORDER BY i.id
        FOR UPDATE
    LOOP
        email_id := email.id;
        receipt := coalesce(
            duepost.clear_recipient(email.id, duepost.mailbox_key(mailbox)), duepost.clear_scheduled_email(email.id)
        );
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.clear_scheduled_emails_to IS
    'Clears the emails scheduled to this mailbox, of one kind or all, however it is spelled: letter case, IDNA, a name '
    'and white space around it do not matter; takes it off those that it gets together with others (user_removed). What is no '
    'address raises 22023.';

-- One item, to another time; `argument` is what its id is called by the caller.
CREATE OR REPLACE FUNCTION duepost.reschedule_item(id bigint, scheduled_at timestamptz, channel text, argument text)
RETURNS text
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    item  record;
    error text;
BEGIN
    PERFORM duepost.check_id(argument, reschedule_item.id, reschedule_item.channel);
    IF reschedule_item.scheduled_at IS NULL THEN
        PERFORM duepost.raise_bad_argument('scheduled_at', 'must be a finite time');
    END IF;
    error := duepost.moment_error('scheduled_at', reschedule_item.scheduled_at);
    IF error IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = error;
    END IF;
    SELECT i.expires_at INTO item
    FROM duepost.item AS i
    WHERE i.id = reschedule_item.id AND i.channel = reschedule_item.channel AND NOT i.is_held
    FOR UPDATE;
    IF NOT FOUND OR duepost.is_in_hand(reschedule_item.id) THEN
        RETURN 'too_late';
    END IF;
    IF item.expires_at <= reschedule_item.scheduled_at THEN
        PERFORM duepost.raise_bad_argument(
            'scheduled_at', format('must be earlier than the %s''s expires_at', reschedule_item.channel)
        );
    END IF;
    PERFORM duepost.move_item(reschedule_item.id, reschedule_item.scheduled_at, item.expires_at);
    -- From now on it is due at this moment, whatever its users' clocks show.
    UPDATE duepost.item AS i SET scheduled_local = NULL WHERE i.id = reschedule_item.id AND i.scheduled_local IS NOT NULL;
    RETURN 'rescheduled';
END
$$;

-- The caller holds the item's lock, and knows that it is not being sent.
CREATE OR REPLACE FUNCTION duepost.move_item(id bigint, scheduled_at timestamptz, expires_at timestamptz) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    -- Message-ID and Date are fixed by the first attempt.
    UPDATE duepost.email AS e
    SET date_header = greatest(move_item.scheduled_at, now())
    FROM duepost.item AS i
    WHERE e.item_id = move_item.id AND i.id = move_item.id AND i.attempts = 0;
    UPDATE duepost.item AS i
    SET scheduled_at = move_item.scheduled_at, due_at = move_item.scheduled_at, expires_at = move_item.expires_at,
        probe = false
    WHERE i.id = move_item.id;
    DELETE FROM dramatiq.queue AS m WHERE m.key = move_item.id;
END
$$;

CREATE OR REPLACE FUNCTION duepost.reschedule_email(email_id bigint, scheduled_at timestamptz) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    RETURN duepost.reschedule_item(email_id, scheduled_at, 'email', 'email_id');
END
$$;
COMMENT ON FUNCTION duepost.reschedule_email IS
    'Moves one email to another time: rescheduled, or too_late (it is being sent, finished or unknown).';
