-- Which workers may still run. A migration that older workers cannot work on says so in its head ("-- oldest worker: 0014").

ALTER TABLE duepost.migration ADD COLUMN oldest_worker integer;
COMMENT ON COLUMN duepost.migration.oldest_worker IS
    'The newest migration that a worker''s code must know to run from here on; the highest of them counts. NULL: any.';

ALTER TABLE duepost.worker
    ADD COLUMN release text,
    ADD COLUMN level integer;
COMMENT ON COLUMN duepost.worker.release IS 'The release of the worker''s code; NULL with release 0.1.';
COMMENT ON COLUMN duepost.worker.level IS
    'The newest migration that the worker''s code knows; NULL with release 0.1, which does not look at duepost.migration.';
