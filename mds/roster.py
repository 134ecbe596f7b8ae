"""Who this replica talks to: its links, its watchdog and its first contact follow the roster in the ordered state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import trio

from daemon.guarded import Guard
from mds.links import WITNESS_CHANNELS, Links
from mds.namespace.roster import Roster, from_tuple_untrusted
from vsync.view import unpack_view_untrusted
from wire.codec import unpack_untrusted
from wire.errors import OK, WireError
from wire.group import CHANNELS, View
from wire.ids import PROTOCOL_VERSION
from wire.messages import Answer, Hello, Role, RosterCall
from wire.peer import ConnectionLost, dial

log = logging.getLogger(__name__)

ASK_S: Final = 2.0
"""A replica that is asked for the roster answers within this, or another one is asked."""
ASK_AGAIN_S: Final = 0.5
LONELY_S: Final = 3.0
"""A replica that nobody of the view talks to asks so often whether it belongs to the cluster still."""


class Removed(Exception):
    """This replica belongs to its cluster no more; the text says who removed it."""


@dataclass(frozen=True, slots=True)
class Known:
    """What another replica says of the cluster."""

    roster: Roster
    view: View
    """The newest decided one it knows."""


async def ask(addresses: Iterable[str], cluster: bytes) -> Known | str:
    """The first answer to RosterCall of *addresses*, each asked in turn; why the last gave none, if none did."""
    why = "there is nobody to ask"
    for address in addresses:
        try:
            with trio.fail_after(ASK_S):
                return await _ask(address, cluster)
        except trio.TooSlowError:
            why = f"{address}: no answer within {ASK_S:g} s"
        except (ConnectionLost, WireError) as exc:
            why = str(exc)
    return why


async def _ask(address: str, cluster: bytes) -> Known:
    conn = await dial(address, Hello(PROTOCOL_VERSION, cluster, Role.ADMIN, "roster", bytes(16), 0, "main"))
    try:
        conn.send(RosterCall(1))
        while True:
            message, _ = await conn.receive()  # views may come before it
            if isinstance(message, Answer):
                break
    finally:
        conn.close()
    if message.status != OK:
        raise WireError(f"{address}: status {message.status}")
    body = unpack_untrusted(message.body)
    if type(body) is not tuple or len(body) != 2:
        raise WireError(f"{address}: not a roster and a view")
    return Known(from_tuple_untrusted(body[0]), unpack_view_untrusted(body[1]))


async def first_contact(me: int, addresses: tuple[str, ...], cluster: bytes) -> Known:
    """What the cluster is like that this new replica joins; waits until it belongs to it. Raises :class:`Removed`."""
    said = ""
    while True:
        known = await ask(addresses, cluster)
        if isinstance(known, Known):
            if (who := known.roster.removal_of(me)) is not None:
                raise Removed(f"replica {me} was removed from this cluster by {who}; a new one needs a new number")
            if me in known.roster.replica_ids:
                log.info("joining a cluster of replicas %s", ", ".join(map(str, known.roster.replica_ids)))
                return known
            why = f"replica {me} does not belong to the cluster yet: lockstep replica add"
        else:
            why = known
        if why != said:
            said = why
            log.info("waiting to join: %s", why)
        await trio.sleep(ASK_AGAIN_S)


class Follower:
    """Dials who is to be dialled, hangs up on who is gone, tells the watchdog whom to tell of our death."""

    def __init__(
        self, me: int, cluster: bytes, links: Links, guard: Guard | None, removed: Callable[[Removed], None]
    ) -> None:
        """*removed* is called when the others say that this replica does not belong to the cluster any more."""
        self._me = me
        self._cluster = cluster
        self._links = links
        self._guard = guard
        self._removed = removed
        self._dialled: dict[int, tuple[str, trio.CancelScope]] = {}
        self._nursery: trio.Nursery | None = None
        self.roster = Roster()
        self._in_view: frozenset[int] = frozenset()

    def start(self, nursery: trio.Nursery) -> None:
        """The links are kept in *nursery* from now on."""
        self._nursery = nursery
        self._follow()

    def update(self, roster: Roster, in_view: Iterable[int]) -> None:
        """*in_view*: members and voters of the newest view; one that is removed is talked to until it is none of
        them."""
        self.roster, self._in_view = roster, frozenset(in_view)
        self._follow()

    @property
    def replicas(self) -> dict[int, str]:
        """The other replicas that are talked to, with their addresses."""
        found = {number: address for number, address in self.roster.replicas if number != self._me}
        witnesses = {number for number, _ in self.roster.witnesses}
        for number, address, _, _ in self.roster.removed:
            if number in self._in_view and number != self._me and number not in witnesses:
                found[number] = address
        return found

    def refusal(self, replica: int, active: bool) -> str | None:
        """Why *replica* is not talked to, or None."""
        if replica in self.replicas:
            return None
        who = self.roster.removal_of(replica)
        if who is not None:
            return f"replica {replica} was removed from this cluster by {who}"
        if not active:
            # 1. This replica was away while another was added. 2. All the others fail but that one. 3. Only from it can
            # we hear of views in which it is a member. The group takes no notice of it otherwise.
            return None
        return f"replica {replica} does not belong to this cluster"

    def _follow(self) -> None:
        if self._nursery is None:
            return
        replicas = self.replicas
        if self._guard is not None:
            self._guard.tell_peers(replicas)
        wanted: dict[int, tuple[str, tuple[str, ...]]]
        wanted = {n: (a, CHANNELS) for n, a in replicas.items() if n < self._me}
        wanted |= {n: (a, WITNESS_CHANNELS) for n, a in self.roster.witnesses}
        for peer, (address, scope) in list(self._dialled.items()):
            if peer not in wanted or wanted[peer][0] != address:
                scope.cancel()
                del self._dialled[peer]
        for peer, (address, channels) in sorted(wanted.items()):
            if peer not in self._dialled:
                scope = trio.CancelScope()
                self._dialled[peer] = (address, scope)
                self._nursery.start_soon(self._keep, peer, address, channels, scope)
        for number, *_ in self.roster.removed:
            if number not in replicas:
                self._links.drop(number, "it was removed from this cluster")

    async def _keep(self, peer: int, address: str, channels: tuple[str, ...], scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                for channel in channels:
                    nursery.start_soon(self._links.keep, peer, address, channel, channels)

    async def ask_when_lonely(self, lonely: Callable[[], bool]) -> None:
        """While nobody of a view talks to us: ask whether we belong to the cluster at all. For ever."""
        while True:
            await trio.sleep(LONELY_S)
            if not lonely():
                continue
            known = await ask(tuple(self.replicas.values()), self._cluster)
            if isinstance(known, Known) and lonely():
                self.judge_ourselves(known.roster, (*known.view.members, *known.view.voters))

    def judge_ourselves(self, roster: Roster, in_view: Iterable[int]) -> None:
        """Removed, and no vote of ours is asked for any more: then there is nothing left to do."""
        who = roster.removal_of(self._me)
        if who is not None and self._me not in in_view:
            self._removed(Removed(f"replica {self._me} was removed from this cluster by {who}"))


def body_of(roster: Roster, packed_view: Any) -> tuple[Any, Any]:
    """The answer to RosterCall."""
    return (roster.to_tuple(), packed_view)
