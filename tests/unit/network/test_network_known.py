"""The store of known peers: newest first, bounded, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.ids import PeerId
from mesh.network.known import FILE, MAX_ADDRESSES, MAX_PEERS, KnownPeers, load_known, save_known

PLACE = ("/ip4/192.0.2.1/tcp/4001",)


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def test_the_newest_come_first_and_come_back_in_that_order() -> None:
    known = KnownPeers()
    for number in (1, 2, 3, 1):
        known.learn(peer(number), PLACE)
    order = [found for found, _ in known.newest(10)]
    assert order == [peer(1), peer(3), peer(2)]
    again = KnownPeers.decode(known.encode())
    assert again.newest(10) == known.newest(10)
    assert not again.changed


def test_the_store_is_bounded_and_forgets_the_oldest() -> None:
    known = KnownPeers()
    for number in range(MAX_PEERS + 5):
        known.learn(peer(number), [f"/ip4/192.0.2.1/tcp/{port}" for port in range(20)])
    assert len(known) == MAX_PEERS
    assert known.addresses_of(peer(4)) == ()
    assert len(known.addresses_of(peer(5))) == MAX_ADDRESSES


def test_nothing_new_is_no_change_to_write() -> None:
    known = KnownPeers()
    known.learn(peer(1), ())
    assert not known.changed
    known.learn(peer(1), PLACE)
    known.changed = False
    known.learn(peer(1), PLACE)
    assert not known.changed


@given(st.one_of(st.binary(max_size=200), st.sampled_from([b"{}", b"[]", b'{"peers": 3}'])))
def test_a_damaged_store_is_a_value_error(data: bytes) -> None:
    try:
        KnownPeers.decode(data)
    except ValueError:
        return


def test_a_store_without_peers_is_refused() -> None:
    for data in (b"{}", b'{"peers": 3}', b'{"peers": [{"peer": "x", "addresses": []}]}'):
        with pytest.raises(ValueError):
            KnownPeers.decode(data)


def test_saving_replaces_the_file_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    known = KnownPeers()
    known.learn(peer(1), PLACE)
    assert len(load_known(folder)) == 0
    save_known(folder, known.encode())
    known.learn(peer(2), PLACE)
    save_known(folder, known.encode())
    assert load_known(folder).newest(9) == known.newest(9)
    assert [path.name for path in folder.iterdir()] == [FILE]
