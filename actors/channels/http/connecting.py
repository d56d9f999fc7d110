"""Makes connections: to one address after the other, each looked at before and after."""

import errno
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from actors.channels.channel import Dialogue, Event, Wait
from actors.channels.failures import describe_failure
from actors.channels.http.broken import Broken
from actors.channels.http.exchange import TRUST
from actors.channels.http.guard import address_error
from actors.channels.http.request import HttpPayload, Target
from actors.channels.stream import Stream
from actors.ruling import Phase

_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN})


def connect(
    payload: HttpPayload,
    context: ssl.SSLContext,
    deadline: float,
    hold: Callable[[Stream], None],
    drop: Callable[[], Dialogue[None]],
) -> Dialogue[Stream]:
    """Connects to the payload's server, with TLS where its URL says so.

    Args:
        payload: where to.
        context: whom to trust.
        deadline: until when, by the monotonic clock; each address gets its share.
        hold: told of each socket before it is waited on.
        drop: closes the one that was held last.

    Raises:
        Broken: there is no connection; the last socket is still held.
    """
    target, left = payload.target, len(payload.addresses)
    failure = Broken(Phase.RESOLVE, f"{target.host} has no address")
    for address in payload.addresses:
        now = time.monotonic()
        share, left = now + (deadline - now) / left, left - 1
        try:
            stream = yield from _reach(address, target, share, hold)
        except Broken as broken:
            failure = broken
            yield from drop()
            continue
        if target.is_tls:
            yield from _encrypt(stream, target, context, deadline, payload.deadline)
        return stream
    raise failure


def _reach(address: str, target: Target, deadline: float, hold: Callable[[Stream], None]) -> Dialogue[Stream]:
    """Connects to one address."""
    _check(address, target)
    seconds = deadline - time.monotonic()
    try:
        stream = _opened(address)
        hold(stream)
        yield from _finish(stream, stream.raw.connect_ex((address, target.port)), deadline)
        # What counts is where it leads, whatever a name or a notation said.
        peer = str(stream.raw.getpeername()[0])
    except (OSError, UnicodeError) as failure:
        what = describe_failure(failure, round(seconds, 1), "the server", TRUST)
        raise Broken(Phase.CONNECT, f"{target.host}: {what}") from None
    _check(peer, target)
    return stream


def _finish(stream: Stream, code: int, deadline: float) -> Dialogue[None]:
    """Waits until a connection that was begun stands; `code` is what its beginning came to."""
    if code in _UNDER_WAY:
        if not (yield Wait(Event.WRITE, deadline - time.monotonic())):
            raise TimeoutError
        code = stream.raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _opened(address: str) -> Stream:
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Stream(opened)
    except BaseException:
        opened.close()
        raise


def _check(address: str, target: Target) -> None:
    error = address_error(address, allows_private=target.allows_private)
    if error is not None:
        raise Broken(Phase.RESOLVE, f"{target.host} leads where the endpoint may not: {error}")


def _encrypt(
    stream: Stream, target: Target, context: ssl.SSLContext, deadline: float, seconds: float
) -> Dialogue[None]:
    try:
        yield from stream.start_tls(context, target.host, deadline)
    except (OSError, ValueError) as failure:
        what = describe_failure(failure, seconds, "the server", TRUST)
        raise Broken(Phase.TLS, f"{target.host}: {what}") from None
