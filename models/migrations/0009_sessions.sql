-- Whose session it is that says a worker lives, and whose turn it is at what only one may do: by rows, which nobody but
-- workers may write, as an advisory lock may be taken by any login.

ALTER TABLE duepost.worker
    ADD COLUMN session_pid integer,
    ADD COLUMN session_role oid,
    ADD COLUMN session_started_at timestamptz;
COMMENT ON COLUMN duepost.worker.session_pid IS
    'The back end of the session that the worker lives by, noted by the worker itself in that session; NULL with workers of release 0.1.';
COMMENT ON TABLE duepost.worker IS
    'Worker processes. Each is alive as long as the session is that it has noted here (duepost.present).';

CREATE TABLE duepost.turn (
    name              text PRIMARY KEY,
    session_pid       integer,
    session_role      oid,
    session_started_at timestamptz,
    server_started_at timestamptz,
    CONSTRAINT turn_is_known CHECK (name IN ('maintenance', 'tick', 'watch'))
);
COMMENT ON TABLE duepost.turn IS
    'What one at a time may do: by the lock of the row for a transaction, by the session that is noted for longer.';
INSERT INTO duepost.turn (name) VALUES ('maintenance'), ('tick'), ('watch');
