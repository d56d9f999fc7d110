-- Routes by name: each relay has a circuit, a pace and a line of due emails of its own, so that one's trouble stops no other.
-- `default` is the relay of DUEPOST_SMTP_URL.
-- oldest worker: 0016

-- What a relay has shown of itself was known by host:port, and is learnt again.
DELETE FROM duepost.route_worker;
DELETE FROM duepost.route;
ALTER TABLE duepost.route RENAME COLUMN route TO name;
ALTER TABLE duepost.route
    ADD COLUMN channel text NOT NULL DEFAULT 'email',
    ADD COLUMN target text,
    ADD COLUMN fallback text,
    ADD COLUMN circuit_open boolean NOT NULL DEFAULT false,
    ADD COLUMN circuit_opened_at timestamptz,
    ADD COLUMN circuit_reason text,
    ADD COLUMN circuit_refusal text,
    ADD COLUMN probe_at timestamptz,
    ADD COLUMN probe_pause double precision NOT NULL DEFAULT 0,
    ADD CONSTRAINT an_open_circuit_has_a_probe CHECK (NOT circuit_open OR probe_at IS NOT NULL),
    ADD CONSTRAINT a_fallback_is_another_route CHECK (fallback <> name);
INSERT INTO duepost.route (
    name, circuit_open, circuit_opened_at, circuit_reason, circuit_refusal, probe_at, probe_pause
)
SELECT 'default', circuit_open, circuit_opened_at, circuit_reason, circuit_refusal, probe_at, probe_pause
FROM duepost.control;
ALTER TABLE duepost.control
    DROP COLUMN circuit_open, DROP COLUMN circuit_opened_at, DROP COLUMN circuit_reason, DROP COLUMN circuit_refusal,
    DROP COLUMN probe_at, DROP COLUMN probe_pause;
COMMENT ON TABLE duepost.route IS
    'What emails leave through, a row for each relay that workers have registered: where it is, its circuit, and what it '
    'has shown of itself to any worker. Delete the row to forget it all; it comes back as the next worker starts.';
COMMENT ON COLUMN duepost.route.name IS 'default for DUEPOST_SMTP_URL, <name> for DUEPOST_SMTP_URL_<NAME>.';
COMMENT ON COLUMN duepost.route.target IS 'host:port, as a worker has registered it last. With another one all is forgotten.';
COMMENT ON COLUMN duepost.route.fallback IS 'The route by which its emails leave while its circuit is open; NULL: they wait.';
COMMENT ON COLUMN duepost.route.circuit_reason IS 'A phase and a reply code.';
COMMENT ON COLUMN duepost.route.circuit_refusal IS
    'What so many recipients in a row were refused with that the circuit is open for it. A probe that is refused with '
    'the same has failed.';
COMMENT ON COLUMN duepost.route.probe_pause IS 'Seconds until the next probe of an open circuit.';
COMMENT ON TABLE duepost.route_worker IS
    'Which workers serve a route, how many connections each has there, and when it last had a use for one, and an answer.';

-- Policies of all channels' kinds.
ALTER TABLE duepost.email_kind RENAME TO kind;
ALTER TABLE duepost.kind ADD COLUMN route text;
ALTER TABLE duepost.kind ADD CONSTRAINT route_is_a_name CHECK (route ~ '^[a-z][a-z0-9_]*$');
COMMENT ON TABLE duepost.kind IS 'Policies by kind; a kind without a row has the defaults.';
COMMENT ON COLUMN duepost.kind.route IS 'The route that its emails are scheduled for; NULL: default.';
CREATE VIEW duepost.email_kind AS SELECT k.kind, k.on_unknown, k.expire_after FROM duepost.kind AS k;
COMMENT ON VIEW duepost.email_kind IS 'duepost.kind as releases before had it.';

-- The view stays, with all that depends on it, while the column below it is another one: no row is written.
DO $$
DECLARE
    defined CONSTANT text := pg_get_viewdef('duepost.scheduled_email'::regclass);
BEGIN
    EXECUTE 'CREATE OR REPLACE VIEW duepost.scheduled_email AS ' || replace(defined, 'i.route', 'NULL::text AS route');
    ALTER TABLE duepost.item DROP COLUMN route;
    ALTER TABLE duepost.item ADD COLUMN route text NOT NULL DEFAULT 'default';
    EXECUTE 'CREATE OR REPLACE VIEW duepost.scheduled_email AS ' || defined;
END
$$;
COMMENT ON COLUMN duepost.item.route IS 'What it is to leave through: its kind''s, or where an operator has moved it.';
-- Due items in due order, each route's by themselves: a long line of one costs the others nothing.
DROP INDEX duepost.item_due;
CREATE INDEX item_due ON duepost.item (route, due_at, id) WHERE NOT is_held;

ALTER TABLE duepost.in_hand ADD COLUMN route text NOT NULL DEFAULT 'default';
COMMENT ON COLUMN duepost.in_hand.route IS 'By which route it is being sent: its own, or that one''s fallback.';
ALTER TABLE duepost.delivery ADD COLUMN route text;
COMMENT ON COLUMN duepost.delivery.route IS 'By which route it was sent last; NULL: default, or it was not sent.';
ALTER TABLE duepost.undeliverable_recipient ADD COLUMN route text;
COMMENT ON COLUMN duepost.undeliverable_recipient.route IS 'Which route refused it; NULL: default.';
-- When a route's relay has last taken something: that of `default` is found by the ledger's time alone.
CREATE INDEX delivery_accepted ON duepost.delivery (route, finished_at) WHERE route IS NOT NULL AND outcome = 'sent';

-- Functions of release 0.1, whose workers cannot work here any more, and what knew of one relay only.
DROP FUNCTION IF EXISTS duepost.claim_emails(bigint[], integer);
DROP FUNCTION IF EXISTS duepost.claim_emails_v2(bigint[], integer);
DROP FUNCTION IF EXISTS duepost.enqueue_items(bigint[], uuid[], jsonb[], text, integer[], boolean);
DROP ROUTINE IF EXISTS duepost.enqueue_emails(bigint[], uuid[], jsonb[], text, integer[], uuid[]);
DROP FUNCTION IF EXISTS duepost.recipients_to_go(bigint);
DROP FUNCTION IF EXISTS duepost.due_now();
DROP FUNCTION IF EXISTS duepost.is_route_paused();
