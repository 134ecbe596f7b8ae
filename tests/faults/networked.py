"""A local cluster whose daemons live in network namespaces, one each (:mod:`admin.network`)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from admin.local import LocalCluster, daemon_command
from admin.network import Network
from daemon.config import CONFIG_NAME, ClusterConfig, Config, ReplicaConfig, TargetConfig, write

PORT: Final = 7400
"""Everybody's: each has an address of its own."""


def names(replicas: int, targets: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the daemons, and their hosts, are called: (replicas, targets)."""
    return tuple(f"mds-{k}" for k in range(1, replicas + 1)), tuple(f"ossd-{k}" for k in range(1, targets + 1))


def networked(directory: Path, net: Network, replicas: int, targets: int, witnesses: int) -> LocalCluster:
    """A new cluster's directory and configuration; nothing is started. *net* has a host for each of :func:`names`."""
    of_replicas, of_targets = names(replicas, targets)
    config = Config(
        path=directory / CONFIG_NAME,
        cluster=ClusterConfig("faults", secrets.token_bytes(16)),
        replicas=tuple(
            ReplicaConfig(k, f"{net.address(name)}:{PORT}", directory / f"data/{name}")
            for k, name in enumerate(of_replicas, 1)
        ),
        targets=tuple(
            TargetConfig(
                k,
                f"{net.address(name)}:{PORT}",
                directory / f"data/{name}",
                replicas + k if k <= witnesses else None,
            )
            for k, name in enumerate(of_targets, 1)
        ),
    )
    directory.mkdir(parents=True)
    write(config)

    def command(kind: str, number: int, path: Path, log_level: str) -> Sequence[str]:
        return net.command(f"{kind}-{number}", daemon_command(kind, number, path, log_level))  # type: ignore[arg-type]

    return LocalCluster(config, command)
