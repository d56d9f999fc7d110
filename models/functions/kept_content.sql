-- What was sent and is kept for a while. SECURITY DEFINER: a worker writes the table through these only.

-- Called in the transaction that concludes an email, or notes what came of one recipient, before its row goes. The kind is asked
-- then: a worker may still believe what it said a moment ago.
CREATE OR REPLACE FUNCTION duepost.keep_content(
    email_id bigint, claim bigint, user_ids text[], addresses text[], contents bytea[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO duepost.kept_content AS k (email_id, user_id, address, content, kept_until)
    SELECT i.id, given.user_id, given.address, given.content, now() + kind.keep_content
    FROM duepost.in_hand AS h
    JOIN duepost.item AS i ON i.id = h.item_id
    JOIN duepost.kind AS kind ON kind.kind = i.kind AND kind.keep_content IS NOT NULL
    CROSS JOIN unnest(keep_content.user_ids, keep_content.addresses, keep_content.contents)
        AS given (user_id, address, content)
    WHERE h.item_id = keep_content.email_id AND h.claim = keep_content.claim
    ON CONFLICT (email_id, coalesce(user_id, ''), address) DO UPDATE
    SET content = EXCLUDED.content, sent_at = EXCLUDED.sent_at, kept_until = EXCLUDED.kept_until;
END
$$;
COMMENT ON FUNCTION duepost.keep_content IS
    'Keeps what was sent of an email that is being sent, for as long as its kind says; nothing where it does not.';

CREATE OR REPLACE FUNCTION duepost.forget_content(most integer DEFAULT 1000) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    gone bigint;
BEGIN
    DELETE FROM duepost.kept_content AS k
    WHERE k.ctid = ANY (ARRAY(
        SELECT over.ctid
        FROM duepost.kept_content AS over
        WHERE over.kept_until < now()
        ORDER BY over.kept_until
        LIMIT forget_content.most
        FOR UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;
COMMENT ON FUNCTION duepost.forget_content IS
    'Removes what was sent and has been kept for its time, at most `most` rows; gives how many.';
