"""Viewers of the console may be shown a read replica: what it cannot know, their pages do not claim."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.web.site import Start
from tests.integration.web.test_screens import SCREENS
from tests.postgres import PostgresServer
from tests.waiting import wait_until


@pytest.fixture
def primary(server: PostgresServer) -> Iterator[PostgresServer]:
    primary = PostgresServer(server.binaries)
    primary.start()
    yield primary
    primary.stop("immediate")
    primary.remove()


@pytest.fixture
def standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    """A hot standby of it."""
    standby = PostgresServer(primary.binaries, primary=primary)
    standby.start()
    yield standby
    standby.stop("immediate")
    standby.remove()


@pytest.fixture
def url(primary: PostgresServer) -> Iterator[str]:
    with primary.fresh_database() as url:
        yield url


def test_viewers_see_every_screen_on_a_hot_standby(
    url: str, primary: PostgresServer, standby: PostgresServer, start: Start, tmp_path: Path
) -> None:
    primary.execute("CREATE ROLE looker LOGIN IN ROLE duepost_viewer")
    users = tmp_path / "users"
    users.write_text("vera:viewer:-\nolga:operator:-\n")
    name = url.partition("?")[0].rpartition("/")[2]
    replica = standby.url(name, user="looker")
    wait_until(lambda: standby.has_database(name), what="the standby to follow")
    console = start(
        DUEPOST_WEB_USERS=str(users), DUEPOST_WEB_USER_HEADER="X-User", DUEPOST_WEB_PROXIES="127.0.0.1",
        DUEPOST_WEB_VIEWER_DATABASE_URL=replica,
    )  # fmt: skip
    item_id = console.schedule()
    viewer = console.named("vera")
    wait_until(lambda: viewer.get(f"/items/{item_id}").status == 200, what="the item to be there")
    assert {path: viewer.get(path).status for path in SCREENS} == dict.fromkeys(SCREENS, 200)
