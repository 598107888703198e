"""Bugs on purpose: each is one line of the market, made wrong while it is imported.

Nothing of this is in the product. A mutation names the exact line it replaces, so that a rewrite of
the market breaks it loudly instead of making it harmless.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any


@dataclass(frozen=True)
class Mutation:
    """One line of *module*, and the wrong one; *caught_by* are promises that may break."""

    name: str
    module: str
    right: str
    wrong: str
    caught_by: tuple[str, ...]
    seed: int
    """The first seed that is known to catch it."""


MUTATIONS = (
    Mutation(
        "the holder does not fence itself",
        "mesh.market.tenancy",
        "        if tenancy is None or not tenancy.is_held or now < tenancy.expires_at:",
        "        if True:",
        ("S1",),
        2,
    ),
    Mutation(
        "the lease counts from the award's arrival",
        "mesh.market.tenancy",
        "            expires_at=hold.sent_at + ttl / 1000,",
        "            expires_at=now + ttl / 1000,",
        ("S1",),
        75,
    ),
    Mutation(
        "a renewal counts from its answer",
        "mesh.market.tenancy",
        "        expires_at = asked_at + min(renewed.ttl_ms, tenancy.ttl_ms) / 1000",
        "        expires_at = now + min(renewed.ttl_ms, tenancy.ttl_ms) / 1000",
        ("S1",),
        5,
    ),
    Mutation(
        "a late award is accepted",
        "mesh.market.holds",
        "        ends_at = now + self._policy.hold_ms / 1000",
        "        ends_at = now + 60.0",
        ("S1",),
        2,
    ),
    Mutation(
        "the grantor does not wait for the lease to end",
        "mesh.market.auctioneer",
        "        if not record or not sale or not record.executor or now < sale.granted_until:",
        "        if not record or not sale or not record.executor:",
        ("S1",),
        0,
    ),
    Mutation(
        "renewals are never answered",
        "mesh.market.auctioneer",
        "            Send(peer, Renewed(renew.task, renew.fence, renew.seq, self._policy.ttl_ms)),",
        "",
        ("calm",),
        14,
    ),
    Mutation(
        "the fence does not rise",
        "mesh.market.auctioneer",
        "        record = evolve(record, state=State.ASKING, round=record.round + 1,"
        ' reason="auction open")',
        "        record = evolve(record, state=State.ASKING, round=max(1, record.round),"
        ' reason="auction open")',
        ("crash", "honest", "S10"),
        2,
    ),
    Mutation(
        "the effects of an old fence count",
        "mesh.market.register",
        "        if record is None or record.fence != fence or record.executor != peer:",
        "        if record is None:",
        ("S1", "S10", "crash"),
        5,
    ),
    Mutation(
        "a waiting task is not asked again",
        "mesh.market.auctioneer",
        '            WakeAt(sale.ask_at, Woken("ask", task, record.round)),',
        "",
        ("L4", "L1"),
        0,
    ),
    Mutation(
        "an award is not on disk before it is sent",
        "mesh.market.auctioneer",
        "            PersistTask(record),\n            *signed,\n"
        "            self._send_award(winner, sale.award),",
        "            *signed,\n            self._send_award(winner, sale.award),",
        ("S1", "S10", "crash", "honest"),
        82,
    ),
    Mutation(
        "a receipt is sent before it is durable",
        "mesh.market.accounts",
        "        return entry, [*actions, Send(peer, Settled(*key, entry.encode()))]",
        "        return entry, [Send(peer, Settled(*key, entry.encode())), *actions]",
        ("S2",),
        0,
    ),
    Mutation(
        "nobody looks who signed an award",
        "mesh.market.papers",
        "        body = check_entry(entry, identity.verify)\n"
        "        terms = Terms.decode(body.terms)",
        "        body = entry.content\n        terms = Terms.decode(body.terms)",
        ("S8",),
        9,
    ),
    Mutation(
        "nobody looks for the certificate",
        "mesh.market.papers",
        "    if quorum is None:",
        "    if True:",
        ("S8",),
        19,
    ),
    Mutation(
        "capacity is never given back",
        "mesh.resources.pool",
        "        needs = self._reservations.pop(key, None)",
        "        needs = None",
        ("L3", "crash"),
        0,
    ),
    Mutation(
        "nobody looks at the credit line",
        "mesh.market.holds",
        "        if no_credit:",
        "        if False:",
        ("S9",),
        0,
    ),
    Mutation(
        "a run goes on unsigned",
        "mesh.market.tenancy",
        "        if slicing.is_spent(tenancy, self._policy) and not tenancy.is_unsigned:",
        "        if False:",
        ("S9",),
        53,
    ),
    Mutation(
        "a slice is signed for again and again",
        "mesh.market.accounts",
        "        if last is not None and terms.fuel <= last.content.deal.fuel:",
        "        if False:",
        ("S3",),
        1,
    ),
    Mutation(
        "what a backup lacks is not taken up",
        "mesh.market.auctioneer",
        "        for entry in lost:\n            self.accounts.take_up(entry)",
        "",
        ("S3", "S2", "S10", "honest", "crash"),
        2,
    ),
    Mutation(
        "the chain grows before peers have confirmed its end",
        "mesh.market.own_chain",
        "        self.is_confirmed = is_confirmed",
        "        self.is_confirmed = True",
        ("S3", "S2", "S10", "honest", "crash"),
        2,
    ),
    Mutation(
        "the offer book has no bound",
        "mesh.market.offers",
        "        if len(self._listings) > self._policy.offers_max:",
        "        if False:",
        ("S7",),
        4,
    ),
    Mutation(
        "who gave a run back still holds its lease",
        "mesh.market.tenancy",
        "        if isinstance(answer, Lost) or answer.result.status == MOVED:",
        "        if isinstance(answer, Lost):",
        ("S1",),
        9,
    ),
    Mutation(
        "a task goes on from a state that is not here",
        "mesh.migration.migrator",
        "        if event.reason or not is_live or record.executor is None:",
        "        if not is_live or record.executor is None:",
        ("S10",),
        47,
    ),
    Mutation(
        "a state that the task went on from is not paid",
        "mesh.market.billing",
        "        return self._accounts.settle(bill.executor, bill.saved, "
        "self._clock.wall_ms(now))[1]",
        "        return []",
        ("S10", "L2", "L3"),
        0,
    ),
    Mutation(
        "a task goes on from its last state with all of its fuel",
        "mesh.market.order",
        "    return evolve(work, fuel=work.fuel - path[-1].fuel, moves=path) if path else work",
        "    return evolve(work, moves=path) if path else work",
        ("S10", "L1"),
        0,
    ),
    Mutation(
        "what was burnt before is billed again",
        "mesh.market.order",
        "    move = Move(burnt_before(record) + result.fuel, last.executor, result.output)",
        "    move = Move(result.fuel, last.executor, result.output)",
        ("S10", "L1", "honest"),
        0,
    ),
    Mutation(
        "a drained node is open again without being told",
        "mesh.migration.departures",
        "        self._tenancies.close(is_closed=event.is_on)",
        "        self._tenancies.close(is_closed=False)",
        ("drained",),
        43,
    ),
    Mutation(
        "one node runs several copies of a task",
        "mesh.market.copies",
        "    if order.group is None:",
        "    if True:",
        ("S11",),
        10,
    ),
    Mutation(
        "who ran a copy that has ended is forgotten while another is open",
        "mesh.market.copies",
        "    return dict.fromkeys(task for group in groups if group for task in group.members)",
        "    return {}",
        ("S11",),
        19,
    ),
)


class _Mutating(SourceFileLoader):
    """Compiles a module with one passage replaced."""

    def __init__(self, name: str, path: str, mutation: Mutation) -> None:
        super().__init__(name, path)
        self._mutation = mutation

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        found = source.count(self._mutation.right)
        assert found == 1, f"{self._mutation.name}: its line is there {found} times"
        mutated = source.replace(self._mutation.right, self._mutation.wrong)
        return compile(mutated, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    """Gives the mutated module to whoever imports it."""

    def __init__(self, mutation: Mutation) -> None:
        self._mutation = mutation

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._mutation.module:
            return None
        spec: Any = importlib.machinery.PathFinder.find_spec(fullname, path)
        loader = _Mutating(fullname, spec.origin, self._mutation)
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


def apply(mutation: Mutation) -> None:
    """From now on the mutation is in force; its module must not be imported yet."""
    assert mutation.module not in sys.modules, f"{mutation.module} is imported already"
    sys.meta_path.insert(0, _Finder(mutation))
