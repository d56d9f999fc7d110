"""A worker's journal says what was written, or less; never anything else, whatever becomes of its files."""

import os
import stat
from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.delivery import journal as journals
from actors.delivery.journal import Journal, JournalFile, Record, decoded, encoded, header, trouble_with
from actors.ruling import Limit, Pace, Phase, Ruling, Scope, Topic
from models import workers
from models.database.connections import Database
from models.errors import DatabaseUnreachable
from models.messages import Claim
from models.words import Verdict

NAME = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
MESSAGE = Claim("6a1b8a5e-0d52-4f4d-9e2c-0a4c8f3f6a11", 7)
SENT = Ruling(Verdict.SENT, Scope.RECIPIENT, Phase.DOT, 250, "2.0.0", "queued as 4711")
DEAD = Ruling(
    Verdict.UNDELIVERABLE,
    Scope.RECIPIENT,
    Phase.RCPT,
    550,
    "5.1.1",
    "nö\nuser",
    Pace.NORMAL,
    True,
    Topic.RECIPIENT,
)
PLAIN = journals._plain(SENT)

rulings = st.builds(
    Ruling,
    verdict=st.sampled_from(Verdict),
    scope=st.sampled_from(Scope),
    phase=st.sampled_from(Phase),
    code=st.none() | st.integers(200, 599),
    enhanced_code=st.none() | st.text(max_size=10),
    # Replies and user ids come from outside: whatever they hold, lone surrogates included.
    reply=st.text(st.characters(exclude_categories=()), max_size=60),
    pace=st.sampled_from(Pace),
    suppress=st.booleans(),
    about=st.none() | st.sampled_from(Topic),
    limits=st.sets(st.sampled_from(Limit)).map(lambda each: reduce(or_, each, Limit.NONE)),
    retry_after=st.none() | st.floats(0, 86_400),
    wait=st.none() | st.floats(0, 86_400),
)
records = st.builds(
    Record,
    email_id=st.integers(1, 2**63 - 1),
    claim=st.integers(1, 2**63 - 1),
    message=st.none() | st.builds(Claim, st.uuids().map(str), st.integers(1, 2**63 - 1)),
    rulings=st.dictionaries(st.none() | st.text(max_size=20), rulings, min_size=1, max_size=3),
)


def journal_of(*written: Record, name: str = NAME) -> bytes:
    return header(name, 5) + b"".join(map(encoded, written))


@given(st.lists(records, max_size=5))
def test_what_is_written_is_read(written: list[Record]) -> None:
    assert list(decoded(journal_of(*written), NAME)) == written


@given(st.lists(records, min_size=1, max_size=3))
def test_a_record_is_one_line_of_ascii(written: list[Record]) -> None:
    content = journal_of(*written)
    assert content.count(b"\n") == len(written) + 1
    assert content.isascii()


def test_a_journal_that_is_cut_off_at_any_byte_says_what_is_whole_in_it() -> None:
    written = [Record(1, 11, MESSAGE, {None: SENT}), Record(2, 12, None, {"ann": SENT, "bob": DEAD})]
    content = journal_of(*written)
    ends = [len(journal_of(*written[:count])) for count in range(len(written) + 1)]
    for length in range(len(content) + 1):
        found = list(decoded(content[:length], NAME))
        # The last byte of a record is the end of its line, which says nothing more.
        assert found == written[: max(0, sum(length >= end - 1 for end in ends) - 1)], length


def test_no_flipped_bit_makes_it_say_anything_else() -> None:
    written = [Record(1, 11, MESSAGE, {None: SENT}), Record(2, 12, None, {"ann": DEAD})]
    content = bytearray(journal_of(*written))
    for place in range(len(content)):
        for bit in range(8):
            content[place] ^= 1 << bit
            assert all(record in written for record in decoded(bytes(content), NAME)), (place, bit)
            content[place] ^= 1 << bit


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 200))
def test_whatever_is_written_over_it_says_nothing_else(noise: bytes, start: int, length: int) -> None:
    written = [Record(1, 11, MESSAGE, {None: SENT}), Record(2, 12, None, {"ann": DEAD})]
    content = journal_of(*written)
    damaged = content[:start] + noise + content[start + length :]
    assert all(record in written for record in decoded(damaged, NAME))


@given(st.binary(max_size=200))
def test_what_is_no_journal_says_nothing(content: bytes) -> None:
    assert list(decoded(content, NAME)) == []


def test_a_torn_record_costs_no_other() -> None:
    first, second, third = (Record(number, 10 + number, None, {None: SENT}) for number in (1, 2, 3))
    content = header(NAME, 5) + encoded(first) + encoded(second)[:30] + b"\n" + encoded(third)
    assert list(decoded(content, NAME)) == [first, third]


@pytest.mark.parametrize(
    "head",
    [header(OTHER, 5), b"", b"\n", header(NAME, 5).replace(b"journal 1", b"journal 2")],
    ids=["another's", "none", "blank", "another format's"],
)
def test_records_under_another_header_are_nobodys(head: bytes) -> None:
    assert list(decoded(head + encoded(Record(1, 11, None, {None: SENT})), NAME)) == []


@pytest.mark.parametrize(
    "value",
    [
        [1, 11, None, []],
        [1, 11, None, {}],
        [1, "11", None, [[None, PLAIN]]],
        [1, 11, ["no uuid", 3], [[None, PLAIN]]],
        [1, 11, 5, [[None, PLAIN]]],
        [1, 11, None, [[7, PLAIN]]],
        [1, 11, None, [[None]]],
        [1, 11, None, [[None, {"verdict": "sent"}]]],
        [1, 11, None, [[None, {**PLAIN, "verdict": "gone"}]]],
        [1, 11, None, [[None, {**PLAIN, "code": "250"}]]],
        [1, 11, None, [[None, {**PLAIN, "limits": 1 << 20}]]],
        [1, 11, None, [[None, {**PLAIN, "address": "ann@example.com"}]]],
        {"email": 1},
        None,
    ],
)
def test_a_line_of_another_shape_is_no_record(value: object) -> None:
    line = journals._line(value)  # type: ignore[arg-type]
    assert list(decoded(header(NAME, 5) + line, NAME)) == []


class Worker:
    """A worker's journal in a folder, with a database that only remembers names."""

    def __init__(self, folder: Path | None, noted: dict[int, str]) -> None:
        self.journal = Journal(folder, Database(""))
        self.noted = noted

    def append(self, claim: int, user_id: str | None = None, ruling: Ruling = SENT) -> None:
        self.journal.append(claim + 100, claim, MESSAGE, {user_id: ruling})

    def said(self, name: str | None = None) -> Mapping[int, Record] | None:
        return self.journal.read(name or self.journal.name)


Start = Callable[[Path | None], Worker]


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    noted: dict[int, str] = {}
    monkeypatch.setattr(workers, "note_journal", lambda _, worker_id, name: noted.__setitem__(worker_id, name))
    return noted


@pytest.fixture
def start(noted: dict[int, str]) -> Start:
    def start(folder: Path | None) -> Worker:
        worker = Worker(folder, noted)
        worker.journal.begin(5)
        return worker

    return start


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "journal").iterdir())


def test_the_database_knows_the_name_of_a_journal_that_is_there(start: Start, tmp_path: Path) -> None:
    worker = start(tmp_path)
    assert worker.noted == {5: worker.journal.name}
    assert files(tmp_path) == [f"{worker.journal.name}.1"]


def test_the_folder_and_its_files_are_the_users_alone(start: Start, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir(mode=0o755)
    start(tmp_path).append(1)
    [file] = (tmp_path / "journal").iterdir()
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_relays_say_of_several_recipients_is_gathered(start: Start, tmp_path: Path) -> None:
    worker = start(tmp_path)
    worker.append(1, "ann", SENT)
    worker.append(2)
    worker.append(1, "bob", DEAD)
    assert worker.said() == {
        1: Record(101, 1, MESSAGE, {"ann": SENT, "bob": DEAD}), 2: Record(102, 2, MESSAGE, {None: SENT})
    }  # fmt: skip
    assert worker.said(OTHER) is None


def test_a_full_file_is_followed_by_a_new_one_and_deleted_once_all_in_it_is_concluded(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "FULL", 1000)
    worker = start(tmp_path)
    for claim in range(1, 40):
        worker.append(claim)
        if claim > 3:
            worker.journal.forget(claim)
        worker.journal.tidy()
    assert len(files(tmp_path)) > 3, "the first one names claims that are not concluded"
    assert {1, 2, 3} <= set(worker.said() or ())
    for claim in (1, 2, 3):
        worker.journal.forget(claim)
    worker.journal.tidy()
    assert len(files(tmp_path)) == 1


def test_a_journal_is_emptied_when_all_in_it_is_concluded(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "EMPTIED_AFTER", 0.0)
    worker = start(tmp_path)
    worker.append(1)
    worker.journal.tidy()
    assert set(worker.said() or ()) == {1}
    worker.journal.forget(1)
    worker.journal.tidy()
    assert worker.said() == {}
    [file] = (tmp_path / "journal").iterdir()
    worker.journal.tidy()
    assert files(tmp_path) == [file.name], "it is empty already"
    worker.append(2)
    assert set(worker.said() or ()) == {2}


def test_a_clean_end_leaves_nothing_unless_something_is_not_concluded(start: Start, tmp_path: Path) -> None:
    worker, other = start(tmp_path), start(tmp_path)
    worker.append(1)
    worker.journal.forget(1)
    other.append(2)
    worker.journal.close()
    other.journal.close()
    assert files(tmp_path) == [f"{other.journal.name}.1"]
    other.append(3)
    assert set(worker.said(other.journal.name) or ()) == {2}


def test_a_worker_with_a_new_number_begins_a_journal_of_its_own(start: Start, tmp_path: Path) -> None:
    worker = start(tmp_path)
    first = worker.journal.name
    worker.append(1)
    worker.journal.begin(6)
    worker.append(2)
    assert worker.noted == {5: first, 6: worker.journal.name}
    assert set(worker.said(first) or ()) == {1}
    assert set(worker.said() or ()) == {2}


def test_a_folder_that_vanishes_is_made_again(start: Start, tmp_path: Path) -> None:
    worker = start(tmp_path)
    [file] = (tmp_path / "journal").iterdir()
    file.unlink()
    (tmp_path / "journal").rmdir()
    worker.append(1)
    worker.journal.tidy()
    worker.journal.begin(5)
    assert worker.said() == {}, "what was in it is gone"
    worker.journal.begin(5)
    worker.append(2)
    assert set(worker.said() or ()) == {2}


def test_without_a_folder_nothing_is_written_or_noted(start: Start) -> None:
    worker = start(None)
    worker.append(1)
    worker.journal.forget(1)
    worker.journal.tidy()
    worker.journal.close()
    assert worker.noted == {}
    assert worker.said(NAME) is None
    assert worker.journal.names() == set()


def test_where_no_file_can_be_made_that_is_said_once_and_mail_goes_on(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "journal").write_text("no folder")
    worker = start(tmp_path)
    for claim in range(1, 4):
        worker.journal.begin(5)
        worker.append(claim)
        worker.journal.tidy()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot be kept" in caplog.text
    assert worker.noted == {}
    assert worker.said(NAME) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_once(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o500)
    worker = start(tmp_path)
    worker.append(1)
    assert "Permission denied" in caplog.text
    tmp_path.chmod(0o700)


def test_a_database_that_cannot_be_told_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise DatabaseUnreachable("away")

    monkeypatch.setattr(workers, "note_journal", away)
    worker = Worker(tmp_path, {})
    with pytest.raises(DatabaseUnreachable):
        worker.journal.begin(5)
    assert files(tmp_path) == []
    worker.append(1)


def test_a_full_disk_is_said_once_and_costs_no_later_record(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = start(tmp_path)
    file = worker.journal._file
    assert file is not None
    full = os.open("/dev/full", os.O_WRONLY)
    disk = os.dup(file.descriptor)
    os.dup2(full, file.descriptor)
    worker.append(1)
    worker.append(2)
    os.dup2(disk, file.descriptor)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left on device" in caplog.text
    worker.append(3)
    assert set(worker.said() or ()) == {3}
    os.close(full)
    os.close(disk)


def test_a_record_that_is_cut_short_by_the_disk_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = JournalFile(os.open(path, os.O_WRONLY | os.O_CREAT), path, 1, 0)
    file.write(header(NAME, 5))
    os.write(file.descriptor, encoded(Record(1, 11, None, {None: SENT}))[:20])
    file.is_torn = True
    file.write(encoded(Record(2, 12, None, {None: SENT})))
    assert [record.claim for record in decoded(path.read_bytes(), NAME)] == [12]


def test_a_slow_disk_is_written_on_the_side_and_said_once(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = start(tmp_path)
    work: list[Callable[[], None]] = []
    monkeypatch.setattr(worker.journal._writer, "submit", work.append)
    monkeypatch.setattr(journals, "WAITING", 3)
    monkeypatch.setattr(journals, "SLOW", -1.0)
    worker.append(1)
    for claim in (2, 3, 4, 5):
        worker.append(claim)
    assert set(worker.said() or ()) == {1}
    assert len(work) == 3, "too many wait: the last one is left out"
    monkeypatch.setattr(journals, "SLOW", 60.0)
    for each in work:
        each()
    work.clear()
    assert set(worker.said() or ()) == {1, 2, 3, 4}
    worker.append(6)
    assert not work, "it is quick again"
    assert set(worker.said() or ()) == {1, 2, 3, 4, 6}
    assert len([record for record in caplog.records if "is slow" in record.message]) == 1
    assert len([record for record in caplog.records if "leaves out" in record.message]) == 1


@pytest.mark.parametrize("what", ["folder", "pipe", "link", "unreadable"])
def test_what_is_no_file_of_this_users_is_not_read(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    worker = start(tmp_path)
    path = tmp_path / "journal" / f"{NAME}.1"
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link":
            (tmp_path / "elsewhere").write_bytes(journal_of(Record(1, 11, None, {None: SENT})))
            path.symlink_to(tmp_path / "elsewhere")
        case "unreadable":
            if os.geteuid() == 0:
                pytest.skip("root may read everything")
            path.write_bytes(journal_of(Record(1, 11, None, {None: SENT})))
            path.chmod(0)
    assert worker.said(NAME) == {}
    assert "cannot be read" in caplog.text


def test_journals_of_the_dead_are_deleted_once_they_are_not_needed(start: Start, tmp_path: Path) -> None:
    dead, needed, anothers, worker = (start(tmp_path) for _ in range(4))
    old = tmp_path / "journal" / f"{OTHER}.1"
    old.write_bytes(journal_of(name=OTHER))
    os.utime(old, (0, 0))
    (tmp_path / "journal" / "README").touch()
    names = {dead.journal.name, needed.journal.name}
    worker.journal.delete_unneeded(names, {needed.journal.name})
    left = sorted(each.journal.name for each in (needed, anothers, worker))
    assert files(tmp_path) == sorted([f"{name}.1" for name in left] + ["README"])


def test_trouble_with_a_folder_is_known_beforehand_and_nothing_is_made(tmp_path: Path) -> None:
    assert trouble_with(tmp_path / "is" / "made") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert trouble_with(tmp_path / "file") == f"{tmp_path / 'file'} is no folder"
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert trouble_with(tmp_path) == f"{tmp_path} cannot be written by this user"
        tmp_path.chmod(0o700)
