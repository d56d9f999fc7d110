-- What operators do: each statement calls a function that a member of duepost_operator may call.

-- name: begin
SELECT id, is_new FROM duepost.begin_action(%(action)s, %(by)s, %(via)s, %(reason)s, %(asked)s::jsonb, %(token)s)

-- name: act
SELECT id, receipt FROM duepost.act_on_items(%(action_id)s, %(ids)s::bigint[])

-- name: end
SELECT duepost.end_action(%(action_id)s, %(gone)s)

-- name: recorded
-- An action as it stands.
SELECT a.id, a.action, a.by_whom, a.via, a.login, a.reason, a.asked, a.began_at, a.ended_at, a.done, a.skipped
FROM duepost.operator_action AS a
WHERE a.id = %(action_id)s

-- name: set_pause
SELECT duepost.set_pause(%(scope)s, %(name)s, %(is_on)s, %(by)s, %(via)s, %(reason)s, %(token)s)

-- name: unpark
SELECT duepost.unpark()

-- name: set_priority
SELECT duepost.set_priority(%(kind)s, %(priority)s, %(by)s, %(via)s, %(reason)s, %(token)s)

-- name: follow_priority
SELECT last_id, moved FROM duepost.follow_priority(%(kind)s, %(after_id)s)

-- name: request_probe
SELECT duepost.request_probe(%(route)s, %(by)s, %(via)s, %(reason)s, %(token)s)

-- name: reopenable
-- What is kept so that it can be reopened: a few days, read from end to end.
SELECT k.id
FROM duepost.undeliverable_email AS k
WHERE k.kept_until >= now() AND k.id > %(after_id)s
  AND (%(ids)s::bigint[] IS NULL OR k.id = ANY (%(ids)s::bigint[]))
  AND (%(kind)s::text IS NULL OR k.kind = %(kind)s::text)
  AND (%(channel)s::text IS NULL OR k.channel = %(channel)s::text)
  AND (%(since)s::timestamptz IS NULL OR k.finished_at >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR k.finished_at < %(until)s::timestamptz)
  AND EXISTS (
      SELECT FROM duepost.undeliverable_recipient AS r
      WHERE r.email_id = k.id
        AND (%(reply)s::text IS NULL OR strpos(lower(r.reply), lower(%(reply)s::text)) > 0)
        AND (%(route)s::text IS NULL OR coalesce(r.route, 'default') = %(route)s::text)
        AND (%(user)s::text IS NULL OR r.user_id = %(user)s::text)
        AND (%(address)s::text IS NULL OR (
            r.address IS NOT NULL AND duepost.mailbox_key(r.address) = duepost.mailbox_key(%(address)s::text)
        ))
  )
ORDER BY k.id
LIMIT %(limit)s
