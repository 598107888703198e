"""States as blocks: what did not change is not read again, and nothing else is read at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attrs import evolve

from mesh.errors import MeshError, PeerError, Unavailable
from mesh.ids import RAW, cid_of
from mesh.migration.snapshot import (
    PIECE,
    REGION,
    Calls,
    Snapshot,
    decode,
    encode_frame,
    encode_head,
    masked,
)
from mesh.runtime.course import Held
from mesh.runtime.manifest import METER
from mesh.storage.blocks import BLOCK_BYTES_MAX, MemoryBlocks
from mesh.storage.states import Saving, lay_out, state_bytes_max
from mesh.storage.unixfs import walk

MEMORY, DISK = 4 * REGION, 1 << 20
SNAPSHOT = Snapshot(
    module=cid_of(RAW, b"module"),
    job=cid_of(RAW, b"job"),
    meter=METER,
    fuel=1,
    size=MEMORY,
    variables=(),
    calls=Calls((), None, 0, 0, 0, False, False, False),
    stack=b"stack",
    stdout=os.urandom(700_000),
    stderr=b"",
    regions={0: (1 << 64) - 1, 1: 0b101, 3: 1 << 63},
)


@pytest.fixture
def held(tmp_path: Path) -> Held:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(MEMORY))
    for name in ("out", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "out" / "result").write_text("so far")
    return held_of(tmp_path, SNAPSHOT, frozenset(range(4)))


def held_of(folder: Path, snapshot: Snapshot, changed: frozenset[int]) -> Held:
    head = encode_head(snapshot)
    return Held(snapshot, head, changed, folder / "image", folder / "out", folder / "tmp")


def test_what_was_saved_is_laid_out_again(held: Held, tmp_path: Path) -> None:
    blocks = MemoryBlocks()
    root = Saving(blocks).save(held)
    state = lay_out(blocks, root, tmp_path / "there", memory=MEMORY, disk=DISK)
    image = held.image.read_bytes()
    snapshot, pages = decode(memoryview(state.snapshot.read_bytes()))
    assert snapshot == SNAPSHOT
    assert list(pages) == [
        (n, mask, masked(image[n * REGION : (n + 1) * REGION], mask))
        for n, mask in SNAPSHOT.regions.items()
    ]
    assert (state.out / "result").read_text() == "so far"
    assert list(state.tmp.iterdir()) == []
    sizes = [len(blocks.get(cid)) for cid in walk(root, blocks.get)]
    assert max(sizes) <= BLOCK_BYTES_MAX
    assert sum(sizes) <= state_bytes_max(MEMORY, DISK)


def test_what_did_not_change_is_not_read_again(held: Held, tmp_path: Path) -> None:
    """The image lies about the regions that it says stayed: nobody looks."""
    blocks = MemoryBlocks()
    saving = Saving(blocks)
    saving.save(held)
    before = set(blocks.cids())
    other = os.urandom(MEMORY)
    held.image.write_bytes(other)
    later = evolve(SNAPSHOT, fuel=2, stdout=b"")
    saving.save(held_of(tmp_path, later, frozenset({1})))
    made = {blocks.get(cid) for cid in set(blocks.cids()) - before}
    frame = encode_frame(masked(other[REGION : 2 * REGION], 0b101))
    assert frame in made
    assert len(made) == 4  # that region, the head, the snapshot, the state


def test_a_state_that_could_not_be_stored_is_read_again(held: Held, tmp_path: Path) -> None:
    blocks = MemoryBlocks(blocks_max=2)
    saving = Saving(blocks)
    with pytest.raises(MeshError, match="full"):
        saving.save(held)
    blocks._blocks_max = 100
    root = saving.save(held)
    state = lay_out(blocks, root, tmp_path / "there", memory=MEMORY, disk=DISK)
    _, pages = decode(memoryview(state.snapshot.read_bytes()))
    assert len(list(pages)) == 3


def test_an_image_that_is_cut_short_or_something_else_is_refused(
    held: Held, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    held.image.rename(secret)
    with pytest.raises(Unavailable, match="No such file"):
        Saving(MemoryBlocks()).save(held)
    held.image.symlink_to(secret)
    with pytest.raises(Unavailable, match="cannot be kept"):
        Saving(MemoryBlocks()).save(held)
    held.image.unlink()
    os.mkfifo(held.image)
    with pytest.raises(Unavailable, match="is no file"):
        Saving(MemoryBlocks()).save(held)
    held.image.unlink()
    held.image.write_bytes(bytes(3 * REGION + PIECE))
    with pytest.raises(PeerError, match="too short"):
        Saving(MemoryBlocks()).save(held)
