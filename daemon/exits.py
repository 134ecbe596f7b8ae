"""Pure. The exit codes of daemons, and what a metadata replica's watchdog does about each."""

from __future__ import annotations

from typing import Final

EXIT_OK: Final = 0
"""Stopped because it was asked to."""
EXIT_FAILED: Final = 1
"""Failed in a way that another start may mend."""
EXIT_CONFIG: Final = 2
"""The configuration or the arguments are not usable."""
EXIT_UNUSABLE: Final = 3
"""What is on the disk cannot be vouched for (damaged, or the disk has failed): it needs a person, or a replacement."""
EXIT_REMOVED: Final = 4
"""The replica was removed from its cluster."""
EXIT_RESTART: Final = 5
"""Stopped because it was asked to, in order to be started again."""

FINAL: Final = frozenset({EXIT_OK, EXIT_CONFIG, EXIT_UNUSABLE, EXIT_REMOVED})
"""Another start would end the same way, or was not asked for: the watchdog ends with the same code."""

DIED_OF: Final = "LOCKSTEP_DIED_OF"
"""In the environment of a replica that is started again: the signal of which it died, if one of DAMAGE."""
DIED_AT: Final = "LOCKSTEP_DIED_AT"
"""In the same place: when the one before had ended, in nanoseconds of the real time clock."""
DAMAGE: Final = frozenset({"SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"})
"""What a process dies of that follows a damaged page: its state is read whole before it is used again."""
