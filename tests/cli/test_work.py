"""What sweep and reproduce-paper share: a measurement beside the trainings that fails stops none of them."""

from types import SimpleNamespace

import pytest

from rankprobe.cli import work
from rankprobe.cli.work import Extra, run_studies
from rankprobe.experiment.store import LockedError, finished, lock
from rankprobe.experiment.unmeasured import Unmeasured
from tests.experiment.test_jobs import HEAD, LORA, base, planned, task  # noqa: F401 (fixtures)


@pytest.fixture
def studies(tmp_path, base, task):  # noqa: F811
    return [planned(tmp_path / "runs", base, task, configuration) for configuration in (LORA, HEAD)]


@pytest.fixture
def latency(tmp_path):
    return SimpleNamespace(run_id="latency-r8-0", folder=tmp_path / "runs" / "latency-r8-0")


def done(studies):
    return [finished(run.folder) is not None for study in studies for run in study.runs]


def run(tmp_path, studies, **settings):
    run_studies(studies, tmp_path / "out", name="toy", title="Toy", **settings)


def published(tmp_path):
    return {path.name for path in (tmp_path / "out").rglob("*")}


def test_a_latency_that_fails_is_said_and_stops_no_training(tmp_path, studies, latency, monkeypatch, capsys):
    asked = []

    def execute(plan, *, observer, stop):
        asked.append(done(studies))
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(work, "execute_latency", execute)
    with pytest.raises(Unmeasured, match="latency must be measured. Got RuntimeError: CUDA out of memory. See "):
        run(tmp_path, studies, latency=latency)
    assert asked == [[True, False, False]], "once, after the first round"
    assert all(done(studies)) and "CUDA out of memory" in (latency.folder / "error.txt").read_text()
    assert "error.txt" not in published(tmp_path) and "report.html" in published(tmp_path)
    heard = capsys.readouterr()
    assert str(tmp_path / "out" / "report.html") in heard.out
    assert heard.err.count("CUDA out of memory") == 1, "when it happened: hours may pass until the end"
    assert heard.err.index("CUDA out of memory") < heard.err.index("head-eval-s0")


def test_a_latency_measured_elsewhere_is_asked_for_again_and_given_up_at_last(
    tmp_path, studies, latency, monkeypatch, capsys
):
    asked = []

    def execute(plan, **settings):
        asked.append(done(studies))
        with lock(plan.folder):
            pass

    monkeypatch.setattr(work, "execute_latency", execute)
    with lock(latency.folder), pytest.raises(LockedError):
        run(tmp_path, studies, latency=latency)
    assert len(asked) == 4 and asked[-1] == [True, True, True], "after each part, and at the end"
    assert "latency: " in capsys.readouterr().err


def test_an_extra_that_fails_is_said_and_the_studies_after_it_are_done(tmp_path, studies):
    def measure(observer, stop, executor):
        assert done(studies) == [True, True, False]
        yield
        raise RuntimeError("CUDA out of memory")

    extra = Extra(1, {"intrinsic": []}, measure)
    with pytest.raises(Unmeasured, match="intrinsic must be measured. Got RuntimeError: CUDA out of memory"):
        run(tmp_path, studies, extras=[extra])
    assert all(done(studies))
    file = tmp_path / "runs" / "out-intrinsic-error.txt"
    assert "Traceback" in file.read_text()
    assert not any("error.txt" in name for name in published(tmp_path))
    run(tmp_path, studies, extras=[Extra(1, {"intrinsic": []}, lambda *args: iter(()))])
    assert file.exists(), "there was nothing to do, so nothing was measured"
    run(tmp_path, studies, extras=[Extra(1, {"intrinsic": []}, lambda *args: iter([None]), ("d = 100",))])
    assert not file.exists()
