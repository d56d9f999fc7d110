"""The `duepost` command."""

import sys

from duepost.bundled import use_bundled_packages

#: Ended by Ctrl-C while it was still being loaded: the status is the same as later.
INTERRUPTED = 130


def main() -> None:
    """Runs the command and ends the process with its exit status."""
    try:
        use_bundled_packages()
        from duepost.commands.app import run  # noqa: PLC0415 - the path comes first
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
