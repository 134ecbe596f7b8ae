"""Pure. Denied: what a client asked and may not.

Nothing changes but its slot, where the refusal is kept as the answer.
"""

from __future__ import annotations

from typing import Any

from mds.namespace.scope import Scope
from wire.errors import FileSystemError
from wire.fileops import Denied


def apply(scope: Scope, op: Denied) -> Any:
    raise FileSystemError(op.status)
