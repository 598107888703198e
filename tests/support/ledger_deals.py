"""Parties with fixed keys and the deals they strike: what the ledger's tests are made of."""

from __future__ import annotations

from hashlib import sha256

from attrs import evolve, frozen
from nacl.signing import SigningKey

from ledger import chain
from ledger.keys import keyop_message, terms_message, use_message
from ledger.model import Entry, Terms, accrued, amount_of, reserve_of
from ledger.proof import Tree
from ledger.statements import Dispute, KeyOp, Op, Refund

NET = b"testnet1"
WALL_MS = 1_790_000_000_000


def cid(content: bytes) -> bytes:
    return b"\x01\x55\x12\x20" + sha256(content).digest()


@frozen
class Party:
    """Somebody with a key."""

    secret: SigningKey

    @staticmethod
    def named(name: str) -> Party:
        return Party(SigningKey(sha256(name.encode()).digest()))

    @property
    def key(self) -> bytes:
        return bytes(self.secret.verify_key)

    def sign(self, message: bytes) -> bytes:
        return self.secret.sign(message).signature


ALICE, BOB, CAROL, DAVE = map(Party.named, ("alice", "bob", "carol", "dave"))


def alloc_terms(seller: Party, buyer: Party, **changes: object) -> Terms:
    """What *seller* bids: 10^10 fuel at 500 µcr per 10^9, 40 µcr on success."""
    price, fuel, fee = 500, 10 * 10**9, 40
    terms = Terms(
        nonce=b"a task of 16 byt",
        fence=1,
        seller=seller.key,
        buyer=buyer.key,
        job=cid(b"manifest"),
        module=cid(b"module"),
        inputs=(cid(b"input"),),
        outputs=(),
        meter="wasmtime-50.0.1/fuel",
        price=price,
        fee=fee,
        reserve=reserve_of(price, fuel, fee),
        fuel=fuel,
        amount=0,
        exit=0,
        start_ms=WALL_MS,
        end_ms=WALL_MS,
        deadline_ms=WALL_MS + 60_000,
        grace_ms=5_000,
    )
    return evolve(terms, **changes)  # type: ignore[arg-type]


def settle_terms(alloc: Entry, fuel: int = 7_000_000_001, **changes: object) -> Terms:
    changes = {"outputs": (cid(b"out"), cid(b"stdout"), cid(b"stderr")), **changes}
    terms = evolve(
        alloc.content.deal,
        fuel=fuel,
        ref=alloc.id,
        end_ms=WALL_MS + 900,
        **changes,  # type: ignore[arg-type]
    )
    return evolve(terms, amount=amount_of(terms)) if "amount" not in changes else terms


def void_terms(alloc: Entry) -> Terms:
    return evolve(alloc.content.deal, fuel=0, exit=255, ref=alloc.id)


def use_terms(alloc: Entry, fuel: int) -> Terms:
    terms = evolve(alloc.content.deal, fuel=fuel, ref=alloc.id)
    return evolve(terms, amount=accrued(terms))


class Chain:
    """An author's chain, which its peers sign for."""

    def __init__(self, buyer: Party, head: chain.Head | None = None, net: bytes = NET) -> None:
        self.buyer = buyer
        self.head = head or chain.Head.start(buyer.key, net)

    def fork(self) -> Chain:
        """Another arm from here: what an honest buyer never makes."""
        return Chain(self.buyer, self.head)

    def alloc(self, seller: Party, **changes: object) -> Entry:
        terms = alloc_terms(seller, self.buyer, **changes).encode()
        self.head, entry = chain.alloc(
            self.head,
            terms,
            seller.sign(terms_message(terms)),
            wall_ms=WALL_MS,
            sign=self.buyer.sign,
        )
        return entry

    def settle(self, seller: Party, alloc: Entry, **changes: object) -> Entry:
        terms = settle_terms(alloc, **changes).encode()  # type: ignore[arg-type]
        self.head, entry = chain.settle(
            self.head,
            terms,
            seller.sign(terms_message(terms)),
            alloc=alloc,
            wall_ms=WALL_MS,
            sign=self.buyer.sign,
        )
        return entry

    def void(self, seller: Party, alloc: Entry) -> Entry:
        terms = void_terms(alloc).encode()
        self.head, entry = chain.void(
            self.head,
            terms,
            seller.sign(terms_message(terms)),
            alloc=alloc,
            wall_ms=WALL_MS,
            sign=self.buyer.sign,
        )
        return entry

    def use(self, seller: Party, alloc: Entry, fuel: int = 10**9) -> Entry:
        terms = use_terms(alloc, fuel).encode()
        self.head, entry = chain.use(
            self.head,
            terms,
            seller.sign(use_message(terms)),
            alloc=alloc,
            wall_ms=WALL_MS,
            sign=self.buyer.sign,
        )
        return entry

    def claim(self, alloc: Entry, **changes: object) -> Entry:
        """By the seller, whose chain this is."""
        terms = settle_terms(alloc, **changes).encode()  # type: ignore[arg-type]
        self.head, entry = chain.claim(
            self.head, terms, alloc=alloc, wall_ms=WALL_MS, sign=self.buyer.sign
        )
        return entry

    def rule(self, alloc: Entry, amount: int) -> Entry:
        """By the arbiter, whose chain this is."""
        terms = settle_terms(alloc, amount=amount).encode()
        self.head, entry = chain.rule(
            self.head, terms, alloc=alloc, wall_ms=WALL_MS, sign=self.buyer.sign
        )
        return entry

    def dispute(self, about: Entry, seller: Party, reason: str = "no outputs") -> Entry:
        statement = Dispute(ref=about.content.ref or about.id, about=about.id, reason=reason)
        self.head, entry = chain.dispute(
            self.head, statement, seller.key, wall_ms=WALL_MS, sign=self.buyer.sign
        )
        return entry

    def refund(self, alloc: Entry, amount: int) -> Entry:
        """By the seller, whose chain this is."""
        self.head, entry = chain.refund(
            self.head,
            Refund(ref=alloc.id, amount=amount),
            alloc.content.author,
            wall_ms=WALL_MS,
            sign=self.buyer.sign,
        )
        return entry

    def line(self, buyer: Party, limit: int) -> Entry:
        self.head, entry = chain.line(
            self.head, limit, buyer.key, wall_ms=WALL_MS, sign=self.buyer.sign
        )
        return entry

    def keyop(self, op: Op, subject: Party, commitment: bytes = b"") -> Entry:
        statement = KeyOp(
            op=op,
            net=self.head.net,
            owner=self.head.author,
            subject=subject.key,
            commitment=commitment,
        )
        agreed = op in (Op.DELEGATE, Op.ROTATE)
        self.head, entry = chain.keyop(
            self.head,
            statement,
            subject.sign(keyop_message(statement.encode())) if agreed else b"",
            wall_ms=WALL_MS,
            sign=self.buyer.sign,
        )
        return entry

    def checkpoint(self, before: list[Entry]) -> Entry:
        """A HEAD over *before*: all entries of this chain so far."""
        self.head, entry = chain.checkpoint(
            self.head,
            Tree(entry.id for entry in before).root(),
            wall_ms=WALL_MS,
            sign=self.buyer.sign,
        )
        return entry
