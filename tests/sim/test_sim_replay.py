"""Transcripts: what is written down is what happened, and can happen again."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from mesh.errors import PeerError
from mesh.market.credit import Books
from mesh.market.own_chain import read_past
from mesh.market.policy import Policy
from mesh.sansio import Action, Event
from mesh.sim.node import Node
from mesh.sim.options import Options, draw
from mesh.sim.replay import Facts, read_black_box, replay, write_black_box
from mesh.sim.restart import NET
from mesh.sim.run import main
from mesh.sim.shrink import shrink
from mesh.sim.transcript import dump, dump_event, load, load_event
from mesh.sim.world import World

BROKEN = Policy(margin_ms=-9_000)
"""A grantor that gives a task away nine seconds before its holder stops."""


class Overheard(World):
    """A world that writes down what its first node was told."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.heard: list[tuple[float, Event]] = []

    def handled(self, source: Node, event: Event, actions: list[Action]) -> None:
        super().handled(source, event, actions)
        if source.index == 0 and source.boots == 1:
            self.heard.append((source.reading, event))


def _overhear() -> tuple[Facts, list[tuple[float, Event]]]:
    world = Overheard(evolve(draw(3), crashes=0.0, ambushes=0.0, byzantine=0))
    assert world.run().promise == ""
    node = world.nodes[0]
    facts = Facts(
        peer=node.peer,
        policy=world.options.policy,
        seed=7,
        past=read_past(node.peer, NET, ()),
        books=Books(),
        is_confirmed=True,
        records=(),
        tenancies=(),
        epoch=1,
        epoch_ms=1_700_000_000_000,
        shop=node.shop,
    )
    return facts, world.heard


def test_every_event_survives_being_written() -> None:
    _, heard = _overhear()
    events = [event for _, event in heard]
    assert len({type(event) for event in events}) > 5
    assert [load_event(dump_event(event)) for event in events] == events


def test_options_survive_being_written() -> None:
    assert load(dump(draw(11))) == draw(11)


@pytest.mark.parametrize(
    "line",
    ["", "[", '{"$":"Path"}', '{"$":"Started","x":1}', '{"enum":"State","value":"odd"}', "7"],
)
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(PeerError):
        load_event(line)


def test_a_black_box_gives_the_same_actions_each_time() -> None:
    facts, heard = _overhear()
    lines = list(write_black_box(facts, heard, dropped=0))
    box = read_black_box(lines)
    assert (box.facts, list(box.events)) == (facts, heard)
    first = list(replay(box))
    assert len(first) == len(heard)
    assert any(step.actions for step in first)
    assert list(replay(read_black_box(lines))) == first


def test_a_black_box_without_its_beginning_is_not_run() -> None:
    facts, heard = _overhear()
    box = read_black_box(list(write_black_box(facts, heard[5:], dropped=5)))
    with pytest.raises(PeerError, match="5 events are gone"):
        list(replay(box))


def test_what_is_no_black_box_is_refused() -> None:
    for lines in ([], ["{}"], ['{"kind":"blackbox"}']):
        with pytest.raises(PeerError):
            read_black_box(lines)


def _failing() -> Options:
    options = draw(2)
    return evolve(options, policy=BROKEN, loss=0.2, snares=0.1, byzantine=0, nodes=5, tasks=12)


def test_a_failed_world_shrinks_and_still_fails_alike() -> None:
    outcome = World(_failing()).run()
    assert outcome.promise == "S1"
    small = shrink(outcome)
    assert small.promise == "S1"
    assert small.options.policy == BROKEN
    assert small.options.tasks <= outcome.options.tasks
    assert small.options.partitions == 0.0


def test_a_failed_seed_is_written_and_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.sim.run.draw", lambda seed: _failing())
    assert main(["--seed", "2", "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().out.splitlines()
    (path,) = tmp_path.glob("sim-*.jsonl")
    assert told[-1].endswith(f"mesh sim --replay {path}")
    assert main(["--replay", str(path)]) == 1
    assert capsys.readouterr().out.splitlines() == told


def test_a_file_that_is_no_transcript_is_an_error_and_no_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "empty"
    path.write_text("")
    assert main(["--replay", str(path)]) == 2
    assert main(["--replay", str(tmp_path / "missing")]) == 2
    assert "mesh sim: " in capsys.readouterr().err
