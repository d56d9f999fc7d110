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
