"""Parties with fixed keys and the deals they strike: what the ledger's tests are made of."""

from __future__ import annotations

from hashlib import sha256

from attrs import evolve, frozen
from nacl.signing import SigningKey

from ledger import chain
from ledger.keys import terms_message
from ledger.model import Entry, Terms, amount_of, reserve_of

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
    terms = evolve(
        alloc.content.deal,
        outputs=(cid(b"out"), cid(b"stdout"), cid(b"stderr")),
        fuel=fuel,
        ref=alloc.id,
        end_ms=WALL_MS + 900,
        **changes,  # type: ignore[arg-type]
    )
    return evolve(terms, amount=amount_of(terms)) if "amount" not in changes else terms


def void_terms(alloc: Entry) -> Terms:
    return evolve(alloc.content.deal, fuel=0, exit=255, ref=alloc.id)


class Chain:
    """A buyer's chain, which its sellers sign for."""

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
