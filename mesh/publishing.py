"""Publishing: modules made movable at this node, named by CID, and made again to be compared.

What is billed, moved and run again is the instrumented module; any node may do that. To make one
takes Binaryen, which is looked for and never required.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgpack
import trio
from attrs import define, field, frozen

from mesh.api.door import ModuleView
from mesh.errors import Exhausted, MeshError, PeerError, Refused
from mesh.ids import Cid, check_cid
from mesh.runtime.execution import MODULE_MAX
from mesh.runtime.instrument import (
    VARIABLE,
    WAIT_SECONDS_MAX,
    Binaryen,
    check_tested,
    find_binaryen,
    name_of,
    version_of,
)
from mesh.runtime.module import check_module
from mesh.runtime.origin import read_origin
from mesh.runtime.rewrite import Policy
from mesh.storage import files
from mesh.storage.blocks import Blocks
from mesh.storage.unixfs import is_whole

TRY_SECONDS = 120
"""That a client waits who would submit the module as it is as well."""
WAITING_MAX = 8
"""Modules that wait for their turn: one is made at a time."""
REASON_MAX = 300
_VERSION = 1


@frozen
class Asked:
    """To make *source* movable, in that way."""

    source: Cid
    instrumenter: str
    policy: Policy


@define
class Notebook:
    """What came of modules that were to be made movable: a CID, or why not. The newest are kept.

    A cache: where the file cannot be read, everything is done once more.
    """

    path: Path
    entries_max: int = 1_000
    _found: dict[Asked, Cid | str] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        try:
            values = msgpack.unpackb(self.path.read_bytes(), use_list=False)
            self._found = dict(_read_entries(values))
        except (OSError, ValueError, msgpack.UnpackException):
            self._found = {}

    def get(self, asked: Asked) -> Cid | str | None:
        return self._found.get(asked)

    def why_not(self, source: Cid) -> str:
        """Why the last try to make that module movable failed; empty where none did."""
        reasons = [what for asked, what in list(self._found.items()) if asked.source == source]
        return next((why for why in reversed(reasons) if isinstance(why, str)), "")

    def put(self, asked: Asked, what: Cid | str) -> None:
        """Keep it, on disk too. What the disk does not take is known until the node ends."""
        self._found.pop(asked, None)
        self._found[asked] = what
        while len(self._found) > self.entries_max:
            del self._found[next(iter(self._found))]
        values = [
            (each.source, each.instrumenter, each.policy.value, found)
            for each, found in self._found.items()
        ]
        draft = self.path.with_suffix(".new")
        try:
            draft.write_bytes(msgpack.packb((_VERSION, values), use_bin_type=True))
            draft.replace(self.path)
        except OSError:
            draft.unlink(missing_ok=True)


def _read_entries(values: object) -> Iterator[tuple[Asked, Cid | str]]:
    """Raises ValueError for anything but what a notebook writes."""
    match values:
        case (1, tuple(entries)):
            pass
        case _:
            raise ValueError("a notebook of another version")
    for entry in entries:
        match entry:
            case (bytes(source), str(instrumenter), str(policy), bytes() | str() as what):
                found = check_cid(what) if isinstance(what, bytes) else what
                yield Asked(check_cid(source), instrumenter, Policy(policy)), found
            case _:
                raise ValueError("a notebook with another entry")


class _Unmovable(Refused):
    """What would come out again."""


@frozen
class Publishing:
    """Makes modules movable, one at a time, in a process that can be killed."""

    blocks: Blocks
    scratch: Path
    kept: Path
    """The node's folder for what outlives it: the notebook, a library made loadable."""
    notebook: Notebook = field(init=False)
    _turn: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1), init=False)

    @notebook.default
    def _open_notebook(self) -> Notebook:
        self.kept.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Notebook(self.kept / "instrumented")

    async def describe(self, module: Cid) -> ModuleView:
        """Whether it can be moved, and what it says of itself. Raises MeshError."""
        return await trio.to_thread.run_sync(self._describe, module)

    async def instrument(
        self, module: Cid, policy: Policy, *, or_as_it_is: bool = False
    ) -> ModuleView:
        """*module* made movable, as blocks here; itself where it can be moved already.

        With *or_as_it_is* it comes back as it is, and why, where that is not possible: then what
        was tried in vain is not tried again. Raises MeshError.
        """
        view = await self.describe(module)
        if view.is_movable:
            return view
        seconds = TRY_SECONDS if or_as_it_is else WAIT_SECONDS_MAX
        try:
            made = await self.make(module, policy, seconds, again=not or_as_it_is)
            return await self.describe(made)
        except Refused as refusal:
            if not or_as_it_is:
                raise
            return ModuleView(module, is_movable=False, reason=refusal.reason)

    async def instrumenter(self) -> str:
        """The name of what makes modules movable here. Raises Refused."""
        _, name = await trio.to_thread.run_sync(self._find)
        return name

    async def make(self, source: Cid, policy: Policy, seconds: float, *, again: bool) -> Cid:
        """Make *source* movable in *seconds*; its CID. *again*: also where that failed before.

        Raises Refused, Exhausted.
        """
        if self._turn.statistics().tasks_waiting >= WAITING_MAX:
            raise Exhausted(f"{WAITING_MAX} modules wait to be made movable", "try again soon")
        async with self._turn:
            binaryen, name = await trio.to_thread.run_sync(self._find)
            asked = Asked(source, name, policy)
            match self.notebook.get(asked):
                case bytes(made) if await trio.to_thread.run_sync(is_whole, self.blocks, made):
                    return made
                case str(reason) if not again:
                    raise Refused(reason)
                case _:
                    pass
            try:
                made = await self._run(binaryen, asked, seconds)
            except _Unmovable as refusal:
                await trio.to_thread.run_sync(self.notebook.put, asked, refusal.reason[:REASON_MAX])
                raise
            await trio.to_thread.run_sync(self.notebook.put, asked, made)
            return made

    async def _run(self, binaryen: Binaryen, asked: Asked, seconds: float) -> Cid:
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            source, target = Path(folder) / "source.wasm", Path(folder) / "target.wasm"
            await trio.to_thread.run_sync(
                lambda: files.write_path(self.blocks, asked.source, source, bytes_max=MODULE_MAX)
            )
            command = [sys.executable, "-m", "mesh.runtime.instrument"]
            with trio.move_on_after(seconds) as waiting:
                done = await trio.run_process(
                    [*command, str(source), str(target), asked.policy.value],
                    env={**os.environ, VARIABLE: binaryen.path, "TMPDIR": folder},
                    capture_stderr=True,
                    check=False,
                    start_new_session=True,
                )
            if waiting.cancelled_caught:
                raise _Unmovable(f"the module was not made movable within {seconds:.0f} s")
            if done.returncode:
                raise _refusal(done.stderr)
            if target.stat().st_size > MODULE_MAX:
                raise _Unmovable(f"made movable, the module has more than {MODULE_MAX >> 20} MiB")
            return (await trio.to_thread.run_sync(files.add_path, self.blocks, target)).cid

    def _find(self) -> tuple[Binaryen, str]:
        binaryen = find_binaryen(self.kept)
        version = version_of(binaryen)
        check_tested(version)
        return binaryen, name_of(version)

    def _describe(self, module: Cid) -> ModuleView:
        wasm = self.read(module)
        if not check_module(wasm):
            return ModuleView(module, is_movable=False, reason=self._why_not(module))
        try:
            origin = read_origin(wasm)
            reason = "" if origin else "it does not say what it was made of"
        except PeerError as error:
            origin, reason = None, f"it does not say plainly what it was made of: {error}"
        return ModuleView(module, True, origin, reason)

    def _why_not(self, module: Cid) -> str:
        """Why a module has not been made movable: what failed, or would."""
        if why := self.notebook.why_not(module):
            return why
        try:
            self._find()
        except Refused as refusal:
            return refusal.reason
        return "nobody asked for it"

    def read(self, module: Cid) -> bytes:
        """The bytes of a module. Raises MeshError."""
        data = bytearray()
        for chunk in files.read_file(self.blocks, module):
            data += chunk
            if len(data) > MODULE_MAX:
                raise Refused(f"the module has more than {MODULE_MAX >> 20} MiB")
        return bytes(data)


def _refusal(messages: bytes) -> _Unmovable:
    """What the process said in its last words."""
    said = dict(
        line.split(": ", 1)
        for line in messages[-4096:].decode(errors="replace").splitlines()
        if line.startswith(("error: ", "hint: "))
    )
    return _Unmovable(said.get("error", "the module was not made movable"), said.get("hint", ""))


def source_here(blocks: Blocks, wasm: bytes) -> tuple[Cid, ...]:
    """The module that *wasm* says it was made of, where that is here as a whole: who keeps the one
    for auditors keeps the other as well."""
    try:
        origin = read_origin(wasm)
    except MeshError:
        return ()
    return (origin.source,) if origin and is_whole(blocks, origin.source) else ()
