-- A scheduled email's life, in order. Each statement is titled with its transition and guarded on the state
-- that it expects, so that a late, lost or doubled message changes nothing.

-- name: due_page
-- The oldest due rows after a place in due order; served by scheduled_email_due.
SELECT id, due_at, kind, due_at > now() - make_interval(secs => %(on_time)s) AS is_on_time
FROM duepost.scheduled_email
WHERE state = 'scheduled'
  AND due_at <= now()
  AND (due_at, id) > (%(after_due_at)s, %(after_id)s)
ORDER BY due_at, id
LIMIT %(size)s

-- name: newest_due
-- What has only just fallen due, the newest first; served by scheduled_email_due.
SELECT id, due_at, kind, true AS is_on_time
FROM duepost.scheduled_email
WHERE state = 'scheduled'
  AND due_at <= now()
  AND due_at > now() - make_interval(secs => %(on_time)s)
ORDER BY due_at DESC, id DESC
LIMIT %(size)s

-- name: next_due_at
-- Seconds until something is to be done: the next due row, not before the relay takes more, or the next probe while the
-- circuit is open. Either from the beginning, or among what has been due for no longer than a few seconds. Nothing while a scheduler is at a long
-- pass: another one beside it would only be in its way.
WITH next AS MATERIALIZED (
    SELECT min(due_at) AS due_at
    FROM duepost.scheduled_email
    WHERE state = 'scheduled'
      AND due_at >= CASE WHEN %(anew)s THEN '-infinity'::timestamptz ELSE now() - interval '5 s' END
)
SELECT extract(epoch FROM greatest(
    CASE
        WHEN control.circuit_open
            THEN greatest(next.due_at, least(control.probe_at, now() + make_interval(secs => control.probe_pause)))
        ELSE next.due_at
    END,
    (
        SELECT max(route.paused_until) FROM duepost.route
        WHERE route.paused_until <= now() + make_interval(secs => 2 * route.pause)
    ),
    now()
) - now())::double precision
FROM duepost.control AS control, next
WHERE next.due_at IS NOT NULL
  AND NOT control.paused
  AND control.passing_until BETWEEN now() AND now() + interval '2 s' IS NOT TRUE

-- name: enqueue_each
-- scheduled → queued, with their messages, each in a transaction of its own.
CALL duepost.enqueue_emails(
    %(email_ids)s::bigint[], %(message_ids)s::uuid[], %(contents)s::jsonb[], %(queue_name)s,
    %(priorities)s::integer[], NULL
)

-- name: enqueue
-- scheduled → queued, for a probe. Nothing where another transaction holds the row, or where nothing may be enqueued.
-- Rows are locked by id alone and looked at afterwards: with the state in the same WHERE the planner may take a
-- partial index, and read everything that is due for each row.
-- The commit need not wait for the disk: a crash that loses it leaves the row scheduled, and without a message.
WITH email AS MATERIALIZED (
    SELECT id, state, due_at, expires_at FROM duepost.scheduled_email WHERE id = %(id)s FOR UPDATE SKIP LOCKED
), unhurried AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
)
UPDATE duepost.scheduled_email AS row
SET state = 'queued', message_id = %(message_id)s, probe = control.circuit_open
FROM email, unhurried, duepost.control AS control
WHERE row.id = %(id)s
  AND row.id = email.id
  AND email.state = 'scheduled'
  AND email.due_at <= now()
  AND (email.expires_at IS NULL OR email.expires_at > now())
  AND NOT control.paused
  AND (NOT control.circuit_open OR %(probe)s)
RETURNING row.id

-- name: lock_expired
-- An unfinished row past its expiry, locked. A row that is being sent, or unknown, has not expired.
WITH email AS MATERIALIZED (
    SELECT id, state, expires_at FROM duepost.scheduled_email WHERE id = %(id)s FOR UPDATE SKIP LOCKED
)
SELECT id FROM email WHERE state IN ('scheduled', 'queued') AND expires_at <= now()

-- name: finish
-- → ledger, whole.
SELECT duepost.finish(%(id)s, %(outcome)s, %(reply)s)

-- name: claim
-- queued → sending, each under a claim number of its own; gives the emails with the address, or the users, that are still
-- to get them. Several threads' claims share one statement and one commit.
SELECT id, claim, kind, attempts, unknowns, last_error, probe, message_id_header, date_seconds, sender, reply_to, headers,
       template, context, subject, body_text, body_html, mailbox_full_seconds, address, suppressed, users
FROM duepost.claim_emails_v2(%(ids)s::bigint[], %(worker_id)s)

-- name: read_recipients
SELECT known::text, failures::text FROM duepost.recipient_rows(%(users)s::text[])

-- name: claimed_unread
-- What a worker has claimed in an answer that it could not read: no more of it than it needs to give it back.
SELECT id, claim, kind, attempts, unknowns, last_error, probe, message_id_header, address, duepost.users_to_go(id)
FROM duepost.scheduled_email
WHERE id = ANY (%(ids)s::bigint[])
  AND state = 'sending'
  AND worker_id = %(worker_id)s
  AND claim <> ALL (%(held)s::bigint[])
ORDER BY id

-- name: read_claimed
-- The rest of it, for one.
SELECT extract(epoch FROM date_header)::double precision, sender, reply_to, headers::text, template, context::text,
       subject, body_text, body_html, 0::double precision, address,
       address IS NOT NULL AND EXISTS (
           SELECT FROM duepost.suppression AS s WHERE s.address = duepost.mailbox_key(row.address)
       )
FROM duepost.scheduled_email AS row
WHERE id = %(id)s AND claim = %(claim)s AND state = 'sending'

-- name: release
-- queued → scheduled: nothing may be sent now (paused, the circuit is open, or the relay has had too much), and that is
-- no attempt. What somebody else holds just now is left alone.
WITH held AS MATERIALIZED (
    SELECT id, state, probe FROM duepost.scheduled_email WHERE id = %(id)s FOR UPDATE SKIP LOCKED
)
UPDATE duepost.scheduled_email AS row
SET state = 'scheduled', message_id = NULL, probe = false
FROM held, duepost.control AS control
WHERE row.id = %(id)s
  AND row.id = held.id
  AND held.state = 'queued'
  AND (control.paused OR ((control.circuit_open OR duepost.is_route_paused()) AND NOT held.probe) OR %(anyway)s)
RETURNING row.id

-- name: is_claimable
-- Whether a row that gave nothing is only held by another transaction for the moment.
SELECT EXISTS (
    SELECT FROM duepost.scheduled_email WHERE id = %(id)s AND state = 'queued' AND due_at <= now()
)

-- name: give_back_strays
-- sending → scheduled: claimed in an answer that never arrived, so that nothing of it was sent; that is no attempt. Not
-- what was claimed since this statement began: it may be carried out late, and that claim's answer has arrived.
WITH stray AS MATERIALIZED (
    SELECT id, state, worker_id, claimed_at, claim
    FROM duepost.scheduled_email
    WHERE id = ANY (%(ids)s::bigint[])
    ORDER BY id
    FOR UPDATE SKIP LOCKED
)
UPDATE duepost.scheduled_email AS row
SET state = 'scheduled', probe = false, claim = NULL, worker_id = NULL, claimed_at = NULL
FROM stray
WHERE row.id = ANY (%(ids)s::bigint[])
  AND row.id = stray.id
  AND stray.state = 'sending'
  AND stray.worker_id = %(worker_id)s
  AND stray.claimed_at < now()
  AND stray.claim <> ALL (%(held)s::bigint[])
RETURNING row.id

-- name: give_back
-- sending → scheduled: claimed, and not begun; that is no attempt. What somebody else holds just now is left out.
WITH held AS MATERIALIZED (
    SELECT id, claim, state
    FROM duepost.scheduled_email
    WHERE id = ANY (%(ids)s::bigint[])
    ORDER BY id
    FOR UPDATE SKIP LOCKED
)
UPDATE duepost.scheduled_email AS row
SET state = 'scheduled', probe = false, claim = NULL, worker_id = NULL, claimed_at = NULL
FROM held, unnest(%(ids)s::bigint[], %(claims)s::bigint[]) AS claimed (id, claim)
WHERE row.id = ANY (%(ids)s::bigint[])
  AND row.id = held.id
  AND held.state = 'sending'
  AND held.id = claimed.id
  AND held.claim = claimed.claim
RETURNING row.id

-- name: lock_claimed
-- The row of a claim, locked: gone where the claim is no longer the row's.
SELECT id
FROM duepost.scheduled_email
WHERE id = %(id)s AND claim = %(claim)s AND state = 'sending'
FOR UPDATE

-- name: was_concluded
-- Whether this very claim has been concluded by its own worker: a commit whose answer was lost.
SELECT EXISTS (
    SELECT FROM duepost.attempt WHERE email_id = %(id)s AND claim = %(claim)s AND phase <> 'lost'
)

-- name: journal
-- What the attempt came to, for each recipient.
INSERT INTO duepost.attempt (
    email_id, claim, worker_id, user_id, started_at, finished_at, phase, verdict, code, enhanced_code, reply
)
SELECT row.id, row.claim, row.worker_id, result.user_id, row.claimed_at, now(), result.phase, result.verdict,
       result.code, result.enhanced_code, result.reply
FROM duepost.scheduled_email AS row,
     jsonb_to_recordset(%(results)s) AS result (
         user_id text, phase text, verdict text, code integer, enhanced_code text, reply text
     )
WHERE row.id = %(id)s AND row.claim = %(claim)s

-- name: settle
-- Users for whom the email is finished keep their outcome until it is finished for all.
UPDATE duepost.scheduled_email_user AS u
SET outcome = result.outcome,
    unknown = coalesce(result.verdict = 'unknown', false),
    address = result.address,
    code = result.code,
    enhanced_code = result.enhanced_code,
    reply = result.reply
FROM jsonb_to_recordset(%(results)s) AS result (
    user_id text, address text, verdict text, outcome text, code integer, enhanced_code text, reply text
)
WHERE u.email_id = %(id)s AND u.user_id = result.user_id AND u.outcome IS NULL

-- name: conclude_finished
-- sending → ledger, with the journal of the attempts: every recipient has an outcome, now or from an earlier attempt.
-- Several threads' conclusions share one statement and one commit, and their messages go with them.
SELECT duepost.conclude_emails(
    %(ids)s::bigint[], %(claims)s::bigint[], %(results)s::jsonb, %(message_ids)s::uuid[], %(message_claims)s::bigint[]
)

-- name: conclude_later
-- sending → scheduled: due again after a pause; never later than the expiry, which ends it on time.
UPDATE duepost.scheduled_email
SET state = 'scheduled',
    due_at = CASE
        WHEN %(pause)s IS NULL THEN due_at
        ELSE least(now() + make_interval(secs => %(pause)s), expires_at)
    END,
    attempts = attempts + %(counted)s::integer,
    last_error = %(error)s,
    mailbox_full_since = CASE WHEN %(mailbox_full)s THEN coalesce(mailbox_full_since, now()) END,
    probe = false, claim = NULL, worker_id = NULL, claimed_at = NULL
WHERE id = %(id)s AND claim = %(claim)s AND state = 'sending'
RETURNING id

-- name: conclude_unknown
-- sending → scheduled once more (the kind says resend, and it is the first time), or → unknown: a person decides.
UPDATE duepost.scheduled_email AS row
SET state = CASE
        WHEN row.unknowns = 0 AND coalesce(
            (SELECT k.on_unknown FROM duepost.email_kind AS k WHERE k.kind = row.kind), 'resend'
        ) = 'resend' THEN 'scheduled'
        ELSE 'unknown'
    END,
    due_at = now(),
    attempts = row.attempts + 1,
    unknowns = row.unknowns + 1,
    last_error = %(error)s,
    probe = false, claim = NULL, worker_id = NULL, claimed_at = NULL
WHERE row.id = %(id)s AND row.claim = %(claim)s AND row.state = 'sending'
RETURNING row.state

-- name: suppress
-- The relay called the address dead.
INSERT INTO duepost.suppression (address, enhanced_code, reply)
VALUES (duepost.mailbox_key(%(address)s), %(enhanced_code)s, %(reply)s)
ON CONFLICT (address) DO NOTHING

-- name: queued_without_message
-- queued rows whose message is gone; locked rows are in good hands.
SELECT row.id
FROM duepost.scheduled_email AS row
WHERE row.state = 'queued'
  AND NOT EXISTS (
      SELECT FROM dramatiq.queue AS message
      WHERE message.message_id = row.message_id AND message.state IN ('queued', 'consumed')
  )
ORDER BY row.id
FOR UPDATE OF row SKIP LOCKED

-- name: held_by_the_gone
-- sending rows whose worker is gone; served by scheduled_email_sending.
SELECT row.id, row.claim, row.kind
FROM duepost.worker AS worker
JOIN duepost.scheduled_email AS row ON row.worker_id = worker.id AND row.state = 'sending'
WHERE worker.gone_at IS NOT NULL
ORDER BY row.id

-- name: held_by
-- What a worker holds for longer than a while, by claim.
SELECT id, claim, kind
FROM duepost.scheduled_email
WHERE state = 'sending' AND worker_id = %(worker_id)s AND claimed_at < now() - interval '60 s'
ORDER BY id

-- name: retry_now
-- An operator's hand: due at once. A Date that no attempt has used yet is not left in the future.
UPDATE duepost.scheduled_email
SET due_at = now(), date_header = CASE WHEN attempts = 0 THEN least(date_header, now()) ELSE date_header END
WHERE id = %(id)s AND state = 'scheduled'
RETURNING id

-- name: lock_unknown
-- Held, or waiting to be sent once more.
SELECT id, address
FROM duepost.scheduled_email
WHERE id = %(id)s AND (state = 'unknown' OR (state = 'scheduled' AND unknowns > 0))
FOR UPDATE

-- name: resolve_resend
-- unknown → scheduled: a person says that it did not arrive, or that a second copy does no harm.
UPDATE duepost.scheduled_email
SET state = 'scheduled', due_at = now()
WHERE id = %(id)s AND (state = 'unknown' OR (state = 'scheduled' AND unknowns > 0))

-- name: resolve_sent_users
-- A person says that it arrived: so for the users whose outcome was unknown.
UPDATE duepost.scheduled_email_user
SET outcome = 'sent', unknown = false, reply = 'resolved by an operator',
    address = coalesce(
        address,
        (SELECT r.address FROM duepost.recipient AS r WHERE r.user_id = scheduled_email_user.user_id)
    )
WHERE email_id = %(id)s AND outcome IS NULL AND (unknown OR NOT EXISTS (
    SELECT FROM duepost.scheduled_email_user AS other WHERE other.email_id = %(id)s AND other.unknown
))

-- name: resolve_drop_users
-- A person says that nobody is to get it any more: so for the users who have no outcome yet.
UPDATE duepost.scheduled_email_user
SET outcome = 'cleared', unknown = false, reply = 'dropped by an operator'
WHERE email_id = %(id)s AND outcome IS NULL

-- name: failed_ids
-- Scheduled emails that have failed before; served by scheduled_email_failed.
SELECT id
FROM duepost.scheduled_email
WHERE last_error IS NOT NULL AND state = 'scheduled' AND (%(kind)s::text IS NULL OR kind = %(kind)s::text)
ORDER BY id

-- name: unknown_ids
-- What waits for a person; served by scheduled_email_unknown.
SELECT id
FROM duepost.scheduled_email
WHERE state = 'unknown' AND (%(kind)s::text IS NULL OR kind = %(kind)s::text)
ORDER BY id

-- name: users_to_go
SELECT count(*) FROM duepost.scheduled_email_user WHERE email_id = %(id)s AND outcome IS NULL

-- name: state_of
SELECT state FROM duepost.scheduled_email WHERE id = %(id)s
