"""Pitfalls beyond the ten, and what happens when libp2p has changed under the fixes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from libp2p.network import swarm as swarm_module
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from mesh.network import hardening
from mesh.network.host import from_libp2p

ECHO = "/test/1/echo"
HARDENED = pytest.mark.parametrize("hardened", [True, False], ids=["hardened", "stock"])


@HARDENED
async def test_11_a_connection_that_ends_gives_its_slot_back(harness: Any, hardened: bool) -> None:
    a, b = await harness.host(1), await harness.host(2)
    network: Any = a.get_network()
    if not hardened:
        del network.upgrade_inbound_raw_conn
    for _ in range(2):
        await b.connect(harness.where(a))
        await harness.eventually(lambda: bool(a.get_connected_peers()))
        await b.disconnect(a.get_id())
        await harness.eventually(lambda: not a.get_connected_peers())
    if hardened:
        await harness.eventually(lambda: network._inbound_limiter.borrowed_tokens == 0)
    assert network._inbound_limiter.borrowed_tokens == (0 if hardened else 2)


async def test_12_a_peer_that_ignores_its_window_is_noticed(harness: Any) -> None:
    """Stock yamux warns and keeps whatever comes."""
    a, b = await harness.host(1), await harness.host(2)
    await b.connect(harness.where(a))

    async def never_read(_stream: Any) -> None:
        await trio.sleep_forever()

    a.set_stream_handler(ECHO, never_read)
    stream: Any = await b.new_stream(a.get_id(), [ECHO])
    stream.muxed_stream.send_window = 2 * hardening.MAX_BUFFERED
    assert hardening.overfull_peers(a) == []
    with trio.fail_after(20):
        for _ in range(36):
            await stream.write(bytes(1024 * 1024))
    await harness.eventually(lambda: hardening.overfull_peers(a) == [b.get_id()])


async def test_a_changed_libp2p_keeps_its_stock_behaviour_and_is_counted(
    harness: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hardening.restore_stock()
    monkeypatch.delattr(swarm_module, "_HAPPY_EYEBALLS_DELAY")
    monkeypatch.delattr(YamuxStream, "_apply_autotune_epoch")
    monkeypatch.setattr(hardening.metadata, "version", lambda _name: "0.9.0")
    tally: Counter[str] = Counter()
    hardening.harden_library(tally)
    assert tally["hardening_missing"] == 3
    assert sum("libp2p" in record.message for record in caplog.records) == 1
    monkeypatch.undo()
    a = await harness.host(1)
    assert from_libp2p(a.get_id())
