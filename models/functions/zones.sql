-- Local times: what moment a clock on a wall shows them at. Worked out here and nowhere else, by PostgreSQL's zone data.

-- The names of the zones, as they are spelled: to read pg_timezone_names takes as long as a hundred emails take.
INSERT INTO duepost.zone (name) SELECT z.name FROM pg_timezone_names AS z ON CONFLICT DO NOTHING;

CREATE OR REPLACE FUNCTION duepost.is_zone(name text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM duepost.zone AS z WHERE z.name = is_zone.name)
        -- Zone data that is newer than the last `duepost migrate`.
        OR EXISTS (SELECT FROM pg_timezone_names AS z WHERE z.name = is_zone.name);
END
$$;
COMMENT ON FUNCTION duepost.is_zone IS 'Whether pg_timezone_names has a zone of this name, spelled so.';

-- A time that a change of the clocks leaves out moves on by as much as they do; of one that comes twice the first is meant. What
-- PostgreSQL takes for it is the last of the two, and the wrong one at places whose winter is the time that is changed to.
CREATE OR REPLACE FUNCTION duepost.moment_at(local_time timestamp, zone text) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
DECLARE
    taken  CONSTANT timestamptz := local_time AT TIME ZONE zone;
    before CONSTANT timestamptz := taken - interval '1 day';
    -- By the offset that held a day ago.
    first  CONSTANT timestamptz :=
        (local_time - ((before AT TIME ZONE zone) - (before AT TIME ZONE 'UTC'))) AT TIME ZONE 'UTC';
BEGIN
    IF taken AT TIME ZONE zone <> local_time THEN
        RETURN first;
    END IF;
    RETURN CASE WHEN first AT TIME ZONE zone = local_time THEN least(first, taken) ELSE taken END;
END
$$;
COMMENT ON FUNCTION duepost.moment_at IS
    'The moment at which clocks of a zone show a local time; of a time that they leave out, and of one that they show twice, see docs.';

-- Apart, so that whatever a team's own view fails of is this user's alone: NULL then, as for who has none.
CREATE OR REPLACE FUNCTION duepost.zone_of(wanted text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT left(r.timezone::text, 200) FROM duepost.recipient AS r WHERE r.user_id::text = wanted LIMIT 1);
EXCEPTION
    WHEN query_canceled OR admin_shutdown THEN RAISE;
    WHEN OTHERS THEN RETURN NULL;
END
$$;

-- Of several users the last one's moment; NULL where none of them has a zone.
CREATE OR REPLACE FUNCTION duepost.moment_for(users text[], local_time timestamp) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT max(duepost.moment_at(moment_for.local_time, known.zone))
        FROM (SELECT DISTINCT duepost.zone_of(u) AS zone FROM unnest(moment_for.users) AS u) AS known
        WHERE known.zone IS NOT NULL AND duepost.is_zone(known.zone)
    );
END
$$;

CREATE OR REPLACE FUNCTION duepost.is_local_time(value text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT value ~ '^[0-9]{4}(-[0-9]{2}-[0-9]{2}|[0-9]{4})[Tt ][0-9]{2}:?[0-9]{2}(:?[0-9]{2}([.][0-9]+)?)?$'
$$;

CREATE OR REPLACE FUNCTION duepost.local_time_error(email duepost.new_email) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN email.scheduled_local IS NULL THEN 'timezone: goes with scheduled_local only'
        WHEN email.scheduled_at IS NOT NULL
            THEN 'scheduled_local: give either scheduled_at or scheduled_local, and not both'
        WHEN NOT isfinite(email.scheduled_local) OR email.scheduled_local < '1970-01-02' OR email.scheduled_local >= '9999-12-30'
            THEN 'scheduled_local: must be between the years 1970 and 9999'
        WHEN email.timezone IS NULL AND email.users IS NULL
            THEN 'timezone: must be given with scheduled_local, where there is no user who has one'
        WHEN email.timezone IS NOT NULL AND NOT duepost.is_zone(email.timezone)
            THEN 'timezone: must be a name of pg_timezone_names, spelled as there, such as Europe/Berlin'
    END
$$;

-- The moment that the local time of an email means: in its zone, or in that of its users, which has to be one.
CREATE OR REPLACE FUNCTION duepost.moment_of_email(email duepost.new_email, OUT moment timestamptz, OUT error text)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    found record;
BEGIN
    IF email.timezone IS NOT NULL THEN
        moment := duepost.moment_at(email.scheduled_local, email.timezone);
        RETURN;
    END IF;
    FOR found IN SELECT u AS user_id, duepost.zone_of(u) AS zone FROM unnest(email.users) AS u LOOP
        error := CASE
            WHEN found.zone IS NULL
                THEN format('timezone: must be given: duepost.recipient has none of user %s', found.user_id)
            WHEN NOT duepost.is_zone(found.zone)
                THEN format(
                    'timezone: that of user %s in duepost.recipient is no name of pg_timezone_names, such as Europe/Berlin',
                    found.user_id
                )
            WHEN moment <> duepost.moment_at(email.scheduled_local, found.zone)
                THEN 'scheduled_local: its users have several time zones: schedule an email for each, or give timezone'
        END;
        IF error IS NOT NULL THEN
            RETURN;
        END IF;
        moment := duepost.moment_at(email.scheduled_local, found.zone);
    END LOOP;
END
$$;

-- What follows where users have another zone from now on: what is scheduled for their local time is due by that. Locks rows by
-- ascending id. Called in the transaction that changes the users, with the rights of the owner.
CREATE OR REPLACE FUNCTION duepost.follow_zones() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    item   record;
    moment timestamptz;
BEGIN
    FOR item IN
        SELECT i.id, i.scheduled_local, i.scheduled_at, i.expires_at
        FROM duepost.item AS i
        WHERE i.id IN (
            SELECT u.email_id
            FROM before AS b
            JOIN after AS a ON a.user_id = b.user_id AND a.timezone IS DISTINCT FROM b.timezone
            JOIN duepost.scheduled_email_user AS u ON u.user_id = a.user_id
        )
          AND i.scheduled_local IS NOT NULL AND i.attempts = 0 AND i.unknowns = 0 AND NOT i.is_held
        ORDER BY i.id
        FOR UPDATE
    LOOP
        CONTINUE WHEN duepost.is_in_hand(item.id);
        moment := duepost.moment_for(duepost.users_to_go(item.id), item.scheduled_local);
        IF moment >= item.expires_at THEN
            PERFORM duepost.finish(item.id, 'expired', 'its user''s new time zone makes it due after its expires_at');
        ELSIF moment <> item.scheduled_at THEN
            PERFORM duepost.move_item(item.id, moment, item.expires_at);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Until when quiet hours last that a moment lies in; NULL where it lies in none. An end that the clocks leave out, or show twice, is
-- the real one that comes next.
CREATE OR REPLACE FUNCTION duepost.quiet_until(moment timestamptz, zone text, quiet_from time, quiet_to time)
RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
DECLARE
    local_time CONSTANT timestamp := moment AT TIME ZONE zone;
    clock      CONSTANT time := local_time::time;
    ends_at    timestamp;
    found      timestamptz;
BEGIN
    IF quiet_from < quiet_to THEN
        IF clock >= quiet_from AND clock < quiet_to THEN
            ends_at := local_time::date + quiet_to;
        END IF;
    ELSIF quiet_from > quiet_to THEN
        IF clock >= quiet_from THEN
            ends_at := local_time::date + 1 + quiet_to;
        ELSIF clock < quiet_to THEN
            ends_at := local_time::date + quiet_to;
        END IF;
    END IF;
    found := duepost.moment_at(ends_at, zone);
    -- In an hour that comes twice it may be over, and come again.
    RETURN CASE WHEN found > moment THEN found WHEN ends_at AT TIME ZONE zone > moment THEN ends_at AT TIME ZONE zone END;
END
$$;
COMMENT ON FUNCTION duepost.quiet_until IS
    'Until when the quiet hours last, by the clock of a zone, that a moment lies in; NULL: it lies in none.';

-- Which of an item's users are to get nothing now, and until when; `awake` is how many may. One whose zone is no zone is named. An item
-- without users has the zone of its kind.
CREATE OR REPLACE FUNCTION duepost.quiet_users(
    users text[], moment timestamptz, usual_zone text, quiet_from time, quiet_to time,
    OUT awake integer, OUT ends_at timestamptz, OUT waits jsonb, OUT error text
)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    each_user text;
    zone      text;
    found     timestamptz;
BEGIN
    awake := 0;
    waits := '{}';
    FOREACH each_user IN ARRAY CASE WHEN users = '{}' THEN ARRAY[NULL] ELSE users END LOOP
        zone := coalesce(duepost.zone_of(each_user), usual_zone, 'UTC');
        IF NOT duepost.is_zone(zone) THEN
            error := format('timezone: %s is no name of pg_timezone_names, such as Europe/Berlin', left(zone, 100));
            waits := waits || jsonb_build_object(coalesce(each_user, ''), jsonb_build_object('error', error));
            CONTINUE;
        END IF;
        found := duepost.quiet_until(moment, zone, quiet_from, quiet_to);
        IF found IS NULL THEN
            awake := awake + 1;
        ELSE
            ends_at := least(ends_at, found);
            waits := waits || jsonb_build_object(
                coalesce(each_user, ''), jsonb_build_object('seconds', extract(epoch FROM found - moment))
            );
        END IF;
    END LOOP;
END
$$;

-- When an item that is due at a moment can be sent at the earliest: for the forecast.
CREATE OR REPLACE FUNCTION duepost.after_quiet_hours(
    id bigint, moment timestamptz, usual_zone text, quiet_from time, quiet_to time
) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
DECLARE
    found record;
BEGIN
    found := duepost.quiet_users(duepost.users_to_go(id), moment, usual_zone, quiet_from, quiet_to);
    RETURN CASE WHEN found.awake > 0 THEN moment ELSE coalesce(found.ends_at, moment) END;
END
$$;
