"""The journal: what was acknowledged is there after any crash; what is broken is not believed."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve
from market_players import RESULT, order

from mesh.errors import Corruption, Unavailable
from mesh.ids import PeerId, TaskId, task_id
from mesh.market.copies import copies_of
from mesh.market.order import Group, State, TaskRecord
from mesh.sansio import ForgetTenancy, PersistTask, PersistTenancy
from mesh.storage.journal import VERSION, open_journal

BUYER = PeerId(bytes(32))
SUPPORT = Path(__file__).parents[2] / "support"


def record(key: bytes = b"k", at: int = 0, **changes: object) -> TaskRecord:
    given = TaskRecord(order(BUYER, key), State.WAITING, submitted_ms=at)
    return evolve(given, **changes)  # type: ignore[arg-type]


def tenancy(number: int = 0, fence: int = 1, answer: bytes = b"") -> PersistTenancy:
    return PersistTenancy(TaskId(bytes([number] * 16)), fence, BUYER, b"alloc", answer)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.sqlite"


def test_what_was_committed_is_there_after_a_restart(path: Path) -> None:
    done = record(b"done", 1, state=State.DONE, result=RESULT, amount=7_100)
    with open_journal(path) as journal:
        journal.commit([PersistTask(record()), PersistTask(done), tenancy()])
    with open_journal(path) as journal:
        assert journal.tasks(9) == [record(), done]
        assert journal.tenancies() == [tenancy()]
        assert journal.task(done.order.task) == done
        assert journal.task(task_id(BUYER, b"unknown")) is None


def test_the_last_word_on_a_task_counts(path: Path) -> None:
    with open_journal(path) as journal:
        journal.commit([PersistTask(record()), PersistTask(record(round=2))])
        journal.commit([PersistTask(record(round=3))])
        assert journal.tasks(9) == [record(round=3)]


def test_a_tenancy_is_forgotten_by_task_and_fence(path: Path) -> None:
    with open_journal(path) as journal:
        journal.commit([tenancy(1, 1), tenancy(1, 2), tenancy(2, 1)])
        journal.commit([tenancy(1, 2, answer=b"done"), ForgetTenancy(TaskId(bytes([1] * 16)), 1)])
        journal.commit([ForgetTenancy(TaskId(bytes([9] * 16)), 1)])
        assert journal.tenancies() == [tenancy(1, 2, answer=b"done"), tenancy(2, 1)]


def test_all_open_tasks_come_back_and_the_newest_of_the_ended(path: Path) -> None:
    ended = [record(bytes([n]), at=n, state=State.FAILED) for n in range(10)]
    open_ = [record(bytes([n, n]), at=n) for n in range(3)]
    with open_journal(path) as journal:
        journal.commit([PersistTask(each) for each in (*ended, *open_)])
        assert journal.tasks(0) == open_
        tasks = journal.tasks(4)
        assert [each for each in tasks if each.state.is_final] == ended[-4:]
        assert [each.submitted_ms for each in tasks] == sorted(each.submitted_ms for each in tasks)
        assert journal.task(ended[0].order.task) == ended[0], "the others are still on disk"
        awarded = {ended[1].order.task, ended[9].order.task, open_[0].order.task}
        tasks = journal.tasks(1, awarded)
        assert [each for each in tasks if each.state.is_final] == [ended[1], ended[9]]
        assert [each for each in tasks if not each.state.is_final] == open_


def test_an_open_task_comes_back_with_its_copies_that_have_ended(path: Path) -> None:
    """Whoever ran those is not to run this one: an old journal row counts."""
    one, two, three = copies_of(order(BUYER, group=Group(order(BUYER).task, 3)))
    ended = [TaskRecord(copy, State.DONE, submitted_ms=1) for copy in (one, two)]
    open_ = TaskRecord(three, State.WAITING, submitted_ms=1)
    newer = [record(bytes([n]), at=n + 2, state=State.FAILED) for n in range(3)]
    with open_journal(path) as journal:
        journal.commit([PersistTask(each) for each in (*ended, open_, *newer)])
        assert journal.tasks(1) == [*ended, open_, newer[-1]]
        journal.commit([PersistTask(evolve(open_, state=State.DONE))])
        assert journal.tasks(1) == [newer[-1]]


def test_every_start_has_a_number_of_its_own(path: Path) -> None:
    epochs = []
    for _ in range(3):
        with open_journal(path) as journal:
            epochs += [journal.next_epoch(), journal.next_epoch()]
    assert epochs == [1, 2, 3, 4, 5, 6]


def test_a_commit_is_all_or_nothing(path: Path) -> None:
    with open_journal(path) as journal:
        journal.commit([tenancy(1)])
        with pytest.raises(AssertionError):
            journal.commit([tenancy(2), "no write"])  # type: ignore[list-item]
        assert journal.tenancies() == [tenancy(1)]
        journal.commit([tenancy(3)])


def test_a_disk_that_does_not_take_it_is_named(path: Path) -> None:
    with open_journal(path) as journal:
        with sqlite3.connect(path) as other:
            other.execute("BEGIN IMMEDIATE")
            journal._database.execute("PRAGMA busy_timeout = 1")
            with pytest.raises(Unavailable, match="cannot be written"):
                journal.commit([tenancy(1)])
        other.close()
        journal.commit([tenancy(1)])


def test_no_folder_is_the_operators_to_mend(tmp_path: Path) -> None:
    with pytest.raises(Unavailable), open_journal(tmp_path / "none" / "node.sqlite"):
        pass


def tamper(path: Path, statement: str, *values: object) -> None:
    database = sqlite3.connect(path)
    with database:
        database.execute(statement, values)
    database.close()


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\x02", bytes(300_000)])
def test_a_broken_record_is_corruption(path: Path, data: bytes) -> None:
    with open_journal(path) as journal:
        journal.commit([PersistTask(record()), tenancy()])
    tamper(path, "UPDATE task SET record = ?", data)
    tamper(path, "UPDATE tenancy SET record = ?", data)
    with open_journal(path) as journal:
        with pytest.raises(Corruption, match="broken TaskRecord"):
            journal.tasks(9)
        with pytest.raises(Corruption, match="broken TaskRecord"):
            journal.task(record().order.task)
        with pytest.raises(Corruption, match="broken PersistTenancy"):
            journal.tenancies()


def test_a_file_that_is_no_journal_is_corruption(path: Path) -> None:
    path.write_bytes(b"hello" * 1_000)
    with pytest.raises(Corruption), open_journal(path):
        pass


def test_a_damaged_page_is_corruption_wherever_it_is_met(path: Path) -> None:
    with open_journal(path) as journal:
        for number in range(100):
            journal.commit([PersistTask(record(bytes([number]), at=number)), tenancy(number)])
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8 * 4_096)  # the schema is read; the rows are not
        file.write(random.Random(1).randbytes(size - file.tell()))
    with open_journal(path) as journal:
        with pytest.raises(Corruption, match="damaged"):
            journal.tasks(999)
        tasks = [record(bytes([number])).order.task for number in range(100)]
        with pytest.raises(Corruption):
            _ = [journal.task(task) for task in tasks]


def test_the_file_of_a_newer_mesh_is_left_alone(path: Path) -> None:
    with open_journal(path) as journal:
        journal.commit([tenancy()])
    tamper(path, f"PRAGMA user_version = {VERSION + 1}")
    before = path.read_bytes()
    why = f"newer mesh \\(version {VERSION + 1}\\)"
    with pytest.raises(Unavailable, match=why), open_journal(path):
        pass
    assert path.read_bytes() == before


WRITER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(SUPPORT)!r})
from mesh.ids import PeerId, TaskId
from mesh.sansio import PersistTenancy
from mesh.storage.journal import open_journal
with open_journal(Path(sys.argv[1])) as journal:
    for number in range(int(sys.argv[2]), 1 << 30):
        task, buyer = TaskId(number.to_bytes(16, "big")), PeerId(bytes(32))
        journal.commit([PersistTenancy(task, fence, buyer, b"", b"") for fence in (1, 2)])
        print(number, flush=True)
"""


@pytest.mark.slow
def test_no_acknowledged_write_is_lost_by_kill_9(path: Path) -> None:
    dice, told = random.Random(5), -1
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(told + 1)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        with writer, writer.stdout:
            for _ in range(dice.randrange(1, 60)):
                told = int(writer.stdout.readline())
            writer.kill()
            for line in writer.stdout:
                told = int(line) if line.endswith("\n") else told
        with open_journal(path) as journal:
            kept = [(int.from_bytes(each.task, "big"), each.fence) for each in journal.tenancies()]
        whole = [(number, fence) for number in range(len(kept) // 2) for fence in (1, 2)]
        assert kept == whole, "all of a commit, or nothing"
        assert len(kept) // 2 > told
