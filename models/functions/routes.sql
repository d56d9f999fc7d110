-- What workers share about a route. Called by workers with their own rights; each locks the route's row first, so that
-- of several that ask at once each sees what the one before has got. Times that lie further ahead than they can are from
-- before the clock was set back, and count as past. A route that has no row is closed, and nothing is known of it.

-- A worker says that it serves a route. With another target it is another relay: what was learnt of the old one is forgotten.
CREATE OR REPLACE FUNCTION duepost.register_route(name text, target text, fallback text, worker_id integer) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO duepost.route AS r (name, target, fallback)
    VALUES (register_route.name, register_route.target, register_route.fallback)
    ON CONFLICT ON CONSTRAINT route_pkey DO UPDATE
    SET fallback = excluded.fallback, target = coalesce(r.target, excluded.target)
    WHERE r.fallback IS DISTINCT FROM excluded.fallback OR r.target IS NULL;
    UPDATE duepost.route AS r
    SET target = register_route.target, connections = NULL, connections_at = NULL, connections_because = NULL,
        raise_at = NULL, raise_pause = 0, paused_until = NULL, pause = 0, paused_because = NULL, ahead_off_at = NULL,
        ahead_off_because = NULL, circuit_open = false, circuit_opened_at = NULL, circuit_reason = NULL,
        circuit_refusal = NULL, probe_at = NULL, probe_pause = 0
    WHERE r.name = register_route.name AND r.target <> register_route.target;
    INSERT INTO duepost.route_worker (route, worker_id, wanted_at)
    VALUES (register_route.name, register_route.worker_id, '-infinity')
    ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION duepost.register_route IS
    'A worker serves a route, which is at target (host:port), and whose emails leave by its fallback while its circuit is open.';

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
    INSERT INTO duepost.route (name) VALUES (take_connection.route) ON CONFLICT DO NOTHING;
    SELECT r.connections, r.raise_at, r.raise_pause INTO relay
    FROM duepost.route AS r
    WHERE r.name = take_connection.route
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
            WHERE r.name = take_connection.route;
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
    'Whether a worker with this number of connections at a relay may open one more: no more than the relay allows, and each '
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
    INSERT INTO duepost.route (name) VALUES (refuse_connection.route) ON CONFLICT DO NOTHING;
    PERFORM FROM duepost.route AS r WHERE r.name = refuse_connection.route FOR UPDATE;
    PERFORM duepost.report_connections(
        refuse_connection.route, refuse_connection.worker_id, opened, true, answered_ago
    );
    others := duepost.other_connections(refuse_connection.route, refuse_connection.worker_id);
    total := others.held + opened;
    IF total = 0 THEN
        -- It takes none at all: what it seemed to allow a moment ago says nothing.
        UPDATE duepost.route AS r
        SET connections = NULL, connections_at = NULL, connections_because = NULL, raise_at = NULL, raise_pause = 0
        WHERE r.name = refuse_connection.route AND r.connections_at > now() - interval '1 min';
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
        WHERE r.name = refuse_connection.route
    ) AS refused
    WHERE r.name = refuse_connection.route;
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
    INSERT INTO duepost.route (name) VALUES (slow_route.route) ON CONFLICT DO NOTHING;
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
        WHERE r.name = slow_route.route
    ) AS next
    WHERE r.name = slow_route.route
      AND r.paused_until BETWEEN now() AND now() + make_interval(secs => 2 * r.pause) IS NOT TRUE
    RETURNING next.pause * jitter INTO seconds;
    RETURN seconds;
END
$$;
COMMENT ON FUNCTION duepost.slow_route IS
    'The relay has had too much of us: nothing is claimed for as many seconds as this gives; NULL where it pauses already.';

-- Not in SQL, as it is with all that a claim asks: before PostgreSQL 18 a function in SQL that reads a table is planned
-- by each statement that calls it, which takes longer than the rest of a claim.
CREATE OR REPLACE FUNCTION duepost.is_route_blocked(route text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM duepost.route AS r
        WHERE r.name = is_route_blocked.route
          AND (
              r.circuit_open OR r.stopped_at IS NOT NULL
              OR r.paused_until BETWEEN now() AND now() + make_interval(secs => 2 * r.pause)
          )
    );
END
$$;
COMMENT ON FUNCTION duepost.is_route_blocked IS
    'Whether nothing but a probe is claimed for a route now: its circuit is open, its relay has had too much of us, or an operator '
    'has paused it, when there is no probe either.';

-- Whether emails of a route may leave by this way: it is theirs, or their fallback. Asked again by the claim, as a message may
-- be older than what it was enqueued by.
CREATE OR REPLACE FUNCTION duepost.is_way_of(way text, route text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT $2 = $1 OR EXISTS (SELECT FROM duepost.route AS r WHERE r.name = $2 AND r.fallback = $1)
$$;
COMMENT ON FUNCTION duepost.is_way_of IS 'Whether emails of a route may leave by this one: it is their own, or its fallback.';

CREATE OR REPLACE FUNCTION duepost.ways()
RETURNS TABLE (route text, way text, opens_at timestamptz, probe_at timestamptz, is_probe_due boolean)
LANGUAGE sql STABLE ROWS 10 AS $$
    WITH known AS MATERIALIZED (
        SELECT r.name, r.fallback, r.circuit_open, r.stopped_at IS NOT NULL AS is_stopped,
               CASE WHEN r.circuit_open AND r.stopped_at IS NULL THEN least(r.probe_at, now() + make_interval(secs => r.probe_pause)) END AS probe_at,
               r.circuit_open AND r.stopped_at IS NULL
                   AND r.probe_at NOT BETWEEN now() AND now() + make_interval(secs => r.probe_pause) AS is_probe_due,
               CASE
                   WHEN r.paused_until BETWEEN now() AND now() + make_interval(secs => 2 * r.pause) THEN r.paused_until
               END AS paused_until
        FROM duepost.route AS r
        WHERE r.channel = 'email'
        UNION ALL
        SELECT 'default', NULL, false, false, NULL, false, NULL
        WHERE NOT EXISTS (SELECT FROM duepost.route AS r WHERE r.name = 'default')
    )
    SELECT known.name,
           CASE WHEN via.paused_until IS NULL THEN via.name END,
           CASE WHEN via.name IS NOT NULL THEN coalesce(via.paused_until, '-infinity') END,
           known.probe_at, known.is_probe_due
    FROM known
    LEFT JOIN known AS via ON NOT via.circuit_open AND NOT via.is_stopped AND NOT known.is_stopped
        AND via.name = CASE WHEN known.circuit_open THEN known.fallback ELSE known.name END
    CROSS JOIN duepost.control AS control
    WHERE NOT control.paused
    ORDER BY known.name
$$;
COMMENT ON FUNCTION duepost.ways IS
    'For each relay the way by which what is due on it leaves now: itself, or its fallback while its circuit is open; NULL where '
    'neither takes any, or where an operator has paused it. When one will, where that is known (-infinity: it does); and when the next probe is due, while the '
    'circuit is open, and whether it is. Nothing while Duepost is paused.';

CREATE OR REPLACE FUNCTION duepost.claimed_directly_until(route text, way text) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT r.claimed_directly_until
    FROM duepost.route AS r
    WHERE r.name = $1 AND $2 = $1 AND r.claimed_directly_until BETWEEN now() AND now() + interval '3 s'
$$;
COMMENT ON FUNCTION duepost.claimed_directly_until IS
    'Until when the senders of a route, where its emails leave by itself, claim them without messages; NULL: they do not.';

-- One look at the index for each, however many emails there are.
CREATE OR REPLACE FUNCTION duepost.pending_routes() RETURNS SETOF text
LANGUAGE plpgsql STABLE ROWS 10
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    found text;
BEGIN
    found := (SELECT i.route FROM duepost.item AS i WHERE NOT i.is_held ORDER BY i.route LIMIT 1);
    WHILE found IS NOT NULL LOOP
        RETURN NEXT found;
        found := (SELECT i.route FROM duepost.item AS i WHERE NOT i.is_held AND i.route > found ORDER BY i.route LIMIT 1);
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.pending_routes IS 'The routes of what is scheduled, queued or being sent, registered or not.';

-- The same of a route's lines, one for each priority of which there is something.
CREATE OR REPLACE FUNCTION duepost.pending_lines() RETURNS TABLE (route text, priority smallint)
LANGUAGE plpgsql STABLE ROWS 10
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    found record;
BEGIN
    SELECT i.route, i.priority INTO found
    FROM duepost.item AS i WHERE NOT i.is_held ORDER BY i.route, i.priority LIMIT 1;
    WHILE found.route IS NOT NULL LOOP
        route := found.route;
        priority := found.priority;
        RETURN NEXT;
        SELECT i.route, i.priority INTO found
        FROM duepost.item AS i
        WHERE NOT i.is_held AND (i.route, i.priority) > (found.route, found.priority)
        ORDER BY i.route, i.priority
        LIMIT 1;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.pending_lines IS
    'The routes of what is scheduled, queued or being sent, each with the priorities of which there is something there.';

-- Since when the oldest due item of each route has been waiting, whatever its priority; served by item_due.
CREATE OR REPLACE FUNCTION duepost.oldest_due() RETURNS TABLE (route text, due_at timestamptz)
LANGUAGE sql STABLE ROWS 10 AS $$
    SELECT line.route, min(oldest.due_at)
    FROM duepost.pending_lines() AS line
    CROSS JOIN LATERAL (
        SELECT i.due_at
        FROM duepost.item AS i
        WHERE i.route = line.route AND i.priority = line.priority AND NOT i.is_held AND i.due_at <= now()
          AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
        ORDER BY i.due_at
        LIMIT 1
    ) AS oldest
    GROUP BY line.route
$$;
COMMENT ON FUNCTION duepost.oldest_due IS 'Since when the oldest due item of each route that no worker has in hand has been due.';

CREATE OR REPLACE FUNCTION duepost.pause_route(route text, seconds double precision, because text)
RETURNS double precision
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    pause double precision;
BEGIN
    UPDATE duepost.route AS r
    SET pause = pause_route.seconds,
        paused_until = now() + make_interval(secs => pause_route.seconds),
        paused_because = because
    WHERE r.name = pause_route.route
      AND (r.paused_until BETWEEN now() + make_interval(secs => pause_route.seconds)
           AND now() + make_interval(secs => 2 * r.pause)) IS NOT TRUE
    RETURNING r.pause INTO pause;
    RETURN pause;
END
$$;
COMMENT ON FUNCTION duepost.pause_route IS
    'Whoever takes what leaves by a route asks for a pause: nothing is claimed for these seconds, or longer where that is so '
    'already; gives the seconds, NULL where it pauses for longer already.';
