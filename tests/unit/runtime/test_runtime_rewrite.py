"""Rewriting: what is not touched stays, what cannot be moved is refused, and where is looked."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st
from runtime_modules import module, name, section
from test_runtime_module import GUESTS as ALL_GUESTS

from mesh.errors import Refused
from mesh.runtime import binary
from mesh.runtime.binary import Cursor, Parts, read_sections, write_sections
from mesh.runtime.instructions import read_body
from mesh.runtime.module import check_module
from mesh.runtime.recursion import recursive
from mesh.runtime.rewrite import Checks, Policy, add_checks, finish

GUESTS = [path for path in ALL_GUESTS if ".movable" not in path.name]


def body(code: bytes) -> bytes:
    return b"\0" + code + b"\x0b"


def code(*bodies: bytes) -> bytes:
    return section(10, *(binary.code_entry(body(b)) for b in bodies))


def call(function: int) -> bytes:
    return b"\x10" + binary.u32(function)


def loop(inner: bytes) -> bytes:
    return b"\x03\x40" + inner + b"\x0b"


def functions(*bodies: bytes) -> bytes:
    """A module of functions without arguments; the first is _start."""
    return module(functions=section(3, *(b"\0" for _ in bodies)), code=code(*bodies))


def checks_of(*bodies: bytes, policy: Policy = Policy.OUTER) -> Checks:
    wasm, checks = add_checks(functions(*bodies), policy)
    wasmtime.Module.validate(wasmtime.Engine(), wasm)
    return checks


@pytest.mark.parametrize("path", GUESTS, ids=lambda p: p.stem)
def test_what_is_taken_apart_is_put_together_byte_for_byte(path: Path) -> None:
    wasm = path.read_bytes()
    assert write_sections(read_sections(wasm)) == wasm
    parts = Parts(wasm)
    assert [s for s in read_sections(wasm) if s.number] == read_sections(parts.write())


def test_a_number_in_a_longer_form_than_needed_stays_so() -> None:
    wasm = module()
    padded = wasm.replace(b"\x0a\x04\x01\x02", b"\x0a\x84\x80\x80\x80\x00\x01\x02")
    assert padded != wasm
    assert write_sections(read_sections(padded)) == padded


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("path", GUESTS, ids=lambda p: p.stem)
def test_rewritten_modules_are_valid_and_only_the_first_function_moves(
    path: Path, policy: Policy
) -> None:
    wasm = path.read_bytes()
    made, checks = add_checks(wasm, policy)
    wasmtime.Module.validate(wasmtime.Engine(), made)
    old, new = Parts(wasm), Parts(made)
    assert new.functions() == [*old.functions()[1:], old.functions()[0]]
    assert [i.name for i in new.imports()] == [*(i.name for i in old.imports()), "yield"]
    assert checks.functions == len(old.functions())
    assert 0 < checks.checked_loops <= checks.loops
    assert (checks.checked_loops == checks.loops) == (policy is Policy.ALL)


def test_outer_leaves_out_the_innermost_loops_that_call_nothing() -> None:
    nest = loop(loop(loop(b"")))
    assert checks_of(nest) == Checks(3, 2, 1, 0)
    assert checks_of(nest, policy=Policy.ALL) == Checks(3, 3, 1, 0)
    assert checks_of(loop(b"")) == Checks(1, 1, 1, 0)
    assert checks_of(loop(loop(call(1))), loop(b"")) == Checks(3, 2, 2, 0)
    assert checks_of(loop(loop(b"\x01") + loop(call(1))), call(1)) == Checks(3, 2, 2, 1)


def test_what_has_no_loop_may_be_called_in_an_innermost_one() -> None:
    assert checks_of(loop(loop(call(1))), call(2), b"") == Checks(2, 1, 3, 0)
    assert checks_of(loop(loop(call(1))), call(2), loop(b"")) == Checks(3, 2, 3, 0)
    assert checks_of(loop(loop(call(1))), call(2), call(2)) == Checks(2, 2, 3, 1)


def test_outer_counts_a_function_called_in_a_loop_as_part_of_it() -> None:
    assert checks_of(loop(call(1)), loop(b"")) == Checks(2, 1, 2, 0)
    assert checks_of(loop(call(1)), call(2), loop(b"")) == Checks(2, 1, 3, 0)
    assert checks_of(loop(call(1)), loop(b""), policy=Policy.ALL) == Checks(2, 2, 2, 0)
    assert checks_of(call(1), loop(b"")) == Checks(1, 1, 2, 0)
    assert checks_of(loop(b"") + call(1), loop(b"")) == Checks(2, 2, 2, 0)


POINTER = b"\x41\0\x11\0\0"
"""call_indirect of whatever is first in the table."""


@pytest.mark.parametrize(("target", "entered"), [(1, 1), (2, 0), (0, 2)])
def test_calls_by_a_pointer_lead_to_what_is_in_a_table(target: int, entered: int) -> None:
    """0 calls 1, which calls by a pointer: only through 0 or 1 may that lead back to itself."""
    wasm = module(
        functions=section(3, b"\0", b"\0", b"\0"),
        tables=section(4, b"\x70\0\x01"),
        code=section(9, b"\0\x41\0\x0b\x01" + bytes((target,))) + code(call(1), POINTER, b"\x01"),
    )
    _, checks = add_checks(wasm, Policy.OUTER)
    assert checks.checked_functions == entered


@pytest.mark.parametrize(("target", "checked"), [(1, 1), (2, 2)])
def test_by_a_pointer_is_called_what_a_table_holds_of_its_type(target: int, checked: int) -> None:
    """In the innermost loop of 0; 2 has a loop, and another type."""
    wasm = module(
        types=section(1, b"\x60\0\0", b"\x60\x01\x7f\0"),
        functions=section(3, b"\0", b"\0", b"\x01" if target == 1 else b"\0"),
        tables=section(4, b"\x70\0\x02"),
        code=section(9, b"\0\x41\0\x0b\x02\x01\x02")
        + code(loop(loop(POINTER)), b"\x01", loop(loop(b""))),
    )
    _, checks = add_checks(wasm, Policy.OUTER)
    assert checks.checked_loops == checked + 1


def names_of(wasm: bytes) -> dict[int, str]:
    """Of functions, as the custom section says that is called name."""
    found = [s.body for s in read_sections(wasm) if s.body.startswith(binary.text("name"))]
    cursor = Cursor(found[0], len(binary.text("name")) + 1)
    cursor.u32()
    return {cursor.u32(): cursor.name() for _ in range(cursor.count())}


def test_functions_that_lead_to_no_check_are_named_so() -> None:
    """And Asyncify leaves them as they are. The first function is the last from there on."""
    made, _ = add_checks(functions(call(1) + call(2), call(3), b"", loop(b"")), Policy.OUTER)
    assert names_of(made) == {1: "moving.1", 2: "fixed.2", 3: "moving.3", 4: "moving.4"}


def test_functions_that_may_call_themselves_look_at_their_entry() -> None:
    assert checks_of(call(1), call(2), call(1), b"") == Checks(0, 0, 4, 2)
    assert checks_of(call(0)) == Checks(0, 0, 1, 1)
    assert checks_of(call(1), b"") == Checks(0, 0, 2, 0)


def test_references_follow_the_function_that_moved() -> None:
    wasm = module(
        functions=section(3, b"\0", b"\0"),
        tables=section(4, b"\x70\0\x02"),
        globals=section(6, b"\x70\0\xd2\0\x0b", b"\x70\0\xd2\x01\x0b"),
        exports=section(
            7, name("_start") + b"\0\0", name("memory") + b"\x02\0", name("other") + b"\0\x01"
        ),
        code=section(9, b"\0\x41\0\x0b\x02\0\x01") + code(b"\xd2\0\x1a" + call(0), call(1)),
    )
    wasmtime.Module.validate(wasmtime.Engine(), wasm)
    made, _ = add_checks(wasm, Policy.OUTER)
    wasmtime.Module.validate(wasmtime.Engine(), made)
    parts = Parts(made)
    found = {e.name: e.index for e in parts.exports()}
    assert (found["_start"], found["other"]) == (2, 1)
    assert parts.body(binary.ELEMENT) == b"\x01\0\x41\0\x0b\x02\x02\x01"
    assert [g.raw for g in parts.globals()][:2] == [b"\x70\0\xd2\x02\x0b", b"\x70\0\xd2\x01\x0b"]
    assert parts.code()[1].endswith(b"\xd2\x02\x1a\x10\x02\x0b")


@pytest.mark.parametrize(
    ("instructions", "why"),
    [
        (b"\x41\0\xd0\x70\x26\0", "table.set"),
        (b"\xfc\x0f\0", "table.grow"),
        (b"\xfc\x0c\0\0", "table.init"),
        (b"\xfc\x0e\0\0", "table.copy"),
        (b"\xfc\x11\0", "table.fill"),
        (b"\xfc\x08\0\0", "memory.init"),
        (b"\xfc\x09\0", "data.drop"),
        (b"\xfc\x0d\0", "elem.drop"),
        (b"\xfe\0\x02\0", "threads"),
        (b"\x06\x40\x0b", "exceptions"),
        (b"\x08\0", "exceptions"),
        (b"\x1f\x40\0\x0b", "exceptions"),
        (b"\x12\0", "tail calls"),
        (b"\x13\0\0", "tail calls"),
        (b"\xfb\0\0", "garbage collection"),
        (b"\x41\0\x28\x42\x01\0\x1a", "unknown instruction"),
        (b"\xfd\x80\x02", "unknown instruction"),
        (b"\xff", "unknown instruction"),
        (b"\x02" + b"\x80" * 5, "too long"),
        (b"\x02\x40" * 20_000, "blocks within blocks"),
        (b"\x0b", "longer than its instructions"),
        (b"\x43\0", "unknown instruction|cut short"),
    ],
)
def test_what_cannot_be_moved_is_refused_with_the_reason(instructions: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        add_checks(functions(instructions), Policy.OUTER)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"globals": section(6, b"\x70\x01\xd0\x70\x0b")}, "a reference or a vector"),
        ({"globals": section(6, b"\x7f\x01\x20\0\x0b")}, "no constant"),
        ({"globals": section(6, b"\x7f\x02\x41\0\x0b")}, "shared"),
        ({"more": section(11, b"\x01\x01x")}, "passive data"),
        ({"more": section(11, b"\x02\x01\x41\0\x0b\0")}, "another memory"),
        ({"start": section(8)[:1] + b"\x01\0"}, "start function"),
        (
            {
                "exports": section(
                    7,
                    name("_start") + b"\0\0",
                    name("memory") + b"\x02\0",
                    name("asyncify_get_state") + b"\0\0",
                )
            },
            "as it was before",
        ),
        ({"code": section(9, b"\x01\0\0") + code(b"")}, "passive table"),
        ({"code": section(9, b"\x09") + code(b"")}, "unknown form"),
        ({"code": code()}, "without instructions"),
    ],
)
def test_state_that_does_not_move_is_refused(parts: dict[str, bytes], why: str) -> None:
    with pytest.raises(Refused) as refused:
        add_checks(module(**parts), Policy.OUTER)
    assert why in refused.value.reason + refused.value.hint


def test_a_module_that_was_made_to_move_is_not_made_so_twice() -> None:
    made, _ = add_checks(functions(b""), Policy.OUTER)
    with pytest.raises(Refused):
        add_checks(made, Policy.OUTER)


def test_what_binaryen_has_not_been_over_is_not_finished() -> None:
    with pytest.raises(Refused, match="second memory"):
        finish(functions(b""))
    made, _ = add_checks(functions(b""), Policy.OUTER)
    with pytest.raises(Refused):
        check_module(made)


@pytest.mark.parametrize("path", GUESTS, ids=lambda p: p.stem)
def test_broken_modules_are_refused_and_nothing_worse(path: Path) -> None:
    whole, chance = path.read_bytes(), random.Random(7)
    for _ in range(60):
        wasm = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            wasm[chance.randrange(len(wasm))] = chance.randrange(256)
        del wasm[chance.randrange(len(wasm) // 2, 2 * len(wasm)) :]
        with suppress(Refused):
            add_checks(bytes(wasm), Policy.OUTER)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_as_a_function_or_refused(data: bytes) -> None:
    with suppress(Refused):
        found = read_body(data)
        assert all(found.at <= place.at <= len(data) for place in found.loops)


@given(st.integers(0, 2**32 - 1))
def test_numbers_are_read_as_they_were_written(value: int) -> None:
    cursor = Cursor(binary.u32(value))
    assert (cursor.u32(), cursor.at) == (value, cursor.end)


@given(st.lists(st.lists(st.integers(0, 11), max_size=4), min_size=12, max_size=12))
def test_recursion_is_what_can_reach_itself(calls: list[list[int]]) -> None:
    reach = [set(c) for c in calls]
    for _ in calls:
        for found in reach:
            found.update(*(reach[n] for n in list(found)))
    assert recursive(calls) == {n for n, found in enumerate(reach) if n in found}


def test_a_chain_of_calls_of_any_length_is_followed() -> None:
    depth = 100_000
    assert recursive([[n + 1] for n in range(depth)] + [[]]) == set()
    assert len(recursive([[(n + 1) % depth] for n in range(depth)])) == depth
