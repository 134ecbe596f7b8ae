"""A stand-in for a replica or target: it shakes hands, answers status and admin calls, and ends on SIGTERM.

Run like the real ones, so that the local cluster's handling of processes is tested without them::

    python -m tests.admin.stub_daemon mds --config F --id N [--stubborn] [--fail]
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys

import trio

from daemon import logs, process
from daemon.config import load
from wire.codec import pack
from wire.ids import PROTOCOL_VERSION
from wire.messages import AdminCall, Answer, Hello, Role, StatusCall, Welcome
from wire.peer import Connection, Listener

log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("mds", "ossd"))
    parser.add_argument("--config", required=True)
    parser.add_argument("--id", type=int, required=True)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--fail", action="store_true", help="end with an error at once")
    asked = parser.parse_args()
    config = load(asked.config)
    logs.setup(f"{asked.kind}-{asked.id}", asked.log_level)
    mds = asked.kind == "mds"
    mine = config.replica(asked.id) if mds else config.target(asked.id)
    status: dict[str, object] = {"role": asked.kind, "id": asked.id}
    if mds:
        members, voters = tuple(r.id for r in config.replicas), tuple(v.id for v in config.voters)
        status |= {"state": "active", "generation": 0, "epoch": 1, "members": members, "voters": voters}
        status |= {"index": 0, "digest": "00" * 8, "clients": ()}
    else:
        witness = config.target(asked.id).witness
        status |= {"objects": 0, "bytes_total": 1 << 30, "bytes_free": 1 << 20, "witness": witness}

    async def converse(conn: Connection, hello: Hello) -> None:
        while True:
            msg, _ = await conn.receive()
            match msg:
                case StatusCall():
                    conn.send(Answer(msg.call, 0, pack(status)))
                case AdminCall():
                    log.info("ordered: %d bytes", len(msg.op))
                    conn.send(Answer(msg.call, 0, pack(1)))

    async def serve() -> None:
        if asked.fail:
            raise RuntimeError("told to fail")
        listener = Listener(mine.address)
        welcome = Welcome(PROTOCOL_VERSION, Role.REPLICA if mds else Role.TARGET, str(asked.id), bytes(16), 1)
        async with trio.open_nursery() as nursery:
            await listener.serve(nursery, config.cluster.id, lambda hello: None, lambda hello: welcome, converse)

    if asked.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        trio.run(serve)
        return 0
    return process.run(serve)


if __name__ == "__main__":
    sys.exit(main())
