"""docs/messages.md as a stranger reads it: its SQL, then its Python, then each of its commands, on one database."""

import re
import shlex
from pathlib import Path

import psycopg2

import duepost
from tests.http_servers import ScriptedServer
from tests.integration.commands.shell import Shell
from tests.postgres import Connection, run

PAGE = (Path(__file__).parents[2] / "docs" / "messages.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The lines that are to be typed, without what is said of them."""
    lines = re.findall(r"^    (duepost .*)$", PAGE, flags=re.MULTILINE)
    return [each for line in lines for each in re.sub(r"\s+#.*", "", line).split("; ")]


def test_the_pages_python_and_commands_do_what_they_say(url: str, tmp_path: Path) -> None:
    connection = psycopg2.connect(url)
    for statement in blocks("sql run"):
        run(connection, statement.replace("%", "%%"))
    connection.commit()
    receiver, code = blocks("python")
    _run_python(connection, code)
    connection.commit()
    (tmp_path / "payload.json").write_text('{"order": 45}')
    (tmp_path / "messages.jsonl").write_text('{"kind": "order_paid", "endpoint": "orders", "payload": {"order": 46}}\n')
    run(connection, "SELECT duepost.set_endpoint('catcher', 'webhook', 'https://catcher.example.com/')")
    connection.commit()
    shell = Shell(url)
    typed = commands()
    assert len(typed) == len(set(typed)) >= 14
    with ScriptedServer() as server:
        printed = {}
        for command in typed:
            name, _, file = command.partition(" < ")
            words = [each.replace("messages.jsonl", str(tmp_path / "messages.jsonl")) for each in shlex.split(name)]
            stdin = (tmp_path / file).read_text() if file else None
            printed[command] = shell.run(*words[1:], stdin=stdin)
            if words[1:3] == ["endpoint", "add"]:
                # The shop of the example is nowhere.
                run(connection, "SELECT duepost.set_endpoint('orders', url => %s, allow_private => true)", server.url)
                [(secret,)] = run(connection, "SELECT secret FROM duepost.endpoint WHERE name = 'orders'")
                connection.commit()
        assert [request.path for request in server.requests] == ["/"]
        names: dict[str, object] = {
            "secret": secret, "body": server.requests[0].body, "headers": server.requests[0].headers,
        }  # fmt: skip
        exec(compile(receiver, "messages.md", "exec"), names)
        assert isinstance(names["event"], dict)
        assert names["event"]["type"] == "duepost.test"
    assert "took the test: sent, status 204" in printed["duepost endpoint test orders"]
    assert printed["duepost message schedule --file messages.jsonl"] == "Scheduled 1 message.\n"
    assert "state\tfinished" in printed["duepost status --key order-43"], "cleared by its user"
    assert "ended as undeliverable" in printed["duepost endpoint remove orders"]
    connection.close()


def _run_python(connection: Connection, code: str) -> None:
    """Runs the snippet with what its reader has, and holds what it says in comments against what there is."""
    names: dict[str, object] = {"connection": connection, "duepost": duepost}
    exec(compile(code, "messages.md", "exec"), names)
    assert "# Status(id=2, channel='message', kind='order_paid', …)" in code
    assert repr(names["found"]).startswith("Status(id=2, channel='message', kind='order_paid', ")
    [(payload,)] = run(connection, "SELECT payload FROM duepost.scheduled_message WHERE id = 2")
    assert payload == {"order": 43, "gift": True}
