"""The auditor's copy: `ledger/` alone, with attrs, msgpack, msgspec and PyNaCl and nothing else.

Nothing of mesh can be imported there, nor anything else that this environment happens to have.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve
from ledger_bundles import history, inflated, lines, rerun_of, resigned
from ledger_deals import ALICE, BOB, CAROL, Chain

from ledger.model import Entry
from ledger.store import Store

ROOT = Path(__file__).parents[2]
NEEDED = ("attr", "attrs", "msgpack", "msgspec", "nacl", "cffi", "_cffi_backend", "pycparser")
"""What the three packages consist of."""
GOOD, BAD = 0, 6


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ledger and what it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(
        ROOT / "ledger", folder / "ledger", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        there = Path(spec.origin)
        there = there.parent if there.name == "__init__.py" else there
        (folder / there.name).symlink_to(there)
    return folder


def run(alone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m ledger`, isolated: no site packages, no environment, no current folder."""
    program = (
        f"import runpy, sys\nsys.path.insert(0, {str(alone)!r})\n"
        f"sys.argv = ['ledger', *{arguments!r}]\n"
        "try:\n    import mesh\nexcept ImportError:\n    pass\n"
        "else:\n    sys.exit('mesh is here')\n"
        "runpy.run_module('ledger', run_name='__main__')\n"
    )
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        cwd=alone,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )


def verified(alone: Path, tmp_path: Path, items: list[bytes]) -> tuple[int, list[str]]:
    """The exit code, and what is not good."""
    path = tmp_path / "bundle.jsonl"
    path.write_bytes(b"".join(items))
    done = run(alone, "verify", str(path))
    assert done.stderr == ""
    return done.returncode, [line for line in done.stdout.splitlines() if line.startswith("BAD")]


def test_an_exported_bundle_verifies(alone: Path, tmp_path: Path) -> None:
    items = lines([*history(), rerun_of(history()[3])])
    assert verified(alone, tmp_path, items) == (GOOD, [])


def forged() -> tuple[list[bytes], str, str]:
    """A SETTLE that its buyer never signed."""
    entries = history()
    forgery = evolve(entries[3], sig=CAROL.sign(entries[3].id))
    return lines([*entries[:3], forgery]), "signatures", forgery.id.hex()


def forked() -> tuple[list[bytes], str, str]:
    """A second entry for the place of the first."""
    twin = Chain(BOB).alloc(CAROL)
    return lines([*history(), twin]), "fork", twin.id.hex()


def removed() -> tuple[list[bytes], str, str]:
    """One entry in the middle is gone: the one after it tells."""
    entries = history()
    del entries[5]
    return lines([*entries]), "chain", entries[5].id.hex()


def raised() -> tuple[list[bytes], str, str]:
    """One µcr more than the terms make, signed by both."""
    entries = inflated()
    return lines([*entries]), "amount", entries[1].id.hex()


def overbilled() -> tuple[list[bytes], str, str]:
    """A bill of more fuel than a run again took: sound by its bytes, named by the evidence."""
    settle = history()[3]
    fuel = settle.content.deal.fuel - 1
    return lines([*history(), rerun_of(settle, fuel=fuel)]), "bill", settle.id.hex()


def lying_totals() -> tuple[list[bytes], str, str]:
    """A buyer that says that it owes less than it does."""
    entries = history()
    lie = resigned(evolve(entries[3].content, posted=1))
    return lines([*entries[:3], lie]), "totals", lie.id.hex()


@pytest.mark.parametrize(
    "fraud", [forged, forked, removed, raised, overbilled, lying_totals], ids=lambda it: it.__name__
)
def test_each_fraud_is_named_with_the_entry(
    alone: Path, tmp_path: Path, fraud: Callable[[], tuple[list[bytes], str, str]]
) -> None:
    items, check, entry_id = fraud()
    code, bad = verified(alone, tmp_path, items)
    assert code == BAD
    assert any(line.split()[1] == check and entry_id in line for line in bad), bad


def test_the_file_of_a_node_is_checked_too(alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    bob = Chain(BOB)
    entries: list[Entry] = [bob.alloc(ALICE) for _ in range(3)]
    with Store.open(path) as store:
        store.append_own(entries)
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert run(alone, "fsck", str(path)).stdout == "3 entries, 0 problems\n"
    data = path.read_bytes()
    place = data.index(entries[1].body) + 100
    path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
    done = run(alone, "fsck", str(path))
    assert (done.returncode, f"r-{entries[1].id.hex()}" in done.stdout) == (BAD, True)
