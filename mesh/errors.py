"""Errors, by whose fault it is. Each message is written for the person who will read it."""

from __future__ import annotations


class MeshError(Exception):
    """Root of every error that mesh raises on purpose."""


class PeerError(MeshError):
    """A peer broke the protocol: score it, maybe disconnect. Never an assertion, never a crash."""


class Refused(MeshError):
    """Policy said no: a normal answer, with the reason and, where there is one, the way out."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class NotFound(Refused):
    """The thing asked for is not here."""


class Exhausted(Refused):
    """A bound of this node is reached, and counted: later, or elsewhere."""


class Unavailable(MeshError):
    """Not now: try later."""


class Stopped(Unavailable):
    """The node had to stop: why, and the way out."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


class ConfigError(MeshError):
    """The operator's mistake: which key, why, and how to mend it."""

    def __init__(self, key: str, why: str, hint: str = "") -> None:
        super().__init__(f"{key}: {why}")
        self.key = key
        self.why = why
        self.hint = hint


class Corruption(MeshError):
    """Our own data fails its hash: stop the node rather than serve or sign on top of it."""
