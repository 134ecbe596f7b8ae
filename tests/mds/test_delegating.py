"""Delegations in a whole service: what waits for them, how they come back, and what is told whom."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mds.group import Call, Group, create, lookup, mkdir, unlink
from tests.mds.harness import ROOT, TOP
from tests.sim.clock import MS
from wire import ops
from wire.delegation import CreateDelegated, Delegate, DelegationRecall, Undelegate

NOW = 1_700_000_000_000_000_000


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(seed: int = 0, **options: Any) -> Group:
        path = tmp_path / str(len(made))
        path.mkdir()
        made.append(Group(path, seed, **options))
        return made[-1]

    yield make
    for group in made:
        group.close()


class Holder:
    """A client that makes files by itself, as far as these stories need."""

    def __init__(self, group: Group, at: int = 1) -> None:
        self.group = group
        self.user = group.user("holder", at)
        self.numbers: list[int] = []

    def delegate(self, parent: int) -> Any:
        found = self.done(Delegate(ROOT, parent)).body
        if found is not None:
            _, first, count, _, _ = found
            self.numbers = list(range(first, first + count))
        return found

    def done(self, op: Any) -> Call:
        call = self.group.complete(self.user.request(op))
        assert call.ok, f"{op} answered {call.status}"
        return call

    def birth(self, parent: int, name: bytes, data: bytes = b"") -> CreateDelegated:
        """A file that it has made by itself."""
        pieces = ((0, data),) if data else ()
        return CreateDelegated(ROOT, parent, name, 0o644, self.numbers.pop(0), NOW, pieces, NOW)

    def told(self) -> list[int]:
        """Directories that it was asked to give back."""
        return [ino for m in self.user.seen if isinstance(m, DelegationRecall) for ino in m.parents]


def held(group: Group) -> list[dict[int, tuple[int, bool]]]:
    """What is delegated, as each replica that is up has it."""
    return [dict(node.replica.state.delegated) for node in group.nodes.values() if node.running]


@pytest.mark.parametrize("seed", range(6))
def test_a_query_elsewhere_waits_for_what_was_answered(groups: Callable[..., Group], seed: int) -> None:
    group = groups(seed)
    other = group.user("other", 2)
    above = group.ask(other, mkdir(b"d"))[0]
    holder = Holder(group)
    assert holder.delegate(above) is not None
    made = holder.birth(above, b"f", b"what it holds")  # and its application has been answered
    asked = other.query(lookup(b"f", above))
    group.until(lambda: holder.told() == [above])
    group.run(50 * MS)
    assert not asked.done
    born = holder.done(made)
    assert not asked.done
    holder.done(Undelegate((above,)))
    assert group.complete(asked).body == born.body
    assert born.body[0] == made.ino
    group.finish()
    assert held(group) == [{}, {}, {}]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("op", ["create", "unlink what is there", "unlink what is not", "rename", "rmdir"])
def test_a_request_elsewhere_waits_for_what_was_answered(groups: Callable[..., Group], seed: int, op: str) -> None:
    group = groups(seed)
    other = group.user("other", 2)
    above = group.ask(other, mkdir(b"d"))[0]
    group.ask(other, create(b"old", above))
    holder = Holder(group, at=3)
    holder.delegate(above)
    made = holder.birth(above, b"f")
    request, expected = {
        "create": (create(b"f", above), errno.EEXIST),
        "unlink what is there": (unlink(b"old", above), 0),
        "unlink what is not": (unlink(b"f", above), 0),
        "rename": (ops.Rename(ROOT, above, b"f", TOP, b"g", 0), 0),
        "rmdir": (ops.Rmdir(ROOT, TOP, b"d"), errno.ENOTEMPTY),
    }[op]
    asked = other.request(request)
    group.until(lambda: holder.told() == [above])
    holder.done(made)
    holder.done(Undelegate((above,)))
    assert group.complete(asked).status == expected
    group.finish()
