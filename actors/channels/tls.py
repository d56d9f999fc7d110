"""TLS: whom to trust."""

import ssl
from pathlib import Path


def checking(certificates: Path | None = None) -> ssl.SSLContext:
    """A context that checks certificate and name, against the system's certificates and those of a file.

    A certificate in the file is trusted as it is, also if it is no authority's: a relay's own, self-signed.

    Raises:
        ssl.SSLError: the file holds no certificate; an OSError, as where it cannot be read.
    """
    context = ssl.create_default_context()
    if certificates is not None:
        context.load_verify_locations(certificates)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def unchecked() -> ssl.SSLContext:
    """A context that encrypts, and takes any certificate: better than plain text, no help against who is in between."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def trouble_with(certificates: Path) -> str | None:
    """Why a file of certificates is of no use; None where it is."""
    store = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        store.load_verify_locations(certificates)
    except ssl.SSLError:
        return "holds no certificate in PEM"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return None if store.cert_store_stats()["x509"] else "holds no certificate in PEM"
