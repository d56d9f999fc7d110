-- What is not finished is narrow: one row an item, of whatever channel, that is written when it is scheduled and deleted when
-- it is finished. What is being sent is a row of its own beside it, and a broker message is the mark of what is queued, so
-- that an item that is delivered at the first attempt is never updated. The content lies apart.
-- oldest worker: 0014

CREATE TABLE duepost.item (
    id                 bigint PRIMARY KEY,
    channel            text NOT NULL DEFAULT 'email',
    kind               text NOT NULL,
    route              text,
    scheduled_at       timestamptz NOT NULL,
    due_at             timestamptz NOT NULL,
    expires_at         timestamptz,
    created_at         timestamptz NOT NULL DEFAULT now(),
    attempts           integer NOT NULL DEFAULT 0,
    unknowns           integer NOT NULL DEFAULT 0,
    is_held            boolean NOT NULL DEFAULT false,
    probe              boolean NOT NULL DEFAULT false,
    mailbox_full_since timestamptz,
    key                text,
    last_error         text,
    CONSTRAINT expires_after_it_is_scheduled CHECK (expires_at > scheduled_at),
    CONSTRAINT attempts_only_count_up_from_zero CHECK (attempts >= 0 AND unknowns >= 0)
);
COMMENT ON TABLE duepost.item IS
    'What is not finished, of all channels. Finished items leave it, so its size depends on what is pending, never on history.';
COMMENT ON COLUMN duepost.item.is_held IS 'Nobody knows whether it arrived: a person decides (state unknown).';

CREATE TABLE duepost.in_hand (
    item_id    bigint PRIMARY KEY,
    claim      bigint NOT NULL,
    worker_id  integer NOT NULL,
    claimed_at timestamptz NOT NULL
);
COMMENT ON TABLE duepost.in_hand IS
    'What workers are sending: an item is in it from its claim to its conclusion, under a number that only grows.';

ALTER TABLE dramatiq.queue ADD COLUMN key bigint;
COMMENT ON COLUMN dramatiq.queue.key IS
    'What the message is about, where of such messages there is to be one at a time. A dead letter has none.';
CREATE UNIQUE INDEX queue_key ON dramatiq.queue (key) WHERE key IS NOT NULL;

INSERT INTO duepost.item (
    id, kind, scheduled_at, due_at, expires_at, created_at, attempts, unknowns, is_held, probe, mailbox_full_since, key,
    last_error
)
SELECT id, kind, scheduled_at, due_at, expires_at, created_at, attempts, unknowns, state = 'unknown', probe,
       mailbox_full_since, key, last_error
FROM duepost.scheduled_email;
INSERT INTO duepost.in_hand (item_id, claim, worker_id, claimed_at)
SELECT id, claim, worker_id, claimed_at FROM duepost.scheduled_email WHERE state = 'sending';
-- A message is told from all others of its email by the row: the others do nothing.
UPDATE dramatiq.queue AS message
SET key = row.id
FROM duepost.scheduled_email AS row
WHERE message.message_id = row.message_id AND row.state = 'queued' AND message.state <> 'rejected';

-- Due items in due order: the scheduler's page, the watch's next moment. What is queued or in hand is stepped over.
CREATE INDEX item_due ON duepost.item (due_at, id) WHERE NOT is_held;
-- What waits for a person, and what has failed: few of many.
CREATE INDEX item_held ON duepost.item (id) WHERE is_held;
CREATE INDEX item_failed ON duepost.item (id) WHERE last_error IS NOT NULL;

-- The content: written once, read by the claim, deleted once.
ALTER TABLE duepost.scheduled_email_user DROP CONSTRAINT scheduled_email_user_email_id_fkey;
ALTER TABLE duepost.scheduled_email RENAME TO email;
ALTER TABLE duepost.email RENAME CONSTRAINT scheduled_email_pkey TO email_pkey;
ALTER INDEX duepost.scheduled_email_mailbox RENAME TO email_mailbox;
-- One sequence numbers the items of all channels.
DO $$
DECLARE
    next_id CONSTANT bigint := nextval('duepost.scheduled_email_id_seq');
BEGIN
    ALTER TABLE duepost.email ALTER COLUMN id DROP IDENTITY;
    CREATE SEQUENCE duepost.scheduled_email_id_seq OWNED BY duepost.item.id;
    PERFORM setval('duepost.scheduled_email_id_seq', next_id, false);
END
$$;
ALTER TABLE duepost.email RENAME COLUMN id TO item_id;
ALTER TABLE duepost.email
    DROP COLUMN kind, DROP COLUMN state, DROP COLUMN scheduled_at, DROP COLUMN due_at, DROP COLUMN expires_at,
    DROP COLUMN attempts, DROP COLUMN unknowns, DROP COLUMN last_error, DROP COLUMN mailbox_full_since, DROP COLUMN key,
    DROP COLUMN created_at, DROP COLUMN message_id, DROP COLUMN probe, DROP COLUMN claim, DROP COLUMN worker_id,
    DROP COLUMN claimed_at;
COMMENT ON TABLE duepost.email IS 'What an email that is not finished says, and to which address.';

CREATE VIEW duepost.scheduled_email AS
SELECT i.id, i.kind,
       CASE
           WHEN EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = i.id) THEN 'sending'
           WHEN i.is_held THEN 'unknown'
           WHEN EXISTS (SELECT FROM dramatiq.queue AS m WHERE m.key = i.id) THEN 'queued'
           ELSE 'scheduled'
       END AS state,
       i.scheduled_at, i.due_at, i.expires_at, i.attempts, i.unknowns, i.last_error, i.mailbox_full_since, i.key,
       e.message_id_header, e.date_header, e.address, e.sender, e.reply_to, e.headers, e.template, e.context, e.subject,
       e.body_text, e.body_html, i.created_at,
       (SELECT m.message_id FROM dramatiq.queue AS m WHERE m.key = i.id) AS message_id,
       i.probe,
       (SELECT h.claim FROM duepost.in_hand AS h WHERE h.item_id = i.id) AS claim,
       (SELECT h.worker_id FROM duepost.in_hand AS h WHERE h.item_id = i.id) AS worker_id,
       (SELECT h.claimed_at FROM duepost.in_hand AS h WHERE h.item_id = i.id) AS claimed_at,
       i.route
FROM duepost.item AS i
JOIN duepost.email AS e ON e.item_id = i.id;
COMMENT ON VIEW duepost.scheduled_email IS
    'Emails that are not finished, with their state: scheduled, queued, sending or unknown.';

-- What is written to the view goes to the tables. A state is what the tables say: `sending` is a row in hand, `unknown` is
-- held; a message is what makes an item queued, so that it is not made queued here.
CREATE FUNCTION duepost.write_scheduled_email() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM dramatiq.queue AS m WHERE m.key = OLD.id;
        DELETE FROM duepost.in_hand AS h WHERE h.item_id = OLD.id;
        DELETE FROM duepost.scheduled_email_user AS u WHERE u.email_id = OLD.id;
        DELETE FROM duepost.email AS e WHERE e.item_id = OLD.id;
        DELETE FROM duepost.item AS i WHERE i.id = OLD.id;
        RETURN CASE WHEN FOUND THEN OLD END;
    END IF;
    NEW.state := coalesce(NEW.state, 'scheduled');
    IF NEW.state NOT IN ('scheduled', 'queued', 'sending', 'unknown') THEN
        RAISE EXCEPTION USING ERRCODE = '23514', MESSAGE = 'state: must be scheduled, queued, sending or unknown';
    END IF;
    IF TG_OP = 'INSERT' THEN
        NEW.id := coalesce(NEW.id, nextval('duepost.scheduled_email_id_seq'));
        INSERT INTO duepost.item (
            id, kind, route, scheduled_at, due_at, expires_at, created_at, attempts, unknowns, is_held, probe,
            mailbox_full_since, key, last_error
        ) VALUES (
            NEW.id, NEW.kind, NEW.route, NEW.scheduled_at, NEW.due_at, NEW.expires_at, coalesce(NEW.created_at, now()),
            coalesce(NEW.attempts, 0), coalesce(NEW.unknowns, 0), NEW.state = 'unknown', coalesce(NEW.probe, false),
            NEW.mailbox_full_since, NEW.key, NEW.last_error
        );
        INSERT INTO duepost.email (
            item_id, message_id_header, date_header, address, sender, reply_to, headers, template, context, subject,
            body_text, body_html
        ) VALUES (
            NEW.id, NEW.message_id_header, NEW.date_header, NEW.address, NEW.sender, NEW.reply_to, NEW.headers,
            NEW.template, NEW.context, NEW.subject, NEW.body_text, NEW.body_html
        );
    ELSE
        UPDATE duepost.item AS i
        SET kind = NEW.kind, route = NEW.route, scheduled_at = NEW.scheduled_at, due_at = NEW.due_at,
            expires_at = NEW.expires_at, created_at = NEW.created_at, attempts = NEW.attempts, unknowns = NEW.unknowns,
            is_held = NEW.state = 'unknown', probe = NEW.probe, mailbox_full_since = NEW.mailbox_full_since,
            key = NEW.key, last_error = NEW.last_error
        WHERE i.id = OLD.id;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        UPDATE duepost.email AS e
        SET message_id_header = NEW.message_id_header, date_header = NEW.date_header, address = NEW.address,
            sender = NEW.sender, reply_to = NEW.reply_to, headers = NEW.headers, template = NEW.template,
            context = NEW.context, subject = NEW.subject, body_text = NEW.body_text, body_html = NEW.body_html
        WHERE e.item_id = OLD.id
          AND (e.message_id_header, e.date_header, e.address, e.sender, e.reply_to, e.headers, e.template, e.context,
               e.subject, e.body_text, e.body_html)
              IS DISTINCT FROM
              (NEW.message_id_header, NEW.date_header, NEW.address, NEW.sender, NEW.reply_to, NEW.headers, NEW.template,
               NEW.context, NEW.subject, NEW.body_text, NEW.body_html);
        IF NEW.state IN ('scheduled', 'unknown') AND OLD.state IN ('queued', 'sending') THEN
            DELETE FROM dramatiq.queue AS m WHERE m.key = OLD.id;
        END IF;
        IF OLD.state = 'sending' AND (NEW.claim, NEW.worker_id, NEW.claimed_at, NEW.state)
            IS DISTINCT FROM (OLD.claim, OLD.worker_id, OLD.claimed_at, OLD.state)
        THEN
            DELETE FROM duepost.in_hand AS h WHERE h.item_id = OLD.id;
        ELSIF OLD.state = 'sending' THEN
            RETURN NEW;
        END IF;
    END IF;
    IF NEW.state = 'sending' THEN
        INSERT INTO duepost.in_hand (item_id, claim, worker_id, claimed_at)
        VALUES (NEW.id, NEW.claim, NEW.worker_id, NEW.claimed_at);
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER write_scheduled_email INSTEAD OF INSERT OR UPDATE OR DELETE ON duepost.scheduled_email
    FOR EACH ROW EXECUTE FUNCTION duepost.write_scheduled_email();
