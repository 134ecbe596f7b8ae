"""What the workers wrote down, put together per cell and judged."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.cells import EMPTY, READS, Cell, State
from tests.linearizable import Operation, Verdict, check


@dataclass(slots=True, eq=False)
class Begun:
    """An operation that has begun, over or not."""

    who: str
    cell: str
    what: tuple[Any, ...]
    began: int
    ended: int | None = None
    answer: Any = None

    def operation(self) -> Operation:
        return Operation(self.who, self.what, self.began, self.ended, self.answer)


@dataclass(slots=True)
class Source:
    """One worker's log, read as far as it was written."""

    path: Path
    at: int = 0
    under_way: dict[int, Begun] = field(default_factory=dict)
    dead: bool = False
    """Its process was killed: what is under way has an outcome that nobody knows."""
    ended: dict[str, int] = field(default_factory=dict)
    """Operations over, by session."""
    last: dict[str, int] = field(default_factory=dict)
    """When the last operation that is over began, by session."""


class History:
    """All operations of a run. What was judged is remembered by the state it left alone."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._cells: dict[str, list[Begun]] = {}
        self._left: dict[str, tuple[State, ...]] = {}
        """Cells that were judged and had no operation of unknown outcome: what they may hold."""
        self.operations = 0
        self.unknown = 0
        self.hardest = 0
        """The most configurations a search had at once."""

    def follow(self, path: Path) -> Source:
        source = Source(path)
        self._sources.append(source)
        return source

    def take(self) -> None:
        """Read what the workers have written since."""
        for source in self._sources:
            for line in _new_lines(source):
                self._note(source, json.loads(line))

    def _note(self, source: Source, said: dict[str, Any]) -> None:
        if "w" in said:
            what = tuple(said["w"])
            who = said["s"] if said["s"].startswith("probe") else f"session {said['s']}"
            begun = Begun(who, said["c"], what, said["t"])
            source.under_way[said["k"]] = begun
            self._cells.setdefault(begun.cell, []).append(begun)
            return
        begun = source.under_way.pop(said["k"])
        if "a" not in said:
            self._cells[begun.cell].remove(begun)  # it changed nothing, and nothing was said
            return
        begun.ended = said["t"]
        begun.answer = tuple(said["a"])
        source.ended[begun.who] = source.ended.get(begun.who, 0) + 1
        source.last[begun.who] = begun.began
        self.operations += 1

    def died(self, source: Source) -> None:
        """The process of *source* was killed."""
        self.take()
        source.dead = True
        for begun in source.under_way.values():
            if begun.what[0] in READS:
                self._cells[begun.cell].remove(begun)
        self.unknown += sum(begun.what[0] not in READS for begun in source.under_way.values())

    def waited_for(self, cell: str) -> bool:
        """Whether an operation in *cell* may still be answered."""
        return any(b.cell == cell for s in self._sources if not s.dead for b in s.under_way.values())

    def pending(self) -> list[Begun]:
        """What may still be answered."""
        return [begun for source in self._sources if not source.dead for begun in source.under_way.values()]

    # -- judging

    def judge(self, cell: str) -> list[str]:
        """What is wrong with what was answered in *cell* so far, and was not judged before."""
        begun = self._cells.pop(cell, [])
        history = [b.operation() for b in begun]
        if cell.startswith("/"):
            return _judge_directory(cell, history)
        starts = self._left.pop(cell, (EMPTY,))
        verdicts = [check(Cell(state), history) for state in starts]
        good = [verdict for verdict in verdicts if verdict]
        if not good:
            return [_explained(cell, verdicts[0])]
        self.hardest = max(self.hardest, *(v.configurations for v in good))
        if any(op.ended is None for op in history):
            self._cells[cell] = begun  # it may take effect later: judged whole again
        else:
            self._left[cell] = tuple(dict.fromkeys(state for verdict in good for state in verdict.states))
        return []

    def cells(self) -> list[str]:
        """Every cell and directory there ever was."""
        return sorted({*self._cells, *self._left})


def _new_lines(source: Source) -> Iterator[bytes]:
    with source.path.open("rb") as file:
        file.seek(source.at)
        data = file.read()
    end = data.rfind(b"\n") + 1
    source.at += end
    yield from data[:end].splitlines()


def _judge_directory(where: str, history: list[Operation]) -> list[str]:
    """A cell's directory was made once, by whoever came first, and everybody finds the same one."""
    made = [op for op in history if op.what == ("make",) and op.ended is not None and op.answer[0] == 0]
    maybe = [op for op in history if op.what == ("make",) and op.ended is None]
    wrong = []
    if len(made) > 1:
        wrong.append(f"{where} was made {len(made)} times: " + "; ".join(map(str, made)))
    numbers = {op.answer[1][0][0] for op in history if op.ended is not None and op.answer[0] == 0}
    if len(numbers) > 1:
        wrong.append(f"{where} is {len(numbers)} directories: {sorted(numbers)}")
    for op in history:
        if op.ended is None or op.answer[0] == 0:
            continue
        possible = [m for m in (*made, *maybe) if m.began <= op.ended]
        if op.what != ("make",) or op.answer[0] != errno.EEXIST or not possible:
            wrong.append(f"{where}: {op} cannot be")
    return wrong


def _explained(cell: str, verdict: Verdict[State]) -> str:
    lines = [f"cell {cell} has no order that explains its answers. The last one that does not fit:"]
    lines.append(f"    {verdict.impossible}")
    lines.append("  when the cell held one of")
    lines += [f"    {_shown(state)}" for state in verdict.before]
    lines.append("  and these were under way:")
    lines += [f"    {op}" for op in verdict.around]
    return "\n".join(lines)


def _shown(state: State) -> str:
    return ", ".join(f"{slot}: {tuple(inode)}" for slot, inode in enumerate(state) if inode is not None) or "nothing"
