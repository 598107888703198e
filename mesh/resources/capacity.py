"""Capacity: what a node sells and what a task needs, as a vector that adds and compares."""

from __future__ import annotations

from attrs import frozen


@frozen
class Capacity:
    """A vector of resources. Never negative: subtracting too much is a broken invariant."""

    cpu_milli: int = 0
    """Thousandths of a core."""
    memory: int = 0
    """Bytes of RAM."""
    disk: int = 0
    """Bytes of scratch disk."""
    slots: int = 0
    """Tasks at a time."""

    def __attrs_post_init__(self) -> None:
        assert min(self.cpu_milli, self.memory, self.disk, self.slots) >= 0, self

    def __add__(self, other: Capacity) -> Capacity:
        return Capacity(
            self.cpu_milli + other.cpu_milli,
            self.memory + other.memory,
            self.disk + other.disk,
            self.slots + other.slots,
        )

    def __sub__(self, other: Capacity) -> Capacity:
        return Capacity(
            self.cpu_milli - other.cpu_milli,
            self.memory - other.memory,
            self.disk - other.disk,
            self.slots - other.slots,
        )

    def minus(self, other: Capacity) -> Capacity:
        """What is left after *other*, nothing below zero: for estimates, not for reservations."""
        return Capacity(
            max(0, self.cpu_milli - other.cpu_milli),
            max(0, self.memory - other.memory),
            max(0, self.disk - other.disk),
            max(0, self.slots - other.slots),
        )

    def fits_in(self, other: Capacity) -> bool:
        """Whether every component is at most that of *other*."""
        return self.shortage_in(other) == ""

    def shortage_in(self, other: Capacity) -> str:
        """The name of the first resource that *other* has too little of, or the empty string."""
        if self.slots > other.slots:
            return "slots"
        if self.cpu_milli > other.cpu_milli:
            return "cpu"
        if self.memory > other.memory:
            return "memory"
        if self.disk > other.disk:
            return "disk"
        return ""


NOTHING = Capacity()
