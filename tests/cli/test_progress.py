"""The bar: one for everything, a line a worker; what is lost counts once."""

import pytest

from rankprobe.cli import progress
from rankprobe.cli.progress import TerminalObserver
from rankprobe.experiment.live import LiveFile, read_live


def whole(observer):
    return observer._progress.tasks[0]


def lines(observer):
    return [task.description.strip() for task in observer._progress.tasks[1:] if task.visible]


def test_runs_in_turn_are_one_bar_with_the_run_as_its_name():
    observer = TerminalObserver(30)
    observer.begin("LoRA", 10)
    observer.stage("train", 4, 10, "loss 0.5")
    assert (whole(observer).completed, whole(observer).description) == (4, "LoRA")
    observer.stage("evaluate", 1, 2)
    assert whole(observer).completed == 10 and whole(observer).fields["note"] == "evaluating 1/2"
    observer.begin("full", 20)
    observer.stage("train", 5, 20)
    assert whole(observer).completed == 15 and not lines(observer)


def test_all_workers_steps_count_and_each_has_a_line():
    observer = TerminalObserver(100)
    first, second = observer.lane(0), observer.lane(1)
    first.begin("LoRA r=1", 40)
    second.begin("LoRA r=2", 40)
    first.stage("train", 10, 40, "loss 0.7")
    second.stage("train", 20, 40)
    assert whole(observer).completed == 30 and whole(observer).description == "2 at once"
    assert lines(observer) == ["LoRA r=1", "LoRA r=2"]
    first.begin("", 0)
    assert whole(observer).completed == 60 and lines(observer) == ["LoRA r=2"], "one that ended early counts as a whole"
    assert observer.lane(1) is second


def test_how_many_runs_are_done_stands_before_what_is_under_way():
    observer = TerminalObserver(100)
    observer.count(11, 1200)
    observer.begin("LoRA", 10)
    assert whole(observer).description == "11 of 1,200 runs, LoRA"
    observer.count(12, 1200)
    assert whole(observer).description == "12 of 1,200 runs, LoRA"


def test_a_lost_run_does_not_count_twice():
    observer = TerminalObserver(40)
    lane = observer.lane(0)
    lane.begin("LoRA", 40)
    lane.stage("train", 30, 40)
    lane.drop()
    assert whole(observer).completed == 0 and not lines(observer)
    lane.begin("LoRA", 40)
    lane.stage("train", 40, 40)
    lane.begin("", 0)
    assert whole(observer).completed == 40


@pytest.mark.parametrize("workers", [1, 2])
def test_without_a_terminal_a_line_now_and_then_with_an_eta_for_all(monkeypatch, capsys, workers):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    observer = TerminalObserver(80)
    lanes = [observer.lane(i) for i in range(workers)] if workers > 1 else [observer]
    for i, lane in enumerate(lanes):
        lane.begin(f"run {i}", 40)
    now[0] = 60.0
    for lane in lanes:
        lane.stage("train", 20, 40, "loss 0.1")
        now[0] += 60.0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == workers, said
    # 20 of 80 steps a minute; then 40 of 80 in two.
    assert said[0].startswith("run 0: 20/40 loss 0.1") and "(25%, ETA 3 min)" in said[0]
    if workers == 2:
        assert said[1] == "run 0: 20/40 loss 0.1 | run 1: 20/40 loss 0.1 (50%, ETA 2 min)"


def test_more_than_was_expected_is_neither_a_negative_eta_nor_more_than_all(tmp_path, capsys, monkeypatch):
    """A bisection finds its ds as it goes."""
    monkeypatch.setattr(progress, "_PLAIN_EVERY_S", -1.0)
    observer = TerminalObserver(10, LiveFile(tmp_path, every_s=0))
    observer.begin("did d=100", 10)
    observer.stage("train", 5, 10)
    assert read_live(tmp_path).eta_s > 0
    observer.begin("did d=300", 10)
    observer.stage("train", 5, 10)
    live = read_live(tmp_path)
    assert (live.done, live.total, live.eta_s) == (15, 15, None)
    assert capsys.readouterr().err.splitlines()[-1].endswith("(100%, ETA unknown)")
