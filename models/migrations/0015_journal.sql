-- The journal that a worker keeps on its machine: what relays have said, until the database has it.

ALTER TABLE duepost.worker ADD COLUMN IF NOT EXISTS journal text;
COMMENT ON COLUMN duepost.worker.journal IS
    'The name of its journal''s files in DUEPOST_STATE_DIR on its machine; NULL where it keeps none.';
