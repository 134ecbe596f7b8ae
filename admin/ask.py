"""The admin tool's side of the wire: ask replicas and targets for their status, have a request ordered."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from daemon.config import Config
from wire.codec import encode, unpack_untrusted
from wire.errors import FileSystemError, Status, WireError
from wire.ids import PROTOCOL_VERSION
from wire.messages import AdminCall, Answer, Hello, Ping, Pong, Role, StatusCall, ViewChanged
from wire.ops import TargetSet
from wire.peer import Connection, ConnectionLost, dial

ASK_TIMEOUT_S: Final = 2.0
"""One daemon's time to answer a status call; a paused or hung one counts as not answering."""
RETRY_S: Final = 0.1


class AskError(Exception):
    """A daemon did not answer, or not with what was asked; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one daemon said: *body* to our call, and the uuid of its disk."""

    body: Any
    uuid: bytes


def hello_of(config: Config) -> Hello:
    return Hello(
        version=PROTOCOL_VERSION,
        cluster=config.cluster.id,
        role=Role.ADMIN,
        name=f"{socket.gethostname()}:{os.getpid()}:admin"[:255],
        uuid=bytes(16),
        incarnation=0,
        channel="main",
    )


async def _answer(conn: Connection) -> Answer:
    """The answer on a connection that has one call outstanding; what a daemon sends unasked is passed over."""
    while True:
        msg, _ = await conn.receive()
        match msg:
            case Answer():
                return msg
            case Ping():
                conn.send(Pong(msg.number, False))
            case ViewChanged() | Pong():
                continue
            case _:
                raise WireError(f"a {type(msg).__name__} instead of an answer")


async def call(config: Config, address: str, msg: Any, timeout_s: float = ASK_TIMEOUT_S) -> Reply:
    """Send *msg* (a call) to the daemon at *address* and wait for its answer.

    Raises :class:`AskError` when there is none in time, :class:`wire.errors.FileSystemError` when it is a status
    other than 0.
    """
    try:
        with trio.fail_after(timeout_s):
            conn = await dial(address, hello_of(config))
            try:
                reply = await _call_on(conn, msg)
            finally:
                conn.close()
    except trio.TooSlowError as exc:
        raise AskError(f"{address}: no answer within {timeout_s:g} s") from exc
    except (ConnectionLost, WireError) as exc:
        text = str(exc)
        raise AskError(text if text.startswith(address) else f"{address}: {text}") from exc
    if isinstance(reply, FileSystemError):
        raise reply
    return reply


async def _call_on(conn: Connection, msg: Any) -> Reply | FileSystemError:
    assert conn.hello is not None, "dial() gives a connection after its handshake"
    outcome: Reply | FileSystemError | ConnectionLost | WireError
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.run_writer)
        # Kept and raised outside, because a nursery would wrap them in an exception group.
        try:
            conn.send(msg)
            answer = await _answer(conn)
            if answer.status:
                outcome = FileSystemError(answer.status, conn.where)
            else:
                outcome = Reply(unpack_untrusted(answer.body), conn.hello.uuid)
        except (ConnectionLost, WireError) as exc:
            outcome = exc
        nursery.cancel_scope.cancel()
    if isinstance(outcome, ConnectionLost | WireError):
        raise outcome
    return outcome


async def status_of(config: Config, address: str, timeout_s: float = ASK_TIMEOUT_S) -> Reply:
    """The status dict of one daemon. Raises :class:`AskError`."""
    try:
        reply = await call(config, address, StatusCall(1), timeout_s)
    except FileSystemError as exc:
        raise AskError(f"{address}: status refused: {exc}") from exc
    if not isinstance(reply.body, dict):
        raise AskError(f"{address}: status is a {type(reply.body).__name__}, not a table")
    return reply


async def statuses(
    config: Config, addresses: Sequence[str], timeout_s: float = ASK_TIMEOUT_S
) -> dict[str, Reply | AskError]:
    """The status of every address, asked in parallel; one that gave none has the reason instead."""
    found: dict[str, Reply | AskError] = {}

    async def one(address: str) -> None:
        try:
            found[address] = await status_of(config, address, timeout_s)
        except AskError as exc:
            found[address] = exc

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(one, address)
    return found


async def order(config: Config, op: Any, timeout_s: float, addresses: Sequence[str] = ()) -> Any:
    """Have the request *op* (idempotent) ordered by any replica, those at *addresses* first; the result is its own.

    Replicas are tried in turn until one answers or *timeout_s* is over: then :class:`AskError`, with what the last
    one said. A status that is the operation's own (an errno) is raised as FileSystemError at once.
    """
    last = "no replica was asked"
    with trio.move_on_after(timeout_s):
        while True:
            for address in dict.fromkeys((*addresses, *(r.address for r in config.replicas))):
                try:
                    return (await call(config, address, AdminCall(1, encode(op)))).body
                except AskError as exc:
                    last = str(exc)
                except FileSystemError as exc:
                    if exc.status not in (Status.NOT_SERVING, Status.OVERLOADED):
                        raise
                    last = str(exc)
            await trio.sleep(RETRY_S)
    raise AskError(f"no replica has carried out {type(op).__name__} within {timeout_s:g} s: {last}")


async def register_targets(config: Config, timeout_s: float) -> None:
    """Enter every configured target, with its address and its disk's uuid, in the ordered storage map. Idempotent.

    Each target must answer, because only it knows its disk. Raises :class:`AskError`, FileSystemError.
    """
    for target in config.targets:
        reply = await status_of(config, target.address)
        await order(config, TargetSet(target.id, target.address, reply.uuid), timeout_s)
