"""Where `actors` and `models` are: beside `duepost` in a checkout, inside it in an installed wheel."""

import sys
from pathlib import Path

#: The wheel installs one name, so that a host's own `models.py` and ours never meet.
APP = Path(__file__).parent / "app"

#: The folder that holds them.
ROOT = APP if (APP / "actors").is_dir() else APP.parent.parent


def use_bundled_packages() -> None:
    """Lets `import actors` and `import models` find ours, whatever the working directory holds.

    For processes of our own. One of somebody else's imports `duepost.app` instead.
    """
    if sys.path[:1] != [str(ROOT)]:
        sys.path.insert(0, str(ROOT))
