"""Tests: `pytest`. Each has a fresh database, of the plugin that comes with Duepost."""

import pytest
from app import app
from fastapi.testclient import TestClient


@pytest.fixture
def client(duepost_database_url, monkeypatch):
    """A client of the application on a fresh database."""
    monkeypatch.setenv("SHOP_DATABASE_URL", duepost_database_url)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_who_registers_is_welcomed(client: TestClient, duepost_kit) -> None:
    assert client.post("/accounts", params={"email": "ann@example.com"}).status_code == 201
    [email] = duepost_kit.drain()
    assert (email["To"], email["Subject"]) == ("ann@example.com", "Welcome")


def test_who_is_known_already_is_not_welcomed_again(client: TestClient, duepost_kit) -> None:
    statuses = [client.post("/accounts", params={"email": "ann@example.com"}).status_code for _ in range(2)]
    assert statuses == [201, 500]
    duepost_kit.assert_scheduled(kind="welcome", count=1)


def test_a_closed_account_gets_nothing_more(client: TestClient, duepost_kit) -> None:
    account = client.post("/accounts", params={"email": "ann@example.com"}).json()["id"]
    assert client.delete(f"/accounts/{account}").json() == {"cleared": ["cleared"]}
    duepost_kit.assert_not_scheduled()
