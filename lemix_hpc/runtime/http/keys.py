"""Keys of clients while a run serves: whose a key is, and how much was asked for with each."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lemix_hpc.config.api_keys import ALONE, ApiKey, Right, read_keys
from lemix_hpc.config.errors import UserError
from lemix_hpc.runtime.http.errors import spent

LOOK_S = 1.0
"""How often the file is looked at, at most."""


@dataclass(slots=True)
class _Allowance:
    """`rate` a second flows in, up to `most`, and what is asked for flows out. What is more than `most` may be asked for when
    it is full."""

    rate: float
    most: float
    left: float
    at: float

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much may be asked for."""
        self.left = min(self.most, self.left + (now - self.at) * self.rate)
        self.at = now
        return max(0.0, (min(amount, self.most) - self.left) / self.rate)


@dataclass(slots=True)
class Key:
    """A client's. `rights`: what it may do."""

    name: str
    rights: frozenset[Right]
    requests: _Allowance | None = None
    tokens: _Allowance | None = None

    def scoped(self, id: str) -> str:
        """A client's own name for a call, told apart from those of other clients."""
        return id if self.name == ALONE else f"{self.name}/{id}"


@dataclass(slots=True)
class _Known:
    digest: bytes
    key: Key


@dataclass(slots=True)
class KeyRing:
    """Those in a file, for the server's thread alone. They are read again when the file has changed; if it is wrong then, the
    keys stay as they were, and the log says so. Raises UserError if it is wrong at first."""

    path: Path
    now: Callable[[], float] = time.monotonic
    refused: Counter[int] = field(default_factory=Counter)
    """Calls that were turned away for their key, by status."""
    _known: list[_Known] = field(default_factory=list)
    _looked: float = -math.inf
    _stamp: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        self._stamp = self._look()
        self._learn(read_keys(self.path))
        self._looked = self.now()

    def find(self, given: bytes) -> Key | None:
        """Whose key it is. Takes the same time for every key."""
        self._refresh()
        digest = _digest(given)
        found = [known.key for known in self._known if hmac.compare_digest(digest, known.digest)]
        return found[0] if found else None

    def take_request(self, key: Key) -> None:
        """Count a request. Raises ApiError if the key has to wait."""
        if key.requests is not None:
            self._take(key, key.requests, 1, f"{key.requests.rate:g} requests per second")

    def take_tokens(self, key: Key, lengths: tuple[int, int]) -> None:
        """Count a prompt and the most that may be generated. Raises ApiError if the key has to wait."""
        if key.tokens is not None:
            self._take(key, key.tokens, sum(lengths), f"{60 * key.tokens.rate:g} tokens per minute")

    def _take(self, key: Key, allowance: _Allowance, amount: int, limit: str) -> None:
        if (wait := allowance.wait(amount, self.now())) > 0:
            self.refused[429] += 1
            raise spent(key.name, limit, wait)
        allowance.left -= amount

    def _refresh(self) -> None:
        now = self.now()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._learn(read_keys(self.path))
        except UserError as error:
            print(f"warning: {error}; the keys stay as they were", flush=True)
        else:
            print(f"keys read again: {', '.join(known.key.name for known in self._known)}", flush=True)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _learn(self, keys: list[ApiKey]) -> None:
        before, now = {known.key.name: known.key for known in self._known}, self.now()
        self._known = [_Known(_digest(key.key.encode()), new_key(key, before.get(key.name), now)) for key in keys]


def new_key(given: ApiKey, before: Key | None = None, now: float = 0.0) -> Key:
    """What a client has used of its limits lately, by the key `before`, stays used."""
    requests = _allowance(given.requests_per_s, 1.0, before.requests if before else None, now)
    tokens = _allowance(given.tokens_per_min, 60.0, before.tokens if before else None, now)
    return Key(given.name, frozenset(given.rights), requests, tokens)


def _allowance(limit: float | None, seconds: float, before: _Allowance | None, now: float) -> _Allowance | None:
    """Of `limit` in so many seconds."""
    if limit is None:
        return None
    most = max(1.0, limit)
    return _Allowance(limit / seconds, most, most if before is None else min(most, before.left), now)


def _digest(key: bytes) -> bytes:
    # Of one length, so that the comparison does not tell that of the key.
    return hashlib.sha256(key).digest()
