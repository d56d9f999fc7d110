"""RabbitMQ's URL, and what is said where RabbitMQ does not take us."""

import pytest

from actors.settings import BadSettings, Settings, settings


def read(monkeypatch: pytest.MonkeyPatch, url: str) -> Settings:
    monkeypatch.setenv("DUEPOST_BROKER_URL", url)
    settings.cache_clear()
    try:
        return settings()
    finally:
        settings.cache_clear()


@pytest.mark.parametrize(
    "url",
    [
        "amqp://localhost",
        "amqp://app:pass%2Fword@mq.example.com:5672/vhost",
        "amqps://app:x@[2001:db8::1]:5671/%2F",
        "amqp://app:x@mq/?heartbeat=30",
    ],
)
def test_a_url_of_rabbitmq_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    found = read(monkeypatch, url).broker_url
    assert found is not None
    assert found.get_secret_value() == url


@pytest.mark.parametrize("url", ["", "  "])
def test_an_empty_one_counts_as_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert read(monkeypatch, url).broker_url is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "localhost:5672",
        "amqp://",
        "amqp://app:secret@",
        "amqp://app:secret@mq:port/",
        "amqp://app:secret@mq:99999/",
        "amqp://app:sec@ret@@mq/",
        "amqp://app:secret@mq/a/b",
        "amqp://app:secret@mq;amqp://app:secret@other",
    ],
)
def test_another_one_is_refused_in_a_line_without_its_secret(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(BadSettings, match="DUEPOST_BROKER_URL: must be a URL such as amqp://") as caught:
        read(monkeypatch, url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_rabbitmq_says_is_told_with_the_place_and_without_the_password() -> None:
    pika = pytest.importorskip("pika")
    from dramatiq.errors import ConnectionClosed

    from actors.queue import rabbitmq

    url = "amqp://app:secret@mq.example.com/orders"
    lost = pika.exceptions.ConnectionClosedByBroker(403, "ACCESS_REFUSED - Login was refused")
    refused: list[Exception] = [
        lost,
        ConnectionClosed(lost),
        pika.exceptions.ProbableAuthenticationError(repr(lost)),
        pika.exceptions.ChannelClosedByBroker(403, "ACCESS_REFUSED - Login was refused"),
    ]
    for error in refused:
        with pytest.raises(rabbitmq.RabbitmqRefused) as caught, rabbitmq._explained(url):
            raise error
        assert str(caught.value) == "mq.example.com:5672, virtual host orders: ACCESS_REFUSED - Login was refused"
    away: list[Exception] = [
        ConnectionRefusedError(111, "Connection refused"),
        pika.exceptions.AMQPConnectionError(ConnectionRefusedError(111, "Connection refused")),
        ConnectionClosed(pika.exceptions.AMQPConnectionError(ConnectionRefusedError(111, "Connection refused"))),
    ]
    for error in away:
        with pytest.raises(rabbitmq.RabbitmqAway) as found, rabbitmq._explained(url):
            raise error
        assert str(found.value) == "mq.example.com:5672, virtual host orders: Connection refused"
    with pytest.raises(rabbitmq.RabbitmqAway), rabbitmq._explained(url):
        raise pika.exceptions.ProbableAuthenticationError(repr(pika.exceptions.StreamLostError("reset")))
