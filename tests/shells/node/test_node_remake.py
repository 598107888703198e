"""Auditors make instrumented modules again: the same, another, or why that cannot be told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from ledger_deals import ALICE, BOB, CAROL, Party
from nacl.signing import SigningKey
from node_hands import WITNESS, Hands, Library, open_peer, work_in
from test_node_auditor import bad, billed, found_by, open_auditor

from mesh.api.door import AuditRequest, Finding
from mesh.auditor import Auditor
from mesh.errors import Refused
from mesh.ids import PeerId, format_cid
from mesh.runtime.binary import CUSTOM, read_sections, write_sections
from mesh.runtime.instrument import VARIABLE, check_tested, find_binaryen, version_of
from mesh.runtime.origin import Origin, add_origin
from mesh.runtime.rewrite import Policy
from mesh.storage.blocks import MemoryBlocks
from mesh.storage.files import add_bytes
from mesh.storage.unixfs import import_file

GUESTS = Path(__file__).parents[2] / "guests"
PLAIN, MOVABLE = ((GUESTS / name).read_bytes() for name in ("hostile.wasm", "hostile.movable.wasm"))
BARE = write_sections(s for s in read_sections(MOVABLE) if s.number != CUSTOM)
NAME = "mesh-5/binaryen-116"


def cid_of_file(data: bytes) -> Origin:
    """An origin that names *data* as the source."""
    return Origin(import_file([data], lambda cid, block: None).cid, NAME, Policy.OUTER)


@pytest.fixture
def binaryen(tmp_path: Path) -> None:
    try:
        check_tested(version_of(find_binaryen(tmp_path)))
    except Refused as refusal:
        pytest.skip(refusal.reason)


@asynccontextmanager
async def auditing(folder: Path, module: bytes) -> AsyncIterator[tuple[Auditor, Hands]]:
    """A bill for a run of *module* is in the ledger, and right."""
    async with open_auditor(folder, PeerId(CAROL.key)) as (auditor, hands):
        work = work_in(hands.blocks, module, args=("exit", "0"))
        result = await hands.workshop.execute(work, None, "first", lambda _: None)
        hands.ledger.add(billed(BOB, ALICE, work, result))
        yield auditor, hands


async def findings(auditor: Auditor) -> tuple[list[Finding], set[str]]:
    """What was found of modules, and which checks are bad."""
    found = await found_by(auditor, AuditRequest(rerun=True, others=True))
    assert [each.is_good for each in found if each.check == "rerun"] == [True]
    return [each for each in found if each.check == "module"], bad(found)


@pytest.mark.slow
async def test_a_module_that_is_what_it_says_is_made_again(tmp_path: Path, binaryen: None) -> None:
    async with auditing(tmp_path, MOVABLE) as (auditor, hands):
        source = add_bytes(hands.blocks, PLAIN).cid
        (found,), wrong = await findings(auditor)
    assert (found.is_good, found.is_note, wrong) == (True, False, set())
    assert found.detail == f"the module is {format_cid(source)} by {NAME} (outer), made again"


@pytest.mark.slow
@pytest.mark.parametrize("policy", Policy)
async def test_a_module_that_is_not_what_it_says_is_noted_and_its_bill_stands(
    tmp_path: Path, binaryen: None, policy: Policy
) -> None:
    """Its buyer made it and chose to run it: no seller has earned a FAIL by that."""
    source = WITNESS.read_bytes() if policy is Policy.OUTER else PLAIN
    lie = Origin(cid_of_file(source).source, NAME, policy)
    async with auditing(tmp_path, add_origin(BARE, lie)) as (auditor, hands):
        add_bytes(hands.blocks, source)
        (found,), wrong = await findings(auditor)
    assert (found.is_good, found.is_skipped, found.is_note, wrong) == (False, False, True, set())
    assert "the module is not what it says" in found.detail
    assert "The bill stands" in found.detail


@pytest.mark.slow
async def test_the_source_is_fetched_from_the_buyer(tmp_path: Path, binaryen: None) -> None:
    library = Library(MemoryBlocks())
    library.is_open.set()
    real = Party(SigningKey(bytes([2]) * 32))
    async with open_auditor(tmp_path, PeerId(CAROL.key)) as (auditor, hands):
        work = work_in(hands.blocks, MOVABLE, args=("exit", "0"))
        result = await hands.workshop.execute(work, None, "first", lambda _: None)
        add_bytes(library.blocks, PLAIN)
        async with open_peer(2, library.serve) as buyer:
            await hands.network.connect(buyer.addresses()[0])
            hands.ledger.add(billed(real, ALICE, work, result))
            (found,), _ = await findings(auditor)
    assert (found.is_good, library.asked.is_set()) == (True, True), found.detail


@pytest.mark.slow
async def test_a_source_out_of_reach_leaves_the_question_open(
    tmp_path: Path, binaryen: None
) -> None:
    async with auditing(tmp_path, MOVABLE) as (auditor, _):
        (found,), wrong = await findings(auditor)
    assert (found.is_skipped, wrong) == (True, set())
    assert "could not be made again" in found.detail


@pytest.mark.slow
async def test_a_source_that_cannot_be_instrumented_leaves_it_open_too(
    tmp_path: Path, binaryen: None
) -> None:
    async with auditing(tmp_path, add_origin(BARE, cid_of_file(b"text"))) as (auditor, hands):
        add_bytes(hands.blocks, b"text")
        (found,), _ = await findings(auditor)
    assert (found.is_skipped, "could not be made again" in found.detail) == (True, True)


@pytest.mark.slow
async def test_without_binaryen_the_auditor_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with auditing(tmp_path, MOVABLE) as (auditor, hands):
        add_bytes(hands.blocks, PLAIN)
        monkeypatch.delenv(VARIABLE, raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        (found,), wrong = await findings(auditor)
    assert (found.is_good, found.is_skipped, wrong) == (False, True, set())
    assert "could not be made again: this machine has no Binaryen" in found.detail


@pytest.mark.slow
async def test_another_instrumenters_module_is_not_judged_by_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "wasm-opt"
    program.write_text("#!/bin/sh\necho wasm-opt version 116\n")
    program.chmod(0o755)
    other = Origin(cid_of_file(PLAIN).source, "mesh-5/binaryen-999", Policy.OUTER)
    async with auditing(tmp_path, add_origin(BARE, other)) as (auditor, _):
        monkeypatch.setenv(VARIABLE, str(program))
        (found,), _ = await findings(auditor)
    assert found.is_skipped
    assert found.detail == f"its module was made by mesh-5/binaryen-999, and here is {NAME}"


@pytest.mark.slow
async def test_a_module_that_says_nothing_of_its_origin_is_told_as_such(tmp_path: Path) -> None:
    async with auditing(tmp_path, BARE) as (auditor, _):
        (found,), _ = await findings(auditor)
    assert found.is_skipped
    assert found.detail == "its module can be moved, and it does not say what it was made of"


@pytest.mark.slow
async def test_of_a_module_as_its_author_made_it_nothing_is_said(tmp_path: Path) -> None:
    said = add_origin(PLAIN, cid_of_file(PLAIN))  # nobody instrumented it, whatever it says
    async with auditing(tmp_path, said) as (auditor, _):
        found, _ = await findings(auditor)
    assert found == []
