"""A module and the system calls that it imports, bound once for any number of guests.

wasmtime's own way to call Python looks at every type of every call anew, and takes five times as
long as the call itself. Here the signature is known beforehand, so that numbers are taken from
where wasmtime left them.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, Protocol

import wasmtime
from wasmtime import _ffi as ffi

from mesh.errors import Refused
from mesh.runtime.module import YIELD
from mesh.runtime.preview1 import NAMESPACE, SIGNATURES

_KINDS = {"i": wasmtime.ValType.i32, "I": wasmtime.ValType.i64}
_PLACES = {"i": "I12x", "I": "Q8x"}
"""Of a number among arguments: each has sixteen bytes."""
_NO_FINALIZER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)()
_WHY = b"a system call ended the guest"


class Called(Protocol):
    """Whoever answers the calls: the guest that runs."""

    def perform(self, name: str, args: tuple[int, ...]) -> int: ...


class Linkage:
    """Guests are made of it one after another; calls are answered by `guest`, one at a time."""

    def __init__(self, engine: wasmtime.Engine, module: wasmtime.Module) -> None:
        """Raises Refused where the module imports what there is not."""
        self.engine = engine
        self.module = module
        self.guest: Called | None = None
        self.failure: BaseException | None = None
        """What a call raised; wasmtime only knows that it ended."""
        self._bound: list[Any] = []  # wasmtime does not keep them alive
        linker = wasmtime.Linker(engine)
        for found in {(entry.module, entry.name) for entry in module.imports}:
            self._bind(linker, found)
        try:
            self._pre = linker.instantiate_pre(module)
        except wasmtime.WasmtimeError as error:
            raise Refused(f"the module cannot be instantiated: {str(error)[:200]}") from None

    def instantiate(self, store: wasmtime.Store) -> wasmtime.Instance:
        """Raises wasmtime's errors."""
        return self._pre.instantiate(store)

    def _bind(self, linker: wasmtime.Linker, found: tuple[str, str | None]) -> None:
        namespace, name = found
        if found == YIELD:
            signature, has_result = "", False
        elif namespace == NAMESPACE and name in SIGNATURES:
            signature, has_result = SIGNATURES[name], name != "proc_exit"
        else:
            return  # nothing is there: it will be refused
        assert name is not None
        results = [wasmtime.ValType.i32()] if has_result else []
        kind = wasmtime.FuncType([_KINDS[letter]() for letter in signature], results)
        bound = self._entry(name, signature, has_result)
        self._bound.append(bound)
        names = (namespace.encode(), len(namespace), name.encode(), len(name))
        error = ffi.wasmtime_linker_define_func_unchecked(
            linker.ptr(), *names, kind.ptr(), bound, None, _NO_FINALIZER
        )
        assert not error

    def _entry(self, name: str, signature: str, has_result: bool) -> Any:  # noqa: ANN401 - of ctypes
        """Where wasmtime jumps to; nothing that is raised may pass through it."""
        numbers = struct.Struct("<" + "".join(_PLACES[letter] for letter in signature))

        def enter(_env: object, _caller: object, places: Any, _count: int) -> int:  # noqa: ANN401 - of ctypes
            try:
                assert self.guest is not None
                args = numbers.unpack(ctypes.string_at(places, numbers.size))
                result = self.guest.perform(name, args)
                if has_result:
                    places[0].i32 = result
            except BaseException as error:  # noqa: BLE001 - it goes on where the guest was started
                self.failure = error
                trap = ffi.wasmtime_trap_new(_WHY, len(_WHY))
                return ctypes.cast(trap, ctypes.c_void_p).value or 0
            return 0

        return ffi.wasmtime_func_unchecked_callback_t(enter)
