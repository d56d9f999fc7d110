"""Which URLs an endpoint may have; the vectors are tried against SQL as well."""

import json
from pathlib import Path
from typing import Any

import pytest

from actors.channels.http.endpoint_url import BadUrl, parse_endpoint_url
from actors.channels.http.request import Target

CORPUS = json.loads((Path(__file__).parents[2] / "corpus/endpoint_urls.json").read_text())


def error_of(url: str, allows_private: bool) -> str | None:
    try:
        parse_endpoint_url(url, allows_private=allows_private)
    except BadUrl as error:
        return str(error)
    return None


@pytest.mark.parametrize("vector", CORPUS, ids=lambda vector: f"{vector['url'][:60]!r} {vector['allow_private']}")
def test_a_url_is_taken_or_refused_with_one_clear_error(vector: dict[str, Any]) -> None:
    error = error_of(vector["url"], vector["allow_private"])
    if vector["error"] is None:
        assert error is None
    else:
        assert error is not None
        assert error.startswith(vector["error"])


@pytest.mark.parametrize(
    ("url", "target", "path", "query"),
    [
        ("https://Example.com", Target("example.com", 443, is_tls=True), "/", ""),
        ("http://example.com:8080/a/b?c=d?e", Target("example.com", 8080, is_tls=False), "/a/b", "?c=d?e"),
        ("https://[2606:4700:0::1111]/", Target("2606:4700::1111", 443, is_tls=True), "/", ""),
        ("https://example.com?x", Target("example.com", 443, is_tls=True), "/", "?x"),
    ],
)
def test_a_url_is_taken_apart(url: str, target: Target, path: str, query: str) -> None:
    parsed = parse_endpoint_url(url)
    assert (parsed.target, parsed.path, parsed.query) == (target, path, query)


def test_an_error_and_a_repr_show_nothing_of_user_path_or_query() -> None:
    for url in (
        "https://USER:PW@h/TOKEN?k=QS",
        "https://h/TOKEN?k=QS#",
        "https://h:0/TOKEN?k=QS",
        "https://127.1/TOKEN",
    ):
        error = error_of(url, allows_private=False)
        assert error is not None
        assert not any(secret in error for secret in ("USER", "PW", "TOKEN", "QS"))
    assert "TOKEN" not in repr(parse_endpoint_url("https://h/TOKEN?k=QS"))
    assert "QS" not in repr(parse_endpoint_url("https://h/TOKEN?k=QS"))


@pytest.mark.parametrize(
    ("target", "authority"),
    [
        (Target("h.example", 443, is_tls=True), "h.example"),
        (Target("h.example", 80, is_tls=True), "h.example:80"),
        (Target("h.example", 80, is_tls=False), "h.example"),
        (Target("::1", 8080, is_tls=False), "[::1]:8080"),
    ],
)
def test_the_host_header_has_the_port_where_it_is_not_the_schemes(target: Target, authority: str) -> None:
    assert target.authority == authority
