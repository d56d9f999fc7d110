"""The `duepost` command."""

from duepost.bundled import use_bundled_packages


def main() -> None:
    """Runs the command and ends the process with its exit status."""
    use_bundled_packages()
    from duepost.commands.app import run  # noqa: PLC0415 - the path comes first

    run()


if __name__ == "__main__":
    main()
