"""One rule for keys and signatures, whatever library lies below."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from ledger_deals import ALICE

from ledger import keys
from ledger.keys import entry_message, key_is_sound, terms_message, verify

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "ed25519.json").read_text())


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_every_vector_gets_its_verdict(vector: dict[str, str]) -> None:
    key, message, signature = (
        bytes.fromhex(vector[name]) for name in ("key", "message", "signature")
    )
    assert verify(key, message, signature) is vector["valid"]


def test_both_verdicts_are_among_the_vectors() -> None:
    assert len(VECTORS) >= 40
    assert sum(vector["valid"] for vector in VECTORS) == 4


def test_a_signature_of_another_library_is_accepted() -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    key = private.public_key().public_bytes_raw()
    assert verify(key, b"message", private.sign(b"message"))


def test_every_bit_of_a_signature_counts() -> None:
    signature = ALICE.sign(b"message")
    for bit in range(512):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not verify(ALICE.key, b"message", bytes(flipped))


def test_a_signature_of_terms_is_none_of_an_entry() -> None:
    digest = bytes(32)
    assert terms_message(digest) != entry_message(digest)
    assert not keys.TERMS_DOMAIN.startswith(keys.ENTRY_DOMAIN)
    assert not keys.ENTRY_DOMAIN.startswith(keys.TERMS_DOMAIN)
    assert not verify(ALICE.key, entry_message(digest), ALICE.sign(terms_message(digest)))


def test_the_messages_are_fixed() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert terms_message(b"") == b"mesh-ledger/1/terms\0" + bytes.fromhex(empty)
    assert entry_message(b"id") == b"mesh-ledger/1/author\0id"


def test_the_memory_of_keys_is_bounded() -> None:
    for number in range(keys.KEYS_KEPT_MAX + 10):
        key_is_sound(number.to_bytes(32, "little"))
    assert key_is_sound.cache_info().currsize == keys.KEYS_KEPT_MAX
