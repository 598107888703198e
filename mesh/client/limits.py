"""What a task may use and cost: the numbers of a bid for compute."""

from __future__ import annotations

from attrs import frozen

from mesh import units


@frozen
class Limits:
    """Upper bounds, in bytes, milliseconds, thousandths of a core, µcr and units of fuel."""

    cpu_milli: int = 1000
    memory: int = 256 << 20
    disk: int = 64 << 20
    fuel: int = 10_000_000_000
    """Some seconds to a minute of one core."""
    wall_ms: int = 600_000
    deadline_ms: int = 3_600_000
    """From admission on."""
    max_price: int = units.CREDIT
    """The ceiling of the whole bill, fee included."""
    fee: int = 0
    """Paid on top, on success, for going first."""
    priority: int = 0
    features: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        *,
        cpus: str = "1",
        memory: str = "256MiB",
        disk: str = "64MiB",
        fuel: str = "10G",
        wall: str = "10m",
        deadline: str = "1h",
        max_price: str = "1.0000",
        fee: str = "0.0000",
        priority: int = 0,
        features: tuple[str, ...] = (),
    ) -> Limits:
        """Limits as people write them. Raises ValueError."""
        return cls(
            cpu_milli=units.parse_cores(cpus),
            memory=units.parse_size(memory),
            disk=units.parse_size(disk),
            fuel=units.parse_count(fuel),
            wall_ms=units.parse_duration(wall),
            deadline_ms=units.parse_duration(deadline),
            max_price=units.parse_money(max_price),
            fee=units.parse_money(fee),
            priority=priority,
            features=features,
        )
