"""A job: everything that a run is made of, so that a re-run by anybody gives the same bytes. Pure.

A manifest is the job encoded as one block: a msgpack array, version and kind first. Its CID
(`ids.cid_of(ids.RAW, encode(job))`) is what the market trades and what a receipt names.
"""

from __future__ import annotations

from typing import TypeGuard

import msgpack
from attrs import frozen

from mesh.errors import PeerError, Refused
from mesh.ids import Cid, check_cid
from mesh.runtime.module import check_module as check_module

WASMTIME = "50.0.1"
"""The one version that meters; fuel differs between versions."""
METER = f"wasmtime-{WASMTIME}/fuel/unrolled-1"
"""wasmtime's fuel, of modules whose loops unrolling.py has written out in the first of its ways."""

STATUSES = (
    "exited",
    "out-of-fuel",
    "out-of-memory",
    "trapped",
    "disk-limit",
    "output-limit",
    "wall-limit",
    "refused",
)
"""How a run can end by the task's own doing.

exited         by itself, with an exit code; 0 is success
out-of-fuel    it burnt all that was bought
out-of-memory  its memory did not fit at the start, or it trapped with its memory all but full
trapped        it broke a rule of WebAssembly; the detail names the rule
disk-limit     it was refused bytes of disk, and then failed
output-limit   it was refused bytes of stdout or stderr, and then failed
wall-limit     it ran longer than was bought
refused        its module is none that we run; the detail says why
"""

EXIT_CODE_MAX = 127
"""Exit codes above it are recorded as this one."""
JOB_BYTES_MAX = 64 << 10
ARGS_MAX = 1024
ENV_MAX = 256
INPUTS_MAX = 256
TEXT_MAX = 32 << 10
"""Bytes of one argument or variable."""
NAME_MAX = 255
"""Bytes of the name of an input."""
STDIN = "stdin"
"""The input that is also what the program reads as its standard input, if it is a file."""
FUEL_MAX = 1 << 62
MEMORY_MAX = 4 << 30
DISK_MAX = 1 << 42
WALL_MS_MAX = 30 * 24 * 3600 * 1000
STDOUT_MAX = 4 << 20
"""Bytes of stdout, and of stderr, that can be kept."""
SEED_BYTES = 16

_VERSION = 1
_KIND = "job"


@frozen
class Job:
    """What to run, on what, within which limits."""

    module: Cid
    args: tuple[str, ...]
    """argv[1:]."""
    env: tuple[tuple[str, str], ...]
    inputs: tuple[tuple[str, Cid], ...]
    """A name under /in, and the file or directory that lies there."""
    fuel: int
    """The most fuel it may burn."""
    memory: int
    """The most bytes of linear memory."""
    disk: int
    """The most bytes in /out and /tmp together; every file and folder counts 4 KiB more."""
    wall_ms: int
    """The longest it may run, pauses apart."""
    seed: bytes
    """What its random numbers are made of."""
    t0_ns: int
    """What its clock shows at the start: nanoseconds since 1970."""
    stdout_max: int
    """Bytes of stdout, and as many of stderr, that are kept."""


def exit_status(status: str, exit_code: int) -> int:
    """The one number of a receipt: 0 is success and nothing else is.

    1 to 127 are the program's own exit codes (larger ones become 127), 128 and up the other
    STATUSES in their order. 255 is left to receipts of runs that never came to an end.
    """
    kind = STATUSES.index(status)
    return min(exit_code, EXIT_CODE_MAX) if kind == 0 else EXIT_CODE_MAX + kind


def check_job(job: Job) -> None:
    """Whether a run of *job* can be asked for. Raises Refused: which field, why and how to mend."""
    _check_texts("args", job.args, ARGS_MAX)
    _check_texts("env", [text for pair in job.env for text in pair], 2 * ENV_MAX)
    for name, _ in job.env:
        if not name or "=" in name:
            raise Refused(f"env: {name!r} cannot name a variable", "leave out = and empty names")
    _check_names(tuple(name for name, _ in job.inputs))
    _check_range("fuel", job.fuel, 1, FUEL_MAX)
    _check_range("memory", job.memory, 1 << 16, MEMORY_MAX)
    _check_range("disk", job.disk, 0, DISK_MAX)
    _check_range("wall_ms", job.wall_ms, 1, WALL_MS_MAX)
    _check_range("t0_ns", job.t0_ns, 0, 1 << 62)
    _check_range("stdout_max", job.stdout_max, 0, STDOUT_MAX)
    if len(job.seed) != SEED_BYTES:
        raise Refused(f"seed: {len(job.seed)} bytes and not {SEED_BYTES}")


def encode(job: Job) -> bytes:
    """The manifest block. Raises Refused where the job is one that cannot be run."""
    check_job(job)
    data: bytes = msgpack.packb(
        (
            _VERSION,
            _KIND,
            job.module,
            job.args,
            job.env,
            job.inputs,
            job.fuel,
            job.memory,
            job.disk,
            job.wall_ms,
            job.seed,
            job.t0_ns,
            job.stdout_max,
        ),
        use_bin_type=True,
    )
    if len(data) > JOB_BYTES_MAX:
        raise Refused(
            f"the manifest has {len(data)} bytes; the most is {JOB_BYTES_MAX}",
            "pass long arguments as an input file",
        )
    return data


def decode(data: bytes) -> Job:
    """The job of a manifest block. Raises PeerError, and nothing else, for any bytes."""
    if len(data) > JOB_BYTES_MAX:
        raise PeerError("a manifest that is too long")
    try:
        value = msgpack.unpackb(data, use_list=False, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.UnpackException):
        raise PeerError("a manifest that is not msgpack") from None
    job = _job_of(value)
    try:
        canonical = encode(job)
    except Refused as refusal:
        raise PeerError(f"a manifest that cannot be run: {refusal.reason}") from None
    if canonical != data:
        raise PeerError("a manifest in another form than the canonical one")
    return job


def _job_of(value: object) -> Job:
    match value:
        case (
            1,
            "job",
            bytes(module),
            tuple(args),
            tuple(env),
            tuple(inputs),
            int(fuel),
            int(memory),
            int(disk),
            int(wall_ms),
            bytes(seed),
            int(t0_ns),
            int(stdout_max),
        ):
            pass
        case _:
            raise PeerError("a manifest of another version or shape")
    if not _are_texts(args) or not all(_is_pair(e) and _are_texts(e) for e in env):
        raise PeerError("a manifest whose args or env are not texts")
    if not all(_is_pair(i) and isinstance(i[0], str) and isinstance(i[1], bytes) for i in inputs):
        raise PeerError("a manifest whose inputs are not names and CIDs")
    try:
        named = tuple((name, check_cid(cid)) for name, cid in inputs)
        cid = check_cid(module)
    except ValueError as error:
        raise PeerError(f"a manifest with {error}") from None
    return Job(
        module=cid,
        args=args,
        env=env,
        inputs=named,
        fuel=fuel,
        memory=memory,
        disk=disk,
        wall_ms=wall_ms,
        seed=seed,
        t0_ns=t0_ns,
        stdout_max=stdout_max,
    )


def _is_pair(value: object) -> TypeGuard[tuple[object, object]]:
    return isinstance(value, tuple) and len(value) == 2


def _are_texts(values: tuple[object, ...]) -> bool:
    return all(isinstance(value, str) for value in values)


def _check_texts(field: str, texts: tuple[str, ...] | list[str], most: int) -> None:
    if len(texts) > most:
        raise Refused(f"{field}: {len(texts)} entries; the most is {most}")
    for text in texts:
        if "\0" in text or _bytes_of(text) > TEXT_MAX:
            raise Refused(f"{field}: a text with NUL, or not UTF-8, or beyond {TEXT_MAX} bytes")


def _check_names(names: tuple[str, ...]) -> None:
    if len(names) > INPUTS_MAX:
        raise Refused(f"inputs: {len(names)} of them; the most is {INPUTS_MAX}", "use a directory")
    for name in names:
        is_plain = name.isprintable() and "/" not in name and name not in ("", ".", "..")
        if not is_plain or _bytes_of(name) > NAME_MAX:
            raise Refused(f"inputs: {name!r} cannot name a file under /in", "use a plain name")
    if len(set(names)) != len(names):
        raise Refused("inputs: a name occurs twice", "rename one of them")


def _check_range(field: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not least <= value <= most:
        raise Refused(f"{field}: {value} is not between {least} and {most}")


def _bytes_of(text: str) -> int:
    """The length in UTF-8; beyond every limit for what is not UTF-8 (lone surrogates)."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return TEXT_MAX + 1
