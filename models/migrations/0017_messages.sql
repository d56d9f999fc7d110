-- Scheduled messages: items of channel `message`, whose content is a JSON payload, and which leave through an endpoint that an
-- operator has registered. What an item has, they have: claim, ledger, journal, keys, users.
-- oldest worker: 0016

CREATE TABLE duepost.endpoint (
    name                  text PRIMARY KEY,
    format                text NOT NULL,
    url                   text,
    secret                text,
    previous_secret       text,
    previous_secret_until timestamptz,
    function              text,
    options               jsonb NOT NULL DEFAULT '{}',
    allow_private         boolean NOT NULL DEFAULT false,
    disabled_at           timestamptz,
    disabled_because      text,
    failing_since         timestamptz,
    created_at            timestamptz NOT NULL DEFAULT now(),
    changed_at            timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT name_is_in_lower_case CHECK (name ~ '^[a-z0-9][a-z0-9_.-]{0,99}$'),
    CONSTRAINT format_is_known CHECK (format IN ('webhook', 'slack', 'mattermost', 'zulip', 'matrix', 'function')),
    CONSTRAINT a_function_or_a_url_by_format CHECK (
        (function IS NOT NULL) = (format = 'function') AND (url IS NULL) = (format = 'function')
    ),
    CONSTRAINT a_secret_by_format CHECK (
        CASE
            WHEN format IN ('webhook', 'zulip', 'matrix') THEN secret IS NOT NULL
            ELSE secret IS NULL
        END
    ),
    CONSTRAINT a_former_secret_has_an_end CHECK (
        (previous_secret IS NULL) = (previous_secret_until IS NULL) AND (previous_secret IS NULL OR format = 'webhook')
    ),
    CONSTRAINT options_are_an_object CHECK (jsonb_typeof(options) = 'object'),
    CONSTRAINT disabled_for_a_reason CHECK ((disabled_at IS NULL) = (disabled_because IS NULL))
);
COMMENT ON TABLE duepost.endpoint IS
    'What messages leave through, as operators have registered it with set_endpoint(). Holds secrets: no client reads it.';
COMMENT ON COLUMN duepost.endpoint.secret IS
    'whsec_… (webhook), an API key (zulip) or a token (matrix), or env:NAME or file:PATH, which the worker reads.';
COMMENT ON COLUMN duepost.endpoint.previous_secret IS 'The one before a rotation: signed with too until previous_secret_until.';
COMMENT ON COLUMN duepost.endpoint.function IS 'Its signature, as to_regprocedure() reads it.';
COMMENT ON COLUMN duepost.endpoint.failing_since IS 'The first failure after which nothing has succeeded; NULL: none.';

CREATE TABLE duepost.message (
    item_id          bigint PRIMARY KEY,
    endpoint         text NOT NULL,
    wire_id          text NOT NULL,
    payload          jsonb NOT NULL,
    may_have_arrived boolean NOT NULL DEFAULT false,
    edited_at        timestamptz,
    CONSTRAINT wire_id_has_no_dot CHECK (wire_id ~ '^[A-Za-z0-9_]{1,100}$')
);
COMMENT ON TABLE duepost.message IS 'What a message that is not finished says, and to which endpoint.';
COMMENT ON COLUMN duepost.message.wire_id IS
    'The id that receivers tell repeated attempts by: the same for each, and no other database''s.';
COMMENT ON COLUMN duepost.message.may_have_arrived IS
    'Some request of it may have arrived: receivers throw another payload under the same id away.';
-- An endpoint's messages, as when it is removed.
CREATE INDEX message_endpoint ON duepost.message (endpoint, item_id);

ALTER TABLE duepost.control
    ADD COLUMN installation text NOT NULL
        DEFAULT left(encode(sha256(uuid_send(gen_random_uuid())), 'hex'), 16),
    ADD CONSTRAINT installation_is_hex CHECK (installation ~ '^[0-9a-f]{16}$');
COMMENT ON COLUMN duepost.control.installation IS 'Made at random, so that no two databases'' messages have the same id.';

-- What follows an unknown outcome depends on the channel, where a kind does not say: receivers of chat formats do not tell a
-- message that comes twice.
ALTER TABLE duepost.kind ALTER COLUMN on_unknown DROP NOT NULL, ALTER COLUMN on_unknown DROP DEFAULT;
ALTER TABLE duepost.kind
    ADD COLUMN late_after interval,
    ADD COLUMN catch_up text NOT NULL DEFAULT 'send',
    ADD COLUMN on_outcome text,
    ADD CONSTRAINT late_after_is_positive CHECK (late_after > interval '0'),
    ADD CONSTRAINT late_after_is_at_most_1000_years CHECK (late_after <= interval '1000 years'),
    ADD CONSTRAINT catch_up_is_send_or_expire CHECK (catch_up IN ('send', 'expire')),
    ADD CONSTRAINT on_outcome_has_its_schema CHECK (on_outcome LIKE '_%._%');
COMMENT ON COLUMN duepost.kind.on_unknown IS
    'NULL: resend for email, webhook, matrix and function; hold for slack, mattermost and zulip.';
COMMENT ON COLUMN duepost.kind.late_after IS 'How long after its time an item of this kind is late; NULL: never.';
COMMENT ON COLUMN duepost.kind.catch_up IS 'What follows for one that is late: send, or expire.';
COMMENT ON COLUMN duepost.kind.on_outcome IS
    'A function, with its schema, that is called as each item of this kind is concluded, in that transaction.';

-- The ledger has both channels. Its rows of before are all emails'.
ALTER TABLE duepost.delivery
    ADD COLUMN channel text NOT NULL DEFAULT 'email',
    ADD COLUMN endpoint text;
ALTER TABLE duepost.delivery ALTER COLUMN message_id_header DROP NOT NULL;
COMMENT ON COLUMN duepost.delivery.email_id IS 'The id of the email or the message: one sequence numbers both.';
COMMENT ON COLUMN duepost.delivery.endpoint IS 'Through which endpoint a message was to go; NULL for emails.';

-- What is kept so that it can be reopened.
ALTER TABLE duepost.undeliverable_email ADD COLUMN channel text NOT NULL DEFAULT 'email';
COMMENT ON COLUMN duepost.undeliverable_email.email IS
    'The row of scheduled_email, or of scheduled_message, content included; NULL where content is not kept '
    '(DUEPOST_KEEP_UNDELIVERABLE_DAYS=0).';

CREATE VIEW duepost.scheduled_message AS
SELECT i.id, i.kind, m.endpoint,
       CASE
           WHEN EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id) THEN 'sending'
           WHEN i.is_held THEN 'unknown'
           WHEN EXISTS (SELECT FROM dramatiq.queue AS q WHERE q.key = i.id) THEN 'queued'
           ELSE 'scheduled'
       END AS state,
       m.payload, i.scheduled_at, i.due_at, i.expires_at, i.attempts, i.unknowns, i.last_error, i.key, i.created_at,
       (SELECT h.claim FROM duepost.in_hand AS h WHERE h.item_id = i.id) AS claim,
       (SELECT h.worker_id FROM duepost.in_hand AS h WHERE h.item_id = i.id) AS worker_id,
       (SELECT h.claimed_at FROM duepost.in_hand AS h WHERE h.item_id = i.id) AS claimed_at,
       m.edited_at, i.route, m.wire_id, m.may_have_arrived
FROM duepost.item AS i
JOIN duepost.message AS m ON m.item_id = i.id;
COMMENT ON VIEW duepost.scheduled_message IS
    'Messages that are not finished, with their state: scheduled, queued, sending or unknown. To read only.';
