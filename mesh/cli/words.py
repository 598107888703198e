"""Facts as people read them: short names, states, money with its unit. Text only, no printing.

Much of it was written by strangers (reasons, file names), so `clean` stands before every terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mesh import units
from mesh.tier import T0, T1, promise

Facts = Mapping[str, Any]
Lines = list[tuple[str, str]]
Naming = Callable[[str], str]
"""What to call a peer."""


def clean(text: str) -> str:
    """*text* without anything that could move a cursor or colour a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def short_task(task: str) -> str:
    """`t-7f3a2c01`: enough to type."""
    return task[:10]


def short_peer(peer: str) -> str:
    """`…XnYt7Q`: the end of a peer id, since they all begin alike."""
    return f"…{peer[-6:]}" if peer else "-"


def short_cid(cid: str) -> str:
    """`bafybe…x5jq3y`."""
    return f"{cid[:6]}…{cid[-6:]}" if cid else "-"


def show_fuel(fuel: int) -> str:
    """`12,345,678 fuel`."""
    return f"{fuel:,} fuel"


def show_chance(thousandths: int) -> str:
    """`98 %`: the lower whole percentage, so that no promise looks better than it is."""
    return f"{thousandths // 10} %"


def show_cores(milli: int) -> str:
    """`1 core`, `1.5 cores`."""
    return f"{units.format_cores(milli)} core{'' if milli == 1000 else 's'}"


def show_capacity(capacity: Facts | None) -> str:
    """`1.5 cores · 4 GiB RAM · 20 GiB disk · 2 slots`, or `nothing`."""
    if capacity is None or not any(capacity.values()):
        return "nothing"
    slots = capacity["slots"]
    return (
        f"{show_cores(capacity['cpu_milli'])}"
        f" · {units.show_size(capacity['memory'])} RAM"
        f" · {units.show_size(capacity['disk'])} disk"
        f" · {slots} slot{'' if slots == 1 else 's'}"
    )


def show_cost(task: Facts) -> str:
    """What was paid, or the ceiling while nothing was."""
    if task["settle"]:
        return units.format_money(task["amount"])
    return f"≤{units.format_money(task['max_price'])}"


def credit_tier(tier: str) -> str:
    """What bounds an overspend, in the node's words, or in ours where it only names the tier."""
    return promise(tier) if tier in (T0, T1) else clean(tier)


def bid_lines(answers: Sequence[Facts]) -> Lines:
    """Bids and refusals with price, promise, reason and verdict."""
    return [("bid" if answer["is_bid"] else "refusal", show_answer(answer)) for answer in answers]


def show_movable(module: Facts) -> str:
    """Whether a module can be moved, and what it says it was made of."""
    if not module["is_movable"]:
        return f"cannot be moved: {clean(module['reason'])}"
    if not module["source"]:
        return f"can be moved; {clean(module['reason'])}"
    how = f"{clean(module['instrumenter'])} ({clean(module['policy'])})"
    return f"can be moved: made of {short_cid(module['source'])} by {how}"


def show_answer(answer: Facts, name: Naming = short_peer) -> str:
    """One candidate's answer on one line."""
    who = name(answer["peer"])
    if not answer["is_bid"]:
        return f"{who}  {clean(answer['reason'])}"
    text = (
        f"{who}  at most {units.show_money(answer['price'])}"
        f"  {show_chance(answer['p_on_time'])} on time"
        f"  in {units.show_duration(answer['finish_ms'])}  ({clean(answer['reason'])})"
    )
    return f"{text}  {clean(answer['verdict'])}" if answer["verdict"] else text


def task_lines(task: Facts) -> Lines:
    """A task and what came of it."""
    lines = [
        ("task", f"{task['task_id']}  {clean(task['name'])}"),
        ("state", clean(f"{task['state']}  {task['reason']}").strip()),
        *_copy_lines(task),
        *bid_lines(task["answers"]),
    ]
    if task["executor"]:
        lines.append(("executor", task["executor"]))
    if task["moves"]:
        lines.append(("moves", f"{task['moves']} executors before this one"))
    lines += [
        ("moved", f"from {short_peer(step['source'])} at {show_fuel(step['fuel'])}")
        for step in task["path"]
    ]
    result = task["result"]
    if result:
        lines += [
            ("ended", clean(f"{result['status']}, exit code {result['exit_code']}")),
            ("fuel", _burnt(task)),
            ("output", result["output"]),
        ]
        if result["detail"] != task["reason"]:
            lines.append(("detail", clean(result["detail"])))
    elif task["fuel"]:
        kept = f", kept up to {show_fuel(task['saved_fuel'])}" if task["saved_fuel"] else ""
        lines.append(("fuel", f"{show_fuel(task['fuel'])} so far{kept}"))
    if task["settle"]:
        ceiling = units.format_money(task["max_price"])
        lines.append(("cost", f"{units.show_money(task['amount'])} of at most {ceiling}"))
        lines.append(("receipt", task["settle"]))
    return lines


def _burnt(task: Facts) -> str:
    """By all executors together; the time is that of the last."""
    result = task["result"]
    told = f"{show_fuel(result['fuel'])} in {units.show_duration(result['run_ms'])}"
    return f"{show_fuel(task['fuel'])}, the last {told}" if task["path"] else told


def show_copies(task: Facts) -> str:
    """`3 copies agree`, or which of how many it is; empty for a task without copies."""
    count, agreement = len(task["copies"]), task["agreement"]
    if not count or agreement is None:
        return ""
    if task["task_id"] != task["group"]:
        number = task["copies"].index(task["task_id"]) + 1
        return f"copy {number} of {count} of {short_task(task['group'])}"
    words = {
        "open": f"{len(agreement['missing'])} of {count} copies still to come",
        "agreed": f"all {count} copies agree",
        "disagreed": f"{count} copies disagree",
        "short": f"{count - len(agreement['missing'])} of {count} copies to compare",
        "forgotten": f"{count} copies, some forgotten",
    }
    return words.get(agreement["verdict"], f"{count} copies")


def _copy_lines(task: Facts) -> Lines:
    """What several copies came to, who dissents, and what is proven."""
    told = show_copies(task)
    if not told:
        return []
    agreement = task["agreement"]
    lines = [("copies", told)]
    if agreement["majority"] and agreement["dissenters"]:
        lines.append(("alike", "  ".join(agreement["majority"])))
    lines += [("dissents", dissenter) for dissenter in agreement["dissenters"]]
    for proof in agreement["proofs"]:
        verdict = "billed as it is" if proof["is_good"] else "proven wrong"
        told = f"{short_task(proof['task_id'])} by {short_peer(proof['seller'])}: {verdict}"
        lines.append(("run again", f"{told}: {clean(proof['detail'])}"))
    if agreement["note"]:
        lines.append(("run again", clean(agreement["note"])))
    return lines


def totals(tasks: Sequence[Facts]) -> str:
    """`3 tasks: 1 waiting, 1 running, 1 done, 0 failed`."""
    groups = {
        "waiting": ("waiting", "asking", "awarded"),
        "running": ("running",),
        "done": ("done",),
        "failed": ("failed", "cancelled"),
    }
    counts = [
        f"{sum(task['state'] in states for task in tasks)} {name}"
        for name, states in groups.items()
    ]
    return f"{len(tasks)} task{'' if len(tasks) == 1 else 's'}: {', '.join(counts)}"
