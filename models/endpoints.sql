-- What operators do with endpoints: each statement calls a function that a member of duepost_operator may call.

-- name: set
-- Gives the secret that was made, if one was.
SELECT duepost.set_endpoint(
    name => %(name)s::text, format => %(format)s::text, url => %(url)s::text, secret => %(secret)s::text,
    function => %(function)s::text, options => %(options)s::jsonb, allow_private => %(allow_private)s::boolean,
    rotate_for => coalesce(%(rotate_for)s::interval, '24 hours')
)

-- name: disable
SELECT duepost.disable_endpoint(%(name)s::text, %(reason)s::text)

-- name: remove
-- Gives how many messages it ends.
SELECT duepost.remove_endpoint(%(name)s::text)

-- name: all
-- By name, without secrets.
SELECT name, format, target, secret, rotated_until, allow_private, disabled_at, disabled_because, failing_since,
       changed_at, pending, circuit_reason, probe_at
FROM duepost.endpoints()

-- name: function
-- What there is of an endpoint's function, by the rules of duepost.call_message_function(), for whoever asks.
SELECT p.oid IS NOT NULL,
       p.prokind = 'f' AND oidvectortypes(p.proargtypes) = 'bigint, jsonb',
       pg_get_userbyid(p.proowner),
       pg_has_role(p.proowner, duepost.nspowner, 'MEMBER'),
       pg_get_userbyid(duepost.nspowner),
       has_schema_privilege(p.pronamespace, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE'),
       current_user
FROM pg_namespace AS duepost
LEFT JOIN (
    -- By its name: to_regprocedure() is for those alone who may use its schema.
    SELECT f.oid, f.proname, f.prokind, f.proargtypes, f.proowner, f.pronamespace, n.nspname
    FROM pg_proc AS f
    JOIN pg_namespace AS n ON n.oid = f.pronamespace
) AS p ON replace(format('%%I.%%I(%%s)', p.nspname, p.proname, oidvectortypes(p.proargtypes)), ', ', ',')
          = replace(%(function)s, ', ', ',')
WHERE duepost.nspname = 'duepost'
