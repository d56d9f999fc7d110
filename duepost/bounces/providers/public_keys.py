"""Public keys of providers, read by `cryptography`: the one module here that imports it."""

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

#: Says whether a signature, in base64, is one of these bytes.
Verify = Callable[[str, bytes], bool]

#: Bits of an RSA key at least.
FEWEST_BITS: Final = 2048


def ecdsa(key: str) -> Verify:
    """Verifies by ECDSA and SHA-256 (RFC 3279 section 2.2.3).

    Args:
        key: SubjectPublicKeyInfo in base64.

    Raises:
        ValueError: it is none.
    """
    try:
        public = serialization.load_der_public_key(base64.b64decode(key, validate=True))
    except (binascii.Error, ValueError, UnsupportedAlgorithm):
        raise ValueError("no public key in base64") from None
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise ValueError("no public key for ECDSA")  # noqa: TRY004 - of a text

    def verify(signature: str, signed: bytes) -> bool:
        decoded = _decoded(signature)
        if decoded is None:
            return False
        try:
            public.verify(decoded, signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    return verify


def rsa_of_certificate(pem: bytes, *, is_sha1: bool) -> Verify:
    """Verifies by RSA (PKCS#1 v1.5) and the key of a certificate that holds now.

    Raises:
        ValueError: it is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        public = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("no certificate") from None
    if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
        raise ValueError("the certificate does not hold now")
    if not isinstance(public, RSAPublicKey) or public.key_size < FEWEST_BITS:
        raise ValueError("no certificate with a key for RSA that is long enough")
    # Amazon signs its version 1 so: https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html
    algorithm = hashes.SHA1() if is_sha1 else hashes.SHA256()  # noqa: S303

    def verify(signature: str, signed: bytes) -> bool:
        decoded = _decoded(signature)
        if decoded is None:
            return False
        try:
            public.verify(decoded, signed, padding.PKCS1v15(), algorithm)
        except InvalidSignature:
            return False
        return True

    return verify


def _decoded(signature: str) -> bytes | None:
    try:
        return base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return None
