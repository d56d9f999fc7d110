"""The code, its tests and its pages use the words of docs/glossary.md; words that meant the same before are gone."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: The word to use, and those (patterns of whole words, also as parts of names) that it stands for.
WORDS: dict[str, str] = {
    "dispatcher, batch, batched message": r"crew|companions?|in company|(?:take|takes|taken|took|taking) along",
    "event loop, slot": r"switchboard",
    "in-flight claims, orphaned claims": r"holdings|strays?",
    "worker session, register": r"attendance|enrol\w*",
    "maintenance, watchdog": r"upkeep",
    "reap, dead workers": r"bur(?:y|ies|ied)|the gone",
    "rescue": r"recovery",
    "token bucket": r"promptness",
    "full-scan throttle": r"ration",
    "pipeline": r"put(?:s|ting)? behind|forgoe?s?",
    "time limit": r"overtime",
    "redaction, alerts": r"privacy|reporting",
    "return, release": r"(?:give|gives|given|gave|giving) back",
    "requeue, set back": r"put(?:s|ting)? back",
    "record, finish": r"settl(?:e|es|ed|ing)",
    "app harness, load clients, crash worker": r"postroom|askers?|mortals?",
    "again, from the beginning": r"anew",
    "a number": r"so many",
    "costly, scarce": r"dear",
}

#: Lines that have such a word for a reason.
FINE = [
    r"crash recovery|is_in_recovery|\bin_recovery",  # PostgreSQL's
    r"recovery_threshold",  # Sentry's
    r"Dear ",  # a letter's beginning
    r"Reporting-MTA",  # a field of RFC 3464
]

#: Frozen, or not ours: what was released, migrations, decisions of their day, relays' words, addresses and replies.
LEFT_ALONE = (
    "tests/releases", "models/migrations", "docs/decisions", "tests/corpus", "actors/channels/smtp/phrases.txt",
    "tests/unit/test_plain_words.py", "benchmarks/.environments",
)  # fmt: skip
SUFFIXES = {".py", ".sql", ".md", ".yaml", ".example", ".service", ".timer", ".conf", ".cron", ".toml", ".txt"}
FOLDERS = ("actors", "models", "duepost", "tests", "docs", "benchmarks", "deploy")

#: Where nothing is told of `what is so`: things have names there.
NAMED = ("models/emails", "actors/delivery/")


def files() -> list[str]:
    """All texts of ours, from the root."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*.md"))
    names = [str(path.relative_to(ROOT)) for path in found if path.suffix in SUFFIXES and path.is_file()]
    return sorted(name for name in names if not name.startswith(LEFT_ALONE))


def places(pattern: str, names: list[str]) -> list[str]:
    """Where words stand, as `file:line: text`; an underline between two parts of a name is as good as a space."""
    word = re.compile(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", re.IGNORECASE)
    fine = re.compile("|".join(FINE), re.IGNORECASE)
    return [
        f"{name}:{number}: {line.strip()}"
        for name in names
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if word.search(line.replace("_", " ")) and not fine.search(line)
    ]


@pytest.mark.parametrize("instead", WORDS)
def test_one_word_has_one_meaning_and_the_others_are_gone(instead: str) -> None:
    names = files()
    assert len(names) > 300
    found = places(WORDS[instead], names)
    assert found == [], f"write: {instead}"


def test_what_raises_a_bad_argument_in_sql_is_named_for_the_error() -> None:
    made = re.compile(r"FUNCTION duepost\.(\w*(?:fault|refuse_)\w*)")
    found = {name for path in (ROOT / "models/functions").rglob("*.sql") for name in made.findall(path.read_text())}
    # A relay has refused a connection: that is told, and nothing raised.
    assert found == {"refuse_connection"}


def test_things_have_names_where_an_emails_life_is_told() -> None:
    names = [name for name in files() if name.startswith(NAMED)]
    assert len(names) > 15
    assert places("what is", names) == []
