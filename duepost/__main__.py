"""The `duepost` command."""

import sys

from duepost.bundled import use_bundled_packages
from duepost.extras import MissingExtra, needs

#: Ended by Ctrl-C while it was still being loaded: the status is the same as later.
INTERRUPTED = 130

#: What has to be there is not, or a setting is wrong.
BAD_USAGE = 2


def main() -> None:
    """Runs the command and ends the process with its exit status."""
    try:
        use_bundled_packages()
        with needs("worker", "the command"):
            from duepost.commands.app import run  # noqa: PLC0415 - the path comes first
    except MissingExtra as error:
        print(f"duepost: {error}", file=sys.stderr)
        sys.exit(BAD_USAGE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
