"""MUNGE credentials as bearer tokens: the user's own identity on the cluster is the key.

A credential is made by `munge -n` on any host of the cluster, holds for a few minutes, and says which user made it. MUNGE lets
a credential be decoded once, so that what was decoded is kept here for as long as it holds.
"""

from __future__ import annotations

import grp
import hashlib
import pwd
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lemix_hpc.config.serving_section import Munge
from lemix_hpc.runtime.http.keys import Key, new_key

PREFIX = b"MUNGE:"
LONGEST = 4096
DECODE_S = 5.0
MOST_KEPT = 4096
_FACTS = ("STATUS", "UID", "GID", "ENCODE_TIME", "TTL")


@dataclass(frozen=True, slots=True)
class _Decoded:
    """`until`: seconds since the epoch."""

    key: Key | None
    until: float


@dataclass(slots=True)
class MungeUsers:
    """Users that may come in, for one thread alone. `owner`: who runs this, and may do everything; `now`: since the epoch."""

    settings: Munge
    owner: int
    now: Callable[[], float] = time.time
    _decoded: dict[bytes, _Decoded] = field(default_factory=dict)
    _keys: dict[int, Key] = field(default_factory=dict)

    def find(self, credential: bytes) -> Key | None:
        """The key of the user who made it; None if it does not hold, or the user may not come in. Waits for `unmunge`."""
        digest, now = hashlib.sha256(credential).digest(), self.now()
        known = self._decoded.get(digest)
        if known is None:
            known = self._decode(credential)
            if len(self._decoded) >= MOST_KEPT:
                self._decoded = {one: found for one, found in self._decoded.items() if found.until > now}
            if known.key is not None and len(self._decoded) < MOST_KEPT:
                self._decoded[digest] = known
        return known.key if known.until > now else None

    def _decode(self, credential: bytes) -> _Decoded:
        command = ["unmunge", "--no-output", "--metadata=-", "--numeric", f"--keys={','.join(_FACTS)}"]
        if self.settings.socket is not None:
            command.append(f"--socket={self.settings.socket}")
        try:
            done = subprocess.run(command, input=credential, capture_output=True, timeout=DECODE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"warning: a MUNGE credential could not be decoded: {error}", flush=True)
            return _Decoded(None, 0.0)
        facts = dict(line.split(":", 1) for line in done.stdout.decode(errors="replace").splitlines() if ":" in line)
        if done.returncode or not all(name in facts for name in _FACTS):
            return _Decoded(None, 0.0)
        return _Decoded(
            self._key_of(int(facts["UID"]), int(facts["GID"])), int(facts["ENCODE_TIME"]) + int(facts["TTL"])
        )

    def _key_of(self, uid: int, gid: int) -> Key | None:
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            return None
        if uid != self.owner and user.pw_name not in self.settings.users and not self._groups(user.pw_name, gid):
            return None
        if uid not in self._keys:
            self._keys[uid] = new_key(self.settings.key_of(user.pw_name, owns=uid == self.owner))
        return self._keys[uid]

    def _groups(self, name: str, gid: int) -> bool:
        """Whether a user is in one of the groups that may come in."""
        for group in self.settings.groups:
            try:
                found = grp.getgrnam(group)
            except KeyError:
                continue
            if found.gr_gid == gid or name in found.gr_mem:
                return True
        return False
