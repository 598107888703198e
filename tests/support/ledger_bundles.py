"""Files of entries, sound and hostile: what an auditor in Python and one in JavaScript agree on."""

from __future__ import annotations

import io
import json

from attrs import evolve
from ledger_deals import ALICE, BOB, CAROL, DAVE, Chain, Party, cid
from ledger_witnesses import WITNESSES, certify, quorum_of

from ledger.bundle import export, extract
from ledger.chain import Head
from ledger.evidence import Consistency, Evidence, Inclusion, Rerun, Witnessed
from ledger.keys import entry_message, terms_message
from ledger.model import Body, Entry, Kind
from ledger.proof import Tree
from ledger.statements import Op
from ledger.validity import GENESIS, prove_fork


def lines(items: list[Entry | Evidence]) -> list[bytes]:
    """The file that *items* travel in."""
    file = io.StringIO()
    export(items, file)
    return file.getvalue().encode().splitlines(keepends=True)


def resigned(body: Body, author: Party = BOB) -> Entry:
    """*body* as its author would sign it, whatever it says."""
    return Entry(body.encode(), author.sign(entry_message(body.id)))


def history() -> list[Entry]:
    """BOB's chain with HEADs at 4 and 9, and what ALICE and CAROL have to say."""
    bob, alice, carol = Chain(BOB), Chain(ALICE), Chain(CAROL)
    line = alice.line(BOB, 20_000)
    alloc = bob.alloc(ALICE, arbiter=CAROL.key)
    mine = [alloc, bob.use(ALICE, alloc), bob.use(ALICE, alloc, fuel=2 * 10**9)]
    mine += [bob.settle(ALICE, alloc)]
    mine += [bob.checkpoint(mine)]
    late, other = bob.alloc(ALICE), bob.alloc(ALICE, arbiter=CAROL.key)
    mine += [late, other]
    claim = alice.claim(other)
    mine += [bob.dispute(claim, ALICE), bob.void(ALICE, late)]
    mine += [bob.checkpoint(mine)]
    hers = [line, claim, alice.refund(alloc, 40), alice.keyop(Op.DELEGATE, DAVE)]
    return [*mine, *hers, alice.checkpoint(hers), carol.rule(other, 2000)]


def rerun_of(entry: Entry, **changes: object) -> Rerun:
    deal = entry.content.deal
    again = Rerun(entry.id, deal.job, deal.meter, deal.fuel, deal.exit, deal.outputs)
    return evolve(again, **changes)  # type: ignore[arg-type]


def moved() -> list[Entry]:
    """A run of 7 Gfuel: ALICE gave it back after three, CAROL went on with it."""
    bob = Chain(BOB)
    first = bob.alloc(ALICE)
    state = (cid(b"state"), cid(b""), cid(b""))
    given_back = bob.settle(ALICE, first, fuel=3 * 10**9, exit=253, outputs=state)
    second = bob.alloc(CAROL)
    went = (3 * 10**9, ALICE.key, CAROL.key, state[0])
    ended = bob.settle(CAROL, second, fuel=4 * 10**9, migrations=(went,))
    return [first, given_back, second, ended]


def inflated() -> list[Entry]:
    """A SETTLE of one µcr more than its terms make, signed by both."""
    bob = Chain(BOB)
    alloc = bob.alloc(ALICE)
    body = bob.settle(ALICE, alloc).content
    terms = evolve(body.deal, amount=body.deal.amount + 1).encode()
    signed = evolve(
        body, terms=terms, peer_sig=ALICE.sign(terms_message(terms)), posted=body.posted + 1
    )
    return [alloc, resigned(signed)]


def forked() -> tuple[Entry, Entry]:
    one, other = sorted((Chain(BOB).alloc(ALICE), Chain(BOB).alloc(CAROL)), key=lambda e: e.id)
    return one, other


def wrong_root() -> list[Entry]:
    """A HEAD whose author left an entry of its own out of the tree."""
    bob = Chain(BOB)
    mine = [bob.alloc(ALICE) for _ in range(3)]
    return [*mine, bob.checkpoint(mine[:1] + mine[2:])]


def impatient() -> list[Entry]:
    """A SETTLE of an ALLOC that comes no earlier than itself."""
    bob = Chain(BOB)
    first, later = bob.alloc(ALICE), bob.alloc(ALICE)
    settle = bob.settle(ALICE, later).content
    return [first, later, resigned(evolve(settle, seq=1, prev=first.id))]


def borrowed() -> list[Entry]:
    """A HEAD of CAROL's over what BOB wrote."""
    bob = Chain(BOB)
    mine = [bob.alloc(ALICE), bob.alloc(ALICE)]
    head = bob.checkpoint(mine).content
    return [*mine, resigned(evolve(head, author=CAROL.key), CAROL)]


def witnessed(entry: Entry, members: int = 4) -> Witnessed:
    """What the fewest witnesses of so many say of *entry*."""
    quorum = quorum_of(members)
    certificate = certify(quorum, entry, WITNESSES[: quorum.needed])
    assert certificate is not None
    return Witnessed.of(quorum, certificate)


def certificates(entries: list[Entry]) -> dict[str, tuple[list[bytes], set[str]]]:
    """Files with certificates in them: of *entries*, the fifth of which is a HEAD."""
    head, other = entries[4], entries[3]
    good, late = witnessed(head), Chain(ALICE)
    for _ in range(300):
        last = late.line(BOB, 1)
    proof = prove_fork(*forked())
    assert proof is not None
    reversed_members, reversed_votes = good.members[::-1], good.votes[::-1]
    stranger = ALICE.key + good.votes[0][32:]
    weak = (1).to_bytes(32, "little")
    wrong = {
        "too few votes": evolve(good, votes=good.votes[1:]),
        "one vote twice": evolve(good, votes=(good.votes[0], *good.votes[:2])),
        "votes in another order": evolve(good, votes=reversed_votes),
        "members in another order": evolve(good, members=reversed_members),
        "a member twice": evolve(good, members=(good.members[0], *good.members)),
        "no members": evolve(good, members=(), votes=()),
        "a member with a weak key": evolve(good, members=(weak, *good.members)),
        "a stranger's vote": evolve(good, votes=tuple(sorted((*good.votes, stranger)))),
        "votes for another entry": evolve(good, entry_id=other.id),
        "votes for one that is not here": witnessed(Chain(CAROL).alloc(ALICE)),
        "a forged vote": evolve(good, votes=(*good.votes[:2], good.votes[2][:95] + b"\0")),
        "another quorum": evolve(witnessed(head, 7), votes=good.votes),
    }
    return {
        "witnessed": (lines([*entries, good, witnessed(other, 1), witnessed(other, 10)]), set()),
        "witnessed far up": (lines([last, witnessed(last, 7)]), {"chain"}),
        **{name: (lines([*entries, item]), {"certificate"}) for name, item in wrong.items()},
        "a certified proof of a fork": (
            lines([proof, evolve(good, entry_id=proof.id)]),
            {"fork", "certificate"},
        ),
        "no list of votes": (
            [*lines([other]), b'{"certificate": {"entry_id": "", "members": [], "votes": 1}}\n'],
            {"encoding", "chain", "resolution"},
        ),
    }


def bundles() -> dict[str, tuple[list[bytes], set[str]]]:
    """By name: the lines of a file, and the checks that find something not good in it."""
    return histories() | journeys() | certificates(history()) | successions()


def journeys() -> dict[str, tuple[list[bytes], set[str]]]:
    """Files of a run that moved, and of runs again of its last part."""
    entries = moved()
    return {
        "moved": (lines([*entries, rerun_of(entries[3], fuel=7 * 10**9)]), set()),
        "moved, the last part run as the whole": (
            lines([*entries, rerun_of(entries[3])]),
            {"bill"},
        ),
    }


def successions() -> dict[str, tuple[list[bytes], set[str]]]:
    """Files in which a key was rotated, by its rules and not."""
    bob, foreign = Chain(BOB), Chain(BOB, net=b"othernet")
    alloc = bob.alloc(ALICE)
    before = [alloc, bob.settle(ALICE, alloc), bob.keyop(Op.DELEGATE, DAVE)]
    rotate = bob.keyop(Op.ROTATE, DAVE)
    dave = Chain(DAVE, Head.heir(rotate))
    heirs = [dave.alloc(ALICE)]
    heirs += [dave.settle(ALICE, heirs[0])]
    heirs += [dave.checkpoint(heirs)]
    first = heirs[0].content
    elsewhere, to_carol = foreign.keyop(Op.ROTATE, DAVE), Chain(BOB).keyop(Op.ROTATE, CAROL)

    def begun(**changes: object) -> list[Entry]:
        return [*before, rotate, resigned(evolve(first, **changes), DAVE)]  # type: ignore[arg-type]

    files: dict[str, tuple[list[Entry], set[str]]] = {
        "rotated": ([*before, rotate, *heirs], set()),
        "rotated, the ROTATE left out": ([*before, *heirs], {"chain"}),
        "rotated, begun at zeros": (begun(prev=GENESIS), set()),
        "an heir of nobody": (begun(prev=before[2].id), {"chain"}),
        "an heir of another's heir": (
            [to_carol, resigned(evolve(first, prev=to_carol.id), DAVE)],
            {"chain"},
        ),
        "an heir on another network": (
            [elsewhere, resigned(evolve(first, prev=elsewhere.id), DAVE)],
            {"chain"},
        ),
        "an heir in the middle": (begun(seq=4), {"chain"}),
        "an heir before its ROTATE": (begun(hlc=rotate.content.hlc), {"chain"}),
        "an heir to the totals": (begun(posted=3540), {"totals"}),
        "two heirs": ([*before, rotate, bob.fork().keyop(Op.ROTATE, CAROL), *heirs], {"heir"}),
        "one heir twice": ([*before, rotate, bob.fork().keyop(Op.ROTATE, DAVE), *heirs], set()),
    }
    return {name: (lines([*entries]), wrong) for name, (entries, wrong) in files.items()}


def histories() -> dict[str, tuple[list[bytes], set[str]]]:
    """Files of what BOB, ALICE and CAROL did, and of what they had better not done."""
    all_of_it = history()
    settle = all_of_it[3]
    heads = [entry for entry in all_of_it[:10] if entry.content.kind is Kind.HEAD]
    part = list(extract(all_of_it, {all_of_it[n].id for n in (0, 3, 5, 8)}))
    tree = Tree(entry.id for entry in all_of_it[:10])
    one, other = forked()
    proof = prove_fork(one, other)
    assert proof is not None
    path = tree.inclusion(3, 4)
    told = json.loads(lines([settle])[0]) | {"amount": 1}
    stale = resigned(evolve(all_of_it[1].content, hlc=1))
    lie = resigned(evolve(settle.content, posted=1))
    falling = Chain(BOB)
    first = falling.alloc(ALICE)
    uses = [falling.use(ALICE, first, fuel=n * 10**9) for n in (2, 1)]
    return {
        "whole": (lines([*all_of_it]), set()),
        "extract": (lines([*part]), set()),
        "rerun, equal": (lines([*all_of_it, rerun_of(settle)]), set()),
        "consistent": (
            lines([*heads, Consistency(heads[0].id, heads[1].id, tree.consistency(4, 9))]),
            set(),
        ),
        "forged signature": (
            lines([*all_of_it[:3], Entry(settle.body, bytes(64))]),
            {"signatures"},
        ),
        "seller's signature of other terms": (
            lines([resigned(evolve(one.content, peer_sig=ALICE.sign(b"")))]),
            {"signatures"},
        ),
        "inflated bill": (lines([*inflated()]), {"amount"}),
        "wrong bill": (lines([*all_of_it, rerun_of(settle, fuel=1)]), {"bill"}),
        "wrong outputs": (lines([*all_of_it, rerun_of(settle, outputs=(cid(b"x"),))]), {"bill"}),
        "wrong exit": (lines([*all_of_it, rerun_of(settle, exit=1)]), {"bill"}),
        "another meter": (lines([*all_of_it, rerun_of(settle, meter="x/1")]), {"bill"}),
        "bill that is not here": (lines([one, rerun_of(settle)]), {"bill"}),
        "removed entry": (lines(all_of_it[:2] + all_of_it[3:]), {"chain"}),
        "removed start": (lines([*all_of_it[1:10]]), {"chain", "totals", "resolution"}),
        "HEAD over another's chain": (lines([*borrowed()]), {"chain"}),
        "removed from the tree": (lines([*wrong_root()]), {"head"}),
        "proof of another leaf": (
            lines([*heads, settle, Inclusion(settle.id, heads[0].id, path[::-1])]),
            {"inclusion", "chain", "resolution"},
        ),
        "proof under another's HEAD": (
            lines([*all_of_it, Inclusion(settle.id, all_of_it[14].id, path)]),
            {"inclusion"},
        ),
        "proof without its HEAD": (
            lines([*all_of_it, Inclusion(settle.id, bytes(32), path)]),
            {"inclusion"},
        ),
        "inconsistent": (
            lines([*all_of_it, Consistency(heads[0].id, heads[1].id, tree.consistency(3, 9))]),
            {"consistency"},
        ),
        "backwards": (
            lines([*all_of_it, Consistency(heads[1].id, heads[0].id, tree.consistency(4, 9))]),
            {"consistency"},
        ),
        "fork": (lines([one, other]), {"fork"}),
        "a SETTLE before its ALLOC": (
            lines([*impatient()]),
            {"fork", "totals", "resolution"},
        ),
        "fork proof": (lines([proof]), {"fork"}),
        "forged fork proof": (lines([evolve(proof, sig=BOB.sign(b""))]), {"signatures"}),
        "clock": (lines([all_of_it[0], stale]), {"chain"}),
        "totals": (lines([*all_of_it[:3], lie]), {"totals"}),
        "use that falls": (lines([first, *uses]), {"use"}),
        "lying field": ([*lines([*all_of_it[:3]]), json.dumps(told).encode()], {"encoding"}),
        "no JSON": ([*lines([one]), b"{\n"], {"encoding"}),
        "no raw": ([*lines([one]), b"{}\n"], {"encoding"}),
        "bad base64": ([*lines([one]), b'{"raw": "*"}\n'], {"encoding"}),
        "bad entry": ([*lines([one]), b'{"raw": "wA"}\n'], {"encoding"}),
        "bad evidence": ([*lines([one]), b'{"inclusion": {"entry_id": "00"}}\n'], {"encoding"}),
    }
