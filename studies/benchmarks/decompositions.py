"""rankprobe's singular values against those that others compute: how fast, and how exact.

Run with ``python studies/benchmarks/decompositions.py``; about half an hour on 2 cores, and it may be cut at any time:
every round is written to results/benchmarks/decompositions.{json,csv} at once and a second call goes on. All ways are
timed in one process, in interleaved rounds.

- ``lora``: all singular values of a LoRA update of 4096 x 4096 with r = 16, from its factors, by a dense SVD of the
  product in float64; the largest difference as a share of σ₁. With ``--gradience DIR`` the same values by gradience,
  and its audit of an adapter of 32 such updates by rankprobe's measuring of it, from the files on. DIR is made with
  ``pip install --no-deps --target DIR gradience``: what it needs, rankprobe has.
- ``values``: all singular values of dense matrices by what torch and SciPy offer, in float64 and float32. What is in
  float64 is handed a float64 matrix; ours is handed a float32 one and takes it from there. Errors are as shares of σ₁,
  against torch's float64 values; SciPy's float64 beside them shows how well those are known. Spectra: ``gaussian``;
  ``planted``, rank 32 above a Gaussian bulk; ``power``, σ_i = 1/i; ``rounding``, the difference of two float32
  matrices, a rank-16 update and what rounding the tuned one left. The machine rests a tenth of a second before each way
  is timed, so that SciPy's threads and torch's do not spin on the cores that the other one's need.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import click
import torch
from rounds import RESULTS, Book, faster, figure, seconds_of, show
from safetensors.torch import save_file
from scipy import linalg
from torch import Tensor

from rankprobe.analysis.spectrum import spectrum_of
from rankprobe.linalg.decompose import singular_values, svd_factored, svdvals_factored
from rankprobe.weights.inputs import open_input
from rankprobe.weights.pair import pair

SHAPES = ((768, 768), (768, 3072), (2048, 2048), (4096, 4096))
SPECTRA = ("gaussian", "planted", "power", "rounding")
# Rounds at most, by the longer side: the larger, the longer and the steadier.
ROUNDS = {768: 9, 3072: 9, 2048: 6, 4096: 3}
# Seconds until no library's threads spin any more, and how many calls in a row are timed where one takes milliseconds:
# a checkpoint's matrices come one after another as well.
REST, REPEAT, SHORT = 0.1, 5, 1024
LORA_SIDE, LORA_RANK, LORA_ALPHA, AUDITED = 4096, 16, 32, 32
# How many times faster than others ours must be, in float64 and in float32; ours are float64's values in any case.
DTYPES = ("float64", "float32")
BARS = {"torch svd": (3, 1), "best svdvals": (1, None), "torch svdvals": (None, None), "scipy svdvals": (None, None)}


def matrix(spectrum: str, m: int, n: int) -> Tensor:
    """A float32 matrix with one of the spectra, the same at every call."""
    generator = torch.Generator().manual_seed(m + n)

    def gaussian(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator)

    if spectrum == "gaussian":
        return gaussian(m, n)
    if spectrum == "power":
        p = min(m, n)
        U, V = (torch.linalg.qr(gaussian(side, p)).Q for side in (m, n))
        return U / torch.arange(1, p + 1) @ V.T
    if spectrum == "planted":
        # The bulk ends at √m + √n; the planted values lie 3 to 30 times above.
        edge, U, V = m**0.5 + n**0.5, torch.linalg.qr(gaussian(m, 32)).Q, torch.linalg.qr(gaussian(n, 32)).Q
        return gaussian(m, n) + edge * (U * torch.logspace(1.477, 0.477, 32)) @ V.T
    W0 = 0.02 * gaussian(m, n)
    W1 = W0 + 1e-4 * gaussian(m, 16) @ gaussian(16, n)
    return W1 - W0


def measure_values(book: Book, spectrum: str, m: int, n: int, rounds: int) -> None:
    """All values of one matrix, every way."""
    name = f"values {m}x{n} {spectrum}"

    @cache
    def inputs() -> tuple[Tensor, Tensor]:
        M = matrix(spectrum, m, n)
        return M, M.double()

    last: dict[str, Tensor] = {}

    def way(label: str, call: Callable[[], Tensor]) -> Callable[[], float]:
        def keep() -> None:
            last[label] = call()

        return seconds_of(keep, REPEAT if min(m, n) <= SHORT else 1, rest_s=REST)

    def scipys(M: Tensor) -> Tensor:
        return torch.from_numpy(linalg.svdvals(M.numpy()))

    def ours() -> Tensor:
        values = singular_values(inputs()[0])
        book.case(name)["facts"]["method"] = values.method
        return values.S

    timers = {"rankprobe": way("rankprobe", ours)}
    for i, dtype in ((1, "float64"), (0, "float32")):
        calls = {
            "torch svd": lambda i=i: torch.linalg.svd(inputs()[i], full_matrices=False).S,
            "torch svdvals": lambda i=i: torch.linalg.svdvals(inputs()[i]),
            "scipy svdvals": lambda i=i: scipys(inputs()[i]),
        }
        timers |= {f"{label} {dtype}": way(f"{label} {dtype}", call) for label, call in calls.items()}
    if book.rounds_of(name) < rounds:
        inputs()
        found = book.run(name, timers, rounds, warm=max(m, n) < 2048)
        reference = last["torch svdvals float64"].double()
        errors = {way: float((S.double() - reference).abs().max() / reference[0]) for way, S in last.items()}
        found["facts"] |= {"errors": errors, "smallest": float(reference[-1] / reference[0])}
        book.write()


def values_rows(found: dict) -> list[dict]:
    """Every way by ours, with the bars, and what the values err by."""
    seconds, facts = dict(found["seconds"]), found["facts"]
    for dtype in DTYPES if seconds else ():
        both = (seconds[f"{library} svdvals {dtype}"] for library in ("torch", "scipy"))
        seconds[f"best svdvals {dtype}"] = [min(times) for times in zip(*both, strict=True)]
    rows = []
    for label, bars in BARS.items():
        for dtype, bar in zip(DTYPES, bars, strict=True):
            rows += faster({"seconds": seconds}, "rankprobe", f"{label} {dtype}", bar)
    for way in ("rankprobe", "scipy svdvals float64", "torch svd float32", "scipy svdvals float32"):
        rows += figure(f"error of {way}", facts.get("errors", {}).get(way), "of σ₁")
    rows += figure("smallest value", facts.get("smallest"), "of σ₁")
    return [{**row, "method": facts.get("method", "")} for row in rows]


def measure_lora(book: Book, side: int, gradience: Path | None, rounds: int) -> None:
    """One update from its factors and by a dense SVD; an adapter of many by gradience and by rankprobe."""
    name = f"lora {side}x{side} r={LORA_RANK}"
    generator = torch.Generator().manual_seed(0)
    B = 0.01 * torch.randn(side, LORA_RANK, generator=generator)
    A = torch.randn(LORA_RANK, side, generator=generator) / side**0.5
    scaling = LORA_ALPHA / LORA_RANK
    timers = {
        "rankprobe": seconds_of(lambda: svdvals_factored(B, A, scaling), 20),
        "rankprobe with vectors": seconds_of(lambda: svd_factored(B, A, scaling), 20),
    }
    if gradience is not None:
        sys.path.append(str(gradience))
        from gradience.vnext.audit.lora_audit import low_rank_singular_values

        timers["gradience"] = seconds_of(lambda: low_rank_singular_values(A, B), 20)
        _measure_audit(book, side, rounds)
    if book.rounds_of(name) >= rounds:
        return
    dW, dense = scaling * B.double() @ A.double(), {}

    def keep(label: str, call: Callable[[], Tensor]) -> Callable[[], float]:
        return seconds_of(lambda: dense.update({label: call()}))

    timers["torch svd float64"] = keep("svd", lambda: torch.linalg.svd(dW, full_matrices=False).S)
    timers["torch svdvals float64"] = keep("svdvals", lambda: torch.linalg.svdvals(dW))
    timers["scipy svdvals float64"] = keep("scipy", lambda: torch.from_numpy(linalg.svdvals(dW.numpy())))
    for _ in range(3):  # what is short is warm before it is timed; the rest takes too long to throw a round away
        timers["rankprobe"](), timers["rankprobe with vectors"]()
    found = book.run(name, timers, rounds, warm=side < 2048)
    S = svdvals_factored(B, A, scaling)
    full = torch.cat([S, S.new_zeros(side - LORA_RANK)])
    found["facts"]["difference"] = float((full - dense["svd"]).abs().max() / S[0])
    if gradience is not None:
        theirs = scaling * low_rank_singular_values(A, B)
        found["facts"]["difference_gradience"] = float((S - theirs).abs().max() / S[0])
        # Factors that training let grow unevenly: a product with values from 1 to 1e-11.
        uneven = torch.logspace(0, -11, LORA_RANK, dtype=torch.float64)
        Q, P = torch.linalg.qr(B.double()).Q, torch.linalg.qr(A.T.double()).Q
        found["facts"]["uneven"] = {
            "rankprobe": float((svdvals_factored(Q * uneven, P.T) / uneven - 1).abs().max()),
            "gradience": float((low_rank_singular_values(P.T, Q * uneven) / uneven - 1).abs().max()),
        }
    book.write()


def lora_rows(found: dict) -> list[dict]:
    """By a dense SVD of the product, with the bars, and by gradience."""
    facts = found["facts"]
    rows = faster(found, "rankprobe", "torch svd float64", 1000)
    for other in ("torch svdvals float64", "scipy svdvals float64", "gradience", "rankprobe with vectors"):
        rows += faster(found, "rankprobe", other)
    rows += figure("difference from torch svd float64", facts.get("difference"), "of σ₁", 1e-10)
    rows += figure("difference from gradience", facts.get("difference_gradience"), "of σ₁")
    for way, error in facts.get("uneven", {}).items():
        rows += figure(f"error of {way}, values from 1 to 1e-11", error, "of the value")
    return rows


def _measure_audit(book: Book, side: int, rounds: int) -> None:
    """An adapter's files, from opening them to every update's values and ranks."""
    name, twice = f"audit of {AUDITED} updates {side}x{side} r={LORA_RANK}", 2 * rounds
    if book.rounds_of(name) >= twice:
        return
    from gradience.vnext.audit import audit_lora_peft_dir

    with tempfile.TemporaryDirectory() as folder:
        _write_adapter(Path(folder), side)

        def theirs() -> list:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                audit = audit_lora_peft_dir(folder, include_top_singular_values=LORA_RANK, compute_udr=False)
            assert len(audit.layers) == AUDITED and not audit.issues
            return audit.layers

        def ours() -> tuple:
            ranks, spectra = spectrum_of(pair(None, open_input(folder)))
            assert len(ranks) == AUDITED
            return ranks, spectra

        found = book.run(name, {"rankprobe": seconds_of(ours), "gradience": seconds_of(theirs)}, twice)
        # gradience's values are those of B A, its sigma_max and Frobenius norm of the update are scaled.
        by_name = ours()[0].set_index("name")["sigma_max"]
        differences = [
            abs(layer.delta_sigma_max / by_name[layer.name.removeprefix("base_model.model.") + ".weight"] - 1)
            for layer in theirs()
        ]
        found["facts"]["difference"] = max(differences)
    book.write()


def audit_rows(found: dict) -> list[dict]:
    """Measuring an adapter by gradience's audit of it."""
    rows = faster(found, "rankprobe", "gradience")
    return rows + figure("difference of sigma_max", found["facts"].get("difference"), "of σ₁")


def _write_adapter(folder: Path, side: int) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for number in range(AUDITED):
        stem = f"base_model.model.model.layers.{number // 2}.self_attn.{'qv'[number % 2]}_proj"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(LORA_RANK, side, generator=generator) / side**0.5
        tensors[f"{stem}.lora_B.weight"] = 0.01 * torch.randn(side, LORA_RANK, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": LORA_RANK, "lora_alpha": LORA_ALPHA, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@click.command()
@click.option("--only", default="", metavar="REGEX", help="Cases whose name it finds.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of every case.  [default: 3 to 9 by size]")
@click.option("--scale", default=1.0, show_default=True, help="Sides are multiplied by it: a try at 0.1 takes seconds.")
@click.option("--gradience", type=click.Path(path_type=Path, exists=True), help="Where pip --target put gradience.")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path), help="Output folder.")
def main(only: str, rounds: int | None, scale: float, gradience: Path | None, out: Path) -> None:
    """Measure, print and store speed and accuracy of singular values."""
    book = Book("decompositions", out, scale=scale)
    side = round(LORA_SIDE * scale)
    work = {f"lora {side}x{side} r={LORA_RANK}": lambda: measure_lora(book, side, gradience, rounds or 3)}
    book.rows = {
        f"lora {side}x{side} r={LORA_RANK}": lora_rows,
        f"audit of {AUDITED} updates {side}x{side} r={LORA_RANK}": audit_rows,
    }
    for shape in SHAPES:
        m, n = (round(x * scale) for x in shape)
        for spectrum in SPECTRA:
            name, times = f"values {m}x{n} {spectrum}", rounds or ROUNDS[max(shape)]
            book.rows[name] = values_rows
            work[name] = lambda s=spectrum, m=m, n=n, t=times: measure_values(book, s, m, n, t)
    for name, measure in work.items():
        if re.search(only, name):
            measure()
    show(book.table())


if __name__ == "__main__":
    main()
