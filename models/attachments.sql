-- Attachments: read when an email is composed, and dropped after the last email that needs them.

-- name: contents
-- In base64, as they go over the wire but for the line ends: the server encodes faster than it would send hexadecimals.
SELECT encode(c.hash, 'hex'), encode(c.content, 'base64')
FROM duepost.attachment_content AS c
WHERE c.hash = ANY (ARRAY(SELECT decode(h, 'hex') FROM unnest(%(hashes)s::text[]) AS h))

-- name: drop
SELECT duepost.drop_attachments()

-- name: pin
SELECT duepost.pin_files(%(id)s, %(hashes)s::text[])
