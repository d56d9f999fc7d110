-- What came back: SECURITY DEFINER, called with a worker's rights by who reads mailboxes and webhooks.

CREATE OR REPLACE FUNCTION duepost.note_bounce(
    source text, source_id text, email_id bigint, kind text, address text, event text, effect text, scope text,
    enhanced_code text, reply text
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO duepost.bounce (source, source_id, email_id, kind, address, event, effect, enhanced_code, reply)
    VALUES (
        note_bounce.source, left(note_bounce.source_id, 500), note_bounce.email_id, note_bounce.kind, note_bounce.address,
        left(note_bounce.event, 100), note_bounce.effect, note_bounce.enhanced_code, left(note_bounce.reply, 1000)
    )
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF note_bounce.effect = 'suppressed' THEN
        PERFORM duepost.add_suppression(
            note_bounce.address, note_bounce.scope, CASE note_bounce.event WHEN 'failed' THEN 'bounce' ELSE 'complaint' END,
            NULL, enhanced_code => note_bounce.enhanced_code, reply => left(note_bounce.reply, 1000)
        );
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION duepost.note_bounce IS
    'Notes what came back, once; where it is to suppress, of all emails or of the kind `scope`, that is done too. false: it was known.';
