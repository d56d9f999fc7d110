-- What a message may say, by its endpoint's format: what a receiver is known to refuse is refused when it is scheduled.

-- The limits of Slack's blocks: how many characters a text of one may have, and an item of its fields.
CREATE OR REPLACE FUNCTION duepost.slack_block_error(block jsonb, place text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN jsonb_typeof(block) <> 'object' OR coalesce(jsonb_typeof(block -> 'type'), '') <> 'string'
            THEN format('payload: %s: must be an object with a type', place)
        WHEN block ->> 'type' = 'section' AND length(block #>> '{text,text}') > 3000
            THEN format('payload: %s: text: must be at most 3000 characters, is %s', place, length(block #>> '{text,text}'))
        WHEN block ->> 'type' = 'header' AND length(block #>> '{text,text}') > 150
            THEN format('payload: %s: text: must be at most 150 characters, is %s', place, length(block #>> '{text,text}'))
        WHEN jsonb_typeof(block -> 'fields') = 'array' AND jsonb_array_length(block -> 'fields') > 10
            THEN format('payload: %s: fields: must be at most 10, are %s', place, jsonb_array_length(block -> 'fields'))
    END
$$;

-- What the incoming webhooks of Slack and Mattermost have in common: a text that is not too long, attachments.
CREATE OR REPLACE FUNCTION duepost.chat_error(payload jsonb, longest integer) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN payload ? 'text' AND jsonb_typeof(payload -> 'text') <> 'string' THEN 'payload: text: must be a string'
        WHEN length(payload ->> 'text') > longest
            THEN format('payload: text: must be at most %s characters, is %s', longest, length(payload ->> 'text'))
        WHEN payload ? 'attachments' AND jsonb_typeof(payload -> 'attachments') <> 'array'
            THEN 'payload: attachments: must be a list'
    END
$$;

CREATE OR REPLACE FUNCTION duepost.slack_error(payload jsonb) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(
        duepost.chat_error(payload, 40000),
        CASE
            WHEN jsonb_typeof(payload -> 'attachments') = 'array' AND jsonb_array_length(payload -> 'attachments') > 100
                THEN format('payload: attachments: must be at most 100, are %s', jsonb_array_length(payload -> 'attachments'))
            WHEN payload ? 'blocks' AND jsonb_typeof(payload -> 'blocks') <> 'array' THEN 'payload: blocks: must be a list'
            WHEN jsonb_typeof(payload -> 'blocks') = 'array' AND jsonb_array_length(payload -> 'blocks') > 50
                THEN format('payload: blocks: must be at most 50, are %s', jsonb_array_length(payload -> 'blocks'))
        END,
        (
            SELECT duepost.slack_block_error(each.block, format('blocks[%s]', each.place - 1))
            FROM jsonb_array_elements(
                CASE WHEN jsonb_typeof(payload -> 'blocks') = 'array' THEN payload -> 'blocks' END
            ) WITH ORDINALITY AS each (block, place)
            WHERE duepost.slack_block_error(each.block, '') IS NOT NULL
            ORDER BY each.place
            LIMIT 1
        ),
        CASE
            WHEN duepost.is_blank(payload ->> 'text')
                AND coalesce(payload -> 'blocks', '[]') = '[]' AND coalesce(payload -> 'attachments', '[]') = '[]'
                THEN 'payload: must have a text, blocks or attachments'
        END
    )
$$;

CREATE OR REPLACE FUNCTION duepost.mattermost_error(payload jsonb) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(
        duepost.chat_error(payload, 16383),
        CASE
            WHEN duepost.is_blank(payload ->> 'text') AND coalesce(payload -> 'attachments', '[]') = '[]'
                THEN 'payload: must have a text or attachments'
        END
    )
$$;

-- Zulip's messages: what a payload does not say is said by the endpoint's options.
CREATE OR REPLACE FUNCTION duepost.zulip_error(payload jsonb, options jsonb) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN payload - '{type,to,topic,content}'::text[] <> '{}' THEN 'payload: must have type, to, topic and content only'
        WHEN payload ? 'type' AND jsonb_typeof(payload -> 'type') <> 'string'
            OR coalesce(payload ->> 'type', 'stream') NOT IN ('stream', 'channel', 'direct', 'private')
            THEN 'payload: type: must be stream, channel, direct or private'
        WHEN coalesce(jsonb_typeof((options || payload) -> 'to'), '') NOT IN ('string', 'number', 'array')
            OR (options || payload) -> 'to' IN ('""', '[]')
            THEN 'payload: to: must be a stream, or a list of users'
        WHEN jsonb_typeof((options || payload) -> 'to') = 'array'
            AND coalesce(payload ->> 'type', options ->> 'type', 'stream') NOT IN ('direct', 'private')
            THEN 'payload: to: a list of users goes with the type direct'
        WHEN coalesce(jsonb_typeof(payload -> 'content'), '') <> 'string' OR duepost.is_blank(payload ->> 'content')
            THEN 'payload: content: must be a text'
        WHEN length(payload ->> 'content') > 10000
            THEN format('payload: content: must be at most 10000 characters, is %s', length(payload ->> 'content'))
        WHEN payload ? 'topic' AND jsonb_typeof(payload -> 'topic') <> 'string' THEN 'payload: topic: must be a string'
        WHEN length(payload ->> 'topic') > 60
            THEN format('payload: topic: must be at most 60 characters, is %s', length(payload ->> 'topic'))
    END
$$;

-- What an endpoint of a format is told besides: texts of one line.
CREATE OR REPLACE FUNCTION duepost.options_error(options jsonb, format text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN jsonb_typeof(options) <> 'object' THEN 'options: must be a JSON object'
        WHEN options - known.names <> '{}' THEN CASE
            WHEN known.names = '{}' THEN format('options: %s has none', format)
            ELSE format('options: unknown; %s has %s', format, array_to_string(known.names, ', '))
        END
        WHEN EXISTS (
            SELECT FROM jsonb_each(options) AS o
            WHERE jsonb_typeof(o.value) <> 'string' OR o.value = '""'
               OR duepost.line_error('options', o.value #>> '{}', 500) IS NOT NULL
        ) THEN 'options: each must be a text of one line, at most 500 bytes'
        WHEN format = 'zulip' AND coalesce(options ->> 'user', '') !~ '^[^:]+@[^:]+$'
            THEN 'options: user: must be the bot''s email address'
        WHEN format = 'zulip' AND coalesce(options ->> 'type', 'stream') NOT IN ('stream', 'channel', 'direct', 'private')
            THEN 'options: type: must be stream, channel, direct or private'
        WHEN format = 'zulip' AND length(options ->> 'topic') > 60 THEN 'options: topic: must be at most 60 characters'
        WHEN format = 'matrix' AND coalesce(options ->> 'room', '') !~ '^!.'
            THEN 'options: room: must be the id of a room, which begins with !'
    END
    FROM (
        SELECT CASE format WHEN 'zulip' THEN '{user,type,to,topic}' WHEN 'matrix' THEN '{room}' ELSE '{}' END::text[] AS names
    ) AS known
$$;

-- How many bytes of JSON in text the largest payload has: 256 KiB.
CREATE OR REPLACE FUNCTION duepost.largest_payload() RETURNS integer
LANGUAGE sql IMMUTABLE AS 'SELECT 262144';

-- What of a payload cannot be delivered to an endpoint of this format and with these options; NULL where all can.
CREATE OR REPLACE FUNCTION duepost.payload_error(payload jsonb, format text, options jsonb) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN payload IS NULL THEN 'payload: must be given'
        WHEN format = 'function' OR jsonb_typeof(payload) = 'object' OR (format = 'webhook' AND jsonb_typeof(payload) = 'array')
            THEN coalesce(
                duepost.json_error('payload', payload),
                CASE
                    WHEN octet_length(payload::text) > duepost.largest_payload()
                        THEN format(
                            'payload: must be at most %s bytes (256 KiB), is %s', duepost.largest_payload(), octet_length(payload::text)
                        )
                    WHEN format = 'matrix' AND octet_length(payload::text) > 65536
                        THEN format('payload: must be at most 65536 bytes, is %s', octet_length(payload::text))
                    WHEN format = 'slack' THEN duepost.slack_error(payload)
                    WHEN format = 'mattermost' THEN duepost.mattermost_error(payload)
                    WHEN format = 'zulip' THEN duepost.zulip_error(payload, options)
                END
            )
        WHEN format = 'webhook' THEN 'payload: must be a JSON object or a list'
        ELSE 'payload: must be a JSON object'
    END
$$;
