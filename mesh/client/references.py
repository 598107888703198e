"""How people name things: whole ids, unique prefixes, `@last`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mesh import ids
from mesh.client.errors import Ambiguous, BadRequest, NotFound

LAST = "@last"
"""The task that was submitted last from this machine."""
PREFIX_MIN = 4
"""Hex digits."""
_SHOWN_MAX = 8


def is_task(text: str) -> bool:
    """Whether *text* is a whole task id."""
    try:
        ids.parse_task(text)
    except ValueError:
        return False
    return True


def check_cid(text: str) -> str:
    """*text* if it is a CID of ours. Raises BadRequest."""
    try:
        ids.parse_cid(text)
    except ValueError as error:
        raise BadRequest(str(error), "a CID looks like bafy… or bafk…") from None
    return text


def choose(prefix: str, known: Iterable[str]) -> str:
    """The one of *known* (ids such as `t-7f3a…`) that *prefix* begins.

    Raises BadRequest for what is no prefix, NotFound, or Ambiguous with the candidates.
    """
    digits = prefix.removeprefix("t-").lower()
    if len(digits) < PREFIX_MIN or not all(digit in "0123456789abcdef" for digit in digits):
        raise BadRequest(
            f"{prefix!r} is no task", f"give at least {PREFIX_MIN} hex digits of its id, or {LAST}"
        )
    found = sorted(name for name in known if name.startswith(f"t-{digits}"))
    if not found:
        raise NotFound(f"this node has no task {prefix}", "mesh ps lists them")
    if len(found) > 1:
        shown = ", ".join(found[:_SHOWN_MAX]) + (", …" if len(found) > _SHOWN_MAX else "")
        raise Ambiguous(f"{prefix} begins {len(found)} tasks", f"one of {shown}")
    return found[0]


def choose_peer(reference: str, known: Iterable[str]) -> str:
    """The peer id that *reference* is, or that of the one of *known* which it ends.

    Raises BadRequest, NotFound, or Ambiguous with the candidates.
    """
    ending = reference.removeprefix("\N{HORIZONTAL ELLIPSIS}")
    try:
        ids.parse_peer(ending)
    except ValueError:
        pass
    else:
        return ending
    if len(ending) < PREFIX_MIN:
        hint = f"give its id, or at least the last {PREFIX_MIN} characters of it"
        raise BadRequest(f"{reference!r} is no peer", hint)
    found = sorted({name for name in known if name.endswith(ending)})
    if not found:
        raise NotFound(f"this node knows no peer {reference}", "mesh peers -o wide lists them")
    if len(found) > 1:
        raise Ambiguous(f"{reference} ends {len(found)} peers", f"one of {', '.join(found)}")
    return found[0]


def remember(file: Path, task: str) -> None:
    """Make *task* what `@last` means. A convenience: where it cannot be written it is left out."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = file.with_suffix(".new")
        partial.write_text(task + "\n", encoding="ascii")
        partial.replace(file)
    except OSError:
        return


def recall(file: Path) -> str:
    """The id that `@last` means. Raises NotFound."""
    try:
        task = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        task = ""
    if not is_task(task):
        raise NotFound("no task was submitted from here yet", "mesh ps lists the node's tasks")
    return task
