-- A shop out of plain SQL: psql -v ON_ERROR_STOP=1 -f shop.sql
-- The database has seen `duepost migrate`.
CREATE TABLE IF NOT EXISTS account (
    id    bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    email text NOT NULL UNIQUE
);

-- Who registers is welcomed: the account and its email are committed together, or not at all.
BEGIN;
INSERT INTO account (email) VALUES ('ann@example.com') RETURNING id AS account \gset
SELECT duepost.schedule_email(
    kind      => 'welcome',
    address   => 'ann@example.com',
    subject   => 'Welcome',
    body_text => 'It is good to have you.',
    key       => 'welcome-' || :account
) AS email \gset
SELECT duepost.schedule_email(
    kind         => 'reminder',
    address      => 'ann@example.com',
    scheduled_at => now() + interval '1 day',
    subject      => 'Tomorrow',
    body_text    => 'See you there.'
);
COMMIT;

-- A trigger does the same for whatever inserts.
CREATE OR REPLACE FUNCTION welcome() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM duepost.schedule_email(
        kind => 'welcome', address => NEW.email, subject => 'Welcome', body_text => 'It is good to have you.',
        key => 'welcome-' || NEW.id
    );
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER welcome AFTER INSERT ON account FOR EACH ROW EXECUTE FUNCTION welcome();
INSERT INTO account (email) VALUES ('bob@example.com');

-- Who closes the account gets nothing more.
SELECT receipt FROM duepost.clear_scheduled_emails_to('ann@example.com', kind => 'reminder');

SELECT state FROM duepost.status(:email);
