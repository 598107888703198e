"""A witness whose process is killed at any moment never votes for two entries at one place."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from ledger_deals import BOB
from ledger_witnesses import WITNESSES

from ledger.quorum import Vote
from ledger.votes import VoteBook

DEALS = Path(__file__).parents[1] / "support"
ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("MESH_LEDGER_KILLS", "5"))
# Each run shows the witness another arm of BOB's chain, from wherever its book ends: at every place
# it is tempted to vote once more. A line is a vote that somebody has seen.
VOTER = f"""
import sys
from pathlib import Path
sys.path[:0] = {[str(ROOT), str(DEALS)]!r}
from ledger_deals import ALICE, BOB, NET, Chain
from ledger_witnesses import WITNESSES, ask, witness_of
from ledger.chain import Head
from ledger.votes import VoteBook
with VoteBook.open(Path(sys.argv[1]), WITNESSES[0].key) as book:
    witness = witness_of(WITNESSES[0], book)
    held = book.ballot(BOB.key, NET)
    chain = Chain(BOB, Head.after(held.last) if held else None)
    while True:
        answer = ask(witness, chain.alloc(ALICE, price=int(sys.argv[2])))
        print(answer.vote.encode().hex(), flush=True)
"""


@pytest.mark.long
def test_kill_9_never_makes_a_witness_vote_twice_for_one_place(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    dice = random.Random(13)
    seen: dict[int, bytes] = {}
    for arm in range(ROUNDS):
        voter = subprocess.Popen(
            [sys.executable, "-c", VOTER, str(path), str(arm)], stdout=subprocess.PIPE, text=True
        )
        assert voter.stdout is not None
        with voter, voter.stdout:
            lines = [voter.stdout.readline() for _ in range(dice.randrange(1, 60))]
            voter.kill()
            # What was told before the kill and still lies in the pipe counts, whole lines only.
            lines += [line for line in voter.stdout if line.endswith("\n")]
        for vote in (Vote.decode(bytes.fromhex(line)) for line in lines):
            assert vote.is_signed()
            assert seen.setdefault(vote.position.seq, vote.position.entry_id) == (
                vote.position.entry_id
            )
        with VoteBook.open(path, WITNESSES[0].key) as book:
            for seq, entry_id in seen.items():
                held = book.voted(BOB.key, vote.position.net, seq)
                assert held is not None
                assert held.id == entry_id
    assert len(seen) >= ROUNDS
