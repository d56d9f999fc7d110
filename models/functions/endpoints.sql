-- What an operator calls to say where messages may go. SECURITY DEFINER: an operator may call these and read no secret.
-- No error, and nothing that these give, repeats a secret, or more of a URL than its host; a new secret is given once.

-- Who may be connected to, and what it is, in words: 0 anybody, 1 for an endpoint that allows private addresses, 2 nobody.
-- `actors/channels/http/guard.py` has the same table for the address that is really connected to.
CREATE OR REPLACE FUNCTION duepost.address_reach(address inet, OUT reach integer, OUT what text)
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    bytes     bytea;
    embedding record;
BEGIN
    -- The first that fits counts.
    SELECT special.reach, special.what INTO reach, what
    FROM (VALUES
        (1, 2, 'a metadata address', '{169.254.169.254,169.254.170.2,169.254.170.23,100.100.100.200,168.63.129.16,192.0.0.192,fd00:ec2::/32,fd20:ce::254,fd00:c1::a9fe:a9fe,fd00:42::42}'::inet[]),
        (2, 2, 'an unspecified address', '{0.0.0.0/8,::}'),
        (3, 2, 'a link-local address', '{169.254.0.0/16,fe80::/10}'),
        (4, 2, 'a site-local address', '{fec0::/10}'),
        (5, 2, 'a multicast address', '{224.0.0.0/4,ff00::/8}'),
        (6, 2, 'a reserved address', '{192.0.0.0/24,192.0.2.0/24,192.88.99.0/24,198.51.100.0/24,203.0.113.0/24,240.0.0.0/4,2001::/23,2001:db8::/32,3fff::/20,64:ff9b:1::/48}'),
        (7, 1, 'a loopback address', '{127.0.0.0/8,::1}'),
        (8, 1, 'a private address', '{10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,198.18.0.0/15,fc00::/7}')
    ) AS special (place, reach, what, networks)
    WHERE EXISTS (SELECT FROM unnest(special.networks) AS network WHERE address <<= network)
    ORDER BY special.place
    LIMIT 1;
    IF FOUND THEN
        RETURN;
    END IF;
    reach := 0;
    what := 'a public address';
    IF family(address) = 4 THEN
        RETURN;
    END IF;
    -- Ways to write an IPv4 address as an IPv6 one, which starts at this byte of theirs: what it leads to is for a gateway
    -- to say, so that each needs permission.
    SELECT known.what, known.first INTO embedding
    FROM (VALUES
        ('::ffff:0:0/96'::inet, 12, 'a mapped address'), ('::ffff:0:0:0/96', 12, 'a translated address'),
        ('64:ff9b::/96', 12, 'a translated address'), ('2002::/16', 2, 'a 6to4 address'),
        ('::/96', 12, 'an IPv4-compatible address')
    ) AS known (network, first, what)
    WHERE address <<= known.network;
    IF FOUND THEN
        -- Four bytes of a header go before the address.
        bytes := substring(inet_send(address) FROM 5 + embedding.first FOR 4);
        SELECT greatest(1, inner_one.reach), format('%s of %s', embedding.what, inner_one.what) INTO reach, what
        FROM duepost.address_reach(
            concat_ws('.', get_byte(bytes, 0), get_byte(bytes, 1), get_byte(bytes, 2), get_byte(bytes, 3))::inet
        ) AS inner_one;
    ELSIF NOT address <<= '2000::/3' THEN
        reach := 2;
        what := 'a reserved address';
    END IF;
END
$$;

-- The grammar of endpoints' URLs: narrower than RFC 3986, so that no two readers find different hosts in one.
-- `actors/channels/http/endpoint_url.py` has the same, and `tests/corpus/endpoint_urls.json` is tried against both.
CREATE OR REPLACE FUNCTION duepost.endpoint_url_error(url text, allow_private boolean) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    four CONSTANT text := '(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])([.](25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}';
    rest      text;
    authority text;
    host      text;
    port      text;
    found     record;
BEGIN
    IF length(url) > 2000 THEN
        RETURN 'url: must have at most 2000 characters';
    ELSIF url !~ '^[\x21-\x7e]+$' THEN
        RETURN 'url: must be ASCII without spaces or control characters: the host as xn--, the rest encoded';
    ELSIF url !~ '^[Hh][Tt][Tt][Pp][Ss]?://' THEN
        RETURN 'url: must begin with https:// or http://';
    END IF;
    authority := substring(url FROM '^[^:]*://([^/?#]*)');
    rest := substring(url FROM '^[^:]*://[^/?#]*(.*)$');
    host := lower((substring(authority FROM '^(\[[^\[\]]*\]|[^:\[\]]*)(?::.*)?$')) COLLATE "C");
    port := substring(authority FROM '^(?:\[[^\[\]]*\]|[^:\[\]]*):(.*)$');
    IF strpos(authority, '@') > 0 THEN
        RETURN 'url: must have no user or password: set them as secret';
    ELSIF host IS NULL THEN
        RETURN 'url: has a host that is neither a name nor an IP address';
    ELSIF host = '' THEN
        RETURN 'url: must name a host';
    ELSIF port IS NOT NULL AND (port !~ '^[1-9][0-9]{0,4}$' OR port::integer > 65535) THEN
        RETURN 'url: must have a port from 1 to 65535, or none';
    ELSIF host LIKE '[%' THEN
        -- Groups of four digits at most, and an IPv4 part in its plain form only.
        host := btrim(host, '[]');
        IF host !~ '^[0-9a-f:.]+$' OR host ~ '[0-9a-f]{5}'
            OR (strpos(host, '.') > 0 AND host !~ ('^[0-9a-f:]*:' || four || '$'))
        THEN
            host := '';
        END IF;
        BEGIN
            found := duepost.address_reach(host::inet);
        EXCEPTION
            WHEN data_exception THEN RETURN 'url: has an IPv6 address that cannot be read, or one with a zone';
        END;
    ELSIF host ~ '^(.*[.])?([0-9]+|0x[0-9a-f]*)$' THEN
        IF host !~ ('^' || four || '$') THEN
            RETURN 'url: has a host that ends in a number, and is no IPv4 address of four decimal numbers';
        END IF;
        found := duepost.address_reach(host::inet);
    ELSIF length(host) > 253
        OR host !~ '^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?([.][a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*$' OR host ~ '[^.]{64}'
    THEN
        RETURN 'url: has a host that is neither a name nor an IP address';
    ELSIF host ~ '^((.*[.])?localhost|localhost[.]localdomain|ip6-localhost|ip6-loopback)$' THEN
        SELECT 1 AS reach, 'this machine' AS what INTO found;
    ELSE
        SELECT 0 AS reach, 'a name' AS what INTO found;
    END IF;
    RETURN CASE
        WHEN strpos(rest, '#') > 0 THEN 'url: must have no fragment'
        WHEN rest !~ '^(%[0-9A-Fa-f]{2}|[A-Za-z0-9._~!$&''()*+,;=:@/?\[\]-])*$'
            THEN 'url: has a character in its path or query that must be percent-encoded'
        WHEN found.reach = 2 THEN format('url: leads to %s, as no endpoint may', found.what)
        WHEN found.reach = 1 AND NOT allow_private
            THEN format('url: leads to %s, as an endpoint may only if it allows private addresses', found.what)
    END;
END
$$;

-- A place that a worker reads the secret from, or the secret itself.
CREATE OR REPLACE FUNCTION duepost.secret_error(secret text, format text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN format IN ('slack', 'mattermost') THEN 'secret: there is none, as its URL is one'
        WHEN format = 'function' THEN 'secret: a function has none'
        WHEN secret ~ '^env:' THEN CASE
            WHEN secret !~ '^env:[A-Za-z_][A-Za-z0-9_]{0,99}$' THEN 'secret: env: goes with the name of a variable'
        END
        WHEN secret ~ '^file:' THEN CASE
            WHEN secret !~ '^file:/[^\u0001-\u001f\u007f-\u009f]+$' OR length(secret) > 1000
                THEN 'secret: file: goes with a path from /'
        END
        WHEN format <> 'webhook' THEN CASE
            WHEN secret !~ '^[\x21-\x7e]+$' OR length(secret) > 1000
                THEN 'secret: must be 1 to 1000 printable ASCII characters without spaces'
        END
        WHEN secret !~ '^whsec_([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$'
            THEN 'secret: must be whsec_ and base64 with its padding, env:NAME or file:PATH; without one a new one is made'
        WHEN octet_length(decode(substr(secret, 7), 'base64')) NOT BETWEEN 24 AND 64
            THEN 'secret: must have 24 to 64 bytes after whsec_'
    END
$$;

CREATE OR REPLACE FUNCTION duepost.new_secret() RETURNS text
LANGUAGE sql VOLATILE AS $$
    SELECT 'whsec_' || encode(
        sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64'
    )
$$;

-- A function of the team's, with its schema, as an argument of this name registers it; raises 22023 where workers could not call it.
CREATE OR REPLACE FUNCTION duepost.checked_function(argument text, signature text, takes text, gives regtype, example text)
RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    found record;
BEGIN
    IF octet_length(signature) > 300 OR signature ~ '[\u0001-\u001f\u007f-\u009f]' OR strpos(signature, '.') = 0 THEN
        PERFORM duepost.raise_bad_argument(argument, format('must be a name with its schema, such as %s', example));
    END IF;
    BEGIN
        SELECT p.oid::regprocedure::text AS name, oidvectortypes(p.proargtypes) AS arguments, p.prokind, p.proretset, p.proowner,
               p.prorettype, n.nspname, n.nspowner
        INTO found
        FROM pg_proc AS p
        JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE p.oid = to_regprocedure(
            CASE WHEN signature ~ '[)]\s*$' THEN signature ELSE format('%s(%s)', signature, takes) END
        );
    EXCEPTION
        -- Not even the form of a name; there are many ways to have none.
        WHEN OTHERS THEN
            PERFORM duepost.raise_bad_argument(argument, 'cannot be read as a function''s name: ' || SQLSTATE);
    END;
    IF found.name IS NULL OR found.nspname ~ '^(pg_.*|information_schema|duepost)$' THEN
        PERFORM duepost.raise_bad_argument(argument, format('there is none of this name that takes (%s)', takes));
    ELSIF found.arguments <> takes OR found.prokind <> 'f' THEN
        PERFORM duepost.raise_bad_argument(argument, format('must be a function that takes (%s)', takes));
    ELSIF found.proretset THEN
        PERFORM duepost.raise_bad_argument(argument, 'must not return a set');
    ELSIF found.prorettype <> gives THEN
        PERFORM duepost.raise_bad_argument(argument, format('must return %s', gives));
    ELSIF found.proowner <> (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = 'duepost')
        AND NOT pg_has_role(session_user, found.proowner, 'USAGE')
    THEN
        PERFORM duepost.raise_bad_argument(argument, 'must belong to you, or to the owner of the schema duepost');
    ELSIF NOT pg_has_role(found.proowner, (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = 'duepost'), 'MEMBER') THEN
        -- As its callers want it: whoever owns it acts with the rights of the workers.
        PERFORM duepost.raise_bad_argument(
            argument, 'must belong to the owner of the schema duepost, or to a role that may act as it'
        );
    END IF;
    RETURN found.name;
END
$$;

-- Such a function, as an endpoint is registered with it.
CREATE OR REPLACE FUNCTION duepost.registered_function(signature text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT duepost.checked_function('function', signature, 'bigint, jsonb', NULL, 'app.post')
$$;

-- What a change of a route means: what was learnt of it before says nothing any more.
CREATE OR REPLACE FUNCTION duepost.close_endpoint_route(name text, target text) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO duepost.route AS r (name, channel, target)
    VALUES ('endpoint:' || $1, 'message', $2)
    ON CONFLICT ON CONSTRAINT route_pkey DO UPDATE
    SET target = excluded.target, circuit_open = false, circuit_opened_at = NULL, circuit_reason = NULL,
        circuit_refusal = NULL, probe_at = NULL, probe_pause = 0, paused_until = NULL, pause = 0, paused_because = NULL
$$;

-- Where an endpoint is, with no more of its URL than that.
CREATE OR REPLACE FUNCTION duepost.endpoint_target(url text, function text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN url IS NULL THEN function
        ELSE lower(substring(url FROM '^[^:]*://[^/?#]*') COLLATE "C")
    END
$$;

-- NULL for what is to stay as it is. `secret => 'new'` makes one, as does an endpoint that is new and needs one.
CREATE OR REPLACE FUNCTION duepost.set_endpoint(
    name          text,
    format        text DEFAULT NULL,
    url           text DEFAULT NULL,
    secret        text DEFAULT NULL,
    function      text DEFAULT NULL,
    options       jsonb DEFAULT NULL,
    allow_private boolean DEFAULT NULL,
    rotate_for    interval DEFAULT '24 hours'
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    old   record;
    new   record;
    made  text;
    error text;
BEGIN
    IF set_endpoint.name IS NULL OR set_endpoint.name !~ '^[a-z0-9][a-z0-9_.-]{0,99}$' THEN
        PERFORM duepost.raise_bad_argument(
            'name', 'must be 1 to 100 of a-z, 0-9, dot, hyphen and underscore, and begin with a letter or a digit'
        );
    END IF;
    IF set_endpoint.rotate_for IS NULL OR set_endpoint.rotate_for < interval '0'
        OR set_endpoint.rotate_for > interval '366 days'
    THEN
        PERFORM duepost.raise_bad_argument('rotate_for', 'must be from 0 to 366 days');
    END IF;
    -- Of two that make one at once, the second changes it.
    LOCK TABLE duepost.endpoint IN SHARE UPDATE EXCLUSIVE MODE;
    PERFORM FROM duepost.endpoint AS e WHERE e.name = set_endpoint.name FOR NO KEY UPDATE;
    SELECT given.name, e.format, e.url, e.secret, e.previous_secret, e.previous_secret_until, e.function, e.options,
           e.allow_private
    INTO old
    FROM (VALUES (set_endpoint.name)) AS given (name)
    LEFT JOIN duepost.endpoint AS e ON e.name = given.name;
    new := old;
    new.format := coalesce(set_endpoint.format, old.format);
    IF new.format IS NULL OR new.format NOT IN ('webhook', 'slack', 'mattermost', 'zulip', 'matrix', 'function') THEN
        PERFORM duepost.raise_bad_argument('format', 'must be webhook, slack, mattermost, zulip, matrix or function');
    ELSIF new.format <> old.format THEN
        -- Waits for whoever is scheduling by the old one.
        PERFORM FROM duepost.endpoint AS e WHERE e.name = set_endpoint.name FOR UPDATE;
        IF EXISTS (SELECT FROM duepost.message AS m WHERE m.endpoint = set_endpoint.name) THEN
            PERFORM duepost.raise_bad_argument('format', 'cannot change while messages wait: they were checked by the old one');
        END IF;
        new.url := NULL;
        new.secret := NULL;
        new.function := NULL;
        new.previous_secret := NULL;
        new.previous_secret_until := NULL;
        old.options := NULL;
    END IF;
    new.allow_private := coalesce(set_endpoint.allow_private, old.allow_private, false);
    new.options := coalesce(set_endpoint.options, old.options, '{}');
    error := duepost.options_error(new.options, new.format);
    IF new.format = 'function' THEN
        IF set_endpoint.url IS NOT NULL THEN
            error := 'url: a function has none';
        ELSIF set_endpoint.function IS NULL AND new.function IS NULL THEN
            error := 'function: must be given';
        ELSIF error IS NULL THEN
            new.function := duepost.registered_function(coalesce(set_endpoint.function, new.function));
        END IF;
    ELSE
        new.url := coalesce(set_endpoint.url, new.url);
        error := coalesce(error, CASE
            WHEN set_endpoint.function IS NOT NULL THEN 'function: goes with the format function only'
            WHEN new.url IS NULL THEN 'url: must be given'
            ELSE duepost.endpoint_url_error(new.url, new.allow_private)
        END);
    END IF;
    IF error IS NULL AND new.format = 'webhook' AND coalesce(set_endpoint.secret, new.secret, 'new') = 'new' THEN
        made := duepost.new_secret();
        new.secret := made;
    ELSIF error IS NULL AND set_endpoint.secret IS NOT NULL THEN
        error := duepost.secret_error(set_endpoint.secret, new.format);
        new.secret := set_endpoint.secret;
    ELSIF error IS NULL AND new.format IN ('zulip', 'matrix') AND new.secret IS NULL THEN
        error := 'secret: must be given';
    END IF;
    IF error IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = error;
    END IF;
    IF new.format = 'webhook' AND old.format = 'webhook' AND new.secret <> old.secret THEN
        new.previous_secret := CASE WHEN set_endpoint.rotate_for > interval '0' THEN old.secret END;
        new.previous_secret_until := CASE WHEN set_endpoint.rotate_for > interval '0' THEN now() + set_endpoint.rotate_for END;
    END IF;
    INSERT INTO duepost.endpoint AS e (
        name, format, url, secret, previous_secret, previous_secret_until, function, options, allow_private
    ) VALUES (
        new.name, new.format, new.url, new.secret, new.previous_secret, new.previous_secret_until, new.function,
        new.options, new.allow_private
    )
    ON CONFLICT ON CONSTRAINT endpoint_pkey DO UPDATE
    SET format = excluded.format, url = excluded.url, secret = excluded.secret,
        previous_secret = excluded.previous_secret, previous_secret_until = excluded.previous_secret_until,
        function = excluded.function, options = excluded.options, allow_private = excluded.allow_private,
        disabled_at = NULL, disabled_because = NULL, failing_since = NULL, changed_at = now();
    PERFORM duepost.close_endpoint_route(new.name, duepost.endpoint_target(new.url, new.function));
    RETURN made;
END
$$;
COMMENT ON FUNCTION duepost.set_endpoint IS
    'Makes an endpoint, or changes what is given of it; a former secret is signed with too for rotate_for. Enables one that is '
    'disabled, and closes its circuit. Returns the secret that it has made, once, or NULL. Raises 22023 for a bad argument.';

CREATE OR REPLACE FUNCTION duepost.disable_endpoint(name text, reason text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
#variable_conflict use_column
DECLARE
    error text := duepost.line_error('reason', reason, 500);
BEGIN
    IF error IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = error;
    END IF;
    UPDATE duepost.endpoint AS e
    SET disabled_at = coalesce(e.disabled_at, now()),
        disabled_because = coalesce(nullif(disable_endpoint.reason, ''), e.disabled_because, 'by ' || session_user)
    WHERE e.name = disable_endpoint.name;
    IF NOT FOUND THEN
        PERFORM duepost.raise_bad_argument('name', 'there is no endpoint of this name');
    END IF;
END
$$;
COMMENT ON FUNCTION duepost.disable_endpoint IS
    'Nothing is sent to an endpoint any more, nor scheduled; what waits for it stays. set_endpoint() enables it.';

-- Locks in the order of everything else: the endpoint, which whoever schedules to it has locked first, then rows by
-- ascending id. What is being sent just now, and what a person is to decide on, stays.
CREATE OR REPLACE FUNCTION duepost.remove_endpoint(name text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    item  record;
    ids   bigint[] := '{}';
    ended bigint := 0;
BEGIN
    DELETE FROM duepost.endpoint AS e WHERE e.name = remove_endpoint.name;
    IF NOT FOUND THEN
        PERFORM duepost.raise_bad_argument('name', 'there is no endpoint of this name');
    END IF;
    FOR item IN
        SELECT i.id
        FROM duepost.item AS i
        WHERE i.id IN (SELECT m.item_id FROM duepost.message AS m WHERE m.endpoint = remove_endpoint.name) AND NOT i.is_held
        ORDER BY i.id
        FOR UPDATE
    LOOP
        CONTINUE WHEN duepost.is_in_hand(item.id);
        PERFORM duepost.finish(item.id, 'undeliverable', format('the endpoint %s was removed', remove_endpoint.name));
        ended := ended + 1;
    END LOOP;
    IF NOT EXISTS (SELECT FROM duepost.message AS m WHERE m.endpoint = remove_endpoint.name) THEN
        DELETE FROM duepost.route AS r WHERE r.name = 'endpoint:' || remove_endpoint.name;
    END IF;
    DELETE FROM duepost.rate AS r WHERE r.route = 'endpoint:' AND r.domain = remove_endpoint.name;
    RETURN ended;
END
$$;
COMMENT ON FUNCTION duepost.remove_endpoint IS
    'Removes an endpoint: each message that waits for it ends as undeliverable, with the reason. Returns how many those were.';

CREATE OR REPLACE FUNCTION duepost.endpoints()
RETURNS TABLE (
    name text, format text, target text, secret text, rotated_until timestamptz, allow_private boolean,
    disabled_at timestamptz, disabled_because text, failing_since timestamptz, created_at timestamptz,
    changed_at timestamptz, pending bigint, circuit_reason text, probe_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 10
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
    SELECT e.name, e.format, duepost.endpoint_target(e.url, e.function),
           CASE WHEN e.secret ~ '^(env|file):' THEN e.secret WHEN e.secret IS NOT NULL THEN 'stored' END,
           CASE WHEN e.previous_secret_until > now() THEN e.previous_secret_until END,
           e.allow_private, e.disabled_at, e.disabled_because, e.failing_since, e.created_at, e.changed_at,
           (SELECT count(*) FROM duepost.message AS m WHERE m.endpoint = e.name),
           CASE WHEN r.circuit_open THEN coalesce(r.circuit_reason, '') END,
           CASE WHEN r.circuit_open THEN r.probe_at END
    FROM duepost.endpoint AS e
    LEFT JOIN duepost.route AS r ON r.name = 'endpoint:' || e.name
    ORDER BY e.name
$$;
COMMENT ON FUNCTION duepost.endpoints IS
    'The endpoints, without their secrets: of a URL no more than the server, of a secret where it is kept.';
