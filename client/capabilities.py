"""The capabilities of open files (:mod:`wire.capability`): kept, shown with every call to a target and with what the
service is asked about the data of a file (:mod:`mds.rights`), renewed in time."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import trio

from client import limits
from client.acks import Ack
from client.credentials import ROOT
from client.service import MetadataClient
from client.targets import Buffer, Bulk, Targets
from wire.capability import LIFETIME_US, READ, TRUNCATE, WRITE, parse_untrusted
from wire.errors import FileSystemError, Status, describe
from wire.fileops import Renew
from wire.ops import Cred

log = logging.getLogger(__name__)

LIFETIME_S: Final = LIFETIME_US / 1e6
Result = TypeVar("Result")


class Held:
    """What this mount holds for one file: for each right the capability that was given last. Times are trio's."""

    __slots__ = ("_by_right", "_creds", "asking", "born", "ino", "renewable")

    def __init__(self, ino: int, *, renewable: bool = True) -> None:
        self.ino = ino
        self.renewable = renewable
        """Else what it has is all there will be; when that has expired, whoever wants more has to begin anew."""
        self.asking: trio.Event | None = None
        """Somebody is renewing; set when that is done."""
        self.born: Callable[[], Awaitable[None]] | None = None
        """Of a file that the service does not know yet (client.births): waits until it does. That brings the first."""
        self._by_right: dict[int, tuple[bytes, float]] = {}
        self._creds: dict[int, Cred] = {}

    def take(self, token: bytes, cred: Cred | None, now: float) -> None:
        """*token*, or b"" when the service had none to give, came just now, for *cred* (None: as before)."""
        cap = parse_untrusted(token)
        for right in (READ, WRITE, TRUNCATE):
            if cap is not None and cap.rights & right:
                # Of a file that had no layout it is good for the service alone.
                self._by_right[right] = token, now if cap.chains else -LIFETIME_S
            if cred is not None and cap is not None and cap.rights & right:
                self._creds[right] = cred
        if cred is not None:
            self.asked_by(cred)

    def asked_by(self, cred: Cred) -> None:
        """Whoever was given nothing (yet) will ask as *cred*."""
        for right in (READ, WRITE, TRUNCATE):
            self._creds.setdefault(right, cred)

    def truncated_by(self, cred: Cred) -> None:
        """*cred* may cut it off by name; whoever has it open here may have no such right."""
        self.asked_by(cred)
        if not self.latest(TRUNCATE):
            self._creds[TRUNCATE] = cred

    def at_hand(self, right: int, now: float) -> bytes:
        """A capability that gives *right* and is good still; else b""."""
        token, since = self._by_right.get(right, (b"", 0.0))
        return token if now - since < LIFETIME_S else b""

    def void(self) -> None:
        """They are for other objects than the file has by now: each is renewed before it is shown again."""
        self._by_right = {right: (token, -LIFETIME_S) for right, (token, _) in self._by_right.items()}

    @property
    def either(self) -> tuple[int, ...]:
        """Those of READ and WRITE that were given: for what needs one of them."""
        return tuple(right for right in (READ, WRITE) if self.latest(right)) or (READ,)

    def latest(self, right: int) -> bytes:
        """The one given last, good or not."""
        return self._by_right.get(right, (b"", 0.0))[0]

    def cred(self, right: int) -> Cred:
        """Who opened the file for that."""
        return self._creds.get(right, ROOT)

    def due(self, now: float) -> list[int]:
        """Rights whose capability is half-way through its life."""
        found: dict[bytes, int] = {}
        for right, (token, since) in self._by_right.items():
            if now - since >= LIFETIME_S / 2:
                found.setdefault(token, right)
        return list(found.values())


class Access:
    """Calls to targets, each with the capability that it needs."""

    def __init__(self, service: MetadataClient, targets: Targets) -> None:
        self._service = service
        self._targets = targets

    async def call(
        self,
        held: Held,
        right: int,
        chain: int,
        make: Callable[[int, int, bytes], Any],
        bulk: Bulk = b"",
        size: int = 0,
        *,
        read: bool = False,
        answered: Callable[[Ack], None] | None = None,
    ) -> Buffer:
        """As :meth:`client.targets.Targets.call`, for *make(call, chain version, capability)*.

        One that is refused as expired is renewed and shown again, for as long as a fresh one may be refused because the
        target is yet to hear of a new key: FRESH_REFUSED_S. Raises :class:`FileSystemError`; CAPABILITY_EXPIRED where
        *held* is not renewable.
        """

        def shown(token: bytes) -> Awaitable[Buffer]:
            def made(call: int, version: int) -> Any:
                return make(call, version, token)

            return self._targets.call(chain, made, bulk, size, read=read, answered=answered)

        return await self._showing(held, right, lambda: held.at_hand(right, trio.current_time()), shown)

    async def request(self, held: Held, right: int, op: Any) -> tuple[Any, bytes]:
        """As :meth:`client.service.MetadataClient.request_granting` of *op*, which needs *right* on the file of *held*.
        Expired or not, what is held is shown; when the service does not know its key or session, it is renewed.

        Raises :class:`FileSystemError`.
        """
        return await self._showing(
            held, right, lambda: held.latest(right), lambda token: self._service.request_granting(op, token)
        )

    async def query(self, held: Held, right: int, op: Any) -> Any:
        """The same for a query; its result."""
        result, _ = await self._showing(
            held, right, lambda: held.latest(right), lambda token: self._service.query_granting(op, token)
        )
        return result

    async def with_either(self, held: Held, ask: Callable[[int], Awaitable[Result]]) -> Result:
        """*ask(right)*, which needs READ or WRITE: one that is no longer given (the session in which a file was opened
        for writing has expired, and its mode is another one by now) does not keep the other from being shown.

        Raises :class:`FileSystemError`.
        """
        if held.born is not None:
            await held.born()
        *others, last = held.either
        for right in others:
            try:
                return await ask(right)
            except FileSystemError as exc:
                if exc.status != errno.EACCES:
                    raise
        return await ask(last)

    async def _showing(
        self, held: Held, right: int, at_hand: Callable[[], bytes], ask: Callable[[bytes], Awaitable[Result]]
    ) -> Result:
        """*ask(capability)* with what is *at_hand*, renewed where that is nothing or is refused as expired."""
        if held.born is not None:
            await held.born()
        pause = limits.OVERLOADED_FIRST_S
        first_refused: float | None = None
        while True:
            token = at_hand()
            if not token:
                if not held.renewable:
                    raise FileSystemError(Status.CAPABILITY_EXPIRED)
                token = await self.renew(held, right)
            try:
                return await ask(token)
            except FileSystemError as exc:
                if exc.status != Status.CAPABILITY_EXPIRED:
                    raise
                now = trio.current_time()
                if first_refused is None:
                    first_refused = now
                elif now - first_refused > limits.FRESH_REFUSED_S:
                    log.error("inode %d: %s: fresh capabilities are refused: do the clocks differ?", held.ino, exc)
                    raise FileSystemError(errno.EACCES, exc.what) from exc
                else:
                    # A target hears of keys within a heartbeat of the keeper; a replica may be behind another one.
                    await trio.sleep(pause)
                    pause = min(2 * pause, limits.OVERLOADED_MAX_S)
            if held.renewable and token == held.latest(right):
                await self.renew(held, right)

    async def renew(self, held: Held, right: int) -> bytes:
        """A new capability with *right* and whatever the last one with that gave. Raises :class:`FileSystemError`."""
        before = held.latest(right)
        while held.asking is not None:
            await held.asking.wait()
            if held.latest(right) != before:
                return held.latest(right)  # else whoever asked was cancelled, or asked for another right
        held.asking = done = trio.Event()
        try:
            return await self._renewed(held, right, before)
        finally:
            held.asking = None
            done.set()

    async def _renewed(self, held: Held, right: int, old: bytes) -> bytes:
        pause = limits.OVERLOADED_FIRST_S
        began = trio.current_time()
        while True:
            try:
                _, token = await self._service.query_granting(Renew(held.cred(right), held.ino, right, old))
            except FileSystemError as exc:
                if exc.status != errno.EACCES or not old:
                    raise
                # 1. It was not renewed for so long that its key is forgotten (this host was suspended), or the session
                # that it was given in has expired.  2. So permission is asked for anew, by whoever opened the file.
                log.info("inode %d: %s", held.ino, exc)
                old = b""
                continue
            if token:
                held.take(token, None, trio.current_time())
                return token
            if trio.current_time() - began > limits.FRESH_REFUSED_S:
                raise FileSystemError(errno.EACCES, "the service gives no capability")
            await trio.sleep(pause)  # a new cluster: the keeper is about to have the first key ordered
            pause = min(2 * pause, limits.OVERLOADED_MAX_S)

    async def renew_due(self, held: Held) -> None:
        """In the background: what is half-way through its life. Errors are logged; whoever needs it asks again."""
        for right in held.due(trio.current_time()):
            try:
                await self.renew(held, right)
            except FileSystemError as exc:
                log.info("inode %d: capability not renewed: %s", held.ino, describe(exc.status))
