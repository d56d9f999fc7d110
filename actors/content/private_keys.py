"""Private keys, read by `cryptography`: the one module that imports it, and is imported itself where there are keys."""

import base64
import binascii
import hashlib
from collections.abc import Callable
from typing import Final, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

#: Bits of an RSA key: what verifiers have to take (RFC 8301 section 3.2).
FEWEST_BITS: Final = 1024
MOST_BITS: Final = 4096

#: Octets of an Ed25519 key.
ED25519_OCTETS: Final = 32


class SigningKey(NamedTuple):
    """A private key as DKIM has it.

    Attributes:
        algorithm: `rsa-sha256` or `ed25519-sha256`.
        bits: its length.
        public: the public key in base64: of RSA its SubjectPublicKeyInfo, of Ed25519 its octets (RFC 8463 section 4).
        sign: signs bytes.
    """

    algorithm: str
    bits: int
    public: str
    sign: Callable[[bytes], bytes]


def read(content: bytes) -> SigningKey:
    """Reads a key: PEM in PKCS#8 or PKCS#1, or Ed25519's 32 octets in base64.

    Raises:
        ValueError: it is none, or one that does not sign; it says what would be right.
    """
    private = _in_pem(content) if b"-----BEGIN" in content else _in_base64(content)
    if isinstance(private, RSAPrivateKey):
        return _rsa(private)
    if isinstance(private, Ed25519PrivateKey):
        return _ed25519(private)
    raise ValueError("must be an RSA key or an Ed25519 one")


def _in_pem(content: bytes) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(content, password=None)
    except TypeError:
        raise ValueError("the key is encrypted; must have no password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("no private key; must be PEM in PKCS#8 or PKCS#1, unencrypted") from None


def _in_base64(content: bytes) -> PrivateKeyTypes:
    try:
        octets = base64.b64decode(b"".join(content.split()), validate=True)
    except binascii.Error:
        octets = b""
    if len(octets) != ED25519_OCTETS:
        raise ValueError("no private key; must be PEM, or the 32 octets of an Ed25519 key in base64")
    return Ed25519PrivateKey.from_private_bytes(octets)


def _rsa(private: RSAPrivateKey) -> SigningKey:
    if not FEWEST_BITS <= private.key_size <= MOST_BITS:
        raise ValueError(f"an RSA key of {private.key_size} bits; must have {FEWEST_BITS} to {MOST_BITS}, better 2048")
    public = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    scheme, digest = padding.PKCS1v15(), hashes.SHA256()
    return SigningKey("rsa-sha256", private.key_size, _base64(public), lambda data: private.sign(data, scheme, digest))


def _ed25519(private: Ed25519PrivateKey) -> SigningKey:
    """RFC 8463 section 3: what is signed is the digest."""
    public = private.public_key().public_bytes_raw()
    return SigningKey("ed25519-sha256", 256, _base64(public), lambda data: private.sign(hashlib.sha256(data).digest()))


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()
