-- What all workers know of a relay: how many connections it allows, how fast it takes email, what it cannot bear.

CREATE TABLE duepost.route (
    route               text PRIMARY KEY,
    connections         integer,
    connections_at      timestamptz,
    connections_because text,
    raise_at            timestamptz,
    raise_pause         double precision NOT NULL DEFAULT 0,
    paused_until        timestamptz,
    pause               double precision NOT NULL DEFAULT 0,
    paused_because      text,
    ahead_off_at        timestamptz,
    ahead_off_because   text,
    CONSTRAINT connections_are_at_least_one CHECK (connections >= 1),
    CONSTRAINT a_limit_is_tried_again CHECK (
        (connections IS NULL) = (connections_at IS NULL) AND (connections IS NULL) = (raise_at IS NULL)
    ),
    CONSTRAINT pauses_are_not_negative CHECK (pause >= 0 AND raise_pause >= 0)
);
COMMENT ON TABLE duepost.route IS
    'What the relay at host:port has shown of itself to any worker. Delete the row to forget it all.';
COMMENT ON COLUMN duepost.route.connections IS 'How many connections of ours it allows at once; NULL while that is not known.';
COMMENT ON COLUMN duepost.route.raise_at IS 'When one more connection is tried again, should one be wanted.';
COMMENT ON COLUMN duepost.route.raise_pause IS 'Seconds until the next such try.';
COMMENT ON COLUMN duepost.route.paused_until IS 'It takes no more email for now: nothing is claimed before this moment.';
COMMENT ON COLUMN duepost.route.pause IS 'Seconds of the last such pause.';
COMMENT ON COLUMN duepost.route.ahead_off_at IS
    'Since when no envelope goes out behind a dot, whatever the URL asks for; NULL while one may.';

CREATE TABLE duepost.route_worker (
    route       text NOT NULL REFERENCES duepost.route ON DELETE CASCADE,
    worker_id   integer NOT NULL REFERENCES duepost.worker ON DELETE CASCADE,
    connections integer NOT NULL DEFAULT 0,
    wanted_at   timestamptz NOT NULL DEFAULT now(),
    worked_at   timestamptz,
    PRIMARY KEY (route, worker_id),
    CONSTRAINT connections_are_not_negative CHECK (connections >= 0)
);
COMMENT ON TABLE duepost.route_worker IS
    'How many connections to a relay each worker has, and when it last had a use for one, and an answer over one.';
CREATE INDEX route_worker_worker ON duepost.route_worker (worker_id);
