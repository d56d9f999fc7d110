-- Rates by relay, by recipient's domain and by endpoint, for all workers together. What is limited is kept by route and domain: of the
-- route `endpoint:` each endpoint is one, by its name. A place is held from before an email's envelope, or a request, goes out
-- until a second after its last answer, by the worker's own clock, which counts what passes and is never set: so in no second
-- are there more emails than places, however long a worker, the network or a relay stalls. Nothing here compares times.
-- Lock order: items by ascending id, then destinations by domain.

-- How much of a destination may be in use. `learnt` grows by a fifth every half a minute, and is over once it is twice what
-- there was before; one that is still to come is from before the clock was set back, and is over.
CREATE OR REPLACE FUNCTION duepost.limits_of(route text)
RETURNS TABLE (
    domain text, per_second numeric, places integer, seconds double precision, connections integer, learnt numeric,
    because text
)
LANGUAGE plpgsql STABLE ROWS 10
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT known.domain, known.per_second,
           CASE WHEN known.per_second IS NOT NULL THEN greatest(1, floor(known.per_second)) END::integer,
           CASE WHEN known.per_second < 1 THEN 1 / known.per_second ELSE 1 END::double precision,
           known.connections, known.learnt, known.because
    FROM (
        SELECT coalesce(r.domain, d.domain) AS domain, least(r.per_second, d.learnt) AS per_second, r.connections, d.learnt,
               CASE WHEN d.learnt IS NOT NULL THEN d.because END AS because
        FROM (SELECT s.domain, s.per_second, s.connections FROM duepost.rate AS s WHERE s.route = limits_of.route) AS r
        FULL JOIN (
            SELECT l.domain, l.learnt, l.because
            FROM (
                SELECT o.domain, o.learnt_from, o.learnt_because AS because, round(
                    o.learnt * 1.2 ^ least(200, floor(extract(epoch FROM now() - o.learnt_at)::numeric / 30)), 3
                ) AS learnt
                FROM duepost.destination AS o
                WHERE o.route = limits_of.route AND o.learnt_at <= now()
            ) AS l
            WHERE l.learnt < 2 * l.learnt_from
        ) AS d ON d.domain = r.domain
    ) AS known
    ORDER BY known.domain;
END
$$;
COMMENT ON FUNCTION duepost.limits_of IS
    'What of a route is limited, by domain (empty: the whole route): emails a second, as operators allow or as was learnt of the '
    'relay''s replies; places for that, and for how many seconds each is held after its email; connections at once.';

-- The same in JSON, for workers; NULL where nothing is limited.
CREATE OR REPLACE FUNCTION duepost.limits_in_json(route text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT jsonb_agg(l)::text FROM duepost.limits_of($1) AS l
$$;

-- The caller's transaction holds them until it ends, by domain.
CREATE OR REPLACE FUNCTION duepost.lock_destinations(route text, domains text[]) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    number integer;
BEGIN
    INSERT INTO duepost.destination (route, domain)
    SELECT lock_destinations.route, wanted.domain
    FROM unnest(lock_destinations.domains) AS wanted (domain)
    WHERE NOT EXISTS (
        SELECT FROM duepost.destination AS d WHERE d.route = lock_destinations.route AND d.domain = wanted.domain
    )
    ORDER BY wanted.domain
    ON CONFLICT DO NOTHING;
    PERFORM FROM duepost.destination AS d
    WHERE d.route = lock_destinations.route AND d.domain = ANY (lock_destinations.domains)
    ORDER BY d.domain
    FOR NO KEY UPDATE;
END
$$;

-- Places that others hold, dead ones for a second longer than they could have used them: their numbers say so, not their clock.
CREATE OR REPLACE FUNCTION duepost.places_in_use(
    route text, domain text, seconds double precision, OUT held integer, OUT speaking integer
)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    SELECT coalesce(sum(p.held), 0), coalesce(sum(p.speaking), 0) INTO held, speaking
    FROM duepost.destination_worker AS p
    JOIN duepost.worker AS w ON w.id = p.worker_id
    WHERE p.route = places_in_use.route AND p.domain = places_in_use.domain
      AND (w.gone_at IS NULL OR w.gone_at BETWEEN now() - make_interval(secs => places_in_use.seconds + 1) AND now());
END
$$;

-- A worker says how many places it holds, and how many it wants. That is absolute, so that an answer that is lost does no harm.
-- `wants` are objects {"domains": [...], "number": n, "urgent": u}: a place of each of those domains, or none. While urgent ones
-- wait, they alone get places, whichever worker has them.
CREATE OR REPLACE FUNCTION duepost.take_places(
    route text, worker_id integer, domains text[], held integer[], speaking integer[], wants jsonb
) RETURNS integer[]
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    want    jsonb;
    wanted  text;
    granted integer[] := '{}';
    number  integer;
    lives   boolean;
    limits  jsonb;
    allowed jsonb;
    used    record;
BEGIN
    PERFORM duepost.lock_destinations(route, domains);
    INSERT INTO duepost.destination_worker AS p (route, domain, worker_id, held, speaking)
    SELECT take_places.route, told.domain, take_places.worker_id, told.held, told.speaking
    FROM unnest(take_places.domains, take_places.held, take_places.speaking) AS told (domain, held, speaking)
    ON CONFLICT ON CONSTRAINT destination_worker_pkey DO UPDATE
    SET held = excluded.held, speaking = excluded.speaking
    WHERE p.held <> excluded.held OR p.speaking <> excluded.speaking;
    IF jsonb_array_length(wants) = 0 THEN
        RETURN granted;
    END IF;
    lives := EXISTS (SELECT FROM duepost.worker AS w WHERE w.id = take_places.worker_id AND w.gone_at IS NULL);
    limits := (SELECT jsonb_object_agg(l.domain, to_jsonb(l)) FROM duepost.limits_of(take_places.route) AS l);
    FOR want IN SELECT w.value FROM jsonb_array_elements(take_places.wants) AS w LOOP
        number := CASE WHEN lives THEN (want ->> 'number')::integer ELSE 0 END;
        IF (want ->> 'urgent')::integer > 0 THEN
            number := least(number, (want ->> 'urgent')::integer);
            UPDATE duepost.destination AS d SET urgent_at = now()
            WHERE d.route = take_places.route AND want -> 'domains' ? d.domain;
        ELSIF EXISTS (
            SELECT FROM duepost.destination AS d
            WHERE d.route = take_places.route AND d.domain = ANY (take_places.domains) AND want -> 'domains' ? d.domain
              AND d.urgent_at BETWEEN now() - interval '0.5 s' AND now()
        ) THEN
            number := 0;
        END IF;
        FOR wanted IN SELECT d.value FROM jsonb_array_elements_text(want -> 'domains') AS d LOOP
            allowed := limits -> wanted;
            used := duepost.places_in_use(
                take_places.route, wanted, coalesce((allowed ->> 'seconds')::double precision, 1)
            );
            number := greatest(0, least(
                number, (allowed ->> 'places')::integer - used.held, (allowed ->> 'connections')::integer - used.speaking
            ));
        END LOOP;
        IF number > 0 THEN
            UPDATE duepost.destination_worker AS p
            SET held = p.held + number, speaking = p.speaking + number
            WHERE p.route = take_places.route AND p.worker_id = take_places.worker_id
              AND p.domain IN (SELECT d.value FROM jsonb_array_elements_text(want -> 'domains') AS d);
        END IF;
        granted := granted || number;
    END LOOP;
    RETURN granted;
END
$$;
COMMENT ON FUNCTION duepost.take_places IS
    'A worker says how many places of each domain it holds, and of those how many for emails under way, and asks for more; gives '
    'how many it gets of each that it wants: no more than all workers together may have.';

-- Sending → scheduled for claims that are not begun as their destination takes no more for now: no attempt is counted. Each gets a
-- turn of its own behind those that have one, at the destination's pace; but none further ahead than `longest`, as the pace
-- may be another one by then. Items that another transaction holds are left out.
CREATE OR REPLACE FUNCTION duepost.give_turns(
    route text, domains text[], ids bigint[], claims bigint[], longest double precision, why text
) RETURNS TABLE (id bigint, seconds double precision)
LANGUAGE plpgsql ROWS 32
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    gone   bigint[];
    begins timestamptz;
    step   double precision;
    last   timestamptz;
BEGIN
    WITH item AS MATERIALIZED (
        SELECT i.id FROM duepost.item AS i WHERE i.id = ANY (give_turns.ids) ORDER BY i.id FOR NO KEY UPDATE SKIP LOCKED
    ), released AS (
        DELETE FROM duepost.in_hand AS h
        USING unnest(give_turns.ids, give_turns.claims) AS claimed (id, claim)
        WHERE h.item_id = ANY (give_turns.ids) AND h.item_id = claimed.id AND h.claim = claimed.claim
          AND h.item_id IN (SELECT item.id FROM item)
        RETURNING h.item_id
    ), message AS (
        DELETE FROM dramatiq.queue AS m USING released WHERE m.key = released.item_id AND m.key = ANY (give_turns.ids)
    )
    SELECT array_agg(released.item_id ORDER BY released.item_id) INTO gone FROM released;
    IF gone IS NULL THEN
        RETURN;
    END IF;
    PERFORM duepost.lock_destinations(route, domains);
    SELECT max(coalesce(1.0 / l.per_second, 0.25 / l.connections)) INTO step
    FROM duepost.limits_of(give_turns.route) AS l
    WHERE l.domain = ANY (give_turns.domains);
    step := coalesce(step, 0);
    SELECT max(d.turns_until) INTO begins
    FROM duepost.destination AS d
    WHERE d.route = give_turns.route AND d.domain = ANY (give_turns.domains)
      AND d.turns_until BETWEEN now() AND now() + make_interval(secs => 2 * longest);
    begins := greatest(begins, now() + interval '1 s');
    last := least(begins + make_interval(secs => step * cardinality(gone)), now() + make_interval(secs => longest));
    UPDATE duepost.destination AS d SET turns_until = last
    WHERE d.route = give_turns.route AND d.domain = ANY (give_turns.domains);
    RETURN QUERY
    UPDATE duepost.item AS i
    SET due_at = least(
            begins + make_interval(secs => step * turn.place),
            -- Those without a turn keep their order.
            now() + make_interval(secs => longest + 0.0001 * turn.place),
            i.expires_at
        ),
        last_error = give_turns.why,
        probe = false
    FROM unnest(gone) WITH ORDINALITY AS turn (id, place)
    WHERE i.id = ANY (gone) AND i.id = turn.id
    RETURNING i.id, extract(epoch FROM last - now())::double precision;
END
$$;
COMMENT ON FUNCTION duepost.give_turns IS
    'sending → scheduled for claimed items whose destination takes no more for now: each is due when its turn is. Gives those that '
    'it did that to, and for how many seconds turns are given already.';

-- The relay has had too much of what goes to a domain: half of what was allowed, or of what it was sent where that is less; at
-- most once in half a minute, as answers to what was under way come late, and never below one in ten seconds.
CREATE OR REPLACE FUNCTION duepost.learn_rate(
    route text, domain text, seen double precision, because text,
    OUT per_second numeric, OUT is_new boolean, OUT domains integer
)
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    allowed record;
    before  numeric;
BEGIN
    PERFORM duepost.lock_destinations(route, ARRAY[domain]);
    SELECT l.per_second, l.learnt INTO allowed FROM duepost.limits_of(learn_rate.route) AS l WHERE l.domain = learn_rate.domain;
    before := least(allowed.per_second, greatest(seen, 2)::numeric);
    UPDATE duepost.destination AS d
    SET learnt = greatest(0.1, round(before / 2, 3)),
        -- Of several in a row it comes back to what there was before the first.
        learnt_from = CASE WHEN allowed.learnt IS NOT NULL THEN greatest(d.learnt_from, before) ELSE before END,
        learnt_at = now(),
        learnt_because = because
    WHERE d.route = learn_rate.route AND d.domain = learn_rate.domain
      AND (d.learnt_at BETWEEN now() - interval '30 s' AND now()) IS NOT TRUE
    RETURNING d.learnt INTO per_second;
    is_new := FOUND;
    per_second := coalesce(per_second, allowed.per_second);
    domains := (
        SELECT count(*) FROM duepost.destination AS d
        WHERE d.route = learn_rate.route AND d.domain <> '' AND d.learnt_at BETWEEN now() - interval '1 min' AND now()
    );
END
$$;
COMMENT ON FUNCTION duepost.learn_rate IS
    'The relay has had too much of us at a domain, to which about `seen` emails went in a second: it gets half as many from now on. '
    'Gives how many, whether that is new, and to how many domains that happened in the last minute.';

CREATE OR REPLACE FUNCTION duepost.set_rate(
    route text DEFAULT 'default', domain text DEFAULT NULL, per_second numeric DEFAULT NULL, connections integer DEFAULT NULL,
    reason text DEFAULT NULL, by_whom text DEFAULT NULL, via text DEFAULT 'sql', token text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    action  record;
    changed boolean;
    place   CONSTANT record := duepost.rated_place(route, domain);
BEGIN
    PERFORM duepost.check_rated_endpoint(place.route, place.domain);
    IF per_second IS NULL AND connections IS NULL THEN
        PERFORM duepost.raise_bad_argument('per_second', 'must be given, or connections');
    END IF;
    IF per_second NOT BETWEEN 0.001 AND 10000 THEN
        PERFORM duepost.raise_bad_argument('per_second', 'must be from 0.001 to 10000');
    END IF;
    IF connections NOT BETWEEN 1 AND 10000 THEN
        PERFORM duepost.raise_bad_argument('connections', 'must be from 1 to 10000');
    END IF;
    action := duepost.begin_action(
        'set_rate', coalesce(by_whom, session_user::text), via, reason,
        jsonb_strip_nulls(jsonb_build_object(
            'route', route, 'domain', place.named, 'per_second', per_second, 'connections', connections
        )), token
    );
    IF NOT action.is_new THEN
        RETURN 'repeated';
    END IF;
    INSERT INTO duepost.rate AS r (route, domain, per_second, connections, set_by, reason)
    VALUES (
        place.route, place.domain, set_rate.per_second, set_rate.connections, coalesce(by_whom, session_user::text),
        set_rate.reason
    )
    ON CONFLICT ON CONSTRAINT rate_pkey DO UPDATE
    SET per_second = excluded.per_second, connections = excluded.connections, set_at = now(), set_by = excluded.set_by,
        reason = excluded.reason
    WHERE r.per_second IS DISTINCT FROM excluded.per_second OR r.connections IS DISTINCT FROM excluded.connections;
    changed := FOUND;
    PERFORM duepost.end_action_with(action.id, changed::integer, 'already');
    RETURN CASE WHEN changed THEN 'set' ELSE 'already' END;
END
$$;
COMMENT ON FUNCTION duepost.set_rate IS
    'At most per_second items in any second, and at most connections of them at once, leave by a route, or by it to a domain, '
    'for all workers together; an endpoint is the route endpoint:NAME. Within a second in force everywhere. set, already (it was so) or repeated (its token is known).';

CREATE OR REPLACE FUNCTION duepost.remove_rate(
    route text DEFAULT 'default', domain text DEFAULT NULL, reason text DEFAULT NULL, by_whom text DEFAULT NULL,
    via text DEFAULT 'sql', token text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    action  record;
    changed boolean;
    place   CONSTANT record := duepost.rated_place(route, domain);
BEGIN
    action := duepost.begin_action(
        'remove_rate', coalesce(by_whom, session_user::text), via, reason,
        jsonb_strip_nulls(jsonb_build_object('route', route, 'domain', place.named)), token
    );
    IF NOT action.is_new THEN
        RETURN 'repeated';
    END IF;
    DELETE FROM duepost.rate AS r WHERE r.route = place.route AND r.domain = place.domain;
    changed := FOUND;
    -- What was learnt, and turns that were given, go with it.
    UPDATE duepost.destination AS d
    SET turns_until = NULL, learnt = NULL, learnt_from = NULL, learnt_at = NULL, learnt_because = NULL
    WHERE d.route = place.route AND d.domain = place.domain AND (d.learnt IS NOT NULL OR d.turns_until IS NOT NULL);
    changed := changed OR FOUND;
    PERFORM duepost.end_action_with(action.id, changed::integer, 'already');
    RETURN CASE WHEN changed THEN 'removed' ELSE 'not_found' END;
END
$$;
COMMENT ON FUNCTION duepost.remove_rate IS
    'A route, or a domain by it, is limited no more, neither by an operator nor by what was learnt. removed, not_found or repeated.';

-- Where a rate is kept that is called by its route and domain; `named` is the domain as it is told, NULL for a whole route.
CREATE OR REPLACE FUNCTION duepost.rated_place(INOUT route text, INOUT domain text, OUT named text)
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF (route ~ '^([a-z][a-z0-9_]{0,62}|endpoint:[a-z0-9][a-z0-9_.-]{0,99})$') IS NOT TRUE THEN
        PERFORM duepost.raise_bad_argument('route', 'must be the name of a relay, such as default, or endpoint:NAME');
    ELSIF starts_with(route, 'endpoint:') AND domain IS NOT NULL THEN
        PERFORM duepost.raise_bad_argument('domain', 'must not be given: an endpoint has none');
    ELSIF starts_with(route, 'endpoint:') THEN
        domain := substr(route, 10);
        route := 'endpoint:';
        RETURN;
    ELSIF domain IS NOT NULL THEN
        named := duepost.ascii_domain(domain);
        IF named IS NULL THEN
            PERFORM duepost.raise_bad_argument('domain', 'must be a domain, such as example.com');
        END IF;
    END IF;
    domain := coalesce(named, '');
END
$$;

CREATE OR REPLACE FUNCTION duepost.check_rated_endpoint(route text, name text) RETURNS void
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    format CONSTANT text := (SELECT e.format FROM duepost.endpoint AS e WHERE e.name = check_rated_endpoint.name);
BEGIN
    IF route <> 'endpoint:' THEN
        RETURN;
    ELSIF format IS NULL THEN
        PERFORM duepost.raise_bad_argument('route', 'there is no endpoint of this name');
    ELSIF format = 'function' THEN
        PERFORM duepost.raise_bad_argument('route', 'a function of this database has no rate');
    END IF;
END
$$;
