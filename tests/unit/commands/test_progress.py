"""How far a run is: lines in a log, and what others may ask."""

import pytest

from hessian_spectrum.commands import progress
from hessian_spectrum.commands.progress import LINE_SECONDS, NOTE_SECONDS, Progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_has_a_line_about_once_a_minute(clock, capsys):
    with Progress("density", 160, 42, "step") as shown:
        for _ in range(20):
            clock.now += 10.0
            shown.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "density: step 48 of 160, 19 min left",  # 112 steps of 10 s
        "density: step 54 of 160, 18 min left",
        "density: step 60 of 160, 17 min left",
    ]


def test_the_time_left_is_at_the_latest_pace_with_what_comes_after(clock):
    shown = Progress("density", 100, 0, "step", rest=7.0, is_shown=False)
    assert shown.seconds_left is None
    for seconds in (9.0, 9.0, 9.0, 9.0, 2.0, 2.0, 2.0, 2.0):
        clock.now += seconds
        shown.update(1)
    assert shown.seconds_left == pytest.approx(92 * 2.0 + 7.0, rel=0.25)
    assert Progress("eigenpairs", None, 5, "product").seconds_left is None


def test_a_save_is_told_about_once_a_minute_and_before_a_stop(clock, capsys):
    shown = Progress("density", 160, 0, "step")
    for _ in range(3):
        clock.now += LINE_SECONDS / 3
        shown.update(1)
        shown.saved()
    shown.saved(last=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "saved" in line] == ["density: saved at step 3 of 160"] * 2


def test_it_notes_where_it_is_without_writing_at_each_step(clock):
    notes = []
    shown = Progress("density", 160, 0, "step", is_shown=False, note=notes.append)
    for _ in range(100):
        clock.now += NOTE_SECONDS / 10
        shown.update(1)
    assert [note["done"] for note in notes] == [0, *range(10, 101, 10)]
    shown.saved()
    assert notes[-1]["saved"] == notes[-1]["done"] == 100 and notes[-1]["total"] == 160


def test_nothing_is_shown_of_a_quiet_run(clock, capsys):
    shown = Progress("density", 160, 0, "step", is_shown=False)
    clock.now += 2 * LINE_SECONDS
    shown.update(1)
    shown.saved(last=True)
    assert capsys.readouterr() == ("", "")
