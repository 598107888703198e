"""Holdings: equal marks mean equal entries, gaps and the arms of forks counted."""

from __future__ import annotations

from attrs import evolve
from ledger_deals import BOB, NET

from ledger.holdings import Holding, Total

ONE, TWO, THREE = (bytes([n]) * 32 for n in (1, 2, 3))
HELD = Holding(BOB.key, NET, height=2, top=5, top_id=ONE, total=Total().plus([ONE, TWO]))


def test_a_total_is_of_the_set_and_not_of_its_order() -> None:
    total = Total().plus([ONE, TWO]).plus([THREE])
    assert total == Total().plus([THREE, ONE, TWO])
    assert total.minus([TWO, ONE]) == Total().plus([THREE])
    assert total.minus([ONE, TWO, THREE]) == Total()
    assert Total().plus([b"\xff" * 32] * 3).sum < 2**256


def test_a_fingerprint_tells_sums_and_counts_apart() -> None:
    zero = bytes(32)
    totals = [Total(), Total().plus([zero]), Total().plus([ONE]), Total().plus([ONE, zero])]
    assert len({total.fingerprint() for total in totals}) == 4


def test_a_mark_tells_all_that_is_held() -> None:
    """An arm below the same head, or another gap, changes neither the height nor the top."""
    others = [
        evolve(HELD, author=bytes(32)),
        evolve(HELD, net=b"othernet"),
        evolve(HELD, height=3),
        evolve(HELD, top=6),
        evolve(HELD, top_id=TWO),
        evolve(HELD, total=HELD.total.plus([THREE])),
        evolve(HELD, total=Total().plus([ONE, THREE])),
    ]
    assert len({HELD.mark(), *(other.mark() for other in others)}) == 8
    assert evolve(HELD).mark() == HELD.mark()


def test_the_top_is_the_highest_and_of_several_the_smallest_id() -> None:
    held = Holding(BOB.key, NET)
    for seq, entry_id in ((0, THREE), (4, TWO), (2, ONE), (4, THREE), (4, ONE)):
        held = held.topped(seq, entry_id)
    assert (held.top, held.top_id) == (5, ONE)
