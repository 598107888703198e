"""The auditor in JavaScript says what the one in Python says: on vectors, bundles and rubble."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from ledger_bundles import bundles, history, lines
from ledger_deals import ALICE, BOB, Chain
from ledger_forgeries import EVERY, FORGERIES

from ledger.audit import findings
from ledger.bundle import LINE_MAX, NESTED_MAX, read
from ledger.codec import UINT_MAX, pack
from ledger.evidence import Finding
from ledger.model import Entry
from ledger.proof import Tree, is_consistent, is_included

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no node on PATH: verify.js is not run")

TESTS = Path(__file__).parents[1]
VERIFIER = TESTS.parent / "ledger" / "js" / "verify.js"
CANONICAL = json.loads((TESTS / "vectors" / "canonical.json").read_text())
ED25519 = json.loads((TESTS / "vectors" / "ed25519.json").read_text())
RUBBLE = 150
"""Files that are damaged at random."""
_RAW = json.loads(lines([Chain(BOB).alloc(ALICE)])[0])["raw"]


def crooked() -> dict[str, bytes]:
    """Lines at the edges of JSON, where two parsers may disagree."""
    entry = json.loads(lines([Chain(BOB).alloc(ALICE)])[0])
    unsafe = json.loads(lines([Chain(ALICE).line(BOB, UINT_MAX)])[0])
    rerun = next(line for line in bundles()["wrong bill"][0] if line.startswith(b'{"rerun"'))
    return {
        "NaN": b'{"raw": "%s", "x": NaN}' % _RAW.encode(),
        "a BOM": b"\xef\xbb\xbf" + json.dumps(entry).encode(),
        "UTF-16": json.dumps(entry).encode("utf-16"),
        "1.0 for 1": json.dumps(entry | {"fence": 1.0}).encode(),
        "true for 1": json.dumps(entry | {"fence": True}).encode(),
        "a large number": json.dumps(unsafe).encode(),
        "a large number as number": json.dumps(unsafe | {"limit": UINT_MAX}).encode(),
        "raw with padding": json.dumps({"raw": _RAW + "="}).encode(),
        "raw in base64": json.dumps({"raw": _RAW.replace("_", "/")}).encode(),
        "raw twice": b'{"raw": "*", "raw": "%s"}' % _RAW.encode(),
        "raw of nothing": b'{"raw": ""}',
        "an array": b"[1]",
        "null": b"null",
        "inherited": b'{"constructor": {}}',
        "a prototype": b'{"__proto__": {"raw": "%s"}}' % _RAW.encode(),
        "empty lines": b"\n \r\n\x0b\x0c\n" + json.dumps(entry).encode(),
        "too long": json.dumps(entry | {"x": "x" * LINE_MAX}).encode(),
        "too deep": b'{"raw": "%s", "x": ' % _RAW.encode() + b"[" * 999 + b"]" * 999 + b"}",
        "deep": json.dumps(entry | {"x": [[]] * (NESTED_MAX - 2)}).encode(),
        "fuel 1.0": rerun.replace(b'"fuel": 1,', b'"fuel": 1.0,'),
        "fuel -1": rerun.replace(b'"fuel": 1,', b'"fuel": -1,'),
        "fuel 1e3": rerun.replace(b'"fuel": 1,', b'"fuel": 1e3,'),
        "fuel unsafe": rerun.replace(b'"fuel": 1,', b'"fuel": 9007199254740993,'),
        "fuel as text": rerun.replace(b'"fuel": 1,', b'"fuel": "9223372036854775807",'),
        "fuel as short text": rerun.replace(b'"fuel": 1,', b'"fuel": "1000000000000000",'),
        "not UTF-8": b'{"raw": "\xff"}',
        "a name with a lone surrogate": b'{"raw": "%s", "\\ud800": 1}' % _RAW.encode(),
    }


def rubble() -> list[bytes]:
    """Sound files of which a few characters, lines or bytes of entries were changed."""
    dice = random.Random(20260701)
    files = []
    for _ in range(RUBBLE):
        file = lines([*history()])
        dice.shuffle(file)
        file = file[: dice.randint(2, len(file))]
        for _ in range(dice.randint(1, 3)):
            number = dice.randrange(len(file))
            fields = json.loads(file[number])
            match dice.randrange(3):
                case 0:
                    data = bytearray(base64.urlsafe_b64decode(fields["raw"] + "==="))
                    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
                    raw = base64.urlsafe_b64encode(bytes(data)).decode().rstrip("=")
                    file[number] = json.dumps({"raw": raw}).encode() + b"\n"
                case 1:
                    fields[dice.choice(list(fields))] = dice.choice(["", 0, 1, "00", None])
                    file[number] = json.dumps(fields).encode() + b"\n"
                case _:
                    file.append(file[number])
        files.append(b"".join(file))
    return files


def alone(entry: Entry) -> bytes:
    """A file of nothing but the bytes of *entry*, whatever they are."""
    raw = base64.urlsafe_b64encode(entry.encode()).decode().rstrip("=")
    return json.dumps({"raw": raw}).encode() + b"\n"


NAMED = {
    **{name: b"".join(file) for name, (file, _) in bundles().items()},
    **crooked(),
    **{name: alone(forge()) for name, (forge, _) in FORGERIES.items()},
    **{kind.name: alone(entry) for kind, entry in EVERY.items()},
}
FILES = [*NAMED.values(), *rubble()]
ROOTS = [[sha256(bytes([n])).hexdigest() for n in range(size)] for size in range(12)]


LEAVES = [sha256(bytes([n])).digest() for n in range(9)]
TREE = Tree(LEAVES)
EDGES = [0, 127, 128, 2**8 - 1, 2**8, 2**16 - 1, 2**16, 2**32 - 1, 2**32, 2**53, UINT_MAX]
ROWS: list[tuple[int | bytes, ...]] = [(edge, b"", bytes(255), edge) for edge in EDGES]
Inclusions = list[tuple[bytes, int, int, tuple[bytes, ...], bytes]]
Consistencies = list[tuple[int, int, tuple[bytes, ...], bytes, bytes]]


def bent(path: tuple[bytes, ...]) -> list[tuple[bytes, ...]]:
    """The path, and what else somebody may offer in its place."""
    cut = [path[:-1], path[1:], path[::-1], (*path, bytes(32)), (bytes(32), *path)]
    return [path, *cut, (*path[:-1], bytes(31)), path + (bytes(32),) * 70]


def inclusions() -> Inclusions:
    return [
        (LEAVES[index], index + shift, claimed, path, TREE.root(size))
        for size in range(1, len(LEAVES) + 1)
        for index in range(size)
        for path in bent(TREE.inclusion(index, size))
        for shift in (0, 1)
        for claimed in {size, size + 1, 2 * size, 4 * size}
    ]


def consistencies() -> Consistencies:
    return [
        (old + shift, claimed, path, TREE.root(old), TREE.root(size))
        for size in range(1, len(LEAVES) + 1)
        for old in range(1, size + 1)
        for path in bent(TREE.consistency(old, size))
        for shift in (0, 1, -1)
        for claimed in {size, size + 1, 2 * size}
    ]


def in_hex(value: object) -> object:
    """*value* for JSON."""
    if isinstance(value, bytes):
        return value.hex()
    return [in_hex(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    """What verify.js says, all of it from one process."""
    assert NODE is not None
    job = {
        "verifier": VERIFIER.as_uri(),
        "canonical": [vector["data"] for vector in CANONICAL],
        "ed25519": [[v["key"], v["message"], v["signature"]] for v in ED25519],
        "roots": ROOTS,
        "included": in_hex(inclusions()),
        "consistent": in_hex(consistencies()),
        "rows": [
            [[item.hex(), None] if isinstance(item, bytes) else [None, str(item)] for item in row]
            for row in ROWS
        ],
        "files": [base64.b64encode(file).decode() for file in FILES],
    }
    done = subprocess.run(
        [NODE, "--no-warnings", str(Path(__file__).with_name("drive_ledger_js.mjs"))],
        input=json.dumps(job),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)  # type: ignore[no-any-return]  # JSON is anything


def verdicts(file: bytes) -> list[tuple[str, str, bool, str]]:
    """Of every finding its entry, check and verdict; of balances the sums too."""
    items = list(read(pieces(file)))
    entries = [item for item in items if isinstance(item, Entry)]
    misread = [item for item in items if isinstance(item, Finding)]
    evidence = [item for item in items if not isinstance(item, Entry | Finding)]
    found = [*misread, *findings(entries, evidence=evidence)]
    return sorted(
        (f.entry_id.hex(), f.check, f.is_good, f.detail if f.check == "balance" else "")
        for f in found
    )


def pieces(file: bytes) -> list[bytes]:
    """The lines, as whoever reads a file with a limit gets them."""
    found = []
    for line in file.split(b"\n"):
        whole = line + b"\n"
        found += [whole[at : at + LINE_MAX + 1] for at in range(0, len(whole), LINE_MAX + 1)]
    return found


def same(found: list[dict[str, Any]]) -> list[tuple[str, str, bool, str]]:
    return sorted(
        (f["id"], f["check"], f["good"], f["detail"] if f["check"] == "balance" else "")
        for f in found
    )


def test_every_canonical_vector_gets_its_verdict(answer: dict[str, Any]) -> None:
    told = dict(zip((v["name"] for v in CANONICAL), answer["canonical"], strict=True))
    assert told == {vector["name"]: vector["valid"] for vector in CANONICAL}


def test_every_signature_vector_gets_its_verdict(answer: dict[str, Any]) -> None:
    told = dict(zip((v["name"] for v in ED25519), answer["ed25519"], strict=True))
    assert told == {vector["name"]: vector["valid"] for vector in ED25519}


def test_the_roots_are_the_same(answer: dict[str, Any]) -> None:
    assert answer["roots"] == [Tree(map(bytes.fromhex, leaves)).root().hex() for leaves in ROOTS]


def test_what_is_signed_is_encoded_alike(answer: dict[str, Any]) -> None:
    assert answer["rows"] == [pack(row).hex() for row in ROWS]


def test_a_proof_of_inclusion_however_bent_gets_the_same_verdict(answer: dict[str, Any]) -> None:
    verdicts = [is_included(*each) for each in inclusions()]
    assert answer["included"] == verdicts
    assert 45 <= sum(verdicts) < len(verdicts) // 8


def test_a_proof_of_consistency_however_bent_gets_the_same_verdict(answer: dict[str, Any]) -> None:
    verdicts = [is_consistent(*each) for each in consistencies()]
    assert answer["consistent"] == verdicts
    assert 45 <= sum(verdicts) < len(verdicts) // 8


@pytest.mark.parametrize("name", NAMED)
def test_a_bundle_gets_the_same_findings(answer: dict[str, Any], name: str) -> None:
    place = list(NAMED).index(name)
    assert same(answer["files"][place]) == verdicts(FILES[place])


def test_a_forgery_a_fork_a_removed_entry_and_an_inflated_bill_are_named(
    answer: dict[str, Any],
) -> None:
    for name, (_, wrong) in bundles().items():
        found = answer["files"][list(NAMED).index(name)]
        assert {finding["check"] for finding in found if not finding["good"]} == wrong, name


def test_rubble_gets_the_same_findings(answer: dict[str, Any]) -> None:
    for place in range(len(NAMED), len(FILES)):
        assert same(answer["files"][place]) == verdicts(FILES[place]), FILES[place]
