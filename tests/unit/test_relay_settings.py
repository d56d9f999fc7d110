"""Several relays in the environment: what is wrong is named with its variable."""

from pathlib import Path

import pytest

from actors.settings import BadSettings, Settings, settings
from actors.startup import check_threads
from duepost.catcher import Catcher
from duepost.stack import Stack

BASE = {"DUEPOST_SMTP_URL": "smtp://one.example.com", "DUEPOST_SMTP_URL_MARKETING": "smtp://two.example.com:2525"}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> "Reader":
    return Reader(monkeypatch)


class Reader:
    """Reads settings from an environment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, **given: str) -> Settings:
        for name, value in {**BASE, **given}.items():
            self._monkeypatch.setenv(name, value)
        settings.cache_clear()
        try:
            return settings()
        finally:
            settings.cache_clear()


def test_a_relay_is_called_by_what_follows_its_variable_in_lower_case(read: Reader) -> None:
    found = read()
    assert list(found.relays) == ["default", "marketing"]
    assert found.need_relay("marketing").target == "two.example.com:2525"
    assert found.need_relay().target == "one.example.com:25"


def test_connections_hold_for_each_and_may_be_others_for_one(read: Reader) -> None:
    found = read(DUEPOST_SMTP_CONNECTIONS="3", DUEPOST_SMTP_CONNECTIONS_MARKETING="1")
    assert [each.connections for each in found.relays.values()] == [3, 1]


def test_either_may_take_over_for_the_other(read: Reader) -> None:
    found = read(DUEPOST_SMTP_FALLBACK="Marketing", DUEPOST_SMTP_FALLBACK_MARKETING="default")
    assert [each.fallback for each in found.relays.values()] == ["marketing", "default"]


def test_a_variable_that_is_empty_is_not_set(read: Reader) -> None:
    assert list(read(DUEPOST_SMTP_URL_MARKETING=" ").relays) == ["default"]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DUEPOST_SMTP_URL_BULK", "smtp://user:secret@", "bad relay URL"),
        ("DUEPOST_SMTP_URL_DEFAULT", "smtp://mail", "the name default is taken"),
        ("DUEPOST_SMTP_URL_2ND", "smtp://mail", "must be a relay's name"),
        ("DUEPOST_SMTP_CONNECTIONS_MARKETING", "0", "must be a whole number, 1 or more"),
        ("DUEPOST_SMTP_CONNECTIONS_NONE", "1", "there is no such relay: DUEPOST_SMTP_URL_NONE is not set"),
        ("DUEPOST_SMTP_FALLBACK", "default", "must be another relay than default itself"),
        ("DUEPOST_SMTP_FALLBACK", "nobody", "there is no such relay; known are default, marketing"),
        ("DUEPOST_SMTP_FALLBACK_MARKETING", "marketing", "must be another relay than marketing itself"),
        ("DUEPOST_SMTP_FALLBACK_NONE", "default", "there is no such relay: DUEPOST_SMTP_URL_NONE is not set"),
    ],
)
def test_what_is_wrong_is_named(read: Reader, variable: str, value: str, said: str) -> None:
    with pytest.raises(BadSettings) as caught:
        read(**{variable: value})
    assert str(caught.value).startswith(f"{variable}: ")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_several_relays_need_a_thread_each_and_one_more() -> None:
    check_threads(1, 1)
    check_threads(3, 2)
    with pytest.raises(BadSettings, match="2 for each process; 2 relays need 3"):
        check_threads(2, 2)


def test_what_duepost_up_catches_it_catches_for_each_relay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in BASE.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    stack = Stack(tmp_path, tmp_path)
    stack.catcher, stack.smtp_url = Catcher(tmp_path), "smtp://127.0.0.1:2525"
    environment = stack.environment
    settings.cache_clear()
    assert {name: environment[name] for name in BASE} == dict.fromkeys(BASE, "smtp://127.0.0.1:2525")
