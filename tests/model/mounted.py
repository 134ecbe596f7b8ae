"""The mounts of the model tests."""

from __future__ import annotations

import os
from pathlib import Path

from tests.live import Live


def model_mounts(cluster: Live) -> tuple[Path, Path]:
    """Two mounts on different replicas that other users may enter."""
    os.chmod(cluster.run.directory, 0o711)
    options = ("allow_other,suid",) if os.geteuid() == 0 else ()
    return cluster.mount("model-one", 1, options), cluster.mount("model-two", 2, options)
