-- What may be scheduled: each rule once.
-- Databases of release 0.1 have functions named `refuse` and `*_fault` besides, which nothing calls any more: a statement that
-- was under way when they were upgraded could. The release after this one drops them.

CREATE OR REPLACE FUNCTION duepost.raise_bad_argument(argument text, reason text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = argument || ': ' || reason;
END
$$;

-- What is wrong with a value, as `argument: what would be right`; NULL where nothing is. Expressions that PostgreSQL
-- puts in place of the call, as far as it can: they are asked for each email of a set.

CREATE OR REPLACE FUNCTION duepost.line_error(argument text, value text, most integer) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN value ~ '[\u0001-\u001f\u007f-\u009f]' THEN argument || CASE
            WHEN value ~ '[\r\n]' THEN ': must be one line: CR and LF are not allowed'
            ELSE ': must not contain control characters'
        END
        WHEN octet_length(value) > most
            THEN format('%s: must be at most %s bytes, is %s', argument, most, octet_length(value))
    END
$$;

-- A moment that every worker and driver can read: the years of RFC 5322 and of most languages.
CREATE OR REPLACE FUNCTION duepost.moment_error(argument text, value timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN NOT isfinite(value) THEN argument || ': must be a finite time'
        WHEN value < '1970-01-01 00:00:00+00' OR value >= '9999-12-31 00:00:00+00'
            THEN argument || ': must be between the years 1970 and 9999'
    END
$$;

CREATE OR REPLACE FUNCTION duepost.times_error(scheduled_at timestamptz, expires_at timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        duepost.moment_error('scheduled_at', scheduled_at),
        duepost.moment_error('expires_at', expires_at),
        CASE WHEN expires_at <= coalesce(scheduled_at, now()) THEN 'expires_at: must be later than scheduled_at' END
    )
$$;

CREATE OR REPLACE FUNCTION duepost.key_error(key text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(CASE WHEN key = '' THEN 'key: must not be empty' END, duepost.line_error('key', key, 512))
$$;

-- Whether a text is a time in ISO 8601 with its zone: one moment, whatever the session's DateStyle and TimeZone are. The
-- zone is an offset, UTC, or a name such as Europe/Berlin; abbreviations mean different zones in different settings.
CREATE OR REPLACE FUNCTION duepost.has_zone(value text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT value ~ '^[0-9]{4}(-[0-9]{2}-[0-9]{2}|[0-9]{4})[Tt ][0-9]{2}:?[0-9]{2}(:?[0-9]{2}([.][0-9]+)?)? ?([Zz]|UTC|GMT|[+-][0-9]{2}(:?[0-9]{2}(:?[0-9]{2})?)?|[A-Za-z_]+(/[A-Za-z0-9_+-]+)+)$'
$$;

-- The address rules: `actors/content/addresses.py` says the same in the worker's language, and `tests/corpus/addresses.json` and
-- the tests beside it hold the two together. Ranges of characters, never classes such as [:alpha:], and COLLATE "C" for
-- lower(): those depend on the database's locale.

-- Whether it has white space, or what cannot be seen, of whatever script beyond ASCII.
CREATE OR REPLACE FUNCTION duepost.is_unseen(value text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT value ~ E'[\u0080-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u180b-\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]'
$$;

-- RFC 3492 section 6.2: whether this, after `xn--`, stands for a label beyond ASCII.
CREATE OR REPLACE FUNCTION duepost.is_punycode(encoded text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    digits    CONSTANT text := 'abcdefghijklmnopqrstuvwxyz0123456789';
    length_   integer := coalesce(length(substring(encoded FROM '^(.*)-')), 0);
    rest      text := coalesce(substring(encoded FROM '^.*-(.*)$'), encoded);
    n         bigint := 128;
    i         bigint := 0;
    delta     bigint;
    weight    bigint;
    digit     integer;
    place     integer := 1;
    bias      integer := 72;
    k         integer;
    threshold integer;
BEGIN
    IF rest = '' THEN
        RETURN false;
    END IF;
    WHILE place <= length(rest) LOOP
        delta := i;
        weight := 1;
        k := 36;
        LOOP
            digit := strpos(digits, substr(rest, place, 1)) - 1;
            IF place > length(rest) OR digit < 0 THEN
                RETURN false;
            END IF;
            place := place + 1;
            i := i + digit * weight;
            -- Beyond any label that fits a domain.
            IF i > 1000000000 THEN
                RETURN false;
            END IF;
            threshold := least(greatest(k - bias, 1), 26);
            EXIT WHEN digit < threshold;
            weight := weight * (36 - threshold);
            k := k + 36;
        END LOOP;
        length_ := length_ + 1;
        delta := CASE WHEN delta = 0 THEN i / 700 ELSE (i - delta) / 2 END;
        delta := delta + delta / length_;
        k := 0;
        WHILE delta > 455 LOOP
            delta := delta / 35;
            k := k + 36;
        END LOOP;
        bias := (k + 36 * delta / (delta + 38))::integer;
        n := n + i / length_;
        i := i % length_ + 1;
        -- Beyond Unicode, half a character, or one that cannot be seen.
        IF n > 1114111 OR n BETWEEN 55296 AND 57343 OR duepost.is_unseen(chr(n::integer)) THEN
            RETURN false;
        END IF;
    END LOOP;
    RETURN true;
END
$$;
-- A label of a domain, mapped: RFC 5890 section 2.3.1 for ASCII; RFC 5891 section 4.2.3 and the parts of RFC 5893 that
-- catch what nobody can register. Whether the rest is registered is for the relay to say.
CREATE OR REPLACE FUNCTION duepost.is_label(label text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN label ~ E'^[\x01-\x7f]*$' THEN
            length(label) <= 63 AND label ~ '^[a-z0-9]+(-+[a-z0-9]+)*$'
            AND (label NOT LIKE 'xn--%' OR duepost.is_punycode(substr(label, 5)))
        ELSE
            label ~ E'^([a-z0-9-]|[^\x01-\x7f])+$'
            AND label !~ '^-|-$|^..--'
            -- Marks, which go on the letter before them.
            AND label !~ E'^[\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe20-\ufe2f]'
            -- What is written from the right begins with a letter, and has no Latin in it.
            AND (
                label !~ E'[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]'
                OR label !~ E'[a-z\u00df-\u024f]|^[0-9\u0660-\u0669\u06f0-\u06f9]'
            )
            -- RFC 5892 appendix A.3: as in Catalan.
            AND label !~ E'(^|[^l])\u00b7|\u00b7($|[^l])'
            AND length(duepost.punycode(label)) <= 59
    END
$$;

-- A domain in ASCII, in lower case; NULL where it is none. One without a dot, and one for special use, is taken: whether
-- it can be reached is for the relay to say.
CREATE OR REPLACE FUNCTION duepost.ascii_domain(domain text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    result text;
BEGIN
    IF domain = '' OR octet_length(domain) > 254 OR EXISTS (
        SELECT FROM string_to_table(regexp_replace(domain, E'[\x01-\x7f]+', '', 'g'), NULL) AS c
        WHERE NOT duepost.domain_letters() @> ascii(c)
    ) THEN
        RETURN NULL;
    END IF;
    IF EXISTS (
        SELECT FROM regexp_split_to_table(duepost.mapped_domain(domain), '[.]') AS label
        WHERE NOT duepost.is_label(label)
    ) THEN
        RETURN NULL;
    END IF;
    result := duepost.domain_in_ascii(domain);
    RETURN CASE WHEN length(result) <= 253 THEN result END;
END
$$;

-- Every address that is no plain one: in other scripts, or wrong.
CREATE OR REPLACE FUNCTION duepost.is_other_address(value text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    local_part text := split_part(value, '@', 1);
    domain     text;
BEGIN
    -- A dot-string, of whatever script, without white space and what cannot be seen.
    IF value !~ E'^[^\x01-\x20()<>@,;:\\\\".\\[\\]\x7f]+(\\.[^\x01-\x20()<>@,;:\\\\".\\[\\]\x7f]+)*@[^@]+$'
        OR duepost.is_unseen(local_part)
    THEN
        RETURN false;
    END IF;
    domain := duepost.ascii_domain(split_part(value, '@', 2));
    RETURN domain IS NOT NULL AND octet_length(local_part) + 1 + length(domain) <= 254;
END
$$;

-- RFC 5321 section 4.1.2 (dot-string) with UTF-8 (RFC 6531); sizes of section 4.5.3.1, in octets. A label of the domain is
-- at most 63 long: with that in its pattern, `{0,61}`, PostgreSQL took ten times as long.
CREATE OR REPLACE FUNCTION duepost.is_address(value text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT octet_length(value) <= 254
       AND octet_length(split_part(value, '@', 1)) BETWEEN 1 AND 64
       AND CASE
           WHEN value ~ '^[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+([.][A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+)*@[A-Za-z0-9]+(-+[A-Za-z0-9]+)*([.][A-Za-z0-9]+(-+[A-Za-z0-9]+)*)*$'
               AND value !~ '@(.*[.])?[Xx][Nn]--'
           THEN length(split_part(value, '@', 2)) <= 63 OR split_part(value, '@', 2) !~ '[^.]{64}'
           ELSE duepost.is_other_address(value)
       END
$$;

CREATE OR REPLACE FUNCTION duepost.address_error(argument text, value text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN duepost.is_address(value) IS NOT TRUE THEN coalesce(
            duepost.line_error(argument, value, 1000), argument || ': must be one address such as ann@example.com'
        )
    END
$$;

-- The address of `Ann Example <ann@example.com>`, or of a bare one, without what is around it.
CREATE OR REPLACE FUNCTION duepost.mailbox_address(value text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT btrim(coalesce(
        substring(duepost.trimmed(value) FROM E'^(?:"(?:[^"\\\\]|\\\\.)*" *|[^<>]*)<([^<>]*)>$'), duepost.trimmed(value)
    ), ' ')
$$;

-- The name of `Ann Example <ann@example.com>`; NULL where there is none.
CREATE OR REPLACE FUNCTION duepost.mailbox_name(value text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT nullif(duepost.trimmed(CASE
        WHEN found.name ~ E'^"(?:[^"\\\\]|\\\\.)*" *$' THEN regexp_replace(btrim(btrim(found.name, ' '), '"'), E'\\\\(.)', E'\\1', 'g')
        ELSE found.name
    END), '')
    FROM (
        SELECT substring(duepost.trimmed(value) FROM E'^((?:"(?:[^"\\\\]|\\\\.)*" *|[^<>]*))<[^<>]*>$') AS name
    ) AS found
$$;

-- Who gets it: a bare address, or a name and an address in angle brackets. It is one mailbox, whatever the name holds.
CREATE OR REPLACE FUNCTION duepost.recipient_error(argument text, value text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN strpos(value, '<') = 0 OR value IS NULL THEN duepost.address_error(argument, value)
        ELSE coalesce(
            duepost.line_error(argument, value, 1000),
            CASE
                WHEN duepost.is_address(duepost.mailbox_address(value)) IS NOT TRUE
                    THEN argument || ': must be one address such as ann@example.com or Ann <ann@example.com>'
            END
        )
    END
$$;

-- Recipients who see each other.
CREATE OR REPLACE FUNCTION duepost.recipients_error(email duepost.new_email) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    field record;
    error text;
    total integer := (email.address IS NOT NULL)::integer;
BEGIN
    IF duepost.is_seen_by_several(email) AND duepost.is_unsubscribable(email.kind) THEN
        RETURN CASE
            WHEN email.addresses IS NOT NULL THEN 'addresses'
            WHEN cardinality(email.cc) > 0 THEN 'cc'
            ELSE 'bcc'
        END || ': recipients can unsubscribe from this kind: it has one recipient an email, by address or users';
    END IF;
    FOR field IN
        SELECT f.name, f.mailboxes
        FROM (VALUES ('addresses', email.addresses), ('cc', email.cc), ('bcc', email.bcc)) AS f (name, mailboxes)
        WHERE f.mailboxes IS NOT NULL
    LOOP
        IF email.users IS NOT NULL AND cardinality(field.mailboxes) > 0 THEN
            RETURN field.name || ': goes with address or addresses: each user gets a copy that nobody else is named in';
        END IF;
        total := total + cardinality(field.mailboxes);
        IF total > 100 THEN
            RETURN field.name || ': an email must have at most 100 recipients who see each other';
        END IF;
        FOR place IN 1 .. cardinality(field.mailboxes) LOOP
            error := duepost.recipient_error(format('%s[%s]', field.name, place - 1), field.mailboxes[place]);
            IF error IS NOT NULL THEN
                RETURN error;
            END IF;
        END LOOP;
    END LOOP;
    IF total = 0 AND email.users IS NULL THEN
        RETURN 'addresses: must name at least one recipient, here or in cc or bcc';
    END IF;
    RETURN NULL;
END
$$;

-- A sender or Reply-To: without SMTPUTF8 a local part that is not ASCII can never be sent.
CREATE OR REPLACE FUNCTION duepost.mailbox_error(argument text, value text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        duepost.line_error(argument, value, 1000),
        CASE
            WHEN duepost.is_address(duepost.mailbox_address(value)) IS NOT TRUE
                THEN argument || ': must be an address such as ann@example.com or Ann <ann@example.com>'
            WHEN split_part(duepost.mailbox_address(value), '@', 1) ~ E'[^\x01-\x7f]'
                THEN argument || ': the part of the address before the @ must be ASCII'
        END
    )
$$;

-- Whether a header is a list of URIs, ids, addresses or keywords, in which an encoded word means nothing (RFC 2047
-- section 5): `actors/content/mime.py` has the same.
CREATE OR REPLACE FUNCTION duepost.is_structured(name text, value text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT lower(name COLLATE "C") ~ '^(list-.*|(.*-)?references|in-reply-to|.*message-id|(x-)?auto-.*|precedence|(x-)?priority|x-msmail-priority|importance|sensitivity|feedback-id|archived-at|supersedes|obsoletes|original-recipient|disposition-notification-.*|return-receipt-to|x-confirm-reading-to|errors-to|mail-(followup|reply)-to|require-recipient-valid-since|tls-required|expires|reply-by|authentication-results|arc-.*)$'
        OR value ~ E'^[ \t]*<[!-;=?-~]+>([ \t]*,?[ \t]*<[!-;=?-~]+>)*[ \t]*$'
$$;

-- Such a header is folded at its white space and before each `<`, and never encoded, but for a phrase before a `<…>`.
CREATE OR REPLACE FUNCTION duepost.structured_header_error(name text, value text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN value ~ E'[^\x01-\x7f]' AND value !~ E'^[^<>]*<[!-;=?-~]+>[ \t]*$'
            THEN format('headers: %s must be ASCII: it cannot be encoded', name)
        WHEN EXISTS (
            SELECT FROM regexp_split_to_table(regexp_replace(value, '([,>])<', E'\\1 <', 'g'), E'[ \t]+') AS part
            WHERE length(name) + 2 + length(part) > 998
        ) THEN format('headers: %s must have no part of more than %s characters: no line can hold it', name, 996 - length(name))
    END
$$;

CREATE OR REPLACE FUNCTION duepost.headers_error(headers jsonb) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    header record;
    error  text;
BEGIN
    IF jsonb_typeof(headers) <> 'object' THEN
        RETURN 'headers: must be a JSON object of header names and strings';
    END IF;
    IF octet_length(headers::text) > 65536 THEN
        RETURN format('headers: must be at most 65536 bytes, are %s', octet_length(headers::text));
    END IF;
    FOR header IN SELECT h.key AS name, h.value, h.value #>> '{}' AS text FROM jsonb_each(headers) AS h LOOP
        IF header.name !~ '^[!-9;-~]{1,76}$' THEN
            RETURN 'headers: a header''s name must be 1 to 76 printable ASCII characters without a colon';
        END IF;
        IF lower(header.name COLLATE "C") ~ '^(from|sender|to|cc|bcc|reply-to|subject|date|message-id|return-path|received|auto-submitted|mime-version|content-.*|dkim-signature|resent-.*)$' THEN
            RETURN format('headers: %s is set by Duepost and cannot be given', header.name);
        END IF;
        IF jsonb_typeof(header.value) <> 'string' THEN
            RETURN format('headers: %s must be a string', header.name);
        END IF;
        -- A tab is white space here (RFC 5322 section 2.2), as in a subject.
        error := duepost.line_error(format('headers: %s', header.name), translate(header.text, E'\t', ' '), 8192);
        IF error IS NULL AND duepost.is_structured(header.name, header.text) THEN
            error := duepost.structured_header_error(header.name, header.text);
        END IF;
        IF error IS NOT NULL THEN
            RETURN error;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION duepost.is_unsubscribable(kind text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM duepost.kind AS k WHERE k.kind = $1 AND k.unsubscribe)
$$;

-- A kind that has links to unsubscribe has no others.
CREATE OR REPLACE FUNCTION duepost.own_link_error(kind text, headers jsonb) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT 'headers: List-Unsubscribe is set by Duepost: recipients can unsubscribe from this kind'
    WHERE EXISTS (
        SELECT FROM jsonb_object_keys($2) AS name
        WHERE lower(name COLLATE "C") IN ('list-unsubscribe', 'list-unsubscribe-post')
    ) AND duepost.is_unsubscribable($1)
$$;

CREATE OR REPLACE FUNCTION duepost.users_error(users text[]) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    user_id text;
    error   text;
BEGIN
    IF cardinality(users) = 0 THEN
        RETURN 'users: must name at least one user';
    END IF;
    IF cardinality(users) > 1000 THEN
        RETURN format('users: must be at most 1000, are %s', cardinality(users));
    END IF;
    FOREACH user_id IN ARRAY users LOOP
        IF user_id IS NULL OR user_id = '' THEN
            RETURN 'users: must not contain NULL or an empty user id';
        END IF;
        error := duepost.line_error('users', user_id, 255);
        IF error IS NOT NULL THEN
            RETURN error;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Nothing, or nothing but white space: no body. Its beginning is looked at first, since a body may be long.
CREATE OR REPLACE FUNCTION duepost.is_blank(value text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT value IS NULL OR (duepost.trimmed(left(value, 100)) = '' AND duepost.trimmed(value) = '')
$$;

-- What PostgreSQL stores and the worker's reader does not take. The levels are looked at first: the search for numbers goes
-- through all of them. What is far larger than any text that may be stored is not read at all: a number of a few bytes may
-- be a text of thousands.
CREATE OR REPLACE FUNCTION duepost.json_error(argument text, value jsonb) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN pg_column_size(value) > 4194304 THEN argument || ': must be at most 262144 bytes (256 KiB)'
        WHEN jsonb_path_exists(value, 'strict $.**{101}') THEN argument || ': must be at most 100 levels deep'
        WHEN jsonb_path_exists(value, 'strict $.** ? (@.type() == "number" && (@ > 1e308 || @ < -1e308))')
            THEN argument || ': a number must be between -1e308 and 1e308'
    END
$$;

CREATE OR REPLACE FUNCTION duepost.template_error(
    template text, context jsonb, subject text, body_text text, body_html text
) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN subject IS NOT NULL OR NOT duepost.is_blank(body_text) OR NOT duepost.is_blank(body_html)
            THEN 'template: give either a template or a subject with a body, not both'
        WHEN template !~ '^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$' OR length(template) > 200
            THEN 'template: must be a name such as welcome or account/welcome'
        WHEN jsonb_typeof(context) <> 'object' THEN 'context: must be a JSON object'
        WHEN octet_length(context::text) > 262144
            THEN format('context: must be at most 262144 bytes (256 KiB), is %s', octet_length(context::text))
        ELSE duepost.json_error('context', context)
    END
$$;

CREATE OR REPLACE FUNCTION duepost.content_error(context jsonb, subject text, body_text text, body_html text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        CASE
            WHEN context IS NOT NULL THEN 'context: goes with a template only'
            WHEN subject IS NULL THEN 'template: give either a template or a subject with a body'
            WHEN duepost.is_blank(subject) THEN 'subject: must not be empty'
        END,
        duepost.line_error('subject', translate(subject, E'\t', ' '), 4096),
        CASE
            WHEN duepost.is_blank(body_text) AND duepost.is_blank(body_html)
                THEN 'body_text: a subject needs a body: give body_text, body_html or both'
            WHEN octet_length(body_text) > 1048576
                THEN format('body_text: must be at most 1048576 bytes (1 MiB), is %s', octet_length(body_text))
            WHEN octet_length(body_html) > 1048576
                THEN format('body_html: must be at most 1048576 bytes (1 MiB), is %s', octet_length(body_html))
        END
    )
$$;

CREATE OR REPLACE FUNCTION duepost.kind_error(kind text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(CASE WHEN coalesce(kind, '') = '' THEN 'kind: must not be empty' END, duepost.line_error('kind', kind, 100))
$$;

CREATE OR REPLACE FUNCTION duepost.email_error(email duepost.new_email) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        duepost.kind_error(email.kind),
        CASE
            WHEN num_nonnulls(email.address, email.users, email.addresses) <> 1
                THEN 'address: give either address, addresses or users, and only one of them'
            WHEN email.address IS NOT NULL THEN duepost.recipient_error('address', email.address)
            WHEN email.users IS NOT NULL THEN duepost.users_error(email.users)
        END,
        CASE
            WHEN email.addresses IS NOT NULL OR email.cc IS NOT NULL OR email.bcc IS NOT NULL
                THEN duepost.recipients_error(email)
        END,
        duepost.times_error(email.scheduled_at, email.expires_at),
        CASE WHEN num_nonnulls(email.scheduled_local, email.timezone) > 0 THEN duepost.local_time_error(email) END,
        CASE WHEN email.priority NOT IN ('urgent', 'normal', 'bulk') THEN 'priority: must be urgent, normal or bulk' END,
        CASE
            WHEN email.template IS NOT NULL
                THEN duepost.template_error(
                    email.template, email.context, email.subject, email.body_text, email.body_html
                )
            ELSE duepost.content_error(email.context, email.subject, email.body_text, email.body_html)
        END,
        CASE WHEN email.sender IS NOT NULL THEN duepost.mailbox_error('sender', email.sender) END,
        CASE WHEN email.reply_to IS NOT NULL THEN duepost.mailbox_error('reply_to', email.reply_to) END,
        CASE
            WHEN email.headers IS NOT NULL
                THEN coalesce(duepost.headers_error(email.headers), duepost.own_link_error(email.kind, email.headers))
        END,
        CASE
            WHEN email.attachments IS NOT NULL THEN duepost.attachments_error(email.attachments, email.body_html)
        END,
        duepost.key_error(email.key)
    )
$$;

-- What a key stands for: all but the times, since a job that is run again computes those afresh and means the same email.
-- Digests are stored, so those of 0.1 must stay the same: its arguments stand here in its order, and one that has been
-- added since counts only where it is given.
CREATE OR REPLACE FUNCTION duepost.email_digest(email duepost.new_email) RETURNS bytea
LANGUAGE sql STABLE AS $$
    SELECT sha256(convert_to((
        jsonb_build_array(
            email.kind, email.address,
            CASE
                WHEN email.users IS NOT NULL
                    THEN to_jsonb(ARRAY(SELECT DISTINCT u FROM unnest(email.users) AS u ORDER BY u))
            END,
            email.template, CASE WHEN email.template IS NOT NULL THEN coalesce(email.context, '{}') END, email.subject,
            email.body_text, email.body_html, email.sender, email.reply_to, email.headers
        ) || coalesce(nullif(jsonb_build_array(
            jsonb_strip_nulls(to_jsonb(email)) - '{kind,address,users,template,context,subject,body_text,body_html,sender,reply_to,headers,key,scheduled_at,expires_at,scheduled_local,timezone}'::text[]
        ), '[{}]'), '[]')
    )::text, 'UTF8'))
$$;
