-- What has fallen due just now: asked by each worker process many times a second, so it costs as little as it can.

-- The oldest first; at most 32 of each route, and of all endpoints together, which are asked for as `endpoint:`. Planned once
-- in a session; nothing else is looked at while nothing is due. Only what has been due for a second at the most: while a
-- snapshot is held open, all that was delivered before lies there still.
-- What became visible later than that, as in a long transaction, is left to the scheduler's passes, as is what has expired.
CREATE OR REPLACE FUNCTION duepost.due_now(served text[]) RETURNS TABLE (id bigint, route text)
LANGUAGE plpgsql STABLE ROWS 32
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    asked text;
    due   bigint[];
BEGIN
    FOREACH asked IN ARRAY served LOOP
        IF asked = 'endpoint:' THEN
            RETURN QUERY
            SELECT i.id, asked
            FROM duepost.item AS i
            WHERE i.channel = 'message' AND NOT i.is_held AND i.due_at BETWEEN now() - interval '1 s' AND now()
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
            LIMIT 32;
            CONTINUE;
        END IF;
        due := ARRAY(
            SELECT i.id
            FROM duepost.item AS i
            WHERE i.route = asked AND NOT i.is_held AND i.due_at BETWEEN now() - interval '1 s' AND now()
              AND (i.expires_at IS NULL OR i.expires_at > now())
              AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id)
              AND NOT EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id)
            ORDER BY i.due_at, i.id
            LIMIT 32
        );
        IF due <> '{}' AND NOT (SELECT c.paused OR duepost.is_route_blocked(asked) FROM duepost.control AS c) THEN
            RETURN QUERY SELECT each.id, asked FROM unnest(due) WITH ORDINALITY AS each (id, place) ORDER BY each.place;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION duepost.due_now IS
    'Of the routes that the caller serves, the ids of the emails that have fallen due within the last second and are not '
    'enqueued, each with its route; none of a route by which nothing may be sent.';
