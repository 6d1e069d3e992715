"""A finished run's model whose updates can be cut to any ranks, and its rows' losses then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from rankprobe.analysis.cut_updates import UpdateSVD, decompose_updates
from rankprobe.errors import UsageError, must
from rankprobe.experiment.models import load_base, load_trained, set_threads, snapshot
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.methods.full import full_deltas
from rankprobe.methods.lora import lora_deltas, unload_lora
from rankprobe.tasks.task import Example
from rankprobe.training.batches import encode
from rankprobe.training.block_outputs import BlockOutputs, find_blocks
from rankprobe.training.row_losses import row_losses
from rankprobe.weights.architecture import block_sites, model_config, model_shapes
from rankprobe.weights.run_folder import read_run, trained_weights
from rankprobe.weights.targets import target_sites

BATCH = 64


class CutModel:
    """A run's model with the SVD of every update inside its blocks.

    Parameters
    ----------
    run : PlannedRun
        Finished, with its weights.
    targets : str, optional
        Keep the updates of these matrices whole and speak of the others only: short names or a regular expression, as
        for LoRA. The default is all that the run changed.

    Attributes
    ----------
    updates : list of UpdateSVD
        Those that can be cut, in the model's order.
    scaling : float
        alpha / r of a LoRA run; 2 for others.

    Raises
    ------
    UsageError
        If the run changed no matrix, its weights are not here, or targets name none that it changed.
    """

    def __init__(self, run: PlannedRun, targets: str | None = None) -> None:
        trained_weights(read_run(run.folder))  # a clear refusal before anything is loaded
        spec, task = run.spec, run.task
        set_threads(spec.threads)
        base, self.tokenizer, self.head = load_base(spec, run.source, task)
        self._W0, config = snapshot(base), model_config(base)
        trained = load_trained(run.folder, spec, run.source, task)
        deltas = list(lora_deltas(trained.layers, config=config))
        for layer in trained.layers.values():
            layer.merge()
        unload_lora(trained.model)
        self.model, self.run = trained.model.eval(), run
        self._W1 = snapshot(self.model)
        self._parameters = dict(self.model.named_parameters())
        shapes = model_shapes(self.model)
        sites = block_sites(shapes, config=config)
        deltas = deltas or full_deltas(self._W0, self._W1, config=config)
        # A matrix that did not change has nothing to cut.
        updates = [u for u in decompose_updates(self._W0, self._W1, deltas, sites) if float(u.S[0]) > 0]
        if targets is not None:
            wanted = {site.name for site in target_sites(shapes, targets, config=config)}
            updates = [update for update in updates if update.site.name in wanted]
        if not updates:
            got = "no change in any of them" if targets is None else f"no change in {targets}"
            next_step = "Pass --targets that the run trained" if targets else "Pass another run"
            raise UsageError(must(f"The run {run.run_id}", "have changed matrices of its blocks", got, next_step))
        self.updates = updates
        self._by_name = {update.site.name: update for update in updates}
        self.scaling = spec.alpha / spec.r if spec.method == "lora" else 2.0
        blocks = find_blocks(self.model, [update.site.parameter for update in updates])
        self._outputs = None if blocks is None else BlockOutputs(blocks)
        self._checked = False

    def encode(self, examples: Sequence[Example]) -> list[dict]:
        """Token ids, as the run's own rows were cut."""
        return encode(self.tokenizer, examples, self.run.spec.max_length, problem=self.run.task.problem)

    def losses(self, rows: Sequence[dict], labels: Sequence[float]) -> np.ndarray:
        """Loss of each row, shape (n,), with the weights as they are now."""
        return row_losses(self.model, rows, labels, self.tokenizer.pad_token_id, problem=self.run.task.problem,
                          dtype=self.run.spec.dtype, batch_size=BATCH)  # fmt: skip

    @contextmanager
    def cut(self, ranks: Mapping[str, int]) -> Iterator[None]:
        """Inside, the named updates keep only their best part of so many directions; W1 again after, bit for bit."""
        try:
            for name, k in ranks.items():
                self._set(self._by_name[name], k)
            yield
        finally:
            for name in ranks:
                update = self._by_name[name]
                self._set(update, len(update.S))

    def ladder_losses(
        self, rows: Sequence[dict], labels: Sequence[float], cuts: Sequence[tuple[str, int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Losses of one batch of rows whole, shape (n,), and with one update cut at a time, shape (len(cuts), n).

        Blocks before the one that holds the cut matrix are not computed again, where the model's structure allows:
        their outputs are those of the whole model.
        """
        if self._outputs is None:
            whole = self.losses(rows, labels)
        else:
            with self._outputs.record():
                whole = self.losses(rows, labels)
            self._check(rows, labels, whole)
        found = np.empty((len(cuts), len(rows)))
        for i, (name, k) in enumerate(cuts):
            with self.cut({name: k}):
                if self._outputs is None:
                    found[i] = self.losses(rows, labels)
                else:
                    with self._outputs.skip(self._by_name[name].site.layer):
                        found[i] = self.losses(rows, labels)
        return whole, found

    def share_computed(self, name: str) -> float:
        """Share of the blocks that a cut in a matrix computes again."""
        if self._outputs is None:
            return 1.0
        count = len(self._outputs.blocks)
        return (count - self._by_name[name].site.layer) / count

    def _check(self, rows: Sequence[dict], labels: Sequence[float], whole: np.ndarray) -> None:
        """Once, on the first batch: going on from kept outputs must give the very losses, or it is not done."""
        if self._checked:
            return
        self._checked = True
        same = self._outputs.usable
        if same:
            with self._outputs.skip(len(self._outputs.blocks) // 2):
                same = bool(np.array_equal(self.losses(rows, labels), whole))
        if not same:
            self._outputs = None

    @torch.no_grad()
    def _set(self, update: UpdateSVD, k: int) -> None:
        site = update.site
        stored = self._parameters[site.parameter]
        if k == 0:
            kept = site.get(self._W0[site.parameter])
        elif k < len(update.S):
            kept = site.get(self._W0[site.parameter]).to(update.S.dtype) + update.best(k)
        else:
            kept = site.get(self._W1[site.parameter])
        site.set_(stored, kept)
