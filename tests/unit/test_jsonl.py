"""Emails from JSON Lines: a line is good, or it is named."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duepost.arguments import ARGUMENTS, MESSAGE_ARGUMENTS
from duepost.commands.jsonl import EMAILS, ENCODING, MESSAGES, ON_ERROR, BadLine, ItemLine, read_items


def test_lines_keep_their_numbers_and_blank_ones_are_skipped() -> None:
    found = list(read_items(["\n", '{"kind": "a"}\n', "  \n", '{"kind": "b", "key": null}\n'], "f", EMAILS))
    assert [(line.number, line.arguments) for line in found] == [(2, {"kind": "a"}), (4, {"kind": "b"})]


def test_every_argument_of_schedule_email_is_a_key() -> None:
    values = {"text": '"x"', "text[]": '["x"]', "timestamptz": '"2030-01-01T00:00:00Z"', "jsonb": "{}"}
    values["timestamp"] = '"2030-01-01T00:00"'
    given = {name: values[argument.sql_type] for name, argument in ARGUMENTS.items()} | {"attachments": "[]"}
    line = "{" + ", ".join(f'"{name}": {value}' for name, value in given.items()) + "}"
    [found] = read_items([line], "f", EMAILS)
    assert set(found.arguments) == set(ARGUMENTS)


def test_every_argument_of_schedule_message_is_a_key_and_a_payload_is_any_json() -> None:
    values = {"text": '"x"', "text[]": '["x"]', "timestamptz": '"2030-01-01T00:00:00Z"', "jsonb": "[1, null]"}
    members = (f'"{name}": {values[argument.sql_type]}' for name, argument in MESSAGE_ARGUMENTS.items())
    [found] = read_items(["{" + ", ".join(members) + "}"], "f", MESSAGES)
    assert set(found.arguments) == set(MESSAGE_ARGUMENTS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"kind": "k", "endpoint": "e"}', "payload: must be given"),
        ('{"kind": "k", "endpoint": "e", "payload": null}', "payload: must be given"),
        ('{"kind": "k", "payload": {}}', "endpoint: must be given"),
        ('{"kind": "k", "endpoint": ["e"], "payload": {}}', "endpoint: must be a string"),
        ('{"kind": "k", "endpoint": "e", "payload": {"a": 1, "a": 2}}', "a: given twice"),
        (r'{"kind": "k", "endpoint": "e", "payload": {"a": ["\u0000"]}}', "payload: must not contain NUL"),
        (
            '{"kind": "k", "endpoint": "e", "payload": {}, "address": "a@b.c"}',
            "address: unknown; known are kind, endpoint",
        ),
        ("1", r'must be an object such as {"kind": "news", "endpoint": "team"'),
    ],
)
def test_a_bad_line_of_messages_says_what_is_wrong(line: str, said: str) -> None:
    with pytest.raises(BadLine) as caught:
        list(read_items([line], "f", MESSAGES))
    assert str(caught.value).startswith(f"f: line 1: {said}")


def test_further_keys_can_be_allowed() -> None:
    [found] = read_items(['{"kind": "a", "expect": "sent"}'], "f", EMAILS.with_keys(["expect"]))
    assert found.arguments["expect"] == "sent"
    with pytest.raises(BadLine, match="f: line 1: expect: unknown"):
        list(read_items(['{"kind": "a", "expect": "sent"}'], "f", EMAILS))


def test_a_deeply_nested_line_is_no_crash() -> None:
    with pytest.raises(BadLine, match="f: line 1: "):
        list(read_items(["[" * 100_000], "f", EMAILS))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"kind": "k", "adress": "a"}', "adress: unknown; known are kind, address"),
        ('{"kind": 1}', "kind: must be a string"),
        ('{"kind": "k", "users": "ann"}', "users: must be a list of strings"),
        ('{"kind": "k", "users": ["ann", 1]}', "users: must be a list of strings"),
        ('{"kind": "k", "context": "{}"}', "context: must be an object"),
        ('{"kind": "k", "expires_at": "2030-01-01T00:00:00"}', "expires_at: must be a time with its zone"),
        ('{"kind": "k", "kind": "l"}', "kind: given twice"),
        ('{"kind": "k", "context": {"a": 1, "a": 2}}', "a: given twice"),
        ('{"address": "a@b.c"}', "kind: must be given"),
        ('{"kind": null}', "kind: must be given"),
        ("[1]", "must be an object"),
        ('{"kind": NaN}', "not JSON: NaN"),
        ('{"kind": "k"', "not JSON: .* at column 13"),
    ],
)
def test_a_bad_line_says_what_is_wrong(line: str, said: str) -> None:
    with pytest.raises(BadLine, match=f"^f: line 2: {said}"):
        list(read_items(['{"kind": "k"}', line], "f", EMAILS))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "emails.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"kind": "a"}\r\n{"kind": "b"}\r\n')
    with file.open(encoding=ENCODING, errors=ON_ERROR) as lines:
        assert [line.arguments for line in read_items(lines, "f", EMAILS)] == [{"kind": "a"}, {"kind": "b"}]
    assert [line.text for line in read_items(['\ufeff{"kind": "a"}'], "f", EMAILS)] == ['{"kind": "a"}']


def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "emails.jsonl"
    file.write_bytes(b'{"kind": "a"}\n\n{"kind": "b", "subject": "Gr\xfc\xdfe"}\n{"kind": "c"}\n')
    with (
        file.open(encoding=ENCODING, errors=ON_ERROR) as lines,
        pytest.raises(BadLine, match=r"^f: line 3: not UTF-8$"),
    ):
        list(read_items(lines, "f", EMAILS))


@pytest.mark.parametrize("number", ["12345678901234567890.12", "1e3", "1E400", "-0.0", "9" * 5000, "1.10"])
def test_a_line_keeps_its_numbers_as_they_are_written(number: str) -> None:
    line = f'{{"kind": "a", "context": {{"n": {number}}}}}'
    [found] = read_items([line], "f", EMAILS)
    assert found.text == line


@pytest.mark.parametrize("text", [r"a\u0000b", r"a\ud800b"])
def test_nul_and_lone_surrogates_are_found_however_deep_and_in_keys(text: str) -> None:
    for context in (f'{{"{text}": 1}}', f'{{"a": [[{{"b": "{text}"}}]]}}'):
        with pytest.raises(BadLine, match="f: line 1: context: must not contain NUL or a lone surrogate"):
            list(read_items([f'{{"kind": "a", "context": {context}}}'], "f", EMAILS))


def test_a_backslash_that_only_looks_like_a_nul_is_text() -> None:
    [found] = read_items([r'{"kind": "a", "body_text": "write \\u0000"}'], "f", EMAILS)
    assert found.arguments["body_text"] == r"write \u0000"


def read(line: str) -> list[ItemLine]:
    """The line's email, or none where it is refused by name."""
    with suppress(BadLine):
        return list(read_items([line], "f", EMAILS))
    with pytest.raises(BadLine, match=r"^f: line 1: "):
        list(read_items([line], "f", EMAILS))
    return []


@given(st.text())
def test_any_line_is_an_email_or_named(line: str) -> None:
    assert len(read(line)) <= 1


SCALARS = st.none() | st.booleans() | st.floats() | st.text()
JSON = SCALARS | st.lists(SCALARS) | st.dictionaries(st.text(), SCALARS)


@given(st.dictionaries(st.sampled_from(sorted(ARGUMENTS)) | st.text(), JSON))
def test_any_object_is_an_email_or_named(arguments: dict[str, object]) -> None:
    for found in read(json.dumps(arguments)):
        assert set(found.arguments) <= set(ARGUMENTS)
