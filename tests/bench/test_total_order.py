"""Total order's cost: the arithmetic of the claims, and a group of two real members."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from admin import processes, runs
from bench import total_order


def row(series: str, members: int, senders: str, median_us: float) -> dict[str, Any]:
    one = next(s for s in total_order.SERIES if s.name == series)
    return total_order.row(one, members, senders, [median_us - 1, median_us, median_us + 1])


def test_a_row_has_the_usual_figures() -> None:
    found = total_order.row(total_order.SERIES[0], 3, "one", [float(k) for k in range(100, 300)])
    assert found["min_us"] == 100 and found["max_us"] == 299 and found["median_us"] == 199.5
    assert found["p99_us"] == 297 and found["messages"] == 200 and found["members"] == 3


def test_claims_hold_or_not_by_the_worst_size() -> None:
    rows = [
        row("heartbeat", 2, "one", 250_000), row("heartbeat", 8, "one", 440_000),
        row("agreed", 2, "one", 300), row("agreed", 8, "one", 1200), row("agreed", 8, "all", 90_000),
        row("agreed", 2, "all", 300),
    ]  # fmt: skip
    found = total_order.claims(rows)
    assert found["original_over_fast"] == {2: 833.3, 8: 366.7}
    assert found["at_least_50_times_below"] and found["no_growth_beyond_linear"]
    assert found["per_other_member_over_that_of_one"] == {"one": {"agreed": 0.57}, "all": {"agreed": 42.86}}
    slower = total_order.claims([*rows, row("agreed", 4, "one", 300 * 3 * 1.3)])
    assert slower["no_growth_beyond_linear"] is False
    flushed = total_order.claims([*rows, row("safe", 2, "one", 300), row("safe", 4, "one", 2000)])
    assert flushed["no_growth_beyond_linear"], "one disk for all: shown, not claimed"
    slow = total_order.claims([*rows, row("agreed", 5, "one", 10_000), row("heartbeat", 5, "one", 400_000)])
    assert slow["at_least_50_times_below"] is False


def test_what_was_not_measured_is_not_claimed() -> None:
    found = total_order.claims([row("safe", 2, "one", 300)])
    assert found["at_least_50_times_below"] is None and found["no_growth_beyond_linear"] is None
    text = total_order.table({"rows": [row("safe", 2, "one", 300)], "claims": found})
    assert "not measured" in text and "300 (301)" in text


def test_the_thesis_had_the_growth_that_is_claimed() -> None:
    """Table A.4: linear for all senders, less for one."""
    one, every = total_order.THESIS_US["fast delivery, one sender"], total_order.THESIS_US["fast delivery, all senders"]
    for figures in (one, every):
        assert figures[1] is not None
        for n, value in enumerate(figures[1:], 2):
            assert value is not None and value / (n - 1) <= figures[1]


@pytest.mark.parametrize("argv", [["--members", "9"], ["--series", "fastest"], ["--messages", "0"]])
def test_what_cannot_be_measured_is_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        total_order.parse(argv)


@pytest.mark.system
def test_two_members_order_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    argv = ["--json", "--members", "2", "--messages", "5", "--series", "safe, no flush;safe", "--csv", str(path)]
    assert total_order.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(r["series"], r["senders"], r["messages"]) for r in found["rows"]] == [
        ("safe, no flush", "one", 5), ("safe, no flush", "all", 10), ("safe", "one", 5), ("safe", "all", 10),
    ]  # fmt: skip
    assert all(0 < r["min_us"] <= r["median_us"] <= r["max_us"] for r in found["rows"])
    with path.open(encoding="utf-8", newline="") as file:
        assert [int(r["members"]) for r in csv.DictReader(file)] == [2, 2, 2, 2]
    assert runs.clear_abandoned() == []
    assert not list(total_order.MEMORY.glob("lockstep-order-*"))
    assert processes.of_directory(total_order.MEMORY) == []


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row("safe", n, senders, 300.0 * n) for n in (2, 3) for senders in ("one", "all")]
    path = tmp_path / "order.svg"
    total_order.write_plot({"rows": rows}, path)
    assert "<svg" in path.read_text(encoding="utf-8") and path.stat().st_size > 1000
