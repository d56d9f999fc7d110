-- What few emails have beside their row: recipients who see each other, a name beside the address, attachments. An email that
-- has none of it pays for none of it.

-- Whether its recipients get one message together, and see each other.
CREATE OR REPLACE FUNCTION duepost.is_seen_by_several(email duepost.new_email) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT email.addresses IS NOT NULL OR cardinality(email.cc) > 0 IS TRUE OR cardinality(email.bcc) > 0 IS TRUE
$$;

-- Whether email_extras() will have something to say of it.
CREATE OR REPLACE FUNCTION duepost.has_extras(email duepost.new_email) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT email.addresses IS NOT NULL OR email.cc IS NOT NULL OR email.bcc IS NOT NULL OR strpos(email.address, '<') > 0 IS TRUE
        OR email.attachments IS NOT NULL
$$;

-- The rows of recipients who see each other. Of one mailbox in several spellings the first stays: To before Cc before Bcc.
CREATE OR REPLACE FUNCTION duepost.store_recipients(given duepost.new_email[], ids bigint[], is_new boolean[]) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off AS $$
BEGIN
    INSERT INTO duepost.email_recipient (email_id, place, field, address, name)
    SELECT once.id, row_number() OVER (PARTITION BY once.id ORDER BY once.field_place, once.place), once.field,
           once.address, once.name
    FROM (
        SELECT DISTINCT ON (ids[g.ordinality], duepost.mailbox_key(duepost.mailbox_address(each.value)))
               ids[g.ordinality] AS id, field.place AS field_place, field.name AS field, each.place,
               duepost.mailbox_address(each.value) AS address, duepost.mailbox_name(each.value) AS name
        FROM unnest(given) WITH ORDINALITY AS g
        CROSS JOIN LATERAL (VALUES
            (1, 'to', coalesce(g.addresses, ARRAY[g.address])),
            (2, 'cc', g.cc),
            (3, 'bcc', g.bcc)
        ) AS field (place, name, mailboxes)
        CROSS JOIN LATERAL unnest(field.mailboxes) WITH ORDINALITY AS each (value, place)
        WHERE is_new[g.ordinality] IS NOT FALSE AND duepost.is_seen_by_several(given[g.ordinality])
        ORDER BY ids[g.ordinality], duepost.mailbox_key(duepost.mailbox_address(each.value)), field.place, each.place
    ) AS once
    ORDER BY once.id, once.field_place, once.place;
END
$$;

-- What a claim gives of an email beside its row; NULL where there is none. Volatile, so that it has a snapshot of its own: the
-- caller holds the item's lock, and what a clear has committed since the caller's statement began is seen.
CREATE OR REPLACE FUNCTION duepost.email_extras(id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN (
        SELECT jsonb_strip_nulls(jsonb_build_object(
            'name', e.address_name,
            'attachments', e.attachments,
            'recipients', (
                SELECT jsonb_agg(jsonb_build_object(
                    'place', r.place, 'field', r.field, 'address', r.address, 'name', r.name,
                    'is_to_go', r.outcome IS NULL AND NOT r.in_ledger,
                    'is_suppressed', EXISTS (
                        SELECT FROM duepost.suppression AS s
                        WHERE s.address = duepost.mailbox_key(r.address)
                          AND (s.kind IS NULL OR s.kind = (SELECT i.kind FROM duepost.item AS i WHERE i.id = e.item_id))
                          AND (s.until IS NULL OR s.until > now())
                    )
                ) ORDER BY r.place)
                FROM duepost.email_recipient AS r
                WHERE r.email_id = e.item_id
            ),
            'is_unsubscribable', (
                SELECT true
                FROM duepost.item AS i
                JOIN duepost.kind AS k ON k.kind = i.kind AND k.unsubscribe
                WHERE i.id = e.item_id
            )
        ))::text
        FROM duepost.email AS e
        WHERE e.item_id = email_extras.id
    );
END
$$;
COMMENT ON FUNCTION duepost.email_extras IS
    'As JSON what an email has that few have: the name beside its address, the recipients who see each other, attachments. The caller holds '
    'the item''s lock.';
