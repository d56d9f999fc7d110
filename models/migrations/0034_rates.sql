-- Rates: how many emails a second leave by a route, or by it to a domain, and over how many connections at once, for all
-- workers together. Each worker says what it has in use; nothing here depends on a clock of the server's.
-- oldest worker: 0016

CREATE TABLE duepost.rate (
    route       text NOT NULL,
    domain      text NOT NULL DEFAULT '',
    per_second  numeric,
    connections integer,
    set_at      timestamptz NOT NULL DEFAULT now(),
    set_by      text,
    reason      text,
    CONSTRAINT rate_pkey PRIMARY KEY (route, domain),
    CONSTRAINT route_is_a_name CHECK (route ~ '^[a-z][a-z0-9_]*$' OR route = 'endpoint:' AND domain <> ''),
    CONSTRAINT something_is_limited CHECK (per_second IS NOT NULL OR connections IS NOT NULL),
    CONSTRAINT per_second_is_a_rate CHECK (per_second BETWEEN 0.001 AND 10000),
    CONSTRAINT connections_are_at_least_one CHECK (connections BETWEEN 1 AND 10000)
);
COMMENT ON TABLE duepost.rate IS
    'What operators allow: at most per_second items in any second, and at most connections of them under way at once, by a '
    'relay, by it to a domain, or to an endpoint, for all workers together. Set by set_rate().';
COMMENT ON COLUMN duepost.rate.route IS 'The relay''s name; endpoint: where domain is an endpoint''s name.';
COMMENT ON COLUMN duepost.rate.domain IS 'The domain of the recipients, in lower case and as DNS has it; empty: the whole route.';

CREATE TABLE duepost.destination (
    route          text NOT NULL,
    domain         text NOT NULL,
    turns_until    timestamptz,
    urgent_at      timestamptz,
    learnt         numeric,
    learnt_from    numeric,
    learnt_at      timestamptz,
    learnt_because text,
    CONSTRAINT destination_pkey PRIMARY KEY (route, domain),
    CONSTRAINT a_learnt_rate_is_whole CHECK (
        (learnt IS NULL) = (learnt_from IS NULL) AND (learnt IS NULL) = (learnt_at IS NULL) AND learnt > 0
    )
);
COMMENT ON TABLE duepost.destination IS
    'What workers share about a relay, a domain by it, or an endpoint, whose rate is limited. Delete the row to forget what was learnt.';
COMMENT ON COLUMN duepost.destination.turns_until IS 'Up to when turns are given to emails that wait as scheduled.';
COMMENT ON COLUMN duepost.destination.urgent_at IS 'When a worker had an urgent email waiting for a place: others stand back for a moment.';
COMMENT ON COLUMN duepost.destination.learnt IS 'Emails a second at learnt_at, as the relay had too much of us; it grows from then on.';
COMMENT ON COLUMN duepost.destination.learnt_from IS 'How many a second there were before.';
COMMENT ON COLUMN duepost.destination.learnt_because IS 'The reply''s phase and codes.';

CREATE TABLE duepost.destination_worker (
    route     text NOT NULL,
    domain    text NOT NULL,
    worker_id integer NOT NULL REFERENCES duepost.worker ON DELETE CASCADE,
    held      integer NOT NULL DEFAULT 0,
    speaking  integer NOT NULL DEFAULT 0,
    CONSTRAINT destination_worker_pkey PRIMARY KEY (route, domain, worker_id),
    CONSTRAINT what_is_spoken_is_held CHECK (speaking >= 0 AND held >= speaking)
);
COMMENT ON TABLE duepost.destination_worker IS
    'How many places of a destination each worker holds: for emails under way, and for those that ended less than a second ago.';
COMMENT ON COLUMN duepost.destination_worker.speaking IS 'How many of those are under way.';
CREATE INDEX destination_worker_worker ON duepost.destination_worker (worker_id);
