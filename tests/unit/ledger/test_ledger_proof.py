"""Trees, proofs and checkpoints: against a plain tree, the standard's figures and hostile paths."""

from __future__ import annotations

import base64
from hashlib import sha256

import pytest
from ledger_deals import ALICE, BOB, NET, Chain

from ledger.errors import BadEntry
from ledger.proof import (
    CONSISTENCY_MAX,
    EMPTY,
    NOTE_MAX,
    PATH_MAX,
    SIGNATURES_MAX,
    Frontier,
    Summit,
    Tree,
    is_consistent,
    is_included,
    node_hash,
    note_key_id,
    open_note,
    origin_of,
    read_summit,
    sign_summit,
    summit_of,
)

MOST = 20
LEAVES = [sha256(bytes([n])).digest() for n in range(MOST)]
TREE = Tree(LEAVES)


def plain_root(leaves: list[bytes]) -> bytes:
    """The words of RFC 6962 section 2.1 and nothing else."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    left, right = plain_root(leaves[:split]), plain_root(leaves[split:])
    return sha256(b"\1" + left + right).digest()


def test_the_root_is_that_of_the_plain_tree_at_every_size() -> None:
    assert [TREE.root(size) for size in range(MOST + 1)] == [
        plain_root(LEAVES[:size]) for size in range(MOST + 1)
    ]
    assert Tree().root() == EMPTY


def test_the_roots_of_the_vectors_of_certificate_transparency() -> None:
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
    tree = Tree(map(bytes.fromhex, leaves))
    assert tree.root(1).hex().startswith("6e340b9cffb37a98")
    assert tree.root(2).hex().startswith("fac54203e7cc696c")
    assert tree.root(3).hex().startswith("aeb6bcfe274b70a1")
    assert tree.root(7).hex().startswith("ddb89be403809e32")


def test_every_leaf_of_every_size_is_proven_included_and_in_no_other_place() -> None:
    for size in range(1, MOST + 1):
        root = TREE.root(size)
        for index in range(size):
            path = TREE.inclusion(index, size)
            assert is_included(LEAVES[index], index, size, path, root)
            for other in range(size):
                if other != index:
                    assert not is_included(LEAVES[index], other, size, path, root)
                    assert not is_included(LEAVES[other], index, size, path, root)


def test_every_size_is_proven_to_begin_every_larger_one() -> None:
    for new in range(1, MOST + 1):
        for old in range(1, new + 1):
            path = TREE.consistency(old, new)
            roots = TREE.root(old), TREE.root(new)
            assert is_consistent(old, new, path, *roots)
            if old < new:
                assert not is_consistent(old, new, path, roots[1], roots[0])
                assert not is_consistent(new, old, path, *roots)


def test_another_past_is_never_consistent() -> None:
    for old in range(1, MOST):
        for changed in range(old):
            other = Tree([*LEAVES[:changed], bytes(32), *LEAVES[changed + 1 :]])
            path = TREE.consistency(old, MOST)
            forged = other.consistency(old, MOST)
            for proof in (path, forged):
                assert not is_consistent(old, MOST, proof, TREE.root(old), other.root())


def hostile(path: tuple[bytes, ...]) -> list[tuple[bytes, ...]]:
    return [
        *(path[:n] + path[n + 1 :] for n in range(len(path))),
        *((*path[:n], bytes(32), *path[n:]) for n in range(len(path) + 1)),
        *((*path[:n], path[n][:-1], *path[n + 1 :]) for n in range(len(path))),
        *((*path[:n], sha256(path[n]).digest(), *path[n + 1 :]) for n in range(len(path))),
        path[::-1] if path != path[::-1] else (bytes(32),),
        path + (bytes(32),) * (CONSISTENCY_MAX + 1),
    ]


def test_a_path_that_was_tampered_with_proves_nothing() -> None:
    for size in (1, 2, 7, 8, 13):
        for index in range(size):
            for path in hostile(TREE.inclusion(index, size)):
                assert not is_included(LEAVES[index], index, size, path, TREE.root(size))
        for path in hostile(TREE.consistency(size, 14)):
            assert not is_consistent(size, 14, path, TREE.root(size), TREE.root(14))


def test_impossible_places_are_refused() -> None:
    root = TREE.root(3)
    for index, size in ((3, 3), (-1, 3), (0, 0), (2**64, 3)):
        assert not is_included(LEAVES[0], index, size, (), root)
    for old, new in ((0, 3), (4, 3), (-1, 3), (0, 0)):
        assert not is_consistent(old, new, (), root, root)
    assert is_consistent(3, 3, (), root, root)
    assert not is_consistent(3, 3, (bytes(32),), root, root)
    assert not is_included(LEAVES[0], 0, 2**63, (bytes(32),) * (PATH_MAX + 1), root)


def test_a_node_is_no_leaf() -> None:
    """An entry whose id is two hashes side by side must not stand for a subtree."""
    left, right = (sha256(b"\0" + leaf).digest() for leaf in LEAVES[:2])
    assert node_hash(left, right) == TREE.root(2)
    assert not is_included(left + right, 0, 1, (), TREE.root(2))


SPEC_NAME = "example.com/foo"
SPEC_KEY = base64.b64decode("AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")[1:]
SPEC_NOTE = (
    "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2"
    "ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()


def test_the_note_of_the_specification_opens() -> None:
    assert note_key_id(SPEC_NAME, SPEC_KEY).hex() == "530d903a"
    assert open_note(SPEC_NOTE, SPEC_NAME, SPEC_KEY) == "This is an example message.\n"


SUMMIT = Summit(origin_of(BOB.key, NET), 7, TREE.root(7))
NOTE = sign_summit(SUMMIT, BOB.key, BOB.sign)


def test_a_checkpoint_comes_back_from_its_note() -> None:
    assert read_summit(NOTE, BOB.key, NET) == SUMMIT
    assert NOTE.decode().split("\n")[:2] == [
        f"mesh-ledger/1/log/{NET.hex()}/{BOB.key.hex()}",
        "7",
    ]


def test_a_head_says_the_same_as_its_note() -> None:
    bob = Chain(BOB)
    entries = [bob.alloc(ALICE) for _ in range(3)]
    summit = summit_of(bob.checkpoint(entries).content)
    assert summit == Summit(origin_of(BOB.key, NET), 3, plain_root([e.id for e in entries]))
    assert read_summit(sign_summit(summit, BOB.key, BOB.sign), BOB.key, NET) == summit


def test_signatures_of_others_are_passed_over() -> None:
    witness = "— witness.example/w " + base64.b64encode(b"idid" + bytes(72)).decode() + "\n"
    text, _, signature = NOTE.decode().rpartition("\n\n")
    cosigned = f"{text}\n\n{witness}{signature}{witness}".encode()
    assert read_summit(cosigned, BOB.key, NET) == SUMMIT


def resigned(text: str) -> bytes:
    blob = note_key_id(SUMMIT.origin, BOB.key) + BOB.sign(text.encode())
    return f"{text}\n— {SUMMIT.origin} {base64.b64encode(blob).decode()}\n".encode()


ROOT = base64.b64encode(SUMMIT.root).decode()
HOSTILE_NOTES = {
    "another size": NOTE.replace(b"\n7\n", b"\n8\n"),
    "no signature": NOTE.rpartition(b"\xe2\x80\x94")[0],
    "nothing": b"",
    "not UTF-8": NOTE + b"\xff",
    "a control character": NOTE.replace(b"\n7\n", b"\n7\r\n"),
    "cut short": NOTE[:-1],
    "signed by another": sign_summit(SUMMIT, BOB.key, ALICE.sign),
    "only unknown signatures": sign_summit(SUMMIT, ALICE.key, ALICE.sign),
    "too long": NOTE + b"x" * NOTE_MAX,
    "too many signatures": NOTE + NOTE.rpartition(b"\n\n")[2] * SIGNATURES_MAX,
    "a signature that is no base64": NOTE[:-2] + b"*\n",
    "a hyphen for a dash": NOTE.replace("—".encode(), b"-"),
    "a key name with a plus": NOTE.replace("— ".encode(), "— a+".encode()),
    "a short signature": NOTE + "— x AAAA\n".encode(),
    "another origin": resigned(f"{origin_of(ALICE.key, NET)}\n7\n{ROOT}\n"),
    "two lines": resigned(f"{SUMMIT.origin}\n7\n"),
    "a leading zero": resigned(f"{SUMMIT.origin}\n07\n{ROOT}\n"),
    "a size below nothing": resigned(f"{SUMMIT.origin}\n-7\n{ROOT}\n"),
    "digits of another script": resigned(f"{SUMMIT.origin}\n٧\n{ROOT}\n"),
    "a short root": resigned(f"{SUMMIT.origin}\n7\nAAAA\n"),
    "a root in base64url": resigned(f"{SUMMIT.origin}\n7\n{'_' * 43}=\n"),
    "an empty extension line": resigned(f"{SUMMIT.origin}\n7\n{ROOT}\n\n"),
}


@pytest.mark.parametrize("name", HOSTILE_NOTES)
def test_a_hostile_note_is_refused(name: str) -> None:
    with pytest.raises(BadEntry):
        read_summit(HOSTILE_NOTES[name], BOB.key, NET)


def test_an_extension_line_is_carried_by_the_signature_and_ignored() -> None:
    note = resigned(f"{SUMMIT.origin}\n7\n{ROOT}\nanything\n")
    assert read_summit(note, BOB.key, NET) == SUMMIT


def test_a_frontier_has_the_roots_of_the_tree_and_few_nodes() -> None:
    leaves = [sha256(bytes([n])).digest() for n in range(200)]
    tree, frontier = Tree(leaves), Frontier()
    for size, leaf in enumerate(leaves):
        assert frontier.root() == tree.root(size)
        assert len(frontier.peaks) == size.bit_count()
        frontier = frontier.plus(leaf)
    assert (frontier.size, frontier.root()) == (200, tree.root())
