"""What we decided about the source itself: which room may import which, what pure means, how long a file gets."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("wire", "vsync", "mds", "ossd", "client", "daemon", "admin", "bench")
MAY_IMPORT = {
    "wire": set(),
    "vsync": {"wire"},
    "mds": {"wire", "vsync"},
    "ossd": {"wire", "vsync"},
    "client": {"wire"},
    "daemon": {"wire", "vsync"},
    "admin": {"wire", "daemon", "mds", "ossd", "client"},
    "bench": {"wire", "vsync", "mds", "daemon", "admin", "client"},
}
"""Besides itself. Shells (modules that are not pure) may import daemon as well."""
IMPURE = {"trio", "time", "os", "socket", "lmdb", "threading", "subprocess", "asyncio"}
LINES_MAX = 600
BANNED = {
    r"\bexcept\s*:": "name what is expected",
    r"\bprint\((?!.*file=)": "log it; only commands print",
    r"MDB_NOSYNC|sync=False": "the environment must survive a power cut",
    r"\bimport asyncio\b": "trio",
    r"\bpickle\b": "wire.codec: what comes from outside must not execute",
}
"""pattern -> use instead; in the rooms' code, not in its tests."""
MAY_PRINT = {"admin", "bench"}


def modules() -> Iterator[Path]:
    for room in ROOMS:
        yield from sorted((ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, top package) of everything imported at run time."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.lineno, node.module.partition(".")[0]


def is_pure(tree: ast.Module) -> bool:
    return (ast.get_docstring(tree) or "").startswith("Pure")


def own_randomness(tree: ast.Module) -> Iterator[int]:
    """Lines that use the module random for more than the name of the type Random."""
    whole = any(isinstance(n, ast.Import) and any(a.name == "random" for a in n.names) for n in ast.walk(tree))
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="random", names=names) if any(a.name != "Random" for a in names):
                yield node.lineno
            case ast.Call(func=ast.Name(id="Random")):
                yield node.lineno
            case ast.Call(func=ast.Attribute(value=ast.Name(id="random"), attr="Random")) if whole:
                yield node.lineno
            case ast.Attribute(value=ast.Name(id="random"), attr=attr) if whole and attr != "Random":
                yield node.lineno


@pytest.mark.parametrize("path", list(modules()), ids=name_of)
def test_a_module_is_tidy(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    room = path.relative_to(ROOT).parts[0]
    wrong = []
    if ast.get_docstring(tree) is None and text.strip():
        wrong.append("it has no docstring")
    lines = text.count("\n")
    if lines > LINES_MAX:
        wrong.append(f"{lines} lines, {LINES_MAX} allowed: split it by idea")
    if re.search(r"(^|/)(utils?|common|helpers?|misc)(\.py|/)", name_of(path)):
        wrong.append("a drawer for everything: name it by what it does")
    allowed = {room, *MAY_IMPORT[room]} | (set() if is_pure(tree) else {"daemon"})
    for line, package in imports(tree):
        if package in ROOMS and package not in allowed:
            wrong.append(f"line {line}: {room} must not import {package}")
        if package == "tests":
            wrong.append(f"line {line}: imports the tests")
        if is_pure(tree) and package in IMPURE:
            wrong.append(f"line {line}: a pure module imports {package}")
    if is_pure(tree):
        wrong += [f"line {line}: a pure module is given its random.Random" for line in own_randomness(tree)]
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in BANNED.items():
            if re.search(pattern, line) and not (room in MAY_PRINT and "print" in pattern):
                wrong.append(f"line {number}: {line.strip()[:60]!r}: {instead}")
    assert wrong == []


def test_no_room_is_a_drawer() -> None:
    for name in ("utils", "util", "common", "helpers", "misc", "lib"):
        assert not (ROOT / name).exists()


def test_tests_do_not_sleep() -> None:
    """Sleeping is no way to wait for something. What only the kernel knows may be polled, under a limit."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"\btime\.sleep\(", line) and "# polling" not in line:
                found.append(f"{name_of(path)}:{number}")
    assert found == []


def test_documents_exist_and_their_links_lead_somewhere() -> None:
    broken = []
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            if "://" not in link and not (path.parent / link).exists():
                broken.append(f"{name_of(path)}: {link}")
    assert broken == []
