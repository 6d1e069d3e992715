"""--track: what trackers are given of a run, once, and what happens where one is missing or fails.

Trackers are fakes in accelerate's place, so that the test needs none of their packages; TensorBoard's own files are
read back where it is installed.
"""

import importlib.util
import json
import os
import socket

import pytest
from accelerate import tracking as accelerate_tracking
from accelerate.tracking import GeneralTracker

from rankprobe.cli import tracking
from rankprobe.cli.tracking import TRACKERS, check_trackers, run_history, track_run
from rankprobe.errors import UsageError
from rankprobe.experiment.store import files_of, finished
from tests.cli.lab import FINETUNE, SWEEP, rankprobe, refused

HISTORY = "step,epoch,loss,lr,grad_norm\n1,1,2.0,0.1,3.0\n2,1,1.0,0.05,inf\n"
CLASSES = {"tensorboard": "TensorBoardTracker", "wandb": "WandBTracker", "mlflow": "MLflowTracker",
           "trackio": "TrackioTracker"}  # fmt: skip


def make_run(runs, run_id="lora-r8-s0-ab", **changes):
    """A finished run's folder, as far as trackers look into it."""
    folder = runs / run_id
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text(HISTORY)
    record = {
        "schema": 1, "run_id": run_id, "kind": "train", "status": "ok", "files": files_of(folder),
        "weights_kept": False, "spec": {"method": "lora", "r": 8, "alpha": None, "lr": 0.1}, "params": {"trainable": 3},
        "model": {"sha256": "ab"}, "task": {"sha256": "cd"}, "metrics": {"accuracy": 0.75, "loss": None},
        "timings": {"train_time_s": 1.5},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record | changes))
    return folder


@pytest.fixture
def fakes(monkeypatch):
    """Every tracker's class replaced by one that notes what it is told; the notes, by tracker."""
    notes = {name: [] for name in TRACKERS}
    for key in [key for key in os.environ if key.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(key)

    def fake(kind):
        class Fake(GeneralTracker):
            name, requires_logging_directory, tracker = kind, False, None

            def __init__(self, *args, **kwargs):
                super().__init__(_blank=True)
                notes[kind].append(("init", args, kwargs))

            def start(self):
                settings = {k: v for k, v in os.environ.items() if k.startswith(kind.upper())}
                notes[kind].append(("start", settings))
                print("a greeting")

            def store_init_configuration(self, values):
                notes[kind].append(("config", values))

            def log(self, values, step=None, **kwargs):
                notes[kind].append((step, values))

            def finish(self):
                notes[kind].append(("finish",))

        return Fake

    for name, attribute in CLASSES.items():
        monkeypatch.setattr(accelerate_tracking, attribute, fake(name))
    return notes


@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_is_replayed_once(tmp_path, fakes, capfd, name):
    folder = make_run(tmp_path / "runs")
    assert track_run(folder, [name], tmp_path / "into") == []
    assert fakes[name][2:] == [
        ("config", {"method": "lora", "r": 8, "lr": 0.1, "params/trainable": 3, "model_sha256": "ab",
                    "task_sha256": "cd", "status": "ok"}),
        (1, {"epoch": 1.0, "train/loss": 2.0, "train/lr": 0.1, "train/grad_norm": 3.0}),
        (2, {"epoch": 1.0, "train/loss": 1.0, "train/lr": 0.05}),  # what is infinite is left out
        (2, {"eval/accuracy": 0.75, "train_time_s": 1.5}),
        ("finish",),
    ]  # fmt: skip
    assert track_run(folder, [name], tmp_path / "into") == [] and len(fakes[name]) == 7
    assert capfd.readouterr() == ("", "")
    # The record says nothing of it, and the run is as finished as before.
    assert finished(folder) is not None and list(files_of(folder)) == ["history.csv"]
    track_run(folder, [name], tmp_path / "elsewhere")
    assert len(fakes[name]) == 14


def test_each_gets_its_name_and_stays_on_this_machine(tmp_path, fakes):
    folder, into = make_run(tmp_path / "runs"), tmp_path / "into"
    track_run(folder, TRACKERS, into)
    made = {name: note[0][1:] for name, note in fakes.items()}
    assert made["tensorboard"] == (("lora-r8-s0-ab", into / "tensorboard"), {})
    assert made["wandb"][0] == ("rankprobe",) and made["wandb"][1]["name"] == "lora-r8-s0-ab"
    assert made["mlflow"] == (("rankprobe", (into / "mlflow" / "artifacts").as_uri()), {"run_name": "lora-r8-s0-ab"})
    assert made["trackio"][1] == {"name": "lora-r8-s0-ab", "auto_log_gpu": False, "auto_log_cpu": False}
    settings = {name: note[1][1] for name, note in fakes.items()}
    assert settings["wandb"]["WANDB_MODE"] == "offline"
    assert settings["mlflow"] == {"MLFLOW_TRACKING_URI": f"sqlite:///{into}/mlflow/mlflow.db"}
    assert settings["trackio"] == {"TRACKIO_DIR": str(into / "trackio")}
    assert (into / ".gitignore").read_text() == "*\n"
    assert not any(key.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")) for key in os.environ)


def test_the_users_environment_goes_first(tmp_path, fakes, monkeypatch):
    folder = make_run(tmp_path / "runs")
    for key, value in {"WANDB_MODE": "online", "WANDB_PROJECT": "mine", "MLFLOW_TRACKING_URI": "http://x:1"}.items():
        monkeypatch.setenv(key, value)
    track_run(folder, ["wandb", "mlflow"], tmp_path / "into")
    assert fakes["wandb"][0][1] == ("mine",) and fakes["wandb"][1][1]["WANDB_MODE"] == "online"
    assert fakes["mlflow"][0][1] == ("rankprobe", None)
    assert fakes["mlflow"][1][1] == {"MLFLOW_TRACKING_URI": "http://x:1"}
    # A server is one place, wherever the tables go.
    track_run(folder, ["wandb", "mlflow"], tmp_path / "elsewhere")
    assert [len(fakes[name]) for name in ("wandb", "mlflow")] == [7, 7]


def test_what_is_not_finished_or_no_training_is_left_alone(tmp_path, fakes):
    runs = tmp_path / "runs"
    failed = make_run(runs, "failed", status="failed")
    latency = make_run(runs, "latency", kind="latency")
    (runs / "begun").mkdir()
    for folder in (failed, latency, runs / "begun"):
        assert track_run(folder, TRACKERS, tmp_path / "into") == []
    assert not any(fakes.values()) and not (tmp_path / "into").exists()


def test_a_tracker_that_fails_is_a_line_and_tried_again(tmp_path, fakes, monkeypatch):
    folder = make_run(tmp_path / "runs")
    broken, working = accelerate_tracking.WandBTracker.log, True

    def log(self, values, step=None, **kwargs):
        if not working:
            raise ConnectionError("no network\nand more")
        broken(self, values, step=step)

    monkeypatch.setattr(accelerate_tracking.WandBTracker, "log", log)
    working = False
    lines = track_run(folder, ["wandb", "trackio"], tmp_path / "into")
    assert lines == ["wandb did not take lora-r8-s0-ab (ConnectionError: no network)"]
    assert fakes["wandb"][-1] == ("finish",) and len(fakes["trackio"]) == 7
    working = True
    assert track_run(folder, ["wandb", "trackio"], tmp_path / "into") == []
    assert fakes["wandb"][-2][1]["eval/accuracy"] == 0.75 and len(fakes["trackio"]) == 7


def test_a_long_history_is_thinned_and_keeps_its_end(tmp_path):
    file = tmp_path / "history.csv"
    file.write_text("step,epoch,loss\n" + "".join(f"{i},1,0.5\n" for i in range(1, 2502)))
    steps = [step for step, _ in run_history(file)]
    assert steps[:3] == [1, 4, 7] and steps[-1] == 2501 and len(steps) <= 1001


def test_a_training_that_diverged_at_once_has_no_steps(tmp_path):
    file = tmp_path / "history.csv"
    file.write_text(HISTORY.splitlines()[0] + "\n")
    assert list(run_history(file)) == []


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch, name):
    real = importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda p: None if p == name else real(p))
    with pytest.raises(UsageError) as caught:
        check_trackers([name])
    assert str(caught.value) == (
        f"--track {name} must have its package installed. Got no {name}. Run pip install {name}."
    )
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda p: None)
    with pytest.raises(UsageError, match=f"Got no accelerate and no {name}. Run pip install accelerate {name}"):
        check_trackers([name])
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda p: object())
    check_trackers(TRACKERS)


def test_sweep_refuses_before_it_trains(bench, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda p: None if p == "wandb" else real(p))
    refused(rankprobe(*SWEEP, "--r", "1", "--track", "wandb"), 2, "--track wandb must have its package installed")
    assert not (bench / "runs").exists()


def test_sweep_tracks_each_run_once_though_it_is_taken_up_again(bench, no_pictures, fakes, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda p: object())
    command = (*SWEEP, "--r", "1", "--no-full", "--track", "tensorboard", "--out", "results")
    for _ in range(2):
        assert rankprobe(*command).exit_code == 0
    assert sorted(note[1][0] for note in fakes["tensorboard"] if note[0] == "init") == sorted(
        path.parent.name for path in (bench / "runs").glob("*/run.json")
    )
    logged = [step for step, *_ in fakes["tensorboard"] if isinstance(step, int)]
    assert logged == 2 * [1, 2, 3, 4, 5, 5]


def test_one_run_is_tracked_beside_the_store_once(bench, fakes, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda p: object())
    for _ in range(2):
        assert rankprobe(*FINETUNE, "--method", "head", "--track", "tensorboard").exit_code == 0
    (name, kept), *more = [note[1:] for note in fakes["tensorboard"] if note[0] == "init"]
    assert not more and (bench / "runs" / name[0] / "run.json").exists()
    assert "runs/trackers" in str(kept) + str(name)


def test_tensorboards_own_files(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def refuse(*args):
        raise AssertionError("TensorBoard is local, and asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert track_run(make_run(tmp_path / "runs"), ["tensorboard"], tmp_path / "into") == []
    events = EventAccumulator(str(tmp_path / "into" / "tensorboard" / "lora-r8-s0-ab")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert [(e.step, e.value) for e in events.Scalars("eval/accuracy")] == [(2, 0.75)]
