"""What supervisor and worker say to one another: length-prefixed msgpack arrays. Pure.

    supervisor → worker   ["run", job, module, [[name, path], …], scratch, kept, cpu_milli,
                           is_moved]
                          ["lay", [[at, was_at, length], …]]
                          ["begin", [[at, was_at, length], …], fuel, cpu_milli]
                          and of a series: one manifest after another
                          ["hold"]                          stand still, and show what you are
                          ["go"]                            go on, having been held
                          ["withdraw"]                      never mind, unless you stand already
    worker → supervisor   ["ready"]                         waiting for its job
                          ["laid"]                          the answer to "lay"
                          ["started", can_move]             compiled; the guest's clock runs
                          ["progress", fuel, rss]           about four times a second
                          ["still", head, [region, …]]      it stands, and waits for "go"
                          ["unmoved", reason]               it goes on; the other answer to "hold"
                          ["done", status, exit_code, detail, fuel, stdout, stderr]
                          ["failed", reason]                this machine's fault, not the task's

To every "hold" there is one answer, unless the run ends before. Where a task was moved, its worker
waits for states in REST: to lay them in its memory, and to begin with the last.

A worker runs a stranger's code: what it says is checked like any peer's.
"""

from __future__ import annotations

from typing import TypeAlias, TypeGuard

import msgpack
from attrs import frozen

from mesh.errors import PeerError
from mesh.migration.snapshot import HEAD_MAX, REGION, Shared
from mesh.runtime.manifest import INPUTS_MAX, JOB_BYTES_MAX, MEMORY_MAX, STATUSES, STDOUT_MAX

HEADER = 4
FRESH = "compiled"
"""The file in `scratch` that a worker leaves before it says that it started."""
IMAGE = "image"
"""The file in `scratch` in which a worker keeps the memory of a guest that it was told to hold."""
REST = "state/snapshot"
"""The file in `scratch` in which a worker finds the states that it is told of."""
REGIONS_MAX = MEMORY_MAX // REGION
FRAME_MAX = HEAD_MAX + JOB_BYTES_MAX + (INPUTS_MAX + 4) * 8192 + 32 * REGIONS_MAX
DETAIL_MAX = 400
"""Characters of a reason."""


@frozen
class RunJob:
    """Run this; paths are absolute and of this machine."""

    job: bytes
    module: str
    inputs: tuple[tuple[str, str], ...]
    scratch: str
    """A folder that holds the empty folders out and tmp."""
    kept: str
    """Where the compiled module is, if it was kept; to compile anew leaves it in `scratch`."""
    cpu_milli: int
    """The most of a core that it may take, in thousandths; it rests for the rest."""
    is_moved: bool
    """Whether it waits for a state to begin with."""


@frozen
class Lay:
    """Put the memory of the state in REST, a stranger's, in the place of the last one's."""

    shared: tuple[Shared, ...]
    """What is left out there, since the last state has it."""


@frozen
class Begin:
    """Do so, and go on from that state."""

    shared: tuple[Shared, ...]
    fuel: int
    """Burnt up to there."""
    cpu_milli: int
    """In the place of what the run was told: who stands by does not know yet."""


Order: TypeAlias = Lay | Begin


@frozen
class Hold:
    """Let the guest stand still as soon as it can, and show it."""


@frozen
class Go:
    """Let it go on."""


@frozen
class Withdraw:
    """Let it go on, if it does not stand still yet."""


Word: TypeAlias = Hold | Go | Withdraw


@frozen
class Ready:
    """The worker waits for its job; what that leaves it of this machine it learns from it."""


@frozen
class InPlace:
    """The memory of a state lies where it was told to; the next may come."""


@frozen
class StartedRunning:
    """The module is compiled; from here on the wall limit counts."""

    can_move: bool


@frozen
class Progress:
    """Fuel burnt so far, exactly, and bytes of memory resident."""

    fuel: int
    rss: int


@frozen
class Still:
    """The guest stands still: all that it is but its memory, which lies in IMAGE."""

    head: bytes
    """As snapshot.encode_head has it."""
    changed: tuple[int, ...]
    """Regions of the memory that are others than at the last time, in order."""


@frozen
class Unmoved:
    """The guest could not be held; it goes on."""

    reason: str


@frozen
class Ended:
    """The run came to an end by the task's own doing."""

    status: str
    exit_code: int
    detail: str
    fuel: int
    stdout: bytes
    stderr: bytes


@frozen
class Failed:
    """This machine could not run it."""

    reason: str


Report: TypeAlias = Ready | InPlace | StartedRunning | Progress | Still | Unmoved | Ended | Failed
_WORDS: dict[str, Word] = {"hold": Hold(), "go": Go(), "withdraw": Withdraw()}


def encode_run(run: RunJob) -> bytes:
    """The frame of a RunJob, header included."""
    paths = (run.module, run.inputs, run.scratch, run.kept)
    return _frame(("run", run.job, *paths, run.cpu_milli, run.is_moved))


def encode_order(order: Order) -> bytes:
    """The frame of an order, header included."""
    shared = [(one.at, one.was_at, one.length) for one in order.shared]
    match order:
        case Lay():
            return _frame(("lay", shared))
        case Begin(fuel=fuel, cpu_milli=cpu_milli):
            return _frame(("begin", shared, fuel, cpu_milli))


def encode_word(word: Word) -> bytes:
    """The frame of a word, header included."""
    return _frame((next(name for name, one in _WORDS.items() if one == word),))


def encode_report(report: Report) -> bytes:
    """The frame of a report, header included."""
    match report:
        case Ready():
            return _frame(("ready",))
        case InPlace():
            return _frame(("laid",))
        case StartedRunning(can_move=can_move):
            return _frame(("started", can_move))
        case Progress(fuel=fuel, rss=rss):
            return _frame(("progress", fuel, rss))
        case Still(head=head, changed=changed):
            return _frame(("still", head, changed))
        case Unmoved(reason=reason):
            return _frame(("unmoved", reason[:DETAIL_MAX]))
        case Ended() as e:
            return _frame(
                ("done", e.status, e.exit_code, e.detail[:DETAIL_MAX], e.fuel, e.stdout, e.stderr)
            )
        case Failed(reason=reason):
            return _frame(("failed", reason[:DETAIL_MAX]))


def frame_length(header: bytes) -> int:
    """The length of the frame behind *header*. Raises PeerError."""
    length = int.from_bytes(header, "big")
    if length > FRAME_MAX:
        raise PeerError("a frame that is too long")
    return length


def decode_run(body: bytes) -> RunJob:
    """The job for a worker. Raises PeerError."""
    match _value_of(body):
        case (
            "run",
            bytes(job),
            str(module),
            tuple(inputs),
            str(scratch),
            str(kept),
            int(cpu_milli),
            bool(is_moved),
        ):
            named = tuple((str(n), str(p)) for n, p in inputs)
            return RunJob(job, module, named, scratch, kept, cpu_milli, is_moved)
        case _:
            raise PeerError("not a run frame")


def decode_order(body: bytes) -> Order:
    """What a worker is told that waits for a state. Raises PeerError."""
    match _value_of(body):
        case ("lay", tuple(shared)):
            return Lay(tuple(Shared(*one) for one in shared))
        case ("begin", tuple(shared), int(fuel), int(cpu_milli)):
            return Begin(tuple(Shared(*one) for one in shared), fuel, cpu_milli)
        case _:
            raise PeerError("an order that no supervisor gives")


def decode_word(body: bytes) -> Word:
    """What a worker is told. Raises PeerError."""
    match _value_of(body):
        case (str(name),) if name in _WORDS:
            return _WORDS[name]
        case _:
            raise PeerError("a frame that no supervisor sends")


def decode_report(body: bytes) -> Report:
    """What a worker says. Raises PeerError, and nothing else, for any bytes."""
    match _value_of(body):
        case ("ready",):
            return Ready()
        case ("laid",):
            return InPlace()
        case ("started", bool(can_move)):
            return StartedRunning(can_move)
        case ("progress", int(fuel), int(rss)) if fuel >= 0 and rss >= 0:
            return Progress(fuel, rss)
        case ("still", bytes(head), tuple(changed)) if len(head) <= HEAD_MAX and _is_rising(
            changed
        ):
            return Still(head, changed)
        case ("unmoved", str(reason)):
            return Unmoved(reason[:DETAIL_MAX])
        case ("failed", str(reason)):
            return Failed(reason[:DETAIL_MAX])
        case (
            "done",
            str(status),
            int(exit_code),
            str(detail),
            int(fuel),
            bytes(stdout),
            bytes(stderr),
        ) if (
            status in STATUSES
            and 0 <= exit_code < 1 << 32
            and fuel >= 0
            and max(len(stdout), len(stderr)) <= STDOUT_MAX
        ):
            return Ended(status, exit_code, detail[:DETAIL_MAX], fuel, stdout, stderr)
        case _:
            raise PeerError("a frame that no worker sends")


def _is_rising(numbers: tuple[object, ...]) -> TypeGuard[tuple[int, ...]]:
    """Whether they are numbers of regions, each once and in order."""
    last = -1
    for number in numbers:
        if type(number) is not int or not last < number < REGIONS_MAX:
            return False
        last = number
    return True


def _frame(value: object) -> bytes:
    body: bytes = msgpack.packb(value, use_bin_type=True)
    assert len(body) <= FRAME_MAX
    return len(body).to_bytes(HEADER, "big") + body


def _value_of(body: bytes) -> object:
    try:
        value: object = msgpack.unpackb(body, use_list=False, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.UnpackException):
        raise PeerError("a frame that is not msgpack") from None
    return value
