"""A guest that can be stopped in the middle of its work, taken along, and woken somewhere else.

At a slice of fuel the flag is raised; at its next check the guest calls mesh.yield and unwinds
(Asyncify), until `_start` returns. What it then is, are its pages, its variables and its stack. A
fresh instance that is given these rewinds to the same call, and goes on as if nothing had been.
What unwinding and rewinding burn is not billed; what they may burn is bounded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from enum import Enum

import wasmtime
from attrs import frozen
from wasmtime import _ffi as ffi

from mesh.errors import Refused
from mesh.migration.snapshot import PIECE, REGION, STACK_MAX, VARIABLES_MAX, Pages
from mesh.runtime.engine import Guest, SystemCall
from mesh.runtime.linkage import Linkage
from mesh.runtime.module import FLAG, GLOBAL_PREFIX, PAGE, STACK, STACK_AT, STATE, YIELD
from mesh.runtime.pages import Kept
from mesh.runtime.trees import HostFailure

DETOUR = 6
"""Fuel that one suspension adds to the count: the way to mesh.yield and back. For this meter
and for Asyncify as Binaryen 116 makes it; tested at hundreds of places."""
UNWIND_FUEL = 1 << 32
_STACK_BASE = 16
"""Where the stack begins in its memory, behind the two words that say how far it goes."""
_NORMAL, _UNWINDING, _REWINDING = 0, 1, 2
_MASKS = {0: (1 << 32) - 1, 1: (1 << 64) - 1, 2: (1 << 32) - 1, 3: (1 << 64) - 1}
"""Of i32, i64, f32 and f64 as wasmtime numbers them."""


class Phase(Enum):
    """What a guest is doing."""

    RUNNING = 0
    UNWINDING = 1
    REWINDING = 2


@frozen
class Image:
    """All that a suspended guest is, its pages and its system calls' state apart."""

    size: int
    """Bytes of its memory."""
    variables: tuple[tuple[int, int], ...]
    """Kind (0 i32, 1 i64, 2 f32, 3 f64) and bits of each, in the order of their names."""
    stack: bytes
    fuel: int
    """Burnt up to the yield; what the suspension adds is not in it."""


class MovableGuest(Guest):
    """One instance of a module that can be moved; fresh, or as an Image says."""

    MEMORIES = 2

    def __init__(
        self,
        engine: wasmtime.Engine,
        module: wasmtime.Module,
        *,
        fuel: int,
        memory: int,
        call: SystemCall,
        image: Image | None = None,
        pages: Iterable[Pages] = (),
        linkage: Linkage | None = None,
    ) -> None:
        """As *image* and *pages* say, which may be a stranger's, or else fresh.

        Raises Refused where it cannot be instantiated, or where these are not of it.
        """
        self._phase = Phase.RUNNING
        self._at_yield = 0
        self._engine, self._module, self._most_memory = engine, module, memory
        self._fresh: MovableGuest | None = None
        super().__init__(engine, module, fuel=fuel, memory=memory, call=call, linkage=linkage)
        self._stack = self._memory(STACK)
        if image is not None:
            self.lay(image.size, pages, {})
            self.become(image)

    # --- while it runs ------------------------------------------------------------------------

    def request(self) -> None:
        """Let it stop at its next check. Between slices, or before it runs."""
        self._set(FLAG, 0, 1)

    def withdraw(self) -> bool:
        """Let it go on after all; False where it is too late for that."""
        self._set(FLAG, 0, 0)
        return self._phase is not Phase.UNWINDING

    def advance(self, on_slice: Callable[[], None]) -> bool:
        """Run it; whether it is suspended now, and not at its end. As `run`, and Raises Refused
        where it does not rewind as an honest module does."""
        try:
            self.run(on_slice)
        except wasmtime.Trap:
            if self._phase is Phase.RUNNING:
                raise
            raise Refused("the module broke off while it was unwound or rewound") from None
        if self._phase is Phase.REWINDING:
            raise Refused("the module did not go on where it was suspended")
        return self._phase is Phase.UNWINDING

    @property
    def fuel_used(self) -> int:
        """As in Guest; while it unwinds and rewinds, what it had burnt up to the yield."""
        if self._phase is not Phase.RUNNING:
            return self._at_yield
        return super().fuel_used

    def perform(self, name: str, args: tuple[int, ...]) -> int:
        if name == YIELD[1]:
            self._on_yield()
            return 0
        if self._phase is not Phase.RUNNING:
            raise Refused("the module makes system calls while it is unwound or rewound")
        return super().perform(name, args)

    def _on_yield(self) -> None:
        match self._phase:
            case Phase.RUNNING:
                if self._get(FLAG)[1]:
                    self._unwind()
            case Phase.REWINDING:
                self._phase = Phase.RUNNING
                self._set(STATE, 0, _NORMAL)
                # Left is what was left at the yield, and what the way on from it costs more.
                self._store.set_fuel(self._fuel - self._at_yield + DETOUR)
            case Phase.UNWINDING:
                raise Refused("the module does not unwind")

    def _unwind(self) -> None:
        self._at_yield = super().fuel_used
        self._phase = Phase.UNWINDING
        self._set(FLAG, 0, 0)
        self._begin(_UNWINDING, _STACK_BASE)

    def _begin(self, state: int, stack_end: int) -> None:
        self._store.set_fuel(UNWIND_FUEL)
        size = self._stack.data_len(self._store)
        words = stack_end.to_bytes(4, "little") + size.to_bytes(4, "little")
        ctypes.memmove(self._address(self._stack), words, 8)
        self._set(STACK_AT, 0, 0)
        self._set(STATE, 0, state)

    # --- between two runs ---------------------------------------------------------------------

    def image(self) -> Image:
        """What it is, once it is suspended. Raises Refused where its stack cannot be taken."""
        stack = ctypes.string_at(self._address(self._stack) + _STACK_BASE, self._stack_length())
        names = self._variables()
        if len(stack) > STACK_MAX or len(names) > VARIABLES_MAX:
            raise Refused("its stack is too long to be taken along, or its variables too many")
        return Image(
            size=self.memory.size,
            variables=tuple(self._get(name) for name in names),
            stack=stack,
            fuel=self._at_yield,
        )

    def keep(self, kept: Kept) -> None:
        """Put its pages, once it is suspended, into *kept*. Raises HostFailure."""
        fresh, size = self._fresh_memory()
        kept.look(self._address(self._memory("memory")), self.memory.size, fresh, size)

    def wake(self) -> None:
        """Let it go on from where it is suspended, when next it is advanced."""
        length = self._stack_length()
        self._phase = Phase.REWINDING
        self._begin(_REWINDING, _STACK_BASE + length)

    def _stack_length(self) -> int:
        assert self._phase is Phase.UNWINDING
        size = self._stack.data_len(self._store)
        end = int.from_bytes(ctypes.string_at(self._address(self._stack), 4), "little")
        if not _STACK_BASE <= end <= size:
            raise Refused("the module left its stack outside of its bounds")
        return end - _STACK_BASE

    # --- before it runs -----------------------------------------------------------------------

    def lay(self, size: int, pages: Iterable[Pages], before: Mapping[int, int]) -> None:
        """Put *pages*, a stranger's, into its memory, of *size* bytes from now on.

        *before* says which others lie there already. Raises Refused.
        """
        growth = size - self.memory.size
        if growth < 0 or growth % PAGE:
            raise Refused("the snapshot has a memory or a stack that the module cannot have")
        try:
            self._memory("memory").grow(self._store, growth // PAGE)
        except wasmtime.WasmtimeError:
            raise Refused("the snapshot has more memory than was bought") from None
        base = self._address(self._memory("memory"))
        for number, mask, data in pages:
            if not 0 <= number * REGION <= size - mask.bit_length() * PIECE:
                raise Refused("the snapshot has a page outside of the memory")
            if len(data) != mask.bit_count() * PIECE:
                raise Refused("the snapshot has half a page")
            if gone := before.get(number, 0) & ~mask:
                self._freshen(base, number, gone)
            _place(base + number * REGION, mask, data)

    def become(self, image: Image) -> None:
        """Be what *image* says, a stranger's, when next it is advanced. Raises Refused."""
        names = self._variables()
        kinds = [self._get(name)[0] for name in names]
        if kinds != [kind for kind, _ in image.variables]:
            raise Refused("the snapshot has other variables than the module")
        if len(image.stack) > self._stack.data_len(self._store) - _STACK_BASE:
            raise Refused("the snapshot has a memory or a stack that the module cannot have")
        if image.fuel > self._fuel:
            raise Refused("the snapshot burnt more than was bought")
        for name, (kind, bits) in zip(names, image.variables, strict=True):
            self._set(name, kind, bits)
        ctypes.memmove(self._address(self._stack) + _STACK_BASE, image.stack, len(image.stack))
        self._phase, self._at_yield = Phase.REWINDING, image.fuel
        self._begin(_REWINDING, _STACK_BASE + len(image.stack))

    def _freshen(self, base: int, number: int, mask: int) -> None:
        """Make pages of a region what a fresh instance has there."""
        fresh, size = self._fresh_memory()
        first = number * REGION
        for at in range(first, first + mask.bit_length() * PIECE, PIECE):
            if mask >> (at - first) // PIECE & 1:
                inside = max(0, min(PIECE, size - at))
                ctypes.memmove(base + at, fresh + at, inside)
                ctypes.memset(base + at + inside, 0, PIECE - inside)

    def _fresh_memory(self) -> tuple[int, int]:
        """Address and size of that of a fresh instance."""
        if self._fresh is None:
            engine, module, memory = self._engine, self._module, self._most_memory
            self._fresh = MovableGuest(engine, module, fuel=1, memory=memory, call=_no_call)
        return self._fresh._address(self._fresh._memory("memory")), self._fresh.memory.size

    # --- exports ------------------------------------------------------------------------------

    def _variables(self) -> list[str]:
        names = (e.name for e in self._module.exports)
        return [n for n in names if n is not None and n.startswith(GLOBAL_PREFIX)]

    def _memory(self, name: str) -> wasmtime.Memory:
        found = self._exports[name]
        assert isinstance(found, wasmtime.Memory)
        return found

    def _address(self, memory: wasmtime.Memory) -> int:
        return ctypes.addressof(memory.data_ptr(self._store).contents)

    def _global(self, name: str) -> wasmtime.Global:
        found = self._exports[name]
        if not isinstance(found, wasmtime.Global) or not found.type(self._store).mutable:
            raise Refused(f"{name} is no variable of the module")
        return found

    def _get(self, name: str) -> tuple[int, int]:
        """Kind and bits: a NaN comes through as it is."""
        value = ffi.wasmtime_val_t()
        place = ctypes.byref(self._global(name)._global)
        ffi.wasmtime_global_get(self._store._context(), place, ctypes.byref(value))
        kind = int.from_bytes(ctypes.string_at(ctypes.addressof(value), 1), "little")
        if kind not in _MASKS:
            raise Refused(f"{name} is not a number")
        bits = int.from_bytes(ctypes.string_at(ctypes.addressof(value.of), 8), "little")
        return kind, bits & _MASKS[kind]

    def _set(self, name: str, kind: int, bits: int) -> None:
        value = ffi.wasmtime_val_t()
        value.kind = ctypes.c_ubyte(kind)
        ctypes.memmove(ctypes.addressof(value.of), bits.to_bytes(8, "little"), 8)
        place = ctypes.byref(self._global(name)._global)
        error = ffi.wasmtime_global_set(self._store._context(), place, ctypes.byref(value))
        if error:
            ffi.wasmtime_error_delete(error)
            raise Refused(f"{name} is not the variable that it should be")


def _no_call(name: str, memory: object, args: tuple[int, ...]) -> int:
    raise HostFailure("a fresh instance does not run")


def _place(at: int, mask: int, data: bytes) -> None:
    """Put the pages where *mask* has its bits, those side by side at once."""
    taken = 0
    while mask:
        skip = (mask & -mask).bit_length() - 1
        run = ((mask >> skip) + 1 & ~(mask >> skip)).bit_length() - 1
        length = run * PIECE
        ctypes.memmove(at + skip * PIECE, data[taken : taken + length], length)
        taken += length
        mask &= ~((1 << skip + run) - 1)
