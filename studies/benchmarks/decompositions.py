"""Our decompositions against LAPACK's as torch and SciPy call it, and against gradience's audit.

Run with ``python studies/benchmarks/decompositions.py``; about 25 minutes on 2 cores, most of them for the dense SVDs
of 4096 x 4096. Both sides of a ratio are timed in one process, interleaved in random order, and the ratio is taken
within a round. Stored in results/benchmarks/decompositions.csv and .json after every question, so that a second call
goes on with the next (``--again`` starts over):

- ``factored``: all singular values of a LoRA update B @ A of 4096 x 4096, r = 16, by a dense decomposition of the
  product in float64;
- ``audit``: ``rankprobe.spectrum`` of an adapter of 64 such updates, by gradience's audit of the same folder, where
  gradience is installed (PyPI, 0.11; ``pip install --no-deps gradience pyyaml``);
- ``values``: all singular values of a dense update in float64, by torch.linalg.svd in float64 and in float32 (what PEFT
  and mergekit call) and by the values-only calls of torch and SciPy in float64 and float32.

``times`` is how many times the other takes of ours, ``error`` the largest error of a singular value in units of σ₁,
against a direct float64 decomposition (of a value in the factored case: the dense one of the product).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pandas as pd
import scipy.linalg
import torch
from safetensors.torch import save_file

from rankprobe.experiment.provenance import device_record, git_state, versions
from rankprobe.linalg.decompose import singular_values, svdvals_factored
from rankprobe.training.latency import median_interval

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ((768, 768), (768, 3072), (2048, 2048), (4096, 4096))
FACTORED, R, MODULES = (4096, 4096), 16, 64
# Least number of times that the other is to take of ours. Ours are float64's values: those of float32 are no equal.
BOUNDS = {"svd float64": 3.0, "svd float32": 1.0, "best values float64": 1.0}
BOUND_FACTORED = 1000.0
_VALUES_ONLY = ("torch values", "scipy values")
Timer = Callable[[], object]


def values_only(M: torch.Tensor) -> dict[str, Timer]:
    """What a dense matrix's singular values can be had from, by name."""
    D, F = M.double(), M.float()
    d, f = D.numpy(), F.numpy()
    return {
        "ours": lambda: singular_values(M).S,
        "svd float64": lambda: torch.linalg.svd(D, full_matrices=False)[1],
        "svd float32": lambda: torch.linalg.svd(F, full_matrices=False)[1],
        "torch values float64": lambda: torch.linalg.svdvals(D),
        "torch values float32": lambda: torch.linalg.svdvals(F),
        "scipy values float64": lambda: scipy.linalg.svd(d, compute_uv=False),
        "scipy values float32": lambda: scipy.linalg.svd(f, compute_uv=False),
    }


def update(m: int, n: int, seed: int = 0) -> torch.Tensor:
    """A dense update as fine-tuning leaves it, float32: a few strong directions above a bulk that is not flat."""
    draw = torch.Generator().manual_seed(seed)
    strong = torch.randn(m, 8, generator=draw) @ torch.randn(8, n, generator=draw)
    return (0.02 * torch.randn(m, n, generator=draw) + 0.01 * strong) * torch.rand(m, 1, generator=draw)


def interleave(timers: dict[str, Timer], rounds: int, what: str) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Every timer once a round, in random order, after one untimed round; seconds and what each gave."""
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    given: dict[str, object] = {}
    for number in range(-1, rounds):
        for name in generator.permutation(list(timers)).tolist():
            start = time.perf_counter()
            given[name] = timers[name]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
        click.echo(f"\r{what}: round {number + 1} of {rounds}  ", nl=number + 1 == rounds, err=True)
    return {name: np.asarray(times) for name, times in seconds.items()}, given


def row(question: str, shape: str, against: str, ours: np.ndarray, other: np.ndarray, bound: float | None) -> dict:
    """How many times the other takes of ours, by the rounds' ratios, with the verdict on its bound."""
    times = other / ours
    low, high = median_interval(times)
    verdict = "" if bound is None else "met" if low >= bound else "missed" if high < bound else "undecided"
    return {"question": question, "shape": shape, "against": against, "times": float(np.median(times)), "ci_low": low,
            "ci_high": high, "n": len(times), "bound": bound, "verdict": verdict, "ours_s": float(np.median(ours)),
            "other_s": float(np.median(other))}  # fmt: skip


def measure_values(m: int, n: int, rounds: int) -> list[dict]:
    """All ways to a dense matrix's values."""
    M = update(m, n)
    seconds, given = interleave(values_only(M), rounds, f"values {m} x {n}")
    exact = torch.as_tensor(given["scipy values float64"])
    error = {name: float((torch.as_tensor(S).double() - exact).abs().max() / exact[0]) for name, S in given.items()}
    for bits in ("float64", "float32"):
        calls = [f"{library} {bits}" for library in _VALUES_ONLY]
        seconds[f"best values {bits}"] = np.min([seconds[call] for call in calls], axis=0)
        error[f"best values {bits}"] = max(error[call] for call in calls)
    return [
        row("values", f"{m} x {n}", name, seconds["ours"], times, BOUNDS.get(name))
        | {"error": error["ours"], "error_other": error[name]}
        for name, times in seconds.items() if name != "ours"
    ]  # fmt: skip


def measure_factored(rounds: int) -> list[dict]:
    """A LoRA update's values from its factors, and from its product."""
    m, n = FACTORED
    draw = torch.Generator().manual_seed(0)
    B, A = torch.randn(m, R, generator=draw), torch.randn(R, n, generator=draw)
    product = B.double() @ A.double()
    timers = {
        "ours": lambda: svdvals_factored(B, A, 2.0),
        "svd float64": lambda: 2.0 * torch.linalg.svd(product, full_matrices=False)[1],
        "torch values float64": lambda: 2.0 * torch.linalg.svdvals(product),
    }
    seconds, given = interleave(timers, rounds, f"factored {m} x {n}, r = {R}")
    exact, ours = given["svd float64"], given["ours"]
    error = float((ours - exact[: len(ours)]).abs().max() / exact[0])
    assert len(ours) == R, "as many values as factors"
    return [
        row("factored", f"{m} x {n}, r = {R}", name, seconds["ours"], seconds[name], bound) | {"error": error}
        for name, bound in (("svd float64", BOUND_FACTORED), ("torch values float64", None))
    ]


def measure_audit(rounds: int) -> list[dict]:
    """A whole adapter: our table against gradience's audit, each with its own reading of the folder."""
    try:
        from gradience.vnext.audit import audit_lora_peft_dir
    except ImportError as error:
        click.echo(f"audit: left out, {error}", err=True)
        return []
    import rankprobe

    m, n = FACTORED
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder), m, n)
        timers = {"ours": lambda: rankprobe.spectrum(folder), "gradience": lambda: audit_lora_peft_dir(folder)}
        seconds, given = interleave(timers, rounds, f"audit of {MODULES} updates")
    ranks = given["ours"].set_index("name")
    # Its stable ranks are those of B @ A without the scaling, which is no difference to a ratio.
    theirs = {layer.name.removeprefix("base_model.model."): layer.stable_rank for layer in given["gradience"].layers}
    error = max(abs(theirs[name.removesuffix(".weight")] - rank) / rank for name, rank in ranks["stable_rank"].items())
    shape = f"{MODULES} of {m} x {n}, r = {R}"
    return [row("audit", shape, "gradience audit", seconds["ours"], seconds["gradience"], None) | {"error": error}]


def write_adapter(folder: Path, m: int, n: int) -> None:
    """A PEFT adapter with random factors."""
    draw, tensors = torch.Generator().manual_seed(0), {}
    for layer in range(MODULES):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(R, n, generator=draw)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(m, R, generator=draw)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@click.command()
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(6), help="Rounds of the small matrices.")
@click.option("--rounds-large", default=6, show_default=True, type=click.IntRange(6), help="Rounds of 4096 x 4096.")
@click.option("--largest", default=4096, show_default=True, help="Leave larger matrices out.")
@click.option("--again", is_flag=True, help="Measure again what is stored.")
@click.option("--out", default=ROOT / "results" / "benchmarks", type=click.Path(path_type=Path), help="Output folder.")
def main(rounds: int, rounds_large: int, largest: int, again: bool, out: Path) -> None:
    """Measure, print and store what is not stored yet."""
    file = out / "decompositions.csv"
    table = pd.DataFrame() if again or not file.exists() else pd.read_csv(file)
    questions: dict[tuple[str, str], Callable[[], list[dict]]] = {}
    for m, n in SHAPES:
        if max(m, n) <= largest:
            many = rounds if m * n < 4096**2 else rounds_large
            questions["values", f"{m} x {n}"] = lambda m=m, n=n, many=many: measure_values(m, n, many)
    m, n = FACTORED
    questions["audit", f"{MODULES} of {m} x {n}, r = {R}"] = lambda: measure_audit(rounds)
    if max(m, n) <= largest:
        questions["factored", f"{m} x {n}, r = {R}"] = lambda: measure_factored(rounds_large)
    out.mkdir(parents=True, exist_ok=True)
    for (question, shape), measure in questions.items():
        if len(table) and ((table["question"] == question) & (table["shape"] == shape)).any():
            continue
        table = pd.concat([table, pd.DataFrame(measure())], ignore_index=True)
        store(table, out)
    click.echo(table.to_string(index=False, float_format=lambda x: f"{x:.3g}", na_rep=""))


def store(table: pd.DataFrame, out: Path) -> None:
    """Table and how it was made, whole or not at all."""
    record = {
        "command": "python studies/benchmarks/decompositions.py",
        "ci_method": "median of per-round ratios, order statistics, 95 %",
        "device": device_record("cpu", torch.get_num_threads()),
        "git": git_state(),
        "versions": versions(),
        "rows": json.loads(table.to_json(orient="records")),
    }
    texts = {"decompositions.csv": table.to_csv(index=False, float_format="%.6g"),
             "decompositions.json": json.dumps(record, indent=1) + "\n"}  # fmt: skip
    for name, text in texts.items():
        (out / f".{name}.tmp").write_text(text, encoding="utf-8")
        os.replace(out / f".{name}.tmp", out / name)


if __name__ == "__main__":
    main()
