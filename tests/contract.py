"""The contract of applications, call by call: what each gives, whoever calls it and in whatever language.

A caller runs calls one after the other on a fresh database, and says of each what came of it: the rows, or the SQLSTATE
and the message. What all have to give stands here once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: What an argument is in SQL; of the others, text.
TYPES = {
    "id": "bigint", "email_id": "bigint", "users": "text[]", "payload": "jsonb", "context": "jsonb", "headers": "jsonb",
    "item": "jsonb", "emails": "jsonb", "messages": "jsonb", "options": "jsonb",
    "suppressions": "jsonb", "scheduled_at": "timestamptz",
    "expires_at": "timestamptz", "scheduled_local": "timestamp",
    "wait": "interval", "longest_wait": "interval", "allow_private": "boolean",
    "action_id": "bigint", "ids": "bigint[]", "is_on": "boolean", "asked": "jsonb", "per_second": "numeric",
    "connections": "integer", "after_id": "bigint",
}  # fmt: skip

#: Functions of which only these columns are looked at: the others are times, or secrets.
COLUMNS = {
    "status": "id, channel, kind, state, outcome, attempts",
    "endpoints": "name, format, target, secret IS NOT NULL, allow_private, pending",
    "disable_endpoint": "true",
    "set_endpoint": "set_endpoint ~ '^whsec_'",
    "end_action": "true",
}

LATER = "2030-01-01T12:00:00+01:00"


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        function: its name.
        arguments: what it is given, in the order that the Python client has them.
        gives: the rows, each value as a text in PostgreSQL's spelling.
        raises: the SQLSTATE, and how the message begins, instead.
    """

    function: str
    arguments: Mapping[str, object]
    gives: Sequence[Sequence[str | None]] = field(default_factory=list)
    raises: tuple[str, str] | None = None

    def parameters(self) -> list[object]:
        """The values, JSON as a text."""
        return [
            json.dumps(value, ensure_ascii=False) if TYPES.get(name) == "jsonb" else value
            for name, value in self.arguments.items()
        ]

    def statement(self, places: Sequence[str]) -> str:
        """The SQL, with these as the arguments' values."""
        given = ", ".join(
            f"{name} => {place}::{TYPES.get(name, 'text')}" for name, place in zip(self.arguments, places, strict=True)
        )
        return f"SELECT {COLUMNS.get(self.function, '*')} FROM duepost.{self.function}({given})"


EMAIL = {"kind": "k", "address": "ann@example.com", "subject": "Grüße", "body_text": "it's", "scheduled_at": LATER}
MESSAGE = {"kind": "k", "endpoint": "orders", "payload": {"n": 1, "ü": ["it's", None]}, "scheduled_at": LATER}
BATCH = {"kind": "digest", "template": "digest", "address": "bob@example.com"}

BY = {"by_whom": "ann", "via": "sql"}

#: What operators call: the Python client has none of it.
OPERATORS = [
    Call("set_endpoint", {"name": "orders", "format": "webhook", "url": "https://x.org/T"}, [["t"]]),
    Call("set_endpoint", {"name": "orders", "format": "pigeon"}, raises=("22023", "format: must be webhook")),
    Call("set_endpoint", {"name": "e", "format": "slack", "url": "https://u:p@x.org"}, raises=("22023", "url: ")),
    Call("set_endpoint", {"name": "orders", "secret": "whsec_VE9L"}, raises=("22023", "secret: must have 24 to 64")),
    Call("set_endpoint", {"name": "e", "format": "function", "function": "a.b"}, raises=("22023", "function: ")),
    Call("endpoints", {}, [["orders", "webhook", "https://x.org", "t", "f", "0"]]),
]  # fmt: skip

#: What applications call.
CLIENTS = [
    Call("schedule_email", {**EMAIL, "key": "a", "headers": {"X-A": "b"}}, [["1"]]),
    Call("schedule_email", {**EMAIL, "key": "a", "headers": {"X-A": "b"}}, [["1"]]),
    Call("schedule_email", {**EMAIL, "key": "a", "subject": "other"}, raises=("23505", "key")),
    Call("schedule_email", {**EMAIL, "address": "nobody"}, raises=("22023", "address: ")),
    Call("schedule_email", {**EMAIL, "timezone": "Europe/Berlin"}, raises=("22023", "timezone: goes with")),
    Call("attachment_at", {"filename": "a.pdf", "url": "ftp://x/a.pdf"}, raises=("22023", "url: must begin with")),
    Call("schedule_emails", {"emails": [EMAIL, {"kind": "k", "users": ["ann", "bob"], "template": "t"}]},
         [["4"], ["5"]]),
    Call("status", {"key": "a"}, [["1", "email", "k", "scheduled", None, "0"]]),
    Call("reschedule_email", {"email_id": 1, "scheduled_at": LATER}, [["rescheduled"]]),
    Call("clear_scheduled_email", {"email_id": 1}, [["cleared"]]),
    Call("clear_scheduled_email", {"email_id": 1}, [["too_late"]]),
    Call("clear_scheduled_emails_to", {"address": "ann@example.com"}, [["4", "cleared"]]),
    Call("clear_scheduled_emails", {"users": ["ann"], "kind": "k"}, [["5", "user_removed"]]),
    Call("status", {"id": 1}, [["1", "email", "k", "finished", "cleared", "0"]]),
    Call("add_to_batch", {"batch": "b", "item": {"n": 1}, **BATCH, "item_key": "one", "wait": "1 hour"}, [["6"]]),
    Call("remove_from_batch", {"batch": "b", "item_key": "one"}, [["cleared"]]),
    Call("schedule_message", {**MESSAGE, "users": ["ann", "bob"], "key": "m"}, [["7"]]),
    Call("schedule_message", {**MESSAGE, "endpoint": "nobody"}, raises=("22023", "endpoint: there is none called")),
    Call("schedule_message", {**MESSAGE, "payload": 3}, raises=("22023", "payload: must be a JSON object or a list")),
    Call("schedule_message", {**MESSAGE, "payload": {"a": "x" * 262_144}}, raises=("22023", "payload: must be at")),
    Call("schedule_messages", {"messages": [MESSAGE, {**MESSAGE, "users": ["cleo"]}]}, [["8"], ["9"]]),
    Call("schedule_messages", {"messages": [MESSAGE, {"kind": "k", "endpoint": "orders"}]},
         raises=("22023", "messages[1]: payload: must be given")),
    Call("status", {"key": "m"}, [["7", "message", "k", "scheduled", None, "0"]]),
    Call("edit_message", {"id": 7, "payload": {"n": 2}}, [["edited"]]),
    Call("edit_message", {"id": 7, "payload": 3}, raises=("22023", "payload: must be a JSON object or a list")),
    Call("reschedule_message", {"id": 7, "scheduled_at": LATER}, [["rescheduled"]]),
    Call("clear_scheduled_messages", {"users": ["ann"], "kind": "k"}, [["7", "user_removed"]]),
    Call("clear_scheduled_message", {"id": 7}, [["cleared"]]),
    Call("edit_message", {"id": 7, "payload": {"n": 3}}, [["too_late"]]),
    Call("clear_scheduled", {"users": ["bob", "cleo"]}, [["5", "email", "cleared"], ["9", "message", "cleared"]]),
]  # fmt: skip


#: What operators call in the end.
ENDING = [
    Call("schedule_message", MESSAGE, [["11"]]),
    Call("disable_endpoint", {"name": "orders", "reason": "it moves"}, [["t"]]),
    Call("schedule_message", MESSAGE, raises=("22023", "endpoint: is disabled (it moves)")),
    Call("remove_endpoint", {"name": "orders"}, [["2"]]),
    Call("remove_endpoint", {"name": "orders"}, raises=("22023", "name: there is no endpoint of this name")),
    Call("begin_action", {**BY, "action": "clear", "reason": "it's over", "asked": {"ids": [1]}}, [["1", "t"]]),
    Call("begin_action", {**BY, "action": "sing"}, raises=("22023", "action: there is no such action")),
    Call("act_on_items", {"action_id": 1, "ids": [1, 999]}, [["1", "finished"], ["999", "not_found"]]),
    Call("end_action", {"action_id": 1}, [["t"]]),
    Call("act_on_items", {"action_id": 1, "ids": [1]}, raises=("22023", "action_id: no such action on items")),
    Call("set_pause", {**BY, "scope": "kind", "name": "k", "is_on": True}, [["paused"]]),
    Call("set_pause", {**BY, "scope": "kind", "name": "k", "is_on": True}, [["already"]]),
    Call("set_pause", {**BY, "scope": "kind", "name": "k", "is_on": False}, [["resumed"]]),
    Call("unpark", {}, [["0"]]),
    Call("request_probe", {"route": None, **BY}, [["0"]]),
    Call("begin_action", {**BY, "action": "forget"}, [["6", "t"]]),
    Call(
        "forget_some",
        {"action_id": 6, "user_id": "nobody"},
        [
            ["cleared", "0"],
            ["ledger", "0"],
            ["kept", "0"],
            ["content", "0"],
            ["suppression", "0"],
            ["recipient", "0"],
            ["orders", "0"],
            ["left", "0"],
        ],
    ),
    Call("suppress", {"address": "Ann@example.com", **BY, "kind": "k", "reason": "it's over"}, [["suppressed"]]),
    Call("suppress", {"address": "ann@example.com", **BY, "kind": "k", "reason": "it's over"}, [["already"]]),
    Call("suppress", {"address": "ann", **BY}, raises=("22023", "address: must be one address")),
    Call("unsuppress", {"address": "ann@example.com", **BY}, [["not_suppressed"]]),
    Call("unsuppress", {"address": "ann@example.com", **BY, "kind": "k"}, [["lifted"]]),
    Call("begin_action", {**BY, "action": "suppress"}, [["11", "t"]]),
    Call(
        "import_suppressions",
        {"action_id": 11, "suppressions": [{"address": "a@x.org"}, {"address": "x"}]},
        [["0", "suppressed"], ["1", "address: must be one address such as ann@example.com"]],
    ),
    Call("set_rate", {"domain": "Example.ORG", "per_second": 5, "connections": 2}, [["set"]]),
    Call("set_rate", {"domain": "example.org", "per_second": 5, "connections": 2}, [["already"]]),
    Call("set_rate", {"domain": "example.org"}, raises=("22023", "per_second: must be given, or connections")),
    Call("remove_rate", {"domain": "example.org"}, [["removed"]]),
    Call("remove_rate", {"domain": "example.org"}, [["not_found"]]),
    Call("set_priority", {**BY, "kind": "k", "priority": "bulk"}, [["set"]]),
    Call("set_priority", {**BY, "kind": "k", "priority": "bulk"}, [["already"]]),
    Call("set_priority", {**BY, "kind": "k", "priority": "low"}, raises=("22023", "priority: must be urgent, normal")),
    Call("follow_priority", {"kind": "k", "after_id": 9999}, [[None, "0"]]),
]

CALLS = [*OPERATORS, *CLIENTS, *ENDING]


@dataclass(frozen=True)
class Outcome:
    """What came of a call: rows, each value as a text, or the SQLSTATE and the message."""

    rows: Sequence[Sequence[str | None]] = field(default_factory=list)
    error: tuple[str, str] | None = None


def differences(calls: Sequence[Call], outcomes: Sequence[Outcome]) -> list[str]:
    """What came out otherwise than it should, a line for each."""
    assert len(calls) == len(outcomes)
    found = []
    for call, outcome in zip(calls, outcomes, strict=True):
        if call.raises is not None:
            is_as_said = outcome.error is not None and outcome.error[0] == call.raises[0]
            is_as_said = is_as_said and outcome.error is not None and outcome.error[1].startswith(call.raises[1])
        else:
            is_as_said = outcome.error is None and list(map(list, outcome.rows)) == list(map(list, call.gives))
        if not is_as_said:
            found.append(f"{call.function}({str(call.arguments)[:200]}): {str(outcome)[:300]}")
    return found
