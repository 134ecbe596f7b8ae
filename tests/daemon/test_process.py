"""daemon.process and daemon.logs: how a daemon ends, and what its log looks like."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys

import pytest

from admin.local import child_environment
from daemon import logs

DAEMON = """
import logging, os, signal, sys, trio
from daemon import logs, process
logs.setup("mds-7", "info")
async def serve():
    try:
        if sys.argv[1] == "return":
            return
        if sys.argv[1] == "fail":
            raise KeyError("who")
        if sys.argv[1] == "fail in a nursery":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise OSError(28, "No space left on device")
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        await trio.sleep_forever()
    finally:
        logging.getLogger("mds.serve").info("cleaned up")
sys.exit(process.run(serve))
"""
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG  |INFO   |WARNING|ERROR  |CRITICAL) mds-7 [\w.]+: .+")


def run(how: str) -> tuple[int, list[str]]:
    """(exit code, log) of a daemon that ends in this way."""
    argv = [sys.executable, "-c", DAEMON, how]
    done = subprocess.run(argv, capture_output=True, text=True, env=child_environment(), timeout=30, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("name", [signal.SIGTERM.name, signal.SIGINT.name])
def test_a_signal_is_a_clean_stop(name: str) -> None:
    code, lines = run(name)
    assert code == 0
    assert all(LINE.fullmatch(line) for line in lines)
    assert [line.split(": ", 1)[1] for line in lines] == [f"stopping: {name}", "cleaned up", "stopped"]


def test_a_daemon_that_has_nothing_more_to_do_ends_well() -> None:
    assert run("return")[0] == 0


@pytest.mark.parametrize("how", ["fail", "fail in a nursery"])
def test_an_unexpected_error_is_logged_with_its_traceback_and_is_fatal(how: str) -> None:
    code, lines = run(how)
    assert code == 1
    told = [k for k, line in enumerate(lines) if "stopped by an unexpected error" in line]
    assert len(told) == 1
    assert LINE.fullmatch(lines[told[0]])
    assert all(line.startswith("    | ") for line in lines[told[0] + 1 :])
    assert any("KeyError" in line or "No space left" in line for line in lines)


def test_one_record_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        logs.setup("mds-7", "warning")
        log = logging.getLogger("wire.peer")
        log.warning("a name from outside: %s", "x\nINFO forged")
        log.info("not shown")
    finally:
        for handler in list(root.handlers):
            root.removeHandler(handler)
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)
        logging.captureWarnings(False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert LINE.fullmatch(lines[0])
    assert "x\\nINFO forged" in lines[0]


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="'loud' is none of debug, info"):
        logs.setup("x", "loud")
