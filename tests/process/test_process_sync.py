"""Two processes, each with a ledger of its own, become equal over a pipe."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import trio
from ledger_deals import ALICE, BOB, WALL_MS, Chain

from ledger.merge import Merger
from ledger.store import Store
from ledger.sync import Replica, sync
from ledger.turns import Scope

DEALS = Path(__file__).parents[1] / "support"
ROOT = Path(__file__).parents[2]
# Answers whoever is at the other end of the descriptor until it hangs up.
SERVER = f"""
import socket, sys, trio
from pathlib import Path
sys.path[:0] = {[str(ROOT), str(DEALS)]!r}
from ledger_deals import ALICE, CAROL, WALL_MS, Chain
from ledger.merge import Merger
from ledger.store import Store
from ledger.sync import Replica, serve

async def main():
    end = trio.socket.from_stdlib_socket(socket.socket(fileno=int(sys.argv[2])))
    with Store.open(Path(sys.argv[1])) as store, Merger(store) as merger:
        carol = Chain(CAROL)
        store.add([carol.alloc(ALICE) for _ in range(40)])
        ours = Replica(merger, lambda: WALL_MS, trio.current_time, trio.to_thread.run_sync)
        print(await serve(trio.SocketStream(end), ours), store.scan())

trio.run(main)
"""


async def test_two_processes_become_equal_over_a_socketpair(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    server = subprocess.Popen(  # noqa: ASYNC220 (it starts at once)
        [sys.executable, "-c", SERVER, str(tmp_path / "far.sqlite"), str(far.fileno())],
        pass_fds=[far.fileno()],
        stdout=subprocess.PIPE,
        text=True,
    )
    far.close()
    bob = Chain(BOB)
    entries = [bob.alloc(ALICE) for _ in range(300)]
    with server, Store.open(tmp_path / "near.sqlite") as store, Merger(store) as merger:
        store.add(entries)
        ours = Replica(merger, lambda: WALL_MS, trio.current_time, trio.to_thread.run_sync)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(near)) as stream:
            with trio.fail_after(60):
                first = await sync(stream, ours, (Scope.HEADS, Scope.IDS))
                second = await sync(stream, ours)
        assert server.stdout is not None
        told = server.stdout.read()
    assert (first.new, first.sent, first.withheld) == (40, 300, 0)
    assert second.is_equal
    assert "new=300, sent=40" in told
    assert told.split()[-1] == "340"
