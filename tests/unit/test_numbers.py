"""Numbers of a context, as a template shows them and calculates with them."""

import json

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.numbers import Number


def shown(template: str, text: str) -> str:
    context = json.loads(f'{{"n": {text}}}', parse_float=Number)
    return ImmutableSandboxedEnvironment(autoescape=True).from_string(template).render(context)


@pytest.mark.parametrize("text", ["12345678901234567890.12", "1.10", "0.1", "-0.0", "1e3", "1E-7"])
def test_a_number_is_shown_as_it_was_given(text: str) -> None:
    assert shown("{{ n }} {{ [n] }} {{ n ~ '' }} {{ '%s' | format(n) }}", text) == f"{text} [{text}] {text} {text}"


def test_a_number_is_calculated_with() -> None:
    assert shown(
        "{{ n + 1 }} {{ n * 1.5 }} {{ n > 2 }} {{ n | round }} {{ '%.2f' | format(n) }} {{ n | int }}", "2.50"
    ) == ("3.5 3.75 True 2.0 2.50 2")


def test_a_number_that_cannot_be_calculated_with_is_none() -> None:
    with pytest.raises(OverflowError):
        shown("{{ n }}", "1.0e5000")
