import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.channels.smtp.relay import Pipelining, Relay, Security, Timeouts

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "relay"),
    [
        ("smtp://mail.example.com", Relay("mail.example.com", 25)),
        ("smtp://mail.example.com:2525/", Relay("mail.example.com", 2525)),
        ("smtp+starttls://mail", Relay("mail", 587, Security.REQUIRED)),
        ("SMTPS://Mail.Example.com", Relay("mail.example.com", 465, Security.IMPLICIT)),
        ("smtp://[::1]:25", Relay("::1", 25)),
        ("smtp://127.0.0.1", Relay("127.0.0.1", 25)),
        ("smtps://ada:p%40ss%3A%2F%C3%A9@mail", Relay("mail", 465, Security.IMPLICIT, "ada", "p@ss:/é")),
        (
            "smtp://ada%40example.com:x@mail",
            Relay("mail", 25, Security.OPPORTUNISTIC, "ada@example.com", "x"),
        ),
        ("smtp://mail?pipelining=ahead", Relay("mail", 25, pipelining=Pipelining.AHEAD)),
        ("smtp://mail:26/?pipelining=off", Relay("mail", 26, pipelining=Pipelining.OFF)),
        ("smtps://mail?pipelining=on", Relay("mail", 465, Security.IMPLICIT)),
    ],
)
def test_a_url_says_where_and_how(url: str, relay: Relay) -> None:
    assert Relay.from_url(url) == relay


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mail.example.com",
        f"http://ada:{SECRET}@mail",
        f"smtp://ada:{SECRET}@",
        f"smtp://ada:{SECRET}@:25",
        f"smtp://ada:{SECRET}@mail:0",
        f"smtp://ada:{SECRET}@mail:65536",
        f"smtp://ada:{SECRET}@mail:port",
        f"smtp://ada:{SECRET}/x@mail",
        f"smtp://ada:{SECRET}#x@mail",
        f"smtp://ada:{SECRET}?x@mail",
        f"smtp://ada:{SECRET}@mail/path",
        f"smtp://ada:x@mail?{SECRET}",
        f"smtp://ada:x@mail?pipelining={SECRET}",
        f"smtp://ada:x@mail?pipelining=ahead&{SECRET}=1",
        f"smtp://ada:{SECRET}@mail?pipelining=Ahead",
        f"smtp://ada:{SECRET}@mail?pipelining=",
        f"smtp://ada:{SECRET}@mail?starttls=off",
        f"smtp://ada:{SECRET}@[::1",
        f"smtp://ada:{SECRET}@[nonsense]",
        f"smtp://ada:{SECRET}@ma il",
        f"smtp://ada:{SECRET}@mail..example",
        f"smtp://ada:{SECRET}\n@mail",
        f"smtp://ada:{SECRET}é@mail",
        f"smtp://ada:{SECRET}%ff@mail",
        f"smtp://ada:{SECRET}%00@mail",
        f"smtp://:{SECRET}@mail",
        "smtp://ada@mail",
        "smtp://ada:@mail",
    ],
)
def test_a_bad_url_gets_one_clear_line_without_the_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"^bad relay URL: .+; expected smtp://") as caught:
        Relay.from_url(url)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_nothing_goes_behind_a_dot_unless_the_url_asks_for_it() -> None:
    assert Relay.from_url("smtp://mail").pipelining is Pipelining.ON


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("smtp://Mail.Example.com.", "mail.example.com:25"),
        ("smtps://ada:x@mail?pipelining=ahead", "mail:465"),
        ("smtp://[::1]:2525", "[::1]:2525"),
    ],
)
def test_the_database_knows_a_relay_by_host_and_port(url: str, target: str) -> None:
    assert Relay.from_url(url).target == target


@given(st.text())
def test_any_text_is_a_relay_or_a_value_error(text: str) -> None:
    for url in (text, f"smtp://{text}", f"smtp://a:b@{text}"):
        try:
            relay = Relay.from_url(url)
        except ValueError as error:
            assert str(error).startswith("bad relay URL")  # noqa: PT017
        else:
            assert relay.host
            assert 0 < relay.port < 65536


def test_a_relay_never_shows_its_password() -> None:
    relay = Relay.from_url(f"smtp://ada:{SECRET}@mail")
    assert relay.password == SECRET
    assert SECRET not in repr(relay) + str(relay)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("mail", False),
        ("10.0.0.1", False),
    ],
)
def test_only_this_machine_is_loopback(host: str, loopback: bool) -> None:
    assert Relay(host, 25).is_loopback is loopback


def test_timeouts_are_those_of_rfc_5321_or_longer_where_duplicates_loom() -> None:
    assert Timeouts() == Timeouts(connect=30, command=300, block=180, dot=600)
