"""Each dialogue goes as it is written down. ``python -m tests.scenarios`` writes them anew; the difference is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.stage import dialogue

DIALOGUES = sorted(Path(__file__).parent.glob("*.txt"))


def test_there_are_dialogues() -> None:
    assert len(DIALOGUES) >= 7


@pytest.mark.parametrize("path", DIALOGUES, ids=lambda p: p.stem)
def test_dialogue(path: Path) -> None:
    text = path.read_text()
    assert dialogue(text) == text
