"""What a replica has a storage target do, once: dial, ask, hang up. Work owed to targets is rare and not urgent."""

from __future__ import annotations

from typing import Any, Final

import trio

from wire.errors import WireError
from wire.messages import Answer, Hello
from wire.peer import ConnectionLost, dial

ANSWER_S: Final = 30.0
"""A target that does not answer for so long is asked again later."""


async def ask(address: str, hello: Hello, message: Any) -> Answer:
    """What the target at *address* answers to *message*. Raises :class:`wire.peer.ConnectionLost` for no answer."""
    conn = await dial(address, hello)
    answer: Answer | None = None
    why = f"no answer within {ANSWER_S:g} s"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.run_writer)
        try:
            with trio.move_on_after(ANSWER_S):
                conn.send(message)
                while answer is None:
                    said, _ = await conn.receive()
                    answer = said if isinstance(said, Answer) else None
        except (ConnectionLost, WireError) as exc:
            why = str(exc)  # raised below: a nursery would wrap it
        finally:
            conn.close()
            nursery.cancel_scope.cancel()
    if answer is None:
        raise ConnectionLost(f"{address}: {why}")
    return answer
