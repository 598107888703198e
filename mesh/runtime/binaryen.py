"""Binaryen in a process of its own, within limits that hold however it was come by.

    python -m mesh.runtime.binaryen MEMORY SECONDS exec    PROGRAM [ARG …]
    python -m mesh.runtime.binaryen MEMORY SECONDS library LIBRARY SOURCE TARGET

The first becomes another program (wasm-opt); the second calls Binaryen as a library. Both work on a
stranger's module: what they can take of this machine is bounded here, and how long by the caller.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

FEATURES = {
    "MutableGlobals": "mutable-globals",
    "NontrappingFPToInt": "nontrapping-float-to-int",
    "SIMD128": "simd",
    "BulkMemory": "bulk-memory",
    "SignExt": "sign-ext",
    "ReferenceTypes": "reference-types",
    "Multivalue": "multivalue",
    "ExtendedConst": "extended-const",
    "MultiMemory": "multimemory",
}
"""What Binaryen may read and write: the library's name of it, and wasm-opt's."""
OPTIMIZE = 2
"""Before Asyncify: what it keeps of a guest is less where there was less to keep. Levels above this
one also split functions, into ones whose names nobody knows."""
OPTIMIZE_AFTER = 3
"""And after: names do not matter any more, and calls of small functions are worth taking out."""
STACK_PAGES = 64
"""4 MiB for an unwound stack: four times what the machine's own stack lets a guest use."""
ASYNCIFY = {
    "asyncify-imports": "mesh.yield",
    "asyncify-onlylist": "moving.*",
    "asyncify-in-secondary-memory": "1",
    "asyncify-secondary-memory-size": str(STACK_PAGES),
}
"""Settings of the pass; the stack's memory is apart, so the guest's addresses stay as they are. By
itself the pass takes any call by a pointer for one that may be stopped in; rewrite.py knows better,
and says so in the names of functions."""


def options(source: str, target: str) -> list[str]:
    """What is said to wasm-opt."""
    enabled = ["--mvp-features", *(f"--enable-{name}" for name in FEATURES.values())]
    settings = [f"--pass-arg={name}@{value}" for name, value in ASYNCIFY.items()]
    before, after = f"-O{OPTIMIZE}", f"-O{OPTIMIZE_AFTER}"
    return [source, *enabled, before, "--asyncify", *settings, after, "-o", target]


def main(argv: list[str]) -> int:
    memory, seconds, how, program, *rest = argv
    limit(int(memory), int(seconds))
    if how == "exec":
        os.execvp(program, [program, *rest])  # noqa: S606 - found on this machine by its owner
    source, target = rest
    Path(target).write_bytes(_call_library(program, Path(source).read_bytes()))
    return 0


def limit(memory: int, seconds: int) -> None:
    """What this process, and each that it starts, may take from now on; others go first."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, seconds)
    if sys.platform == "linux":
        _limit(resource.RLIMIT_DATA, memory)
    os.nice(19)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(what, (most, most))


class _Written(ctypes.Structure):
    """BinaryenModuleAllocateAndWriteResult."""

    _fields_ = (
        ("binary", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("source_map", ctypes.c_void_p),
    )


def _call_library(path: str, wasm: bytes) -> bytes:
    """As wasm-opt with `options`. Binaryen ends the process where it cannot read *wasm*."""
    library = ctypes.CDLL(path)
    library.BinaryenModuleRead.restype = ctypes.c_void_p
    library.BinaryenModuleAllocateAndWrite.restype = _Written
    library.BinaryenModuleValidate.restype = ctypes.c_bool
    features = 0
    for name in FEATURES:
        features |= getattr(library, f"BinaryenFeature{name}")()
    module = ctypes.c_void_p(library.BinaryenModuleRead(wasm, ctypes.c_size_t(len(wasm))))
    library.BinaryenModuleSetFeatures(module, ctypes.c_uint32(features))
    for setting, value in ASYNCIFY.items():
        library.BinaryenSetPassArgument(setting.encode(), value.encode())
    library.BinaryenSetOptimizeLevel(OPTIMIZE)
    library.BinaryenSetShrinkLevel(0)
    passes = (ctypes.c_char_p * 1)(b"asyncify")
    library.BinaryenModuleOptimize(module)
    library.BinaryenSetOptimizeLevel(OPTIMIZE_AFTER)  # as a pass by itself has the last one there
    library.BinaryenModuleRunPasses(module, passes, 1)
    library.BinaryenModuleOptimize(module)
    if not library.BinaryenModuleValidate(module):
        sys.exit("what Binaryen made is not valid")
    written = library.BinaryenModuleAllocateAndWrite(module, None)
    return ctypes.string_at(written.binary, written.length)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
