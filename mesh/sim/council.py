"""The witnesses of a simulated mesh (T2): honest, with their books in memory, some of them mute.

The promise that liars among them cannot break is tested where they are defined
(tests/properties); here nodes learn to live with a quorum that is slow, or not there for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from ledger.model import Entry, Kind
from ledger.quorum import Position, Quorum, Tally
from ledger.witness import RUN_MAX, Ballot, Behind, Voted, Witness
from mesh.sim.keyring import Keyring

FIRST = 1_000
"""The number of the first witness's key: far above those of nodes."""
_TRIES_MAX = 64
"""Questions to one witness for one vote; each brings it `RUN_MAX` entries forward."""


class MemoryBook:
    """A `ledger.witness.Book` that no crash can take."""

    def __init__(self) -> None:
        self._ballots: dict[tuple[bytes, bytes], Ballot] = {}
        self._places: dict[tuple[bytes, bytes, int], Entry] = {}
        self._entries: dict[bytes, Entry] = {}
        self._closed: set[bytes] = set()

    def ballot(self, author: bytes, net: bytes) -> Ballot | None:
        return self._ballots.get((author, net))

    def voted(self, author: bytes, net: bytes, seq: int) -> Entry | None:
        return self._places.get((author, net, seq))

    def entry(self, entry_id: bytes) -> Entry | None:
        return self._entries.get(entry_id)

    def is_closed(self, alloc_id: bytes) -> bool:
        return alloc_id in self._closed

    def record(self, ballot: Ballot, entries: Sequence[Entry]) -> None:
        self._ballots[ballot.author, ballot.net] = ballot
        for entry in entries:
            body = entry.content
            self._entries[entry.id] = entry
            self._places[body.author, body.net, body.seq] = entry
            if body.kind in (Kind.SETTLE, Kind.VOID):
                self._closed.add(body.ref)


class Council:
    """All witnesses. *mute* is the share of them that does not answer one question."""

    def __init__(self, keyring: Keyring, witnesses: int, mute: float, rng: Random) -> None:
        identities = [keyring.create(FIRST + number) for number in range(witnesses)]
        self.members = tuple(identity.peer for identity in identities)
        self._verify = keyring.verify
        self._mute = mute
        self._rng = rng
        self._witnesses = [
            Witness(identity.peer, identity.sign, MemoryBook(), verify=keyring.verify)
            for identity in identities
        ]

    def certify(self, chain: Sequence[bytes], entry: Entry) -> tuple[bytes, str]:
        """The certificate of *entry*, which is on *chain*, encoded; or why there is none."""
        why = "no witness answers"
        tally = Tally(Quorum.of(self.members), Position.of(entry), self._verify)
        run = chain[: entry.content.seq + 1]
        for witness in self._witnesses:
            if self._rng.random() < self._mute:
                continue
            match answer := _ask(witness, run):
                case Voted(vote):
                    if certificate := tally.add(vote):
                        return certificate.encode(), ""
                    why = "too few witnesses answer"
                case _:
                    why = str(answer)
        return b"", why


def _ask(witness: Witness, run: Sequence[bytes]) -> object:
    """The last answer of *witness*, which is led from where it is to the end of *run*."""
    start = max(0, len(run) - RUN_MAX)
    for _ in range(_TRIES_MAX):
        answer = witness.ask(run[start : start + RUN_MAX])
        match answer:
            case Behind(seq=seq):
                start = seq
            case Voted(vote) if vote.position.seq < len(run) - 1:
                start = vote.position.seq + 1
            case _:
                return answer
    return "it never gets there"
