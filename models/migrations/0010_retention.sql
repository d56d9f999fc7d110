-- How long the ledger is kept is the owner's to say: workers may keep it for longer, and never for less.

CREATE TABLE duepost.retention (
    one    boolean PRIMARY KEY DEFAULT true,
    days   integer NOT NULL,
    set_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT there_is_one_row CHECK (one),
    CONSTRAINT days_are_one_or_more CHECK (days >= 1)
);
COMMENT ON TABLE duepost.retention IS
    'For how many days the ledger is kept at least, set by `duepost migrate` from DUEPOST_RETENTION_DAYS. Without a row nobody but the owner drops any of it.';
