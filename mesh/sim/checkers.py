"""The promises of the design, checked after every event of every honest node.

Safety under any fault: S1 one lease per task · S2 what was shown to a peer survives a crash ·
S3 a chain only extends · S4 equal receipts, equal balances · S5 settlements sum to zero ·
S6 reservations within what is sold · S7 bounds · S8 no run without its buyer's award ·
S9 no buyer owes and reserves more than its line, nor burns more than a slice unsigned ·
S10 a task settles once, with the result of the run its newest fence paid for ·
S11 two copies of one task have no executor in common.
Liveness: L1 every task ends · L2 accounts close and receipts arrive · L3 a dead node's leases and
capacity are free again · L4 a waiting task is asked again. And nobody honest is ever penalized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import Factory, define

from ledger.chain import Head, check_entry, check_link
from ledger.errors import LedgerError
from ledger.model import KINDS_KNOWN, Body, Entry, Kind
from ledger.quorum import Certificate, Position, Quorum
from ledger.state import fold
from mesh.ids import PeerId, TaskId, format_task, short_peer
from mesh.market.order import State, TaskRecord
from mesh.market.slicing import slice_fuel
from mesh.market.terms import CANCELLED
from mesh.messages import Award, Message, Result, Settled
from mesh.notices import Asked, Hosted, Moved, Notice
from mesh.resources.capacity import NOTHING
from mesh.sansio import (
    Action,
    AppendEntry,
    Event,
    PersistTask,
    Received,
    Run,
    RunEnded,
    RunProgressed,
)
from mesh.sim.disk import Write
from mesh.sim.keyring import Keyring
from mesh.sim.node import Node
from mesh.sim.options import Options
from mesh.sim.restart import NET
from mesh.sim.runtime import PROGRESS_S, is_of
from mesh.sim.workload import Plan

_SIZES_EVERY = 16
"""Sizes are looked at after every so many events of a node."""
_SLACK_S = 5.0
"""Timers and messages of a healed mesh are never later than this."""


_URGENT_MS = 1_800_000


class Violation(Exception):
    """A promise was broken. *promise* is its short name."""

    def __init__(self, promise: str, detail: str) -> None:
        super().__init__(f"{promise}: {detail}")
        self.promise = promise
        self.detail = detail


@define
class _Chain:
    """What the world has seen of one honest node's own chain."""

    head: Head
    ids: dict[int, bytes]
    bodies: dict[bytes, Body]
    resolved: dict[bytes, bytes]
    """ALLOC id -> id of the entry that closed it."""


@define
class _Exposed:
    """What one seller's own disk says that one buyer owes it and has reserved."""

    owed: int = 0
    open: dict[bytes, int] = Factory(dict)
    closed: dict[bytes, int] = Factory(dict)


class Checkers:
    """Looks on, and raises Violation. Byzantine nodes are not looked at."""

    def __init__(
        self,
        options: Options,
        keyring: Keyring,
        plans: Mapping[TaskId, Plan],
        witnesses: Sequence[bytes] = (),
    ) -> None:
        self._options = options
        self._keyring = keyring
        self._plans = plans
        self._nodes: dict[PeerId, Node] = {}
        self._leases: dict[int, tuple[tuple[TaskId, int], ...]] = {}
        self._holders: dict[TaskId, dict[int, int]] = {}
        self._chains: dict[int, _Chain] = {}
        self._received: dict[int, set[bytes]] = {}  # ids of others' entries
        self._records: dict[TaskId, TaskRecord] = {}  # as last made durable
        self._ended: dict[tuple[TaskId, int], Result] = {}  # what honest runs left behind
        self._exposed: dict[tuple[int, bytes], _Exposed] = {}  # (seller, buyer)
        self.quorum = Quorum.of(witnesses) if witnesses else None
        self._certificates: dict[tuple[int, TaskId, int], bytes] = {}  # as they came
        self._signed: dict[bytes, int] = {}  # ALLOC id -> the fuel that its buyer signed for
        self._told_signed: dict[tuple[int, bytes], int] = {}  # (seller, ALLOC id) -> as it knows
        self._asked_at: dict[TaskId, float] = {}
        self._given_up: set[tuple[int, TaskId, int]] = set()
        """Of whose accounts a seller with a full table expects nothing any more."""
        self.admitted: dict[TaskId, float] = {}
        """When each task of an honest node was first durable: world time."""
        self.now = 0.0

    def watch(self, node: Node) -> None:
        """From now on *node* is held to its promises."""
        self._nodes[node.peer] = node
        self._leases[node.index] = ()
        self._received[node.index] = set()
        self._chains[node.index] = _Chain(Head.start(node.peer, NET), {}, {}, {})

    def is_watched(self, node: Node) -> bool:
        return node.peer in self._nodes

    # --- what nodes do --------------------------------------------------------------------------

    def saw_arrival(self, node: Node, event: Event) -> None:
        """Remember what each run left behind (S10), whatever the node makes of it."""
        if node.peer not in self._nodes:
            return
        if isinstance(event, RunEnded):
            self._ended[event.task, event.fence] = event.result
        elif isinstance(event, RunProgressed):
            self._check_unsigned(node, event)
        elif isinstance(event, Received) and isinstance(event.message, Award):
            award = event.message
            self._certificates[node.index, award.task, award.fence] = award.certificate

    def saw_event(self, node: Node, actions: list[Action]) -> None:
        """S1, S6 and S7, after a node has handled an event."""
        if node.peer not in self._nodes:
            return
        for action in actions:
            if isinstance(action, AppendEntry) and not action.is_own:
                self._hear_signed(node, Entry.decode(action.entry).content)
        kernel = node.kernel
        leases = kernel.leases()
        if leases != self._leases[node.index] and not node.is_catching_up:
            self._change_leases(node, leases)
        if actions and not kernel.reserved().fits_in(kernel.sold()):
            raise Violation("S6", f"node {node.index} reserved more than it sells")
        if node.handled % _SIZES_EVERY == 0:
            self.check_sizes(node)

    def saw_silence(self, node: Node) -> None:
        """A node that is down or stalled can have no effects: its leases do not count."""
        if node.peer in self._nodes:
            self._change_leases(node, ())

    def saw_awakening(self, node: Node) -> None:
        """A stalled node has fenced itself where it must: from here on its leases count."""
        if node.peer in self._nodes and node.is_up:
            self._change_leases(node, node.kernel.leases())

    def check_sizes(self, node: Node) -> None:
        """S7: nothing grows above its bound."""
        for name, (size, bound) in node.kernel.sizes().items():
            if size > bound:
                raise Violation("S7", f"node {node.index}: {name} is {size}, its bound {bound}")

    def saw_message(self, node: Node, message: Message) -> None:
        """S2 and S3: an entry that is shown to a peer is durable, and the only one of its place."""
        if node.peer not in self._nodes or not isinstance(message, Award | Settled):
            return
        entry = Entry.decode(message.entry)
        if self._chains[node.index].ids.get(entry.content.seq) != entry.id:
            raise Violation(
                "S2", f"node {node.index} sent entry {entry.content.seq}, which is not durable"
            )

    def saw_run(self, node: Node, run: Run) -> None:
        """S8: the buyer signed for this run, with this seller, and the proof is on our disk; and
        its owner has not closed the node."""
        if node.peer not in self._nodes:
            return
        if node.is_drained:
            raise Violation("drained", f"node {node.index} takes on {format_task(run.task)}")
        tenancy = node.disk.tenancy(run.task, run.fence)
        if tenancy is None:
            raise Violation("S8", f"node {node.index} runs {format_task(run.task)} unrecorded")
        entry = Entry.decode(tenancy.alloc)
        try:
            body = check_entry(entry, self._keyring.verify)
        except LedgerError as error:
            raise Violation("S8", f"node {node.index} runs on a bad award: {error}") from error
        deal = body.deal
        named = (body.kind, body.author, body.peer, deal.nonce, deal.fence)
        if named != (Kind.ALLOC, run.buyer, node.peer, run.task, run.fence):
            raise Violation("S8", f"node {node.index} runs on an award for something else")
        if self.quorum is not None:
            self._check_certified(node, run, entry)
        buyer = self._nodes.get(run.buyer)
        if buyer and not is_of(run, self._plans[run.task]):
            raise Violation("S10", f"node {node.index} is to run what its buyer never wanted")
        if buyer and entry.id not in self._chains[buyer.index].bodies:
            raise Violation("S8", f"node {node.index} runs on an award its buyer never made")

    def saw_penalty(self, node: Node, peer: PeerId, reason: str) -> None:
        """Faults of the network must never look like faults of an honest peer."""
        if node.peer in self._nodes and peer in self._nodes:
            blamed = self._nodes[peer].index
            raise Violation("honest", f"node {node.index} blames honest node {blamed}: {reason}")

    def saw_notice(self, node: Node, notice: Notice) -> None:
        """Remember when tasks were asked about (L4); on a good day no lease is lost."""
        if isinstance(notice, Asked | Moved):
            self._asked_at[notice.task] = self.now
        elif isinstance(notice, Hosted) and notice.what == "unpaid":
            self._given_up.add((node.index, notice.task, notice.fence))
        elif isinstance(notice, Hosted) and notice.what == "fenced" and self._options.is_calm:
            raise Violation("calm", f"node {node.index} lost a lease and nothing had failed")

    def saw_durable(self, node: Node, write: Write) -> None:
        """S3 and S10, on what a crash can no longer undo."""
        if node.peer not in self._nodes:
            return
        if isinstance(write, AppendEntry) and write.is_own:
            self._extend(node, Entry.decode(write.entry))
        elif isinstance(write, AppendEntry):
            entry = Entry.decode(write.entry)
            self._expose(node, entry)
            self._received[node.index].add(entry.id)
        elif isinstance(write, PersistTask):
            self._check_record(node, write.record)

    # --- what must have come about --------------------------------------------------------------

    def check_progress(self, nodes: list[Node], healed_at: float | None) -> None:
        """L1, L3 and L4, looked at every few seconds."""
        for node in nodes:
            if not self.is_watched(node) or not node.is_up or node.is_stalled:
                continue
            for record in node.kernel.records.values():
                if not record.state.is_final:
                    self._check_open(node, record, healed_at)

    def check_quiet(self, nodes: list[Node]) -> None:
        """L3: when everything has ended, nothing is reserved, and every account is closed."""
        for node in nodes:
            if not self.is_watched(node) or not node.is_up:
                continue
            if node.kernel.reserved() != NOTHING and not node.runtime.workers:
                raise Violation("L3", f"node {node.index} still reserves {node.kernel.reserved()}")
            self.check_sizes(node)
            self._check_accounts(node)
            for tenancy in node.disk.read().tenancies.values():
                buyer = self._nodes.get(tenancy.buyer)
                if buyer is None or not buyer.is_up:
                    continue
                if (tenancy.task, tenancy.fence) not in node.runtime.workers:
                    told = format_task(tenancy.task)
                    raise Violation("L3", f"node {node.index} never settled {told}")

    def check_ledger(self, nodes: list[Node]) -> None:
        """S3 to S5: the entries of all disks add up, in any order, and nobody honest forked."""
        entries = [
            Entry.decode(data)
            for node in nodes
            for data in (*node.disk.read().entries, *node.disk.read().foreign, *node.lost)
        ]
        accounts = fold(entries, NET)
        if accounts != fold([*reversed(entries), *entries], NET):
            raise Violation("S4", "the same entries give other balances in another order")
        owed = sum(account.posted_debit for account in accounts.values())
        earned = sum(account.posted_credit for account in accounts.values())
        if owed != earned:
            raise Violation("S5", f"{owed} µcr are owed and {earned} earned")
        for key, account in accounts.items():
            node = self._nodes.get(PeerId(key))
            if node is None:
                continue
            if account.forked:
                raise Violation("S3", f"node {node.index} forked its chain")
            head = self._chains[node.index].head
            if (account.posted_debit, account.pending_debit) != (head.posted, head.pending):
                raise Violation("S4", f"node {node.index} claims other totals than its entries")

    def check_bills(self) -> None:
        """S10: however often a task was moved, lost or begun again, it was paid for once, to the
        last unit of fuel; and its last receipt tells of every move."""
        for task, record in self._records.items():
            plan = self._plans[task]
            if self._is_foul(task) or record.result is None:
                continue
            if record.result.status == CANCELLED:
                continue  # taken back, or given up unsigned: it never came to its end
            bodies = self._chains[plan.buyer].bodies.values()
            bills = [b.deal for b in bodies if b.kind is Kind.SETTLE and b.deal.nonce == task]
            if any(PeerId(bill.seller) not in self._nodes for bill in bills):
                continue  # a liar may bill what its buyer signs for
            burnt = sum(bill.fuel for bill in bills)
            told = f"{format_task(task)} burnt {plan.fuel}"
            if burnt != plan.fuel:
                raise Violation("S10", f"{told}, and was billed {burnt} in {len(bills)} parts")
            moves = bills[-1].migrations
            before = moves[-1][0] if moves else 0
            if before + bills[-1].fuel != plan.fuel or (len(bills) > 1) != bool(moves):
                raise Violation("S10", f"{told}; its last receipt tells of {before} before it")
            if record.amount != sum(bill.amount for bill in bills):
                raise Violation("S10", f"{told}; its record tells of {record.amount} µcr")

    def _check_accounts(self, node: Node) -> None:
        """L2: no money is pending for nothing, and each seller has the receipt of its work."""
        chain = self._chains[node.index]
        for body in chain.bodies.values():
            if body.kind not in (Kind.ALLOC, Kind.SETTLE):
                continue
            seller = self._nodes.get(PeerId(body.peer))
            if seller is None or not seller.is_up:
                continue
            told = f"{format_task(TaskId(body.deal.nonce))} by fence {body.deal.fence}"
            if body.kind is Kind.ALLOC and body.id not in chain.resolved:
                raise Violation("L2", f"node {node.index} still sets money aside for {told}")
            if (seller.index, TaskId(body.deal.nonce), body.deal.fence) in self._given_up:
                continue  # it comes by replication, where there is one
            if body.kind is Kind.SETTLE and body.id not in self._received[seller.index]:
                raise Violation("L2", f"node {seller.index} never got its receipt for {told}")

    def _check_open(self, node: Node, record: TaskRecord, healed_at: float | None) -> None:
        task, policy = record.order.task, self._options.policy
        told = f"{format_task(task)} is {record.state}: {record.reason}"
        quiet_since = max(node.quiet_since, self.admitted.get(task, self.now))
        if healed_at is not None and task in self.admitted:
            due = max(self.admitted[task] + record.order.deadline_ms / 1000, healed_at, quiet_since)
            if self.now > due + policy.grace_ms / 1000 + _SLACK_S:
                raise Violation("L1", told)
        if record.state is State.WAITING:
            asked_at = max(self._asked_at.get(task, 0.0), quiet_since)
            if self.now - asked_at > self._ask_again_s(record) + _SLACK_S:
                raise Violation("L4", told)
        executor = self._nodes.get(record.executor) if record.executor else None
        if executor is not None and not executor.is_up:
            gone_s = self.now - max(executor.quiet_since, quiet_since)
            lease_s = (policy.ttl_ms + policy.margin_ms) / 1000
            if gone_s > lease_s * 1.02 + self._options.slow_s + _SLACK_S:
                raise Violation("L3", f"{format_task(task)} still leased to dead {executor.index}")

    # --- supporting -----------------------------------------------------------------------------

    def _ask_again_s(self, record: TaskRecord) -> float:
        policy = self._options.policy
        is_urgent = record.order.deadline_ms < _URGENT_MS
        return (policy.ask_again_urgent_ms if is_urgent else policy.ask_again_ms) / 1000

    def _change_leases(self, node: Node, leases: tuple[tuple[TaskId, int], ...]) -> None:
        for task, _ in self._leases[node.index]:
            self._holders.get(task, {}).pop(node.index, None)
        self._leases[node.index] = leases
        for task, fence in leases:
            if task not in self._plans or self._is_foul(task):
                continue  # a liar may award its own task as often as it likes
            holders = self._holders.setdefault(task, {})
            holders[node.index] = fence
            if len(holders) > 1:
                told = ", ".join(f"node {index} by fence {at}" for index, at in holders.items())
                raise Violation("S1", f"{format_task(task)} is held by {told}")

    def _is_foul(self, task: TaskId) -> bool:
        return self._plans[task].buyer < self._options.byzantine

    def _extend(self, node: Node, entry: Entry) -> None:
        chain = self._chains[node.index]
        body = entry.content
        alloc = chain.bodies.get(body.ref)
        try:
            check_entry(entry, self._keyring.verify, KINDS_KNOWN)
            chain.head = check_link(chain.head, entry, alloc)
        except LedgerError as error:
            raise Violation("S3", f"node {node.index}, entry {body.seq}: {error}") from error
        chain.ids[body.seq] = entry.id
        chain.bodies[entry.id] = body
        if body.kind is Kind.USE:
            before = self._signed.get(body.ref, 0)
            if body.deal.fuel <= before:
                raise Violation("S3", f"node {node.index} signs for {body.deal.fuel} of {before}")
            self._signed[body.ref] = body.deal.fuel
        closed_by = chain.resolved.setdefault(body.ref, entry.id) if _closes(body) else entry.id
        if closed_by != entry.id:
            raise Violation("S10", f"node {node.index} closed one award twice")

    def _expose(self, node: Node, entry: Entry) -> None:
        """S9, by the entries that a seller keeps: a sum of the simplest kind."""
        body = entry.content
        if entry.id in self._received[node.index]:
            return
        exposed = self._exposed.setdefault((node.index, body.author), _Exposed())
        if body.kind is Kind.ALLOC and entry.id not in exposed.closed:
            exposed.open[entry.id] = body.deal.reserve
        elif _closes(body):
            exposed.open.pop(body.ref, None)
            before = exposed.closed.get(body.ref, 0)
            exposed.closed[body.ref] = max(before, body.deal.amount)
            exposed.owed += exposed.closed[body.ref] - before
        total, line = exposed.owed + sum(exposed.open.values()), self._options.policy.credit_line
        bought = sum(
            mine.deal.amount
            for mine in self._chains[node.index].bodies.values()
            if mine.kind is Kind.SETTLE and mine.peer == body.author
        )
        if total - bought > line:
            told = f"{total - bought} µcr of one buyer where its line is {line}"
            raise Violation("S9", f"node {node.index} is exposed to {told}")

    def _hear_signed(self, node: Node, body: Body) -> None:
        if body.kind is Kind.USE:
            self._told_signed[node.index, body.ref] = body.deal.fuel

    def _check_certified(self, node: Node, run: Run, alloc: Entry) -> None:
        """S8 under T2: nothing runs that the witnesses have not voted for."""
        assert self.quorum is not None
        data = self._certificates.get((node.index, run.task, run.fence), b"")
        told = f"node {node.index} runs {format_task(run.task)} without its certificate"
        try:
            certificate = Certificate.decode(data)
            self.quorum.check(certificate, self._keyring.verify)
        except LedgerError as error:
            raise Violation("S8", f"{told}: {error}") from error
        if certificate.position != Position.of(alloc):
            raise Violation("S8", told)

    def _check_unsigned(self, node: Node, event: RunProgressed) -> None:
        """S9: nobody works for more than a slice, and what is burnt until that is noticed, that
        its buyer has not signed for. A stalled node notices late."""
        tenancy = node.disk.tenancy(event.task, event.fence)
        if tenancy is None or self._options.stalls:
            return
        alloc = Entry.decode(tenancy.alloc)
        unsigned = event.fuel - self._told_signed.get((node.index, alloc.id), 0)
        unnoticed = int(node.shop.speed * 1000 * PROGRESS_S * 1.01) + 1
        if unsigned > slice_fuel(alloc.content.deal, self._options.policy) + unnoticed:
            told = f"{unsigned} fuel of {format_task(event.task)} on trust"
            raise Violation("S9", f"node {node.index} burns {told}")

    def _check_record(self, node: Node, record: TaskRecord) -> None:
        task = record.order.task
        self.admitted.setdefault(task, self.now)
        before = self._records.get(task)
        self._records[task] = record
        told = format_task(task)
        self._check_copies(record)
        if before is not None:
            if record.fence < before.fence or record.round < before.round:
                raise Violation("S10", f"{told}: fence fell from {before.fence} to {record.fence}")
            if before.state.is_final and record.state is not before.state:
                raise Violation("S10", f"{told}: {before.state} became {record.state}")
            is_paid = before.settle in self._chains[node.index].bodies  # else a crash came between
            if is_paid and record.settle != before.settle:
                raise Violation("S10", f"{told}: settled twice")
        if record.result is None or record.executor not in self._nodes:
            return
        ended = self._ended.get((task, record.fence))
        if record.result.status != CANCELLED and record.result != ended:
            raise Violation("S10", f"{told}: its result is not that of run {record.fence}")

    def _check_copies(self, record: TaskRecord) -> None:
        """S11: or a single liar would agree with itself."""
        order = record.order
        for task in order.group.members if order.group else ():
            other = self._records.get(task)
            if task == order.task or other is None:
                continue
            if both := set(_ran(record)) & set(_ran(other)):
                told = f"{format_task(task)} and {format_task(order.task)}"
                raise Violation("S11", f"{short_peer(min(both))} runs both {told}")


def _ran(record: TaskRecord) -> list[PeerId]:
    """Whoever has a part in what a copy comes to."""
    parts = [move.source for move in record.path]
    return [*parts, record.executor] if record.executor else parts


def _closes(body: Body) -> bool:
    return body.kind in (Kind.SETTLE, Kind.VOID)
