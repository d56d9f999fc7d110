-- The broker's table is dramatiq-pg's own; these columns let it hold delays, and say who has claimed a message.

ALTER TABLE dramatiq.queue
    ADD COLUMN IF NOT EXISTS eta timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS priority integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS worker_id integer,
    ADD COLUMN IF NOT EXISTS claim bigint;
COMMENT ON COLUMN dramatiq.queue.eta IS 'A message is not read before this.';
COMMENT ON COLUMN dramatiq.queue.priority IS 'The lower, the more urgent, as with Dramatiq''s actors.';
COMMENT ON COLUMN dramatiq.queue.claim IS
    'Set while a worker has the message in hand. A worker whose number is no longer the message''s ends nothing.';

CREATE SEQUENCE dramatiq.claim_number;

-- The claim of a consumer: the most urgent first, then the oldest, and nothing before it is due.
CREATE INDEX queue_claimable ON dramatiq.queue (queue_name, priority, eta) WHERE state = 'queued';
-- What a worker that died had in hand.
CREATE INDEX queue_claimed ON dramatiq.queue (worker_id) WHERE state = 'consumed';
-- Dead letters, by age. dramatiq-pg's own index holds every message by its state, and is written with each change of it.
DROP INDEX IF EXISTS dramatiq.queue_state_mtime_idx;
CREATE INDEX queue_dead ON dramatiq.queue (mtime) WHERE state = 'rejected';

CREATE TABLE dramatiq.result (
    message_key text PRIMARY KEY,
    result      bytea NOT NULL,
    expires_at  timestamptz NOT NULL
);
COMMENT ON TABLE dramatiq.result IS 'What actors have returned, encoded by Dramatiq, until it expires.';
CREATE INDEX result_expired ON dramatiq.result (expires_at);
