"""``python -m tests.scenarios [NAME...]``: write what follows each command of the dialogues anew."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.scenarios.stage import dialogue

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    for path in sorted(HERE.glob("*.txt")):
        if names and path.stem not in names:
            continue
        before = path.read_text()
        after = dialogue(before)
        if after != before:
            path.write_text(after)
            print(f"{path.name}: written anew")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
