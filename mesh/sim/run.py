"""`mesh sim`: play seeds, show what broke, and write down how to see it again."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

from mesh.errors import PeerError
from mesh.sim.jobs import play_all
from mesh.sim.node import CRASHES
from mesh.sim.options import Options, draw
from mesh.sim.replay import read_black_box, replay
from mesh.sim.shrink import shrink
from mesh.sim.transcript import Json, dump, load, read_line, write_lines
from mesh.sim.world import Outcome, World


def main(argv: Sequence[str]) -> int:
    """Play what *argv* says. 0: every promise held. 1: one was broken. 2: bad arguments."""
    arguments = _parser().parse_args(list(argv))
    if arguments.replay:
        try:
            return _replay(Path(arguments.replay))
        except (OSError, PeerError) as error:
            sys.stderr.write(f"mesh sim: {arguments.replay}: {error}\n")
            return 2
    if arguments.seed is not None:
        return _show(draw(arguments.seed), Path(arguments.out), is_small=arguments.shrink)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    return _play(play_all(seeds, arguments.jobs), Path(arguments.out), is_json=arguments.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mesh sim", description="The same kernel in a simulated, faulty world."
    )
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds (200)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--seed", type=int, help="one seed, event by event")
    parser.add_argument("--shrink", action="store_true", help="with --seed: fewer faults, same end")
    parser.add_argument("--replay", help="a failed seed's file, or a node's black box")
    parser.add_argument("--out", default=".", help="where failed seeds are written (.)")
    parser.add_argument("--json", action="store_true", help="the summary as one JSON object")
    return parser


def _play(outcomes: Iterable[Outcome], out: Path, *, is_json: bool) -> int:
    seen: list[Outcome] = []
    for outcome in outcomes:
        seen.append(outcome)
        if outcome.promise:
            path = _save(outcome, out)
            if not is_json:
                _say(f"seed {outcome.options.seed}: {outcome.promise}: {outcome.detail}")
                _say(f"  again: mesh sim --replay {path}")
    summary = summarize(seen)
    if is_json:
        _say(json.dumps(summary))
    else:
        _say(
            f"{summary['seeds']} seeds, {summary['violations']} violations, "
            f"{summary['simulated_hours']} h simulated, {summary['events']} events, "
            f"{summary['done']} of {summary['tasks']} tasks done, trace {summary['trace']}"
        )
    return 1 if summary["violations"] else 0


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Json]:
    """The figures of many seeds."""
    trace = blake2b(digest_size=16)
    for outcome in outcomes:
        trace.update(outcome.trace.encode())
    broken = [outcome for outcome in outcomes if outcome.promise]
    return {
        "seeds": len(outcomes),
        "violations": len(broken),
        "broken": [
            {"seed": outcome.options.seed, "promise": outcome.promise, "detail": outcome.detail}
            for outcome in broken
        ],
        "simulated_hours": round(sum(outcome.virtual_s for outcome in outcomes) / 3600, 1),
        "events": sum(outcome.events for outcome in outcomes),
        "tasks": sum(outcome.tasks for outcome in outcomes),
        "done": sum(outcome.done for outcome in outcomes),
        "trace": trace.hexdigest(),
    }


def _show(options: Options, out: Path, *, is_small: bool) -> int:
    """Play one world aloud."""
    if is_small:
        outcome = World(options).run()
        if outcome.promise:
            options = shrink(outcome).options
    outcome = World(options, on_event=_say).run()
    for name, count in outcome.counters:
        _say(f"{count:8} {name}")
    _say(f"{outcome.events} events in {outcome.virtual_s:.0f} s, trace {outcome.trace}")
    if not outcome.promise:
        return 0
    _say(f"{outcome.promise}: {outcome.detail}")
    _say(f"  again: mesh sim --replay {_save(outcome, out)}")
    return 1


def _save(outcome: Outcome, out: Path) -> Path:
    """Write a failed seed: its options and its last events."""
    path = out / f"sim-{outcome.options.seed}.jsonl"
    header: Json = {
        "kind": "seed",
        "promise": outcome.promise,
        "detail": outcome.detail,
        "options": dump(outcome.options),
    }
    last: list[Json] = [
        {"now": now, "node": node, "event": dump(event)} for now, node, event in outcome.last_events
    ]
    path.write_text(write_lines([header, *last]), encoding="utf-8")
    return path


def _replay(path: Path) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = read_line(lines[0]) if lines else None
    if isinstance(header, dict) and header.get("kind") == "seed":
        options = load(header["options"])
        if not isinstance(options, Options):
            raise PeerError("no options in it")
        return _show(options, path.parent, is_small=False)
    try:
        for step in replay(read_black_box(lines)):
            _say(f"{step.now:.6f} {step.event}")
            for action in step.actions:
                _say(f"    {action}")
    except CRASHES as error:
        _say(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
