"""Which addresses a server has, and which of them count."""

import socket
import time

import pytest

from actors.channels.http import resolver as module
from actors.channels.http.request import Target
from actors.channels.http.resolver import Resolver
from actors.ruling import Phase, Ruling, Scope
from models.words import Verdict


class Names:
    """A resolver that is asked: it answers what it is told, and counts."""

    def __init__(self, **answers: list[str] | Exception) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answer = self.answers[host]
        if isinstance(answer, Exception):
            raise answer
        return answer


def target(host: str, *, allows_private: bool = False) -> Target:
    return Target(host, 443, is_tls=True, allows_private=allows_private)


def refused(found: object) -> str:
    assert isinstance(found, Ruling)
    assert (found.verdict, found.scope, found.phase) == (Verdict.RETRY, Scope.RELAY, Phase.RESOLVE)
    return found.reply


def test_addresses_are_given_in_their_order_and_each_once() -> None:
    names = Names(h=["2606:4700::1111", "8.8.8.8", "8.8.8.8"])
    assert Resolver(names).resolve(target("h")) == ("2606:4700::1111", "8.8.8.8")


def test_those_that_the_endpoint_may_not_lead_to_are_left_out() -> None:
    resolver = Resolver(Names(h=["10.0.0.1", "8.8.8.8", "169.254.169.254"], private=["10.0.0.1"], never=["fe80::1%lo"]))
    assert resolver.resolve(target("h")) == ("8.8.8.8",)
    assert resolver.resolve(target("h", allows_private=True)) == ("10.0.0.1", "8.8.8.8")
    assert refused(resolver.resolve(target("private"))) == (
        "private leads where the endpoint may not: 10.0.0.1 is a private address"
    )
    assert "is a link-local address" in refused(resolver.resolve(target("never", allows_private=True)))


@pytest.mark.parametrize(
    "failure",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        UnicodeError("label too long"),
        TimeoutError(),
    ],
)
def test_a_name_that_does_not_resolve_is_retried(failure: Exception) -> None:
    assert refused(Resolver(Names(h=failure)).resolve(target("h"))).startswith("h does not resolve: ")
    assert refused(Resolver(Names(h=[])).resolve(target("h"))) == "h leads where the endpoint may not: it has none"


def test_an_answer_is_remembered_for_a_moment_and_a_failure_for_a_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(h=["8.8.8.8"], gone=OSError())
    resolver = Resolver(names)
    for _ in range(3):
        resolver.resolve(target("h"))
        resolver.resolve(target("gone"))
    assert names.asked == ["h", "gone"]
    now = time.monotonic()
    for later, asked in ((module.UNKNOWN_FOR + 1, ["h", "gone", "gone"]), (module.KNOWN_FOR + 1, ["h", "gone"] * 2)):
        names.asked = ["h", "gone"]
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        resolver.resolve(target("h"))
        resolver.resolve(target("gone"))
        assert sorted(names.asked) == sorted(asked)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 2)
    names = Names(a=["8.8.8.8"], b=["8.8.8.8"], c=["8.8.8.8"])
    resolver = Resolver(names)
    for host in ("a", "b", "c", "b", "c", "a"):
        resolver.resolve(target(host))
    assert names.asked == ["a", "b", "c", "a"]


def test_the_system_is_asked_and_an_address_needs_no_name_server() -> None:
    resolver = Resolver()
    assert resolver.resolve(target("127.0.0.1", allows_private=True)) == ("127.0.0.1",)
    assert resolver.resolve(target("::1", allows_private=True)) == ("::1",)
    assert refused(resolver.resolve(target("a" * 64 + ".example"))).endswith("it is no name")
