"""What runs in a machine of its own meets nobody else: neither the machine's files nor another test's."""

from tests.servers.conftest import need, own_folder
from tests.servers.containment import Machine
from tests.servers.install import installed


def test_what_a_program_keeps_at_home_lies_in_its_own_folder() -> None:
    # SpamAssassin locks what it learns there: one that was killed would stop all the others.
    need("spamassassin")
    with own_folder() as folder:
        Machine(installed("spamassassin"), folder).run_once("sh", "-c", "touch ~/kept")
        assert (folder / "var/home/kept").exists()
