"""Carrying out what :mod:`mds.alarm` finds: marks are sent, a replica that is not to be trusted stops to serve.

In doubt, everything asked of this replica waits. On a tie all of it is refused, as it is where no view is active:
clients go on asking, and applications wait, until somebody has decided. Queries are refused as well, because half of
the answers would be wrong. In the minority this replica gives its state up, and takes that of the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mds.alarm import SAY_EVERY_US, Alarm, Standing
from mds.shell import Shell
from vsync.machine import Machine
from wire.group import Digests

log = logging.getLogger(__name__)


class Comparing:
    """One replica's comparison with the others."""

    def __init__(self, me: int, group: Machine, shell: Shell, tie: str, refuse: Callable[[], None]) -> None:
        """*tie*: the alarm that is kept with the state, or "". *refuse* turns away what clients wait for."""
        self.alarm = Alarm(me, tie)
        self.standing = Standing.ALIKE
        self._group = group
        self._shell = shell
        self._refuse = refuse
        self._said_at = 0
        self._described = ""
        self._given_up = False
        if tie:
            log.error("this replica does not serve: %s", tie)
            self._stand(Standing.TIE)

    @property
    def refuses(self) -> bool:
        """Nothing is answered here, and nothing ordered, until somebody has decided."""
        return self.standing in (Standing.TIE, Standing.MINORITY)

    # -- our own marks

    def applied(self, index: int, digest: int) -> None:
        """Everything up to *index* is applied, and its effects come to *digest*."""
        if self.alarm.digests.note(index, digest):
            self.look()

    def written(self, index: int, records: int) -> None:
        """The state is on disk as of *index*, and its records come to the sum *records*."""
        self.alarm.records.note(index, records)

    # -- with the others

    def told(self, peer: int, said: Digests) -> None:
        """Another member says what its state comes to."""
        self._follow_view()
        if not self.alarm.take(peer, said):
            return
        self._judge()
        if said.ask:
            self._shell.link_send(peer, self.alarm.message(ask=False))

    def look(self) -> None:
        """Now and then."""
        self._follow_view()
        self._judge()
        now = self._shell.now()
        if now - self._said_at >= SAY_EVERY_US:
            self._say(now)

    def _follow_view(self) -> None:
        epoch = self._group.active_view
        if epoch is not None and epoch != self.alarm.epoch:
            self.alarm.new_view(epoch, self._group.core.newest.members)
            self._described = ""

    def _say(self, now: int) -> None:
        alarm = self.alarm
        if self._group.active_view is None or alarm.epoch != self._group.active_view:
            return
        self._said_at = now
        message = alarm.message(ask=self.standing is Standing.DOUBT)
        for peer in alarm.members:
            if peer != alarm.me:
                self._shell.link_send(peer, message)

    def _judge(self) -> None:
        if self._group.active_view != self.alarm.epoch:
            return  # left out, or in a change of the view: what was found there is found again in the next one
        before, tie = self.standing, self.alarm.tie
        now = self._shell.now()
        standing = self.alarm.judge(now)
        described = self.alarm.describe()
        if described != self._described:
            self._described = described
            if described:
                log.error("the replicas' states are not the same: %s", described)
        if self._given_up:
            return
        if self.alarm.tie != tie:
            self._shell.keep_alarm(self.alarm.tie)
            if self.alarm.tie:
                log.error("nobody can tell which state is right, nothing is served: lockstep replica resync")
            else:
                log.warning("a majority is alike by now: this replica serves again")
        if standing is before:
            return
        self._stand(standing)
        if standing is Standing.DOUBT:
            self._say(now)  # each answers at once
        elif standing is Standing.MINORITY:
            log.error("most of the others agree on another state: this one is given up")
            self.give_up(described)

    def _stand(self, standing: Standing) -> None:
        refused = self.refuses
        self.standing = standing
        self._group.withhold(standing is not Standing.ALIKE)
        if self.refuses and not refused:
            self._refuse()

    # -- somebody decides

    def give_up(self, why: str, asked: bool = False) -> None:
        """This replica takes its state from the others; until then it answers nothing. *asked*: somebody decided so."""
        if not self._given_up:
            self._given_up = True
            self._stand(Standing.MINORITY)
            self._shell.give_up_state(why, asked)

    def trust(self) -> None:
        """An administrator says that the state here counts, or that it is to be compared anew."""
        if self.alarm.tie:
            self._shell.keep_alarm("")
        self.alarm.trust()
        self._described = ""
        self._stand(Standing.ALIKE)

    def replaced(self) -> None:
        """A snapshot has taken the place of the state."""
        self.alarm.replaced()
        self._described = ""
        self._given_up = False
        self._stand(Standing.ALIKE)

    def status(self) -> dict[str, Any]:
        """For `lockstep status`."""
        alarm = self.alarm
        return {
            "standing": self.standing.value,
            "tie": alarm.tie,
            "unlike": sorted({*alarm.digests.unlike, *alarm.records.unlike}),
            "digests": min((alarm.digests.alike.get(p, -1) for p in alarm.members if p != alarm.me), default=-1),
            "records": min((alarm.records.alike.get(p, -1) for p in alarm.members if p != alarm.me), default=-1),
        }
