-- Of several watches on one database one acts: the one whose session holds the lock.

-- name: lead
SELECT pg_try_advisory_lock(1148543345, 2)

-- name: prove
SELECT 1
