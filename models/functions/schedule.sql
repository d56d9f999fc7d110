-- What an application calls to schedule, inside its own transaction.
-- SECURITY DEFINER: a client may call these and touch nothing else; the search_path is fixed, so that nobody's table or
-- operator stands in for ours, and so is the way that backslashes are read, on which the patterns of the checks depend.

-- Keys of both channels. Returns the ids of new items, with that of an earlier one in place of each whose key is known, and of
-- the first for each later one of the same key. `list` is the name of the argument that holds many.
CREATE OR REPLACE FUNCTION duepost.take_keys(ids bigint[], keys text[], digests bytea[], list text) RETURNS bigint[]
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
    wrong record;
BEGIN
    -- In the order of the keys, so that two sets with the same ones wait for each other, and not in a circle.
    INSERT INTO duepost.email_key (key, email_id, digest)
    SELECT DISTINCT ON (g.key) g.key, g.id, g.digest
    FROM unnest(take_keys.ids, take_keys.keys, take_keys.digests) WITH ORDINALITY AS g (id, key, digest)
    WHERE g.key IS NOT NULL
    ORDER BY g.key, g.ordinality
    ON CONFLICT (key) DO NOTHING;

    SELECT g.ordinality, k.email_id INTO wrong
    FROM unnest(take_keys.keys, take_keys.digests) WITH ORDINALITY AS g (key, digest)
    JOIN duepost.email_key AS k ON k.key = g.key
    WHERE k.digest <> g.digest
    ORDER BY g.ordinality
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '23505', MESSAGE =
            coalesce(take_keys.list || format('[%s]: ', wrong.ordinality - 1), '')
            || format('key: already used for another content, by %s %s', duepost.channel_of(wrong.email_id), wrong.email_id);
    END IF;

    RETURN ARRAY(
        SELECT coalesce(k.email_id, g.id)
        FROM unnest(take_keys.ids, take_keys.keys) WITH ORDINALITY AS g (id, key)
        LEFT JOIN duepost.email_key AS k ON k.key = g.key
        ORDER BY g.ordinality
    );
END
$$;

-- Of what channel an item is, or was; both are named where nothing is known of it any more.
CREATE OR REPLACE FUNCTION duepost.channel_of(id bigint) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        (SELECT i.channel FROM duepost.item AS i WHERE i.id = $1),
        (SELECT d.channel FROM duepost.delivery AS d WHERE d.email_id = $1 LIMIT 1),
        'email or message'
    )
$$;

-- When an item ends that says nothing of it, or as it says.
CREATE OR REPLACE FUNCTION duepost.expiry(expires_at timestamptz, scheduled_at timestamptz, expire_after interval)
RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN expires_at IS NULL AND expire_after IS NOT NULL
            THEN least(scheduled_at + expire_after, '9999-12-31 00:00:00+00')
        ELSE expires_at
    END
$$;

-- Checks all, then stores all: returns their ids in their order. An error names the place of its email among many, from 0.
CREATE OR REPLACE FUNCTION duepost.store_emails(given duepost.new_email[], are_many boolean) RETURNS bigint[]
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
    email     duepost.new_email;
    error     text;
    found     record;
    ids       bigint[] := '{}';
    given_ids bigint[];
    digests   bytea[];
    is_new    boolean[];
    has_keys  boolean := false;
    has_users boolean := false;
    are_plain boolean := true;
    -- Of those that are not plain.
    mailboxes   text[];
    mailbox_names text[];
    have_extras boolean[];
BEGIN
    FOREACH email IN ARRAY given LOOP
        error := duepost.email_error(email);
        IF error IS NULL AND email.scheduled_local IS NOT NULL THEN
            found := duepost.moment_of_email(email);
            error := coalesce(found.error, duepost.times_error(found.moment, email.expires_at));
            email.scheduled_at := found.moment;
            given[cardinality(ids) + 1] := email;
        END IF;
        IF error IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = '22023',
                MESSAGE = CASE WHEN are_many THEN format('emails[%s]: ', cardinality(ids)) ELSE '' END || error;
        END IF;
        ids := ids || nextval('duepost.scheduled_email_id_seq');
        has_keys := has_keys OR email.key IS NOT NULL;
        has_users := has_users OR email.users IS NOT NULL;
        are_plain := are_plain AND NOT duepost.has_extras(email);
    END LOOP;

    IF has_keys THEN
        digests := ARRAY(
            SELECT CASE WHEN g.key IS NOT NULL THEN duepost.email_digest(g) END FROM unnest(given) AS g
        );
        given_ids := ids;
        ids := duepost.take_keys(ids, ARRAY(SELECT g.key FROM unnest(given) AS g), digests, CASE WHEN are_many THEN 'emails' END);
        is_new := ARRAY(SELECT k.id = k.given_id FROM unnest(ids, given_ids) AS k (id, given_id));
    END IF;

    IF NOT are_plain THEN
        SELECT array_agg(CASE WHEN NOT g.is_seen_by_several THEN duepost.mailbox_address(g.address) END ORDER BY g.place),
               array_agg(CASE WHEN NOT g.is_seen_by_several THEN duepost.mailbox_name(g.address) END ORDER BY g.place),
               array_agg(g.has_extras ORDER BY g.place)
        INTO mailboxes, mailbox_names, have_extras
        FROM (
            SELECT place, given[place].address, duepost.is_seen_by_several(given[place]) AS is_seen_by_several,
                   duepost.has_extras(given[place]) AS has_extras
            FROM generate_subscripts(given, 1) AS place
        ) AS g;
    END IF;

    INSERT INTO duepost.item (
        id, channel, kind, route, scheduled_at, due_at, expires_at, key, scheduled_local, priority, own_priority
    )
    SELECT ids[g.ordinality], 'email', g.kind, coalesce(k.route, 'default'), coalesce(g.scheduled_at, now()),
           coalesce(g.scheduled_at, now()),
           duepost.expiry(g.expires_at, coalesce(g.scheduled_at, now()), k.expire_after),
           g.key, CASE WHEN g.timezone IS NULL THEN g.scheduled_local END,
           CASE coalesce(g.priority, k.priority) WHEN 'urgent' THEN -1 WHEN 'bulk' THEN 1 ELSE 0 END,
           CASE g.priority WHEN 'urgent' THEN -1 WHEN 'normal' THEN 0 WHEN 'bulk' THEN 1 END
    FROM unnest(given) WITH ORDINALITY AS g
    LEFT JOIN duepost.kind AS k ON k.kind = g.kind
    WHERE is_new[g.ordinality] IS NOT FALSE;

    INSERT INTO duepost.email (
        item_id, message_id_header, date_header, address, sender, reply_to, headers, template, context, subject, body_text,
        body_html, address_name, has_extras, attachments
    )
    SELECT ids[g.ordinality],
           -- A Message-ID is ASCII; a sender's domain need not be.
           '<' || gen_random_uuid() || '@' || coalesce(
               substring(duepost.mailbox_address(g.sender) FROM '@([\x01-\x7f]+)$'),
               c.message_id_domain, 'duepost.invalid'
           ) || '>',
           greatest(coalesce(g.scheduled_at, now()), now()),
           CASE WHEN are_plain THEN g.address ELSE mailboxes[g.ordinality] END,
           g.sender, g.reply_to, g.headers, g.template,
           CASE WHEN g.template IS NOT NULL THEN coalesce(g.context, '{}') END,
           g.subject,
           CASE WHEN NOT duepost.is_blank(g.body_text) THEN g.body_text END,
           CASE WHEN NOT duepost.is_blank(g.body_html) THEN g.body_html END,
           mailbox_names[g.ordinality], NOT are_plain AND have_extras[g.ordinality],
           nullif(g.attachments, '[]')
    FROM duepost.control AS c
    CROSS JOIN unnest(given) WITH ORDINALITY AS g
    WHERE is_new[g.ordinality] IS NOT FALSE;

    IF has_users THEN
        INSERT INTO duepost.scheduled_email_user (email_id, user_id)
        SELECT DISTINCT ids[g.ordinality], u
        FROM unnest(given) WITH ORDINALITY AS g
        CROSS JOIN unnest(g.users) AS u
        WHERE is_new[g.ordinality] IS NOT FALSE
        ORDER BY 1, 2;
    END IF;
    IF NOT are_plain THEN
        PERFORM duepost.store_recipients(given, ids, is_new);
        PERFORM duepost.take_attachments(given, ids, is_new, are_many);
    END IF;
    RETURN ids;
END
$$;

CREATE OR REPLACE FUNCTION duepost.schedule_email(
    kind         text,
    address      text DEFAULT NULL,
    users        text[] DEFAULT NULL,
    scheduled_at timestamptz DEFAULT NULL,
    template     text DEFAULT NULL,
    context      jsonb DEFAULT NULL,
    subject      text DEFAULT NULL,
    body_text    text DEFAULT NULL,
    body_html    text DEFAULT NULL,
    key          text DEFAULT NULL,
    expires_at   timestamptz DEFAULT NULL,
    sender       text DEFAULT NULL,
    reply_to     text DEFAULT NULL,
    headers      jsonb DEFAULT NULL,
    addresses    text[] DEFAULT NULL,
    cc           text[] DEFAULT NULL,
    bcc          text[] DEFAULT NULL,
    scheduled_local timestamp DEFAULT NULL,
    timezone     text DEFAULT NULL,
    attachments  jsonb DEFAULT NULL,
    priority     text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    email duepost.new_email;
BEGIN
    -- Until this transaction ends, the type does not grow. Assigned, and not cast: it may have grown by now.
    LOCK TABLE duepost.migration IN ACCESS SHARE MODE;
    email := ROW(
        kind, address, users, scheduled_at, template, context, subject, body_text, body_html, key, expires_at, sender,
        reply_to, headers, addresses, cc, bcc, scheduled_local, timezone, attachments, priority
    );
    RETURN (duepost.store_emails(ARRAY[email], are_many => false))[1];
END
$$;
COMMENT ON FUNCTION duepost.schedule_email IS
    'Schedules one email in the caller''s transaction and returns its id. A bad argument raises 22023 and stores nothing; '
    'a key that is used already returns the first id, or raises 23505 if the content differs (times are not content).';

CREATE OR REPLACE FUNCTION duepost.schedule_emails(emails jsonb) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    -- Until this transaction ends, the type does not grow.
    LOCK TABLE duepost.migration IN ACCESS SHARE MODE;
    PERFORM duepost.check_list('emails', emails, 'schedule_email');
    RETURN QUERY SELECT unnest(duepost.store_emails(
        ARRAY(SELECT email FROM jsonb_populate_recordset(NULL::duepost.new_email, emails) AS email),
        are_many => true
    ));
END
$$;
COMMENT ON FUNCTION duepost.schedule_emails IS
    'Schedules many emails, or none: a JSON array of objects with the arguments of schedule_email() as keys. Gives their '
    'ids in the order of the array. What is wrong raises 22023 or 23505, and is named with its place, from 0.';
