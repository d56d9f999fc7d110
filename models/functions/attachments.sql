-- Attachments: what a file is called, what it is, and how long its content stays.
-- SECURITY DEFINER where an application or a worker calls it: neither reaches the tables otherwise.

-- Types by the ending of a file's name; the first ending of a type is the one that a file without a name gets.
CREATE OR REPLACE FUNCTION duepost.known_file_types() RETURNS TABLE (ending text, content_type text)
LANGUAGE sql IMMUTABLE ROWS 60 AS $$
    VALUES
        ('pdf', 'application/pdf'), ('csv', 'text/csv'), ('txt', 'text/plain'), ('log', 'text/plain'),
        ('md', 'text/markdown'), ('html', 'text/html'), ('htm', 'text/html'), ('xml', 'application/xml'),
        ('json', 'application/json'), ('ics', 'text/calendar'), ('vcf', 'text/vcard'), ('eml', 'message/rfc822'),
        ('png', 'image/png'), ('jpg', 'image/jpeg'), ('jpeg', 'image/jpeg'), ('gif', 'image/gif'), ('webp', 'image/webp'),
        ('svg', 'image/svg+xml'), ('bmp', 'image/bmp'), ('tif', 'image/tiff'), ('tiff', 'image/tiff'), ('heic', 'image/heic'),
        ('avif', 'image/avif'), ('mp3', 'audio/mpeg'), ('m4a', 'audio/mp4'), ('wav', 'audio/wav'), ('ogg', 'audio/ogg'),
        ('mp4', 'video/mp4'), ('mov', 'video/quicktime'), ('webm', 'video/webm'),
        ('zip', 'application/zip'), ('gz', 'application/gzip'), ('tgz', 'application/gzip'), ('7z', 'application/x-7z-compressed'),
        ('tar', 'application/x-tar'), ('rtf', 'application/rtf'), ('epub', 'application/epub+zip'),
        ('doc', 'application/msword'), ('xls', 'application/vnd.ms-excel'), ('ppt', 'application/vnd.ms-powerpoint'),
        ('docx', 'application/vnd.openxmlformats-officedocument.wordprocessingml.document'),
        ('xlsx', 'application/vnd.openxmlformats-officedocument.spreadsheetml.sheet'),
        ('pptx', 'application/vnd.openxmlformats-officedocument.presentationml.presentation'),
        ('odt', 'application/vnd.oasis.opendocument.text'), ('ods', 'application/vnd.oasis.opendocument.spreadsheet'),
        ('odp', 'application/vnd.oasis.opendocument.presentation'), ('pkpass', 'application/vnd.apple.pkpass'),
        ('p7s', 'application/pkcs7-signature'), ('p7m', 'application/pkcs7-mime'), ('asc', 'application/pgp-signature')
$$;

-- What a file is: by its first bytes, where they leave no doubt, or else by the ending of its name.
CREATE OR REPLACE FUNCTION duepost.file_type(filename text, content bytea) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        CASE
            WHEN substr(content, 1, 5) = '\x255044462d' THEN 'application/pdf'
            WHEN substr(content, 1, 8) = '\x89504e470d0a1a0a' THEN 'image/png'
            WHEN substr(content, 1, 3) = '\xffd8ff' THEN 'image/jpeg'
            WHEN substr(content, 1, 6) IN ('\x474946383761', '\x474946383961') THEN 'image/gif'
            WHEN substr(content, 1, 4) = '\x52494646' AND substr(content, 9, 4) = '\x57454250' THEN 'image/webp'
        END,
        (
            SELECT t.content_type FROM duepost.known_file_types() AS t
            WHERE t.ending = lower(substring(filename FROM '[.]([A-Za-z0-9]{1,6})$') COLLATE "C")
        ),
        CASE WHEN substr(content, 1, 4) = '\x504b0304' THEN 'application/zip' END,
        'application/octet-stream'
    )
$$;

-- A file's name; one that has none gets one.
CREATE OR REPLACE FUNCTION duepost.file_name(filename text, content_type text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN duepost.trimmed(coalesce(filename, '')) <> '' THEN duepost.trimmed(filename)
        ELSE 'attachment' || coalesce('.' || (
            SELECT t.ending FROM duepost.known_file_types() WITH ORDINALITY AS t (ending, content_type, place)
            WHERE t.content_type = split_part(file_name.content_type, ';', 1)
            ORDER BY t.place LIMIT 1
        ), '')
    END
$$;

CREATE OR REPLACE FUNCTION duepost.is_utf8(content bytea) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    PERFORM convert_from(content, 'UTF8');
    RETURN true;
EXCEPTION
    WHEN character_not_in_repertoire OR untranslatable_character THEN
        RETURN false;
END
$$;

-- The METHOD of a calendar (RFC 5546): with one it is an invitation, or the like; NULL without.
CREATE OR REPLACE FUNCTION duepost.calendar_method(calendar text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT substring(calendar FROM '(?n)^[Mm][Ee][Tt][Hh][Oo][Dd](?:;[^:\r]*)?:[ \t]*([A-Za-z][A-Za-z0-9-]*)[ \t]*\r?$')
$$;

-- The rules of what stands in a reference: asked when the content is stored, and once more when an email is scheduled with
-- it, since a reference is JSON that an application may change.
CREATE OR REPLACE FUNCTION duepost.file_error(filename text, content_type text, cid text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        duepost.line_error('filename', filename, 1000),
        duepost.line_error('content_type', content_type, 255),
        CASE
            WHEN content_type !~ '^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*( *; *[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*=([A-Za-z0-9!#$&^_.+''-]+|"[ !#-Z^-~]*"))*$'
                THEN 'content_type: must be one such as application/pdf or text/csv; charset=utf-8'
            WHEN lower(content_type COLLATE "C") ~ '^(multipart/|message/(?!rfc822( *;|$)))'
                THEN 'content_type: must be no multipart, and no message but message/rfc822'
            WHEN lower(content_type COLLATE "C") ~ '; *(name|filename|boundary)[*]?=' THEN 'content_type: must have no name or boundary'
            WHEN cid !~ '^[A-Za-z0-9_.+=~-]{1,100}(@[A-Za-z0-9_.-]{1,100})?$'
                THEN 'cid: must consist of ASCII letters, digits and _ . + = ~ - with at most one @, such as logo@example.com'
        END
    )
$$;

-- The content's type with what belongs to it: text in UTF-8 says so, and an invitation tells its method (RFC 6047).
CREATE OR REPLACE FUNCTION duepost.full_content_type(content_type text, content bytea) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    sort   CONSTANT text := lower(btrim(split_part(content_type, ';', 1)) COLLATE "C");
    -- In one form: `; ` between parameters.
    result text := sort || regexp_replace(coalesce(substring(content_type FROM ';.*$'), ''), ' *; *', '; ', 'g');
    method text;
    said   text;
BEGIN
    IF sort NOT LIKE 'text/%' OR NOT duepost.is_utf8(content) THEN
        IF sort = 'text/calendar' AND lower(content_type COLLATE "C") ~ '; *method *=' THEN
            PERFORM duepost.raise_bad_argument('content', 'an invitation must be UTF-8');
        END IF;
        RETURN result;
    END IF;
    IF lower(result COLLATE "C") !~ '; charset=' THEN
        result := sort || '; charset=utf-8' || substr(result, length(sort) + 1);
    END IF;
    IF sort = 'text/calendar' THEN
        method := duepost.calendar_method(convert_from(content, 'UTF8'));
        said := btrim(substring(result FROM '; [Mm][Ee][Tt][Hh][Oo][Dd]=("[^"]*"|[^;]*)'), '"');
        IF lower(said COLLATE "C") IS DISTINCT FROM lower(method COLLATE "C") AND said IS NOT NULL THEN
            PERFORM duepost.raise_bad_argument('content_type', 'its method must be the METHOD of the calendar');
        END IF;
        IF method IS NOT NULL THEN
            IF convert_from(content, 'UTF8') !~ '(?n)^[Uu][Ii][Dd](?:;[^:\r]*)?:[ \t]*[^ \t\r]' THEN
                PERFORM duepost.raise_bad_argument('content', 'a calendar with a METHOD needs a UID in its event');
            END IF;
            result := regexp_replace(result, '; [Mm][Ee][Tt][Hh][Oo][Dd]=("[^"]*"|[^;]*)', '') || '; method=' || method;
        END IF;
    END IF;
    RETURN result;
END
$$;

CREATE OR REPLACE FUNCTION duepost.attachment(
    filename     text,
    content      bytea,
    content_type text DEFAULT NULL,
    cid          text DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    error    text;
    sort     text;
    digest   bytea;
BEGIN
    IF attachment.content IS NULL THEN
        PERFORM duepost.raise_bad_argument('content', 'must be given');
    END IF;
    IF octet_length(attachment.content) > duepost.most_attached() THEN
        PERFORM duepost.raise_bad_argument('content', format(
            'must be at most %s bytes (25 MiB), is %s', duepost.most_attached(), octet_length(attachment.content)
        ));
    END IF;
    error := duepost.file_error(attachment.filename, attachment.content_type, attachment.cid);
    IF error IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = error;
    END IF;
    sort := duepost.full_content_type(
        coalesce(attachment.content_type, duepost.file_type(attachment.filename, attachment.content)), attachment.content
    );
    digest := sha256(attachment.content);
    LOOP
        -- It stays until this transaction ends. Looked for first: an INSERT waits for whoever writes to the row.
        PERFORM FROM duepost.attachment_content AS c WHERE c.hash = digest FOR KEY SHARE;
        EXIT WHEN FOUND;
        INSERT INTO duepost.attachment_content (hash, content, keep_until)
        VALUES (digest, attachment.content, now() + interval '1 day')
        ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;
    -- A reference is good for a day. Nobody waits for this row: whoever has it is doing the same.
    UPDATE duepost.attachment_content AS c
    SET keep_until = now() + interval '1 day'
    WHERE c.hash = (
        SELECT near.hash FROM duepost.attachment_content AS near
        WHERE near.hash = digest AND near.keep_until < now() + interval '23 hours'
        FOR NO KEY UPDATE SKIP LOCKED
    );
    RETURN jsonb_strip_nulls(jsonb_build_object(
        'filename', duepost.file_name(attachment.filename, sort), 'content_type', sort, 'cid', attachment.cid,
        'size', octet_length(attachment.content), 'sha256', encode(digest, 'hex')
    ));
END
$$;
COMMENT ON FUNCTION duepost.attachment IS
    'Stores a file once by its hash, and returns what schedule_email() takes as an element of attachments. The type is found by '
    'content and name where none is given; a cid makes it a picture that the HTML may show as cid:…. A bad argument raises 22023.';

-- What is wrong with the URL of a file that is read when it is sent. What is percent-encoded means what it stands for, so that
-- a segment is one however it is written.
CREATE OR REPLACE FUNCTION duepost.file_url_error(url text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN duepost.is_blank(url) THEN 'url: must be given, such as file:///srv/invoices/7.pdf'
        WHEN length(url) > 2000 THEN format('url: must be at most 2000 characters, is %s', length(url))
        WHEN duepost.line_error('url', url, 8000) IS NOT NULL THEN duepost.line_error('url', url, 8000)
        WHEN url !~ '^(file|s3)://' THEN 'url: must begin with file:/// or s3://bucket/'
        WHEN url ~ '[?#]' THEN 'url: must have no query and no fragment: a ? of a name is %3F, a # is %23'
        WHEN url ~ '%(?![0-9A-Fa-f]{2})' THEN 'url: must be percent-encoded: a % of a name is %25'
        WHEN url ~ '%([01][0-9A-Fa-f]|7[Ff])' THEN 'url: must not contain control characters'
        WHEN url ~ '%2[Ff]' THEN 'url: must have no / in a name'
        WHEN url ~ '^[a-z0-9]+://[^/]*@' THEN 'url: must have no user and no password: workers have their own'
        WHEN url ~ '^file://[^/]' THEN 'url: must name no host: file:/// and the path on the workers'' machines'
        WHEN url ~ '^s3://' AND url !~ '^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/|$)'
            THEN 'url: must name a bucket, such as s3://bucket/invoices/7.pdf'
        WHEN url ~ '^[a-z0-9]+://[^/]*(/|$)' AND url !~ '^[a-z0-9]+://[^/]*/.*[^/]$' THEN 'url: must name a file'
        WHEN regexp_replace(url, '^[a-z0-9]+://[^/]*', '') ~ '//|/(\.|%2[Ee]){1,2}(/|$)'
            THEN 'url: must have no segment that is empty, . or ..'
    END
$$;

CREATE OR REPLACE FUNCTION duepost.attachment_at(
    filename     text,
    url          text,
    content_type text DEFAULT NULL,
    cid          text DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    error text;
    sort  text;
BEGIN
    error := coalesce(
        duepost.file_url_error(attachment_at.url),
        duepost.file_error(attachment_at.filename, attachment_at.content_type, attachment_at.cid),
        duepost.reference_type_error(attachment_at.content_type)
    );
    IF error IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = error;
    END IF;
    -- By the names alone: nobody has read it.
    sort := coalesce(
        attachment_at.content_type,
        nullif(duepost.file_type(attachment_at.filename, ''), 'application/octet-stream'),
        duepost.file_type(attachment_at.url, '')
    );
    sort := lower(btrim(split_part(sort, ';', 1)) COLLATE "C")
        || regexp_replace(coalesce(substring(sort FROM ';.*$'), ''), ' *; *', '; ', 'g');
    RETURN jsonb_strip_nulls(jsonb_build_object(
        'filename', duepost.file_name(attachment_at.filename, sort), 'content_type', sort, 'cid', attachment_at.cid,
        'url', attachment_at.url
    ));
END
$$;
COMMENT ON FUNCTION duepost.attachment_at IS
    'Names a file by its URL, file:///… or s3://bucket/…, and returns what schedule_email() takes as an element of attachments. '
    'Nothing is stored: a worker reads the file when it sends. A bad argument raises 22023.';

-- An invitation is told by its content, which nobody has seen when it is scheduled.
CREATE OR REPLACE FUNCTION duepost.reference_type_error(content_type text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN lower(content_type COLLATE "C") ~ '; *method *='
            THEN 'content_type: must have no method: an invitation is given by its content, to duepost.attachment()'
    END
$$;

-- Bytes of an email's attachments, all together and so of each.
CREATE OR REPLACE FUNCTION duepost.most_attached() RETURNS integer
LANGUAGE sql IMMUTABLE AS $$ SELECT 26214400 $$;

-- What is wrong with an email's attachments, as far as they say it themselves.
CREATE OR REPLACE FUNCTION duepost.attachments_error(attachments jsonb, body_html text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    each        record;
    error       text;
    cids        text[] := '{}';
    invitations integer := 0;
    unknown     text;
BEGIN
    IF jsonb_typeof(attachments) <> 'array' THEN
        RETURN 'attachments: must be a list of what duepost.attachment() returns';
    END IF;
    IF jsonb_array_length(attachments) > 100 THEN
        RETURN format('attachments: must be at most 100, are %s', jsonb_array_length(attachments));
    END IF;
    FOR each IN
        SELECT a.value, a.ordinality - 1 AS place, jsonb_typeof(a.value) = 'object' AS is_object
        FROM jsonb_array_elements(attachments) WITH ORDINALITY AS a (value, ordinality)
        ORDER BY a.ordinality
    LOOP
        IF NOT each.is_object OR NOT coalesce(
            jsonb_typeof(each.value -> 'filename') = 'string' AND jsonb_typeof(each.value -> 'content_type') = 'string'
            AND coalesce(jsonb_typeof(each.value -> 'cid') IN ('string', 'null'), true)
            AND CASE
                WHEN each.value ? 'url' THEN
                    jsonb_typeof(each.value -> 'url') = 'string'
                    AND each.value - '{filename,content_type,cid,url}'::text[] = '{}'
                ELSE
                    each.value ->> 'sha256' ~ '^[0-9a-f]{64}$' AND jsonb_typeof(each.value -> 'size') = 'number'
                    AND each.value - '{filename,content_type,cid,size,sha256}'::text[] = '{}'
            END,
            false
        ) THEN
            RETURN format(
                'attachments[%s]: must be what duepost.attachment%s() returns', each.place,
                CASE WHEN each.is_object AND each.value ? 'url' THEN '_at' ELSE '' END
            );
        END IF;
        error := duepost.file_error(each.value ->> 'filename', each.value ->> 'content_type', each.value ->> 'cid');
        IF each.value ? 'url' THEN
            error := coalesce(
                error, duepost.file_url_error(each.value ->> 'url'), duepost.reference_type_error(each.value ->> 'content_type')
            );
        END IF;
        IF error IS NOT NULL THEN
            RETURN format('attachments[%s]: %s', each.place, error);
        END IF;
        IF each.value ->> 'cid' = ANY (cids) THEN
            RETURN format('attachments[%s]: cid: is that of an earlier one', each.place);
        END IF;
        IF each.value ->> 'cid' IS NOT NULL THEN
            cids := cids || (each.value ->> 'cid');
        END IF;
        IF lower((each.value ->> 'content_type') COLLATE "C") ~ '^text/calendar *;.*method=' THEN
            invitations := invitations + 1;
            IF invitations > 1 THEN
                RETURN format('attachments[%s]: an email holds one invitation', each.place);
            END IF;
        END IF;
    END LOOP;
    -- A template's HTML is there when it is sent only.
    SELECT shown.cid INTO unknown
    FROM regexp_matches(body_html, $re$["'=(]\s*[Cc][Ii][Dd]:([A-Za-z0-9_.+=~@-]+)$re$, 'g') AS found (groups)
    CROSS JOIN LATERAL (SELECT found.groups[1] AS cid) AS shown
    WHERE shown.cid <> ALL (cids)
    LIMIT 1;
    IF FOUND THEN
        RETURN format('body_html: shows cid:%s, and no attachment has that cid', left(unknown, 100));
    END IF;
    RETURN NULL;
END
$$;

-- What new emails need is theirs from here on. Contents are locked in the order of their hashes, so that nobody deletes one.
CREATE OR REPLACE FUNCTION duepost.take_attachments(
    given duepost.new_email[], ids bigint[], is_new boolean[], are_many boolean
) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
    places  integer[];
    emails  integer[];
    hashes  bytea[];
    sizes   numeric[];
    wrong   record;
BEGIN
    SELECT array_agg(g.ordinality), array_agg(a.ordinality - 1), array_agg(decode(a.value ->> 'sha256', 'hex')),
           array_agg((a.value ->> 'size')::numeric)
    INTO emails, places, hashes, sizes
    FROM unnest(given) WITH ORDINALITY AS g
    CROSS JOIN LATERAL jsonb_array_elements(g.attachments) WITH ORDINALITY AS a (value, ordinality)
    WHERE is_new[g.ordinality] IS NOT FALSE AND NOT a.value ? 'url';
    IF emails IS NULL THEN
        RETURN;
    END IF;
    PERFORM FROM duepost.attachment_content AS c WHERE c.hash = ANY (hashes) ORDER BY c.hash FOR KEY SHARE;

    SELECT n.email, n.place INTO wrong
    FROM unnest(emails, places, hashes, sizes) AS n (email, place, hash, size)
    WHERE NOT EXISTS (
        SELECT FROM duepost.attachment_content AS c WHERE c.hash = n.hash AND octet_length(c.content) = n.size
    )
    ORDER BY n.email, n.place
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE =
            CASE WHEN are_many THEN format('emails[%s]: ', wrong.email - 1) ELSE '' END || format(
                'attachments[%s]: its content is not stored any more: call duepost.attachment() in this transaction', wrong.place
            );
    END IF;

    SELECT n.email, sum(octet_length(c.content)) AS size INTO wrong
    FROM unnest(emails, hashes) AS n (email, hash)
    JOIN duepost.attachment_content AS c ON c.hash = n.hash
    GROUP BY n.email
    HAVING sum(octet_length(c.content)) > duepost.most_attached()
    ORDER BY n.email
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE =
            CASE WHEN are_many THEN format('emails[%s]: ', wrong.email - 1) ELSE '' END || format(
                'attachments: must be at most %s bytes (25 MiB) together, are %s', duepost.most_attached(), wrong.size
            );
    END IF;

    INSERT INTO duepost.email_attachment (email_id, hash)
    SELECT DISTINCT ids[n.email], n.hash FROM unnest(emails, hashes) AS n (email, hash);
END
$$;

-- An email is done with its attachments once it is neither pending nor kept so that it can be reopened. What no email needs
-- any more stays until the next call, so that a transaction that schedules one email after the other finds it.
CREATE OR REPLACE FUNCTION duepost.drop_attachments(most integer DEFAULT 1000) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET jit = off AS $$
#variable_conflict use_column
DECLARE
    unneeded bytea[];
    released bytea[];
    gone     bigint;
    is_over  bigint;
    read     bigint;
BEGIN
    -- Who schedules with one has locked it: such a one is passed over.
    unneeded := ARRAY(
        SELECT c.hash FROM duepost.attachment_content AS c
        WHERE c.keep_until <= now()
          AND NOT EXISTS (SELECT FROM duepost.email_attachment AS a WHERE a.hash = c.hash)
        ORDER BY c.hash
        LIMIT drop_attachments.most
        FOR UPDATE SKIP LOCKED
    );
    -- Asked once more, now that they are locked: an email may have come, and its transaction have ended, in between.
    DELETE FROM duepost.attachment_content AS c
    WHERE c.hash = ANY (unneeded) AND NOT EXISTS (SELECT FROM duepost.email_attachment AS a WHERE a.hash = c.hash);
    GET DIAGNOSTICS gone = ROW_COUNT;

    WITH over AS MATERIALIZED (
        SELECT a.email_id, a.hash
        FROM duepost.email_attachment AS a
        WHERE NOT EXISTS (SELECT FROM duepost.item AS i WHERE i.id = a.email_id)
          AND NOT EXISTS (
              SELECT FROM duepost.undeliverable_email AS k WHERE k.id = a.email_id AND k.email IS NOT NULL
          )
        ORDER BY a.email_id, a.hash
        LIMIT drop_attachments.most
        FOR UPDATE SKIP LOCKED
    ), dropped AS (
        DELETE FROM duepost.email_attachment AS a USING over
        WHERE a.email_id = over.email_id AND a.hash = over.hash
        RETURNING a.hash
    )
    SELECT array_agg(DISTINCT d.hash), count(*) INTO released, is_over FROM dropped AS d;
    UPDATE duepost.attachment_content AS c
    SET keep_until = now()
    WHERE c.hash IN (
        SELECT near.hash FROM duepost.attachment_content AS near
        WHERE near.hash = ANY (released) AND near.keep_until > now()
        ORDER BY near.hash
        FOR NO KEY UPDATE SKIP LOCKED
    );
    DELETE FROM duepost.email_file AS f
    WHERE f.email_id IN (
        SELECT near.email_id FROM duepost.email_file AS near
        WHERE NOT EXISTS (SELECT FROM duepost.item AS i WHERE i.id = near.email_id)
          AND NOT EXISTS (
              SELECT FROM duepost.undeliverable_email AS k WHERE k.id = near.email_id AND k.email IS NOT NULL
          )
        ORDER BY near.email_id
        LIMIT drop_attachments.most
        FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS read = ROW_COUNT;
    RETURN gone + is_over + read;
END
$$;
COMMENT ON FUNCTION duepost.drop_attachments IS
    'Deletes contents that no email needs, and that nobody has used since an earlier call; gives how much there was to do.';

-- What an email's files have to hold: what they do now, unless anybody may have the email already.
CREATE OR REPLACE FUNCTION duepost.pin_files(email_id bigint, hashes text[]) RETURNS text[]
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    pinned bytea[];
BEGIN
    INSERT INTO duepost.email_file AS f (email_id, hashes)
    VALUES (pin_files.email_id, ARRAY(
        SELECT decode(h.hash, 'hex') FROM unnest(pin_files.hashes) WITH ORDINALITY AS h (hash, place) ORDER BY h.place
    ))
    ON CONFLICT (email_id) DO UPDATE SET hashes = EXCLUDED.hashes
    WHERE f.hashes <> EXCLUDED.hashes
      AND NOT EXISTS (SELECT FROM duepost.item AS i WHERE i.id = f.email_id AND i.unknowns > 0)
      AND NOT EXISTS (
          SELECT FROM duepost.scheduled_email_user AS u WHERE u.email_id = f.email_id AND (u.outcome = 'sent' OR u.unknown)
      )
      AND NOT EXISTS (
          SELECT FROM duepost.email_recipient AS r
          WHERE r.email_id = f.email_id AND (r.outcome = 'sent' OR r.unknown OR r.in_ledger)
      );
    SELECT f.hashes INTO pinned FROM duepost.email_file AS f WHERE f.email_id = pin_files.email_id;
    RETURN ARRAY(SELECT encode(p.hash, 'hex') FROM unnest(pinned) WITH ORDINALITY AS p (hash, place) ORDER BY p.place);
END
$$;
COMMENT ON FUNCTION duepost.pin_files IS
    'Remembers what the files held that an email names by URL, and returns what has to go out: the same, or what those got who may '
    'have the email already. For the worker that has claimed it.';
