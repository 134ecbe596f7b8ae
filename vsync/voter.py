"""Pure. A witness: a voter without metadata. It holds registers and the decided views it was told, answers proposers,
and votes for no epoch whose view it knows (see vsync.membership)."""

from __future__ import annotations

from typing import Any

from vsync import limits
from vsync.effects import Effects
from vsync.records import Decided, Durable
from vsync.register import Acceptor
from vsync.view import NOWHERE, describe_epoch, pack_views, unpack_view_untrusted
from wire.errors import WireError
from wire.group import Accept, Heartbeat, Prepare, Stored, View, Views


class Witness:
    """The witness's machine: ``step`` with what a replica sent; its answers go out when they are durable."""

    def __init__(self, durable: Durable) -> None:
        self.acceptor = Acceptor(durable.registers)
        self.views = {e: durable.views[e] for e in sorted(durable.views)[-limits.VIEWS_KEPT :]}
        self.strangers: set[int] = set()
        """Replicas of another group (see vsync.core): they get no vote."""
        self._ticket = 0

    @property
    def newest(self) -> View:
        """The last view it was told."""
        return self.views[max(self.views)] if self.views else NOWHERE

    def step(self, peer: int, message: Any) -> Effects:
        """Effects of one message: records, answers in ``after``, notes. Heartbeats are none of its business."""
        out = Effects()
        if peer in self.strangers:
            return out
        match message:
            case Prepare() | Accept() if message.epoch <= self.newest.epoch:
                known = [v for e, v in sorted(self.views.items()) if e >= message.epoch]
                out.after.append((peer, Views(pack_views(known))))
            case Prepare():
                self.acceptor.on_prepare(peer, message, out)
            case Accept():
                self.acceptor.on_accept(peer, message, out)
            case Views():
                self._learn(peer, message, out)
            case Heartbeat():
                pass
            case _:
                out.notes.append(f"ignored a {type(message).__name__} from replica {peer}")
        if out.records:
            self._ticket += 1
        out.ticket = self._ticket
        return out

    def _learn(self, peer: int, m: Views, out: Effects) -> None:
        try:
            views = [unpack_view_untrusted(v) for v in m.views]
        except WireError as exc:
            out.notes.append(f"ignored the Views of replica {peer}: {exc}")
            return
        for view in views:
            known = self.views.get(view.epoch, view)
            if known != view:
                self.strangers.add(peer)
                out.notes.append(
                    f"refuses replica {peer} from now on, it is of another group: two views are decided for epoch "
                    f"{describe_epoch(view.epoch)}, {view} and here {known}"
                )
                return
        for view in sorted(views, key=lambda v: v.epoch):
            if view.epoch > self.newest.epoch:
                self.views[view.epoch] = view
                out.records.append(Decided(view))
        for old in sorted(self.views)[: -limits.VIEWS_KEPT]:
            del self.views[old]
        if self.views:
            out.after.append((peer, Stored(self.newest.epoch)))

    def validate(self) -> None:
        """Assert what always holds: nothing accepted above what is promised."""
        assert len(self.views) <= limits.VIEWS_KEPT
        for epoch, state in self.acceptor.registers.items():
            if state.accepted_at is not None:
                assert state.promised is not None and state.accepted_at <= state.promised, f"epoch {epoch}"
