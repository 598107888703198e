"""A Byzantine node: an honest kernel with a corrupt mouth.

It takes part in the market, so that the others have dealings with it, and each time it speaks it
may stay silent, repeat old messages, garble signatures and numbers, promise what it cannot keep,
or tell different peers different things. It cannot sign for anybody else.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any, cast

import attrs
from attrs import evolve

from mesh import codec
from mesh.errors import PeerError
from mesh.messages import (
    Accepted,
    Award,
    Bid,
    Done,
    Lost,
    Message,
    Quantiles,
    Renew,
    Renewed,
    Settled,
    SignedOffer,
    Slice,
    Sliced,
)
from mesh.sansio import Identity

_REMEMBERED_MAX = 64
_EXTREMES = (0, 1, 2**31, 2**53 + 1, 2**63 - 1)
_WITHHELD = (Settled, Renewed, Renew, Accepted, Done, Lost, Slice, Sliced)


class Liar:
    """Decides what a Byzantine node says instead of what its kernel wanted to say."""

    def __init__(self, identity: Identity, rng: Random) -> None:
        self._identity = identity
        self._rng = rng
        self._heard: deque[bytes] = deque(maxlen=_REMEMBERED_MAX)
        self._silent_about = tuple(kind for kind in _WITHHELD if rng.random() < 0.3)
        self._boasts = rng.random() < 0.5
        self._garbles = rng.choice((0.0, 0.05, 0.3))
        self._forges = rng.choice((0.0, 0.5))
        self._equivocates = rng.random() < 0.5

    def hear(self, message: Message) -> None:
        """Remember a message, to repeat it when it does harm."""
        self._heard.append(codec.encode(message))

    def say(self, message: Message) -> list[bytes]:
        """The frames that go out in place of *message*."""
        rng = self._rng
        if isinstance(message, self._silent_about):
            return []
        if isinstance(message, Bid) and self._boasts:
            message = evolve(message, p_on_time=1000, finish_ms=Quantiles(1, 1, 1))
        if isinstance(message, Award) and rng.random() < self._forges:
            entry = _spoil_signature(message.entry, rng)
            # One with no certificate is what it would make of an award to several at once.
            options = (evolve(message, entry=entry), evolve(message, certificate=b""))
            message = options[rng.random() < 0.5]
        frames = [codec.encode(message)]
        self._heard.append(frames[0])
        if rng.random() < self._garbles:
            frames.append(self._garble(frames[0]))
            rng.shuffle(frames)
        return frames

    def repeat(self) -> bytes | None:
        """An old message, perhaps garbled."""
        if not self._heard:
            return None
        frame = self._rng.choice(self._heard)
        return self._garble(frame) if self._rng.random() < 0.5 else frame

    def publish(self, signed: SignedOffer) -> SignedOffer:
        """The offer as one peer gets to see it."""
        rng = self._rng
        if rng.random() < self._garbles:
            return evolve(signed, signature=_flip(signed.signature, rng))
        if not self._equivocates:
            return signed
        offer = codec.decode_offer(signed.offer)
        offer = evolve(offer, price=rng.choice(_EXTREMES), speed=rng.choice(_EXTREMES))
        data = codec.encode_offer(offer)
        return SignedOffer(data, self._identity.sign(codec.offer_message(data)))

    def _garble(self, frame: bytes) -> bytes:
        """The same message with a field of another kind of value, or with flipped bytes."""
        if self._rng.random() < 0.3:
            return _flip(frame, self._rng)
        try:
            message = codec.decode(frame)
        except PeerError:
            return _flip(frame, self._rng)
        return codec.encode(cast(Message, self._corrupt(message)))

    def _corrupt(self, value: object) -> object:
        fields = attrs.fields(cast(Any, type(value)))
        name = self._rng.choice([field.name for field in fields])
        return evolve(cast(Any, value), **{name: self._wrong(getattr(value, name))})

    def _wrong(self, value: object) -> object:
        rng = self._rng
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return rng.choice((*_EXTREMES, value + 1, max(0, value - 1)))
        if isinstance(value, bytes):
            return _flip(value, rng)
        if isinstance(value, str):
            return rng.choice(("", "x" * 500, value + "\0"))
        if isinstance(value, tuple):
            return value[1:] if rng.random() < 0.5 else value * 2
        return self._corrupt(value) if attrs.has(type(value)) else value


def _spoil_signature(entry: bytes, rng: Random) -> bytes:
    """An entry whose author's signature, its last 64 bytes, is not one."""
    return entry[:-64] + _flip(entry[-64:], rng)


def _flip(data: bytes, rng: Random) -> bytes:
    if not data:
        return b"\0"
    at = rng.randrange(len(data))
    return data[:at] + bytes((data[at] ^ (1 << rng.randrange(8)),)) + data[at + 1 :]
