"""admin.tree: what is chosen, how it is copied, and that a difference of any kind is found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from admin import tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "pkg" / "__pycache__").mkdir(parents=True)
    (root / "site-packages" / "other").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "pkg" / "a.py").write_text("a = 1\n")
    (root / "pkg" / "b.py").write_bytes(bytes(range(256)) * 10_000)
    (root / "pkg" / "__pycache__" / "a.pyc").write_bytes(b"compiled")
    (root / "site-packages" / "other" / "x.py").write_text("x")
    (root / "pkg" / "link").symlink_to("a.py")
    os.chmod(root / "pkg" / "a.py", 0o754)
    os.utime(root / "pkg" / "a.py", ns=(5, 1_500_000_000_123_456_789))
    os.utime(root / "pkg", ns=(5, 1_400_000_000_000_000_001))
    return root


@pytest.fixture
def copied(tmp_path: Path, source: Path) -> tuple[Path, Path]:
    """(the copy, the manifest)"""
    target, manifest = tmp_path / "copy", tmp_path / "manifest.json"
    assert tree.copy(source, target, manifest) == 0
    return target, manifest


def test_the_copy_is_equal_in_every_respect(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, manifest = tmp_path / "copy", tmp_path / "manifest.json"
    assert tree.copy(source, target, manifest) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert tree.compare(target, manifest) == 0
    info = os.stat(target / "pkg" / "a.py")
    assert (info.st_mode & 0o7777, info.st_mtime_ns) == (0o754, 1_500_000_000_123_456_789)
    assert os.stat(target / "pkg").st_mtime_ns == 1_400_000_000_000_000_001
    assert os.readlink(target / "pkg" / "link") == "a.py"
    assert not (target / "site-packages").exists()
    assert (target / "pkg" / "__pycache__" / "a.pyc").exists(), "few sources: compiled files are copied, too"
    made = os.listdir(target / tree.LINKS_NAME)
    assert len(made) == 3, "a tree with few links gets some"
    assert all((target / tree.LINKS_NAME / name).is_file() for name in made), "and they lead somewhere"
    assert lines[0] == {"files_total": 7, "bytes_total": 2_560_014, "links_made": 3}
    assert (lines[-1]["files"], lines[-1]["bytes"], lines[-1]["errors"]) == (7, 2_560_014, 0)
    assert lines[-1]["longest_stall_ms"] >= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("printf x >> pkg/a.py", "bytes, not"),
        ("printf 'a = 2\\n' > pkg/a.py && touch -d @1500000000.123456789 pkg/a.py", "contents differ"),
        ("chmod 755 pkg/a.py", "mode 0o755, not 0o754"),
        ("touch pkg/b.py", "mtime"),
        ("rm pkg/b.py && touch -d @1400000000.000000001 pkg", "pkg/b.py: is missing"),
        ("rm empty -r && touch empty", "empty: is no directory"),
        ("ln -sfn b.py pkg/link && touch -h -r ../source/pkg/link pkg/link", "points to 'b.py', not 'a.py'"),
        ("touch empty/more", "empty/more: was never copied"),
        ("touch -d @7 empty", "empty: mtime 7000000000"),
    ],
)
def test_any_difference_is_found(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    target, manifest = copied
    assert os.system(f"cd {target} && {change}") == 0
    capsys.readouterr()
    assert tree.compare(target, manifest) > 0
    assert message in capsys.readouterr().out


def test_an_operation_that_fails_is_counted_and_the_copy_goes_on(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.symlink

    def failing(aim: str, path: Path) -> None:
        if path.name == "link":
            raise OSError(5, "Input/output error")
        real(aim, path)

    monkeypatch.setattr(os, "symlink", failing)
    assert tree.copy(source, tmp_path / "copy", tmp_path / "m") == 1
    assert '"error": "pkg/link: Input/output error"' in capsys.readouterr().out
    assert tree.compare(tmp_path / "copy", tmp_path / "m") == 0, "what was not copied is not in the manifest"


def test_the_choice_is_bounded(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "FILES_MIN", 1)
    paths = [path for path, _ in tree.choose(source)]
    assert paths == ["empty", "pkg", "pkg/a.py", "pkg/b.py", "pkg/link"], "in a fixed order, parents first"
    monkeypatch.setattr(tree, "BYTES_MAX", 100)
    assert "pkg/b.py" not in [path for path, _ in tree.choose(source)]
    monkeypatch.setattr(tree, "FILES_MAX", 0)
    assert [path for path, _ in tree.choose(source)] == ["empty", "pkg", "pkg/link"]


def test_the_stopwatch_keeps_the_longest_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.1, 12.1, 12.2])
    monkeypatch.setattr(tree.time, "monotonic", lambda: next(times))
    watch = tree.Stopwatch()
    for _ in range(3):
        watch.done()
    assert watch.longest_s == pytest.approx(2.0)
    assert watch.calls == 3
