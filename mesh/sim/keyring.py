"""Fast stand-ins for Ed25519: keyed hashes, and one keyring that knows every secret.

Only the keyring can make a signature, and it hands each node nothing but its own `sign`; so a liar
can replay and garble signatures but not forge them, as with real keys.
"""

from __future__ import annotations

from hashlib import blake2b

from mesh.ids import PeerId
from mesh.sansio import Identity


class Keyring:
    """The keys of one world."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._secrets: dict[bytes, bytes] = {}

    def create(self, index: int) -> Identity:
        """The identity of node *index*."""
        secret = blake2b(f"{self._seed}/{index}".encode(), digest_size=32).digest()
        peer = PeerId(blake2b(secret, digest_size=32, person=b"mesh/sim/peer").digest())
        self._secrets[peer] = secret
        return Identity(
            peer=peer,
            sign=lambda message: blake2b(message, key=secret).digest(),
            verify=self.verify,
        )

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        """Whether *signature* over *message* was made by the owner of *key*."""
        secret = self._secrets.get(key)
        return secret is not None and blake2b(message, key=secret).digest() == signature
