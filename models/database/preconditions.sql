-- What has to be so before anything is made, and what doctor looks at.

-- name: server
SELECT
    current_setting('server_encoding'),
    pg_is_in_recovery(),
    current_setting('transaction_read_only')::boolean,
    current_setting('server_version_num')::integer,
    current_setting('server_version')

-- name: role
-- This role; whether there is a role for workers; whether this one is a member of it.
SELECT
    current_user::text,
    EXISTS (SELECT FROM pg_roles WHERE rolname = 'duepost_worker'),
    EXISTS (
        SELECT FROM pg_roles AS worker
        WHERE worker.rolname = 'duepost_worker' AND pg_has_role(current_user, worker.oid, 'USAGE')
    )

-- name: missing_schemas
-- Which schemas are not there, and whether this role may make them.
SELECT wanted.name, has_database_privilege(current_database(), 'CREATE')
FROM (VALUES ('duepost'), ('dramatiq')) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = wanted.name)
ORDER BY wanted.name DESC

-- name: strangers
-- What in our schemas belongs to a role that the given one has no reason to trust: it trusts itself, superusers, and, as
-- it is no superuser, roles that it is a member of. A superuser is a member of every role, which is no reason. A team's own
-- view of its users may be anybody's, as nothing of it is run here. What a trigger runs is its function's owner's.
WITH trusted AS (
    SELECT role.oid
    FROM pg_roles AS role, pg_roles AS own
    WHERE own.rolname = %(role)s
      AND (role.oid = own.oid OR role.rolsuper OR (NOT own.rolsuper AND pg_has_role(own.oid, role.oid, 'USAGE')))
)
SELECT object.type || ' ' || object.identity AS what, role.rolname::text AS owner
FROM pg_shdepend AS owned
JOIN pg_roles AS role ON role.oid = owned.refobjid
CROSS JOIN LATERAL pg_identify_object(owned.classid, owned.objid, owned.objsubid) AS object
WHERE owned.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND owned.deptype = 'o'
  AND owned.refclassid = 'pg_authid'::regclass
  AND role.oid NOT IN (SELECT oid FROM trusted)
  AND (object.schema IN ('duepost', 'dramatiq')
       OR (object.type = 'schema' AND object.identity IN ('duepost', 'dramatiq')))
  AND object.identity <> 'duepost.recipient'
UNION ALL
SELECT format('trigger %%I on %%s, by its function', trigger.tgname, trigger.tgrelid::regclass), role.rolname::text
FROM pg_trigger AS trigger
JOIN pg_class AS relation ON relation.oid = trigger.tgrelid
JOIN pg_proc AS function ON function.oid = trigger.tgfoid
JOIN pg_roles AS role ON role.oid = function.proowner
WHERE relation.relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('duepost', 'dramatiq'))
  AND NOT trigger.tgisinternal
  AND function.proowner NOT IN (SELECT oid FROM trusted)
UNION ALL
SELECT format('event trigger %%I', trigger.evtname), role.rolname::text
FROM pg_event_trigger AS trigger
JOIN pg_proc AS function ON function.oid = trigger.evtfoid
JOIN pg_roles AS role ON role.oid IN (trigger.evtowner, function.proowner)
WHERE trigger.evtenabled <> 'D' AND role.oid NOT IN (SELECT oid FROM trusted)
ORDER BY what

-- name: not_ours
-- What this role would have to own to change it, and does not.
SELECT 'schema ' || schema.nspname, role.rolname::text
FROM pg_namespace AS schema
JOIN pg_roles AS role ON role.oid = schema.nspowner
WHERE schema.nspname = 'duepost'
  AND EXISTS (SELECT FROM pg_class WHERE relname = 'migration' AND relnamespace = schema.oid)
  AND NOT pg_has_role(current_user, schema.nspowner, 'USAGE')

-- name: owner
SELECT role.rolname::text
FROM pg_namespace AS schema
JOIN pg_roles AS role ON role.oid = schema.nspowner
WHERE schema.nspname = 'duepost'

-- name: creators
-- Who may put something into our schemas beside their owners, superusers and the owners' own members.
SELECT DISTINCT schema.nspname::text, coalesce(role.rolname::text, 'PUBLIC')
FROM pg_namespace AS schema
CROSS JOIN LATERAL aclexplode(schema.nspacl) AS granted
JOIN pg_roles AS owner ON owner.oid = schema.nspowner
LEFT JOIN pg_roles AS role ON role.oid = granted.grantee
WHERE schema.nspname IN ('duepost', 'dramatiq')
  AND granted.privilege_type = 'CREATE'
  AND granted.grantee <> schema.nspowner
  AND role.rolsuper IS NOT TRUE
  AND (role.oid IS NULL OR owner.rolsuper OR NOT pg_has_role(owner.oid, role.oid, 'USAGE'))
ORDER BY 1, 2

-- name: open_to_all
-- What everybody may do with our tables, sequences and functions: a default of somebody's may have granted it.
SELECT DISTINCT relation.oid::regclass::text
FROM pg_class AS relation
CROSS JOIN LATERAL aclexplode(relation.relacl) AS granted
WHERE relation.relnamespace IN (
    SELECT oid FROM pg_namespace
    WHERE nspname = 'duepost' OR (nspname = 'dramatiq' AND has_schema_privilege('public', oid, 'USAGE'))
)
  AND granted.grantee = 0
ORDER BY 1

-- name: shortfalls
-- Which roles are not there, and what those that are lack.
SELECT
    ARRAY(
        SELECT name
        FROM unnest('{duepost_client,duepost_operator,duepost_viewer,duepost_worker}'::text[]) AS name
        WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
        ORDER BY name
    ),
    EXISTS (
        SELECT FROM pg_roles AS role
        WHERE role.rolname = 'duepost_worker'
          AND to_regclass('duepost.recipient') IS NOT NULL
          AND NOT has_table_privilege(role.oid, to_regclass('duepost.recipient'), 'SELECT')
    ),
    EXISTS (
        SELECT FROM pg_roles AS role, pg_namespace AS schema
        WHERE (role.rolname, schema.nspname) IN (
            ('duepost_client', 'duepost'), ('duepost_operator', 'duepost'), ('duepost_worker', 'duepost'),
            ('duepost_worker', 'dramatiq')
        )
          AND NOT has_schema_privilege(role.oid, schema.oid, 'USAGE')
    ),
    current_user::text

-- name: holders
-- Which other sessions have a lock on something of ours.
SELECT DISTINCT held.pid, coalesce(session.usename::text, '?'), coalesce(nullif(session.application_name, ''), 'no name'),
       held.relation::regclass::text
FROM pg_locks AS held
JOIN pg_class AS relation ON relation.oid = held.relation
JOIN pg_stat_activity AS session ON session.pid = held.pid
WHERE held.granted
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND relation.relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('duepost', 'dramatiq'))
  AND relation.relkind IN ('r', 'p')
  AND held.pid <> pg_backend_pid()
ORDER BY held.pid

-- name: blockers
-- Who keeps others waiting for something of ours, for longer than the given seconds.
SELECT blocker.pid, coalesce(session.usename::text, '?'), coalesce(nullif(session.application_name, ''), 'no name'),
       waiting.relation::regclass::text, max(extract(epoch FROM now() - waiting.waitstart))::double precision
FROM pg_locks AS waiting
JOIN pg_class AS relation ON relation.oid = waiting.relation
CROSS JOIN LATERAL unnest(pg_blocking_pids(waiting.pid)) AS blocker (pid)
LEFT JOIN pg_stat_activity AS session ON session.pid = blocker.pid
WHERE NOT waiting.granted
  AND waiting.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND relation.relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('duepost', 'dramatiq'))
  AND waiting.waitstart < now() - make_interval(secs => %(seconds)s)
GROUP BY 1, 2, 3, 4
ORDER BY 5 DESC
LIMIT 3
