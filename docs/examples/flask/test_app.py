"""Tests: `pytest`. Each has a fresh database, of the plugin that comes with Duepost."""

import pytest
from app import create_app
from flask.testing import FlaskClient


@pytest.fixture
def client(duepost_database_url):
    """A client of the application on a fresh database."""
    return create_app(duepost_database_url.replace("postgresql://", "postgresql+psycopg2://")).test_client()


def test_who_registers_is_welcomed(client: FlaskClient, duepost_kit) -> None:
    assert client.post("/accounts", data={"email": "ann@example.com"}).status_code == 201
    [email] = duepost_kit.drain()
    assert (email["To"], email["Subject"]) == ("ann@example.com", "Welcome")


def test_who_is_known_already_is_not_welcomed_again(client: FlaskClient, duepost_kit) -> None:
    statuses = [client.post("/accounts", data={"email": "ann@example.com"}).status_code for _ in range(2)]
    assert statuses == [201, 500]
    duepost_kit.assert_scheduled(kind="welcome", count=1)


def test_a_closed_account_gets_nothing_more(client: FlaskClient, duepost_kit) -> None:
    account = client.post("/accounts", data={"email": "ann@example.com"}).json["id"]
    assert client.delete(f"/accounts/{account}").json == {"cleared": ["cleared"]}
    duepost_kit.assert_not_scheduled()
