-- What came back: SECURITY DEFINER, called with a worker's rights by who reads mailboxes and webhooks.

-- Older ones are not believed by their time: see duepost/bounces/providers.
CREATE OR REPLACE FUNCTION duepost.use_webhook_token(source text, token text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM duepost.webhook_token AS t
    WHERE (t.source, t.token) IN (
        SELECT o.source, o.token FROM duepost.webhook_token AS o
        WHERE o.used_at < now() - interval '4 days' ORDER BY o.used_at LIMIT 100 FOR UPDATE SKIP LOCKED
    );
    INSERT INTO duepost.webhook_token (source, token) VALUES (use_webhook_token.source, use_webhook_token.token)
    ON CONFLICT DO NOTHING;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION duepost.use_webhook_token IS 'Uses the token of a signature up. false: it was used before.';

CREATE OR REPLACE FUNCTION duepost.note_bounce(
    source text, source_id text, email_id bigint, kind text, address text, event text, effect text, scope text,
    enhanced_code text, reply text, token text DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    IF note_bounce.token IS NOT NULL AND NOT duepost.use_webhook_token(note_bounce.source, note_bounce.token) THEN
        RETURN false;
    END IF;
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

CREATE OR REPLACE FUNCTION duepost.tell_webhook(source text, refused_because text) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
    INSERT INTO duepost.webhook AS w (source, accepted_at, refused_at, refused_because)
    VALUES ($1, CASE WHEN $2 IS NULL THEN now() END, CASE WHEN $2 IS NOT NULL THEN now() END, left($2, 200))
    ON CONFLICT (source) DO UPDATE
    SET accepted_at = coalesce(EXCLUDED.accepted_at, w.accepted_at),
        refused_at = coalesce(EXCLUDED.refused_at, w.refused_at),
        refused_because = coalesce(EXCLUDED.refused_because, w.refused_because)
$$;
COMMENT ON FUNCTION duepost.tell_webhook IS 'A call of a provider''s webhook has been taken; or was refused, and why.';
