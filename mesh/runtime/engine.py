"""wasmtime as it meters here: one configuration, modules compiled or read back, exact fuel.

Only workers load this. A guest runs on a fiber of its own (wasmtime's asynchronous calls) and
hands back control every SLICE of fuel: at these points its fuel is known exactly, in the middle of
a loop as well, at no cost to the count, and no thread or signal is needed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import wasmtime
from wasmtime import _ffi as ffi

from mesh.errors import Refused
from mesh.ids import RAW, Cid, cid_codec, cid_of
from mesh.runtime.linkage import Linkage
from mesh.runtime.manifest import WASMTIME
from mesh.runtime.module import TABLE_ELEMENTS_MAX, TABLES_MAX, check_module
from mesh.runtime.preview1 import Errno
from mesh.runtime.trees import Denied, HostFailure
from mesh.runtime.unrolling import unroll

SLICE = 20_000_000
"""Fuel between two looks at the meter: 3 to 20 ms of computing."""
WASM_STACK = 1 << 20
FIBER_STACK = 8 << 20
"""The guest's stack, and Python's above it during a system call."""
_FREE_FUEL = 1 << 40
"""For instantiating, which is not billed: what it burns depends on the platform."""


def check_meter() -> None:
    """Whether the wasmtime installed here is the one that receipts name."""
    installed = version("wasmtime")
    assert installed == WASMTIME, f"wasmtime {installed} is not the meter {WASMTIME}"


def open_engine() -> wasmtime.Engine:
    """An engine for guests."""
    return wasmtime.Engine(configuration())


def configuration() -> wasmtime.Config:
    """The one there is (see compiled.CONFIGURATION).

    Several memories are for guests that can be moved; module.py lets nobody else have a second.
    Stack sizes must fit each other, or wasmtime ends the process.
    """
    config = wasmtime.Config()
    config.consume_fuel = True
    config.memory_init_cow = True
    config.parallel_compilation = False
    config.cranelift_opt_level = "speed"
    config.wasm_simd = True
    config.wasm_bulk_memory = True
    config.wasm_multi_value = True
    config.wasm_reference_types = True
    config.wasm_threads = False
    config.shared_memory = False
    config.wasm_relaxed_simd = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = True
    config.wasm_exceptions = False
    config.wasm_function_references = False
    config.wasm_gc = False
    config.wasm_tail_call = False
    config.wasm_component_model = False
    config.wasm_wide_arithmetic = False
    config.wasm_custom_page_sizes = False
    config.wasm_stack_switching = False
    ffi.wasmtime_config_async_stack_size_set(config.ptr(), FIBER_STACK)
    config.max_wasm_stack = WASM_STACK
    return config


def load_module(
    engine: wasmtime.Engine, cid: Cid, path: Path, kept: Path, fresh: Path
) -> wasmtime.Module:
    """The module as an earlier worker compiled it in *kept*; or compiled now, and left in *fresh*.

    What a compiler makes is native code: it is never taken from anybody else. Raises Refused,
    HostFailure.
    """
    if kept.exists():
        with suppress(wasmtime.WasmtimeError):  # of a machine with another processor, or gone
            return wasmtime.Module.deserialize_file(engine, str(kept))
    module = _compile(engine, cid, path)
    _leave(fresh, bytes(module.serialize()))
    return module


def _compile(engine: wasmtime.Engine, cid: Cid, path: Path) -> wasmtime.Module:
    try:
        wasm = path.read_bytes()
    except OSError as error:
        raise HostFailure(f"cannot read the module: {error.strerror}") from error
    if cid_codec(cid) == RAW and cid_of(RAW, wasm) != cid:
        raise HostFailure("the module's bytes are not those of its CID")
    check_module(wasm)
    return compile_wasm(engine, wasm)


def compile_wasm(engine: wasmtime.Engine, wasm: bytes) -> wasmtime.Module:
    """*wasm* as it is metered: with its short loops written out. Raises Refused."""
    try:
        wasmtime.Module.validate(engine, wasm)
        return wasmtime.Module(engine, unroll(wasm))
    except wasmtime.WasmtimeError as error:
        raise Refused(f"the module cannot run here: {_last_line(error)}") from None


def _last_line(error: wasmtime.WasmtimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it does not compile"


def _leave(path: Path, code: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(code)
            file.flush()
            os.fsync(file.fileno())  # native code must never be half of what was compiled
    except OSError as error:
        raise HostFailure(f"cannot keep a compiled module: {error.strerror}") from error


SystemCall = Callable[[str, "GuestMemory", tuple[int, ...]], int]


class GuestMemory:
    """The guest's linear memory, as wasi.Memory: nothing outside of it is ever touched."""

    def __init__(self, store: wasmtime.Store, memory: wasmtime.Memory) -> None:
        self._owners = store, memory  # the place is theirs, and must not outlive them
        self._place = store._context(), ctypes.byref(memory._memory)

    @property
    def size(self) -> int:
        return int(ffi.wasmtime_memory_data_size(*self._place))

    def read(self, address: int, length: int) -> bytes:
        return ctypes.string_at(self._at(address, length), length)

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(self._at(address, len(data)), data, len(data))

    def _at(self, address: int, length: int) -> int:
        if address < 0 or length < 0 or address + length > self.size:
            raise Denied(Errno.FAULT)
        return ctypes.addressof(ffi.wasmtime_memory_data(*self._place).contents) + address


class Guest:
    """One instance of a module, ready to run once."""

    MEMORIES = 1

    def __init__(
        self,
        engine: wasmtime.Engine,
        module: wasmtime.Module,
        *,
        fuel: int,
        memory: int,
        call: SystemCall,
        linkage: Linkage | None = None,
    ) -> None:
        """*linkage* is that of *module*, where there is one already; then it is run alone.

        Raises Refused where it cannot be instantiated.
        """
        self._fuel = fuel
        self._call = call
        self._linkage = linkage or Linkage(engine, module)
        self._store = wasmtime.Store(engine)
        self._store.set_limits(
            memory_size=memory,
            table_elements=TABLE_ELEMENTS_MAX,
            instances=1,
            tables=TABLES_MAX,
            memories=self.MEMORIES,
        )
        self._store.set_fuel(_FREE_FUEL)
        try:
            exports = self._linkage.instantiate(self._store).exports(self._store)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            raise Refused(f"the module cannot be instantiated: {str(error)[:200]}") from None
        found, start = exports["memory"], exports["_start"]
        assert isinstance(found, wasmtime.Memory)
        assert isinstance(start, wasmtime.Func)
        self.memory = GuestMemory(self._store, found)
        self.initial_memory = self.memory.size
        self._start = start
        self._exports = exports
        self._store.set_fuel(fuel)

    def perform(self, name: str, args: tuple[int, ...]) -> int:
        """Answer one of its system calls."""
        return self._call(name, self.memory, args)

    def close(self) -> None:
        """Give back its memory now, and let nothing of it stay."""
        self._linkage.guest = None
        self._store.close()

    @property
    def fuel_used(self) -> int:
        """Exact within system calls, between slices and at the end."""
        return self._fuel - self._store.get_fuel()

    def run(self, on_slice: Callable[[], None]) -> None:
        """Run it to its end; *on_slice* between slices. Raises wasmtime.Trap, and what calls raise.

        The future borrows the places of trap and error: they live as long as it.
        """
        self._linkage.guest, self._linkage.failure = self, None
        context = self._store._context()
        refused = ffi.wasmtime_context_fuel_async_yield_interval(context, SLICE)
        assert not refused
        trap = ctypes.POINTER(ffi.wasm_trap_t)()
        error = ctypes.POINTER(ffi.wasmtime_error_t)()
        start = ctypes.byref(self._start._func)
        places = ctypes.byref(trap), ctypes.byref(error)
        future = ffi.wasmtime_func_call_async(context, start, None, 0, None, 0, *places)
        try:
            while not ffi.wasmtime_call_future_poll(future):
                on_slice()
        finally:
            ffi.wasmtime_call_future_delete(future)
        ended = wasmtime.Trap._from_ptr(trap) if trap else None
        failed = wasmtime.WasmtimeError._from_ptr(error) if error else None
        cause = self._linkage.failure or ended or failed
        if cause is not None:
            raise cause
