"""The filter, run by an interpreter of classic BPF: on every processor it says the same."""

from __future__ import annotations

import errno
import fcntl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.runtime.seccomp import ALLOW, ERRNO, KILL_PROCESS, MACHINES, Program, program_for
from mesh.runtime.syscalls import ALLOWED, CHECKED, HOSTILE, NEWEST

PID = 4711
DENIED = ERRNO | errno.EPERM
PROGRAMS_MAX = 4096
machines = pytest.mark.parametrize("machine", MACHINES)


def answer_of(program: Program, seen: int, number: int, args: tuple[int, ...] = ()) -> int:
    """What a kernel does with seccomp_data of these."""
    padded = (*args, *(0,) * (6 - len(args)))
    data = struct.pack("<IIQ6Q", number, seen, 0, *padded)
    at, loaded = 0, 0
    while True:
        code, if_so, if_not, value = struct.unpack("=HBBI", program[at])
        at += 1
        match code:
            case 0x20:
                (loaded,) = struct.unpack_from("<I", data, value)
            case 0x15:
                at += if_so if loaded == value else if_not
            case 0x25:
                at += if_so if loaded > value else if_not
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(code)


def ask(machine: str, number: int, *args: int) -> int:
    return answer_of(program_for(machine, PID), MACHINES[machine][1], number, args)


@machines
@given(number=st.integers(0, 2**32 - 1), args=st.lists(st.integers(0, 2**64 - 1), max_size=6))
def test_every_call_has_the_answer_of_its_table(machine: str, number: int, args: list[int]) -> None:
    """Near the tables, where it matters, and anywhere else."""
    place = MACHINES[machine][0]
    for what in (number, number % (NEWEST + 2)):
        found = ask(machine, what, *args)
        if what > NEWEST:
            assert found == ERRNO | errno.ENOSYS
        elif what in {pair[place] for pair in HOSTILE.values()}:
            assert found == KILL_PROCESS
        elif what in {pair[place] for pair in ALLOWED.values()}:
            assert found == ALLOW
        elif what in {pair[place] for pair in CHECKED.values()}:
            assert found in (ALLOW, DENIED)
        else:
            assert found == DENIED


@machines
def test_arguments_decide_where_a_call_could_reach_others(machine: str) -> None:
    number = {name: pair[MACHINES[machine][0]] for name, pair in CHECKED.items()}
    assert ask(machine, number["tgkill"], PID, 1, 6) == ALLOW
    assert ask(machine, number["tgkill"], PID + 1, 1, 6) == DENIED
    assert ask(machine, number["tkill"], PID - 1, 9) == DENIED
    assert ask(machine, number["prlimit64"], 0) == ALLOW
    assert ask(machine, number["prlimit64"], 1) == DENIED
    assert ask(machine, number["fcntl"], 5, fcntl.F_GETFL) == ALLOW
    assert ask(machine, number["fcntl"], 5, fcntl.F_SETOWN, 1) == DENIED
    assert ask(machine, number["sendto"], 5, 1 << 40, 10, 0, 0, 0) == ALLOW
    for address in (1, 1 << 32, 1 << 63):
        assert ask(machine, number["sendto"], 5, 1 << 40, 10, 0, address, 16) == DENIED


@machines
def test_a_call_that_claims_another_processor_is_the_last(machine: str) -> None:
    program = program_for(machine, PID)
    for seen in (0x40000003, 0, 0xFFFFFFFF, *(s for _, s in MACHINES.values())):
        if seen != MACHINES[machine][1]:
            assert answer_of(program, seen, 0) == KILL_PROCESS


@machines
def test_the_tables_name_each_number_once_and_the_program_fits(machine: str) -> None:
    place = MACHINES[machine][0]
    pairs = [pair for table in (ALLOWED, CHECKED, HOSTILE) for pair in table.values()]
    numbers = [pair[place] for pair in pairs if pair[place] is not None]
    assert len(numbers) == len(set(numbers))
    assert max(numbers) <= NEWEST
    assert len(program_for(machine, PID)) < PROGRAMS_MAX
