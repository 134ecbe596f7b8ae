"""Pure. What a target makes of the capabilities it is shown (:mod:`wire.capability`), before it touches anything.

One connection shows the same capability with every request for a file, so what was verified is kept per connection:
the signature costs some 2 us, finding the same bytes again a tenth of that. Its expiry is looked at every time.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from wire.capability import (
    ALL_FILES,
    DRIFT_US,
    READ,
    WRITE,
    Capability,
    fingerprint,
    is_signed,
    key_id,
    parse_untrusted,
)
from wire.errors import OK, Status

KNOWN_MAX: Final = 4096
"""Capabilities kept per connection; then the oldest are forgotten and verified again."""
TOLD_EVERY_US: Final = 1_000_000
"""Refusals of one connection are logged this often at most, with how many there were."""


class Keys:
    """The signing keys that the keeper told this target."""

    def __init__(self) -> None:
        self.by_id: dict[bytes, bytes] = {}
        self.fingerprint = b""
        self.refused = 0
        """Requests refused for their capability."""

    def learn(self, keys: Sequence[bytes]) -> None:
        """Go by *keys* from now on, and by no others."""
        self.by_id = {key_id(key): key for key in keys}
        self.fingerprint = fingerprint(keys)


class Shown:
    """The capabilities that one connection has shown."""

    def __init__(self, keys: Keys, client: bytes) -> None:
        """*client*: the uuid in its Hello."""
        self._keys = keys
        self._client = client
        self._known: dict[bytes, Capability] = {}
        self._since = 0
        """Refusals that are not logged yet."""
        self._told_us: int | None = None
        self.why = ""
        """Of the last refusal."""

    def judge(self, token: bytes, rights: int, ino: int, column: int, chain: int, now_us: int) -> int:
        """OK when *token* gives one of *rights* on column *column* of inode *ino*, which lies in *chain*.

        EACCES when it never will; CAPABILITY_EXPIRED when a newer one may. *now_us*: wall clock.
        """
        cap = self._known.get(token)
        if cap is None:
            cap = parse_untrusted(token)
            if cap is None:
                return self._refuse("none is shown" if not token else "it is none", errno.EACCES)
            if cap.key not in self._keys.by_id:
                return self._refuse("its key is not known here (any more)", Status.CAPABILITY_EXPIRED)
            if not is_signed(token, cap, self._keys.by_id, self._client):
                return self._refuse("its signature is wrong, or made for another client", errno.EACCES)
            if len(self._known) >= KNOWN_MAX:
                for old in list(self._known)[: KNOWN_MAX // 2]:
                    del self._known[old]
            self._known[token] = cap
        if cap.ino != ino and cap.ino != ALL_FILES:
            return self._refuse(f"it is for inode {cap.ino}", errno.EACCES)
        if not cap.rights & rights:
            return self._refuse(f"it gives rights {cap.rights:#x}, one of {rights:#x} is needed", errno.EACCES)
        if cap.ino != ALL_FILES and (column >= len(cap.chains) or cap.chains[column] != chain):
            return self._refuse("the file is laid out otherwise", errno.EACCES)
        if now_us > cap.expires_us + DRIFT_US:
            return self._refuse(f"it expired {(now_us - cap.expires_us) // 1_000_000} s ago", Status.CAPABILITY_EXPIRED)
        if cap.key not in self._keys.by_id:  # rotated away since it was verified
            del self._known[token]
            return self._refuse("its key is not known here any more", Status.CAPABILITY_EXPIRED)
        return OK

    def _refuse(self, why: str, status: int) -> int:
        self._keys.refused += 1
        self._since += 1
        self.why = why
        return status

    def to_tell(self, now_us: int) -> int:
        """After a refusal: how many are to be logged now; 0: not yet. *now_us*: any clock."""
        if self._told_us is not None and now_us - self._told_us < TOLD_EVERY_US:
            return 0
        self._told_us = now_us
        count, self._since = self._since, 0
        return count


ANY_DATA: Final = READ | WRITE
"""Making durable what was written takes either."""
