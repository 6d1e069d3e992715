"""Full fine-tuning in, LoRA adapter out: the best rank-k part of every update, and all else that changed beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rankprobe import __version__
from rankprobe.analysis.choose_ranks import Rule
from rankprobe.analysis.extract_adapter import contents_of_adapter, layout_of_adapter
from rankprobe.analysis.extract_layout import EMBEDDINGS, Layout
from rankprobe.analysis.extract_matrices import COLUMNS, decompose, kept_shares, nothing_kept, why_none
from rankprobe.analysis.extract_model import layout_of_model
from rankprobe.analysis.extract_text import extraction_readme, hub_name, labels_of
from rankprobe.analysis.extract_work import RECORD_FILE, Work, find_earlier, read_record
from rankprobe.analysis.extract_write import Contents, contents_of_model
from rankprobe.errors import RankprobeError, UsageError, must
from rankprobe.weights.factors import AdapterSource
from rankprobe.weights.pair import NameFilter
from rankprobe.weights.pairing import Matrix, Pairing
from rankprobe.weights.write_adapter import DTYPES, write_files, write_text

if TYPE_CHECKING:
    import pandas as pd

    from rankprobe.weights.checkpoint import Checkpoint

TABLE_FILE, README_FILE = "extraction.csv", "README.md"


@dataclass(frozen=True)
class Extraction:
    """What was extracted.

    Attributes
    ----------
    rows : list of dict
        One a matrix: :data:`rankprobe.analysis.extract_matrices.COLUMNS`. ``kept_energy`` and ``relative_error`` are
        shares of the matrix's own ΣS² and norm, ``residual`` is ``||dW - B @ A||_F`` of the factors as they are stored.
    beside : list of dict
        What is carried beside factors: name, how, why, parameters, change (a norm; None where there is no base's).
    lost : list of dict
        What changed and is not carried: name, why, change.
    left_out : list of str
        Names that ``include`` and ``exclude`` left out.
    notes : list of str
        One line each, for people.
    summary : dict
        ``rule``, ``parameters`` (of the factors), ``beside_parameters``, ``size_bytes`` (of all tensors),
        ``tuned_bytes`` (of TUNED's), ``kept_energy`` (of all matrices that could have factors), ``kept_of_all`` (of
        every change on both sides that was measured), ``budget_slack``, ``task_type``, ``architecture``,
        ``num_labels`` (None where they do not matter), ``base``, ``base_model``, ``tuned``, ``dtype``.
    folder : Path or None
        None after a dry run.
    """

    rows: list[dict]
    beside: list[dict]
    lost: list[dict]
    left_out: list[str]
    notes: list[str]
    summary: dict
    folder: Path | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        where = f" in {self.folder}" if self.folder is not None else ""
        said = f"{self.summary['parameters']:,} parameters, {self.summary['kept_energy']:.2%} of the energy"
        return f"Extraction of {self.summary['tuned']} by {self.summary['rule']}: {said}{where}"

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a DataFrame, a row a matrix."""
        import pandas as pd

        table = pd.DataFrame(self.rows, columns=list(COLUMNS))
        return table.astype({"layer": "Int64", "storage_rank": "Int64"})


def extract(
    pairing: Pairing,
    out: str | Path | None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    noise: bool = False,
    budget: int | None = None,
    embeddings: str = "lora",
    include: str | None = None,
    exclude: str | None = None,
    dtype: str = "float32",
    base_model: str = "",
    base_rounded: bool = False,
    device: str = "cpu",
    overwrite: bool = False,
    command: str = "",
    progress: Callable[[Matrix], None] | None = None,
) -> Extraction:
    """Write a LoRA adapter that makes of the base what TUNED is, as far as so many directions can.

    Parameters
    ----------
    pairing : Pairing
        Of base and tuned model, or of an adapter that is to be resized (with a base or without), made with
        ``fused=True`` and no name filtered out.
    out : Path or None
        A new or empty folder, or an earlier extraction of the same models. None computes all and writes nothing.
    rank, energy, noise, budget
        One of them; see :class:`rankprobe.analysis.choose_ranks.Rule`.
    embeddings : str
        ``lora`` gives changed embeddings factors as well (and saves those whole whose lookup is no plain one),
        ``whole`` saves all changed ones, ``drop`` leaves them as in the base.
    include, exclude : str, optional
        Regular expressions on names: which matrices, norms and biases are carried. Task heads always are.
    dtype : str
        Of the factors: ``float32``, ``bfloat16`` or ``float16``. What is carried whole keeps TUNED's.
    base_model : str
        The base's name on the hub, for adapter_config.json; never a path. That of an adapter that is resized stays.
    base_rounded : bool
        Count the rounding of the base as well, with ``noise``.
    device : str
        Where the decompositions are done.
    overwrite : bool
        Replace an earlier extraction of other models or settings.
    command : str
        For the README.
    progress : callable, optional
        Called with each matrix before it is read; twice with ``budget``.

    Returns
    -------
    Extraction

    Raises
    ------
    UsageError
        If nothing changed, the rule or out does not do, or a matrix holds NaN or infinity.
    OSError
        If the disk is full or refuses.

    Notes
    -----
    The part that is kept is ``U_k S_k Vh_k`` of dW's SVD, the best of rank k (Eckart & Young 1936); the factors are
    ``B = U_k sqrt(S_k)`` and ``A = sqrt(S_k) Vh_k`` with a scaling of 1, which balances them. Finished matrices are
    kept in a hidden folder inside ``out`` until the adapter is whole: after an interrupt the same call goes on with the
    next.

    Examples
    --------
    >>> from rankprobe.weights.inputs import open_input
    >>> from rankprobe.weights.pair import pair
    >>> W0 = {"layers.0.q_proj.weight": torch.zeros(4, 4)}
    >>> W1 = {"layers.0.q_proj.weight": torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0]))}
    >>> done = extract(pair(open_input(W0), open_input(W1), fused=True), None, rank=1)
    >>> done.summary["parameters"], round(done.summary["kept_energy"], 3)
    (8, 0.9)
    """
    rule = Rule(rank, energy, noise, budget)
    for name, value, known in (("--embeddings", embeddings, EMBEDDINGS), ("--dtype", dtype, tuple(DTYPES))):
        if value not in known:
            raise UsageError(must(name, f"be one of {', '.join(known)}", repr(value), f"Pass {name} {known[0]}"))
    settings = {"rule": str(rule), "embeddings": embeddings, "include": include, "exclude": exclude, "dtype": dtype,
                "base_rounded": base_rounded and noise}  # fmt: skip
    inputs = " ".join(side.fingerprint for side in (pairing.base, pairing.tuned) if side is not None)
    if out is not None and find_earlier(Path(out), inputs, json.dumps(settings), overwrite=overwrite):
        return read_extraction(Path(out))
    base_model = base_model or hub_name(pairing.tuned)
    layout = _layout(pairing, NameFilter(include, exclude), embeddings)
    how = {"dtype": DTYPES[dtype], "device": device, "base_rounded": base_rounded, "progress": progress}
    if out is None:
        rows, slack = decompose(layout, rule, None, **how)
        return _finish(pairing, layout, rule, rows, slack, None, settings, base_model)[0]
    out = Path(os.path.abspath(out))
    work = Work(out, f"{__version__} {inputs} {json.dumps(settings)}")
    try:
        rows, slack = decompose(layout, rule, work, **how)
        done, contents = _finish(pairing, layout, rule, rows, slack, work, settings, base_model)
        new = work.new()
        write_files(new, contents.config, contents.entries)
        _describe(new, done, inputs, settings, command)
    except UsageError:
        work.drop()  # the inputs are at fault: corrected ones are other inputs
        raise
    work.finish()
    return Extraction(**_fields(done), folder=out)


def _layout(pairing: Pairing, keep: NameFilter, embeddings: str) -> Layout:
    if isinstance(pairing.tuned, AdapterSource):
        layout = layout_of_adapter(pairing, keep=keep)
    else:
        layout = layout_of_model(pairing, keep=keep, embeddings=embeddings)
    keep.check(bool(layout.targets))
    if not layout.targets:
        got = "none that can have them"
        raise UsageError(must(pairing.tuned.label, "have a linear layer to give factors", got, "Pass other models"))
    return layout


def read_extraction(folder: Path) -> Extraction:
    """What an earlier call wrote.

    Raises
    ------
    UsageError
        If the folder holds no extraction.
    """
    record = read_record(Path(folder))
    try:
        return Extraction(**record["extraction"], folder=Path(folder))
    except (TypeError, KeyError):
        rule = "be a record that this rankprobe wrote"
        raise UsageError(must(f"{folder}/{RECORD_FILE}", rule, "another", "Pass --overwrite")) from None


def _finish(
    pairing: Pairing, layout: Layout, rule: Rule, rows: dict[str, dict], slack: float | None, work: Work | None,
    settings: dict, base_model: str,
) -> tuple[Extraction, Contents]:
    """The sums over all rows, and what is to be written."""
    ranks = {module: row["r"] for module, row in rows.items()}
    if not any(ranks.values()):
        raise nothing_kept(rows, pairing.tuned.label)
    make = contents_of_adapter if isinstance(pairing.tuned, AdapterSource) else contents_of_model
    contents = make(pairing, layout, ranks, work.read if work is not None else _unread,
                    dtype=DTYPES[settings["dtype"]], base_model=base_model)
    beside = [_measured(one) for one in contents.beside]
    lost = [_measured(asdict(one)) for one in (*layout.lost, *contents.lost)]
    lost += [{"name": row["name"], "why": why_none(row, rule), "change": row["fro_norm"]}
             for row in rows.values() if row["r"] == 0 and row["fro_norm"] > 0]
    base, tuned = pairing.base, pairing.tuned
    summary = {
        "rule": settings["rule"],
        "parameters": sum(row["parameters"] for row in rows.values()),
        "beside_parameters": sum(one["parameters"] for one in beside),
        "size_bytes": sum(entry.size for entry in contents.entries),
        **kept_shares(list(rows.values()), beside, lost),
        "budget_slack": slack,
        "task_type": layout.task,
        "architecture": layout.skeleton.architecture or str((tuned.config.get("architectures") or [""])[0]),
        "num_labels": labels_of(tuned, layout.task),
        "tuned_bytes": _size(tuned),
        "base": base.label if base is not None else None,
        "base_model": base_model,
        "tuned": tuned.label,
        "dtype": settings["dtype"],
    }
    notes = [*pairing.notes, *layout.notes, *_notes(layout, contents, ranks)]
    return Extraction(list(rows.values()), beside, lost, layout.left_out, notes, summary), contents


def _size(tuned: Checkpoint | AdapterSource) -> int:
    """Bytes of TUNED's tensors, tied ones once."""
    stored = tuned.tensors.stored.values()
    return sum(math.prod(of.shape) * getattr(torch, of.dtype, torch.float32).itemsize for of in stored)


def _measured(one: dict) -> dict:
    """JSON has no NaN."""
    return {**one, "change": None if math.isnan(one["change"]) else one["change"]}


def _notes(layout: Layout, contents: Contents, ranks: dict[str, int]) -> list[str]:
    notes = []
    if any(target.copies and ranks[target.module] for target in layout.targets):
        notes.append("The output layer is tied to the input embedding and has the same factors: PEFT computes right "
                     "with them, but its merge_and_unload would add them twice to the shared weight (--embeddings "
                     "whole can be merged)")
    if contents.config["bias"] == "all":
        notes.append("Biases are carried whole by PEFT's bias: all, which replaces those of the base it is put on: "
                     "disable_adapter does not bring them back")
    return notes


def _describe(folder: Path, done: Extraction, inputs: str, settings: dict, command: str) -> None:
    """Table, README and record; the record is what tells the folder apart as ours."""
    title = " and ".join(label for label in (done.summary["base"], done.summary["tuned"]) if label)
    record = {"inputs": inputs, "settings": json.dumps(settings), "rule": settings["rule"], "title": title,
              "version": __version__, "extraction": _fields(done)}  # fmt: skip
    write_text(folder / TABLE_FILE, done.table.to_csv(index=False, lineterminator="\n"))
    write_text(folder / README_FILE, extraction_readme(done, command))
    write_text(folder / RECORD_FILE, json.dumps(record, indent=1) + "\n")


def _fields(done: Extraction) -> dict:
    return {name: getattr(done, name) for name in done.__dataclass_fields__ if name != "folder"}


def _unread(module: str, name: str) -> Tensor:
    raise RankprobeError(f"{name} of {module} was not kept: this is a dry run.")
