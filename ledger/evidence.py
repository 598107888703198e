"""What an audit finds, and what it is shown beside entries: proofs, and runs made again. Pure.

Evidence is checked against entries that are at hand and valid; it makes nobody guilty by itself.
A wrong bill can be shown but not proven by bytes: whoever doubts it runs the job again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from attrs import evolve, frozen

from ledger import keys
from ledger.errors import LedgerError
from ledger.keys import Verify
from ledger.model import Entry, Kind, Terms, amount_of, burnt_before
from ledger.proof import is_consistent, is_included
from ledger.quorum import Certificate, Position, Quorum
from ledger.statements import Checkpoint

_KEY = 32
"""Bytes of a key."""


@frozen
class Finding:
    """One thing that was looked at."""

    entry_id: bytes
    """Empty where no single entry is meant."""
    check: str
    """ "encoding", "signatures", "amount", "chain", "totals", "head", "inclusion", "consistency",
    "certificate", "use", "resolution", "heir", "fork", "bill" or "balance" """
    is_good: bool
    detail: str


@frozen
class Inclusion:
    """That an entry is under a HEAD of its author, without the entries between."""

    entry_id: bytes
    head_id: bytes
    path: tuple[bytes, ...]


@frozen
class Consistency:
    """That one HEAD of an author begins what a later one signs: nothing removed nor rewritten."""

    old_id: bytes
    new_id: bytes
    path: tuple[bytes, ...]


@frozen
class Rerun:
    """What came out when the job of a SETTLE or CLAIM was run again: facts for others to check."""

    entry_id: bytes
    job: bytes
    """CID of the manifest that was run."""
    meter: str
    fuel: int
    """From the start of the job: a bill of a moved run tells what was burnt before it."""
    exit: int
    outputs: tuple[bytes, ...]


@frozen
class Witnessed:
    """That a quorum of these witnesses vouches for an entry: worth what the reader thinks of them.

    A HEAD that has one is a witnessed head: its chain was the same for all whom they told of it.
    """

    entry_id: bytes
    members: tuple[bytes, ...]
    """Their keys, rising."""
    votes: tuple[bytes, ...]
    """Key ‖ signature of those that voted, rising."""

    @staticmethod
    def of(quorum: Quorum, certificate: Certificate) -> Witnessed:
        """*certificate*, and the quorum whose it is."""
        votes = tuple(witness + sig for witness, sig in certificate.votes)
        return Witnessed(certificate.position.entry_id, tuple(sorted(quorum.members)), votes)


Evidence: TypeAlias = Inclusion | Consistency | Rerun | Witnessed


def check_evidence(
    evidence: Evidence, valid: Mapping[bytes, Entry], verify: Verify = keys.verify
) -> Finding:
    """What *evidence* shows of the entries in *valid*, by id."""
    match evidence:
        case Inclusion(entry_id):
            return _finding(entry_id, "inclusion", *_included(evidence, valid))
        case Consistency(_, new_id):
            return _finding(new_id, "consistency", *_consistent(evidence, valid))
        case Rerun(entry_id):
            return _finding(entry_id, "bill", *_billed(evidence, valid))
        case Witnessed(entry_id):
            return _finding(entry_id, "certificate", *_certified(evidence, valid, verify))


def heads_of(evidence: Evidence) -> tuple[bytes, ...]:
    """The HEADs that *evidence* leans on, by id."""
    match evidence:
        case Inclusion(_, head_id):
            return (head_id,)
        case Consistency(old_id, new_id):
            return (old_id, new_id)
        case Rerun() | Witnessed():
            return ()


def _finding(entry_id: bytes, check: str, flaw: str, detail: str) -> Finding:
    return Finding(entry_id, check, not flaw, flaw or detail)


def _included(proof: Inclusion, valid: Mapping[bytes, Entry]) -> tuple[str, str]:
    entry, head = valid.get(proof.entry_id), valid.get(proof.head_id)
    if entry is None or head is None or head.content.kind is not Kind.HEAD:
        return "the entry or the HEAD of the proof is not here", ""
    body, above = entry.content, head.content
    if (body.net, body.author) != (above.net, above.author):
        return "the HEAD is another chain's", ""
    root = Checkpoint.decode(above.terms).root
    if not is_included(entry.id, body.seq, above.seq, proof.path, root):
        return f"the proof under HEAD r-{head.id.hex()} does not hold", ""
    return "", f"seq {body.seq} is under HEAD r-{head.id.hex()} of {above.seq} entries"


def _consistent(proof: Consistency, valid: Mapping[bytes, Entry]) -> tuple[str, str]:
    heads = [valid.get(proof.old_id), valid.get(proof.new_id)]
    old, new = (head.content if head else None for head in heads)
    if old is None or new is None or {old.kind, new.kind} != {Kind.HEAD}:
        return "a HEAD of the proof is not here", ""
    if (old.net, old.author) != (new.net, new.author):
        return "the HEADs are of two chains", ""
    roots = (Checkpoint.decode(body.terms).root for body in (old, new))
    if not is_consistent(old.seq, new.seq, proof.path, *roots):
        return f"the {old.seq} entries of the older HEAD do not begin the {new.seq} of this", ""
    return "", f"its {new.seq} entries begin with the {old.seq} of the older HEAD"


def _certified(shown: Witnessed, valid: Mapping[bytes, Entry], verify: Verify) -> tuple[str, str]:
    entry = valid.get(shown.entry_id)
    if entry is None or entry.content.kind is Kind.FORKPROOF:
        return "the entry that is certified is not here, or on no chain", ""
    if list(shown.members) != sorted(shown.members):
        return "the members of the quorum do not rise", ""
    votes = tuple((vote[:_KEY], vote[_KEY:]) for vote in shown.votes)
    try:
        quorum = Quorum.of(shown.members)
        quorum.check(Certificate(Position.of(entry), votes), verify)
    except LedgerError as error:
        return str(error), ""
    what = "a witnessed HEAD" if entry.content.kind is Kind.HEAD else "witnessed"
    return "", f"{what}: by {len(votes)} of {len(shown.members)}, {quorum.needed} are needed"


def _billed(again: Rerun, valid: Mapping[bytes, Entry]) -> tuple[str, str]:
    entry = valid.get(again.entry_id)
    if entry is None or entry.content.kind not in (Kind.SETTLE, Kind.CLAIM):
        return "the bill that was run again is not here", ""
    deal = entry.content.deal
    if (again.job, again.meter) != (deal.job, deal.meter):
        return "another job, or another meter, was run again: it shows nothing of this bill", ""
    told = differences(deal, again)
    if not told:
        return "", f"run again: {again.fuel} fuel, outputs equal"
    ours = max(0, again.fuel - burnt_before(deal))
    again_owed = amount_of(evolve(deal, fuel=ours, exit=again.exit))
    return f"run again: differs in {', '.join(told)}; {again_owed} µcr, not {deal.amount}", ""


def differences(deal: Terms, again: Rerun) -> list[str]:
    """In what *again* differs from the bill: of a moved run, from all parts together."""
    pairs = {
        "fuel": (burnt_before(deal) + deal.fuel, again.fuel),
        "exit": (deal.exit, again.exit),
        "outputs": (deal.outputs, again.outputs),
    }
    return [name for name, (billed, found) in pairs.items() if billed != found]
