"""One run, crash-safe: train, predict, decompose, and only then write run.json."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pandas as pd

from rankprobe.analysis.bootstrap import accuracy
from rankprobe.analysis.spectrum import spectrum
from rankprobe.errors import must
from rankprobe.experiment.models import (
    Prepared,
    count_parameters,
    load_base,
    prepare,
    save_trained,
    set_threads,
    snapshot,
)
from rankprobe.experiment.observer import HELD_OUT, Observer, Silent
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.record import attempt, header
from rankprobe.experiment.redo import place_for
from rankprobe.experiment.spec import training_settings
from rankprobe.experiment.store import files_of, finished, lock, write_table
from rankprobe.methods.full import full_deltas
from rankprobe.methods.head import head_modules
from rankprobe.methods.lora import lora_deltas
from rankprobe.tasks.metrics import score, truncation_metric
from rankprobe.tasks.task import Task
from rankprobe.training.batches import encode
from rankprobe.training.early_stop import HeldOut
from rankprobe.training.evaluate import Predictions, predict
from rankprobe.training.train import HISTORY, TrainResult, train
from rankprobe.weights.architecture import model_config
from rankprobe.weights.delta import Delta

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def execute(
    run: PlannedRun, *, keep_weights: bool = True, need_weights: bool = False, observer: Observer | None = None
) -> dict:
    """Do a run, or return its record where it is finished already.

    Parameters
    ----------
    run : PlannedRun
    keep_weights : bool
        Keep what was trained (model, adapter or head) in the folder.
    need_weights : bool
        A finished run that dropped what it trained is done again; what it left stays until that has ended well.
    observer : Observer, optional

    Returns
    -------
    dict
        run.json's content. Its status is ``ok``, ``diverged``, or ``failed`` where something went wrong that no check
        foresaw (the error is in the record; a failed run is redone by the next call).

    Raises
    ------
    UsageError
        If the spec does not fit the model (a target that matches nothing, r out of range); nothing is recorded.
    LockedError
        If another process holds the folder.
    OSError
        If the disk is full or the folder cannot be written.
    """
    done = finished(run.folder, need_weights=need_weights)
    if done:
        return done
    with lock(run.folder):
        done = finished(run.folder, need_weights=need_weights)  # another process may have ended it just now
        if done:
            return done
        with place_for(run) as place:
            return attempt(place, header(place), lambda: work(place, keep_weights, observer or Silent()))


def trained_predictions(run: PlannedRun, prepared: Prepared, observer: Observer | None = None) -> Predictions:
    """The model's predictions on the task's evaluation rows, in the run's dtype."""
    observer = observer or Silent()
    rows = encode(prepared.tokenizer, run.task.eval, run.spec.max_length, problem=run.task.problem)
    return predict(
        prepared.trainee,
        rows,
        [e.label for e in run.task.eval],
        prepared.tokenizer.pad_token_id,
        problem=run.task.problem,
        dtype=run.spec.dtype,
        progress=lambda done, total: observer.stage("evaluate", done, total),
    )


def task_score(task: Task) -> Callable:
    """What a task is scored by as ``(labels, predictions) -> float``, more is better.

    The main metric; of a language model, whose perplexity is not a matter of predictions, the share of tokens it has
    right.
    """
    main = truncation_metric(task.metrics[0])
    if main == "accuracy":
        return accuracy  # the bootstrap knows this very function and resamples counts instead of rows
    return lambda labels, predictions: score((main,), labels, predictions, None)[main]


def work(run: PlannedRun, keep_weights: bool, observer: Observer) -> dict:
    """Train, predict, decompose; everything but run.json is written here, and what it needs to say returned."""
    spec, task = run.spec, run.task
    set_threads(spec.threads)
    prepared = prepare(spec, run.source, task)
    params = count_parameters(prepared)
    rows = encode(prepared.tokenizer, task.train, spec.max_length, problem=task.problem)
    result = train(
        prepared.trainee,
        rows,
        [e.label for e in task.train],
        prepared.tokenizer.pad_token_id,
        lr=spec.lr,
        epochs=spec.epochs,
        seed=spec.seed,
        problem=task.problem,
        held_out=held_out_rows(run, prepared.tokenizer, observer),
        progress=lambda done, total, loss: observer.stage("train", done, total, f"loss {loss:.3f}"),
        **training_settings(spec),
    )
    return complete(run, prepared, params, result, keep_weights, observer)


def held_out_rows(run: PlannedRun, tokenizer: PreTrainedTokenizerBase, observer: Observer) -> HeldOut | None:
    """The rows that a run's training is watched by; None where it is not to stop early."""
    spec, task = run.spec, run.task
    if spec.patience is None:
        return None
    return HeldOut(
        encode(tokenizer, task.held_out, spec.max_length, problem=task.problem),
        [e.label for e in task.held_out],
        tokenizer.pad_token_id,
        spec.patience,
        problem=task.problem,
        dtype=spec.dtype,
        progress=lambda done, total: observer.stage(HELD_OUT, done, total),
    )


def complete(
    run: PlannedRun,
    prepared: Prepared,
    params: dict[str, int],
    result: TrainResult,
    keep_weights: bool,
    observer: Observer,
) -> dict:
    """What follows a run's training: predictions, spectra, weights and all its files but run.json; the record's rest.

    Parameters
    ----------
    run : PlannedRun
    prepared : Prepared
        With what was trained.
    params : dict of str to int
        From :func:`rankprobe.experiment.models.count_parameters`.
    result : TrainResult
    keep_weights : bool
    observer : Observer
    """
    spec, task = run.spec, run.task
    write_table(run.folder / "history.csv", pd.DataFrame(result.history, columns=HISTORY))
    record = {
        "status": result.status,
        "error": result.error,
        "params": params,
        "head_modules": head_modules(prepared.model, prepared.head),
        "metrics": {},
        "weights_kept": False,
        "timings": _timings(result),
    }
    if spec.patience is not None:
        record["early_stop"] = {"n_rows": len(task.held_out), "best_epoch": result.best_epoch,
                                "held_out_losses": result.held_out_losses}  # fmt: skip
    if record["status"] == "ok":
        start = time.perf_counter()
        predicted = trained_predictions(run, prepared, observer)
        record["timings"]["eval_time_s"] = time.perf_counter() - start
        # The loop sees a step's loss before the step: what the last one did shows here.
        if not (math.isfinite(predicted.loss) and all(bool(p.isfinite().all()) for p in prepared.trainee.parameters())):
            got = "NaN or inf after the last step"
            error = must("weights and predictions", "be finite", got, "Lower the learning rate")
            record |= {"status": "diverged", "error": error}
    if record["status"] == "ok":
        metrics = _metrics(task, predicted)
        if infinite := [name for name, value in metrics.items() if math.isinf(value)]:  # a perplexity, exp(loss)
            error = must(infinite[0], "be finite", "inf after the last step", "Lower the learning rate")
            record |= {"status": "diverged", "error": error}
    if record["status"] == "ok":
        record["metrics"] = metrics
        write_table(
            run.folder / "predictions.csv",
            pd.DataFrame(
                {
                    "row": [e.row for e in task.eval],
                    "label": predicted.labels,
                    "prediction": predicted.predictions,
                    "score": predicted.scores,
                }
            ),
        )
        deltas = _deltas(run, prepared)
        if deltas is not None:
            ranks, spectra = spectrum(deltas, progress=lambda delta: observer.stage("svd", 0, 0, delta.name))
            write_table(run.folder / "ranks.csv", ranks)
            write_table(run.folder / "spectra.csv", spectra)
        if keep_weights:
            save_trained(prepared, spec, run.source, run.folder)
            record["weights_kept"] = True
    record["files"] = files_of(run.folder)
    return record


def _deltas(run: PlannedRun, prepared: Prepared) -> Iterator[Delta] | None:
    """The updates of the matrices that a run trained; None where there are none, or a random subspace made them."""
    config = model_config(prepared.model)
    if prepared.layers:
        return lora_deltas(prepared.layers, config=config)
    if run.spec.method not in ("full", "top_layers"):
        return None
    # W0 is loaded again rather than kept: a copy would count as full fine-tuning's memory.
    W0, W1 = snapshot(load_base(run.spec, run.source, run.task)[0]), snapshot(prepared.model)
    trained = [name for name, p in prepared.model.named_parameters() if p.requires_grad]
    return full_deltas({name: W0[name] for name in trained}, {name: W1[name] for name in trained}, config=config)


def _timings(result: TrainResult) -> dict:
    seconds = result.train_time_s
    return {
        "train_time_s": seconds,
        "steps": len(result.history),
        "tokens": result.tokens,
        "tokens_per_s": result.tokens / seconds if seconds else 0.0,
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def _metrics(task: Task, predicted: Predictions) -> dict:
    scores = score(task.metrics, predicted.labels, predicted.predictions, predicted.scores)
    return {**scores, "loss": predicted.loss}
