"""Makes ed25519.json and canonical.json beside it: `python tests/vectors/make.py`.

Hostile inputs with one verdict each, for every implementation of the ledger. The arithmetic is
the plain affine one of RFC 8032 section 5.1: slow, and short enough to be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha512
from itertools import count
from pathlib import Path

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)

Point = tuple[int, int]
IDENTITY: Point = (0, 1)


def x_of(y: int, sign: int) -> int | None:
    """The x of the point of height y, if there is one."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if (x * x - square) % P:
        return None
    return x if x & 1 == sign else P - x


def add(a: Point, b: Point) -> Point:
    k = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + k, -1, P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, -1, P)
    return x % P, y % P


def times(n: int, point: Point) -> Point:
    total = IDENTITY
    for bit in bin(n)[2:]:
        total = add(total, total)
        if bit == "1":
            total = add(total, point)
    return total


def encode(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def base() -> Point:
    y = 4 * pow(5, -1, P) % P
    x = x_of(y, 0)
    assert x is not None
    return x, y


def order_8() -> Point:
    """A generator of the eight points of small order."""
    for y in count(2):
        x = x_of(y, 0)
        if x is not None:
            point = times(L, (x, y))
            if times(4, point) != IDENTITY:
                return point
    raise AssertionError


B, T = base(), order_8()
SECRET, NONCE = 0x1234567890ABCDEF1234567890ABCDEF, 0xFEDCBA0987654321
A, R = times(SECRET, B), times(NONCE, B)
KEY = encode(A)


def challenge(r: bytes, key: bytes, message: bytes) -> int:
    return int.from_bytes(sha512(r + key + message).digest(), "little") % L


def scalar(s: int) -> bytes:
    return s.to_bytes(32, "little")


def sign(r: bytes, nonce: int, key: bytes, message: bytes) -> bytes:
    """A signature whose R is encoded as *r*: right exactly if R is what the nonce makes it."""
    return r + scalar((nonce + challenge(r, key, message) * SECRET) % L)


def message_where(r: bytes, key: bytes, *, torsion: int = 0, cancels: bool) -> bytes:
    """A message whose challenge makes the parts of small order cancel out, or not.

    The key's is T and R's is *torsion* times T: what is left of both is (torsion + challenge) T.
    """
    messages = (b"%d" % n for n in count())
    return next(m for m in messages if ((torsion + challenge(r, key, m)) % 8 == 0) is cancels)


def small_order() -> Iterator[tuple[str, bytes]]:
    """The 8 points of small order, and their 6 encodings that are not canonical."""
    for n in range(8):
        yield f"{n} times a point of order 8", encode(times(n, T))
    for name, y in (("y = p", P), ("y = p + 1", P + 1)):
        yield name, scalar(y)
        yield f"{name}, sign set", scalar(y | 1 << 255)
    yield "y = 1, sign set", scalar(1 | 1 << 255)
    yield "y = p - 1, sign set", scalar(P - 1 | 1 << 255)


def ed25519() -> Iterator[tuple[str, bytes, bytes, bytes, bool]]:
    """(name, key, message, signature, verdict)"""
    m, r = b"a message", encode(R)
    good = sign(r, NONCE, KEY, m)
    s = int.from_bytes(good[32:], "little")
    yield "good", KEY, m, good, True
    empty = sign(r, NONCE, KEY, b"")
    yield "good, of nothing", KEY, b"", empty, True
    yield "S + L", KEY, m, r + scalar(s + L), False
    yield "S = L", KEY, m, r + scalar(L), False
    yield "S = 2^256 - 1", KEY, m, r + b"\xff" * 32, False
    yield "another message", KEY, b"b message", good, False
    yield "another key", encode(times(SECRET + 1, B)), m, good, False
    yield "another R", KEY, m, encode(times(NONCE + 1, B)) + good[32:], False
    yield "63 bytes", KEY, m, good[:63], False
    yield "65 bytes", KEY, m, good + b"\0", False
    yield "65 bytes, the last of them the message's first", KEY, m[1:], good + m[:1], False
    yield "no bytes", KEY, m, b"", False
    yield "a key of 31 bytes", KEY[:31], m, good, False
    yield "a key of 33 bytes", KEY + b"\0", m, good, False
    off = next(y for y in count(2) if x_of(y, 0) is None)
    yield "a key that is no point", scalar(off), m, good, False
    large = next(k for k in range(2, 19) if x_of(k, 0) is not None)
    yield "a key with y = p + k, not of small order", scalar(P + large), m, good, False
    yield "an R with y = p + k, not of small order", KEY, m, scalar(P + large) + good[32:], False
    for name, point in small_order():
        one = encode(IDENTITY)
        dead = message_where(one, point, cancels=True)
        yield f"key of small order: {name}, S = 0", point, dead, one + scalar(0), False
        yield f"R of small order: {name}", KEY, m, sign(point, 0, KEY, m), False
    mixed = encode(add(A, T))
    dead = message_where(r, mixed, cancels=True)
    live = message_where(r, mixed, cancels=False)
    yield "mixed-order key, equation holds", mixed, dead, sign(r, NONCE, mixed, dead), True
    yield "mixed-order key, only 8 x equation", mixed, live, sign(r, NONCE, mixed, live), False
    mixed_r = encode(add(R, T))
    yield "mixed-order R, only 8 x equation", KEY, m, sign(mixed_r, NONCE, KEY, m), False
    both = message_where(mixed_r, mixed, torsion=1, cancels=True)
    yield (
        "mixed-order key and R, equation holds",
        mixed,
        both,
        sign(mixed_r, NONCE, mixed, both),
        True,
    )
    one = message_where(mixed_r, mixed, torsion=1, cancels=False)
    last = sign(mixed_r, NONCE, mixed, one)
    yield "mixed-order key and R, only 8 x equation", mixed, one, last, False
    small = encode(T)
    alone = message_where(mixed_r, small, torsion=1, cancels=True)
    last = mixed_r + scalar(NONCE)
    yield "key of small order, mixed-order R, equation holds", small, alone, last, False
    alone = message_where(small, mixed, torsion=1, cancels=True)
    last = sign(small, 0, mixed, alone)
    yield "mixed-order key, R of small order, equation holds", mixed, alone, last, False
    for name, y in (("y = p + 1", P + 1), ("y = 1, sign set", 1 | 1 << 255)):
        odd = scalar(y)
        dead = message_where(odd, mixed, cancels=True)
        last = sign(odd, 0, mixed, dead)
        yield f"mixed-order key, R of small order: {name}, equation holds", mixed, dead, last, False


def hostile() -> Iterator[tuple[str, bytes]]:
    """Encodings outside the subset: each breaks one rule."""
    yield "nothing", b""
    yield "nil", b"\xc0"
    yield "the unused byte", b"\xc1"
    yield "false", b"\xc2"
    yield "true", b"\xc3"
    yield "float32", b"\xca\x3f\x80\0\0"
    yield "float64", b"\xcb\x3f\xf0\0\0\0\0\0\0"
    yield "negative fixint", b"\xff"
    for name, data in (("int8", "d001"), ("int16", "d10100"), ("int32", "d200010000")):
        yield f"{name}, positive", bytes.fromhex(data)
    yield "int64, positive", b"\xd3" + (2**40).to_bytes(8, "big")
    yield "int8, negative", b"\xd0\x80"
    yield "int64, negative", b"\xd3" + b"\x80" + bytes(7)
    yield "2^63", b"\xcf\x80" + bytes(7)
    yield "2^64 - 1", b"\xcf" + b"\xff" * 8
    for name, data in (
        ("uint8 of 127", "cc7f"),
        ("uint16 of 255", "cd00ff"),
        ("uint32 of 65535", "ce0000ffff"),
        ("uint64 of 2^32 - 1", "cf00000000ffffffff"),
    ):
        yield f"not shortest: {name}", bytes.fromhex(data)
    yield "not shortest: str8 of 31", b"\xd9\x1f" + b"a" * 31
    yield "not shortest: str16 of 255", b"\xda\x00\xff" + b"a" * 255
    yield "str32", b"\xdb\0\0\0\x01a"
    yield "not shortest: bin16 of 255", b"\xc5\x00\xff" + bytes(255)
    yield "not shortest: bin32 of 256", b"\xc6\0\0\x01\0" + bytes(256)
    yield "not shortest: array16 of 15", b"\xdc\x00\x0f" + b"\0" * 15
    yield "array32", b"\xdd\0\0\0\x01\0"
    yield "array of 257", b"\xdc\x01\x01" + b"\0" * 257
    yield "array of 2^32 - 1", b"\xdd\xff\xff\xff\xff"
    yield "text of 257 bytes", b"\xda\x01\x01" + b"a" * 257
    yield "empty map", b"\x80"
    yield "map", b"\x81\x01\x02"
    yield "map16", b"\xde\x00\x01\x01\x02"
    yield "map32", b"\xdf\0\0\0\x01\x01\x02"
    yield "map with a key twice", b"\x82\x01\x02\x01\x03"
    for name, data in (
        ("fixext1", b"\xd4\x01\0"),
        ("fixext16", b"\xd8\x01" + bytes(16)),
        ("ext8", b"\xc7\x01\x05\0"),
        ("ext8, empty", b"\xc7\x00\x05"),
        ("timestamp32", b"\xd6\xff\0\0\0\0"),
        ("timestamp64", b"\xd7\xff" + bytes(8)),
    ):
        yield name, data
    yield "text that is not NFC", b"\xa3e\xcc\x81"
    yield "text that is not UTF-8", b"\xa1\xff"
    yield "text with an overlong NUL", b"\xa2\xc0\x80"
    yield "text with a surrogate", b"\xa3\xed\xa0\x80"
    yield "9 arrays deep", b"\x91" * 9 + b"\0"
    yield "9 arrays deep, the last empty", b"\x91" * 8 + b"\x90"
    yield "5000 arrays deep", b"\x91" * 5000 + b"\0"
    yield "a byte after the end", b"\x01\x00"
    yield "two values", b"\x91\x01\x91\x01"
    yield "array cut short", b"\x92\x01"
    yield "bin cut short", b"\xc4\x02\x01"
    yield "integer cut short", b"\xcd\x01"
    yield "bin longer than all", b"\xc6\xff\xff\xff\xff"
    yield "nil within arrays", b"\x91\x91\xc0"
    yield "one byte over 8 KiB", b"\xc5\x1f\xfe" + bytes(8190)


def good() -> Iterator[tuple[str, bytes]]:
    """Encodings at the edges, inside."""
    yield "0", b"\0"
    yield "128", b"\xcc\x80"
    yield "2^63 - 1", b"\xcf\x7f" + b"\xff" * 7
    yield "empty bin", b"\xc4\x00"
    yield "empty text", b"\xa0"
    yield "text in NFC", b"\xa2\xc3\xa9"
    yield "text that starts with a byte order mark", b"\xa4\xef\xbb\xbfa"
    yield "text of 256 bytes", b"\xda\x01\x00" + b"a" * 256
    yield "empty array", b"\x90"
    yield "array of 256", b"\xdc\x01\x00" + b"\0" * 256
    yield "8 arrays deep", b"\x91" * 8 + b"\0"
    yield "8 KiB", b"\xc5\x1f\xfd" + bytes(8189)


def main() -> None:
    here = Path(__file__).parent
    signatures = [
        {"name": n, "key": k.hex(), "message": m.hex(), "signature": s.hex(), "valid": verdict}
        for n, k, m, s, verdict in ed25519()
    ]
    encodings = [
        {"name": name, "data": data.hex(), "valid": verdict}
        for verdict, vectors in ((True, good()), (False, hostile()))
        for name, data in vectors
    ]
    for name, vectors in (("ed25519", signatures), ("canonical", encodings)):
        (here / f"{name}.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
