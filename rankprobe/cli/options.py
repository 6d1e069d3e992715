"""Options that several commands share, and what they mean together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
from click.core import ParameterSource

from rankprobe.errors import UsageError, must


def apply(*options: Callable) -> Callable:
    """Several options as one decorator, shown in the order given."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class IntList(click.ParamType):
    """Comma-separated whole numbers: ``1,2,4``."""

    name = "N,N,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse; a click error names the part that is no number."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(dict.fromkeys(int(part) for part in str(value).split(",")))
        except ValueError:
            self.fail(f"must be whole numbers with commas between. Got {value!r}. Pass 1,2,4, say.", param, ctx)


class FloatList(click.ParamType):
    """Comma-separated numbers: ``0.5,1,2``."""

    name = "X,X,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse; a click error names the part that is no number."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"must be numbers with commas between. Got {value!r}. Pass 0.5,1,2, say.", param, ctx)


# As rankprobe.experiment.spec has them, which a --help need not import; a test compares.
METHODS = (
    "full", "head", "lora", "bitfit", "top_layers", "adapter_h", "adapter_l", "prompt", "prefix", "did", "said",
)  # fmt: skip

size_options = apply(
    click.option("--bottleneck", type=int, default=None, help="Of adapter_h and adapter_l."),
    click.option("--prefix-length", type=int, default=None, help="Tokens of prompt and prefix."),
    click.option("--layers", type=int, default=None, help="Of top_layers: the last so many blocks."),
    click.option("--d", type=int, default=None, help="Dimensions of did and said."),
)

model_option = click.option(
    "--model",
    default="all-MiniLM-L6-v2",
    show_default=True,
    metavar="NAME|PATH",
    help="A folder, or a model on the Hugging Face hub.",
)
runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="The run store; finished runs in it are reused.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="First seed."
)

compute_options = apply(
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Of products; auto is bfloat16 where the hardware has it.",
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option("--threads", type=click.IntRange(1, 1024), default=None, help="CPU threads.  [default: all cores]"),
)

jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    default=None,
    help="Runs at once, each in a process with its share of the threads.  [default: 1]",
)
executor_options = apply(
    jobs_option,
    click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where the runs are done; ray: on a Ray cluster, each with --threads cores (extra 'ray').",
    ),
    click.option(
        "--address",
        default=None,
        metavar="auto|HOST:PORT",
        help="Of the Ray cluster.  [default: the one RAY_ADDRESS names or that runs here, else a new one here]",
    ),
)

source_options = apply(
    click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        default=None,
        help="Folder with GLUE's or E2E's files, or the file of SMILES; without it GLUE comes from the hub.",
    ),
    click.option(
        "--train",
        "train_file",
        type=click.Path(path_type=Path),
        default=None,
        help="Training rows: TSV, CSV or JSONL (task files).",
    ),
    click.option(
        "--eval", "eval_file", type=click.Path(path_type=Path), default=None, help="Evaluation rows, likewise."
    ),
    click.option("--text", "text_column", default=None, help="Column of the text."),
    click.option("--text-b", "text_b_column", default=None, help="Column of a second text."),
    click.option("--label", "label_column", default=None, help="Column of the label."),
    click.option("--no-header", is_flag=True, help="Files have no header; columns are then numbers from 0."),
    click.option("--encoding", default="utf-8", show_default=True, help="Of the files: latin-1, say."),
    click.option("--regression", is_flag=True, help="Labels are scores, not classes."),
)

task_options = apply(
    click.option(
        "--task",
        default="docmatch",
        show_default=True,
        help="docmatch, docmatch-smoke, sst2, mrpc, rte, cola, qnli, qqp, mnli, stsb, or files; language modelling: "
        "docgen, docgen-smoke, e2e, smiles.",
    ),
    source_options,
    click.option("--train-size", type=click.IntRange(min=1), default=None, help="Training rows.  [default: all]"),
    click.option("--eval-size", type=click.IntRange(min=2), default=None, help="Evaluation rows.  [default: all]"),
)

training_options = apply(
    click.option("--epochs", type=click.IntRange(min=1), default=2, show_default=True),
    click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True),
    click.option("--max-length", type=click.IntRange(min=8), default=128, show_default=True, help="Tokens a row."),
    click.option("--warmup-ratio", type=click.FloatRange(0, 1, max_open=True), default=0.06, show_default=True),
    click.option("--weight-decay", type=click.FloatRange(min=0), default=0.01, show_default=True),
    click.option("--clip-norm", type=click.FloatRange(min=0), default=1.0, show_default=True, help="0 clips nothing."),
    click.option(
        "--model-dropout",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        show_default=True,
        help="Every dropout inside the model.",
    ),
)

early_stop_options = apply(
    click.option(
        "--patience",
        type=click.IntRange(min=1),
        default=None,
        help="Stop a run after so many epochs without a lower loss on tuning rows, and keep its best epoch.  "
        "[default: train all epochs]",
    ),
    click.option("--tuning-size", type=click.IntRange(min=1), default=None, help="Tuning rows.  [default: all]"),
)

lora_options = apply(
    click.option(
        "--targets",
        default="q,v",
        show_default=True,
        help="q k v o up down gate with commas, qkvo, all, or a regex on module paths.",
    ),
    click.option("--alpha", default="2r", show_default=True, help="LoRA's alpha, a number or a multiple of r."),
    click.option("--dropout", type=float, default=0.0, show_default=True, help="On LoRA's input."),
    click.option("--rslora", is_flag=True, help="Scale by alpha / sqrt(r) instead of alpha / r."),
)


def given(*names: str) -> list[str]:
    """Of some parameters of the command that runs, the flags that were typed: ``--train-size``."""
    context = click.get_current_context()
    flags = {param.name: param.opts[0] for param in context.command.params}
    return [flags[n] for n in names if n in flags and context.get_parameter_source(n) is not ParameterSource.DEFAULT]


def file_spec(options: dict):
    """The FileSpec that the task options describe; None for a named task.

    Raises
    ------
    UsageError
        If options of ``--task files`` are missing, or given for another task.
    """
    named = given("train_file", "eval_file", "text_column", "label_column")
    if options["task"] != "files" and not named:
        if extra := given("text_b_column", "no_header", "encoding", "regression"):
            raise UsageError(
                must(
                    " and ".join(extra),
                    "be of own files",
                    f"the task {options['task']}",
                    "Pass --train, --eval, --text and --label too",
                )
            )
        return None
    if len(named) < 4:
        raise UsageError(
            must(
                "own files",
                "come with --train, --eval, --text and --label",
                ", ".join(named) or "none of them",
                "Pass all four",
            )
        )
    from rankprobe.tasks.files import FileSpec

    return FileSpec(
        train=options["train_file"],
        eval=options["eval_file"],
        text=options["text_column"],
        text_b=options["text_b_column"],
        label=options["label_column"],
        header=not options["no_header"],
        encoding=options["encoding"],
        regression=options["regression"],
    )


def place(options: dict):
    """Where this machine keeps things and what it computes with, from ``--runs``, the compute and the task options.

    With ``--jobs`` a run has its share of the threads. More jobs than threads are refused rather than slowed down.
    """
    import os

    from rankprobe.experiment.store import check_store
    from rankprobe.experiment.sweep import Place
    from rankprobe.training.precision import pick_device, pick_dtype

    check_store(options["runs"])
    device = pick_device(options["device"])
    cores = len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    threads, jobs = options["threads"] or cores, options.get("jobs") or 1
    if jobs > threads:
        got, next_step = f"{jobs} on {threads}", f"Pass --jobs {threads} or fewer, or more --threads"
        raise UsageError(must("--jobs", "be at most the CPU threads, which are divided", got, next_step))
    return Place(
        runs=options["runs"],
        dtype=pick_dtype(device, options["dtype"]),
        device=device,
        threads=threads // jobs,
        data_dir=options.get("data_dir"),
        files=file_spec(options) if "task" in options else None,
    )


def study_settings(options: dict) -> dict:
    """The fields of a Study that the task, training and early-stop options set.

    Raises
    ------
    UsageError
        If tuning rows are counted that nothing uses.
    """
    if options.get("tuning_size") and not (options.get("patience") or options.get("tune")):
        tunes = "--tune or --patience" if "tune" in options else "--patience"
        got, next_step = f"{options['tuning_size']} alone", f"Pass {tunes}, or leave it out"
        raise UsageError(must("--tuning-size", f"be given with {tunes}, which use tuning rows", got, next_step))
    # Own files name their task; one that was typed is left to load_task, which refuses the two together.
    task = options["task"] if options["train_file"] is None or given("task") else "files"
    same = (
        "epochs",
        "batch_size",
        "max_length",
        "warmup_ratio",
        "weight_decay",
        "clip_norm",
        "model_dropout",
        "seed",
        "model",
    )
    return {
        "task": task,
        "train_size": options["train_size"] or 0,
        "eval_size": options["eval_size"] or 0,
        "patience": options.get("patience") or 0,
        "tuning_size": options.get("tuning_size") or 0,
        **{name: options[name] for name in same},
    }
