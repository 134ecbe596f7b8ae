"""Pure. How available is a service of n head nodes? The thesis's equations 3.23 to 3.25 and its Table A.3.

    a = 1 / (1 + MTTR / MTTF)                                   one node: up for MTTF, then down for MTTR
    A = [1 - (1 - a)^n] / (1 + m * MTTR_recovery / MTTF)        n nodes, m of them in service at a time

Symmetric active/active: all serve, m = n, and what is lost at a failure is MTTR_recovery, the pause of its clients.
"""

from __future__ import annotations

from typing import Final

HOUR_S: Final = 3600.0
MTTF_S: Final = 5000 * HOUR_S
MTTR_S: Final = 36 * HOUR_S
THESIS_RECOVERY_S: Final = 0.5
"""The thesis's recovery: the interval of its heartbeats."""
YEAR_S: Final = 365 * 24 * HOUR_S


def node(mttf_s: float = MTTF_S, mttr_s: float = MTTR_S) -> float:
    """Equation 3.23: the share of time that one node is up."""
    return 1 / (1 + mttr_s / mttf_s)


def symmetric(nodes: int, recovery_s: float, mttf_s: float = MTTF_S, mttr_s: float = MTTR_S) -> float:
    """Equations 3.24, 3.25: the share of time that a service of *nodes* symmetric active/active nodes is up."""
    return (1 - (1 - node(mttf_s, mttr_s)) ** nodes) / (1 + nodes * recovery_s / mttf_s)


def down_s_per_year(availability: float) -> float:
    """Seconds of a year of 365 days that the service is down."""
    return (1 - availability) * YEAR_S
