"""What may go wrong in one seed, and how badly: drawn per seed ("swarm"), half of it switched off.

A fault that is always on hides what the others do: a mesh that always loses messages never keeps a
lease long enough to be cut off in the middle of one. So each seed draws which faults exist at all.
"""

from __future__ import annotations

from random import Random

from attrs import evolve, frozen

from mesh.market.policy import Policy


def stream(seed: int, *names: object) -> Random:
    """An independent random stream of *seed*: the same under every PYTHONHASHSEED."""
    return Random("/".join(map(str, (seed, *names))))  # noqa: S311 - faults, not secrets


@frozen
class Options:
    """One seed's world. Rates are per minute of the safety phase, shares are 0 to 1."""

    seed: int
    nodes: int
    byzantine: int
    """Of the nodes, how many lie: fewer than a third."""
    policy: Policy
    chaos_s: float
    """Length of the safety phase; then everything heals."""
    tasks: int
    is_traced: bool
    """Sizes and arrivals from the job trace instead of drawn ones."""
    loss: float
    duplicates: float
    gossip_loss: float
    delay_s: float
    """Mean of the usual, exponential delay."""
    slow: float
    """The share of messages that take up to *slow_s* instead."""
    slow_s: float
    clogs: float
    partitions: float
    crashes: float
    witnesses: int
    """How many there are, whose quorum must vote for each award (T2); 0 for none."""
    mute: float
    """The share of questions that a witness does not answer."""
    restores: float
    """The share of crashes after which the end of our own chain is missing: an old backup. Peers
    have it."""
    ambushes: float
    """The share of messages whose sender crashes at once, and is soon back."""
    snares: float
    """The share of awards and renewals that come late while their answers are cut off."""
    deaths: float
    """The share of crashes from which a node never returns."""
    stalls: float
    """A node stops handling anything for a while; its clock does not stop."""
    surges: float
    """The owner's own load comes and goes."""
    drains: float
    """An owner empties the node, and opens it again."""
    moves: float
    """How often clients want a task elsewhere: per minute and task."""
    drift: float
    """Clock rates lie within 1 ± this."""
    wall_skew_s: float
    wire: float
    """The share of messages that really pass the codec."""
    runs_lost: float
    """The share of runs that end by no fault of the task."""
    cancels: float
    resubmits: float
    copied: float
    """The share of tasks that are to be run by several nodes at once."""

    @property
    def is_short_of_credit(self) -> bool:
        """Whether lines are so low that a buyer may get nothing for a while."""
        return self.policy.credit_line < Policy().credit_line

    @property
    def is_calm(self) -> bool:
        """Nothing at all goes wrong: then every task that fits somewhere must be done."""
        rates = (
            self.loss,
            self.gossip_loss,
            self.slow,
            self.clogs,
            self.partitions,
            self.crashes,
            self.ambushes,
            self.snares,
            self.stalls,
            self.surges,
            self.drains,
            self.runs_lost,
            self.cancels,
        )
        return self.byzantine == 0 and not any(rates)


def draw(seed: int) -> Options:
    """The options of *seed*."""
    rng = stream(seed, "options")
    nodes = _draw_nodes(rng)
    options = Options(
        seed=seed,
        nodes=nodes,
        byzantine=rng.randint(1, (nodes - 1) // 3) if nodes >= 4 and rng.random() < 0.35 else 0,
        policy=_draw_policy(rng),
        chaos_s=rng.uniform(60.0, 240.0),
        tasks=rng.randint(2, 4 + 2 * min(nodes, 12)),
        is_traced=rng.random() < 0.5,
        loss=_maybe(rng, 0.6, 0.3),
        duplicates=_maybe(rng, 0.5, 0.5),
        gossip_loss=_maybe(rng, 0.4, 0.5),
        delay_s=10 ** rng.uniform(-3.0, -0.7),
        slow=_maybe(rng, 0.5, 0.15),
        slow_s=rng.choice((1.0, 3.0, 10.0, 40.0)),
        clogs=_maybe(rng, 0.4, 4.0),
        partitions=_maybe(rng, 0.5, 2.0),
        crashes=_maybe(rng, 0.5, 2.0),
        deaths=_maybe(rng, 0.4, 0.4),
        stalls=_maybe(rng, 0.4, 2.0),
        surges=_maybe(rng, 0.4, 4.0),
        drift=_maybe(rng, 0.6, 0.005),
        wall_skew_s=_maybe(rng, 0.5, 120.0),
        wire=rng.choice((0.0, 0.1, 1.0)),
        runs_lost=_maybe(rng, 0.4, 0.2),
        cancels=_maybe(rng, 0.4, 0.2),
        resubmits=_maybe(rng, 0.4, 0.3),
        restores=0.0,
        witnesses=0,
        mute=0.0,
        drains=0.0,
        moves=0.0,
        copied=0.0,
        ambushes=_maybe(rng, 0.3, 0.02),
        snares=_maybe(rng, 0.4, 0.1),
    )
    money = stream(seed, "money")
    policy = _with_credit(options.policy, money)
    options = evolve(
        options,
        policy=policy,
        restores=_maybe(money, 0.5, 0.5),
        witnesses=money.choice((0, 0, 0, 1, 4, 7)),
        mute=_maybe(money, 0.5, 0.5),
    )
    motion = stream(seed, "motion")
    options = evolve(
        options,
        drains=_maybe(motion, 0.4, 2.0),
        moves=_maybe(motion, 0.6, 4.0),
        policy=evolve(options.policy, save_at_least_ms=motion.choice((2_000, 10_000, 60_000))),
    )
    options = _with_copies(options, stream(seed, "copies"))
    return calm(options) if rng.random() < 0.05 else options


def calm(options: Options) -> Options:
    """The same mesh on a good day."""
    return evolve(
        options,
        byzantine=0,
        policy=Policy(),
        mute=0.0,
        nodes=max(3, options.nodes),
        loss=0.0,
        gossip_loss=0.0,
        delay_s=min(0.03, options.delay_s),
        slow=0.0,
        clogs=0.0,
        partitions=0.0,
        crashes=0.0,
        ambushes=0.0,
        snares=0.0,
        stalls=0.0,
        surges=0.0,
        drains=0.0,
        runs_lost=0.0,
        cancels=0.0,
    )


def _maybe(rng: Random, chance: float, most: float) -> float:
    """Zero, or with *chance* something up to *most*. Draws the same number of times either way."""
    value = rng.uniform(most / 50, most)
    return value if rng.random() < chance else 0.0


def _with_credit(policy: Policy, rng: Random) -> Policy:
    """Half the time slices that tasks of a minute have several of, lines that are really reached,
    and claims within the time of a seed. An ordinary task is worth 100 to 30,000 µcr."""
    policy = evolve(policy, slice_at_least=rng.choice((200, 2_000)))
    if rng.random() < 0.5:
        policy = evolve(
            policy, slices=rng.choice((2, 4, 16)), claim_ms=rng.choice((20_000, 60_000))
        )
    policy = evolve(policy, head_every=rng.choice((2, 5, 1_024)))
    if rng.random() < 0.3:
        policy = evolve(policy, credit_line=int(10 ** rng.uniform(3.0, 5.0)))
    return policy


def _with_copies(options: Options, rng: Random) -> Options:
    """Some seeds have them; then half the time ended tasks are forgotten soon, not so copies."""
    copied = _maybe(rng, 0.3, 0.7)
    if not copied or rng.random() < 0.5:
        return evolve(options, copied=copied)
    return evolve(options, copied=copied, policy=evolve(options.policy, tasks_ended_max=1))


def _draw_nodes(rng: Random) -> int:
    if rng.random() < 0.02:
        return rng.randint(13, 40)
    return min(rng.randint(2, 12), rng.randint(3, 12))


def _draw_policy(rng: Random) -> Policy:
    """Mostly the defaults; sometimes bounds so tight that they are really reached."""
    policy = Policy()
    if rng.random() < 0.3:
        policy = evolve(policy, ttl_ms=rng.choice((6_000, 30_000)))
    if rng.random() < 0.3:
        policy = evolve(
            policy,
            candidates=2,
            candidates_wide=4,
            candidates_at_random=1,
            offers_max=rng.randint(2, 6),
            tasks_open_max=rng.randint(2, 6),
            tasks_ended_max=rng.randint(1, 4),
            holds_max=rng.randint(1, 3),
            tenancies_max=rng.randint(1, 3),
            allocs_max=rng.randint(2, 8),
        )
    return policy
