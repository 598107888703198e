"""Proofs that an entry is in a chain and that a chain only grew; and checkpoints as text. Pure.

The tree is that of RFC 6962 section 2.1 (the same in RFC 9162): the leaves are the ids of an
author's entries by seq, a leaf hashes as SHA-256(00 ‖ id), a node as SHA-256(01 ‖ left ‖ right). A
HEAD at seq n signs the root over entries 0..n-1. The text is C2SP's tlog-checkpoint as a signed
note (https://c2sp.org/tlog-checkpoint, https://c2sp.org/signed-note), for witnesses and monitors.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256

from attrs import frozen

from ledger import keys
from ledger.errors import BadEntry
from ledger.keys import Sign, Verify
from ledger.model import Body
from ledger.statements import Checkpoint

PATH_MAX = 64
"""Hashes of the longest proof of inclusion: a tree has at most 2^63 leaves."""
CONSISTENCY_MAX = PATH_MAX + 1
NOTE_MAX = 128 * 1024
"""Bytes of a signed note: 16 signatures have room, of witnesses with post-quantum keys too."""
SIGNATURES_MAX = 64
"""Lines of signatures that a note may carry."""

EMPTY = sha256(b"").digest()
"""The root over nothing."""


def leaf_hash(leaf: bytes) -> bytes:
    """The lowest node over *leaf*."""
    return sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The node over two nodes."""
    return sha256(b"\1" + left + right).digest()


class Tree:
    """A tree that grows: about 64 bytes of hashes a leaf."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        """Of each height the nodes over full subtrees."""
        for leaf in leaves:
            self.append(leaf)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add the next leaf: two hashes on average."""
        node, height = leaf_hash(leaf), 0
        self._levels[0].append(node)
        while len(self._levels[height]) % 2 == 0:
            node = node_hash(self._levels[height][-2], node)
            height += 1
            if height == len(self._levels):
                self._levels.append([])
            self._levels[height].append(node)

    def root(self, size: int | None = None) -> bytes:
        """The root over the first *size* leaves; over all if not given."""
        size = len(self) if size is None else size
        assert 0 <= size <= len(self), size
        return self._node(0, size) if size else EMPTY

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """The proof that leaf *index* is among the first *size*: RFC 9162 section 2.1.3.1."""
        assert 0 <= index < size <= len(self), (index, size)
        path, low, high = [], 0, size
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                path.append(self._node(middle, high))
                high = middle
            else:
                path.append(self._node(low, middle))
                low = middle
        return tuple(reversed(path))

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """The proof that the first *old* leaves begin the first *new*: section 2.1.4.1."""
        assert 0 < old <= new <= len(self), (old, new)
        path: list[bytes] = []
        low, high, is_whole = 0, new, True
        while old != high:
            middle = low + _split(high - low)
            if old <= middle:
                path.append(self._node(middle, high))
                high = middle
            else:
                path.append(self._node(low, middle))
                low, is_whole = middle, False
        if not is_whole:
            path.append(self._node(low, high))
        return tuple(reversed(path))

    def _node(self, low: int, high: int) -> bytes:
        """The node over leaves *low* to *high*; *low* is where a full subtree may start."""
        size = high - low
        if size & (size - 1) == 0:
            return self._levels[size.bit_length() - 1][low // size]
        middle = low + _split(size)
        return node_hash(self._node(low, middle), self._node(middle, high))


@frozen
class Frontier:
    """The right edge of a tree: enough to grow it and to know its root, in up to 64 hashes."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()
    """The nodes over its full subtrees, the largest first: one for each bit of *size*."""

    def plus(self, leaf: bytes) -> Frontier:
        """With the next leaf."""
        node, peaks, size = leaf_hash(leaf), list(self.peaks), self.size
        while size & 1:
            node, size = node_hash(peaks.pop(), node), size >> 1
        return Frontier(self.size + 1, (*peaks, node))

    def root(self) -> bytes:
        """The root over all leaves."""
        if not self.peaks:
            return EMPTY
        *others, node = self.peaks
        for left in reversed(others):
            node = node_hash(left, node)
        return node


def is_included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether *path* proves *leaf* at *index* of the tree of *size*: RFC 9162 section 2.1.3.2."""
    if not 0 <= index < size or not _are_hashes(path, PATH_MAX):
        return False
    node, last = leaf_hash(leaf), size - 1
    for sibling in path:
        if last == 0:
            return False
        if index & 1 or index == last:
            node = node_hash(sibling, node)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        index, last = index >> 1, last >> 1
    return last == 0 and node == root


def is_consistent(
    old: int, new: int, path: Sequence[bytes], old_root: bytes, new_root: bytes
) -> bool:
    """Whether *path* proves that the tree of *old* leaves begins that of *new*: section 2.1.4.2."""
    if not 0 < old <= new or not _are_hashes(path, CONSISTENCY_MAX):
        return False
    if old == new:
        return not path and old_root == new_root
    if old & (old - 1) == 0:
        path = (old_root, *path)
    if not path:
        return False
    index, last = old - 1, new - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if index & 1 or index == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        index, last = index >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


@frozen
class Summit:
    """What a checkpoint says of a log: how many entries it has, and the root over them."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The body of the note: three lines, which are signed as they stand."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def origin_of(author: bytes, net: bytes) -> str:
    """The name of *author*'s log on *net*, and of the key that signs its checkpoints."""
    return f"{keys.LOG_ORIGIN}{net.hex()}/{author.hex()}"


def summit_of(head: Body) -> Summit:
    """What the HEAD *head* says, for a note that its author signs as well."""
    root = Checkpoint.decode(head.terms).root
    return Summit(origin_of(head.author, head.net), head.seq, root)


def note_key_id(name: str, key: bytes) -> bytes:
    """The 4 bytes that stand for an Ed25519 *key* under *name* in a signed note."""
    return sha256(name.encode() + b"\n\x01" + key).digest()[:4]


def sign_summit(summit: Summit, author: bytes, sign: Sign) -> bytes:
    """The signed note of *summit*, by the author whose log it is."""
    text = summit.text()
    blob = note_key_id(summit.origin, author) + sign(text.encode())
    return f"{text}\n— {summit.origin} {base64.b64encode(blob).decode()}\n".encode()


def read_summit(note: bytes, author: bytes, net: bytes, verify: Verify = keys.verify) -> Summit:
    """The checkpoint in *note*, which *author* signed. Raises BadEntry.

    Signatures of keys that are not the author's are passed over, as the specification demands.
    """
    name = origin_of(author, net)
    text = open_note(note, name, author, verify)
    lines = text.split("\n")[:-1]
    if len(lines) < 3 or not all(lines):
        raise BadEntry("a checkpoint has three lines or more, none of them empty")
    origin, size, root, *_ = lines
    if origin != name:
        raise BadEntry("a checkpoint of another log")
    if not re.fullmatch("0|[1-9][0-9]{0,18}", size):
        raise BadEntry("the size of the checkpoint is no number")
    data = _base64(root)
    if len(data) != 32:
        raise BadEntry("the root of the checkpoint is no hash")
    return Summit(origin, int(size), data)


def open_note(note: bytes, name: str, key: bytes, verify: Verify = keys.verify) -> str:
    """The text of a signed *note*, if *key* under *name* signed it. Raises BadEntry."""
    if len(note) > NOTE_MAX:
        raise BadEntry(f"a note of {len(note)} bytes where {NOTE_MAX} are allowed")
    try:
        whole = note.decode()
    except UnicodeDecodeError:
        raise BadEntry("the note is not UTF-8") from None
    if any(character < " " and character != "\n" for character in whole):
        raise BadEntry("a control character in the note")
    text, gap, signatures = whole.rpartition("\n\n")
    lines = signatures.split("\n")
    if not gap or lines.pop() or not lines or len(lines) > SIGNATURES_MAX:
        raise BadEntry("the note has no text and signatures")
    text += "\n"
    wanted, found = note_key_id(name, key), False
    for line in lines:
        signer, blob = _signature(line)
        if (signer, blob[:4]) == (name, wanted):
            if not verify(key, text.encode(), blob[4:]):
                raise BadEntry("the signature of the note is not its key's")
            found = True
    if not found:
        raise BadEntry("the note is not signed by that key")
    return text


def _signature(line: str) -> tuple[str, bytes]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "—" or not parts[1] or "+" in parts[1]:
        raise BadEntry("a line of the note is no signature")
    blob = _base64(parts[2])
    if len(blob) <= 4:
        raise BadEntry("a signature of the note is too short")
    return parts[1], blob


def _base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadEntry("not base64") from None
    if base64.b64encode(data).decode() != text:
        raise BadEntry("not the one base64 of its bytes")
    return data


def _split(size: int) -> int:
    """The largest power of two below *size*, which is more than one."""
    return 1 << (size - 1).bit_length() - 1


def _are_hashes(path: Sequence[bytes], most: int) -> bool:
    return len(path) <= most and all(len(each) == 32 for each in path)
