"""A rankprobe run's folder as a source of weights: what was trained, and from which base."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rankprobe.errors import RankprobeError, UsageError, must
from rankprobe.weights.source import find_model

# As rankprobe.experiment writes them, which is a layer above.
RUN_FILE, MODEL_FOLDER, ADAPTER_FOLDER = "run.json", "model", "adapter"
# Methods that change the base's own matrices leave a whole model; the others, LoRA apart, add to a frozen base.
WHOLE_MODEL = ("full", "top_layers", "did", "said")
_ADDED = ("head", "bitfit", "adapter_h", "adapter_l", "prompt", "prefix")


@dataclass(frozen=True)
class TrainedRun:
    """What a run's record says about its weights.

    Attributes
    ----------
    folder : Path
    run_id : str
    method : str
        ``full``, ``lora``, ``head`` or another that rankprobe trains.
    weights_kept : bool
    model_name, model_sha256 : str
        Of the base.
    """

    folder: Path
    run_id: str
    method: str
    weights_kept: bool
    model_name: str
    model_sha256: str


def run_folder(where: object, runs: Path) -> Path | None:
    """The folder of a run that is given by its folder or by its name in the run store; None for anything else."""
    if not isinstance(where, str | Path):
        return None
    folders = [Path(where).expanduser()]
    if len(folders[0].parts) == 1:
        folders.append(Path(runs).expanduser() / where)
    try:
        return next((folder for folder in folders if (folder / RUN_FILE).is_file()), None)
    except (OSError, ValueError):  # a name too long for the file system, or with a null in it
        return None


def read_run(folder: Path) -> TrainedRun | None:
    """A run's record; None where run.json is another program's.

    Raises
    ------
    UsageError
        If it is no JSON, or the record of a run that failed, diverged or trained nothing.
    """
    file = folder / RUN_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        got = " ".join(str(error).split())[:160]
        raise UsageError(must(f"{file}", "be a record that rankprobe wrote", got, "Run it again")) from None
    if not isinstance(record, dict) or record.get("schema") != 1 or not isinstance(record.get("run_id"), str):
        return None
    run_id, status, kind = record["run_id"], record.get("status"), record.get("kind")
    if kind != "train":
        got = f"one of kind {kind}"
        raise UsageError(must(f"The run {run_id}", "be one that trained a model", got, "Pass a training run"))
    if status != "ok":
        rule = "have ended well"
        raise UsageError(must(f"The run {run_id}", rule, f"status {status}", "Pass another run, or run it again"))
    spec, model = record.get("spec"), record.get("model")
    method = spec.get("method") if isinstance(spec, dict) else None
    base = [model.get(key) if isinstance(model, dict) else None for key in ("name", "sha256")]
    if method not in (*WHOLE_MODEL, "lora", *_ADDED) or not all(isinstance(text, str) and text for text in base):
        got = "no method of training or no base model in it"
        raise UsageError(must(f"{file}", "be a record that rankprobe wrote", got, "Run it again"))
    return TrainedRun(folder, run_id, method, record.get("weights_kept") is True, *base)


def trained_weights(run: TrainedRun) -> Path:
    """The folder with what a run trained: a whole model's, or an adapter's.

    Raises
    ------
    UsageError
        If the run changed no matrix of its base, or the weights were dropped or are not here.
    """
    if run.method not in (*WHOLE_MODEL, "lora"):
        got = "a head alone, on a frozen base" if run.method == "head" else f"{run.method}, on a frozen base"
        next_step = "Pass a run of full fine-tuning or LoRA"
        raise UsageError(must(f"The run {run.run_id}", "have changed the model's matrices", got, next_step))
    folder = run.folder / (ADAPTER_FOLDER if run.method == "lora" else MODEL_FOLDER)
    if folder.is_dir():
        return folder
    table = run.folder / "ranks.csv"
    got = f"no {folder.name} in {run.folder}" if run.weights_kept else "a run whose weights were dropped"
    got += f" ({table} holds its ranks)" if table.is_file() else ""
    next_step = "Copy the whole folder" if run.weights_kept else "Run it again without --drop-weights"
    raise UsageError(must(f"The run {run.run_id}", "have its weights beside its record", got, next_step))


def base_of(where: object, runs: str | Path = "runs", *, offline: bool = True) -> Path | str | None:
    """Where the base of a rankprobe run is on this machine; it is the very one, by its sha256.

    Parameters
    ----------
    where : object
        As for :func:`rankprobe.weights.inputs.open_input`.
    runs : Path
        Where runs are looked for by name.
    offline : bool
        Look on this machine only: a run knows its base's name, and the hub may have another model of that name.

    Returns
    -------
    Path, str or None
        A folder, or a name that open_input takes. None for what is no run, and for a run of LoRA, which needs no
        base, where it cannot be found.

    Raises
    ------
    UsageError
        If the run of a whole model has a base that is not on this machine.
    """
    folder = run_folder(where, Path(runs))
    run = None if folder is None else read_run(folder)
    if run is None:
        return None
    try:
        source = find_model(run.model_name, offline=offline)
        why = None if source.sha256 == run.model_sha256 else f"{run.model_name} with other weights, at {source.path}"
    except RankprobeError:
        why = f"no {run.model_name} here"
    if why is None:
        return source.path if source.origin == "path" else source.name
    if run.method == "lora":
        return None
    rule = f"be the model that the run {run.run_id} started from"
    raise UsageError(must("BASE", rule, why, f"Pass BASE, the folder of {run.model_name}"))
