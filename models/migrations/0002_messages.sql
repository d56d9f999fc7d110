-- The broker's table is dramatiq-pg's own; these columns let it hold delays and say who has claimed a message.

ALTER TABLE dramatiq.queue
    ADD COLUMN IF NOT EXISTS eta timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS worker_id integer;

-- The claim of a consumer: oldest first, and nothing before it is due.
CREATE INDEX IF NOT EXISTS queue_claimable ON dramatiq.queue (queue_name, eta) WHERE state = 'queued';
-- What a worker that died had in hand.
CREATE INDEX IF NOT EXISTS queue_claimed ON dramatiq.queue (worker_id) WHERE state = 'consumed';
