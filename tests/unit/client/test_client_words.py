"""The client without a node: addresses, references, limits, facts and verdicts on tasks."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger_bundles import bundles, history

from ledger.evidence import Finding
from ledger.model import Entry
from mesh.client import references
from mesh.client.address import find_target, parse_address
from mesh.client.errors import (
    Ambiguous,
    BadRequest,
    NotFound,
    NotPlaced,
    TaskFailed,
    TimedOut,
    Unreachable,
    VerificationFailed,
)
from mesh.client.facts import facts_of, state_word, tagged
from mesh.client.files import (
    CHUNK,
    below,
    in_chunks,
    in_messages,
    open_file,
    read_bundle,
    write_whole,
)
from mesh.client.limits import Limits
from mesh.client.task import check
from mesh.ids import PeerId, format_peer
from mesh.paths import find_home
from mesh.v1 import node_pb2, order_pb2
from mesh.v1.order_pb2 import TaskState

A = "t-" + "7f3a" + "0" * 28
B = "t-" + "7f3b" + "0" * 28


# --- addresses


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("grpc://localhost:1", "localhost:1"),
        ("grpc://[::1]:7", "[::1]:7"),
        ("unix:/run/mesh.sock", "unix:/run/mesh.sock"),
        ("unix:///run/mesh.sock", "unix:/run/mesh.sock"),
        ("/run/mesh.sock", "unix:/run/mesh.sock"),
    ],
)
def test_an_address_may_be_written_in_several_ways(text: str, target: str) -> None:
    assert parse_address(text) == target


@pytest.mark.parametrize(
    "text", ["", "localhost", "http://127.0.0.1:1", "127.0.0.1:x", "::1:99999"]
)
def test_what_is_no_address_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_address(text)
    assert "HOST:PORT" in caught.value.hint


def test_another_machine_is_only_reached_through_a_tunnel() -> None:
    with pytest.raises(BadRequest, match="not encrypted") as caught:
        parse_address("example.com:50051")
    assert "ssh -L 50051" in caught.value.hint


def test_the_flag_goes_before_the_environment_and_that_before_the_running_node(
    tmp_path: Path,
) -> None:
    home = find_home({"MESH_HOME": str(tmp_path)})
    environ = {"MESH_ADDR": "127.0.0.1:2"}
    assert find_target("127.0.0.1:1", environ, home) == "127.0.0.1:1"
    assert find_target(None, environ, home) == "127.0.0.1:2"
    home.socket.parent.mkdir()
    home.socket.touch()
    assert find_target(None, {}, home) == f"unix:{home.socket}"


def test_without_a_running_node_the_way_to_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unreachable) as caught:
        find_target(None, {}, find_home({"MESH_HOME": str(tmp_path)}))
    assert "mesh join" in caught.value.hint


# --- references


@pytest.mark.parametrize("prefix", ["7f3a", "t-7f3a", "T-7F3A"[2:], A])
def test_a_unique_prefix_means_the_task(prefix: str) -> None:
    assert references.choose(prefix, [A, B]) == A


def test_an_ambiguous_prefix_lists_the_candidates() -> None:
    with pytest.raises(Ambiguous) as caught:
        references.choose("7f3a", [A, A[:-1] + "1"])
    assert A in caught.value.hint


@pytest.mark.parametrize("prefix", ["7f3", "t-", "zebra", ""])
def test_a_prefix_has_at_least_four_hex_digits(prefix: str) -> None:
    with pytest.raises(BadRequest, match="no task"):
        references.choose(prefix, [A, B])


def test_a_prefix_of_nothing_is_not_found() -> None:
    with pytest.raises(NotFound):
        references.choose("ffff", [A, B])


ANN, BOB = (format_peer(PeerId(bytes([n]) * 32)) for n in (1, 2))


@pytest.mark.parametrize("reference", [ANN, ANN[-4:], f"\N{HORIZONTAL ELLIPSIS}{ANN[-6:]}"])
def test_a_peer_is_named_by_its_id_or_the_end_of_it(reference: str) -> None:
    assert references.choose_peer(reference, [BOB, ANN, ANN]) == ANN


def test_a_whole_peer_id_need_not_be_known() -> None:
    assert references.choose_peer(ANN, []) == ANN


def test_a_peer_that_is_none_is_not_found_or_named_in_full() -> None:
    with pytest.raises(BadRequest, match="is no peer"):
        references.choose_peer(ANN[-3:], [ANN])
    with pytest.raises(NotFound):
        references.choose_peer(ANN[-5:], [BOB])
    with pytest.raises(Ambiguous) as caught:
        references.choose_peer("Same", ["12D3aSame", "12D3bSame"])
    assert "12D3aSame, 12D3bSame" in caught.value.hint


def test_last_is_what_was_remembered(tmp_path: Path) -> None:
    file = tmp_path / "state" / "last-task"
    with pytest.raises(NotFound):
        references.recall(file)
    references.remember(file, A)
    references.remember(file, B)
    assert references.recall(file) == B


def test_a_spoilt_memory_of_the_last_task_is_no_task(tmp_path: Path) -> None:
    file = tmp_path / "last-task"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(NotFound):
        references.recall(file)


def test_a_cid_is_checked_before_it_is_sent() -> None:
    with pytest.raises(BadRequest, match="CID"):
        references.check_cid("bafynonsense")


# --- limits


def test_limits_are_read_as_people_write_them() -> None:
    limits = Limits.read(cpus="0.5", memory="1GiB", fuel="50M", wall="90s", max_price="0.05")
    assert (limits.cpu_milli, limits.memory, limits.fuel) == (500, 1 << 30, 50_000_000)
    assert (limits.wall_ms, limits.max_price) == (90_000, 50_000)


def test_the_limits_that_are_written_by_default_are_the_defaults() -> None:
    assert Limits.read() == Limits()


# --- facts


def test_facts_have_every_field_with_plain_values() -> None:
    record = order_pb2.Task(
        task_id=A, state=TaskState.TASK_STATE_RUNNING, amount=1 << 40, answers=[order_pb2.Answer()]
    )
    facts = facts_of(record)
    assert list(facts) == [field.name for field in order_pb2.Task.DESCRIPTOR.fields]
    assert facts["state"] == "running"
    assert facts["amount"] == 1 << 40
    assert facts["result"] is None
    assert facts["answers"][0]["reason"] == ""


def test_maps_come_in_the_order_of_their_keys() -> None:
    status = node_pb2.NodeStatusResponse(counters={"b": 1, "a": 2})
    assert list(facts_of(status)["counters"].items()) == [("a", 2), ("b", 1)]


def test_the_schema_comes_first() -> None:
    assert list(tagged("mesh.task/v1", {"a": 1})) == ["schema", "a"]


def test_every_state_is_a_word() -> None:
    assert {state_word(number) for number in TaskState.values()} == {
        "unspecified",
        "waiting",
        "asking",
        "awarded",
        "running",
        "done",
        "failed",
        "cancelled",
    }


# --- files


def test_a_file_is_sent_as_its_name_and_then_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"x" * 600_000)
    with open_file(file) as opened:
        parts = list(in_chunks(file.name, opened))
    assert parts[0].name == "big"
    assert b"".join(part.chunk for part in parts[1:]) == b"x" * 600_000
    assert all(len(part.chunk) <= 1 << 18 for part in parts)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="No such file"):
        open_file(tmp_path / "none")
    with pytest.raises(BadRequest, match="Is a directory"):
        open_file(tmp_path)


def test_a_download_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.txt"

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise Unreachable("gone")

    with pytest.raises(Unreachable):
        write_whole(broken(), target)
    assert list(target.parent.iterdir()) == []
    assert write_whole([b"a", b"bc"], target) == 3
    assert target.read_bytes() == b"abc"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "", "a\0b", "a\\b"])
def test_an_output_cannot_leave_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed):
        below(tmp_path, name)


def test_an_output_may_have_folders(tmp_path: Path) -> None:
    assert below(tmp_path, "a/b.txt") == tmp_path / "a" / "b.txt"


# --- verdicts


def ended(state: TaskState.ValueType, **fields: Any) -> order_pb2.Task:
    return order_pb2.Task(task_id=A, state=state, **fields)


def test_exit_code_zero_is_good() -> None:
    result = order_pb2.Result(status="exited")
    check(ended(TaskState.TASK_STATE_DONE, fence=1, result=result))


def test_a_tasks_own_exit_code_is_kept() -> None:
    result = order_pb2.Result(status="exited", exit_code=3)
    with pytest.raises(TaskFailed, match="exit code 3") as caught:
        check(ended(TaskState.TASK_STATE_DONE, fence=1, result=result))
    assert caught.value.exit_code == 3


def test_a_broken_limit_is_a_failure_with_its_detail() -> None:
    result = order_pb2.Result(status="out-of-fuel", detail="burnt all of 10 fuel", exit_code=255)
    with pytest.raises(TaskFailed, match="burnt all of 10 fuel"):
        check(ended(TaskState.TASK_STATE_DONE, fence=1, result=result))


def test_a_task_that_nobody_ever_took_was_not_placed_and_reasons_are_counted() -> None:
    no = order_pb2.Answer(reason="too little memory free")
    record = ended(TaskState.TASK_STATE_FAILED, answers=[no, no])
    with pytest.raises(NotPlaced, match="2 × too little memory free") as caught:
        check(record)
    assert caught.value.reasons == ("2 × too little memory free",)


def test_a_price_that_is_too_low_is_told_with_the_price() -> None:
    no = order_pb2.Answer(reason="price: the floor is 40 µcr, the ceiling 1 µcr")
    with pytest.raises(NotPlaced) as caught:
        check(ended(TaskState.TASK_STATE_FAILED, answers=[no], max_price=1))
    assert "--max-price (now 0.000001 cr)" in caught.value.hint


def test_a_cancelled_task_failed() -> None:
    with pytest.raises(TaskFailed, match="cancelled"):
        check(ended(TaskState.TASK_STATE_CANCELLED))


def test_a_task_that_goes_on_has_no_verdict() -> None:
    with pytest.raises(TimedOut):
        check(ended(TaskState.TASK_STATE_RUNNING, fence=1))


# --- entries


def test_entries_go_in_messages_of_bounded_length_and_none_is_lost() -> None:
    entries = [bytes([n]) * size for n, size in enumerate((1, CHUNK, 5, CHUNK - 5, 1, 8192))]
    messages = list(in_messages(iter(entries)))
    assert [entry for message in messages for entry in message.entries] == entries
    assert all(sum(map(len, message.entries)) <= CHUNK for message in messages)
    assert len(messages) == 4
    assert list(in_messages([])) == []


def test_a_file_of_entries_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_bytes(b"".join(bundles()["whole"][0]) + b"x" * 10**6 + b"\n")
    items = list(read_bundle(path))
    assert [item for item in items if isinstance(item, Entry)] == history()
    assert all(isinstance(item, Finding) and not item.is_good for item in items[len(history()) :])
    with pytest.raises(BadRequest, match="No such file"):
        list(read_bundle(tmp_path / "none"))
