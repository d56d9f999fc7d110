"""Logs in: by each mechanism that the relay offers, until one is taken; and by that one from then on (RFC 4954)."""

import binascii
import hmac
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Final

from actors.channels.smtp.dialogue import Script, Stopped, ask, must_be_positive
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.verdicts import judge, judge_failure
from actors.ruling import Phase, Ruling


class Logins:
    """What a process knows of logging in to one relay; kept for all its connections, which may use it at once.

    A wrong password is tried once by each mechanism, however many connections are being opened: until one mechanism was
    taken, one connection at a time tries, and what it hears counts for those that were begun before it heard it. Once
    one was taken, connections log in side by side, by that one alone.
    """

    def __init__(self) -> None:
        #: Held while a connection tries without knowing what is taken.
        self.turn = threading.Lock()
        #: The mechanism that was taken last.
        self.works: str | None = None
        #: What the relay said to each that it refused, since one was taken or all were refused.
        self.refused: dict[str, Ruling] = {}
        self._failures = 0
        self._failure: Ruling | None = None

    @property
    def failures(self) -> int:
        """How many logins have failed."""
        return self._failures

    def failed(self, ruling: Ruling) -> None:
        """A login has failed, by all mechanisms that it was tried by."""
        self._failure, self._failures = ruling, self._failures + 1

    def failure_since(self, failures: int) -> Ruling | None:
        """What the last login failed for, if there were more failures than that."""
        return self._failure if self._failures > failures else None


class Attempts:
    """How the login of one connection goes.

    Attributes:
        logins: what is known to all connections.
        begun_at: how many logins had failed when the connection was begun.
        is_cut_off: the relay hung up on a refusal, and another mechanism is left: it wants a connection of its own.
    """

    def __init__(self, logins: Logins | None = None) -> None:
        self.logins = logins or Logins()
        self.begun_at = self.logins.failures
        self.is_cut_off = False


def log_in(offered: frozenset[str], username: str, password: str, attempts: Attempts) -> Script[None]:
    """Logs in by the mechanism that was taken last, else by one after the other. May wait for another connection's try.

    Of the relay's words nothing is kept: it may repeat the login.

    Raises:
        Stopped: none is offered that is spoken here, or each was refused, here or to another connection meanwhile.
    """
    if offered.isdisjoint(_MECHANISMS):
        raise Stopped(judge_failure(Phase.AUTH, _why_none(offered)))
    logins = attempts.logins
    login = username.encode("utf-8"), password.encode("utf-8")
    works = logins.works
    if works is not None and works in offered:
        yield from _log_in_as_before(works, login, attempts)
        return
    with logins.turn:
        works = logins.works
        if works is None or works not in offered:
            yield from _find_out(offered, login, attempts)
            return
    yield from _log_in_as_before(works, login, attempts)


def _log_in_as_before(works: str, login: tuple[bytes, bytes], attempts: Attempts) -> Script[None]:
    """By what the relay has taken before, and nothing else: what it refuses now has changed."""
    _heed_failures(attempts)
    try:
        yield from _MECHANISMS[works](*login)
    except Stopped as stopped:
        code = stopped.ruling.code
        if code is None or code == 421:
            raise
        logins = attempts.logins
        if code // 100 == 5:
            # The next login finds out by what it can be had, if it can.
            logins.works = None
        ruling = _summary({works: stopped.ruling})
        logins.failed(ruling)
        raise Stopped(ruling) from stopped


def _find_out(offered: frozenset[str], login: tuple[bytes, bytes], attempts: Attempts) -> Script[None]:
    """By one mechanism after the other, until one is taken."""
    _heed_failures(attempts)
    logins = attempts.logins
    attempts.is_cut_off, is_refused = False, False
    left = _in_order(offered, logins)
    while left:
        mechanism = left.pop(0)
        try:
            yield from _MECHANISMS[mechanism](*login)
        except Stopped as stopped:
            code = stopped.ruling.code
            if code is None or code == 421:
                attempts.is_cut_off = is_refused
                if is_refused:
                    raise
                if logins.refused:
                    raise Stopped(_all_refused(logins)) from stopped
                if code is None:
                    logins.failed(stopped.ruling)
                raise
            is_refused = True
            logins.refused[mechanism] = stopped.ruling
            if code // 100 == 4 or not left:
                raise Stopped(_all_refused(logins)) from stopped
        else:
            logins.works = mechanism
            logins.refused.clear()
            return


def _heed_failures(attempts: Attempts) -> None:
    """Ends a login where another has failed since the connection was begun.

    Raises:
        Stopped: it has.
    """
    failure = attempts.logins.failure_since(attempts.begun_at)
    if failure is not None:
        raise Stopped(failure)


def _in_order(offered: frozenset[str], logins: Logins) -> list[str]:
    """What is spoken here and offered, without what was refused."""
    spoken = [each for each in _MECHANISMS if each in offered]
    if logins.refused.keys() >= set(spoken):
        logins.refused.clear()
    return [each for each in spoken if each not in logins.refused]


def _all_refused(logins: Logins) -> Ruling:
    """The ruling for a login that no mechanism is left for; the next one begins afresh."""
    ruling = _summary(logins.refused)
    logins.refused.clear()
    logins.failed(ruling)
    return ruling


def _summary(refused: Mapping[str, Ruling]) -> Ruling:
    """What all refusals come to: the one that names the password, if one does."""
    rulings = list(refused.values())
    ruling = next((each for each in rulings if each.code == 535), rulings[-1])
    said = " ".join(str(part) for part in (ruling.code, ruling.enhanced_code) if part)
    return ruling._replace(reply=f"the login is refused with {said} (tried: {', '.join(refused)})")


def _why_none(offered: frozenset[str]) -> str:
    if not offered:
        return "a login is configured, and the relay does not offer AUTH"
    named = ", ".join(sorted(offered))[:100]
    return f"the relay offers AUTH {named}; spoken here are {', '.join(_MECHANISMS)}"


def _plain(user: bytes, secret: bytes) -> Script[None]:
    """RFC 4616."""
    answer = b64encode(b"\0" + user + b"\0" + secret)
    reply = yield from ask(b"AUTH PLAIN " + answer, Phase.AUTH)
    if reply.code == 334:
        # It has not taken the answer that came with the command.
        reply = yield from ask(answer, Phase.AUTH)
    yield from _must_be_taken(reply)


def _login(user: bytes, secret: bytes) -> Script[None]:
    yield from _challenge(b"AUTH LOGIN")
    yield from _challenge(b64encode(user))
    yield from _must_be_taken((yield from ask(b64encode(secret), Phase.AUTH)))


def _cram_md5(user: bytes, secret: bytes) -> Script[None]:
    """RFC 2195."""
    challenge = yield from _challenge(b"AUTH CRAM-MD5")
    try:
        digest = hmac.new(secret, b64decode("".join(challenge.lines), validate=True), "md5").hexdigest()
    except (binascii.Error, ValueError):
        # No challenge, or a machine without MD5.
        yield from _cancel(challenge)
    else:
        yield from _must_be_taken((yield from ask(b64encode(user + b" " + digest.encode("ascii")), Phase.AUTH)))


def _challenge(line: bytes) -> Script[Reply]:
    reply = yield from ask(line, Phase.AUTH)
    if not reply.intermediate:
        raise Stopped(judge(Phase.AUTH, reply))
    return reply


def _must_be_taken(reply: Reply) -> Script[None]:
    if reply.intermediate:
        yield from _cancel(reply)
    must_be_positive(Phase.AUTH, reply)


def _cancel(reply: Reply) -> Script[None]:
    """Ends an exchange that leads nowhere: the next one can begin.

    Raises:
        Stopped: always, for the reply that it was ended for.
    """
    yield from ask(b"*", Phase.AUTH)
    raise Stopped(judge(Phase.AUTH, reply))


#: In the order in which they are tried: one round trip first; what sends no password, and so needs it kept in plain
#: text at the relay, last.
_MECHANISMS: Final[dict[str, Callable[[bytes, bytes], Script[None]]]] = {
    "PLAIN": _plain,
    "LOGIN": _login,
    "CRAM-MD5": _cram_md5,
}

#: The mechanisms that are spoken.
MECHANISMS: Final = tuple(_MECHANISMS)
