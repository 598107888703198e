"""What supervisor and worker say to one another: length-prefixed msgpack arrays. Pure.

    supervisor → worker   ["run", job, module, [[name, path], …], scratch, kept, cpu_milli]
                          and of a series: one manifest after another
    worker → supervisor   ["ready"]                         waiting for its job
                          ["started"]                       compiled; the guest's clock runs
                          ["progress", fuel, rss]           about four times a second
                          ["done", status, exit_code, detail, fuel, stdout, stderr]
                          ["failed", reason]                this machine's fault, not the task's

A worker runs a stranger's code: what it says is checked like any peer's.
"""

from __future__ import annotations

from typing import TypeAlias

import msgpack
from attrs import frozen

from mesh.errors import PeerError
from mesh.runtime.manifest import INPUTS_MAX, JOB_BYTES_MAX, STATUSES, STDOUT_MAX

HEADER = 4
FRESH = "compiled"
"""The file in `scratch` that a worker leaves before it says that it started."""
FRAME_MAX = 2 * STDOUT_MAX + JOB_BYTES_MAX + (INPUTS_MAX + 3) * 8192
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


@frozen
class Ready:
    """The worker waits for its job; what that leaves it of this machine it learns from it."""


@frozen
class StartedRunning:
    """The module is compiled; from here on the wall limit counts."""


@frozen
class Progress:
    """Fuel burnt so far, exactly, and bytes of memory resident."""

    fuel: int
    rss: int


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


Report: TypeAlias = Ready | StartedRunning | Progress | Ended | Failed


def encode_run(run: RunJob) -> bytes:
    """The frame of a RunJob, header included."""
    r = run
    return _frame(("run", r.job, r.module, r.inputs, r.scratch, r.kept, r.cpu_milli))


def encode_report(report: Report) -> bytes:
    """The frame of a report, header included."""
    match report:
        case Ready():
            return _frame(("ready",))
        case StartedRunning():
            return _frame(("started",))
        case Progress(fuel=fuel, rss=rss):
            return _frame(("progress", fuel, rss))
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
        case ("run", bytes(job), str(module), tuple(inputs), str(scratch), str(kept), int(milli)):
            named = tuple((str(n), str(p)) for n, p in inputs)
            return RunJob(job, module, named, scratch, kept, milli)
        case _:
            raise PeerError("not a run frame")


def decode_report(body: bytes) -> Report:
    """What a worker says. Raises PeerError, and nothing else, for any bytes."""
    match _value_of(body):
        case ("ready",):
            return Ready()
        case ("started",):
            return StartedRunning()
        case ("progress", int(fuel), int(rss)) if fuel >= 0 and rss >= 0:
            return Progress(fuel, rss)
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
