-- Nothing goes to an address that is suppressed: of all emails, or of one kind; for a reason, and perhaps until a time.
-- Workers of 0.2.0 add to the table by `ON CONFLICT (address)`: what is of one kind lies in a table below it, which is read with it.
-- oldest worker: 0016

-- All at once, before anything takes long: who has read one of them, and wants the next, would wait for us, and we for it.
LOCK TABLE duepost.kind, duepost.suppression, duepost.scheduled_email_user, duepost.delivery IN ACCESS EXCLUSIVE MODE;

CREATE SEQUENCE duepost.suppression_id_seq;
ALTER TABLE duepost.suppression
    ADD COLUMN id bigint NOT NULL DEFAULT nextval('duepost.suppression_id_seq'),
    ADD COLUMN kind text,
    ADD COLUMN source text NOT NULL DEFAULT 'relay',
    ADD COLUMN reason text,
    ADD COLUMN until timestamptz,
    ADD CONSTRAINT source_is_known CHECK (source IN ('relay', 'bounce', 'complaint', 'unsubscribe', 'operator', 'import')),
    ADD CONSTRAINT of_all_kinds CHECK (kind IS NULL) NO INHERIT;
ALTER SEQUENCE duepost.suppression_id_seq OWNED BY duepost.suppression.id;
COMMENT ON TABLE duepost.suppression IS
    'Addresses that get nothing: no email at all, or none of a kind. Emails to them end as suppressed, without a dialogue.';
COMMENT ON COLUMN duepost.suppression.kind IS 'The kind that it is about; NULL: all emails.';
COMMENT ON COLUMN duepost.suppression.source IS
    'relay (it called the address dead), bounce, complaint, unsubscribe, operator or import.';
COMMENT ON COLUMN duepost.suppression.until IS 'When it ends; NULL: not by itself.';
CREATE INDEX suppression_newest ON duepost.suppression (suppressed_at DESC, id DESC);
CREATE INDEX suppression_id ON duepost.suppression (id);

CREATE TABLE duepost.kind_suppression (
    CONSTRAINT kind_suppression_pkey PRIMARY KEY (address, kind),
    CONSTRAINT kind_is_not_empty CHECK (kind <> '')
) INHERITS (duepost.suppression);
COMMENT ON TABLE duepost.kind_suppression IS 'Those of duepost.suppression that are of one kind; read that.';
CREATE INDEX kind_suppression_newest ON duepost.kind_suppression (suppressed_at DESC, id DESC);
CREATE INDEX kind_suppression_id ON duepost.kind_suppression (id);

-- Whoever adds to the table by hand need not know of the one below.
CREATE FUNCTION duepost.place_suppression() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO duepost.kind_suppression (
        address, enhanced_code, reply, suppressed_at, id, kind, source, reason, until
    ) VALUES (
        NEW.address, NEW.enhanced_code, NEW.reply, NEW.suppressed_at, NEW.id, NEW.kind, NEW.source, NEW.reason, NEW.until
    );
    RETURN NULL;
END
$$;
CREATE TRIGGER place_suppression BEFORE INSERT ON duepost.suppression
    FOR EACH ROW WHEN (NEW.kind IS NOT NULL) EXECUTE FUNCTION duepost.place_suppression();

-- Rows that are there have one of the outcomes of before: none is looked at.
ALTER TABLE duepost.delivery
    DROP CONSTRAINT outcome_is_known,
    ADD CONSTRAINT outcome_is_known CHECK (
        outcome IN ('sent', 'undeliverable', 'cleared', 'expired', 'suppressed', 'obsolete')
    ) NOT VALID;
ALTER TABLE duepost.scheduled_email_user
    DROP CONSTRAINT outcome_is_one_of_a_delivery,
    ADD CONSTRAINT outcome_is_one_of_a_delivery CHECK (
        outcome IN ('sent', 'undeliverable', 'cleared', 'suppressed', 'obsolete')
    ) NOT VALID;

-- Kinds that recipients can unsubscribe from, by a link whose token is made with a secret of the installation.
ALTER TABLE duepost.kind ADD COLUMN unsubscribe boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN duepost.kind.unsubscribe IS
    'Whether its emails carry a link by which their recipient wants no more of them (RFC 8058): one recipient an email.';
-- Asked by each claim.
CREATE INDEX kind_unsubscribe ON duepost.kind (kind) WHERE unsubscribe;

CREATE TABLE duepost.secret (
    name    text PRIMARY KEY,
    value   bytea NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT value_is_32_bytes CHECK (octet_length(value) = 32)
);
COMMENT ON TABLE duepost.secret IS
    'What tokens in links and return paths are made with. Whoever knows it can unsubscribe others: workers read it, and nobody else.';
INSERT INTO duepost.secret (name, value)
SELECT 'tokens', sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'));
