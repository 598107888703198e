"""The pool: what of the sold capacity is reserved, by whom; never more than is sold (S6)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from mesh.resources.capacity import NOTHING, Capacity

Key = TypeVar("Key", bound=Hashable)


class Pool(Generic[Key]):
    """Reservations against a fixed capacity."""

    def __init__(self, sold: Capacity) -> None:
        self.sold = sold
        self.reserved = NOTHING
        self._reservations: dict[Key, Capacity] = {}

    @property
    def free(self) -> Capacity:
        return self.sold - self.reserved

    def __contains__(self, key: Key) -> bool:
        return key in self._reservations

    def __len__(self) -> int:
        return len(self._reservations)

    def reserve(self, key: Key, needs: Capacity) -> bool:
        """Set *needs* aside for *key*; False, and nothing changes, when they do not fit."""
        assert key not in self._reservations, key
        if not needs.fits_in(self.free):
            return False
        self._reservations[key] = needs
        self.reserved += needs
        assert self.reserved.fits_in(self.sold)
        return True

    def release(self, key: Key) -> None:
        """Give back what *key* holds; releasing twice changes nothing."""
        needs = self._reservations.pop(key, None)
        if needs is not None:
            self.reserved -= needs
