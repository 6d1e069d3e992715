"""Functional rank of a finished run: accuracy after cutting every block update to rank k. truncation.csv."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rankprobe.analysis.cut_updates import RULES, decompose_updates, most_directions
from rankprobe.analysis.functional_rank import functional_ranks
from rankprobe.analysis.truncation import truncation_curve, truncation_ks
from rankprobe.experiment.models import load_base, load_trained, set_threads, snapshot
from rankprobe.experiment.observer import Observer, Silent
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.runs import task_score
from rankprobe.experiment.store import ERROR_FILE, lock, write_table
from rankprobe.methods.full import full_deltas
from rankprobe.methods.lora import lora_deltas, unload_lora
from rankprobe.tasks.metrics import truncation_metric
from rankprobe.training.batches import encode
from rankprobe.training.evaluate import predict
from rankprobe.weights.architecture import block_sites, model_config, model_shapes

CURVE_FILE, RANK_FILE = "truncation.csv", "functional_rank.csv"


def truncation_done(run: PlannedRun) -> bool:
    """Whether a run's functional rank is there; it is written last."""
    return (run.folder / RANK_FILE).is_file()


def measure_truncation(run: PlannedRun, observer: Observer | None = None) -> pd.DataFrame:
    """Measure accuracy against kept rank on a finished run's own evaluation rows, in its dtype.

    Writes truncation.csv after every point, then functional_rank.csv. LoRA changes nothing but the blocks' weights and
    the head, so that only the rule ``rest_tuned`` says something there. With the rule ``rest_tuned`` the point at
    k = p is the run's own model.

    Parameters
    ----------
    run : PlannedRun
        Finished, with its weights kept; method full or lora.
    observer : Observer, optional

    Returns
    -------
    DataFrame
        functional_rank.csv: a row a rule and q (0.9, 0.99); what is there already is read.

    Raises
    ------
    LockedError
        If another process holds the run's folder.
    """
    observer = observer or Silent()
    with lock(run.folder):
        if truncation_done(run):  # another process may have ended it just now
            return pd.read_csv(run.folder / RANK_FILE)
        (run.folder / ERROR_FILE).unlink(missing_ok=True)
        return _measure(run, observer)


def _measure(run: PlannedRun, observer: Observer) -> pd.DataFrame:
    spec, task = run.spec, run.task
    set_threads(spec.threads)
    trained = load_trained(run.folder, spec, run.source, task)
    config, factored = model_config(trained.model), bool(trained.layers)
    if factored:
        deltas = list(lora_deltas(trained.layers, config=config))
        for layer in trained.layers.values():
            layer.merge()
        unload_lora(trained.model)
    W1 = snapshot(trained.model)
    del trained  # before the base is loaded: a device that can train one model may not hold two
    base, tokenizer, head = load_base(spec, run.source, task)
    W0 = snapshot(base)
    if not factored:
        deltas = full_deltas(W0, W1, config=config)
    sites = block_sites(model_shapes(base), config=config)
    updates = decompose_updates(W0, W1, deltas, sites)
    rows = encode(tokenizer, task.eval, spec.max_length, problem=task.problem)
    labels = [e.label for e in task.eval]

    def evaluate(state: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        _load(base, state)
        found = predict(base, rows, labels, tokenizer.pad_token_id, problem=task.problem, dtype=spec.dtype)
        return found.labels, found.predictions

    score, metric = task_score(task), truncation_metric(task.metrics[0]).replace("_", " ")
    ks = truncation_ks(most_directions(updates))
    rules = RULES[:1] if factored else RULES
    points = []
    for point in truncation_curve(W0, W1, updates, evaluate, score, head=head, ks=ks, rules=rules):
        points.append(point)
        observer.stage("truncate", len(points), len(ks) * len(rules), f"k={point.k} {metric} {point.score:.3f}")
        write_table(run.folder / CURVE_FILE, pd.DataFrame([p.row() for p in points]))
    ranks = pd.DataFrame([found.row() for found in functional_ranks(points, score)])
    write_table(run.folder / RANK_FILE, ranks)
    return ranks


@torch.no_grad()
def _load(model: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Copy parameters into a model by name."""
    for name, parameter in model.named_parameters():
        parameter.copy_(state[name])
