"""The channel for requests: sessions that any endpoint's requests go over."""

import ssl
from functools import cached_property
from pathlib import Path

from actors.channels.channel import Permit
from actors.channels.http.connection import KeptConnections
from actors.channels.http.exchange import TRUST
from actors.channels.http.session import HttpSession
from actors.channels.http.verdicts import judge_failure
from actors.channels.tls import checking
from actors.ruling import Phase, Ruling


class HttpChannel:
    """Makes requests of servers. Any thread may call it. Nothing of the environment, such as a proxy, is heeded.

    Args:
        permit: asked before a request's first byte.
        certificates: a file of certificates that are trusted besides the system's.
    """

    #: Nothing goes out behind a request.
    pipelines = False

    def __init__(self, permit: Permit, certificates: Path | None = None) -> None:
        self._permit = permit
        self._certificates = certificates
        self._kept = KeptConnections()

    def connect(self) -> HttpSession | Ruling:
        """Gives a session, which connects when it delivers. The first call reads certificates.

        Returns:
            a session; or, where the file of certificates is of no use, why there is none.
        """
        try:
            context = self._context
        except OSError:
            return judge_failure(Phase.TLS, f"the file that {TRUST} names cannot be read, or holds no certificate")
        return HttpSession(self._kept, context, self._permit)

    def is_full(self, refusal: Ruling) -> bool:  # noqa: ARG002 - the seam's
        """Never: no server refuses a session as such."""
        return False

    def close_idle(self) -> None:
        """Closes connections that have waited for their next request for too long. Never blocks."""
        self._kept.close_idle()

    def close(self) -> None:
        """Closes all connections that wait for their next request. Never blocks."""
        self._kept.close()

    @cached_property
    def _context(self) -> ssl.SSLContext:
        context = checking(self._certificates)
        # A server that prefers HTTP/2 is told that we do not speak it.
        context.set_alpn_protocols(["http/1.1"])
        return context
