"""The fuzzer of the system calls: some seeds of it, and that it finds what it is there to find."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import wasmtime

from mesh.runtime.files import File, Files
from mesh.runtime.preview1 import SIGNATURES, Errno
from mesh.runtime.trees import Denied, Parts, Tree

SEEDS = range(44, 52)
"""Among them one that opens all that it can."""


@pytest.fixture(scope="module")
def fuzz(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool("fuzz")


def test_every_call_is_asked_with_as_many_arguments_as_it_has(fuzz: ModuleType) -> None:
    wide = {"n": 2, "b": 2, "v": 2, "s": 3}
    asked = {name: sum(wide.get(role, 1) for role in roles) for name, roles in fuzz.ROLES.items()}
    assert asked == {name: len(signature) for name, signature in SIGNATURES.items()}


@pytest.mark.slow
def test_whatever_a_guest_asks_the_laws_hold(fuzz: ModuleType) -> None:
    answers: set[tuple[str, str]] = set()
    for seed in SEEDS:
        answers |= set(fuzz.play(seed, wasmtime.Store()).answers)
    assert {name for name, _ in answers} == set(SIGNATURES)
    unheard = {"exit", *(code.name for code in Errno)} - {told for _, told in answers}
    assert unheard <= {"FBIG", "LOOP", "NOTEMPTY"}  # these come seldom


def test_the_same_seed_does_the_same_in_any_folder(fuzz: ModuleType, tmp_path: Path) -> None:
    told = set()
    for name in ("one", "another one"):
        (tmp_path / name).mkdir()
        told.add(fuzz.Guest(3, tmp_path / name, wasmtime.Store()).run(200))
    assert len(told) == 1


# --- canaries: each breaks one law


class Climbing(Tree):
    """`..` leads wherever it leads."""

    def resolve(self, base: Parts, path: bytes) -> tuple[Parts, bool]:
        parts = (*base, *path.decode(errors="surrogateescape").replace("\0", "").split("/"))
        return tuple(part for part in parts if part not in ("", ".")), False


class Generous(Files):
    """Bytes cost nothing."""

    def _charge(self, growth: int) -> None:
        self.used += 0


class Forgetful(Files):
    """What is closed stays open."""

    def close(self, number: int) -> None:
        self.descriptor(number)
        del self.descriptors[number]


class Frail(Files):
    """Meets an error of this machine's, and lets it through."""

    def resize(self, file: File, size: int) -> None:
        os.ftruncate(file.handle, size - (1 << 63))


class Endless(Files):
    """Hands out descriptors without end."""

    def _check_room(self) -> None:
        if len(self.descriptors) > 10_000:
            raise Denied(Errno.MFILE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "law"),
    [
        ({"tree": Climbing}, "outside of its folders|OSError|HostFailure"),
        ({"build": Generous}, "bytes counted|counted"),
        ({"build": Forgetful}, "handles were lost|stay open"),
        ({"build": Frail}, "OSError|Overflow"),
        ({"build": Endless}, "StopIteration|too many descriptors"),
    ],
)
def test_a_broken_law_is_found(fuzz: ModuleType, broken: dict[str, Any], law: str) -> None:
    def play_all() -> None:
        for seed in SEEDS:
            fuzz.play(seed, wasmtime.Store(), **broken)

    with pytest.raises(fuzz.Broken, match=law):
        play_all()
