"""Recipients who see each other, and addresses beyond ASCII, as each of the real servers takes them."""

from email import message_from_bytes
from email.message import Message

import pytest

from tests.servers.conftest import MakeSite, Servers
from tests.servers.sendmail import Sendmail
from tests.servers.server import Server

#: Those that offer SMTPUTF8 as Debian, or npm, has them set up.
INTERNATIONAL = {"postfix", "exim", "haraka"}


@pytest.fixture(params=["postfix", "exim", "opensmtpd", "dovecot", "sendmail", "haraka"])
def real(request: pytest.FixtureRequest, servers: Servers) -> Server:
    """Each server in turn."""
    return servers[request.param]


def stored(server: Server, message_id: object) -> list[Message]:
    server.wait_until_stored()
    found = (message_from_bytes(path.read_bytes()) for path in server.messages())
    return [message for message in found if message["Message-ID"] == message_id]


def test_each_has_a_verdict_of_its_own_and_bcc_stands_nowhere(real: Server, make_site: MakeSite) -> None:
    site = make_site(real.main_url())
    [(email_id,)] = site.query(
        "SELECT duepost.schedule_email(kind => 'minutes', subject => 'Hello', body_text => 'World',"
        """ addresses => ARRAY['"Doe, Ann" <person-1@example.com>', 'person-2@example.com'],"""
        " cc => ARRAY['unknown-1@example.com'], bcc => ARRAY['hidden-1@example.com'])"
    )
    with site.running():
        site.wait_until_finished()
    outcomes = site.by_address()
    assert outcomes == {
        "person-1@example.com": "sent",
        "person-2@example.com": "sent",
        "unknown-1@example.com": "undeliverable",
        "hidden-1@example.com": "sent",
    }
    [(message_id,)] = site.query(
        "SELECT DISTINCT message_id_header FROM duepost.delivery WHERE email_id = %s", email_id
    )
    copies = stored(real, message_id)
    # Sendmail keeps what it takes in a queue of its own form.
    assert copies or isinstance(real, Sendmail)
    for copy in copies:
        assert copy.get_all("To") == ['"Doe, Ann" <person-1@example.com>, person-2@example.com']
        assert copy.get_all("Cc") == ["unknown-1@example.com"]
        assert copy.get_all("Bcc") is None


def test_an_address_beyond_ascii_is_sent_where_that_is_offered(
    request: pytest.FixtureRequest, real: Server, make_site: MakeSite
) -> None:
    site = make_site(real.main_url())
    site.query(
        "SELECT duepost.schedule_email(kind => 'welcome', subject => 'ß', body_text => 'ß', address => each)"
        " FROM unnest(ARRAY['jörg@example.com', 'ann@example.com']) AS each"
    )
    with site.running():
        site.wait_until_finished()
    outcomes = site.by_address()
    is_offered = request.node.callspec.params["real"] in INTERNATIONAL
    assert outcomes == {"ann@example.com": "sent", "jörg@example.com": "sent" if is_offered else "undeliverable"}
    assert site.suppressed() == set()
