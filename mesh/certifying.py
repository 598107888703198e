"""Certifying: the votes of witnesses for what we or others sign (T2), and ours as a witness.

An award is shown to every witness of the quorum at once; who lacks what is before it says so and
is led there, run by run. Enough votes make the certificate that a seller asks for.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import trio
from attrs import define, field

from ledger.errors import BadEntry, LedgerError
from ledger.hearing import decode_answer, decode_question, encode_answer, encode_question
from ledger.model import Entry
from ledger.quorum import Certificate, Position, Quorum, Tally
from ledger.store import Store
from ledger.votes import VoteBook
from ledger.witness import RUN_MAX, Answer, Behind, Refused, Voted, Witness
from mesh import config
from mesh.errors import ConfigError, MeshError, PeerError, Stopped, Unavailable
from mesh.ids import NET, PeerId, parse_peer, short_peer
from mesh.network.network import WITNESS, Network
from mesh.rations import RationedBook
from mesh.sansio import Identity

_log = logging.getLogger("mesh.certifying")

CERTIFY_S = 1.5
"""A certificate that takes longer comes too late: bids are held for 2 s."""
RUNS_MAX = 1_024
"""Questions to one witness about one award: it goes on from there at the next one."""
ASK_S = 1.0
SCAN_REST_S = 0.02
"""Some times as long as one piece takes."""
REACHED_MAX = 4_096
"""Chains, times witnesses, of which it is remembered how far each is."""
T = TypeVar("T")


def quorum_of(settings: config.Ledger) -> Quorum | None:
    """Whom we ask for votes. Raises ConfigError."""
    if settings.tier != "T2":
        if not settings.archive:
            raise ConfigError(
                "ledger.archive",
                f"only what witnesses have sealed may be pruned, and {settings.tier} asks none",
                'set ledger.tier = "T2" and ledger.witnesses, or ledger.archive = true',
            )
        return None
    try:
        return Quorum.of([parse_peer(text) for text in settings.witnesses])
    except LedgerError as error:
        raise ConfigError("ledger.witnesses", error.reason, error.hint) from None


@define(eq=False)
class Certifying:
    """Asks the witnesses. *learn* hears of two entries that prove a fork."""

    quorum: Quorum
    store: Store
    """With a connection of its own."""
    learn: Callable[[Sequence[bytes]], Awaitable[object]]
    witnessing: Witnessing | None = None
    """Ourselves, where we are one of them."""
    network: Network | None = None
    """Set once it is there."""
    tally: Counter[str] = field(factory=Counter)
    _reached: dict[tuple[PeerId, bytes], int] = field(factory=dict, init=False)
    """The place that each witness wants next of each author's chain."""
    _thread: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1), init=False)

    async def certify(self, entry: Entry, patience_s: float = CERTIFY_S) -> Certificate:
        """The certificate of *entry*, ours or another's, which is durable. Raises Unavailable."""
        votes = Tally(self.quorum, Position.of(entry))
        found: list[Certificate] = []
        why: list[str] = []
        with trio.move_on_after(patience_s):
            async with trio.open_nursery() as nursery:
                stop = nursery.cancel_scope.cancel
                for member in sorted(self.quorum.members):
                    ask = partial(self._persuade, PeerId(member), entry, votes, found, why, stop)
                    nursery.start_soon(ask)
        if not found:
            self.tally["certificates_missing"] += 1
            missing = len(votes.missing())
            told = why[0] if why else f"no answer within {patience_s} s"
            needed = self.quorum.needed
            raise Unavailable(
                f"{missing} of {len(self.quorum.members)} witnesses gave no vote, "
                f"{needed} must: {told}"
            )
        self.tally["certificates"] += 1
        return found[0]

    async def _persuade(
        self,
        member: PeerId,
        entry: Entry,
        votes: Tally,
        found: list[Certificate],
        why: list[str],
        stop: Callable[[], None],
    ) -> None:
        """Lead one witness to *entry*, and count its vote."""
        try:
            answer = await self._lead(member, entry)
        except MeshError as error:
            why.append(f"{short_peer(member)}: {error}")
            return
        match answer:
            case Voted(vote):
                refused = votes.refused
                if certificate := votes.add(vote):
                    found.append(certificate)
                    stop()
                if votes.refused > refused:
                    why.append(f"{short_peer(member)}: {self._blame(member, 'no vote for this')}")
            case Refused(reason, evidence):
                why.append(f"{short_peer(member)}: {reason}")
                if evidence:
                    await self.learn([each.encode() for each in evidence])
            case Behind():
                why.append(f"{short_peer(member)}: it is far behind")

    async def _lead(self, member: PeerId, entry: Entry) -> Answer:
        """Its last word. Raises MeshError."""
        end, key = entry.content.seq, (member, entry.content.author)
        start = min(self._reached.get(key, end), end)
        for _ in range(RUNS_MAX):
            run = await self._run(entry, start)
            answer = await self._ask(member, run)
            match answer:
                case Behind(seq=seq) if seq < start:
                    start = seq
                case Voted() if start + len(run) <= end:
                    start += len(run)
                case _:
                    self._note(key, end + 1 if isinstance(answer, Voted) else start)
                    return answer
            self._note(key, start)
        return Behind(entry.content.author, entry.content.net, start)

    def _note(self, key: tuple[PeerId, bytes], seq: int) -> None:
        if len(self._reached) >= REACHED_MAX:
            self._reached.clear()  # each witness says it again
            self.tally["witnesses_forgotten"] += 1
        self._reached[key] = seq

    async def _run(self, entry: Entry, start: int) -> list[bytes]:
        """Entries of its chain from *start* on, up to *entry*. Raises Unavailable."""
        body = entry.content
        if start == body.seq:
            return [entry.encode()]

        def read() -> list[bytes]:
            chain = self.store.chain(body.author, start - 1)
            same = (each for each in chain if each.content.net == body.net)
            return [each.encode() for each in islice(same, min(RUN_MAX, body.seq - start + 1))]

        try:
            return await trio.to_thread.run_sync(read, limiter=self._thread)
        except LedgerError as error:
            raise Unavailable(f"our ledger: {error}") from None

    async def _ask(self, member: PeerId, run: Sequence[bytes]) -> Answer:
        """Raises MeshError."""
        self.tally["witnesses_asked"] += 1
        assert self.network is not None
        if member == self.network.peer:
            if self.witnessing is None:
                raise Unavailable("this node is named as a witness and does not serve as one")
            return await self.witnessing.ask(run)
        data = await self.network.request(member, WITNESS, encode_question(run), ASK_S)
        try:
            return decode_answer(data)
        except BadEntry as error:
            raise PeerError(self._blame(member, f"no answer: {error.reason}")) from None

    def _blame(self, member: PeerId, fault: str) -> str:
        """A fault that no honest witness commits."""
        assert self.network is not None
        self.network.penalize(member, f"witness: {fault}")
        return fault


@define(eq=False)
class Witnessing:
    """Votes for what others sign, one question at a time, in a thread: its book fsyncs."""

    witness: Witness
    book: RationedBook
    """That of the witness."""
    alarm: Callable[[MeshError], None]
    """Hears that the book failed: who has no book, does not vote."""
    learn: Callable[[Sequence[bytes]], Awaitable[object]]
    """Hears of two entries that prove a fork: who forked may keep it to itself."""
    _turn: trio.Lock = field(factory=trio.Lock, init=False)
    _thread: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1), init=False)

    async def answer(self, peer: PeerId, request: bytes) -> bytes:
        """Serve *peer*'s question. Raises PeerError where it is none, Unavailable."""
        try:
            run = decode_question(request)
        except BadEntry as error:
            raise PeerError(f"witness: {error.reason}") from None
        return encode_answer(await self.ask(run))

    async def ask(self, run: Sequence[bytes]) -> Answer:
        """What we say of *run*. Raises Unavailable."""
        answer = await self._in_turn(partial(self.witness.ask, run))
        if isinstance(answer, Refused) and answer.evidence:
            await self.learn([entry.encode() for entry in answer.evidence])
        return answer

    async def scan(self) -> None:
        """Check the whole book once, at a leisurely pace, between two questions."""
        pieces, count = self.book.book.scan(), 0
        try:
            while (piece := await self._in_turn(partial(next, pieces, None))) is not None:
                count += piece
                await trio.sleep(SCAN_REST_S)
        except Unavailable:
            return  # the alarm is rung
        _log.info("the book of votes is sound: %s entries", count)

    def statistics(self) -> dict[str, int]:
        counts = {**self.witness.statistics(), **self.book.tally}
        return {f"witness_{name}": count for name, count in counts.items()}

    async def _in_turn(self, blocking: Callable[[], T]) -> T:
        """Use the book, which only one may at a time. Raises Unavailable."""
        async with self._turn:
            try:
                return await trio.to_thread.run_sync(blocking, limiter=self._thread)
            except LedgerError as error:
                self.alarm(Stopped(f"the book of votes: {error.reason}", error.hint))
                raise Unavailable("its book of votes fails") from None


def stand_witness(
    votes: VoteBook,
    folder: Path,
    us: Identity,
    *,
    is_frozen: Callable[[PeerId], bool],
    alarm: Callable[[MeshError], None],
    learn: Callable[[Sequence[bytes]], Awaitable[object]],
) -> Witnessing:
    """Ourselves as a witness with the book *votes*, which lies in *folder*.

    No key that *is_frozen*, which forked or is retired, gets a vote.
    """
    book = RationedBook(votes, us.peer, time.monotonic, lambda: shutil.disk_usage(folder).free)

    def refusal(author: bytes, net: bytes) -> str:
        if net != NET:
            return "another network"
        if is_frozen(PeerId(author)):
            return "its key forked or is retired"
        return book.refusal(author, net)

    return Witnessing(Witness(us.peer, us.sign, book, refusal=refusal), book, alarm, learn)
