"""Which code may work on a database: a migration may raise the floor, and what is older says so and stops."""

import shutil
from pathlib import Path

import pytest
from dramatiq_pg.schema import generate_init_sql

from actors.liveness.maintenance import TOO_OLD
from actors.liveness.worker_session import WorkerSession
from duepost.commands.app import judged
from models import workers
from models.database import advisory_locks
from models.database.connections import Database
from models.database.levels import own_level
from models.database.migrate import FOLDER, FUNCTIONS, check_schema, migrate, migrations
from models.errors import MigrationRefused, ReleaseTooOld, SchemaMismatch
from tests.postgres import PostgresServer, make_schema_of_0_1

BREAKING = "-- What comes after.\n-- oldest worker: 9001\nCREATE TABLE duepost.later ();\n"


def folder_with(tmp_path: Path, **files: str) -> Path:
    """The migrations of this code, and some of a later release's."""
    folder = tmp_path / "migrations"
    shutil.copytree(FOLDER, folder)
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(text)
    return folder


def apply(database: Database, folder: Path = FOLDER, *, despite_old_workers: bool = False) -> list[str]:
    return list(
        migrate(database, queue_schema=generate_init_sql(), folder=folder, despite_old_workers=despite_old_workers)
    )


def test_code_below_the_floor_is_too_old_with_a_status_of_its_own(database: Database, tmp_path: Path) -> None:
    assert apply(database, folder_with(tmp_path, **{"9001_later": BREAKING})) == ["9001_later.sql"]
    with pytest.raises(ReleaseTooOld, match=f"knows migrations up to {own_level():04}.*workers that know 9001") as told:
        check_schema(database)
    assert judged(told.value) == (str(told.value), TOO_OLD)
    with pytest.raises(ReleaseTooOld):
        apply(database)


def test_a_newer_schema_without_a_raised_floor_is_fine(database: Database, tmp_path: Path) -> None:
    apply(database, folder_with(tmp_path, **{"9001_later": "CREATE TABLE duepost.later ();"}))
    check_schema(database)


def test_a_floor_that_this_code_reaches_is_fine(database: Database, tmp_path: Path) -> None:
    said = f"-- oldest worker: {own_level():04}\nCREATE TABLE duepost.later ();"
    apply(database, folder_with(tmp_path, **{"9001_later": said}))
    check_schema(database)


def test_every_migration_of_this_code_has_to_be_applied(database: Database) -> None:
    [first, *_] = migrations()
    database.execute(f"DELETE FROM duepost.migration WHERE number = {first.number}")
    with pytest.raises(SchemaMismatch, match=f"lacks {first.name}: run `duepost migrate`"):
        check_schema(database)


def test_every_function_of_this_code_has_to_be_there(database: Database) -> None:
    database.execute("DROP FUNCTION duepost.users_to_go")
    with pytest.raises(SchemaMismatch, match="lacks the function users_to_go: run `duepost migrate`"):
        check_schema(database)
    apply(database)
    check_schema(database)


def test_a_release_that_is_no_migration_newer_replaces_the_functions_all_the_same(database: Database) -> None:
    # As release 0.1 has numbered its functions.
    database.execute("INSERT INTO duepost.migration (number, name, checksum) VALUES (3, '0003_functions.sql', '')")
    database.execute("DROP FUNCTION duepost.users_to_go")
    apply(database)
    check_schema(database)


def test_an_older_release_leaves_the_functions_of_a_later_one_alone(database: Database, tmp_path: Path) -> None:
    functions = tmp_path / "functions"
    shutil.copytree(FUNCTIONS, functions)
    folder = folder_with(tmp_path, **{"9001_later": "CREATE TABLE duepost.later ();"})
    rules = (functions / "rules.sql").read_text()
    (functions / "rules.sql").write_text(rules.replace("must not be empty", "may not be empty"))
    list(migrate(database, queue_schema=generate_init_sql(), folder=folder, functions=functions))
    told: list[str] = []
    assert list(migrate(database, queue_schema=generate_init_sql(), tell=told.append)) == []
    assert told == ["a later release has upgraded the schema (9001): it is left as that release has made it"]
    changed = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'duepost'::regnamespace AND prosrc LIKE '%may not be%'"
    assert database.execute(changed) != [(0,)]


@pytest.mark.parametrize("level", [None, 1])
def test_a_breaking_migration_is_refused_while_older_workers_are_there_and_names_them(
    database: Database, tmp_path: Path, level: int | None
) -> None:
    folder = folder_with(tmp_path, **{"9000_before": "CREATE TABLE duepost.before ();", "9001_later": BREAKING})
    session = database.connect()
    worker_id = workers.register(session, workers.Process("somewhere", 4711), "0.1.7")
    database.execute(f"UPDATE duepost.worker SET level = {level or 'NULL'}")
    with pytest.raises(MigrationRefused, match=rf"worker {worker_id} \(process 4711 on somewhere, release 0.1.7\)"):
        apply(database, folder)
    assert database.execute("SELECT to_regclass('duepost.before'), to_regclass('duepost.later')") == [(None, None)]
    check_schema(database)
    session.close()
    assert apply(database, folder) == ["9000_before.sql", "9001_later.sql"]


def test_a_breaking_migration_lets_workers_stay_that_know_it(database: Database, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, **{"9001_later": BREAKING})
    session = database.connect()
    workers.register(session, workers.Process("somewhere", 4711))
    database.execute("UPDATE duepost.worker SET level = 9001")
    assert apply(database, folder) == ["9001_later.sql"]
    session.close()


def test_workers_of_0_1_are_found_where_the_database_is_still_theirs(
    each_server: PostgresServer, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, **{"9001_later": BREAKING})
    with each_server.fresh_database(migrated=False) as url:
        make_schema_of_0_1(url)
        database = Database(url)
        session = database.connect()
        with session.cursor() as cursor:
            cursor.execute(
                "INSERT INTO duepost.worker (host, pid) VALUES ('old', 1)"
                f" RETURNING pg_advisory_lock({advisory_locks.WORKER}, id)"
            )
        with pytest.raises(MigrationRefused, match=r"worker 1 \(process 1 on old, release 0.1\)"):
            apply(database, folder)
        assert database.execute("SELECT max(number) FROM duepost.migration") == [(3,)]
        session.close()
        assert apply(database, folder)[-1] == "9001_later.sql"
        database.close()


def test_told_to_go_on_despite_old_workers_it_does(database: Database, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, **{"9001_later": BREAKING})
    session = database.connect()
    workers.register(session, workers.Process("somewhere", 4711))
    database.execute("UPDATE duepost.worker SET level = NULL")
    assert apply(database, folder, despite_old_workers=True) == ["9001_later.sql"]
    session.close()


def test_a_floor_is_taken_back_where_its_migration_fails(database: Database, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, **{"9001_later": "-- oldest worker: 9001\nSELECT 1/0;"})
    with pytest.raises(Exception, match="division by zero"):
        apply(database, folder, despite_old_workers=True)
    check_schema(database)


def test_whoever_becomes_a_worker_at_that_moment_finds_the_floor_raised(database: Database, tmp_path: Path) -> None:
    apply(database, folder_with(tmp_path, **{"9001_later": BREAKING}))
    with pytest.raises(ReleaseTooOld):
        WorkerSession(database).start()
    assert workers.present(database) == 0


def test_a_floor_above_its_own_migration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MigrationRefused, match="its oldest worker is at most 9001"):
        migrations(folder_with(tmp_path, **{"9001_later": "-- oldest worker: 9002\nSELECT 1"}))


def test_only_the_head_of_a_migration_says_so(tmp_path: Path) -> None:
    *_, last = migrations(folder_with(tmp_path, **{"9001_later": "SELECT 1;\n-- oldest worker: 9001\n"}))
    assert last.oldest_worker is None
