"""SQL lives in `.sql` files beside the modules: each statement titled, each in one place."""

import re
from functools import cache
from pathlib import Path

TITLE = re.compile(r"^-- name: (?P<name>\w+)", re.MULTILINE)


@cache
def statements(module_file: str) -> dict[str, str]:
    """The statements of the `.sql` file beside a module, by title.

    Args:
        module_file: the module's `__file__`; `emails.py` has its statements in `emails.sql`.

    Raises:
        ValueError: two statements have the same title.
    """
    text = Path(module_file).with_suffix(".sql").read_text(encoding="utf-8")
    titles = list(TITLE.finditer(text))
    found: dict[str, str] = {}
    for title, following in zip(titles, [*titles[1:], None], strict=True):
        name = title["name"]
        if name in found:
            raise ValueError(f"{Path(module_file).stem}.sql: two statements are named {name}")
        end = following.start() if following else len(text)
        found[name] = text[title.end() : end].strip()
    return found
