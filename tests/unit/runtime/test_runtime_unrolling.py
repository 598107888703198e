"""Loops written out compute and burn what they did, however they are left."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
import wasmtime

from mesh.runtime import binary, unrolling
from mesh.runtime.binary import CODE, Parts
from mesh.runtime.instructions import read_body
from mesh.runtime.manifest import METER
from mesh.runtime.unrolling import BYTES_MAX, FUNCTION_BYTES_MAX, is_short, unroll, write_out

GUESTS = Path(__file__).resolve().parents[2] / "guests"

STEP = "(local.set $n (i32.add (local.get $n) (i32.const 1)))"
SUM = "(local.set $s (i32.add (i32.mul (local.get $s) (i32.const 3)) (local.get $n)))"
MORE = "(i32.lt_u (local.get $n) (local.get $most))"
LOOPS = {
    "at its end": f"(loop $l {STEP} {SUM} (br_if $l {MORE}))",
    "in the middle": f"""(block $out (loop $l {STEP}
        (br_if $out (i32.eqz {MORE})) {SUM} (br $l)))""",
    "from a block in it": f"""(loop $l {STEP} (block $skip
        (br_if $skip (i32.and (local.get $n) (i32.const 1))) {SUM} (br_if $l {MORE}))
        (br_if $l {MORE}))""",
    "by a table": f"""(block $a (block $b (loop $l {STEP} (if {MORE} (then {SUM}) (else (br $a)))
        (block $c (br_table $c $l $l $b $c (i32.rem_u (local.get $n) (i32.const 7))))
        (br_if $l {MORE}))) {STEP})""",
    "by a return": f"(loop $l {STEP} (if (i32.eqz {MORE}) (then (return (local.get $n)))) (br $l))",
    "within another": f"""(loop $o (loop $l {STEP} {SUM}
        (br_if $o (i32.eqz (i32.rem_u (local.get $n) (i32.const 5)))) (br_if $l {MORE})))""",
}


def module_of(loop: str) -> bytes:
    return bytes(
        wasmtime.wat2wasm(
            f"""(module (func (export "run") (param $most i32) (result i32)
            (local $n i32) (local $s i32) {loop}
            (i32.add (local.get $s) (local.get $n))))"""
        )
    )


def written_out(wasm: bytes, head: bytes = b"") -> bytes:
    """The module with its only short loop written out."""
    parts = Parts(wasm)
    (code,) = parts.code()
    (loop,) = [loop for loop in read_body(code).loops if is_short(loop)]
    made = write_out(code[loop.at : loop.end], head)
    parts.replace(CODE, [binary.code_entry(code[: loop.start] + made + code[loop.end + 1 :])])
    return parts.write()


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.consume_fuel = True
    return wasmtime.Engine(config)


def run(engine: wasmtime.Engine, wasm: bytes, most: int) -> tuple[object, int]:
    """What it gives back, and the fuel that took."""
    store = wasmtime.Store(engine)
    store.set_fuel(1_000_000)
    instance = wasmtime.Instance(store, wasmtime.Module(engine, wasm), [])
    found = instance.exports(store)["run"]
    assert isinstance(found, wasmtime.Func)
    given = found(store, most)
    return given, 1_000_000 - store.get_fuel()


@pytest.mark.parametrize("name", LOOPS)
def test_it_computes_the_same_for_a_unit_more_at_most(engine: wasmtime.Engine, name: str) -> None:
    wasm = module_of(LOOPS[name])
    made = unroll(wasm)
    assert made == written_out(wasm)
    for most in range(40):
        before, burnt = run(engine, wasm, most)
        after, burns = run(engine, made, most)
        assert after == before
        assert 0 <= burns - burnt <= (most + 1 if name == "within another" else 1)


def test_where_it_ends_by_itself_it_burns_a_unit_more_in_whichever_copy(
    engine: wasmtime.Engine,
) -> None:
    """A guest that is moved in the middle of a loop goes on in the first copy."""
    wasm = module_of(LOOPS["at its end"])
    for most in range(40):
        assert run(engine, unroll(wasm), most)[1] == run(engine, wasm, most)[1] + 1


def test_its_head_is_come_to_once_in_four(engine: wasmtime.Engine) -> None:
    wasm = module_of(LOOPS["at its end"].replace(SUM, ""))
    count_heads = b"\x20\x02\x41\x01\x6a\x21\x02"
    for most in range(1, 40):
        assert run(engine, written_out(wasm, count_heads), most)[0] == most + -(-most // 4)


@pytest.mark.parametrize(
    ("loop", "is_written_out"),
    [
        ("(loop $l)", True),
        ("(loop $l (result i32) (i32.const 1)) (drop)", False),
        ("(loop $l (drop (call 0 (i32.const 1))))", True),
        ("(loop $l " + "(nop)" * BYTES_MAX + ")", True),
        ("(loop $l " + "(nop)" * (BYTES_MAX + 1) + ")", False),
    ],
)
def test_only_short_loops_are(loop: str, is_written_out: bool) -> None:
    (code,) = Parts(module_of(loop)).code()
    assert [is_short(loop) for loop in read_body(code).loops] == [is_written_out]


def several(body: str) -> bytes:
    """A module with two memories and a table, one of whose functions is a short loop of *body*."""
    return bytes(
        wasmtime.wat2wasm(
            f"""(module (memory 1) (memory $other 1) (table $t 2 funcref) (data $d "some")
            (type $one (func (param i32) (result i32))) (elem (table $t) (i32.const 0) func $more)
            (func $more (type $one) (i32.add (local.get 0) (i32.const 3)))
            (func (export "run") (param $most i32) (result i32) (local $n i32) (local $s i32)
            (loop $l {STEP} {body} (br_if $l {MORE}))
            (i32.add (i32.add (local.get $n) (local.get $s)) (i32.load $other (i32.const 8)))))"""
        )
    )


@pytest.mark.parametrize(
    "body",
    [
        "(i32.store $other (i32.const 8) (i32.add (i32.load $other (i32.const 8)) (i32.const 3)))",
        "(i32.store8 offset=200 (i32.const 8) (i32.load16_u $other (i32.const 5)))",
        "(v128.store $other (i32.const 8) (v128.load (i32.const 1)))",
        "(memory.copy $other 0 (i32.const 8) (i32.const 0) (i32.const 4))",
        "(memory.fill $other (i32.const 8) (local.get $n) (i32.const 2))",
        "(memory.init $d (i32.const 8) (i32.const 0) (i32.const 4))",
        "(data.drop $d)",
        "(drop (memory.grow $other (i32.const 0)))",
        "(drop (memory.size $other))",
        "(table.set $t (i32.const 1) (table.get $t (i32.const 0)))",
        "(table.copy (i32.const 0) (i32.const 1) (i32.const 1))",
        "(table.fill $t (i32.const 0) (ref.null func) (i32.const 1))",
        "(drop (table.grow $t (ref.null func) (i32.const 0)))",
        "(local.set $s (call $more (local.get $s)))",
        "(local.set $s (call_indirect $t (type $one) (local.get $s) (i32.const 0)))",
        "(table.set $t (i32.const 1) (ref.func $more))",
    ],
)
def test_loops_of_any_module_are_written_out_and_compute_the_same(
    engine: wasmtime.Engine, body: str
) -> None:
    wasm = several(body)
    made = unroll(wasm)
    assert Parts(made).code()[-1] != Parts(wasm).code()[-1]
    for most in range(12):
        before, burnt = run(engine, wasm, most)
        after, burns = run(engine, made, most)
        assert (after, burns) in ((before, burnt), (before, burnt + 1))


def test_a_function_with_an_unknown_instruction_stays_as_it_is() -> None:
    """It is valid all the same: a number may be written in more bytes than it needs."""
    wasm = several("(data.drop $d)")
    parts = Parts(wasm)
    other, code = parts.code()
    assert b"\xfc\x09\x00" in code
    longer = code.replace(b"\xfc\x09\x00", b"\xfc\x89\x80\x00\x00")
    parts.replace(CODE, map(binary.code_entry, (other, longer)))
    assert unroll(parts.write()) == parts.write()


def test_a_function_that_is_too_large_stays_as_it_is() -> None:
    short = "(loop $l " + "(nop)" * BYTES_MAX + ")"
    few, many = 3, FUNCTION_BYTES_MAX // BYTES_MAX + 1
    assert len(unroll(module_of(short * few))) > 4 * few * BYTES_MAX
    wasm = module_of(short * many)
    assert Parts(unroll(wasm)).code() == Parts(wasm).code()


def test_a_module_grows_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "(loop $l " + "(nop)" * BYTES_MAX + ")"
    functions = "".join(f"(func {loop})" for _ in range(100))
    wasm = bytes(wasmtime.wat2wasm(f"(module {functions})"))
    monkeypatch.setattr(unrolling, "ADDED_BYTES_MAX", 10 * BYTES_MAX)
    made = Parts(unroll(wasm)).code()
    longer = [len(code) > BYTES_MAX + 100 for code in made]
    assert longer == [True] * 4 + [False] * 96


def test_no_function_is_lost_and_none_added() -> None:
    for path in sorted(GUESTS.glob("*.wasm")):
        parts, made = Parts(path.read_bytes()), Parts(unroll(path.read_bytes()))
        assert len(made.code()) == len(parts.code()), path
        assert made.functions() == parts.functions()
        assert any(one != other for one, other in zip(made.code(), parts.code(), strict=True))


def test_the_way_of_writing_out_has_a_number_of_its_own() -> None:
    """Where this fails on purpose, the meter gets another name: what it counts is another sum."""
    digest = sha256(unroll((GUESTS / "hostile.wasm").read_bytes())).hexdigest()
    assert (METER, digest) == ("wasmtime-50.0.1/fuel/unrolled-1", UNROLLED)


UNROLLED = "09421e172214d392ecf15d84ae159446231f54b56767eef3acaa7855c23cf489"
