"""What goes wrong with a connection, in words for operators."""

import ssl
from typing import Final

#: OpenSSL's codes of a certificate that is for another name, or address.
_WRONG_NAME: Final = (62, 64)


def describe_failure(failure: Exception, seconds: float, peer: str, trust: str) -> str:
    """Says what went wrong, in a line.

    Args:
        failure: an OSError, a TimeoutError among them, or a UnicodeError.
        seconds: after which it timed out, if it did.
        peer: who it went wrong with, such as "the relay".
        trust: the setting that names a file of what to trust.
    """
    if isinstance(failure, TimeoutError):
        return f"timed out after {seconds:g} seconds"
    if isinstance(failure, ssl.SSLCertVerificationError):
        is_anothers = failure.verify_code in _WRONG_NAME
        hint = "say the host as the certificate does" if is_anothers else f"{trust} names a file of what to trust"
        return f"{peer}'s certificate is not trusted: {failure.verify_message.rstrip('.')} ({hint})"
    if isinstance(failure, ssl.SSLError):
        return f"TLS failed: {failure.reason or failure}"
    return f"connection failed: {getattr(failure, 'strerror', None) or failure}"
