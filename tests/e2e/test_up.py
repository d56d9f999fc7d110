"""`duepost up` and `duepost demo`, as a new user runs them: in an empty folder, with nothing configured."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from tests.folders import short_folder
from tests.processes import Process, duepost
from tests.waiting import wait_until


def unconfigured() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("DUEPOST_", "SENTRY_"))}


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder that the embedded server's user can reach."""
    folder = short_folder("duepost-e2e-")
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def up(folder: Path, name: str = "up") -> Process:
    arguments = [sys.executable, "-u", "-m", "duepost", "up", "--port", "0"]
    process = Process(arguments, unconfigured(), folder / f"{name}.log", cwd=folder)
    wait_until(lambda: "Duepost is up" in process.output, timeout=90, what="duepost up", state=lambda: process.output)
    return process


def run(folder: Path, *arguments: str) -> str:
    done = duepost(*arguments, env=unconfigured(), cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sent(folder: Path) -> int:
    return int(json.loads(run(folder, "stats", "--json"))["outcomes"]["sent"])


def schedule(folder: Path) -> None:
    run(folder, "schedule", "--kind", "k", "--address", "ann@example.com", "--subject", "s", "--body-text", "b")


def schedule_message(folder: Path, order: int) -> None:
    payload = json.dumps({"order": order})
    run(folder, "message", "schedule", "--kind", "paid", "--endpoint", "catcher", "--payload", payload)


def caught(folder: Path) -> list[object]:
    """The payloads that the catcher for messages has stored."""
    return [
        json.loads(path.read_text())["payload"] for path in sorted((folder / ".duepost" / "messages").glob("*.json"))
    ]


def test_up_catches_messages_too_and_leaves_an_endpoint_of_that_name_that_is_somebodys_own(folder: Path) -> None:
    with up(folder) as first:
        messages = str(folder / ".duepost" / "messages")
        wait_until(
            lambda: messages in first.output and "--endpoint catcher" in first.output, state=lambda: first.output
        )
        schedule_message(folder, 42)
        wait_until(lambda: caught(folder) == [{"order": 42}], state=lambda: first.output)
        assert open_to_others(folder / ".duepost") == {}
        first.kill()
    with up(folder, "again") as second:
        schedule_message(folder, 43)
        wait_until(lambda: caught(folder) == [{"order": 42}, {"order": 43}], state=lambda: second.output)
        assert sent(folder) == 2
        run(folder, "endpoint", "add", "catcher", "--url", "https://shop.example.com/hooks")
        second.signal(signal.SIGINT)
        assert second.wait() == 0
    with up(folder, "third") as third:
        assert "https://shop.example.com" in run(folder, "endpoint", "list")
        assert "--endpoint catcher" not in third.output


def test_up_delivers_survives_being_killed_and_keeps_its_data(folder: Path) -> None:
    with up(folder) as first:
        mailbox = str(folder / ".duepost" / "mailbox")
        wait_until(lambda: mailbox in first.output and "psql" in first.output, state=lambda: first.output)
        schedule(folder)
        wait_until(lambda: sent(folder) == 1, state=lambda: first.output)
        first.kill()
    with up(folder, "again") as second:
        assert sent(folder) == 1, "the data is still there"
        schedule(folder)
        wait_until(lambda: sent(folder) == 2, state=lambda: second.output)
        other = duepost("up", "--port", "0", env=unconfigured(), cwd=folder)
        assert other.returncode == 1
        assert other.stderr.startswith("duepost: ")
        assert "runs here already" in other.stderr
        counted = subprocess.run(
            [folder / ".duepost" / "psql", "-Atc", "SELECT count(*) FROM duepost.delivery"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert counted.stdout == "2\n"
        assert len(other.stderr.splitlines()) == 1
        second.signal(signal.SIGINT)
        assert second.wait() == 0
    assert len(list((folder / ".duepost" / "mailbox").glob("*.eml"))) == 2
    gone = duepost("list", env=unconfigured(), cwd=folder)
    assert gone.returncode == 2
    assert "duepost up" in gone.stderr


def test_up_has_a_console_whose_inbox_a_test_waits_at_and_links_by_which_recipients_unsubscribe(folder: Path) -> None:
    with up(folder) as process:
        wait_until(lambda: "duepost list; duepost stats" in process.output, state=lambda: process.output)
        found = re.search(r"console +(http://127\.0\.0\.1:\d+/)", process.output)
        assert found is not None
        schedule(folder)
        with urllib.request.urlopen(f"{found[1]}inbox/wait?to=ann@example.com&seconds=60") as answer:
            assert json.load(answer)["subject"] == "s"
        with urllib.request.urlopen(found[1]) as page:
            assert "Nothing waits for a person" in page.read().decode()
        # An email of a kind that recipients can unsubscribe from has a link, which works here.
        psql(folder, "INSERT INTO duepost.kind (kind, unsubscribe) VALUES ('k', true)")
        schedule(folder)
        wait_until(lambda: sent(folder) == 2, state=lambda: process.output)
        [link] = [found for path in (folder / ".duepost" / "mailbox").glob("*.eml") for found in links_in(path)]
        assert link.startswith(re.findall(r"public +(http://127\.0\.0\.1:\d+/) ", process.output)[0])
        with urllib.request.urlopen(link, data=b"List-Unsubscribe=One-Click") as answer:
            assert "Unsubscribed" in answer.read().decode()
        assert psql(folder, "SELECT address, kind FROM duepost.suppression") == "ann@example.com|k\n"
        process.signal(signal.SIGINT)
        assert process.wait() == 0


def psql(folder: Path, statement: str) -> str:
    done = subprocess.run(
        [folder / ".duepost" / "psql", "-qAtc", statement], capture_output=True, text=True, check=True
    )  # fmt: skip
    return done.stdout


def links_in(email: Path) -> list[str]:
    """The links to unsubscribe of a caught email, whose long header is folded."""
    value = message_from_bytes(email.read_bytes(), policy=policy.default)["List-Unsubscribe"]
    return re.findall(r"<(\S+)>", "".join(str(value or "").split()))


def open_to_others(folder: Path) -> dict[str, str]:
    """What other users of this machine may read, write or enter in a folder, itself included, with the modes."""
    found = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    return {
        str(path): oct(path.lstat().st_mode)
        for path in found
        # A socket's own mode is PostgreSQL's; its folder closes it.
        if path.lstat().st_mode & 0o077 and not path.is_socket()
    }


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_nobody_else_may_enter_what_up_keeps_whatever_the_umask_and_whoever_made_the_folder(
    folder: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        (folder / ".duepost" / "mailbox").mkdir(parents=True, mode=0o755)
        (folder / ".duepost" / "mailbox" / "old.eml").write_text("from an earlier release")
        with up(folder) as running:
            schedule(folder)
            wait_until(lambda: sent(folder) == 1, state=lambda: running.output)
            assert len(list((folder / ".duepost" / "mailbox").glob("*.eml"))) == 2
            assert open_to_others(folder / ".duepost") == {}
            assert {path.name for path in (folder / ".duepost").iterdir()} >= {"postgres", "mailbox", "logs"}
    finally:
        os.umask(before)


def test_the_bundled_demo_ends_as_expected(folder: Path) -> None:
    done = duepost("demo", env=unconfigured(), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every outcome is as expected." in done.stdout
    assert "\x1b" not in done.stdout, "plain lines where there is no terminal"
    assert "NOT AS EXPECTED" not in done.stdout
    assert "emails and 22 messages in one transaction." in done.stdout
    assert "is edited: the receipt says edited" in done.stdout
    assert "took 13 signed messages, each once; the function took 8, each exactly once." in done.stdout
    caught = [json.loads(path.read_text()) for path in (folder / ".duepost" / "demo" / "messages").glob("*.json")]
    assert [each["payload"] for each in caught if each["payload"]["order"] == 42] == [{"order": 42, "total": "18.90"}]
    assert 43 not in {each["payload"]["order"] for each in caught}
    for path in (folder / ".duepost", folder / ".duepost" / "demo", folder / ".duepost" / "demo" / "mailbox"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_demo_takes_a_users_own_file(folder: Path) -> None:
    lines = [
        {"kind": "welcome", "address": "ann@example.com", "subject": "Hi", "body_text": "there"},
        {"kind": "digest", "users": ["bob", "cleo"], "subject": "Hi", "body_text": "there"},
        {
            "kind": "welcome",
            "address": "dead-address@example.com",
            "subject": "s",
            "body_text": "b",
            "expect": "undeliverable",
        },
    ]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = duepost("demo", "mine.jsonl", env=unconfigured(), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_outcome_that_is_not_the_expected_one_is_status_1(folder: Path) -> None:
    line = {"kind": "k", "address": "ann@example.com", "subject": "s", "body_text": "b", "expect": "undeliverable"}
    (folder / "mine.jsonl").write_text(json.dumps(line))
    done = duepost("demo", "mine.jsonl", env=unconfigured(), cwd=folder)
    assert done.returncode == 1
    assert "NOT AS EXPECTED" in done.stdout


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('{"kind": "k", "adress": "a@b.c"}', "line 2: adress: unknown"),
        ('{"kind": "k", "address": 7}', "line 2: address: must be a string"),
        ('{"kind": "k", "address": "nobody"', "line 2: not JSON"),
        ('{"kind": "k", "address": "a@b.c", "subject": "s", "body_text": "b", "expect": "happy"}', "line 2: expect"),
    ],
)
def test_a_bad_line_names_its_number_and_field(folder: Path, line: str, place: str) -> None:
    good = {"kind": "k", "address": "ann@example.com", "subject": "s", "body_text": "b"}
    (folder / "mine.jsonl").write_text(f"{json.dumps(good)}\n{line}\n")
    done = duepost("demo", "mine.jsonl", env=unconfigured(), cwd=folder)
    assert done.returncode == 2
    assert f"mine.jsonl: {place}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_line_that_the_database_refuses_is_named_and_nothing_of_the_file_is_scheduled(folder: Path, url: str) -> None:
    good = {"kind": "k", "address": "ann@example.com", "subject": "s", "body_text": "b"}
    (folder / "mine.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps({**good, 'address': 'nobody'})}\n")
    env = {**unconfigured(), "DUEPOST_DATABASE_URL": url}
    done = duepost("demo", "mine.jsonl", env=env, cwd=folder)
    assert done.returncode == 2
    assert "mine.jsonl: line 2: address: must be one address" in done.stderr
    stats = json.loads(duepost("stats", "--json", env=env, cwd=folder).stdout)
    assert sum(stats["pending"].values()) == 0


def test_a_port_that_is_taken_names_the_way_out(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = duepost("up", "--port", str(taken.getsockname()[1]), env=unconfigured(), cwd=folder)
    assert done.returncode == 1
    assert "duepost up --port 0" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_relay_of_up_s_own_is_told_to_the_doctor_without_its_password(folder: Path) -> None:
    real = {"DUEPOST_SMTP_URL": "smtp://user:hushhush@127.0.0.1:1", "DUEPOST_FROM": "noreply@example.com"}
    arguments = [sys.executable, "-u", "-m", "duepost", "up", "--port", "0"]
    with Process(arguments, {**unconfigured(), **real}, folder / "up.log", cwd=folder) as process:
        wait_until(lambda: "Duepost is up" in process.output, timeout=90, state=lambda: process.output)
        done = duepost("doctor", env=unconfigured(), cwd=folder)
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    [relay] = [line for line in done.stdout.splitlines() if " relay: " in line]
    assert "smtp://user@127.0.0.1:1" in relay
    assert "real mail" in relay
    assert "nothing leaves" not in relay
    assert "hushhush" not in done.stdout + (folder / "up.log").read_text()
