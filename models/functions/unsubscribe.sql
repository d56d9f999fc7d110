-- What recipients decide by a link in an email. SECURITY DEFINER: the server of the links calls it with a worker's rights.

CREATE OR REPLACE FUNCTION duepost.change_subscription(
    kind text, address text, user_id text, email_id bigint, is_on boolean, OUT receipt text, OUT cleared bigint
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    mailbox CONSTANT text := duepost.mailbox_address(change_subscription.address);
    action  record;
    changed boolean;
BEGIN
    cleared := 0;
    IF is_on THEN
        -- All of it by ascending id, before any of it is cleared: to the user, and to the address.
        PERFORM FROM duepost.item AS i
        WHERE i.channel = 'email' AND i.kind = change_subscription.kind AND i.id IN (
            SELECT u.email_id FROM duepost.scheduled_email_user AS u WHERE u.user_id = change_subscription.user_id
            UNION ALL
            SELECT e.item_id FROM duepost.email AS e
            WHERE duepost.mailbox_key(e.address) = duepost.mailbox_key(mailbox) AND e.address IS NOT NULL
        )
        ORDER BY i.id
        FOR UPDATE;
        IF change_subscription.user_id IS NOT NULL THEN
            SELECT count(*) INTO cleared
            FROM duepost.clear_users(ARRAY[change_subscription.user_id], change_subscription.kind, 'email') AS c
            WHERE c.receipt <> 'too_late';
        END IF;
        SELECT cleared + count(*) INTO cleared
        FROM duepost.clear_scheduled_emails_to(mailbox, change_subscription.kind) AS c
        WHERE c.receipt <> 'too_late';
        changed := duepost.add_suppression(mailbox, change_subscription.kind, 'unsubscribe', 'unsubscribed');
    ELSE
        DELETE FROM duepost.suppression AS s
        WHERE s.address = duepost.mailbox_key(mailbox) AND s.kind = change_subscription.kind AND s.source = 'unsubscribe';
        changed := FOUND;
    END IF;
    receipt := CASE WHEN NOT changed THEN 'already' WHEN is_on THEN 'unsubscribed' ELSE 'subscribed' END;
    IF changed OR cleared > 0 THEN
        action := duepost.begin_action(
            CASE WHEN is_on THEN 'unsubscribe' ELSE 'resubscribe' END, 'the recipient', 'link', NULL,
            jsonb_strip_nulls(jsonb_build_object(
                'address', mailbox, 'kind', change_subscription.kind, 'user', change_subscription.user_id, 'ids',
                jsonb_build_array(change_subscription.email_id)
            ))
        );
        PERFORM duepost.add_to_action(action.id, cleared, '{}');
        PERFORM duepost.end_action(action.id);
    END IF;
END
$$;
COMMENT ON FUNCTION duepost.change_subscription IS
    'Unsubscribes an address from a kind, as the link in one of its emails says, and clears what is scheduled of it to the address and '
    'to the user; or takes that back: unsubscribed, subscribed or already, and how many emails are cleared.';
