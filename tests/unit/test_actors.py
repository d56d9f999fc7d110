"""What Dramatiq is told about the actors, and what importing them does."""

import subprocess
import sys

import dramatiq.broker
import pytest

from actors.app import Application
from actors.settings import settings


@pytest.fixture
def application() -> Application:
    return Application(settings())


def test_nothing_cuts_a_dialogue_short(application: Application) -> None:
    assert not {"time_limit", "notify_shutdown", "max_age"} & application.broker.actor_options


def test_what_fails_is_retried_without_limit(application: Application) -> None:
    assert application.routes["default"].send_email.options["max_retries"] is None
    assert application.enqueue_due_emails.options["max_retries"] is None


def test_no_port_is_opened(application: Application) -> None:
    assert [each for each in application.broker.middleware if each.forks] == []


def test_building_an_application_leaves_dramatiqs_broker_alone(application: Application) -> None:
    assert dramatiq.broker.global_broker is not application.broker


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_dramatiq_actors_finds_broker_and_actors() -> None:
    said = python(
        "import dramatiq.cli; module, broker = dramatiq.cli.import_broker('actors');"
        "print(type(broker).__name__, sorted(broker.get_declared_actors()))"
    )
    assert said == "PostgresBroker ['enqueue_due_emails', 'send_email', 'send_message']"


@pytest.mark.parametrize(
    "heavy", ["jinja2", "structlog", "actors.content.templates", "actors.content.mime", "actors.delivery", "actors.app"]
)
def test_a_tick_loads_only_what_it_needs(heavy: str) -> None:
    said = python(f"import sys, actors.tick, duepost.commands.trigger; print({heavy!r} in sys.modules)")
    assert said == "False"


@pytest.mark.parametrize(("broker_url", "is_there"), [("", "False"), ("amqp://localhost", "True")])
def test_rabbitmqs_client_is_loaded_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, broker_url: str, is_there: str
) -> None:
    pytest.importorskip("pika")
    monkeypatch.setenv("DUEPOST_BROKER_URL", broker_url)
    assert python("import sys, dramatiq.cli, actors; actors.broker; print('pika' in sys.modules)") == is_there


def test_without_its_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUEPOST_BROKER_URL", "amqp://localhost")
    code = "import sys; sys.modules['pika'] = None; import dramatiq.cli, actors"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("duepost: DUEPOST_BROKER_URL: RabbitMQ needs pika")
    assert "pip install 'duepost[rabbitmq]'" in line
