"""mds.aside: what is kept of states that differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.exits import EXIT_RESTART, EXIT_UNUSABLE
from mds import aside
from mds.ending import Asked, GivenUp


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir()
    return path


def again(state: Path) -> None:
    """It has another state by now."""
    state.mkdir()
    (state / "number").write_text("2")


def test_an_alarm_stays_with_its_state(state: Path) -> None:
    assert aside.kept_alarm(state) == ""
    aside.keep_alarm(state, "replica 2 differs")
    assert aside.kept_alarm(state) == "replica 2 differs"
    (state / aside.ALARM).write_text("")
    assert aside.kept_alarm(state), "a power cut may leave it empty: it is an alarm all the same"
    aside.keep_alarm(state, "")
    assert aside.kept_alarm(state) == ""
    aside.keep_alarm(state, "")
    assert aside.kept_alarm(state.with_name("none")) == ""


def test_a_state_that_is_given_up_is_kept(state: Path) -> None:
    aside.keep_alarm(state, "replica 2 differs")
    assert aside.give_up(state, [GivenUp("why", asked=False)]) == EXIT_RESTART
    assert not state.exists() and (state.with_name(aside.DIVERGED) / aside.ALARM).exists()


def test_the_second_time_within_the_hour_it_is_the_host(state: Path) -> None:
    aside.give_up(state, [GivenUp("why", asked=False)])
    again(state)
    assert aside.give_up(state, [GivenUp("why", asked=False)]) == EXIT_UNUSABLE
    assert (state / "number").exists() and not (state.with_name(aside.DIVERGED) / "number").exists()


def test_an_administrator_may_give_up_one_after_the_other(state: Path) -> None:
    aside.give_up(state, [GivenUp("why", asked=True)])
    again(state)
    assert aside.give_up(state, [GivenUp("why", asked=True)]) == EXIT_RESTART
    assert (state.with_name(aside.DIVERGED) / "number").exists()


def test_a_state_is_given_up_only_when_the_others_go_on_without_it() -> None:
    """Two replicas that differ, and both are asked: one of them is the last."""
    end = GivenUp("why", asked=True)
    assert end.if_left(True) is end
    kept = end.if_left(False)
    assert isinstance(kept, Asked) and kept.code == EXIT_RESTART
