"""Pure. A witness: a voter without metadata. It holds registers and answers proposers, nothing else."""

from __future__ import annotations

from typing import Any

from vsync.effects import Effects
from vsync.records import Durable
from vsync.register import Acceptor
from wire.group import Accept, Heartbeat, Prepare, Views


class Witness:
    """The witness's machine: ``step`` with what a replica sent; its answers go out when they are durable."""

    def __init__(self, durable: Durable) -> None:
        self.acceptor = Acceptor(durable.registers)
        self._ticket = 0

    def step(self, peer: int, message: Any) -> Effects:
        """Effects of one message. Messages a witness has no part in are ignored (Views, Heartbeats)."""
        out = Effects()
        match message:
            case Prepare():
                self.acceptor.on_prepare(peer, message, out)
            case Accept():
                self.acceptor.on_accept(peer, message, out)
            case Views() | Heartbeat():
                pass
            case _:
                out.notes.append(f"ignored a {type(message).__name__} from replica {peer}")
        if out.records:
            self._ticket += 1
        out.ticket = self._ticket
        return out

    def validate(self) -> None:
        """Assert what always holds: nothing accepted above what is promised."""
        for epoch, state in self.acceptor.registers.items():
            if state.accepted_at is not None:
                assert state.promised is not None and state.accepted_at <= state.promised, f"epoch {epoch}"
