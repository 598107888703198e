"""Calls: two peers talk both ways, within bounds, and whatever happens the stream ends."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from mesh.errors import PeerError, Unavailable
from mesh.network.calls import Call, CallConfig
from mesh.network.guard import Guard, GuardConfig
from mesh.network.network import LEDGER, Network


async def echo(call: Call) -> None:
    """Says everything back until the caller has no more to say."""
    while data := await call.receive_some(1024):
        await call.send_all(data)


async def hear(call: Call) -> bytes:
    """The next byte. libp2p tells a reset, by chance, as an end: neither is an answer."""
    if data := await call.receive_some(1):
        return data
    raise Unavailable("ended without a word")


async def ask(caller: Any, server: Any, times: int = 1, protocol: str = LEDGER) -> None:
    """Call, say one byte, and hear so many."""
    async with caller.network.call(server.peer, protocol) as call:
        await call.send_all(b"x")
        for _ in range(times):
            await hear(call)


async def pair(harness: Any, answer: Any = echo) -> tuple[Any, Any]:
    """One that answers calls, and one that knows how to call it."""
    server = await harness.node(1, answers={LEDGER: answer})
    caller = await harness.node(2, *server.network.addresses(), answers={LEDGER: echo})
    await harness.eventually(
        lambda: bool(caller.network.connected() and server.network.connected())
    )
    return server, caller


def set_bounds(network: Network, **bounds: Any) -> None:
    network._calls.config = CallConfig(**bounds)


def streams_of(network: Network) -> int:
    """Streams of ours that libp2p has not forgotten, of this protocol."""
    connections: Any = network._host.get_network().get_connections()
    return sum(
        stream.get_protocol() == LEDGER
        for connection in connections
        for stream in connection.get_streams()
    )


async def test_both_talk_and_hear_the_end(harness: Any) -> None:
    server, caller = await pair(harness)
    async with caller.network.call(server.peer, LEDGER) as call:
        for word in (b"one", b"two" * 100_000):
            await call.send_all(word)
            heard = b""
            while len(heard) < len(word):
                heard += await call.receive_some(65536)
            assert heard == word
    await harness.eventually(lambda: server.count("calls_answered") == 1)
    await harness.eventually(lambda: streams_of(server.network) == streams_of(caller.network) == 0)
    assert caller.count("calls_made") == 1


async def test_more_calls_than_a_connection_has_streams_leave_none_behind(harness: Any) -> None:
    server, caller = await pair(harness)
    set_bounds(server.network, cpu_ms=0.0)
    for _ in range(300):
        async with caller.network.call(server.peer, LEDGER) as call:
            await call.send_all(b"x")
            assert await hear(call) == b"x"
        await harness.eventually(lambda: not server.network.is_answering(caller.peer))
    assert streams_of(caller.network) <= 1


async def test_a_second_call_of_the_same_peer_is_refused_while_the_first_goes_on(
    harness: Any,
) -> None:
    server, caller = await pair(harness)
    async with caller.network.call(server.peer, LEDGER) as first:
        await first.send_all(b"here")
        await first.receive_some(4)
        assert server.network.is_answering(caller.peer)
        with pytest.raises(Unavailable):
            await ask(caller, server)
        await first.send_all(b"more")
        assert await first.receive_some(4) == b"more"
    assert server.count("calls_refused") == 1
    await harness.eventually(lambda: not server.network.is_answering(caller.peer))


async def test_more_callers_than_are_answered_at_a_time_are_refused(harness: Any) -> None:
    server, caller = await pair(harness)
    set_bounds(server.network, inbound=0)
    with pytest.raises(Unavailable):
        await ask(caller, server)
    assert server.count("calls_refused") == 1


async def test_who_calls_more_often_than_its_share_of_our_processor_is_refused(
    harness: Any,
) -> None:
    server, caller = await pair(harness)
    server.network._calls.guard = Guard(GuardConfig(cpu_ms_per_s=0.001, burst_s=5000))
    set_bounds(server.network, cpu_ms=1.0)
    for _ in range(5):
        await ask(caller, server)
        await harness.eventually(lambda: not server.network.is_answering(caller.peer))
    with pytest.raises(Unavailable):
        await ask(caller, server)
    assert server.count("calls_refused") == 1


async def test_silence_is_given_up_by_both_ends(harness: Any) -> None:
    async def deaf(call: Call) -> None:
        await trio.sleep_forever()

    server, caller = await pair(harness, deaf)
    set_bounds(caller.network, silence_s=0.05)
    set_bounds(server.network, length_s=0.1)
    with pytest.raises(Unavailable, match="fell silent"):
        await ask(caller, server)
    await harness.eventually(lambda: server.count("calls_failed") == 1)
    assert caller.count("calls_broken") == 1


async def test_a_caller_that_falls_silent_is_given_up(harness: Any) -> None:
    server, caller = await pair(harness)
    set_bounds(server.network, silence_s=0.05)
    with pytest.raises(Unavailable):
        await ask(caller, server, times=2)
    assert server.count("calls_failed") == 1
    assert server.count("faults") == 0


async def test_a_fault_counts_against_the_caller_and_in_the_end_bans_it(harness: Any) -> None:
    async def accuse(call: Call) -> None:
        raise PeerError("nonsense")

    server, caller = await pair(harness, accuse)
    for _ in range(4):
        with pytest.raises(Unavailable):
            await ask(caller, server)
    await harness.eventually(lambda: server.count("bans") == 1)
    assert server.count("faults") == 4
    with pytest.raises(Unavailable, match="is banned"):
        await ask(server, caller)


async def test_a_banned_peer_gets_no_answer(harness: Any) -> None:
    server, caller = await pair(harness)
    server.network._guard.fault(caller.peer, 100.0, trio.current_time())
    with pytest.raises(Unavailable):
        await ask(caller, server)
    assert server.count("calls_answered") == 0


async def test_a_bug_in_an_answer_ends_that_call_only(harness: Any) -> None:
    async def broken(call: Call) -> None:
        await hear(call)
        raise RuntimeError("a bug")

    server, caller = await pair(harness, broken)
    with pytest.raises(Unavailable):
        await ask(caller, server)
    await harness.eventually(lambda: server.count("stream_contained") == 1)
    assert not server.network.is_answering(caller.peer)
    assert server.network.connected()


async def test_a_peer_that_dies_in_a_call_leaves_it_broken_not_hanging(harness: Any) -> None:
    server, caller = await pair(harness)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_close_when_called, harness, server, caller)
        with pytest.raises(Unavailable):
            await ask(caller, server, times=2)


async def _close_when_called(harness: Any, server: Any, caller: Any) -> None:
    await harness.eventually(lambda: server.network.is_answering(caller.peer))
    await server.close()


async def test_nobody_answers_a_protocol_that_is_not_spoken(harness: Any) -> None:
    server, caller = await pair(harness)
    with pytest.raises(Unavailable):
        await ask(caller, server, protocol="/mesh/ledger/99")


async def test_a_call_ends_under_cancellation(harness: Any) -> None:
    server, caller = await pair(harness)
    with trio.CancelScope() as scope:
        async with caller.network.call(server.peer, LEDGER) as call:
            await call.send_all(b"x")
            await hear(call)
            scope.cancel()
            await trio.sleep_forever()
    await harness.eventually(lambda: not server.network.is_answering(caller.peer))
    await harness.eventually(lambda: streams_of(server.network) == streams_of(caller.network) == 0)
