"""``--track``: finished runs go to TensorBoard, Weights & Biases, MLflow or Trackio, through accelerate's trackers.

A run is replayed from its folder once it has ended, wherever it was trained: on this machine, in another process or on
another node. A marker in the folder (hidden, and so no part of the record) remembers where it went, so that a sweep
that is taken up again logs no run twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rankprobe.errors import UsageError, must

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
# Rows of a training's history that a tracker gets at most: some write every row to disk at once.
_ROWS = 1000
_PROJECT = "rankprobe"


def track_option(into: str) -> Callable:
    """``--track``, for a command that keeps what trackers write in a folder that ``into`` names: ``OUT/trackers``."""
    return click.option(
        "--track",
        "trackers",
        type=click.Choice(TRACKERS),
        multiple=True,
        help=f"Log finished runs there too; repeat for more. Everything stays in {into}, nothing is sent, unless the "
        "tracker's own environment variables say otherwise.",
    )


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed, before anything is trained.

    Raises
    ------
    UsageError
    """
    for name in names:
        missing = [package for package in ("accelerate", name) if importlib.util.find_spec(package) is None]
        if missing:
            rule = f"have its {'packages' if len(missing) > 1 else 'package'} installed"
            raise UsageError(must(f"--track {name}", rule, f"no {' and no '.join(missing)}",
                                  f"Run pip install {' '.join(missing)}"))  # fmt: skip


def track_run(folder: Path, names: Sequence[str], into: Path) -> list[str]:
    """Log a finished run to trackers: settings, its history step by step, and its metrics, under its run_id.

    Parameters
    ----------
    folder : Path
        A run folder. One that is not finished, or that went to the tracker before, is left alone.
    names : sequence of str
        Of :data:`TRACKERS`.
    into : Path
        A folder for what trackers keep on this machine: ``tensorboard/<run_id>``, ``wandb``, ``mlflow``, ``trackio``.

    Returns
    -------
    list of str
        A line for each tracker that failed; a run is not lost for that, and the next call tries again.

    Notes
    -----
    ``WANDB_MODE`` is offline, and MLflow's and Trackio's folders are inside ``into``, unless the environment says
    otherwise (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ``TRACKIO_DIR``, ``TRACKIO_SPACE_ID``, ...). Of a history longer
    than 1,000 steps every second, third, ... step is logged, and the last.
    """
    from rankprobe.experiment.store import finished

    record, lines = finished(folder), []
    if record is None or record["kind"] != "train":
        return lines
    for name in names:
        mark = folder / f".tracked-{name}-{_destination(name, into)}"
        if mark.exists():
            continue
        heard = io.StringIO()  # trackers greet, and say where to look at what they got
        try:
            with (
                contextlib.redirect_stdout(heard),
                contextlib.redirect_stderr(heard),
                _environment(_defaults(name, into)),
            ):
                _log_to(name, record, folder / "history.csv", into)
            mark.touch()
        except Exception as error:  # whatever a tracker may raise: network, disk, a version that differs
            reason = (str(error).strip().splitlines() or [""])[0]
            lines.append(f"{name} did not take {record['run_id']} ({type(error).__name__}: {reason})")
    return lines


def run_config(record: dict) -> dict[str, str | int | float | bool]:
    """What a run was: its spec, its parameters' counts and where they were counted, flat, without what is unset.

    >>> run_config({"status": "ok", "spec": {"r": 8, "lr": 0.1, "alpha": None}, "params": {"trainable": 3},
    ...             "model": {"sha256": "ab"}, "task": {"sha256": "cd"}})
    {'r': 8, 'lr': 0.1, 'params/trainable': 3, 'model_sha256': 'ab', 'task_sha256': 'cd', 'status': 'ok'}
    """
    config = dict(record["spec"]) | {f"params/{key}": value for key, value in record["params"].items()}
    config |= {f"{what}_sha256": record[what]["sha256"] for what in ("model", "task")} | {"status": record["status"]}
    plain = (str, int, float, bool)
    return {
        key: value if isinstance(value, plain) else str(value) for key, value in config.items() if value is not None
    }


def run_history(file: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps of a training and their finite figures: ``train/loss``, ``train/lr``, ``train/grad_norm``, ``epoch``."""
    import pandas as pd

    table = pd.read_csv(file)
    stride = math.ceil(len(table) / _ROWS)
    for number, row in enumerate(table.to_dict("records")):
        if number % stride == 0 or number == len(table) - 1:
            figures = {key if key == "epoch" else f"train/{key}": float(v) for key, v in row.items() if key != "step"}
            yield int(row["step"]), {key: value for key, value in figures.items() if math.isfinite(value)}


def _log_to(name: str, record: dict, history: Path, into: Path) -> None:
    tracker = _tracker(name, record["run_id"], into)
    tracker.start()
    try:
        tracker.store_init_configuration(run_config(record))
        step = 0
        for step, figures in run_history(history):
            tracker.log(figures, step=step)
        end = {f"eval/{key}": value for key, value in record["metrics"].items()} | record["timings"]
        tracker.log({key: float(value) for key, value in end.items() if value is not None}, step=step)
    finally:
        tracker.finish()


def _tracker(name: str, run_id: str, into: Path) -> GeneralTracker:
    """accelerate's tracker; it has not started."""
    from accelerate import PartialState, tracking

    PartialState(cpu=True)  # accelerate's trackers ask it which process they are in
    into.mkdir(parents=True, exist_ok=True)
    if not (into / ".gitignore").exists():  # trackers note paths of this machine
        (into / ".gitignore").write_text("*\n", encoding="utf-8")
    if name == "tensorboard":
        shutil.rmtree(into / name / run_id, ignore_errors=True)  # half of a run, from a sweep that was killed
        return tracking.TensorBoardTracker(run_id, into / name)
    if name == "wandb":
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        return tracking.WandBTracker(project, name=run_id, dir=str(into), reinit="finish_previous")
    if name == "mlflow":
        (into / name).mkdir(exist_ok=True)
        local = os.environ["MLFLOW_TRACKING_URI"] == _defaults(name, into)["MLFLOW_TRACKING_URI"]
        artifacts = (into / name / "artifacts").resolve().as_uri() if local else None  # ./mlruns without
        return tracking.MLflowTracker(_PROJECT, artifacts, run_name=run_id)
    return tracking.TrackioTracker(_PROJECT, name=run_id, auto_log_gpu=False, auto_log_cpu=False)


def _defaults(name: str, into: Path) -> dict[str, str]:
    """Environment variables that keep a tracker on this machine, quiet."""
    if name == "wandb":
        return {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
    if name == "mlflow":
        # MLflow 3 refuses its old store of files; a path in sqlite:/// is absolute with a fourth slash.
        return {"MLFLOW_TRACKING_URI": f"sqlite:///{(into / name / 'mlflow.db').resolve()}"}
    return {"TRACKIO_DIR": str((into / name).resolve())} if name == "trackio" else {}


@contextlib.contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    """The environment with what the user left unset, for a block."""
    added = {key: value for key, value in defaults.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def _destination(name: str, into: Path) -> str:
    """A short hash of where a tracker's runs go; another place gets them anew."""
    where = {
        "tensorboard": (),
        "wandb": ("WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT"),
        "mlflow": ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"),
        "trackio": ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"),
    }
    settings = _defaults(name, into) | dict(os.environ)
    place = [settings.get(key, "") for key in where[name]]
    if name == "tensorboard" or (name == "wandb" and settings["WANDB_MODE"] == "offline"):
        place.append(str(into.resolve()))
    return hashlib.sha256("\n".join(place).encode()).hexdigest()[:8]
