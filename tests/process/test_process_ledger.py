"""A ledger whose process is killed at any moment keeps every entry that it acknowledged."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from ledger_deals import ALICE, BOB, CAROL, NET, Chain

from ledger.holdings import Total
from ledger.merge import Merger
from ledger.state import Accounts
from ledger.store import Store

DEALS = Path(__file__).parents[1] / "support"
ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("MESH_LEDGER_KILLS", "5"))
FILE_ROUNDS = 20
"""Kills that one file sees: each round looks at all of it."""
# Goes on where the file ends, as a node does after a crash; a line is an acknowledgement.
WRITER = f"""
import sys
from pathlib import Path
sys.path[:0] = {[str(ROOT), str(DEALS)]!r}
from ledger_deals import ALICE, BOB, NET, Chain
from ledger.store import Store
with Store.open(Path(sys.argv[1])) as store:
    chain = Chain(BOB, store.head(BOB.key, NET))
    while True:
        alloc = chain.alloc(ALICE)
        store.append_own([alloc])
        print(alloc.id.hex(), flush=True)
        settle = chain.settle(ALICE, alloc)
        store.append_own([settle])
        print(settle.id.hex(), flush=True)
"""


@pytest.mark.long
def test_no_acknowledged_entry_is_lost_by_kill_9(tmp_path: Path) -> None:
    dice = random.Random(7)
    for number in range(ROUNDS):
        path = tmp_path / f"ledger-{number // FILE_ROUNDS}.sqlite"
        if number % FILE_ROUNDS == 0:
            acknowledged: list[str] = []
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        with writer, writer.stdout:
            some = dice.randrange(1, 60)
            acknowledged += [writer.stdout.readline().strip() for _ in range(some)]
            writer.kill()
            # What was told before the kill and still lies in the pipe counts, whole lines only.
            acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
        with Store.open(path) as store:
            kept = [entry.id.hex() for entry in store.chain(BOB.key)]
            assert set(acknowledged) <= set(kept)
            assert store.scan() == len(kept)
            seqs = [entry.content.seq for entry in store.chain(BOB.key)]
            assert seqs == list(range(len(kept)))
        assert len(acknowledged) > number % FILE_ROUNDS


# Takes in what others sent, in full and at their word by turns, from wherever the file ends.
MERGER = f"""
import sys
from pathlib import Path
sys.path[:0] = {[str(ROOT), str(DEALS)]!r}
from ledger_deals import ALICE, BOB, CAROL, DAVE, NET, WALL_MS, Chain
from ledger.chain import Head
from ledger.merge import Merger
from ledger.store import Store
with Store.open(Path(sys.argv[1])) as store, Merger(store) as merger:
    buyers = (BOB, CAROL, DAVE)
    chains = []
    for buyer in buyers:
        held = store.holding(buyer.key, NET)
        last = store.glance(held.top_id)
        chains.append(Chain(buyer, Head.after(last.entry()) if last else None))
    while True:
        for merge in (merger.merge, merger.merge_cold):
            entries = [chain.alloc(ALICE) for chain in chains for _ in range(5)]
            merge([entry.encode() for entry in entries], WALL_MS)
            print(*(entry.id.hex() for entry in entries), flush=True)
        merger.check(7)
"""


@pytest.mark.long
def test_no_merged_batch_is_lost_or_miscounted_by_kill_9(tmp_path: Path) -> None:
    dice = random.Random(11)
    for number in range(ROUNDS):
        path = tmp_path / f"ledger-{number // FILE_ROUNDS}.sqlite"
        if number % FILE_ROUNDS == 0:
            acknowledged: set[str] = set()
        writer = subprocess.Popen(
            [sys.executable, "-c", MERGER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        with writer, writer.stdout:
            for _ in range(dice.randrange(1, 8)):
                acknowledged.update(writer.stdout.readline().split())
            writer.kill()
            for line in writer.stdout:
                if line.endswith("\n"):
                    acknowledged.update(line.split())
        with Store.open(path) as store:
            assert acknowledged <= {entry_id.hex() for _, entry_id in store.ids()}
            assert store.scan() == store.total().count
            for held in store.holdings():
                assert (held.height, held.forked) == (held.top, False)
                assert held.total.count == held.top
                ids = [g.id for g in store.glances(held.author, held.net, 0, held.top)]
                assert held.total == Total().plus(ids)
    for path in tmp_path.glob("*.sqlite"):
        with Store.open(path) as store, Merger(store) as merger:
            while store.vouched(1):
                assert merger.check(500).refused == 0
            assert len(list(store.entries())) == store.total().count


# Prunes a few deals at a time below each HEAD of the file: a line is what one transaction pruned.
PRUNER = f"""
import sys
from pathlib import Path
sys.path[:0] = {[str(ROOT), str(DEALS)]!r}
from ledger.model import Kind
from ledger.store import Store
with Store.open(Path(sys.argv[1])) as store:
    for head in store.all_of(Kind.HEAD):
        while gone := store.prune(head.id, 3):
            print(gone, flush=True)
"""


def accounts_in(store: Store) -> object:
    accounts = Accounts(NET, store)
    for entry in store.entries():
        accounts.add(entry)
    return accounts.all(), [accounts.exposure(who.key, ALICE.key) for who in (BOB, CAROL)]


@pytest.mark.long
def test_pruning_that_is_killed_leaves_a_sound_store_that_is_pruned_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    dice = random.Random(17)
    heads, kept = [], set()
    with Store.open(path) as store:
        for chain in (Chain(BOB), Chain(CAROL)):
            entries = []
            for _ in range(60):
                alloc = chain.alloc(ALICE)
                entries += [alloc, chain.use(ALICE, alloc), chain.settle(ALICE, alloc)]
            heads.append(chain.checkpoint(entries))
            last = chain.alloc(ALICE)
            store.add([*entries, heads[-1], last])
            kept |= {heads[-1], last}
        whole = accounts_in(store), store.total(), store.ids()
    acknowledged = 0
    for _ in range(ROUNDS):
        pruner = subprocess.Popen(
            [sys.executable, "-c", PRUNER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert pruner.stdout is not None
        with pruner, pruner.stdout:
            lines = [pruner.stdout.readline() for _ in range(dice.randrange(1, 12))]
            pruner.kill()
            lines += [line for line in pruner.stdout if line.endswith("\n")]
        acknowledged += sum(map(int, filter(None, map(str.strip, lines))))
        with Store.open(path) as store:
            assert store.scan() == store.total().count
            assert (accounts_in(store), store.total(), store.ids()) == whole
            assert acknowledged <= store.pruned()
    assert acknowledged >= ROUNDS
    with Store.open(path) as store:
        for head in heads:
            while store.prune(head.id):
                pass
        assert set(store.entries()) == kept
        assert store.scan() == store.total().count
        assert (accounts_in(store), store.total(), store.ids()) == whole


def test_two_processes_on_one_file_cannot_fork_the_chain(tmp_path: Path) -> None:
    """The loser of a race is told, since the link is checked within the transaction."""
    path = tmp_path / "ledger.sqlite"
    with Store.open(path) as store:
        store.append_own([Chain(BOB).alloc(ALICE)])
        late = (
            f"import sys\nsys.path[:0] = {[str(ROOT), str(DEALS)]!r}\n"
            "from pathlib import Path\nfrom ledger_deals import *\n"
            "from ledger.store import Store\nfrom ledger.errors import BrokenChain\n"
            "with Store.open(Path(sys.argv[1])) as store:\n"
            "    try: store.append_own([Chain(BOB).alloc(CAROL)])\n"
            "    except BrokenChain as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", late, str(path)], capture_output=True, text=True, check=True
        )
        assert done.stdout == "seq 0 where 1 follows\n"
        assert store.head(BOB.key, NET).seq == 1
