-- What has fallen due just now: asked by each worker process many times a second, so it costs as little as it can.

-- What is urgent first, then normal, then bulk, each the oldest first; at most 32 of each route, and of all endpoints together, which are
-- asked for as `endpoint:`. Of the routes in `busy` only what is urgent. Planned once in a session; nothing else is looked at
-- while nothing is due. Only what has been due for a second at the most: while a snapshot is held open, all that was delivered
-- before lies there still.
-- What became visible later than that, as in a long transaction, is left to the claims and the scheduler's passes, as is what has expired.
CREATE OR REPLACE FUNCTION duepost.due_now_v2(served text[], busy text[]) RETURNS TABLE (id bigint, route text, priority smallint)
LANGUAGE plpgsql STABLE ROWS 32
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    asked  text;
    line   smallint;
    due    bigint[];
    number integer;
BEGIN
    FOREACH asked IN ARRAY busy || served LOOP
        number := 0;
        FOREACH line IN ARRAY CASE WHEN asked = ANY (busy) THEN '{-1}' ELSE '{-1,0,1}' END::smallint[] LOOP
            IF asked = 'endpoint:' THEN
                due := ARRAY(
                    SELECT i.id
                    FROM duepost.item AS i
                    WHERE i.channel = 'message' AND NOT i.is_held AND i.priority = line
                      AND i.due_at BETWEEN now() - interval '1 s' AND now()
                      AND strpos(i.route, 'paused:') <> 1
                      AND (i.expires_at IS NULL OR i.expires_at > now())
                      AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
                      AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id)
                      AND NOT EXISTS (SELECT FROM duepost.control AS c WHERE c.paused)
                      AND NOT EXISTS (
                          SELECT FROM duepost.endpoint AS e WHERE 'endpoint:' || e.name = i.route AND e.disabled_at IS NOT NULL
                      )
                      AND NOT duepost.is_route_blocked(i.route)
                    ORDER BY i.due_at, i.id
                    LIMIT 32 - number
                );
            ELSE
                due := ARRAY(
                    SELECT i.id
                    FROM duepost.item AS i
                    WHERE i.route = asked AND i.priority = line AND NOT i.is_held
                      AND i.due_at BETWEEN now() - interval '1 s' AND now()
                      AND (i.expires_at IS NULL OR i.expires_at > now())
                      AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
                      AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id)
                    ORDER BY i.due_at, i.id
                    LIMIT 32 - number
                );
                EXIT WHEN due <> '{}' AND (SELECT c.paused OR duepost.is_route_blocked(asked) FROM duepost.control AS c);
            END IF;
            IF due <> '{}' THEN
                number := number + cardinality(due);
                RETURN QUERY SELECT each.id, asked, line FROM unnest(due) WITH ORDINALITY AS each (id, place) ORDER BY each.place;
            END IF;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.due_now_v2 IS
    'Of the routes that the caller serves, the ids of the items that have fallen due within the last second and are not '
    'enqueued, each with its route and its priority (-1 urgent, 0, 1 bulk), in the order in which they are to leave; of busy ones only '
    'what is urgent. None of a route by which nothing may be sent.';

-- Workers of 0.2.0 call this.
CREATE OR REPLACE FUNCTION duepost.due_now(served text[]) RETURNS TABLE (id bigint, route text)
LANGUAGE sql STABLE ROWS 32 AS $$
    SELECT due.id, due.route FROM duepost.due_now_v2($1, '{}') AS due
$$;
