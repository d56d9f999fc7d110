-- What workers share about a relay. Called by workers with their own rights; each locks the relay's row first, so that
-- of several that ask at once each sees what the one before has got. Times that lie further ahead than they can are from
-- before the clock was put back, and count as past.

-- What the other workers that live have at a relay, and how many of them have had a use for it in the last 5 s.
CREATE OR REPLACE FUNCTION duepost.other_connections(
    route text, worker_id integer, OUT held integer, OUT wanting integer, OUT worked_at timestamptz
)
LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(w.connections), 0)::integer,
           count(*) FILTER (WHERE w.wanted_at > now() - interval '5 s')::integer,
           max(w.worked_at) FILTER (WHERE w.connections > 0)
    FROM duepost.route_worker AS w
    JOIN duepost.worker ON worker.id = w.worker_id
    WHERE w.route = $1 AND w.worker_id <> $2 AND worker.gone_at IS NULL
$$;
COMMENT ON FUNCTION duepost.other_connections IS
    'Connections that other living workers have at a relay, how many of them want some, and when one was answered last.';

CREATE OR REPLACE FUNCTION duepost.report_connections(
    route text, worker_id integer, connections integer, is_wanted boolean, answered_ago double precision
) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO duepost.route_worker AS w (route, worker_id, connections, wanted_at, worked_at)
    VALUES ($1, $2, $3, CASE WHEN $4 THEN now() ELSE '-infinity' END, now() - make_interval(secs => $5))
    ON CONFLICT ON CONSTRAINT route_worker_pkey DO UPDATE
    SET connections = $3,
        wanted_at = CASE WHEN $4 THEN now() ELSE w.wanted_at END,
        worked_at = coalesce(now() - make_interval(secs => $5), w.worked_at)
$$;
COMMENT ON FUNCTION duepost.report_connections IS
    'A worker says how many connections it has at a relay, whether it wants some, and how many seconds ago it had an answer.';

CREATE OR REPLACE FUNCTION duepost.take_connection(route text, worker_id integer, opened integer) RETURNS boolean
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    relay     record;
    others    record;
    permitted integer;
    granted   boolean := true;
BEGIN
    INSERT INTO duepost.route (route) VALUES (take_connection.route) ON CONFLICT DO NOTHING;
    SELECT r.connections, r.raise_at, r.raise_pause INTO relay
    FROM duepost.route AS r
    WHERE r.route = take_connection.route
    FOR UPDATE;
    others := duepost.other_connections(take_connection.route, take_connection.worker_id);
    IF relay.connections IS NOT NULL THEN
        permitted := relay.connections;
        IF others.held + opened >= permitted
            AND relay.raise_at NOT BETWEEN now() AND now() + make_interval(secs => relay.raise_pause)
        THEN
            -- Long enough without a refusal: an eighth more, one at least; the next try comes sooner if this one holds.
            permitted := permitted + greatest(1, permitted / 8);
            UPDATE duepost.route AS r
            SET connections = permitted,
                raise_pause = greatest(60, r.raise_pause / 2),
                raise_at = now() + make_interval(secs => greatest(60, r.raise_pause / 2))
            WHERE r.route = take_connection.route;
        END IF;
        granted := others.held + opened < permitted
            AND opened < greatest(1, ceil(permitted::numeric / (others.wanting + 1)));
    END IF;
    PERFORM duepost.report_connections(
        take_connection.route, take_connection.worker_id, opened + granted::integer, true, NULL
    );
    RETURN granted;
END
$$;
COMMENT ON FUNCTION duepost.take_connection IS
    'Whether a worker that has so many connections at a relay may open one more: no more than the relay allows, and each '
    'worker that wants some its share.';

-- `seconds` is for how long this worker has been refused connections; `is_named` that the relay says why.
CREATE OR REPLACE FUNCTION duepost.refuse_connection(
    route text, worker_id integer, opened integer, seconds double precision, is_named boolean,
    answered_ago double precision, because text
) RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    others record;
    total  integer;
BEGIN
    INSERT INTO duepost.route (route) VALUES (refuse_connection.route) ON CONFLICT DO NOTHING;
    PERFORM FROM duepost.route AS r WHERE r.route = refuse_connection.route FOR UPDATE;
    PERFORM duepost.report_connections(
        refuse_connection.route, refuse_connection.worker_id, opened, true, answered_ago
    );
    others := duepost.other_connections(refuse_connection.route, refuse_connection.worker_id);
    total := others.held + opened;
    IF total = 0 THEN
        -- It takes none at all: what it seemed to allow a moment ago says nothing.
        UPDATE duepost.route AS r
        SET connections = NULL, connections_at = NULL, connections_because = NULL, raise_at = NULL, raise_pause = 0
        WHERE r.route = refuse_connection.route AND r.connections_at > now() - interval '1 min';
        RETURN 'down';
    END IF;
    -- Where the relay does not say why, it counts only once others of ours were answered since.
    IF NOT (is_named
        OR coalesce(answered_ago < seconds, false)
        OR coalesce(others.worked_at > now() - make_interval(secs => seconds), false)
    ) THEN
        RETURN 'wait';
    END IF;
    UPDATE duepost.route AS r
    SET connections = least(total, r.connections),
        connections_at = now(),
        connections_because = because,
        raise_pause = refused.pause,
        raise_at = now() + make_interval(secs => refused.pause)
    FROM (
        -- Of several that are refused at once the first makes the pause longer.
        SELECT CASE
            WHEN r.connections_at > now() - interval '10 s' THEN greatest(r.raise_pause, 60)
            ELSE least(3600, greatest(60, r.raise_pause * 4))
        END AS pause
        FROM duepost.route AS r
        WHERE r.route = refuse_connection.route
    ) AS refused
    WHERE r.route = refuse_connection.route;
    RETURN 'limit';
END
$$;
COMMENT ON FUNCTION duepost.refuse_connection IS
    'A relay has refused a worker one more connection: limit (others work, and are as many as it allows), wait (that is not '
    'yet clear) or down (there are no others).';

CREATE OR REPLACE FUNCTION duepost.slow_route(route text, jitter double precision, because text)
RETURNS double precision
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    seconds double precision;
BEGIN
    INSERT INTO duepost.route (route) VALUES (slow_route.route) ON CONFLICT DO NOTHING;
    -- Twice the last pause; half as long again for each while (15 s, or as long as the pause was) that went well since.
    UPDATE duepost.route AS r
    SET pause = next.pause,
        paused_until = now() + make_interval(secs => next.pause * jitter),
        paused_because = because
    FROM (
        SELECT least(300, greatest(1, 2 * r.pause * 0.5 ^ least(
            100, greatest(0, coalesce(extract(epoch FROM now() - r.paused_until), 0)) / greatest(15, r.pause)
        )))::double precision AS pause
        FROM duepost.route AS r
        WHERE r.route = slow_route.route
    ) AS next
    WHERE r.route = slow_route.route
      AND r.paused_until BETWEEN now() AND now() + make_interval(secs => 2 * r.pause) IS NOT TRUE
    RETURNING next.pause * jitter INTO seconds;
    RETURN seconds;
END
$$;
COMMENT ON FUNCTION duepost.slow_route IS
    'The relay has had too much of us: nothing is claimed for as many seconds as this gives; NULL where it pauses already.';

CREATE OR REPLACE FUNCTION duepost.is_route_paused() RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM duepost.route AS r
        WHERE r.paused_until BETWEEN now() AND now() + make_interval(secs => 2 * r.pause)
    )
$$;
COMMENT ON FUNCTION duepost.is_route_paused IS 'Whether the relay has had too much of us, and nothing is claimed for now.';
