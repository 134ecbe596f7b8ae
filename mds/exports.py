"""Pure. Exports: as whom the requests of a client count, by the network it is in (``root_squash`` of exports(5)).

The replica that a request comes in at replaces the credentials in it before it is ordered, so what is ordered and kept
names who it counted for. A client is known by the address it connects from, nothing else: this keeps root on a
client's host from what only root may do (other users' files by way of root, chown, devices, quotas, the administrator's
requests), as far as that host runs our mount; it does not keep him from acting as any user, nor from the
storage targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, Protocol

from wire.delegation import CreateDelegated
from wire.inline import WriteInline
from wire.ops import Commit, Cred

ROOT: Final = "root"
ALL: Final = "all"
NONE: Final = "none"


class Rule(Protocol):
    """One ``[[export]]`` of the configuration."""

    @property
    def clients(self) -> str: ...
    @property
    def squash(self) -> str: ...
    @property
    def anonymous(self) -> int: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Squash:
    """What becomes of a client's credentials."""

    everybody: bool
    anonymous: int
    """uid and gid."""

    def cred(self, cred: Cred) -> Cred:
        """Of *cred* nothing of root is left: neither uid nor any group 0; with everybody squashed nothing at all."""
        anonymous = self.anonymous
        if self.everybody:
            return Cred(anonymous, anonymous, ())
        if cred.uid and cred.gid and 0 not in cred.groups:
            return cred
        groups = tuple(group or anonymous for group in cred.groups)
        return Cred(cred.uid or anonymous, cred.gid or anonymous, groups)

    def applied(self, op: Any) -> Any:
        """The operation *op* of such a client as it counts."""
        if isinstance(op, Commit | WriteInline | CreateDelegated) and op.privileged:
            op = dataclasses.replace(op, privileged=False)
        cred = getattr(op, "cred", None)
        if cred is None:
            return op
        counts = self.cred(cred)
        return op if counts is cred else dataclasses.replace(op, cred=counts)


def squash_of(rules: Iterable[Rule], host: str) -> Squash | None:
    """For a client that connects from the address *host* ("": it is gone already)."""
    return Exports(rules).squash(host) if host else None


class Exports:
    """The rules of a cluster. Of those whose network holds a client's address the narrowest counts; with none of them
    nobody is squashed."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        found = [
            (ip_network(rule.clients), None if rule.squash == NONE else Squash(rule.squash == ALL, rule.anonymous))
            for rule in rules
        ]
        self._rules = sorted(found, key=lambda item: -item[0].prefixlen)

    def squash(self, host: str) -> Squash | None:
        """For a client that connects from the address *host*."""
        address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        for network, squash in self._rules:
            if isinstance(network, IPv6Network) == isinstance(address, IPv6Address) and address in network:
                return squash
        return None
