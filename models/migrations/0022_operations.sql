-- What operators look for, and what they do: the ledger is found by address, by user and by what did not arrive; kinds and
-- routes can be paused; each action leaves a line.
-- A ledger of many millions of rows: make these indexes beforehand on each partition with CREATE INDEX CONCURRENTLY; those
-- that are there are taken as they are.
-- oldest worker: 0016

CREATE INDEX delivery_mailbox ON duepost.delivery (duepost.mailbox_key(address), finished_at) WHERE address IS NOT NULL;
CREATE INDEX delivery_user ON duepost.delivery (user_id, finished_at) WHERE user_id IS NOT NULL;
-- Few of many: what somebody may ask about.
CREATE INDEX delivery_failed ON duepost.delivery (finished_at, email_id) WHERE outcome <> 'sent';
-- By time, and rows of one moment in an order of their own: a list goes on where its page ended.
CREATE INDEX delivery_concluded ON duepost.delivery (finished_at, email_id);
DROP INDEX duepost.delivery_finished;

-- Whose address it is. A view of the team's own has indexes of its own.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_class AS c WHERE c.oid = to_regclass('duepost.recipient') AND c.relkind = 'r') THEN
        CREATE INDEX recipient_address ON duepost.recipient (lower(address));
    END IF;
END
$$;

ALTER TABLE duepost.kind
    ADD COLUMN paused_at timestamptz,
    ADD COLUMN paused_by text,
    ADD COLUMN pause_reason text;
COMMENT ON COLUMN duepost.kind.paused_at IS
    'Since when nothing of this kind is enqueued or claimed, as an operator has said; NULL: it is. Scheduling and clearing go on.';
ALTER TABLE duepost.route
    ADD COLUMN stopped_at timestamptz,
    ADD COLUMN stopped_by text,
    ADD COLUMN stop_reason text;
COMMENT ON COLUMN duepost.route.stopped_at IS
    'Since when nothing leaves by this route, as an operator has said; NULL: it may. What is scheduled for it waits.';

CREATE TABLE duepost.operator_action (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action   text NOT NULL,
    by_whom  text NOT NULL,
    via      text NOT NULL,
    login    text NOT NULL DEFAULT session_user,
    reason   text,
    asked    jsonb NOT NULL DEFAULT '{}',
    began_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    done     bigint NOT NULL DEFAULT 0,
    skipped  jsonb NOT NULL DEFAULT '{}',
    token    text UNIQUE,
    CONSTRAINT action_is_a_word CHECK (action ~ '^[a-z_]{1,40}$'),
    CONSTRAINT asked_and_skipped_are_objects CHECK (jsonb_typeof(asked) = 'object' AND jsonb_typeof(skipped) = 'object'),
    CONSTRAINT done_is_not_negative CHECK (done >= 0)
);
COMMENT ON TABLE duepost.operator_action IS
    'What operators have done, a row for each action, however many items it was about: who, when, what and why. Append-only.';
COMMENT ON COLUMN duepost.operator_action.by_whom IS 'Who, as they are called where they gave the order; login is the database role.';
COMMENT ON COLUMN duepost.operator_action.via IS 'Where the order was given: command, console or sql.';
COMMENT ON COLUMN duepost.operator_action.asked IS 'Which items, by a filter or their ids, and what else was asked for.';
COMMENT ON COLUMN duepost.operator_action.skipped IS 'How many of them nothing was done to, by reason.';
COMMENT ON COLUMN duepost.operator_action.token IS 'Given by whoever may send an order twice: the second one changes nothing.';
