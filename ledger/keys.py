"""Ed25519 by one rule, the same on every replica; and the messages that keys sign.

Libraries disagree about edge keys and signatures (a small-order key with S = 0 is accepted by one
and refused by another), and replicas that disagree about one signature differ for ever. So a gate
of our own stands before any library: exactly 64 bytes, S < L, A and R canonical and of no small
order. The library then decides the cofactorless equation of RFC 8032 section 5.1.7 by comparing R
byte for byte; tests/vectors/ed25519.json holds it to that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import TypeAlias

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

Verify: TypeAlias = Callable[[bytes, bytes, bytes], bool]
"""(key, message, signature) -> is it the key's signature of the message."""
Sign: TypeAlias = Callable[[bytes], bytes]
"""message -> signature, 64 bytes."""

KEY_LENGTH = 32
SIGNATURE_LENGTH = 64
KEYS_KEPT_MAX = 8192
"""Keys whose gate is remembered; `key_is_sound.cache_info()` counts."""

# Every message that a ledger key signs starts with its own domain, so that no signature can be
# carried from one meaning to another (the same key also signs the transport's handshake).
TERMS_DOMAIN = b"mesh-ledger/1/terms\0"
ENTRY_DOMAIN = b"mesh-ledger/1/author\0"
USE_DOMAIN = b"mesh-ledger/1/use\0"
KEYOP_DOMAIN = b"mesh-ledger/1/keyop\0"
WITNESS_DOMAIN = b"mesh-ledger/1/witness\0"
LOG_ORIGIN = "mesh-ledger/1/log/"
"""How the text of a checkpoint starts (proof.py), which is signed as it stands."""

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_Y_MASK = 2**255 - 1
_Y8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022
"""y of four of the points of order 8; of the other four it is p - _Y8."""
_SMALL_ORDER_Y = frozenset((0, 1, _P - 1, _Y8, _P - _Y8))


def terms_message(terms: bytes) -> bytes:
    """What the seller signs of encoded *terms*."""
    return TERMS_DOMAIN + sha256(terms).digest()


def use_message(terms: bytes) -> bytes:
    """What the seller signs of encoded USE *terms*: no buyer can settle on how far a run was."""
    return USE_DOMAIN + sha256(terms).digest()


def keyop_message(statement: bytes) -> bytes:
    """What the subject signs of an encoded KEYOP *statement*."""
    return KEYOP_DOMAIN + sha256(statement).digest()


def entry_message(entry_id: bytes) -> bytes:
    """What the author signs of the entry *entry_id*."""
    return ENTRY_DOMAIN + entry_id


def witness_message(position: bytes) -> bytes:
    """What a witness signs of an encoded *position* (quorum.py)."""
    return WITNESS_DOMAIN + position


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether *signature* is *key*'s over *message*. Never raises; thread-safe; frees the GIL."""
    if len(signature) != SIGNATURE_LENGTH or not key_is_sound(key):
        return False
    if int.from_bytes(signature[32:], "little") >= _L or not _is_sound_point(signature[:32]):
        return False
    try:
        crypto_sign_open(signature + message, key)
    except BadSignatureError:
        return False
    return True


@lru_cache(maxsize=KEYS_KEPT_MAX)
def key_is_sound(key: bytes) -> bool:
    """Whether *key* passes the gate: 32 bytes, canonical y, not of small order."""
    return len(key) == KEY_LENGTH and _is_sound_point(key)


def _is_sound_point(data: bytes) -> bool:
    # Each small order y is refused with either sign bit, which covers x = 0 with the sign set too.
    y = int.from_bytes(data, "little") & _Y_MASK
    return y < _P and y not in _SMALL_ORDER_Y
