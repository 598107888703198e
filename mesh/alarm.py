"""The alarm: how a part of the node that keeps errors to itself ends the node by one."""

from __future__ import annotations

import trio
from attrs import define, field

from mesh.errors import MeshError


@define(eq=False)
class Alarm:
    """Rung by whoever found the error; the node waits for it."""

    error: MeshError | None = None
    _rung: trio.Event = field(factory=trio.Event)

    def ring(self, error: MeshError) -> None:
        """The first error counts."""
        self.error = self.error or error
        self._rung.set()

    async def heard(self) -> None:
        """Raise what it was rung for."""
        await self._rung.wait()
        assert self.error is not None
        raise self.error
