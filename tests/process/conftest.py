"""A mesh for each test, or one for a whole file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from process_nodes import Mesh, open_mesh


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """No node yet: `mesh.start` starts some."""
    with open_mesh() as nodes:
        yield nodes
